"""MariaDB 10.5 or later, by PyMySQL."""

from __future__ import annotations

import math
from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from pymysql.connections import Connection
from pymysql.constants import SERVER_STATUS

from demijohn.stores.sql.address import MARIADB_PARAMETERS, Address
from demijohn.stores.sql.dialect import GONE, Dialect, Key, Notice, Statement, Trouble, Write

LOCK_SHARE: Final = 0.7
STATEMENT_SHARE: Final = 0.85
_REST: Final = 100_000


class BoundedConnection(Connection):  # type: ignore[misc]  # PyMySQL is not typed
    """A connection whose calls end in time, and that says nothing where nothing is to be said."""

    def limit(self, seconds: float) -> None:
        """See :meth:`Bounded.limit`; for every read and every write."""
        self._read_timeout = self._write_timeout = max(seconds, 0.001)

    def rollback(self) -> None:
        """Roll back if there is a transaction: SQLAlchemy asks for it behind every use."""
        status: int = self.server_status  # pyright: ignore[reportAttributeAccessIssue]
        if status & SERVER_STATUS.SERVER_STATUS_IN_TRANS:
            super().rollback()


class MariaDB(Dialect):
    """MariaDB. Without gap locks, which READ COMMITTED does not take, rows lock only themselves.

    Data goes there in Base64: PyMySQL writes bytes in hexadecimal, half as much again.
    """

    # SYSDATE is the time of day; NOW is that of the statement's beginning, before its locks.
    now = "CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)"
    begin = "START TRANSACTION"
    parameters = MARIADB_PARAMETERS
    codes: ClassVar[Mapping[object, Trouble]] = {
        1205: Trouble.LOCKED,
        **dict.fromkeys((1020, 1062, 1213), Trouble.CONFLICT),
        1146: Trouble.NO_TABLE,
        **dict.fromkeys((1044, 1142, 1227), Trouble.FORBIDDEN),
        # Full, read-only, out of memory, no such database, wrong password, max_statement_time.
        **dict.fromkeys(
            (1021, 1037, 1040, 1041, 1045, 1049, 1114, 1203, 1226, 1290, 1317, 1698, 1792, 1836),
            Trouble.REFUSED,
        ),
        1969: Trouble.REFUSED,
        **dict.fromkeys((0, 1053, 1927, 2002, 2003, 2006, 2013, 2014, 4031), Trouble.LOST),
    }

    def code(self, error: BaseException) -> object:
        """Return the server's or the client's number."""
        return error.args[0] if error.args and isinstance(error.args[0], int) else None

    def connect_arguments(self, address: Address) -> dict[str, object]:
        """Bound statements and locks on the server; in READ COMMITTED."""
        options = address.options
        # Whole seconds, and less than a statement has, so that a lock is told from a slow server.
        seconds = max(math.floor(options.timeout * LOCK_SHARE), 1)
        return {
            "connect_timeout": options.connect_timeout,
            "read_timeout": options.connect_timeout,
            "write_timeout": options.connect_timeout,
            "autocommit": True,
            "init_command": (
                f"SET SESSION max_statement_time = {options.timeout * STATEMENT_SHARE:.3f},"
                f" innodb_lock_wait_timeout = {seconds}, idle_transaction_timeout = {seconds + 1}"
            ),
        }

    def connect(self, arguments: Sequence[Any], parameters: Mapping[str, Any]) -> BoundedConnection:
        """Make a connection."""
        connection = BoundedConnection(*arguments, **parameters)
        # A statement of its own: the variable's name depends on the version.
        connection.query("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@max_allowed_packet")
            # Base64 makes four bytes of three; what else is in a statement is small.
            (packet,) = cursor.fetchone() or (0,)
            self.most_bytes = (int(packet) - _REST) * 3 // 4
        return connection

    # --- statements ------------------------------------------------------------------------------

    def read(self, keys: Sequence[Key]) -> Statement:
        """See :meth:`Dialect.read`."""
        return (
            f"SELECT {self.now}, id, version, data FROM (SELECT 1) AS one"
            f" LEFT JOIN {self.table} ON id IN ({_marks(keys)})"
        ), tuple(key.digest for key in keys)

    def lock(self, keys: Sequence[Key]) -> Statement:
        """See :meth:`Dialect.lock`."""
        return (
            f"SELECT {self.now}, id, version, data FROM {self.table}"
            f" WHERE id IN ({_marks(keys)}) ORDER BY id FOR UPDATE"
        ), tuple(key.digest for key in keys)

    def lock_all(self, keys: Sequence[Key]) -> Statement:
        """See :meth:`Dialect.lock_all`; one row after another, in their order."""
        return (
            f"INSERT INTO {self.table} (id, name, version, expires, data)"
            f" VALUES {_marks(keys, '(%s, %s, 0, 0, %s)')}"
            f" ON DUPLICATE KEY UPDATE id = {self.table}.id"
            f" RETURNING {self.now}, id, version, data"
        ), tuple(value for key in keys for value in (*key, GONE))

    def swap(self, write: Write, seen: int | None, notices: Sequence[Notice]) -> Statement:
        """See :meth:`Dialect.swap`; where the row is there after all, that is a conflict."""
        (digest, name), version, expires_ms, data = write
        if seen is None:
            return (
                f"INSERT INTO {self.table} (id, name, version, expires, data)"
                " VALUES (%s, %s, %s, %s, FROM_BASE64(%s))"
            ), (digest, name, version, expires_ms, _base64(data))
        return (
            f"UPDATE {self.table} SET version = %s, expires = %s, data = FROM_BASE64(%s)"
            " WHERE id = %s AND version = %s"
        ), (version, expires_ms, _base64(data), digest, seen)

    def write(self, writes: Sequence[Write]) -> Statement:
        """See :meth:`Dialect.write`."""
        return (
            f"INSERT INTO {self.table} (id, name, version, expires, data)"
            f" VALUES {_marks(writes, '(%s, %s, %s, %s, FROM_BASE64(%s))')}"
            " ON DUPLICATE KEY UPDATE version = VALUES(version), expires = VALUES(expires),"
            " data = VALUES(data)"
        ), tuple(
            value
            for (digest, name), version, expires_ms, data in writes
            for value in (digest, name, version, expires_ms, _base64(data))
        )

    def purge(self, now_ms: int, limit: int) -> Statement:
        """See :meth:`Dialect.purge`.

        The rows to delete are chosen without a lock, and then locked by their key as runs do.
        """
        return (
            f"DELETE r FROM {self.table} AS r JOIN"
            f" (SELECT id FROM {self.table} WHERE expires <= %s LIMIT %s) AS old ON r.id = old.id"
            " WHERE r.expires <= %s"
        ), (now_ms, limit, now_ms)

    def scan(self, prefix: bytes, after: bytes, limit: int) -> Statement:
        """See :meth:`Dialect.scan`."""
        return (
            f"SELECT {self.now}, id, name, CASE WHEN LEFT(name, %s) = %s THEN data END"
            f" FROM {self.table} WHERE id > %s ORDER BY id LIMIT %s"
        ), (len(prefix), prefix, after, limit)

    def describe(self) -> Statement:
        """See :meth:`Dialect.describe`."""
        return (
            "SELECT table_comment FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name = %s"
        ), (self.table,)

    def create(self, comment: str) -> Sequence[Statement]:
        """See :meth:`Dialect.create`; one statement does it all, and others wait for it."""
        return [
            (
                (
                    f"CREATE TABLE IF NOT EXISTS {self.table} (id BINARY(32) PRIMARY KEY,"
                    " name LONGBLOB NOT NULL, version BIGINT NOT NULL, expires BIGINT NOT NULL,"
                    f" data LONGBLOB NOT NULL, INDEX {self.table}_expires (expires))"
                    " ENGINE = InnoDB COMMENT %s"
                ),
                (comment,),
            )
        ]


def _marks(items: Sequence[object], mark: str = "%s") -> str:
    return ", ".join([mark] * len(items))


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")
