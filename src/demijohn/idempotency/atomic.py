"""The flow of an idempotent request whose record commits with the rows of its view.

Theory of operation. The key is inserted in the transaction in which the view will work. A
duplicate's insert waits in the database, until that transaction has committed (then it replays) or
was rolled back (then it runs). The response is written to the record, and all is committed at once:
whatever kills the process before leaves neither, and after leaves both. There is no lease, nothing
to take over, and no moment at which work is done and not recorded.

A response that is not stored, because a retry deserves another one, undoes what the view has
written: else the retry would do it twice.
"""

from __future__ import annotations

from flask import Response

from ..errors import CorruptRecord
from ..flow import Act, Call, Flow, Proceed, Result
from ..records import Database
from ..records.keys import Keys, Record
from ..stores import Store
from . import signals
from .answers import Answers, conflict, expired, mismatch, unreadable
from .claim import Claim
from .reading import Reader
from .recoveries import Recoveries
from .settings import Settings
from .waiters import Running, Waiters
from .work import Work


class BoundAtomic:
    """Atomic idempotency for one view, or for several that share settings, in one application.

    Args:
        settings: of this view.
        store: where other capabilities' steps would lie; nothing of this one does.
        database: where view and record are written.
        reader: finds the claims.
        waiters: counts those who wait in this process.
        running: knows what runs in this process.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        database: Database,
        reader: Reader,
        waiters: Waiters,
        running: Running,
    ) -> None:
        self.store = store
        self.postpones = False
        self.settings = settings
        self.database = database
        self.keys = Keys(database.dialect)
        self.answers = Answers(settings)
        self.waiters = waiters
        self.running = running
        self._reader = reader
        self._recovers = Recoveries(database, settings.ttl_ms, atomic=True)

    def flow(self, call: Call) -> Flow | None:
        """See :meth:`BoundPolicy.flow`."""
        claim = self._reader.claim(call)
        return None if claim is None else self._flow(claim)

    def _flow(self, claim: Claim) -> Flow:
        work = Work(self, claim, is_duplicate=self.running.add(claim.name))
        try:
            found: Record | None = yield Act(work.begin)
            if found is not None:
                return self.answer(claim, found)
            claim.attempt.recovers = self._recovers
            claim.call.state.idempotency = claim.attempt
            claim.tell(signals.begun)
            result: Result = yield Proceed(seal=work.seal, again=work.again)
            yield Act(lambda: work.conclude_or_refuse(result))
            return None
        finally:
            work.close()
            self.running.remove(claim.name)

    def answer(self, claim: Claim, record: Record) -> Response:
        """Return what the record of an earlier request answers.

        Raises:
            HTTPException: it gives no response.
        """
        if record.frame is None:
            raise conflict(claim, 1000)
        if record.now >= record.until:
            raise expired()
        if record.fingerprint != claim.fingerprint:
            raise mismatch(claim)
        try:
            return self.answers.replay(claim, record.frame)
        except CorruptRecord as error:
            claim.tell(signals.corrupt, error=error)
            raise unreadable(claim, error) from error
