"""What limits know of one application."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from flask import Flask

from .. import config
from ..core import limits as core
from ..errors import ConfigError, StoreError, UsageError
from ..extension import Binding
from ..flow import Call
from ..servers import server_threads
from ..stores import Store
from .answers import Answers
from .asking import PREFIX, Asked, Asking
from .fallback import Fallback
from .identity import Identities
from .notation import parse
from .plan import Declared, Plan, Planner
from .policy import BoundLimits, Shed
from .pricing import Prices, has_limits, price
from .rejections import Rejections
from .settings import CAPABILITY, LimitSettings, Settings, ShedSettings
from .shedding import MOST_CAPACITY, Shedder
from .tally import Tally
from .waiting import Waiting

ANSWERS_FOR_VIEWS: frozenset[str] = frozenset({"idempotency", "caching"})
"""Capabilities that may answer in a view's place."""


class Bound:
    """What limits know of one application.

    Args:
        settings: of the application.
        binding: what is known of the application besides.

    Raises:
        ConfigError: a limit in the settings cannot be kept.
    """

    def __init__(self, settings: Settings, binding: Binding) -> None:
        self.settings = settings
        self.store: Store = binding.store(CAPABILITY)
        self.planner = Planner(settings)
        self.identities = Identities(settings, binding.secrets[0])
        self.rejections = Rejections(settings.rejection_cache, settings.rejection_ms)
        self.fallback = Fallback(binding.app_name)
        self.tally = Tally(self.store)
        self._answers = Answers(settings, self.tally)
        self._waiting = Waiting(settings.max_waiters)
        self._keeper = binding.keeper
        self._shedders: dict[str, Shedder] = {}
        self._limits_views: bool | None = None
        self.application = self._of_application("application")
        self.default = self._of_application("default")
        for limit in (*self.application, *self.default):
            self.planner.entries(limit, "")  # is refused now, not at the first request
        self._shed: tuple[Shed, ...] = ()
        if settings.shed is not None:
            where = "DEMIJOHN_LIMITS['shed']"
            layer = config.parse_layer(ShedSettings, where, settings.shed)
            self._shed = (self.shed(where, config.combine(ShedSettings, layer)),)

    def _of_application(self, name: str) -> tuple[Declared, ...]:
        rates = self.settings.application if name == "application" else self.settings.default
        group = name if name == "application" else None
        options = LimitSettings(group=group)
        return (Declared(f"DEMIJOHN_LIMITS[{name!r}]", rates, options),) if rates else ()

    def policy(
        self,
        binding: Binding,
        limits: tuple[Declared, ...],
        sheds: tuple[tuple[str, ShedSettings], ...],
        beside: frozenset[str],
        *,
        default: bool,
    ) -> BoundLimits:
        """Return the policy of a view.

        Args:
            binding: what is known of the application.
            limits: those of the view itself.
            sheds: likewise, and how errors call them.
            beside: the capabilities that the view has.
            default: whether the view has been given the limits by default.
        """
        default = default and all(limit.places is not None for limit in limits)
        everything = (*self.application, *(self.default if default else ()), *limits)
        for limit in everything:
            if not callable(limit.rates):
                self.planner.entries(limit, "")

        def plan(endpoint: str) -> Plan | None:
            # Flask serves these files itself.
            if default and (endpoint == "static" or endpoint.endswith(".static")):
                return None
            return Plan(self.planner, everything, endpoint) if everything else None

        return BoundLimits(
            plan,
            Asking(
                self.settings,
                self.planner,
                self.identities,
                spares=bool(beside & ANSWERS_FOR_VIEWS),
            ),
            store=self.store,
            keeper=self._keeper,
            answers=self._answers,
            rejections=self.rejections,
            fallback=self.fallback,
            waiting=self._waiting,
            sheds=(*self._shed, *[self.shed(where, options) for where, options in sheds]),
            enabled=self.settings.enabled,
        )

    def shed(self, where: str, options: ShedSettings) -> Shed:
        """Return the shedder of a group, made at its first mention.

        Raises:
            ConfigError: its capacity is not known.
        """
        group = options.group or ""
        shedder = self._shedders.get(group)
        if shedder is None:
            capacity = options.capacity or server_threads(sys.argv, os.environ)
            if capacity is None and options.adaptive:
                capacity = MOST_CAPACITY
            if capacity is None:
                raise ConfigError(
                    f"{where} needs capacity=, how many requests this process can work on at the "
                    "same time, or adaptive=True"
                )
            target_ms = options.target_ms if options.adaptive else 0
            shedder = self._shedders[group] = Shedder(capacity, options.reserve, target_ms)
        return Shed(shedder, options.critical)

    def limits_views(self, binding: Binding, app: Flask) -> bool:
        """Whether any view of ``app`` has limits; found out once, when no view can be added."""
        if self._limits_views is None:
            defaults = any(policy.capability == CAPABILITY for _, policy in binding.defaults)
            self._limits_views = defaults or any(map(has_limits, app.view_functions.values()))
        return self._limits_views

    def price(
        self, binding: Binding, call: Call, environs: Mapping[int, dict[str, Any]], *, whole: bool
    ) -> Prices:
        """See :func:`demijohn.limits.pricing.price`."""
        return price(binding, self._answers, call, environs, whole=whole)

    # --- without a view -------------------------------------------------------------------------

    def take(
        self, call: Call, text: object, key: str, cost: int, *, at_most: bool
    ) -> tuple[Asked, bool]:
        """Take from limits that belong to no view; see :meth:`Limits.take`."""
        try:
            limit = Declared("take()", parse(text), LimitSettings(group="take"))
        except ValueError as error:
            raise UsageError(f"take(): {text!r} {error}") from None
        if isinstance(cost, bool) or not isinstance(cost, int) or cost < 0:
            raise UsageError(f"take(): cost must be an integer of at least 0, got {cost!r}")
        tag = self.identities.hidden(f"take:{key}")
        entries = tuple(self.planner.entries(limit, "take"))
        asked = Asked(
            entries,
            len(entries),
            tuple(f"{PREFIX}{{{tag}}}:{entry.suffix}" for entry in entries),
            [entry.taking(cost) for entry in entries],
            None,
            b"",
            plain=False,
            settles=False,
            policy="",
        )
        step = core.take(asked.keys, asked.rules, some=at_most)
        try:
            outcome = self.store.run([step])[0]
        except StoreError as error:
            found = self.fallback.decide(call, asked, error)
            if found is None:
                asked.values = [0, 0, cost, *[0] * 3 * len(entries)]
                return asked, True
            outcome = found
        asked.heard(outcome)
        return asked, not outcome.halts


def bound_to(app: Flask) -> tuple[Binding, Bound]:
    """Return what is known of ``app``.

    Raises:
        ConfigError: limits are not bound to it.
    """
    binding = app.extensions.get("demijohn")
    bound = binding.capabilities.get(CAPABILITY) if isinstance(binding, Binding) else None
    if not isinstance(binding, Binding) or not isinstance(bound, Bound):
        raise ConfigError(
            f"limits are not bound to the application {app.name!r}: call Demijohn(app), "
            "Limits(app) or init_app(app)"
        )
    return binding, bound
