"""What idempotency knows of one application."""

from __future__ import annotations

from dataclasses import dataclass, field

from flask import Flask

from .. import config
from ..errors import ConfigError
from ..extension import Binding
from ..flow import BoundPolicy
from .current import Recovers
from .keys import KeyFinder
from .policy import BoundIdempotency
from .reading import Reader
from .settings import CAPABILITY, Layer, Settings
from .waiters import Running, Waiters


@dataclass(slots=True)
class Bound:
    """What idempotency knows of one application."""

    layers: tuple[Layer, Layer]
    settings: Settings
    waiters: Waiters
    finders: list[KeyFinder]
    running: Running = field(default_factory=Running)

    def policy(self, binding: Binding, route: Layer) -> BoundPolicy:
        """Join the application's settings with those of one route.

        Raises:
            ConfigError: the view is to be atomic, and there is no database.
        """
        settings = config.combine(Settings, *self.layers, route)
        if "retry" in route and not settings.atomic:
            raise ConfigError(
                "@idempotent has 'retry', which is for atomic=True: what a view has done before "
                "it failed is undone only there"
            )
        if settings.atomic:
            return self._atomic(binding, settings)
        return BoundIdempotency(
            settings,
            store=binding.store(CAPABILITY),
            reader=Reader(settings, binding.secrets, tuple(self.finders)),
            keeper=binding.keeper,
            waiters=self.waiters,
            recovers=_recoveries(binding, settings),
        )

    def _atomic(self, binding: Binding, settings: Settings) -> BoundPolicy:
        from .atomic import BoundAtomic  # noqa: PLC0415 - needs the extra

        database = binding.database
        if database is None or not database.has_sessions:
            raise ConfigError(
                "atomic=True needs the sessions that the view uses: give Demijohn(app, db=...)"
                " a sessionmaker, a scoped_session or the extension object (an Engine makes none)"
            )
        return BoundAtomic(
            settings,
            store=binding.store(CAPABILITY),
            database=database,
            reader=Reader(settings, binding.secrets, tuple(self.finders)),
            waiters=self.waiters,
            running=self.running,
        )


def _recoveries(binding: Binding, settings: Settings) -> Recovers | None:
    if binding.database is None:
        return None
    from .recoveries import Recoveries  # noqa: PLC0415 - needs the extra

    return Recoveries(binding.database, settings.ttl_ms, atomic=False)


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
