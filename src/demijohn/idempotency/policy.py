"""The flow of one idempotent request, from key to stored response."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeGuard, cast

from flask import Response

from .. import fingerprint, frame
from ..core import idempotency as core
from ..core.step import Outcome, Step
from ..errors import CorruptRecord, StoreError, StoreTimeout, UsageError
from ..flow import PROCEED, Call, Command, Flow, Result, Wait
from ..keeper import Keeper
from ..stores import Store
from ..streams import Collect, Collected
from . import refusals, signals
from .claim import Claim, row_names
from .keys import KeyFinder, KeySources, check
from .settings import Settings, is_final
from .waiters import Place, Waiters

if TYPE_CHECKING:
    from flask import Request

log = logging.getLogger("demijohn.idempotency")

LOOK_AGAIN_MS: Final = 1000
"""A waiter looks again this often, even if nothing has woken it."""
LONGEST_RETRY_AFTER_S: Final = 5
DELIVER_FOR_MS: Final = 15 * 60 * 1000
_REPLAYED: Final = (("Idempotent-Replayed", "true"), ("Cache-Control", "no-store"))
_PREFER_WAIT = re.compile(r"(?:^|,)\s*wait\s*=\s*(\d{1,9})\s*(?:$|[,;])", re.IGNORECASE)


class BoundIdempotency:
    """Idempotency for one view, or for several that share settings, in one application.

    Args:
        settings: of this view.
        store: where the keys lie.
        row_secrets: under which row names are hidden; the first is the current one.
        keeper: renews the leases.
        waiters: counts those who wait in this process.
        finders: the application's own ways to find a key.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        row_secrets: tuple[bytes, ...],
        keeper: Keeper,
        waiters: Waiters,
        finders: tuple[KeyFinder, ...],
    ) -> None:
        self.store = store
        self._settings = settings
        self._key_field = settings.key_field
        self._retain_ms = settings.retain_ms
        self._methods = frozenset(settings.methods)
        self._sources = KeySources(settings.key_headers, settings.key_field, finders)
        self._secrets = row_secrets
        self._keeper = keeper
        self._waiters = waiters

    # --- before the view ------------------------------------------------------------------------

    def flow(self, call: Call) -> Flow | None:
        """See :meth:`BoundPolicy.flow`."""
        if call.request.method not in self._methods:
            return None
        key = self._sources.find(call.request)
        if key is None:
            if self._settings.required:
                raise refusals.KeyMissing(
                    "Send an Idempotency-Key header with a value that is new for each operation "
                    "and the same for each retry of it, such as a UUID."
                )
            return None
        if call.state.idempotency is not None:
            return None  # a guard within a guard: the outer one has the key
        return self._flow(self._claim(call, key))

    def _claim(self, call: Call, key: str) -> Claim:
        settings = self._settings
        principal = call.principal
        anonymous = principal.anonymous
        check(
            key,
            longest=settings.max_key_length,
            pattern=settings.key_pattern,
            anonymous=anonymous,
        )
        if anonymous and settings.anonymous == "refuse":
            raise refusals.CallerUnknown(
                "Responses of this endpoint are stored for known callers only: send credentials."
            )
        scope = settings.scope(call.request) if settings.scope else ""
        if not isinstance(scope, str):
            raise UsageError(f"scope= returned {scope!r}; it must return a string")
        digest = fingerprint.of_request(
            call.request, how=settings.fingerprint, key_field=self._key_field
        )
        names = row_names(self._secrets, principal.key, scope, key)
        return Claim(call, key, names, digest, settings.lease_ms)

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
            if _is_streamed(result.response) and result.by_view:
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
            self._unreadable(claim, error)
        if isinstance(error, StoreTimeout):
            self._let_go_later(claim)
        raise refusals.StoreUnavailableError(
            "The request was not carried out. Try again with the same idempotency key.",
            retry_after=_seconds(getattr(error, "retry_after_ms", None) or 1000),
        ) from error

    def _unreadable(self, claim: Claim, error: CorruptRecord) -> NoReturn:
        log.error("idempotency record of %s is unreadable: %s", claim.endpoint, error)
        raise refusals.RecordUnreadable(
            "This operation may have been carried out. Ask before repeating it with a new key."
        ) from error

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
        wait_ms = self._patience_ms(claim.call.request)
        name = claim.names[outcome.integer(0)]
        started = time.monotonic()
        if wait_ms == 0:
            self._conflict(claim, outcome)
        with self._waiters.place(name) as place:
            if place is None:
                self._conflict(claim, outcome)
            while outcome.status == "busy":
                waited_ms = int((time.monotonic() - started) * 1000)
                left_ms = wait_ms - waited_ms
                if left_ms <= 0:
                    claim.tell(signals.waited, waited_ms=waited_ms, status="busy")
                    self._conflict(claim, outcome)
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

    def _patience_ms(self, request: Request) -> int:
        """Return how long this duplicate waits: ``Prefer: wait=N`` (RFC 7240) may shorten it."""
        prefer = request.environ.get("HTTP_PREFER")
        asked = _PREFER_WAIT.search(prefer) if prefer else None
        if asked is None:
            return self._settings.wait_ms
        return min(self._settings.wait_ms, int(asked[1]) * 1000)

    def _conflict(self, claim: Claim, outcome: Outcome) -> NoReturn:
        claim.tell(signals.conflicted)
        raise _in_progress(outcome.integer(1))

    def _answer(self, claim: Claim, outcome: Outcome) -> Response:
        """Return what answers in the view's place."""
        claim.attempt.key_name = claim.names[outcome.integer(0)]
        match outcome.status:
            case "replay":
                return self._replay(claim, outcome.data(1))
            case "mismatch":
                claim.tell(signals.mismatched)
                raise refusals.KeyReused(
                    "This idempotency key was sent before with another method, path, query or "
                    "body. Use a new key for a new operation, and the same request for a retry."
                )
            case "expired":
                raise refusals.KeyExpired(
                    "This idempotency key was used long ago, and its response is no longer kept. "
                    "Use a new key for a new operation."
                )
            case _:
                claim.tell(signals.unknown)
                raise refusals.OutcomeUnknown(
                    "The first request with this idempotency key was lost while it was being "
                    "carried out. It will not run again until an operator has looked at it."
                )

    def _replay(self, claim: Claim, data: bytes) -> Response:
        stored = frame.decode(data)
        if stored.body is None:
            raise refusals.ResponseNotKept(
                "The operation was carried out, but its response was too large to be kept.",
                extensions={"original_status": stored.status},
            )
        response = frame.to_response(stored, claim.call.app, _REPLAYED)
        claim.tell(signals.replayed)
        return response

    # --- around the view ------------------------------------------------------------------------

    def _started(self, claim: Claim, outcome: Outcome) -> None:
        attempt = claim.attempt
        index, fence, number, taken_over = cast("tuple[int, int, int, int]", outcome.values)
        attempt.key_name, attempt.fence, attempt.attempt = claim.names[index], fence, number
        claim.call.state.idempotency = attempt
        self._keeper.keep(claim.token, self.store, claim, lease_ms=claim.lease_ms)
        if taken_over:
            log.warning("took over a lost request of %s", claim.endpoint)
            claim.tell(signals.taken_over)
        claim.tell(signals.begun)

    def _stream(self, claim: Claim, result: Result, response: Response) -> Flow:
        """Conclude when the body has been sent. The status is out by then: nothing is answered."""
        step = self._release(claim)
        if self._is_stored(claim, result):
            finish = self._settings.on_disconnect == "finish"
            collected: Collected = yield Collect(self._settings.max_body, finish)
            if collected.complete or claim.attempt.effects_are_done:
                body = collected.body if collected.complete else None
                step = self._complete(claim, self._frame(response, body))
        try:
            outcome: Outcome = yield step
        except StoreError as error:
            self._conclude_later(claim, step, error)
        else:
            self._told(claim, outcome)
        return None

    def _conclusion(self, claim: Claim, result: Result) -> Step:
        if not self._is_stored(claim, result):
            return self._release(claim)
        if result.response is None:
            # The exception is on its way past Flask, and the effects have happened: a retry must
            # hear of the failure, and not run.
            return self._complete(claim, frame.Frame(500, [], b""))
        # A stream that nobody collects is sent as it is made: the record is without it.
        body = None if _is_streamed(result.response) else result.response.get_data()
        return self._complete(claim, self._frame(result.response, body))

    def _is_stored(self, claim: Claim, result: Result) -> bool:
        if not result.by_view:
            return False
        if claim.attempt.effects_are_done:
            return True
        if result.response is None:
            return False
        try:
            return self._settings.store(result.response)
        except Exception:
            # The view has had its effects: a mistake in the rule must not have it run again.
            log.exception("store= of %s failed; the default rule decides", claim.endpoint)
            return is_final(result.response)

    def _frame(self, response: Response, body: bytes | None) -> frame.Frame:
        settings = self._settings
        return frame.from_response(
            response, body, max_body=settings.max_body, drop=settings.drop_headers
        )

    def _complete(self, claim: Claim, stored: frame.Frame) -> Step:
        settings = self._settings
        return core.complete(
            claim.name,
            token=claim.token,
            frame=frame.encode(stored),
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
                return self._replay(claim, outcome.data(1))
            except CorruptRecord as error:
                claim.tell(signals.corrupt, error=error)
                self._unreadable(claim, error)
        raise _in_progress(1000)

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


def _is_streamed(response: Response | None) -> TypeGuard[Response]:
    return response is not None and (response.is_streamed or response.direct_passthrough)


def _in_progress(lease_left_ms: int) -> refusals.InProgress:
    """Word the 409. The lease bounds the time until a look is worth it; most views are quicker."""
    return refusals.InProgress(
        "The first request with this idempotency key is still running. Try again with the same "
        "key to get its response.",
        retry_after=_seconds(lease_left_ms),
    )


def _seconds(wait_ms: int) -> int:
    """Return whole seconds for ``Retry-After``: rounded up, within bounds."""
    return max(1, min(-(-wait_ms // 1000), LONGEST_RETRY_AFTER_S))
