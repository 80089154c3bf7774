"""Wake-ups inside one process, without a missed one.

Theory of operation. Every ring gets the next number, and the last rings are remembered. Who is
about to look at a row reads :attr:`Bell.mark` first, then looks, and then waits *since that mark*:
a ring that fell between look and wait has a higher number, so the wait ends at once. When the
memory of rings no longer reaches back to the mark, the wait ends at once as well: looking again is
always right, and sleeping through a ring never is.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

REMEMBERED: Final = 1024


class Bell:
    """Lets threads wait for keys to be rung.

    Args:
        remembered: how many distinct keys' last rings are kept.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._lock = threading.Lock()
        self._rung: OrderedDict[str, int] = OrderedDict()
        self._forgotten = 0  # the number of the newest ring that is no longer remembered
        self._waiting: dict[str, set[_Waiter]] = {}
        self.mark = 0
        """The number of the last ring. Reading it takes no lock."""

    @property
    def waiting(self) -> int:
        """How many threads wait now."""
        return sum(len(waiters) for waiters in list(self._waiting.values()))

    def waited_for(self) -> list[str]:
        """Return the keys that are waited for now."""
        with self._lock:
            return list(self._waiting)

    def ring(self, key: str) -> None:
        """Wake all who wait for ``key``."""
        with self._lock:
            self._remember(key)
            waiters = self._waiting.pop(key, ())
        for waiter in waiters:
            waiter.wake()

    def ring_all(self) -> None:
        """Wake everybody: rings may have been missed, for instance while a connection was down."""
        with self._lock:
            self.mark += 1
            self._forgotten = self.mark
            self._rung.clear()
            waiters = [waiter for group in self._waiting.values() for waiter in group]
            self._waiting.clear()
        for waiter in waiters:
            waiter.wake()

    def wait(self, key: str, since: int, timeout_ms: int) -> bool:
        """Block until ``key`` has been rung after ``since``, or for ``timeout_ms``."""
        waiter = _Waiter()
        with self._lock:
            if self._forgotten > since or self._rung.get(key, 0) > since:
                return True
            self._waiting.setdefault(key, set()).add(waiter)
        if waiter.sleep(timeout_ms):
            return True
        with self._lock:
            group = self._waiting.get(key, set())
            if waiter not in group:
                return True  # rung at the last moment
            group.discard(waiter)
            if not group:
                del self._waiting[key]
        return False

    def _remember(self, key: str) -> None:
        self.mark += 1
        self._rung[key] = self.mark
        self._rung.move_to_end(key)
        if len(self._rung) > self._remembered:
            _, self._forgotten = self._rung.popitem(last=False)


class _Waiter:
    """A lock that is held until the waiter is woken: the cheapest event there is."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        self._lock.release()

    def sleep(self, timeout_ms: int) -> bool:
        return self._lock.acquire(timeout=max(timeout_ms, 0) / 1000)
