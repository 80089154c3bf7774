"""How many duplicates may wait, so that they cannot occupy every thread of a server."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Waiters:
    """How many duplicates wait in this process, and how many may.

    Args:
        most: at once, for all keys.
        most_per_key: at once, for one key.
    """

    def __init__(self, most: int, most_per_key: int) -> None:
        self._most = most
        self._most_per_key = most_per_key
        self._lock = threading.Lock()
        self._by_key: Counter[str] = Counter()
        self._all = 0

    @contextmanager
    def place(self, key: str) -> Iterator[bool]:
        """Take a place for the time of the block; false if there is none."""
        with self._lock:
            taken = self._all < self._most and self._by_key[key] < self._most_per_key
            if taken:
                self._all += 1
                self._by_key[key] += 1
        try:
            yield taken
        finally:
            if taken:
                with self._lock:
                    self._all -= 1
                    self._by_key[key] -= 1
                    if not self._by_key[key]:
                        del self._by_key[key]
