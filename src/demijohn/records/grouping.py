"""One transaction for several requests: all that they have done is committed, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from demijohn.errors import StoreUnavailable

from .dialects import Trouble
from .keys import Claimant, Keys, Moved
from .resolving import has_committed
from .transaction import Transaction

if TYPE_CHECKING:
    from .database import Database

log = logging.getLogger("demijohn.records")

State: TypeAlias = Literal["committed", "rolled back", "unknown"]
MOST_CLAIMS = 5


class Grouping:
    """A transaction that the sessions of several requests join.

    Args:
        database: of the rows.
        applies: whether what runs now belongs to it.
    """

    def __init__(self, database: Database, applies: Callable[[], bool]) -> None:
        self._database = database
        self._applies = applies
        self._who: Claimant | None = None
        self._open()

    def _open(self) -> None:
        self._transaction = Transaction(self._database.engine, self._applies)
        try:
            # Its release fails where the database has thrown away what was done in it.
            self._savepoint = self._transaction.connection.begin_nested()
        except BaseException:
            self._transaction.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Undo everything that is not committed."""
        self._transaction.close()

    def admit(self) -> None:
        """Have the sessions join that begin in the current context."""
        self._transaction.admit()

    def leave(self) -> None:
        """Undo what the sessions of the last request have begun and not committed."""
        try:
            self._transaction.settle()
        except SQLAlchemyError as error:
            log.warning("a session of a group could not be ended: %s", error)

    def claim(
        self, names: Sequence[str], fingerprint: bytes, token: bytes, wait_ms: int
    ) -> bytes | Literal["busy", "reused"] | None:
        """Claim a key in the transaction; return what is stored under it, or why there is nothing.

        Args:
            names: of the row; under the current secret, and under earlier ones.
            fingerprint: of what is asked.
            token: that nobody has.
            wait_ms: how long to wait for another transaction, in milliseconds.

        Raises:
            StoreUnavailable: the database cannot be reached any more.
        """
        keys = Keys(self._database.dialect)
        who = Claimant(names[0], fingerprint, token)
        for name in names[1:]:  # only while a secret is being rotated
            earlier = keys.read(self._transaction.connection, name)
            if earlier is not None and not earlier.is_over:
                return earlier.frame if earlier.fingerprint == fingerprint else "reused"
        for _ in range(MOST_CLAIMS):
            try:
                found = keys.claim(self._transaction.connection, who, wait_ms)
            except Moved:
                self._again()
            except DBAPIError as error:
                self._judge_claim(error)
                return "busy"
            else:
                if found is None:
                    self._who = who
                    return None
                if found.fingerprint != fingerprint:
                    return "reused"
                return "busy" if found.frame is None else found.frame
        return "busy"

    def _judge_claim(self, error: DBAPIError) -> None:
        """Raise, unless another transaction is in the way."""
        trouble = self._database.dialect.trouble(error)
        if trouble is Trouble.MISTAKE:
            raise error
        if trouble is Trouble.LOST:
            raise StoreUnavailable(f"the database cannot be reached: {error}") from error

    def _again(self) -> None:
        self._transaction.close()
        self._open()

    def commit(self, stored: bytes, ttl_ms: int, wait_ms: int) -> State:
        """Commit everything, and ``stored`` under the key that was claimed.

        Where the answer to the COMMIT is lost, the record tells whether it has happened; without a
        key there is none.

        Args:
            stored: what a repetition is answered.
            ttl_ms: how long it is, in milliseconds.
            wait_ms: how long to wait for the end of a transaction whose connection broke.
        """
        connection = self._transaction.connection
        try:
            self._transaction.dismiss()
            if self._who is not None:
                keys = Keys(self._database.dialect)
                kept = keys.complete(connection, self._who, stored, ttl_ms=ttl_ms, tombstone_ms=0)
                if not kept:
                    return "rolled back"
            self._savepoint.commit()
        except SQLAlchemyError as error:
            log.warning("a group was rolled back by the database: %s", error)
            return "rolled back"
        try:
            self._transaction.commit()
        except DBAPIError as error:
            log.warning("a group could not be committed: %s", error)
            self._transaction.abandon()
            if self._database.dialect.trouble(error) is not Trouble.LOST:
                return "rolled back"
            return self._resolved(wait_ms)
        return "committed"

    def _resolved(self, wait_ms: int) -> State:
        """Return what became of a COMMIT whose answer was lost."""
        if self._who is None:
            return "unknown"
        keys = Keys(self._database.dialect)
        committed = has_committed(self._database.engine, keys, self._who, wait_ms)
        if committed is None:
            return "unknown"
        return "committed" if committed else "rolled back"
