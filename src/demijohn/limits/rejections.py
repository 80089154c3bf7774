"""Refusals that are remembered: a flood from one caller costs hardly any trip.

Who has just been refused will be refused until something comes back, so until then the store need
not be asked. An entry lives for a second at the most: so long, a refund, a raised limit or a reset
on another machine may go unnoticed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ..core.limits import FIRST, NEVER
from ..stores.forks import renew_in_children


class Rejections:
    """The last refusals of this process.

    Args:
        most: how many are remembered; 0 for none.
        longest_ms: how long, in milliseconds, whatever the wait.
        clock: seconds that only advance.
    """

    def __init__(
        self, most: int, longest_ms: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._longest_ms = longest_ms
        self._clock = clock
        self._entries: dict[tuple[str, ...], tuple[float, float, Sequence[int]]] = {}

        self.renew_after_fork()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Make the lock anew: a thread of the parent may have held it."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def recall(self, keys: tuple[str, ...]) -> Sequence[int] | None:
        """Return the values of a refusal of just these limits, as they would be now."""
        entry = self._entries.get(keys)
        if entry is None:
            return None
        until, since, values = entry
        now = self._clock()
        if now >= until:
            self.forget(keys)
            return None
        gone_ms = int((now - since) * 1000)
        aged = list(values)
        aged[1] += gone_ms
        for index in range(FIRST, len(aged)):
            # What is left stays; the reset and the wait of each limit come nearer.
            if (index - FIRST) % 3 and aged[index] > 0:
                aged[index] = max(aged[index] - gone_ms, 1)
        return aged

    def note(self, keys: tuple[str, ...], values: Sequence[int]) -> None:
        """Remember that a request for one unit of each of these limits was refused."""
        waits = values[FIRST + 2 :: 3]
        wait_ms = self._longest_ms if NEVER in waits else max(waits)
        for_ms = min(wait_ms, self._longest_ms)
        if not self._most or for_ms <= 0:
            return
        now = self._clock()
        with self._lock:
            self._entries.pop(keys, None)
            while len(self._entries) >= self._most:
                del self._entries[next(iter(self._entries))]
            self._entries[keys] = (now + for_ms / 1000, now, values)

    def forget(self, keys: tuple[str, ...]) -> None:
        """Have the store be asked again."""
        with self._lock:
            self._entries.pop(keys, None)

    def clear(self) -> None:
        """Have the store be asked again about everybody."""
        with self._lock:
            self._entries.clear()
