"""What a client is told of a batch that did not run, and of a part that did not."""

from __future__ import annotations

import json
from typing import Final

from flask import Flask
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    NotAcceptable,
    NotImplemented,  # noqa: A004 - the status 501, and it is meant here
    RequestEntityTooLarge,
    RequestHeaderFieldsTooLarge,
    ServiceUnavailable,
    UnsupportedMediaType,
)

from ..core.batch import Answer, Malformed
from ..problem import MEDIA_TYPE, Json, Problem, ProblemType, Refusal


class BatchRefused(Refusal):
    """A batch of which nothing ran. Each refusal is of this class and of one of werkzeug's."""


class _Malformed(BatchRefused, BadRequest):
    """400."""


class _TooLarge(BatchRefused, RequestEntityTooLarge):
    """413."""


class _HeadTooLarge(BatchRefused, RequestHeaderFieldsTooLarge):
    """431."""


class _NotAcceptable(BatchRefused, NotAcceptable):
    """406."""


class _Unsupported(BatchRefused, UnsupportedMediaType):
    """415."""


class _NotImplemented(BatchRefused, NotImplemented):
    """501."""


class _Unavailable(BatchRefused, ServiceUnavailable):
    """503."""


_CLASSES: Final[dict[int, type[BatchRefused]]] = {
    400: _Malformed,
    406: _NotAcceptable,
    413: _TooLarge,
    415: _Unsupported,
    431: _HeadTooLarge,
    501: _NotImplemented,
    503: _Unavailable,
}

_BATCHES: Final = (
    ProblemType("unsupported-media-type", 415, "This is no format of batches"),
    ProblemType("not-acceptable", 406, "No format of batches is acceptable"),
    ProblemType("bad-boundary", 400, "The boundary is missing or not valid"),
    ProblemType("batch-too-large", 413, "The batch is too large"),
    ProblemType("too-many-parts", 413, "The batch has too many parts"),
    ProblemType("part-too-large", 413, "A part of the batch is too large"),
    ProblemType("part-header-too-large", 431, "The head of a part is too large"),
    ProblemType("malformed-batch", 400, "The batch is malformed"),
    ProblemType("bad-part-type", 400, "A part is no HTTP message"),
    ProblemType("malformed-part", 400, "A part of the batch is malformed"),
    ProblemType("forbidden-part", 400, "A part has a method that a batch cannot have"),
    ProblemType("nested-batch", 400, "A part of the batch is a batch"),
    ProblemType("foreign-origin", 400, "A part is for another origin"),
    ProblemType("bad-id", 400, "The id of a part is not valid"),
    ProblemType("bad-dependency", 400, "A dependency of a part is not valid"),
    ProblemType("bad-batch-key", 400, "The idempotency key of the batch is not valid"),
    ProblemType("batch-unavailable", 503, "The batch cannot be carried out at the moment"),
    ProblemType("atomic-not-supported", 501, "Atomicity groups are not supported here"),
)
BATCHES: Final = {kind.slug: kind for kind in _BATCHES}
"""Why nothing of a batch ran."""

_PARTS: Final = (
    ProblemType("not-attempted", 424, "The part was not carried out"),
    ProblemType("dependency-failed", 424, "What the part depends on has failed"),
    ProblemType("unresolved-reference", 424, "What the part refers to is not there"),
    ProblemType("rolled-back", 424, "The part was rolled back with its group"),
    ProblemType("deadline", 503, "The batch ran out of time before the part"),
    ProblemType("out-of-room", 503, "The batch ran out of room before the part"),
    ProblemType("part-response-too-large", 500, "The response of the part is too large"),
    ProblemType("part-failed", 500, "The part failed"),
    ProblemType("group-unavailable", 503, "The group cannot be carried out at the moment"),
    ProblemType("group-in-progress", 409, "A batch with this key is in progress"),
    ProblemType("group-key-reused", 422, "The key of the batch was used with another group"),
    ProblemType("group-outcome-unknown", 500, "Nobody knows whether the group was committed"),
)
PARTS: Final = {kind.slug: kind for kind in _PARTS}
"""Why a part of a batch has no answer of its own."""


def refusal(error: Malformed, **extensions: Json) -> HTTPException:
    """Return the refusal of a whole batch."""
    kind = BATCHES[error.kind]
    if error.part is not None:
        extensions["part"] = error.part
    if error.id is not None:
        extensions["id"] = error.id
    made = _CLASSES[kind.status](error.detail, extensions=extensions)
    made.kind = kind
    return made


def instead(
    app: Flask, slug: str, detail: str, *, retry_after: int | None = None, **extensions: Json
) -> Answer:
    """Return the answer to a part that has none of its own."""
    kind = PARTS[slug]
    problem = Problem(kind.uri(app), kind.status, kind.title, detail, extensions)
    fields = [("Content-Type", MEDIA_TYPE), ("Cache-Control", "no-store")]
    if retry_after is not None:
        fields.append(("Retry-After", str(retry_after)))
    return Answer(kind.status, tuple(fields), json.dumps(problem.document()).encode())
