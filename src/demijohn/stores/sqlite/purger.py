"""Removing expired rows, never in a request's way."""

from __future__ import annotations

import logging
import threading
from typing import Final

from ...errors import StoreError
from ..protocol import Clock
from .file import File

log = logging.getLogger("demijohn.stores")

BATCH: Final = 200
"""Rows in one transaction: other writers wait for no longer than this takes."""
PAUSE_S: Final = 0.01
_DELETE: Final = "DELETE FROM rows WHERE id IN (SELECT id FROM rows WHERE expires_ms <= ? LIMIT ?)"


class Purger:
    """One thread per process that removes expired rows in small batches.

    Args:
        file: where the rows are.
        clock: milliseconds since the epoch.
        every_s: how often to look, in seconds.
    """

    def __init__(self, file: File, clock: Clock, every_s: float) -> None:
        self._file = file
        self._clock = clock
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
                self._thread = threading.Thread(
                    target=self._loop, name="demijohn-sqlite-purger", daemon=True
                )
                self._thread.start()

    def purge(self) -> int:
        """Remove what has expired; return how many rows.

        Raises:
            StoreError: the file cannot be written.
        """
        removed = 0
        while not self._closed.is_set():
            with self._file.connection() as connection:
                batch = connection.execute(_DELETE, (self._clock(), BATCH)).rowcount
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
