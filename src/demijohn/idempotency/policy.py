"""The flow of one idempotent request, from key to stored response."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from typing import Any, Final, cast

from flask import Response

from ..core import idempotency as core
from ..core.step import Outcome, Step
from ..errors import CorruptRecord, StoreError, StoreTimeout
from ..flow import PROCEED, Call, Command, Flow, Result, Wait
from ..keeper import Keeper
from ..stores import Store
from ..streams import Collect, Collected, is_streamed
from . import refusals, signals
from .answers import (
    Answers,
    conflict,
    expired,
    in_progress,
    mismatch,
    unavailable,
    unreadable,
)
from .claim import Claim
from .current import Recovers
from .reading import Reader, patience_ms
from .settings import Settings
from .waiters import Place, Waiters

log = logging.getLogger("demijohn.idempotency")

LOOK_AGAIN_MS: Final = 1000
"""A waiter looks again this often, even if nothing has woken it."""
DELIVER_FOR_MS: Final = 15 * 60 * 1000


class BoundIdempotency:
    """Idempotency for one view, or for several that share settings, in one application.

    Args:
        settings: of this view.
        store: where the keys lie.
        reader: finds the claims.
        keeper: renews the leases.
        waiters: counts those who wait in this process.
        recovers: keeps the steps of a run; ``None`` where there is no database.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        reader: Reader,
        keeper: Keeper,
        waiters: Waiters,
        recovers: Recovers | None = None,
    ) -> None:
        self.store = store
        self.postpones = True
        self._settings = settings
        self._answers = Answers(settings)
        self._retain_ms = settings.retain_ms
        self._reader = reader
        self._keeper = keeper
        self._waiters = waiters
        self._recovers = recovers

    # --- before the view ------------------------------------------------------------------------

    def flow(self, call: Call) -> Flow | None:
        """See :meth:`BoundPolicy.flow`."""
        claim = self._reader.claim(call)
        return None if claim is None else self._flow(claim)

    def _begin(self, claim: Claim) -> Step:
        return core.begin(
            claim.names,
            fingerprint=claim.fingerprint,
            token=claim.token,
            lease_ms=self._settings.lease_ms,
            retain_ms=self._retain_ms,
            on_lost=self._settings.on_lost,
            inbox=self.store.inbox,
        )

    def _flow(self, claim: Claim) -> Flow:
        # Read before the key is looked at, so that no wake-up falls between look and wait.
        mark = self.store.mark
        used = False
        try:
            outcome: Outcome = yield self._begin(claim)
            used = outcome.status != "run"
            if outcome.status == "busy":
                outcome = yield from self._wait(claim, mark, outcome)
            if outcome.status != "run":
                return self._answer(claim, outcome)
        except StoreError as error:
            self._store_failed(claim, error, used=used)
            if isinstance(error, StoreTimeout):
                yield from self._run_in_doubt(claim)
            return None  # open: the view runs unprotected
        try:
            self._started(claim, outcome)
            result: Result = yield PROCEED
            if is_streamed(result.response) and result.by_view:
                return (yield from self._stream(claim, result, result.response))
            step = self._conclusion(claim, result)
            try:
                outcome = yield step
            except StoreError as error:
                self._conclude_later(claim, step, error)
                return None
            return self._concluded(claim, outcome)
        finally:
            self._keeper.forget(claim.token)

    def _store_failed(self, claim: Claim, error: StoreError, *, used: bool) -> None:
        """Refuse the request, unless it may run unprotected.

        What is known to run already, or to have run, is refused even so: "open" is for not
        knowing.
        """
        claim.tell(signals.store_failed, error=error, phase="before")
        if isinstance(error, CorruptRecord):
            claim.tell(signals.corrupt, error=error)
        if self._settings.on_store_failure == "open" and not used:
            log.warning("running %s unprotected: %s", claim.endpoint, error)
            claim.tell(signals.unprotected, error=error)
            return
        if isinstance(error, CorruptRecord):
            raise unreadable(claim, error) from error
        if isinstance(error, StoreTimeout):
            self._let_go_later(claim)
        raise unavailable(getattr(error, "retry_after_ms", None) or 1000) from error

    def _let_go_later(self, claim: Claim) -> None:
        """Give back a claim that may have been made although its reply was lost."""
        for name in claim.names:
            claim.attempt.key_name = name
            self._deliver_quietly(claim, self._release(claim))

    def _deliver_quietly(self, claim: Claim, step: Step) -> None:
        """Have a step carried out if the claim was made; if it was not, the step is fenced."""
        self._keeper.deliver(
            (claim.token, step.keys),
            self.store,
            step,
            for_ms=self._settings.lease_ms,
            done=lambda outcome: None,
        )

    def _run_in_doubt(self, claim: Claim) -> Generator[Command, Any, None]:
        """Run the view though nobody knows whether its claim was made: if it was, conclude it.

        Else a retry would wait for the lease to end, and then run the view again.
        """
        result: Result = yield PROCEED
        for name in claim.names:
            claim.attempt.key_name = name
            self._deliver_quietly(claim, self._conclusion(claim, result))

    # --- meeting another request ----------------------------------------------------------------

    def _wait(self, claim: Claim, mark: int, outcome: Outcome) -> Generator[Command, Any, Outcome]:
        """Wait for the first request; the flow's part that ends with another outcome."""
        wait_ms = patience_ms(claim.call.request, self._settings.wait_ms)
        name = claim.names[outcome.integer(0)]
        started = time.monotonic()
        if wait_ms == 0:
            raise conflict(claim, outcome.integer(1))
        with self._waiters.place(name) as place:
            if place is None:
                raise conflict(claim, outcome.integer(1))
            while outcome.status == "busy":
                waited_ms = int((time.monotonic() - started) * 1000)
                left_ms = wait_ms - waited_ms
                if left_ms <= 0:
                    claim.tell(signals.waited, waited_ms=waited_ms, status="busy")
                    raise conflict(claim, outcome.integer(1))
                # When the lease should have ended it is worth a look, whatever was heard.
                timeout_ms = min(left_ms, LOOK_AGAIN_MS, outcome.integer(1) + 1)
                yield Wait(name, mark, timeout_ms)
                mark = self.store.mark
                outcome = yield from self._look(claim, place)
        waited_ms = int((time.monotonic() - started) * 1000)
        claim.tell(signals.waited, waited_ms=waited_ms, status=outcome.status)
        return outcome

    def _look(self, claim: Claim, place: Place) -> Generator[Command, Any, Outcome]:
        """Look again, or hear from another of this process what it has just been told."""
        room = place.room
        with room.turn:
            outcome = place.overheard(claim.fingerprint)
            if outcome is None:
                outcome = yield self._begin(claim)
                if outcome.status == "replay":
                    room.seen = (claim.fingerprint, outcome)
            return outcome

    def _answer(self, claim: Claim, outcome: Outcome) -> Response:
        """Return what answers in the view's place."""
        claim.attempt.key_name = claim.names[outcome.integer(0)]
        match outcome.status:
            case "replay":
                return self._answers.replay(claim, outcome.data(1))
            case "mismatch":
                raise mismatch(claim)
            case "expired":
                raise expired()
            case _:
                claim.tell(signals.unknown)
                raise refusals.OutcomeUnknown(
                    "The first request with this idempotency key was lost while it was being "
                    "carried out. It will not run again until an operator has looked at it."
                )

    # --- around the view ------------------------------------------------------------------------

    def _started(self, claim: Claim, outcome: Outcome) -> None:
        attempt = claim.attempt
        index, fence, number, taken_over = cast("tuple[int, int, int, int]", outcome.values)
        attempt.key_name, attempt.fence, attempt.attempt = claim.names[index], fence, number
        attempt.recovers = self._recovers
        claim.call.state.idempotency = attempt
        self._keeper.keep(claim.token, self.store, claim, lease_ms=claim.lease_ms)
        if taken_over:
            log.warning("took over a lost request of %s", claim.endpoint)
            claim.tell(signals.taken_over)
        claim.tell(signals.begun)

    def _stream(self, claim: Claim, result: Result, response: Response) -> Flow:
        """Conclude when the body has been sent. The status is out by then: nothing is answered."""
        step = self._release(claim)
        if self._answers.is_stored(claim, result):
            finish = self._settings.on_disconnect == "finish"
            collected: Collected = yield Collect(self._settings.max_body, finish)
            if collected.complete or claim.attempt.effects_are_done:
                body = collected.body if collected.complete else None
                step = self._complete(claim, self._answers.frame(response, body))
        try:
            outcome: Outcome = yield step
        except StoreError as error:
            self._conclude_later(claim, step, error)
        else:
            self._told(claim, outcome)
        return None

    def _conclusion(self, claim: Claim, result: Result) -> Step:
        if not self._answers.is_stored(claim, result):
            return self._release(claim)
        response = result.response
        # A stream that nobody collects is sent as it is made: the record is without it.
        body = None if response is None or is_streamed(response) else response.get_data()
        return self._complete(claim, self._answers.frame(response, body))

    def _complete(self, claim: Claim, stored: bytes) -> Step:
        settings = self._settings
        return core.complete(
            claim.name,
            token=claim.token,
            frame=stored,
            ttl_ms=settings.ttl_ms,
            retain_ms=self._retain_ms,
            tombstone_ms=settings.tombstone_ms,
        )

    def _release(self, claim: Claim) -> Step:
        return core.release(claim.name, token=claim.token, retain_ms=self._retain_ms)

    # --- after the view -------------------------------------------------------------------------

    def _concluded(self, claim: Claim, outcome: Outcome) -> Response | None:
        self._told(claim, outcome)
        if outcome.status != "fenced":
            return None
        # Another request took over while this one ran: every client sees the winner's result.
        if outcome.integer(0) == core.State.COMPLETED:
            try:
                return self._answers.replay(claim, outcome.data(1))
            except CorruptRecord as error:
                claim.tell(signals.corrupt, error=error)
                raise unreadable(claim, error) from error
        raise in_progress(1000)

    def _told(self, claim: Claim, outcome: Outcome | None) -> None:
        if outcome is None:
            claim.tell(signals.lost)
        elif outcome.status == "completed":  # the usual end first
            claim.tell(signals.completed)
        elif outcome.status == "released":
            claim.tell(signals.released)
        else:
            log.error("a late result of %s was refused: it had been taken over", claim.endpoint)
            claim.tell(signals.fenced)

    def _conclude_later(self, claim: Claim, step: Step, error: StoreError) -> None:
        """The view has run and its response goes out: keep the claim until it can be written."""
        log.error("could not store the result of %s, trying on: %s", claim.endpoint, error)
        claim.tell(signals.store_failed, error=error, phase="after")
        keep_on = claim.token + b"late"
        self._keeper.keep(keep_on, self.store, claim, lease_ms=claim.lease_ms)

        def done(outcome: Outcome | None) -> None:
            self._keeper.forget(keep_on)
            self._told(claim, outcome)

        self._keeper.deliver(claim.token, self.store, step, for_ms=DELIVER_FOR_MS, done=done)
