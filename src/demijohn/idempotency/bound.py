"""What idempotency knows of one application."""

from __future__ import annotations

from dataclasses import dataclass

from flask import Flask

from .. import config
from ..errors import ConfigError
from ..extension import Binding
from .keys import KeyFinder
from .policy import BoundIdempotency
from .reading import Reader
from .settings import CAPABILITY, Layer, Settings
from .waiters import Waiters


@dataclass(slots=True)
class Bound:
    """What idempotency knows of one application."""

    layers: tuple[Layer, Layer]
    settings: Settings
    waiters: Waiters
    finders: list[KeyFinder]

    def policy(self, binding: Binding, route: Layer) -> BoundIdempotency:
        """Join the application's settings with those of one route."""
        settings = config.combine(Settings, *self.layers, route)
        return BoundIdempotency(
            settings,
            store=binding.store(CAPABILITY),
            reader=Reader(settings, binding.secrets, tuple(self.finders)),
            keeper=binding.keeper,
            waiters=self.waiters,
        )


def bound_to(app: Flask) -> tuple[Binding, Bound]:
    """Return what is known of ``app``.

    Raises:
        ConfigError: idempotency is not bound to it.
    """
    binding = app.extensions.get("demijohn")
    bound = binding.capabilities.get(CAPABILITY) if isinstance(binding, Binding) else None
    if binding is None or not isinstance(bound, Bound):
        raise ConfigError(
            f"idempotency is not bound to the application {app.name!r}: call Demijohn(app), "
            "Idempotency(app) or init_app(app)"
        )
    return binding, bound
