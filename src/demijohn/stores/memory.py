"""The store inside one process: for tests, and for programs that really are one process."""

from __future__ import annotations

import heapq
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import cast

from ..core.step import EXPIRES, Decision, Outcome, Row, Step, decide, live
from ..errors import ConfigError
from .bell import Bell
from .protocol import Clock, Health
from .rows import decide_all

SWEEP_PER_WRITE = 2


def wall_clock_ms() -> int:
    """Return this machine's time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class MemoryStore:
    """Rows in a dictionary under one lock; no trips, lost with the process.

    Expired rows are removed a few with every write, so memory stays in proportion to live rows
    and no write ever pays for many.

    Args:
        clock: milliseconds since the epoch.
    """

    def __init__(self, *, clock: Clock = wall_clock_ms) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rows: dict[str, Row] = {}
        self._expiries: list[tuple[int, str]] = []
        self._bell = Bell()

    @property
    def inbox(self) -> str:
        """See :attr:`Store.inbox`; a forked child has rows of its own, and so a name of its own."""
        return f"memory:{os.getpid()}"

    @property
    def mark(self) -> int:
        """See :attr:`Store.mark`."""
        return self._bell.mark

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        """See :meth:`Store.run`; without I/O there is no unavailability."""
        with self._lock:
            now_ms = self._clock()
            if len(steps) == 1:
                decision = self._apply(steps[0], now_ms)
                outcomes, wakes = [decision.outcome], decision.wakes
            else:
                changes = decide_all(steps, now_ms, self._rows.get)
                for key, row in changes.rows.items():
                    self._write(key, row)
                outcomes, wakes = changes.outcomes, changes.wakes
            if self._expiries and self._expiries[0][0] <= now_ms:
                self._sweep(now_ms)
        for wake in wakes:
            # Who waits has registered: where nobody has, there is nothing to remember.
            if wake.inboxes:
                self._bell.ring(wake.key)
        return outcomes

    def _apply(self, step: Step, now_ms: int) -> Decision:
        decision = decide(step, [self._rows.get(key) for key in step.keys], now_ms)
        for index, row in decision.writes.items():
            self._write(step.keys[index], row)
        return decision

    def _write(self, key: str, row: Row | None) -> None:
        if row is None:
            self._rows.pop(key, None)
            return
        # One heap entry a row: a row that lives on is pushed again when its entry comes up.
        if key not in self._rows:
            heapq.heappush(self._expiries, (cast("int", row[EXPIRES]), key))
        self._rows[key] = row

    def _sweep(self, now_ms: int) -> None:
        for _ in range(SWEEP_PER_WRITE):
            if not self._expiries or self._expiries[0][0] > now_ms:
                return
            _, key = heapq.heappop(self._expiries)
            row = self._rows.get(key)
            if row is None:
                continue
            expires = cast("int", row[EXPIRES])
            if expires > now_ms:
                heapq.heappush(self._expiries, (expires, key))
            else:
                del self._rows[key]

    def wait(self, key: str, *, since: int, timeout_ms: int) -> bool:
        """See :meth:`Store.wait`."""
        return self._bell.wait(key, since, timeout_ms)

    def scan(self, prefix: str) -> Iterator[tuple[str, Row]]:
        """See :meth:`Store.scan`; a snapshot taken at the call."""
        with self._lock:
            rows = list(self._rows.items())
        now_ms = self._clock()
        return ((key, row) for key, row in rows if key.startswith(prefix) and live(row, now_ms))

    def health(self) -> Health:
        """See :meth:`Store.health`."""
        return Health("memory", ok=True, latency_ms=0.0, detail=f"{len(self._rows)} rows")

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._rows.clear()
            self._expiries.clear()


def from_url(url: str) -> MemoryStore:
    """Make the store for ``memory://``, which takes no options."""
    if url not in {"memory:", "memory://"}:
        raise ConfigError(f"{url!r}: memory:// takes neither a path nor options")
    return MemoryStore()
