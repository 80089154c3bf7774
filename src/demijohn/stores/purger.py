"""Removing expired rows, never in a request's way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final, TypeAlias

from ..errors import StoreError

log = logging.getLogger("demijohn.stores")

BATCH: Final = 200
"""Rows in one transaction: other writers wait for no longer than this takes."""
PAUSE_S: Final = 0.01

Remove: TypeAlias = Callable[[int], int]
"""Removes at most so many expired rows, in one transaction; returns how many it removed."""


class Purger:
    """One thread per process that removes expired rows in small batches.

    Args:
        kind: of the store, for the thread's name.
        remove: see :data:`Remove`.
        every_s: how often to look, in seconds.
    """

    def __init__(self, kind: str, remove: Remove, every_s: float) -> None:
        self._name = f"demijohn-{kind}-purger"
        self._remove = remove
        self._every_s = every_s
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def start(self) -> None:
        """Start the thread, if it does not run yet; called after every write."""
        if self._thread is not None or self._closed.is_set():
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
                self._thread.start()

    def purge(self) -> int:
        """Remove what has expired; return how many rows.

        Raises:
            StoreError: the store cannot be written.
        """
        removed = 0
        while not self._closed.is_set():
            batch = self._remove(BATCH)
            removed += batch
            if batch < BATCH:
                break
            self._closed.wait(PAUSE_S)
        return removed

    def close(self) -> None:
        """Stop the thread after its current batch."""
        self._closed.set()

    def _loop(self) -> None:
        while not self._closed.wait(self._every_s):
            try:
                self.purge()
            except StoreError as error:
                log.warning("cannot remove expired rows, trying again: %s", error)
