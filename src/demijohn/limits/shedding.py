"""Shedding load: what this process does not take on, so that it can finish what it has.

Theory of operation. A process counts what runs in it. Of its capacity a part is reserved for what
is critical; the rest is turned away at once, which costs next to nothing, before a queue forms in
which everybody waits for too long. The capacity is given, or found: it grows by one for each
capacity's worth of answers that came within the target time while it was used, and shrinks by a
tenth, at most once in a target time, when one came later (additive increase, multiplicative
decrease, as TCP does it).

No store is asked: what a process can bear is its own affair, and shedding must work when all else
is slow.

Source: Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance"
(1989); Netflix's concurrency-limits for the rule that only a limit in use may grow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from ..stores.forks import renew_in_children

FIRST_CAPACITY: Final = 20
MOST_CAPACITY: Final = 200
BACK_OFF: Final = 0.9


class Shedder:
    """Counts what runs, and says what may begin.

    Args:
        capacity: how many may run at the same time; the most, if it is adaptive.
        reserve: the part of it that is kept for what is critical, from 0 to below 1.
        target_ms: where the capacity is to be found: how long an answer may take; 0 where it is
            given.
        clock: seconds that only advance.
    """

    def __init__(
        self,
        capacity: int,
        reserve: float,
        target_ms: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = capacity
        self._reserve = reserve
        self._target_s = target_ms / 1000
        self._clock = clock
        self._capacity = float(min(capacity, FIRST_CAPACITY) if target_ms else capacity)
        self._shrunk_at = clock()
        self.renew_after_fork()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Leave what runs to the parent."""
        self._lock = threading.Lock()
        self.running = 0
        """How many run now."""

    @property
    def capacity(self) -> int:
        """How many may run at the same time, now."""
        return int(self._capacity)

    def enter(self, *, critical: bool) -> bool:
        """Begin, if there is room; then :meth:`leave` must follow."""
        with self._lock:
            room = self.capacity
            if not critical:
                room = max(int(room * (1 - self._reserve)), 1)
            if self.running >= room:
                return False
            self.running += 1
            return True

    def leave(self, began: float) -> None:
        """End what began at ``began``, by the clock."""
        with self._lock:
            used = self.running
            self.running -= 1
            if self._target_s:
                self._adapt(used, self._clock(), began)

    def now(self) -> float:
        """Return the time by the clock."""
        return self._clock()

    def _adapt(self, used: int, now: float, began: float) -> None:
        if now - began > self._target_s:
            if now - self._shrunk_at >= self._target_s:
                self._shrunk_at = now
                self._capacity = max(self._capacity * BACK_OFF, 1.0)
        elif used * 2 >= self._capacity:
            self._capacity = min(self._capacity + 1 / self._capacity, self._most)
