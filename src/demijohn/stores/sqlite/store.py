"""Rows in an SQLite file.

Theory of operation. A run is one transaction. Steps that may end without a write are decided first
on a snapshot, by the same pure functions and without any lock: a replay is one ``SELECT``. Only
where the decision writes, everything is decided again under ``BEGIN IMMEDIATE``, on fresh rows.

The clock is this machine's, which all processes that share the file have in common.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from ...core.step import EXPIRES, Outcome, Row, Step, live
from ...errors import ConfigError, StoreError
from .. import options
from ..bell import Bell
from ..forks import renew_in_children
from ..memory import wall_clock_ms
from ..protocol import Clock, Health
from ..purger import Purger
from ..rows import Changes, decide_all, decode, encode
from .file import File, Synchronous, parse_synchronous
from .watcher import Watcher

_SELECT: Final = "SELECT data, revision FROM rows WHERE key = ?"
_UPSERT: Final = (
    "INSERT INTO rows (key, data, expires_ms, revision) VALUES (?, ?, ?, 1)"
    " ON CONFLICT (key) DO UPDATE SET data = excluded.data, expires_ms = excluded.expires_ms,"
    " revision = revision + 1"
)
_DELETE: Final = "DELETE FROM rows WHERE key = ?"
_PURGE: Final = "DELETE FROM rows WHERE id IN (SELECT id FROM rows WHERE expires_ms <= ? LIMIT ?)"
# Keys compare by their bytes, so those with a common prefix lie together.
_SCAN: Final = "SELECT key, data FROM rows WHERE key > ? ORDER BY key LIMIT 200"
_SCAN_FROM: Final = "SELECT key, data FROM rows WHERE key >= ? ORDER BY key LIMIT 200"


class SqliteStore:
    """Rows in an SQLite file that the processes of one machine share.

    Args:
        path: of the file; it and its folder are made when they are first needed.
        synchronous: ``"full"``: a commit survives the loss of power; ``"normal"``: it survives
            ``kill -9``, and is a few times faster.
        busy_timeout_ms: how long to wait for another process's write, in milliseconds.
        purge_every_s: how often expired rows are removed, in seconds.
        clock: milliseconds since the epoch.
    """

    inbox = ""

    def __init__(
        self,
        path: Path | str,
        *,
        synchronous: Synchronous = "full",
        busy_timeout_ms: int = 5000,
        purge_every_s: float = 10.0,
        clock: Clock = wall_clock_ms,
    ) -> None:
        self._clock = clock
        self._purge_every_s = purge_every_s
        self._file = File(Path(path), synchronous, busy_timeout_ms)
        self._begin_process()
        renew_in_children(self)

    def _begin_process(self) -> None:
        self._bell = Bell()
        self._watcher = Watcher(self._file, self._bell)
        self._purger = Purger("sqlite", self._remove, self._purge_every_s)

    def renew_after_fork(self) -> None:
        """See :class:`Renewable`."""
        self._file.renew_after_fork()
        self._begin_process()

    @property
    def mark(self) -> int:
        """See :attr:`Store.mark`."""
        return self._bell.mark

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        """See :meth:`Store.run`."""
        with self._file.connection() as connection:
            if all(step.kind.may_only_read for step in steps):
                changes = self._decide_on_snapshot(connection, steps)
                if not changes.rows:
                    return changes.outcomes
            changes = self._decide_and_write(connection, steps)
        for wake in changes.wakes:
            self._bell.ring(wake.key)
        self._purger.start()
        return changes.outcomes

    def _decide_on_snapshot(self, connection: sqlite3.Connection, steps: Sequence[Step]) -> Changes:
        if len(steps) == 1 and len(steps[0].keys) == 1:
            return self._decide(connection, steps)  # one SELECT is a snapshot of itself
        connection.execute("BEGIN")
        changes = self._decide(connection, steps)
        connection.execute("COMMIT")
        return changes

    def _decide_and_write(self, connection: sqlite3.Connection, steps: Sequence[Step]) -> Changes:
        connection.execute("BEGIN IMMEDIATE")
        changes = self._decide(connection, steps)
        for key, row in changes.rows.items():
            if row is None:
                connection.execute(_DELETE, (key,))
            else:
                connection.execute(_UPSERT, (key, encode(row), row[EXPIRES]))
        connection.execute("COMMIT")
        return changes

    def _decide(self, connection: sqlite3.Connection, steps: Sequence[Step]) -> Changes:
        return decide_all(steps, self._clock(), lambda key: self._row(connection, key))

    def _row(self, connection: sqlite3.Connection, key: str) -> Row | None:
        found = connection.execute(_SELECT, (key,)).fetchone()
        if found is None:
            return None
        # Who finds a row may come to wait for it.
        self._watcher.saw(key, found[1])
        return decode(key, found[0])

    def wait(self, key: str, *, since: int, timeout_ms: int) -> bool:
        """See :meth:`Store.wait`; another process's commit is heard within some milliseconds."""
        return self._watcher.wait(key, since, timeout_ms)

    def scan(self, prefix: str) -> Iterator[tuple[str, Row]]:
        """See :meth:`Store.scan`; no lock is held between the pages."""
        statement, last = _SCAN_FROM, prefix
        while True:
            with self._file.connection() as connection:
                page = connection.execute(statement, (last,)).fetchall()
            now_ms = self._clock()
            for key, data in page:
                if not key.startswith(prefix):
                    return
                row = live(decode(key, data), now_ms)
                if row is not None:
                    yield key, row
            if not page:
                return
            statement, last = _SCAN, page[-1][0]

    def _remove(self, limit: int) -> int:
        with self._file.connection() as connection:
            return connection.execute(_PURGE, (self._clock(), limit)).rowcount

    def purge(self) -> int:
        """Remove all expired rows now, in small transactions; return how many there were."""
        return self._purger.purge()

    def health(self) -> Health:
        """See :meth:`Store.health`."""
        started = time.perf_counter()
        try:
            with self._file.connection() as connection:
                (count,) = connection.execute("SELECT count(*) FROM rows").fetchone()
                (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            detail = f"{count} rows, {self._file.path.stat().st_size} bytes, journal {mode}"
            ok = True
        except (StoreError, OSError) as error:
            ok, detail = False, str(error)
        return Health("sqlite", ok, (time.perf_counter() - started) * 1000, detail)

    def close(self) -> None:
        """See :meth:`Store.close`."""
        self._watcher.close()
        self._purger.close()
        self._bell.ring_all()
        self._file.close()


# --- from a URL ---------------------------------------------------------------------------------

_OPTIONS: Final = ("busy_timeout", "purge_every", "synchronous")


def from_url(url: str) -> SqliteStore:
    """Make the store for ``sqlite:///relative.db`` or ``sqlite:////absolute.db``.

    Options: ``synchronous`` (``full``, ``normal``), ``busy_timeout`` and ``purge_every`` (seconds).

    Raises:
        ConfigError: the URL has no path, a host, or an unknown or wrong option.
    """
    parts = urlsplit(url)
    path = unquote(parts.path).removeprefix("/")
    if parts.netloc or not path or path == ":memory:":
        raise ConfigError(
            f"{url!r} does not name a file: write sqlite:///relative.db or sqlite:////absolute.db, "
            "or memory:// for a store that is lost with its process"
        )
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in given:
        if name not in _OPTIONS:
            raise options.unknown("a store on SQLite", name, _OPTIONS, _OPTIONS)
    busy_timeout_s = options.seconds("busy_timeout", given.get("busy_timeout", "5"))
    return SqliteStore(
        Path(path),
        synchronous=parse_synchronous(given.get("synchronous", "full")),
        busy_timeout_ms=round(busy_timeout_s * 1000),
        purge_every_s=options.seconds("purge_every", given.get("purge_every", "10")),
    )
