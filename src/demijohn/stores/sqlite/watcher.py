"""Hearing what other processes have written, while somebody waits.

Theory of operation. SQLite tells a connection by ``PRAGMA data_version``, without reading a row,
whether anybody else has committed since it last asked. While threads of this process wait, one
thread asks every few milliseconds, and only after a commit looks at the revisions of the rows that
are waited for; it rings those that have changed. What they are compared with is the revision that
the *waiter* saw when it looked, so a commit between its look and its wait counts as a change.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import OrderedDict
from typing import Final

from ...errors import StoreError
from ..bell import Bell
from .file import File, discard

log = logging.getLogger("demijohn.stores")

REMEMBERED: Final = 4096
SHORTEST_PAUSE_S: Final = 0.001
LONGEST_PAUSE_S: Final = 0.005
PAUSE_AFTER_FAILURE_S: Final = 0.1
GROWTH: Final = 1.1
ABSENT: Final = 0
"""The revision of a row that is not there; those that are count from 1."""


class Watcher:
    """Rings a bell for rows that other processes change.

    Args:
        file: where the rows are.
        bell: what is rung.
    """

    def __init__(self, file: File, bell: Bell) -> None:
        self._file = file
        self._bell = bell
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, int] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._look = threading.Event()
        self._closed = False

    def saw(self, key: str, revision: int) -> None:
        """Note which revision of a row somebody who may wait for it has seen."""
        with self._lock:
            earlier = self._seen.get(key)
            self._seen[key] = revision
            self._seen.move_to_end(key)
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        # Another thread may wait that has seen the row as it was before.
        if earlier is not None and earlier != revision:
            self._bell.ring(key)

    def wait(self, key: str, since: int, timeout_ms: int) -> bool:
        """Block until ``key`` is rung after ``since``, or for ``timeout_ms``."""
        with self._lock:
            # What is forgotten counts as never seen: a row that is there will then be rung.
            self._seen.setdefault(key, ABSENT)
            self._look.set()
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(
                    target=self._watch, name="demijohn-sqlite-watcher", daemon=True
                )
                self._thread.start()
        return self._bell.wait(key, since, timeout_ms)

    def close(self) -> None:
        """Stop watching."""
        self._closed = True
        self._look.set()

    def _watch(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            while self._stays():
                try:
                    connection = connection or self._file.open()
                    self._watch_by(connection)
                except (sqlite3.Error, StoreError) as error:
                    log.warning("cannot watch %s, trying again: %s", self._file.path, error)
                    if connection is not None:
                        discard(connection)
                        connection = None
                    self._bell.ring_all()
                    threading.Event().wait(PAUSE_AFTER_FAILURE_S)
        finally:
            if connection is not None:
                discard(connection)

    def _stays(self) -> bool:
        """Whether somebody waits; otherwise this thread ends, and the next wait starts another."""
        with self._lock:
            if self._closed or not (self._bell.waiting or self._look.is_set()):
                self._thread = None
                return False
            return True

    def _watch_by(self, connection: sqlite3.Connection) -> None:
        pause_s = SHORTEST_PAUSE_S
        version = -1
        while not self._closed:
            fresh = self._look.is_set()
            self._look.clear()
            (now,) = connection.execute("PRAGMA data_version").fetchone()
            if fresh or now != version:
                version = now
                pause_s = SHORTEST_PAUSE_S
                self._compare(connection)
            pause_s = min(pause_s * GROWTH, LONGEST_PAUSE_S)
            threading.Event().wait(pause_s)
            if not self._bell.waiting and not self._look.is_set():
                return

    def _compare(self, connection: sqlite3.Connection) -> None:
        for key in self._bell.waited_for():
            row = connection.execute("SELECT revision FROM rows WHERE key = ?", (key,)).fetchone()
            revision = row[0] if row else ABSENT
            with self._lock:
                changed = self._seen.get(key) != revision
                self._seen[key] = revision
            if changed:
                self._bell.ring(key)
