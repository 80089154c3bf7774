"""What is stored of a response, and what answers in the view's place."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from flask import Response

from .. import frame
from ..errors import CorruptRecord
from ..flow import Result
from . import refusals, signals
from .claim import Claim
from .settings import Settings, is_final

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger("demijohn.idempotency")

LONGEST_RETRY_AFTER_S: Final = 5
_REPLAYED: Final[Sequence[tuple[str, str]]] = (
    ("Idempotent-Replayed", "true"),
    ("Cache-Control", "no-store"),
)


class Answers:
    """Stores and replays responses by the settings of a view."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def is_stored(self, claim: Claim, result: Result) -> bool:
        """Whether the result is final; what is not final gives the key back."""
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

    def frame(self, response: Response | None, body: bytes | None) -> bytes:
        """Return the bytes to be stored.

        Args:
            response: ``None`` where an exception is on its way past Flask after the effects: a
                retry must hear of the failure, and not run.
            body: what the client gets; ``None`` where it is not to be kept.
        """
        if response is None:
            return frame.encode(frame.Frame(500, [], b""))
        settings = self._settings
        made = frame.from_response(
            response, body, max_body=settings.max_body, drop=settings.drop_headers
        )
        return frame.encode(made)

    def replay(self, claim: Claim, data: bytes) -> Response:
        """Return the stored response.

        Raises:
            ResponseNotKept: it was too large.
            CorruptRecord: it cannot be read.
        """
        stored = frame.decode(data)
        if stored.body is None:
            raise refusals.ResponseNotKept(
                "The operation was carried out, but its response was too large to be kept.",
                extensions={"original_status": stored.status},
            )
        response = frame.to_response(stored, claim.call.app, _REPLAYED)
        claim.tell(signals.replayed)
        return response


def mismatch(claim: Claim) -> refusals.KeyReused:
    """Word the 422 for a key that belongs to another request."""
    claim.tell(signals.mismatched)
    return refusals.KeyReused(
        "This idempotency key was sent before with another method, path, query or "
        "body. Use a new key for a new operation, and the same request for a retry."
    )


def expired() -> refusals.KeyExpired:
    """Word the 422 for a key whose response is no longer kept."""
    return refusals.KeyExpired(
        "This idempotency key was used long ago, and its response is no longer kept. "
        "Use a new key for a new operation."
    )


def conflict(claim: Claim, left_ms: int) -> refusals.InProgress:
    """Word the 409 for a duplicate that cannot wait, or cannot any longer."""
    claim.tell(signals.conflicted)
    return in_progress(left_ms)


def in_progress(left_ms: int) -> refusals.InProgress:
    """Word the 409. ``left_ms`` bounds the time until a look is worth it."""
    return refusals.InProgress(
        "The first request with this idempotency key is still running. Try again with the same "
        "key to get its response.",
        retry_after=seconds(left_ms),
    )


def unavailable(retry_after_ms: int) -> refusals.StoreUnavailableError:
    """Word the 503 for a request that was not carried out."""
    return refusals.StoreUnavailableError(
        "The request was not carried out. Try again with the same idempotency key.",
        retry_after=seconds(retry_after_ms),
    )


def outcome_unknown() -> refusals.StoreUnavailableError:
    """Word the 503 for a request of which nobody can tell now whether it was carried out."""
    return refusals.StoreUnavailableError(
        "The database broke off while the request was being committed. Try again with the same "
        "idempotency key: if it was carried out, its response is there.",
        retry_after=1,
    )


def unreadable(claim: Claim, error: CorruptRecord) -> refusals.RecordUnreadable:
    """Word the 500 for a request of which nobody knows whether it was carried out."""
    log.error("idempotency record of %s is unreadable: %s", claim.endpoint, error)
    return refusals.RecordUnreadable(
        "This operation may have been carried out. Ask before repeating it with a new key."
    )


def seconds(wait_ms: int) -> int:
    """Return whole seconds for ``Retry-After``: rounded up, within bounds."""
    return max(1, min(-(-wait_ms // 1000), LONGEST_RETRY_AFTER_S))
