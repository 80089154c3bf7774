"""Binding limits to an application, and their decorators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar, Unpack, cast
from weakref import WeakKeyDictionary

from flask import Blueprint, Flask, current_app, request

from .. import config
from ..core import limits as core
from ..defaults import by_default, exempt
from ..errors import ConfigError
from ..extension import Binding, Policy, StoreLocation, bind, register
from ..flow import BoundPolicy, Call
from ..guard import guarded, install
from .bound import Bound, bound_to
from .headers import quoted
from .notation import Rates, parse, rate_of
from .plan import Declared
from .settings import (
    CAPABILITY,
    ConcurrentOptions,
    Limit,
    LimitOptions,
    LimitSettings,
    LimitsOptions,
    Settings,
    ShedOptions,
    ShedSettings,
    check_rate,
    from_config,
)

P = ParamSpec("P")
R = TypeVar("R")

Decorator = Callable[[Callable[P, R]], Callable[P, R]]


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of :meth:`Limits.take`.

    Args:
        granted: how many units were taken; 0 if none.
        left: how many are left, by the tightest of the limits.
        reset_after: when there will be more.
        retry_after: when to try again for what was refused; ``None`` if never, or not refused.
    """

    granted: int
    left: int
    reset_after: timedelta
    retry_after: timedelta | None

    def __bool__(self) -> bool:
        return self.granted > 0


class _Policy:
    """What a view's limits mean, before it is known in which application."""

    capability = CAPABILITY

    def __init__(
        self,
        limits: tuple[Declared, ...] = (),
        sheds: tuple[tuple[str, ShedSettings], ...] = (),
        *,
        default: bool = False,
    ) -> None:
        self.limits = limits
        self.sheds = sheds
        self.by_default = default

    @property
    def complete(self) -> bool:
        """See :meth:`Policy.complete`: how many run says nothing of how often."""
        return any(limit.places is None for limit in self.limits)

    def join(self, inner: Policy) -> Policy | None:
        """See :meth:`Policy.join`: all limits of a view are decided at once."""
        if not isinstance(inner, _Policy):
            return None
        limits, sheds = (*self.limits, *inner.limits), (*self.sheds, *inner.sheds)
        return _Policy(limits, sheds, default=self.by_default or inner.by_default)

    def bind(self, binding: Binding, beside: frozenset[str]) -> BoundPolicy:
        """See :meth:`Policy.bind`."""
        bound = binding.capabilities.get(CAPABILITY)
        if not isinstance(bound, Bound):
            raise ConfigError(
                "a view has limits, but limits are not bound to the application "
                f"{binding.app_name!r}"
            )
        return bound.policy(binding, self.limits, self.sheds, beside, default=self.by_default)


def _declared(where: str, limit: Limit | None, given: Mapping[str, Any]) -> Declared:
    options = dict(given)
    older = {name: options.pop(name) for name in ("requests", "window") if name in options}
    settings = _settings(where, options)
    if limit is not None and older:
        raise ConfigError(f"{where} takes either limits in words, or requests= and window=")
    try:
        rates: Rates | Callable[[], object]
        if limit is None:
            rates = (rate_of(older.get("requests"), older.get("window")),)
        else:
            rates = limit if callable(limit) else parse(limit)
    except ValueError as error:
        raise ConfigError(f"{where} {error}, got {older or limit!r}") from None
    algorithm = settings.algorithm or ("gcra" if settings.burst else "")
    if settings.burst is not None and algorithm != "gcra":
        raise ConfigError(f"{where}: burst= is for the algorithm gcra, not {algorithm}")
    for rate in () if callable(rates) else rates:
        check_rate(where, rate, algorithm, settings.burst)
    return Declared(where, rates, settings)


def _settings(where: str, options: Mapping[str, object]) -> LimitSettings:
    layer = config.parse_layer(LimitSettings, where, options, of_route=True)
    settings = config.combine(LimitSettings, layer)
    if settings.name is not None:
        try:
            quoted(settings.name)
        except ValueError as error:
            raise ConfigError(f"{where}['name'] {error}, got {settings.name!r}") from None
    return settings


class Limits:
    """Limits: how much, how often and how many at once.

    Args:
        app: the application; without one, call :meth:`init_app` later.
        stores: as ``DEMIJOHN_STORES``: a store URL, or URLs by name.
        options: override ``DEMIJOHN_LIMITS`` for this application; see :class:`LimitsOptions`.

    Raises:
        ConfigError: an option or a setting is unknown or wrong.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        stores: Mapping[str, StoreLocation] | str | None = None,
        **options: Unpack[LimitsOptions],
    ) -> None:
        self._layer = config.parse_layer(Settings, "Limits()", options)
        self._stores = {"default": stores} if isinstance(stores, str) else stores
        self._defaults: list[tuple[Blueprint, _Policy]] = []
        self._bound: WeakKeyDictionary[Flask, Binding] = WeakKeyDictionary()
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
        if binding is None:
            binding = bind(app, stores=self._stores)
        self.register(app, binding, self.prepare(app, binding))

    def prepare(self, app: Flask, binding: Binding) -> Bound:
        """Read and check the settings for ``app``, and register nothing.

        Raises:
            ConfigError: a setting is unknown or wrong.
        """
        return Bound(config.combine(Settings, from_config(app), self._layer), binding)

    def register(self, app: Flask, binding: Binding, bound: Bound) -> None:
        """Bind what :meth:`prepare` has made.

        Raises:
            ConfigError: limits are bound already.
        """
        settings = bound.settings
        register(app, binding, CAPABILITY, bound)
        install(app)
        self._bound[app] = binding
        if settings.default or settings.application or settings.shed is not None:
            by_default(app, binding, _Policy(default=True))
        for blueprint, policy in self._defaults:
            by_default(app, binding, policy, blueprint)

    # --- decorators -----------------------------------------------------------------------------

    def limit(
        self, limit: Limit | None = None, /, **options: Unpack[LimitOptions]
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Limit how often a view is called.

        Args:
            limit: such as ``"100/minute; 2000/day"``, or a function of the current request that
                returns such, or ``None`` for no limit; or ``requests`` and ``window`` instead.
            options: see :class:`LimitOptions`.

        Raises:
            ConfigError: an option or a limit is wrong.
        """
        policy = _Policy((_declared("@limit", limit, options),))
        return lambda view: guarded(view, policy)

    def concurrent(
        self, places: int, /, **options: Unpack[ConcurrentOptions]
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Limit how many calls of a view run at the same time.

        Args:
            places: how many.
            options: see :class:`ConcurrentOptions`; ``lease`` is how long the place of a process
                that was killed stays taken, ``wait`` how long a request waits for one.

        Raises:
            ConfigError: an option is wrong.
        """
        if isinstance(places, bool) or not isinstance(places, int) or places < 0:
            raise ConfigError(f"@concurrent needs an integer of at least 0, got {places!r}")
        declared = Declared("@concurrent", (), _settings("@concurrent", options), places)
        policy = _Policy((declared,))
        return lambda view: guarded(view, policy)

    def shed(self, **options: Unpack[ShedOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Turn requests away while this process has as much to do as it can.

        Args:
            options: see :class:`ShedOptions`.

        Raises:
            ConfigError: an option is wrong.
        """
        layer = config.parse_layer(ShedSettings, "@shed", options)
        policy = _Policy((), (("@shed", config.combine(ShedSettings, layer)),))
        return lambda view: guarded(view, policy)

    def protect(
        self, blueprint: Blueprint, limit: Limit | None = None, /, **options: Unpack[LimitOptions]
    ) -> None:
        """Limit every view of ``blueprint`` that has no limits of its own.

        Args:
            blueprint: its own views and those of blueprints nested in it.
            limit: as for :meth:`limit`; of each view by itself, unless it has a ``group``.
            options: as for :meth:`limit`.

        Raises:
            ConfigError: an option or a limit is wrong.
        """
        policy = _Policy((_declared("protect()", limit, options),))
        self._defaults.append((blueprint, policy))
        for app, binding in list(self._bound.items()):
            by_default(app, binding, policy, blueprint)

    def exempt(self, view: Callable[P, R]) -> Callable[P, R]:
        """Leave ``view`` out of the limits of the application and of its blueprint."""
        return exempt(view, CAPABILITY)

    # --- without a view -------------------------------------------------------------------------

    def take(self, limit: str, key: str, *, cost: int = 1, at_most: bool = False) -> Taken:
        """Take from a limit of any key, such as a telephone number; during a request.

        All the limits given are decided at once, in one trip.

        Args:
            limit: such as ``"5/hour; 20/day"``.
            key: what is counted.
            cost: how many units.
            at_most: whether to take as many as there are, if there are fewer.

        Returns:
            What was taken; false if nothing was.

        Raises:
            LimitsUnavailable: the store is down, and limits fail closed.
            UsageError: an argument makes no sense.
            ConfigError: limits are not bound to the current application.
        """
        app = cast("Any", current_app)._get_current_object()
        binding, bound = bound_to(app)
        now = Call(app, cast("Any", request)._get_current_object(), binding.principal)
        asked, admitted = bound.take(now, limit, key, cost, at_most=at_most)
        triples = [
            tuple(asked.values[at : at + 3]) for at in range(core.FIRST, len(asked.values), 3)
        ]
        left, reset_ms, _ = min(triples, default=(0, 0, 0))
        waits = [wait for _, _, wait in triples]
        never = admitted or core.NEVER in waits
        return Taken(
            granted=asked.values[2] if admitted else 0,
            left=left,
            reset_after=timedelta(milliseconds=reset_ms),
            retry_after=None if never else timedelta(milliseconds=max(waits)),
        )
