"""One request's work in its transaction: begun with the key, concluded with the response."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from flask import abort, has_request_context, request
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import HTTPException

from ..flow import Result
from ..membership import membership_of
from ..records.dialects import Trouble
from ..records.keys import Claimant, Moved, Record
from ..records.resolving import has_committed
from ..records.transaction import Transaction, current
from ..streams import gather, is_streamed
from . import signals
from .answers import conflict, outcome_unknown, unavailable
from .claim import Claim
from .reading import patience_ms

if TYPE_CHECKING:
    from flask import Response

    from .atomic import BoundAtomic

log = logging.getLogger("demijohn.idempotency")

MOST_CLAIMS: Final = 5
"""How often a claim is repeated that the database could not serialise, or that found a record just
gone. Each means that another one got on."""


class Undone(Exception):
    """The database has rolled the transaction back under the view (MariaDB, at a deadlock)."""


class Work:
    """The transaction of one request.

    Args:
        policy: settings and database.
        claim: the request's.
        is_duplicate: whether a request with the same key runs in this process.
    """

    def __init__(self, policy: BoundAtomic, claim: Claim, *, is_duplicate: bool) -> None:
        self._policy = policy
        self._claim = claim
        self._who = Claimant(claim.names[0], claim.fingerprint, claim.token)
        self._is_duplicate = is_duplicate
        self._transaction: Transaction | None = None
        self._concluded = False

    # --- before the view ------------------------------------------------------------------------

    def begin(self) -> Record | None:
        """Claim the key, and have the view's sessions join; or return the record that is there.

        Raises:
            HTTPException: another request is in the way, or the database cannot be asked.
        """
        self._prepare()
        self._policy.database.settle()
        with self._waiting() as patience:
            for _ in range(MOST_CLAIMS):
                try:
                    found = self._try_to_claim(patience)
                except Moved:
                    self.close()
                except DBAPIError as error:
                    self.close()
                    self._judge_claim(error)
                else:
                    return found
        raise unavailable(1000)

    def _prepare(self) -> None:
        try:
            self._policy.database.prepare()
        except DBAPIError as error:
            self._judge_claim(error)
            raise

    def _try_to_claim(self, wait_ms: int) -> Record | None:
        """Claim in a transaction that is new, and stays open if the key is ours."""
        keys = self._policy.keys
        mine = request._get_current_object()  # type: ignore[attr-defined]

        def is_this_request() -> bool:
            return has_request_context() and request._get_current_object() is mine  # type: ignore[attr-defined]

        engine = self._policy.database.engine
        self._transaction = transaction = Transaction(engine, is_this_request, current())
        for name in self._claim.names[1:]:  # only while a secret is being rotated
            earlier = keys.read(transaction.connection, name)
            if earlier is not None and not earlier.is_over:
                self.close()
                return earlier
        found = keys.claim(transaction.connection, self._who, wait_ms)
        if found is not None:
            self.close()
            return found
        transaction.admit()
        return None

    def _judge_claim(self, error: DBAPIError) -> None:
        trouble = self._policy.database.dialect.trouble(error)
        if trouble is Trouble.BUSY:
            raise conflict(self._claim, 1000) from error
        if trouble is Trouble.LOST:
            self._claim.tell(signals.store_failed, error=error, phase="before")
            raise unavailable(1000) from error
        if trouble is Trouble.MISTAKE:
            raise error

    @contextmanager
    def _waiting(self) -> Iterator[int]:
        """Give how long to wait, in milliseconds; a duplicate of what runs here takes a place.

        The wait is in the database, and holds a connection and a thread.
        """
        patience = patience_ms(self._claim.call.request, self._policy.settings.wait_ms)
        if not self._is_duplicate:
            yield patience
            return
        with self._policy.waiters.place(self._who.key) as place:
            if place is None or not patience:
                raise conflict(self._claim, 1000)
            started, status = time.monotonic(), "busy"
            try:
                yield patience
                status = "over"
            finally:
                waited_ms = int((time.monotonic() - started) * 1000)
                self._claim.tell(signals.waited, waited_ms=waited_ms, status=status)

    # --- after the view -------------------------------------------------------------------------

    def seal(self, response: Response) -> None:
        """Commit with ``response``, or undo what the view has written if it is not stored."""
        self._conclude(Result(response))

    def again(self, error: Exception) -> bool:
        """Begin anew, so that the view runs again, if the database asks for that and it may.

        Raises:
            HTTPException: it may not, or another request has been carried out meanwhile.
        """
        trouble = self._trouble(error)
        if trouble is Trouble.MISTAKE:
            return False
        self.close()
        attempt = self._claim.attempt
        if trouble is Trouble.LOST or attempt.attempt > self._policy.settings.retry:
            self._claim.tell(signals.store_failed, error=error, phase="after")
            log.warning("undone: %s: %s", self._claim.endpoint, error)
            raise unavailable(1000) from error
        found = self.begin()
        if found is not None:
            abort(self._policy.answer(self._claim, found))
        attempt.attempt += 1
        return True

    def _trouble(self, error: Exception) -> Trouble:
        if isinstance(error, Undone):
            return Trouble.CONFLICT
        if isinstance(error, HTTPException):
            return Trouble.MISTAKE  # the view's own answer, whatever led to it
        return self._policy.database.dialect.trouble(error)

    def conclude_or_refuse(self, result: Result) -> None:
        """Conclude, if that has not happened, where the view cannot run again any more.

        Raises:
            HTTPException: it could not be committed; then nothing was.
        """
        try:
            self._conclude(result)
        except (DBAPIError, Undone) as error:
            self.close()
            if self._trouble(error) is Trouble.MISTAKE:
                raise
            self._claim.tell(signals.store_failed, error=error, phase="after")
            raise unavailable(1000) from error

    def _conclude(self, result: Result) -> None:
        transaction = self._transaction
        if self._concluded or transaction is None:
            return
        policy, claim = self._policy, self._claim
        if not policy.answers.is_stored(claim, result):
            self.close()
            claim.tell(signals.released)
            return
        # The body is made while the view's sessions still work: it may read from them.
        frame = policy.answers.frame(result.response, self._body(result.response))
        transaction.dismiss()
        settings = policy.settings
        if claim.attempt.has_steps:
            # The key is done with: a later use of it must not find them.
            policy.database.steps(claim.name).forget(transaction.connection)
        if not policy.keys.complete(
            transaction.connection,
            self._who,
            frame,
            ttl_ms=settings.ttl_ms,
            tombstone_ms=settings.tombstone_ms,
        ):
            raise Undone(f"the transaction of {claim.endpoint} was rolled back under the view")
        self._commit(transaction)
        self._concluded = True
        self.close()
        part = membership_of(claim.call.request.environ)
        if part is None or part.group is None:
            claim.tell(signals.completed)
        else:
            part.group.postpone(self._tell_with_the_group)

    def _tell_with_the_group(self, *, committed: bool | None) -> None:
        """Tell what became of the key: it was committed to a savepoint, and no further."""
        if committed is not None:
            self._claim.tell(signals.completed if committed else signals.released)

    def _body(self, response: Response | None) -> bytes | None:
        if response is None:
            return None
        if is_streamed(response):
            return gather(response, self._policy.settings.max_body)
        return response.get_data()

    def _commit(self, transaction: Transaction) -> None:
        try:
            transaction.commit()
        except DBAPIError as error:
            # SQLAlchemy takes a transaction whose COMMIT has failed for ended, and would give its
            # connection back to the pool as it is; in SQLite it is still open.
            transaction.abandon()
            if self._trouble(error) is not Trouble.LOST:
                raise
            policy = self._policy
            wait_ms, engine = policy.settings.wait_ms, policy.database.engine
            committed = has_committed(engine, policy.keys, self._who, wait_ms)
            if committed is None:
                raise outcome_unknown() from error
            if not committed:
                raise
            log.warning("the answer to a COMMIT was lost, which had happened: %s", error)

    def close(self) -> None:
        """Undo what is not committed, and give the connection back."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.close()
