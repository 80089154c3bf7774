"""What a client is told when its key does not lead to a response."""

from __future__ import annotations

from typing import Final

from werkzeug.exceptions import (
    BadRequest,
    Conflict,
    InternalServerError,
    ServiceUnavailable,
    Unauthorized,
    UnprocessableEntity,
)

from ..problem import ProblemType, Refusal


class KeyMissing(Refusal, BadRequest):
    """400: the view requires a key and there is none."""

    kind = ProblemType("idempotency-key-missing", 400, "An idempotency key is required")


class KeyInvalid(Refusal, BadRequest):
    """400: the key is malformed, ambiguous, or too easily guessed."""

    kind = ProblemType("idempotency-key-invalid", 400, "The idempotency key is not valid")


class CallerUnknown(Refusal, Unauthorized):
    """401: the view stores responses for known callers only, and this one is anonymous."""

    kind = ProblemType("idempotency-caller-unknown", 401, "The caller is not known")


class InProgress(Refusal, Conflict):
    """409: the first request with this key still runs."""

    kind = ProblemType(
        "idempotency-key-in-progress", 409, "A request with this idempotency key is in progress"
    )


class OutcomeUnknown(Refusal, Conflict):
    """409: the first request was lost while it ran; an operator must look."""

    kind = ProblemType(
        "idempotency-outcome-unknown", 409, "The outcome of the first request is not known"
    )


class ResponseNotKept(Refusal, Conflict):
    """409: the request was carried out, and its response was too large to be stored."""

    kind = ProblemType(
        "idempotency-response-not-kept", 409, "The request was carried out; its response is gone"
    )


class KeyReused(Refusal, UnprocessableEntity):
    """422: the key was used with another request."""

    kind = ProblemType(
        "idempotency-key-reused", 422, "The idempotency key was used with another request"
    )


class KeyExpired(Refusal, UnprocessableEntity):
    """422: the key was used long ago, and its response is no longer kept."""

    kind = ProblemType("idempotency-key-expired", 422, "The idempotency key has expired")


class RecordUnreadable(Refusal, InternalServerError):
    """500: what is stored under the key cannot be read."""

    kind = ProblemType("idempotency-record-unreadable", 500, "The stored response cannot be read")


class StoreUnavailableError(Refusal, ServiceUnavailable):
    """503: the store cannot be asked whether the request has run, so it does not run."""

    kind = ProblemType("store-unavailable", 503, "The request cannot be protected at the moment")


ALL: Final = (
    KeyMissing,
    KeyInvalid,
    CallerUnknown,
    InProgress,
    OutcomeUnknown,
    ResponseNotKept,
    KeyReused,
    KeyExpired,
    RecordUnreadable,
    StoreUnavailableError,
)
