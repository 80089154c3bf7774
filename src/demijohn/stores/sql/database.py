"""Connections to the database, deadlines on them, and what its errors mean to a store."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Connection, CursorResult, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.pool import QueuePool

from demijohn.errors import StoreBusy, StoreError, StoreTimeout, StoreUnavailable
from demijohn.stores.sql.address import Address
from demijohn.stores.sql.dialect import Bounded, Dialect, Statement, Trouble

T = TypeVar("T")

MOST_TRIES: Final = 10
PAUSE_S: Final = 0.01
CLEANING_S: Final = 0.1
"""How long a rollback may take; a connection on which it takes longer is closed."""


class Session:
    """Statements on one connection, until one deadline.

    Each statement commits by itself, but between :meth:`begin` and :meth:`commit`.
    """

    def __init__(self, connection: Connection, dialect: Dialect, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self.dialect = dialect
        self.answered = False
        """Whether the server has answered on this connection."""
        self.committing = False
        """Whether what was sent last takes effect even if no answer comes."""
        self._within = False

    def rows(self, statement: Statement) -> Sequence[Sequence[Any]]:
        """Execute a statement that reads; return its rows."""
        result = self._execute(statement)
        rows = result.fetchall()
        self.answered = True
        return rows

    def change(self, statement: Statement) -> int:
        """Execute a statement that writes; return how many rows it changed, or gave."""
        self.committing = not self._within
        result = self._execute(statement)
        count = len(result.fetchall()) if result.returns_rows else result.rowcount
        self.answered, self.committing = True, False
        return count

    def swap(self, statement: Statement) -> bool:
        """Execute a statement that writes one row under a condition; return whether it did."""
        try:
            return self.change(statement) > 0
        except IntegrityError:  # another has inserted the row
            self.committing = False
            return False

    def define(self, statement: Statement) -> None:
        """Execute a statement of which only matters whether it could be; repeating it is safe."""
        self._execute(statement)
        self.answered = True

    def begin(self) -> None:
        """Begin a transaction."""
        self._execute((self.dialect.begin, ()))
        self.answered = self._within = True

    def commit(self) -> None:
        """End the transaction; from here on it may have taken effect."""
        self.committing = True
        self._execute(("COMMIT", ()))
        self._within = self.committing = False

    def rollback(self) -> None:
        """Undo the transaction."""
        self._execute(("ROLLBACK", ()))
        self._within = False

    def abort(self) -> None:
        """Undo what is open, or if that cannot be had in time, give up the connection."""
        if self._connection.invalidated or not self._within:
            return
        self._deadline = max(self._deadline, time.monotonic() + CLEANING_S)
        try:
            self.rollback()
        except DBAPIError:
            self._connection.invalidate()

    def _execute(self, statement: Statement) -> CursorResult[Any]:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            self.committing = False
            raise StoreUnavailable("the deadline passed before the steps could be run")
        cast("Bounded", self._connection.connection.driver_connection).limit(left_s)
        return self._connection.exec_driver_sql(statement[0], tuple(statement[1]))


class Database:
    """The connections of this process to one database.

    Args:
        address: of the database.
        dialect: what it must be told.
    """

    def __init__(self, address: Address, dialect: Dialect) -> None:
        self.address = address
        self.dialect = dialect
        self._timeout_s = address.options.timeout
        self._arguments = dialect.connect_arguments(address)
        self._closed = False
        self.engine = self._make_engine()

    def _make_engine(self) -> Engine:
        options = self.address.options
        engine = create_engine(
            self.address.url,
            poolclass=QueuePool,
            pool_size=options.max_connections,
            max_overflow=0,
            pool_timeout=options.timeout,
            pool_use_lifo=True,
            # Transactions are begun and ended by statements.
            isolation_level="AUTOCOMMIT",
            # Parameters are customers' responses: they have no business in a traceback.
            hide_parameters=True,
            connect_args=self._arguments,
            **self.dialect.engine_arguments,
        )

        def connect(
            _dialect: object, _record: object, arguments: Sequence[Any], parameters: dict[str, Any]
        ) -> Bounded:
            return self.dialect.connect(arguments, parameters)

        event.listen(engine, "do_connect", connect)
        return engine

    def connect_apart(self, **more: object) -> Bounded:
        """Make a connection that belongs to the caller.

        Raises:
            StoreError: it cannot be made.
        """
        dialect = self.engine.dialect
        arguments, parameters = dialect.create_connect_args(self.engine.url)
        told: Mapping[str, Any] = {**parameters, **self._arguments, **more}
        try:
            return self.dialect.connect(arguments, told)
        except dialect.loaded_dbapi.Error as error:
            raise StoreUnavailable(f"{self.address.name} cannot be reached: {error}") from error

    def renew_after_fork(self) -> None:
        """Leave the parent's connections alone."""
        self.engine.dispose(close=False)

    def close(self) -> None:
        """Close the connections that are idle; those in use are closed when they are given back."""
        self._closed = True
        self.engine.dispose()

    # --- running ---------------------------------------------------------------------------------

    def run(self, act: Callable[[Session], T]) -> T:
        """Do ``act``, again where the database says that it may be done again.

        A connection that was cut while it was idle shows when it is used first: then a new one is
        taken. What the database undid for the sake of another transaction is done again, with
        pauses, until the deadline.

        Raises:
            StoreError: in place of whatever the driver raises; see :meth:`Store.run`.
        """
        deadline = 0.0
        for tries in range(1, MOST_TRIES + 1):
            pool = self.engine.pool
            connection = self._connect()
            deadline = deadline or time.monotonic() + self._timeout_s
            session = Session(connection, self.dialect, deadline)
            try:
                return act(session)
            except DBAPIError as error:
                trouble = self.dialect.trouble(error)
                again = _may_be_run_again(trouble, session, tries)
                if not again or tries == MOST_TRIES or time.monotonic() >= deadline:
                    raise self._translate(error, trouble, session) from error
            finally:
                session.abort()
                connection.close()
                if self._closed:  # a pool that was disposed of keeps what it is given all the same
                    pool.dispose()
                    self.engine.dispose()
            if trouble is Trouble.CONFLICT:
                time.sleep(random.uniform(0, PAUSE_S) * tries)  # noqa: S311 - no secret
        raise AssertionError("the last try returns or raises")  # pragma: no cover

    def _connect(self) -> Connection:
        try:
            return self.engine.connect()
        except NoConnection as error:
            raise StoreBusy(
                f"all {self.address.options.max_connections} connections of this process to"
                f" {self.address.name} are in use; raise max_connections"
            ) from error
        except DBAPIError as error:
            raise StoreUnavailable(
                f"{self.address.name} cannot be reached: {error.orig}"
            ) from error
        except SQLAlchemyError as error:
            raise StoreError(f"{self.address.name}: {error}") from error

    def _translate(self, error: DBAPIError, trouble: Trouble, session: Session) -> StoreError:
        name, said = self.address.name, str(error.orig).strip()
        if trouble is Trouble.LOST:
            if session.committing:
                return StoreTimeout(
                    f"{name}: {trouble.value} ({said}); what was asked may have been done"
                )
            return StoreUnavailable(f"{name}: {trouble.value} ({said})")
        if trouble in {Trouble.LOCKED, Trouble.CONFLICT}:
            return StoreBusy(f"{name}: {trouble.value} ({said})")
        if trouble is Trouble.REFUSED:
            return StoreUnavailable(f"{name}: {trouble.value} ({said})")
        return StoreError(f"{name}: {said}")


def _may_be_run_again(trouble: Trouble, session: Session, tries: int) -> bool:
    if trouble is Trouble.LOST:
        return tries == 1 and not session.answered and not session.committing
    return trouble is Trouble.CONFLICT
