"""What limits do while their store does not answer.

``local`` counts in the process: each of the processes admits its share of the limit, so that a
store that is down neither stops the service nor leaves it without any limit. ``open`` admits,
``closed`` refuses with 503. What was counted locally is forgotten when the store is back.
"""

from __future__ import annotations

import logging
import math
import threading
from typing import Final

from ..core import limits as core
from ..core.step import Outcome
from ..errors import StoreError, StoreUnavailable
from ..flow import Call
from ..stores.forks import renew_in_children
from ..stores.memory import MemoryStore
from . import signals
from .asking import Asked
from .plan import Entry
from .refusals import LimitsUnavailable

log = logging.getLogger("demijohn.limits")

OPEN: Final = math.inf
CLOSED: Final = 0.0


class Fallback:
    """Decides in the store's place, for one application.

    Args:
        name: of the application, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.failing = False
        """Whether the store did not answer the last time."""
        self.failures = 0
        """How often it did not."""
        self.renew_after_fork()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Count anew: each process counts by itself, and a lock may be held in the parent."""
        self._store = MemoryStore()
        self._lock = threading.Lock()

    def decide(self, call: Call, asked: Asked, error: StoreError) -> Outcome | None:
        """Decide in the process; ``None`` admits without having counted.

        Raises:
            LimitsUnavailable: one of the limits fails closed.
        """
        shares = [entry.share for entry in asked.entries[: asked.count]]
        decided = "closed" if CLOSED in shares else "open" if set(shares) == {OPEN} else "local"
        self._failed(error, decided)
        if signals.store_failed.receivers:
            signals.store_failed.send(
                call.app, endpoint=call.request.endpoint, error=error, decided=decided
            )
        if decided == "closed":
            raise _unavailable(error)
        if decided == "open":
            return None
        rules = [
            _share(entry, rule) for entry, rule in zip(asked.entries, asked.rules, strict=True)
        ]
        asked.rules, asked.spared, asked.made = rules, None, None
        asked.elsewhere = self._store
        return self._store.run([asked.step()])[0]

    def answered(self) -> None:
        """Note that the store answers again."""
        with self._lock:
            if not self.failing:
                return
            self.failing = False
            self._store = MemoryStore()
        log.warning("the limits of %s are counted in their store again", self._name)

    def _failed(self, error: StoreError, decided: str) -> None:
        with self._lock:
            self.failures += 1
            if self.failing:
                return
            self.failing = True
        what = {
            "closed": "requests are refused",
            "open": "requests are admitted unlimited",
            "local": "each process counts by itself",
        }
        log.error("the store of the limits of %s failed, %s: %s", self._name, what[decided], error)


def _share(entry: Entry, rule: core.Rule) -> core.Rule:
    algorithm, amount, window_ms, burst, cost = rule
    if algorithm == core.SKIP or entry.share in {OPEN, CLOSED}:
        return core.NO_RULE
    part = entry.share
    shared = max(int(amount * part), 1) if amount else 0
    if algorithm % core.SHADOW == core.GCRA:
        burst = max(int(burst * part), 1)
    return algorithm, shared, window_ms, burst, cost


def _unavailable(error: StoreError) -> LimitsUnavailable:
    retry_after_ms = error.retry_after_ms if isinstance(error, StoreUnavailable) else None
    return LimitsUnavailable(
        "The limits of this request cannot be checked at the moment, and it is not let through "
        "unchecked. Nothing was done; try again.",
        retry_after=max(-(-(retry_after_ms or 1000) // 1000), 1),
    )
