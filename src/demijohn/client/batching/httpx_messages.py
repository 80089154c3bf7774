"""The messages of httpx, as batches have them and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import httpx

from ...core.batch import Answer, Fields
from ..httpx_bodies import in_memory
from .admission import Endpoint
from .entries import Entry
from .envelope import Outgoing, Reply
from .errors import BatchProtocolError, own

OPT_OUT: Final = "batch"
BATCHED: Final = "demijohn.batched"
_TIMES: Final = ("connect", "read", "write", "pool")


class HttpxBatchProtocolError(BatchProtocolError, httpx.RemoteProtocolError):
    """:class:`BatchProtocolError`, as httpx raises it."""


def admit(endpoint: Endpoint, request: httpx.Request) -> Entry | None:
    """Return the request as an entry, ``None`` if it must go by itself."""
    if request.extensions.get(OPT_OUT) is False or not in_memory(request):
        return None
    entry = endpoint.admit(
        request.method,
        str(request.url),
        fields_of(request.headers),
        request.read(),
        lane=request.extensions.get("sni_hostname"),
    )
    if entry is not None:
        entry.owner = request
    return entry


def fields_of(headers: httpx.Headers) -> Fields:
    """Return the fields as they were sent."""
    return tuple([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers.raw])


def response_of(answer: Answer, *, whole: bool = False) -> httpx.Response:
    """Return an answer as a response whose body is still to be read, as transports give it."""
    extensions: dict[str, Any] = {"http_version": b"HTTP/1.1", BATCHED: not whole}
    if answer.reason:
        extensions["reason_phrase"] = answer.reason.encode("ascii", "replace")
    headers = [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in answer.fields
    ]
    stream = httpx.ByteStream(answer.body)
    return httpx.Response(answer.status, headers=headers, stream=stream, extensions=extensions)


def answer_of(response: httpx.Response) -> Answer:
    """Return status and fields of a response; its body is not read."""
    return Answer(response.status_code, fields_of(response.headers))


def reply_of(response: httpx.Response, pieces: Iterable[bytes], error: Exception | None) -> Reply:
    """Return what came of a batch."""
    return Reply(response.status_code, fields_of(response.headers), b"".join(pieces), error)


def error_of(error: Exception, request: httpx.Request) -> Exception:
    """Return the error for one of several callers, as one of httpx's."""
    if isinstance(error, BatchProtocolError) and not isinstance(error, httpx.RequestError):
        return HttpxBatchProtocolError(str(error), request=request)
    made = own(error)
    if isinstance(made, httpx.RequestError):
        made.request = request
    return made


def outer(url: str, outgoing: Outgoing) -> httpx.Request:
    """Return the request for a batch; it waits as long as the most patient of its parts."""
    headers = [("Accept-Encoding", "gzip, deflate"), *outgoing.fields]
    return httpx.Request(
        "POST",
        url,
        headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        content=outgoing.body,
        extensions=extensions_of(
            [each.owner for each in outgoing.entries if isinstance(each.owner, httpx.Request)]
        ),
    )


def extensions_of(owners: Sequence[httpx.Request]) -> dict[str, Any]:
    """Return the extensions for the request of a batch of ``owners``."""
    given: list[dict[str, float | None]] = [each.extensions.get("timeout", {}) for each in owners]
    made: dict[str, Any] = {
        "timeout": {name: _longest([each.get(name) for each in given]) for name in _TIMES}
    }
    for owner in owners[:1]:
        if "sni_hostname" in owner.extensions:
            made["sni_hostname"] = owner.extensions["sni_hostname"]
    return made


def _longest(seconds: list[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return max(known) if known and len(known) == len(seconds) else None
