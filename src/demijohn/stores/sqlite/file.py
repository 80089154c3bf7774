"""The file: its schema, its connections, and what its errors mean.

Write-ahead logging lets readers go on while one process writes. With ``synchronous=full`` a commit
is on the disk before it is answered and survives the loss of power; with ``normal`` it survives
``kill -9`` of every process, and the last commits may be lost with the power. SQLite's locks are
those of the machine: the file must not lie on a network file system.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, TypeAlias

from ...errors import ConfigError, CorruptRecord, StoreError, StoreUnavailable

Synchronous: TypeAlias = Literal["full", "normal"]

APPLICATION_ID: Final = 0x44656D69  # "Demi"
MOST_IDLE: Final = 16
_RETRY_S: Final = 0.01

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        # A rowid table: a blob in the tree of its own key makes every write twice as dear.
        """
        CREATE TABLE rows (
            id INTEGER PRIMARY KEY,
            key TEXT NOT NULL UNIQUE,
            revision INTEGER NOT NULL,
            expires_ms INTEGER NOT NULL,
            data BLOB NOT NULL
        )
        """,
        "CREATE INDEX rows_by_expiry ON rows (expires_ms)",
    ),
)
"""The statements that lead from each version of the schema to the next."""

# Connections that a fork has left in a child. Closing one there would drop the locks that the
# parent holds, so they are kept from the garbage collector for as long as the child lives.
_abandoned: Final[list[sqlite3.Connection]] = []

_CURES: Final[dict[int, str]] = {
    sqlite3.SQLITE_BUSY: "another process has held the write lock for longer than busy_timeout",
    sqlite3.SQLITE_LOCKED: "another connection has held the lock for longer than busy_timeout",
    sqlite3.SQLITE_FULL: "the disk is full, or a quota is reached: make room",
    sqlite3.SQLITE_READONLY: "the file or its folder cannot be written: check owner and mount",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened: check that its folder can be written",
    sqlite3.SQLITE_IOERR: "reading or writing failed: check the disk",
    sqlite3.SQLITE_PERM: "access is denied: check owner and mode",
}


def translate(error: sqlite3.Error, path: Path) -> StoreError:
    """Return what an SQLite error means to a store; nothing was written."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # extended codes count upwards from 256
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return CorruptRecord(f"{path} is damaged ({error}): restore it, or move it away")
    if code in _CURES:
        return StoreUnavailable(f"{path}: {_CURES[code]} ({error})")
    return StoreError(f"{path}: {error}")


class File:
    """One SQLite file and the idle connections of this process to it.

    Args:
        path: of the file; it and its folder are made when they are missing.
        synchronous: how durable a commit is.
        busy_timeout_ms: how long to wait for another process's write lock, in milliseconds.
    """

    def __init__(self, path: Path, synchronous: Synchronous, busy_timeout_ms: int) -> None:
        self.path = path
        self._synchronous = synchronous
        self._busy_timeout_ms = busy_timeout_ms
        self._idle: deque[sqlite3.Connection] = deque()
        self._ready = False

    def renew_after_fork(self) -> None:
        """Leave the parent's connections alone."""
        _abandoned.extend(self._idle)
        self._idle = deque()

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection for the block; after an error it is not used again.

        Raises:
            StoreError: in place of whatever SQLite raises.
        """
        connection = self.take()
        try:
            yield connection
        except sqlite3.Error as error:
            discard(connection)
            raise translate(error, self.path) from error
        except BaseException:
            discard(connection)
            raise
        self.give_back(connection)

    def take(self) -> sqlite3.Connection:
        """Return an idle connection, or a new one."""
        try:
            return self._idle.pop()
        except IndexError:
            return self.open()

    def give_back(self, connection: sqlite3.Connection) -> None:
        """Keep a connection that is in no transaction for the next caller."""
        if len(self._idle) < MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def open(self) -> sqlite3.Connection:
        """Make a connection, and the file if it is missing.

        Raises:
            StoreUnavailable: the file cannot be opened or made.
            StoreError: it belongs to something else, or to a newer release.
        """
        try:
            if not self._ready:
                _make(self.path)
            # Transactions are begun and ended by statements; the pool keeps one thread on each.
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        except OSError as error:
            raise StoreUnavailable(f"{self.path} cannot be made: {error}") from error
        except sqlite3.Error as error:
            raise translate(error, self.path) from error
        try:
            self._set_up(connection)
        except sqlite3.Error as error:
            discard(connection)
            raise translate(error, self.path) from error
        except BaseException:
            discard(connection)
            raise
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA busy_timeout = {self._busy_timeout_ms}")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        if not self._ready:
            self._prepare(connection)
            self._ready = True

    def _prepare(self, connection: sqlite3.Connection) -> None:
        self._persist(connection, "PRAGMA journal_mode = wal")
        self._persist(connection, "BEGIN IMMEDIATE")
        try:
            self._migrate(connection)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _persist(self, connection: sqlite3.Connection, statement: str) -> None:
        """Execute what may meet other processes that start at the same time.

        SQLite does not wait for them of itself while the journal mode changes.
        """
        deadline = time.monotonic() + self._busy_timeout_ms / 1000
        while True:
            try:
                connection.execute(statement)
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() >= deadline:
                    raise
            time.sleep(_RETRY_S)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if owner != APPLICATION_ID and (owner or version or tables):
            raise StoreError(
                f"{self.path} is a database of another application; name a file of its own in "
                "DEMIJOHN_STORES"
            )
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.path} has version {version} of the schema, made by a newer release of "
                f"Demijohn; this one knows version {len(MIGRATIONS)}"
            )
        if version == len(MIGRATIONS):
            return
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()


def _make(path: Path) -> None:
    """Make the file, readable by its owner only: it will hold customers' responses."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def discard(connection: sqlite3.Connection) -> None:
    """Close a connection on which something failed; closing ends its transaction."""
    try:
        connection.close()
    except sqlite3.Error:
        _abandoned.append(connection)


def parse_synchronous(text: str) -> Synchronous:
    """Accept ``full`` and ``normal``.

    Raises:
        ConfigError: it is neither.
    """
    if text == "full":
        return "full"
    if text == "normal":
        return "normal"
    raise ConfigError(f"sqlite:// option synchronous must be full or normal, not {text!r}")
