"""Where databases differ: their clocks, how a key is claimed in one statement, what errors mean.

A claim is one statement on each of them. It inserts the key; where the key is there, it answers the
record instead. Another transaction that has inserted the same key and has not ended makes it wait,
but not for longer than it is told, and without changing how long the view's own statements wait.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import (
    BigInteger,
    ClauseElement,
    ColumnElement,
    Connection,
    CursorResult,
    Engine,
    event,
    literal_column,
    text,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.engine.interfaces import Dialect as EngineDialect
from sqlalchemy.exc import DBAPIError, OperationalError

from demijohn.errors import ConfigError

from .tables import keys

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler

# What a claim gives back, in this order.
_RECORD: Final = "fingerprint, token, frame, until, expires"


class Trouble(enum.Enum):
    """What an error of the database means for who may try again."""

    BUSY = "another transaction is in the way"
    CONFLICT = "the transaction cannot be serialised: it was undone, and may be run again"
    LOST = "the database does not answer, or the connection broke"
    MISTAKE = "anything else"


class Prepared:
    """A statement as the driver takes it, made once.

    To build and compile a statement of SQLAlchemy's costs more than to send it.

    Args:
        clause: the statement, with named parameters.
        dialect: of the engine.
    """

    def __init__(self, clause: ClauseElement, dialect: EngineDialect) -> None:
        compiled = cast("SQLCompiler", clause.compile(dialect=dialect))
        self._sql = str(compiled)
        self._order = compiled.positiontup

    def execute(self, connection: Connection, values: Mapping[str, Any]) -> CursorResult[Any]:
        """Execute it; the values are those that the driver takes and gives."""
        order = self._order
        given = dict(values) if order is None else tuple([values[name] for name in order])
        return connection.exec_driver_sql(self._sql, given)


class Dialect:
    """What is said to one kind of database.

    Args:
        engine: SQLAlchemy's dialect of it.
        now: an SQL expression of its clock, in milliseconds since the epoch.
        claim: the statement that claims, with ``:key``, ``:fingerprint``, ``:token``, ``:wait``.
        codes: what the driver's error codes mean.
    """

    def __init__(
        self, engine: EngineDialect, now: str, claim: str, codes: Mapping[object, Trouble]
    ) -> None:
        self._engine = engine
        self.clock: ColumnElement[int] = literal_column(now, BigInteger)
        self.claim = self.prepare(text(claim.format(table=keys.name, now=now, row=_RECORD)))
        self._codes = codes

    def prepare(self, clause: ClauseElement) -> Prepared:
        """Make a statement ready for this database."""
        return Prepared(clause, self._engine)

    def wait(self, milliseconds: int) -> object:
        """Return the value of ``:wait`` in the claim."""
        return milliseconds

    def code(self, error: BaseException) -> object:
        """Return the driver's code for what went wrong."""
        raise NotImplementedError

    def trouble(self, error: BaseException) -> Trouble:
        """Say what ``error`` means, or what led to it: after a conflict a rollback fails too."""
        seen: BaseException | None = error
        while seen is not None:
            if isinstance(seen, DBAPIError) and seen.orig is not None:
                found = self._trouble(seen, seen.orig)
                if found is not Trouble.MISTAKE:
                    return found
            seen = seen.__cause__ or seen.__context__
        return Trouble.MISTAKE

    def _trouble(self, error: DBAPIError, driver: BaseException) -> Trouble:
        code = self.code(driver)
        found = self._codes.get(code)
        if found is not None:
            return found
        # What no server has said has no code.
        unsaid = code is None and isinstance(error, OperationalError)
        return Trouble.LOST if unsaid or error.connection_invalidated else Trouble.MISTAKE


class Postgres(Dialect):
    """PostgreSQL.

    ``lock_timeout`` is set for the claim alone and put back in the same statement. Where the claim
    had to wait for a transaction that has committed, its snapshot is older than that, and it gives
    no row: then one more statement reads it.
    """

    def __init__(self, engine: EngineDialect) -> None:
        super().__init__(
            engine,
            "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
            """
            WITH bound AS MATERIALIZED (
                SELECT current_setting('lock_timeout') AS before,
                       set_config('lock_timeout', :wait, true) AS during
            ), claimed AS (
                INSERT INTO {table} (key, fingerprint, token, created, until, expires)
                SELECT :key, :fingerprint, :token, {now}, 0, 0 FROM bound
                ON CONFLICT (key) DO NOTHING
                RETURNING {row}
            )
            SELECT {row}, {now} AS now, set_config('lock_timeout', before, true)
            FROM claimed, bound
            UNION ALL
            SELECT {row}, {now}, set_config('lock_timeout', before, true) FROM {table}, bound
            WHERE key = :key AND NOT EXISTS (SELECT 1 FROM claimed)
            """,
            {
                "55P03": Trouble.BUSY,
                "40001": Trouble.CONFLICT,
                "40P01": Trouble.CONFLICT,
                # The server ends or refuses connections.
                **dict.fromkeys(
                    ("57P01", "57P02", "57P03", "57P05", "53300", "08000", "08003", "08006"),
                    Trouble.LOST,
                ),
            },
        )

    def wait(self, milliseconds: int) -> object:
        """Return a setting's value; 0 would mean for ever."""
        return f"{max(milliseconds, 1)}ms"

    def code(self, error: BaseException) -> object:
        """Return the SQLSTATE."""
        return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


class MariaDB(Dialect):
    """MariaDB 10.5 or later, for ``INSERT ... RETURNING``. MySQL has no such statement."""

    def __init__(self, engine: EngineDialect) -> None:
        super().__init__(
            engine,
            "CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)",
            """
            SET STATEMENT innodb_lock_wait_timeout = :wait FOR
            INSERT INTO {table} (`key`, fingerprint, token, created, until, expires)
            VALUES (:key, :fingerprint, :token, {now}, 0, 0)
            ON DUPLICATE KEY UPDATE `key` = {table}.`key`
            RETURNING {row}, {now} AS now
            """,
            {
                1205: Trouble.BUSY,
                1213: Trouble.CONFLICT,
                1020: Trouble.CONFLICT,  # "Record has changed since last read", 11.6 and later
                1305: Trouble.CONFLICT,  # no such savepoint: a deadlock has undone them all
                **dict.fromkeys((0, 1040, 1053, 1927, 2002, 2003, 2006, 2013, 4031), Trouble.LOST),
            },
        )

    def wait(self, milliseconds: int) -> object:
        """Return whole seconds, rounded up: there is nothing finer."""
        return -(-milliseconds // 1000)

    def code(self, error: BaseException) -> object:
        """Return the server's or the client's number."""
        return error.args[0] if error.args else None


class SQLite(Dialect):
    """SQLite 3.35 or later.

    There is one writer: a claim waits for every other one, as long as the connection's ``timeout``
    says (5 s if nothing else is said), whatever it is told here.
    """

    def __init__(self, engine: EngineDialect) -> None:
        super().__init__(
            engine,
            "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
            """
            INSERT INTO {table} (key, fingerprint, token, created, until, expires)
            VALUES (:key, :fingerprint, :token, {now}, 0, 0)
            ON CONFLICT (key) DO UPDATE SET key = excluded.key
            RETURNING {row}, {now} AS now
            """,
            {5: Trouble.BUSY, 6: Trouble.BUSY, 517: Trouble.CONFLICT},
        )

    def code(self, error: BaseException) -> object:
        """Return the extended code where there is one of interest, else the primary one."""
        code = getattr(error, "sqlite_errorcode", None)
        if not isinstance(code, int):
            return None
        return code if code in self._codes else code & 0xFF


def dialect_of(engine: Engine) -> Dialect:
    """Return what is said to the database of ``engine``.

    Raises:
        ConfigError: Demijohn keeps no records there.
    """
    name = engine.dialect.name
    if name == "postgresql":
        return Postgres(engine.dialect)
    if name == "sqlite":
        return SQLite(engine.dialect)
    if name == "mariadb" or (name == "mysql" and getattr(engine.dialect, "is_mariadb", False)):
        return MariaDB(engine.dialect)
    raise ConfigError(
        f"db: Demijohn keeps records in SQLite, PostgreSQL and MariaDB, not in {name!r}"
    )


# --- transactions of SQLite ----------------------------------------------------------------------

CURE: Final = (
    "Call demijohn.records.real_transactions(engine) once, before the first connection is made"
    " (or, from Python 3.12 on, create_engine(..., connect_args={'autocommit': False}))."
)


def real_transactions(engine: Engine) -> Engine:
    """Have SQLite connections of ``engine`` begin a transaction when SQLAlchemy says so.

    By default ``sqlite3`` begins one by itself, before the first statement that changes rows, and
    knows nothing of savepoints: releasing one may commit what is rolled back later.

    Args:
        engine: for SQLite through ``sqlite3``; other engines are left as they are.

    Returns:
        The same engine.

    Source: SQLAlchemy's documentation, "Serializable isolation / Savepoints / Transactional DDL".
    """
    if engine.dialect.name == "sqlite" and not event.contains(engine, "begin", _emit_begin):
        event.listen(engine, "connect", _leave_transactions_alone)
        event.listen(engine, "begin", _emit_begin)
    return engine


def _leave_transactions_alone(connection: DBAPIConnection, _record: Any) -> None:
    connection.isolation_level = None


def _emit_begin(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN")
