"""Binding idempotency to an application, and its decorator."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, Unpack, cast, overload
from weakref import WeakKeyDictionary

from flask import Blueprint, Flask

from .. import config
from ..defaults import by_default, exempt
from ..errors import ConfigError
from ..extension import Binding, Policy, StoreLocation, bind, register
from ..flow import BoundPolicy
from ..guard import guarded, install
from ..servers import server_threads
from .bound import Bound
from .forms import idempotent_input, idempotent_key
from .keys import KeyFinder
from .settings import (
    CAPABILITY,
    Layer,
    Options,
    RouteOptions,
    Settings,
    default_waiters,
    from_config,
    refuse_without_meaning,
)
from .waiters import Waiters

P = ParamSpec("P")
R = TypeVar("R")


class _Policy:
    """What ``@idempotent(...)`` means, before it is known in which application."""

    capability = CAPABILITY
    complete = True

    def __init__(self, route: Layer) -> None:
        self._route = route

    def join(self, inner: Policy) -> None:
        """See :meth:`Policy.join`: a view has one idempotency."""

    def bind(self, binding: Binding, beside: frozenset[str]) -> BoundPolicy:
        bound = binding.capabilities.get(CAPABILITY)
        if not isinstance(bound, Bound):
            raise ConfigError(
                "a view is decorated as idempotent, but idempotency is not bound to the "
                f"application {binding.app_name!r}"
            )
        return bound.policy(binding, self._route)


class IdempotentDecorator:
    """``@idempotent``, ``@idempotent(required=True)`` and ``@idempotent.exempt``."""

    @overload
    def __call__(self, view: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def __call__(
        self, view: None = None, /, **options: Unpack[RouteOptions]
    ) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
    def __call__(self, view: Any = None, /, **options: Any) -> Any:
        """Run a view once for each idempotency key.

        Args:
            view: a view function, sync or ``async``, or a method of a ``MethodView``.
            options: override the application's settings for this view; see :class:`RouteOptions`.

        Raises:
            ConfigError: an option is unknown or wrong.
            UsageError: the view is already decorated so.
        """
        route = config.parse_layer(Settings, "@idempotent", options, of_route=True)
        refuse_without_meaning(route)
        policy = _Policy(route)
        if view is not None:
            return guarded(view, policy)
        return lambda decorated: guarded(decorated, policy)

    def exempt(self, view: Callable[P, R]) -> Callable[P, R]:
        """Leave ``view`` out of a default for the whole application or a blueprint."""
        return exempt(view, CAPABILITY)


class Idempotency:
    """Idempotent requests: a retried or concurrent duplicate gets the first one's response.

    Args:
        app: the application; without one, call :meth:`init_app` later.
        stores: as ``DEMIJOHN_STORES``: a store URL, or URLs by name.
        db: the application's database, for ``atomic=True``; as for :class:`demijohn.app.Demijohn`.
        options: override ``DEMIJOHN_IDEMPOTENCY`` for this application; see :class:`Options`.

    Raises:
        ConfigError: an option or a setting is unknown or wrong.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        stores: Mapping[str, StoreLocation] | str | None = None,
        db: object = None,
        **options: Unpack[Options],
    ) -> None:
        self._layer = config.parse_layer(Settings, "Idempotency()", options)
        self._stores = {"default": stores} if isinstance(stores, str) else stores
        self._db = db
        self._finders: list[KeyFinder] = []
        self._defaults: list[tuple[Blueprint | None, _Policy]] = []
        self._bound: WeakKeyDictionary[Flask, Binding] = WeakKeyDictionary()
        self.idempotent = IdempotentDecorator()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, binding: Binding | None = None) -> None:
        """Bind to ``app``, whose configuration is read now.

        Args:
            app: the application.
            binding: what is known of it, where another object has begun to bind it.

        Raises:
            ConfigError: a setting is unknown or wrong; then nothing was registered.
        """
        layers = (from_config(app), self._layer)
        settings = config.combine(Settings, *layers)
        if binding is None:
            stores = self._stores or legacy_stores(app, settings)
            binding = bind(app, stores=stores, db=self._db)
        most = settings.max_waiters
        if most is None:
            most = default_waiters(server_threads(sys.argv, os.environ))
        per_key = settings.max_waiters_per_key
        waiters = Waiters(most, most if per_key is None else per_key)
        register(app, binding, CAPABILITY, Bound(layers, settings, waiters, self._finders))
        install(app)
        self._bound[app] = binding
        app.jinja_env.globals.update(
            idempotent_key=idempotent_key, idempotent_input=idempotent_input
        )
        if settings.default:
            by_default(app, binding, _Policy({}))
        for blueprint, policy in self._defaults:
            by_default(app, binding, policy, blueprint)

    def protect(self, blueprint: Blueprint, **options: Unpack[RouteOptions]) -> None:
        """Make every view of ``blueprint`` idempotent unless it says otherwise.

        Args:
            blueprint: its own views and those of blueprints nested in it.
            options: override the application's settings for these views.

        Raises:
            ConfigError: an option is unknown or wrong.
        """
        policy = _Policy(config.parse_layer(Settings, "protect()", options, of_route=True))
        self._defaults.append((blueprint, policy))
        for app, binding in list(self._bound.items()):
            by_default(app, binding, policy, blueprint)

    def exempt(self, view: Callable[P, R]) -> Callable[P, R]:
        """Leave ``view`` out of a default for the whole application or a blueprint."""
        return exempt(view, CAPABILITY)

    def key_finder(self, finder: KeyFinder) -> KeyFinder:
        """Add a function that finds the key in a request; a decorator."""
        self._finders.append(finder)
        return finder


def legacy_stores(app: Flask, settings: Settings) -> Mapping[str, StoreLocation] | None:
    """Return the store that Flask-Idempotent's ``REDIS_URL`` names, in the legacy mode."""
    url = app.config.get("REDIS_URL")
    if settings.legacy and url and "DEMIJOHN_STORES" not in app.config:
        return {"default": cast("str", url)}
    return None
