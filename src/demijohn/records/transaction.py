"""One transaction in which a view works, committed once, with the record of its key.

Theory of operation. The view goes on calling ``session.commit()`` as it always did. Its session is
given this transaction's connection instead of one of its own, so that it works in a savepoint:
``commit()`` releases that, ``rollback()`` goes back to it, and neither touches the record, which
was inserted before. When the view has answered, the response is written to the record and all is
committed. Whatever ends the process before leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from sqlalchemy import Connection, Engine, NestedTransaction, RootTransaction
from sqlalchemy.exc import SQLAlchemyError

from demijohn.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_current: Final[ContextVar[Transaction | None]] = ContextVar("demijohn_transaction", default=None)


def current() -> Transaction | None:
    """Return the transaction that sessions join here, if there is one."""
    found = _current.get()
    return found if found is not None and found.admits() else None


class Transaction:
    """A transaction that sessions join.

    Args:
        engine: sessions bound to it join; others are left alone.
        applies: whether what runs now belongs to it: a request that the view makes of its own
            application, or a thread that it starts, does not.
        within: a transaction of several requests, of which this one's is a savepoint: its commit
            is not true before theirs.
    """

    def __init__(
        self, engine: Engine, applies: Callable[[], bool], within: Transaction | None = None
    ) -> None:
        self._engine = engine
        self._applies = applies
        self._ended = False
        self._joined: WeakSet[Session] = WeakSet()
        self._before: Transaction | None = None
        self._within = within
        self._began: RootTransaction | NestedTransaction
        if within is not None:
            self.connection: Connection = within.connection
            self._began = self.connection.begin_nested()
            return
        self.connection = engine.connect()
        try:
            self._began = self.connection.begin()
        except BaseException:
            self.connection.close()
            raise

    def admit(self) -> None:
        """Have the sessions that begin from now on join."""
        self._before = _current.get()
        _current.set(self)

    def admits(self) -> bool:
        """Whether a session that begins now joins."""
        return not self._ended and self._applies()

    def bind_for(self, session: Session, bind: Engine | Connection) -> Engine | Connection:
        """Return what ``session`` works on instead of ``bind``.

        Raises:
            UsageError: the session is bound to a connection, which nobody else can commit.
        """
        if isinstance(bind, Connection):
            raise UsageError(
                "the session is bound to a Connection; an atomic view needs one that is bound to"
                " the Engine"
            )
        if bind.pool is not self._engine.pool:
            return bind
        session.join_transaction_mode = "create_savepoint"
        self._joined.add(session)
        return self.connection

    def dismiss(self) -> None:
        """Undo what the sessions that have joined have not committed, and let no more join."""
        self.settle()
        self._joined.clear()
        self._admit_no_more()

    def settle(self) -> None:
        """Undo what the sessions that have joined have not committed."""
        for session in list(self._joined):
            if session.in_transaction():
                session.rollback()

    def _admit_no_more(self) -> None:
        self._ended = True  # also for contexts that are not at hand here
        if _current.get() is self:
            _current.set(self._before)

    def commit(self) -> None:
        """Commit everything."""
        self._began.commit()

    def abandon(self) -> None:
        """Break the connection off, of which nobody knows in what state it is."""
        if self._within is None:
            self.connection.invalidate()

    def close(self) -> None:
        """Undo everything that is not committed, and give the connection back.

        Sessions that have joined begin anew, whatever state they are in: who renders an error, or
        runs the view again, may use them.
        """
        try:
            self.dismiss()
        except SQLAlchemyError:
            # The connection is broken, or the savepoints are gone with the transaction.
            for session in list(self._joined):
                session.invalidate()
            self._admit_no_more()
        if self._within is None:
            self.connection.close()
        elif self._began.is_active:
            self._began.rollback()
