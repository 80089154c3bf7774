"""The messages of requests, as batches have them and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from email.message import Message
from http.client import HTTPMessage
from io import BytesIO
from typing import Any, Final

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectionError as RequestsConnectionError
from urllib3.exceptions import HTTPError as Urllib3Error
from urllib3.response import HTTPResponse

from ...core.batch import Answer, Fields
from .envelope import Reply
from .errors import BatchProtocolError, own

_PIECE: Final = 1 << 16


class RequestsBatchProtocolError(BatchProtocolError, RequestsConnectionError):
    """:class:`BatchProtocolError`, as requests raises it."""


class _Arrived:
    """Where requests looks for cookies: the response of ``http.client`` under that of urllib3."""

    def __init__(self, fields: Fields) -> None:
        self.msg: Message = HTTPMessage()
        for name, value in fields:
            self.msg[name] = value

    def isclosed(self) -> bool:
        """Say that nothing is to be read from it any more."""
        return True

    def close(self) -> None:
        """Close nothing."""


_building: Final = HTTPAdapter()


def body_of(request: requests.PreparedRequest) -> bytes | None:
    """Return the body; ``None`` if it is not in memory."""
    body: object = request.body
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode("utf-8")  # as urllib3 does
    return body if isinstance(body, bytes) else None


def fields_of(request: requests.PreparedRequest) -> Fields:
    """Return the header fields as they would be sent."""
    return tuple([(_text(name), _text(value)) for name, value in request.headers.items()])


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def response_of(
    answer: Answer, request: requests.PreparedRequest, connection: object
) -> requests.Response:
    """Return an answer as the response to ``request``.

    Args:
        answer: of the batch.
        request: of the caller.
        connection: the adapter by which an authentication sends once more.
    """
    headers = urllib3.HTTPHeaderDict()
    for name, value in answer.fields:
        headers.add(name, value)
    arrived: Any = _Arrived(answer.fields)
    raw = HTTPResponse(
        body=BytesIO(answer.body),
        headers=headers,
        status=answer.status,
        reason=answer.reason or None,
        version=11,
        preload_content=False,
        original_response=arrived,
        request_method=request.method,
        # A HEAD has the length of what it has not, and JSON batches have none that is sure.
        enforce_content_length=False,
    )
    response = _building.build_response(request, raw)
    response.connection = connection  # type: ignore[assignment]
    return response


def answer_of(response: requests.Response) -> Answer:
    """Return status and fields of a response; its body is not read."""
    return Answer(response.status_code, tuple(response.headers.items()))


def reply_of(response: requests.Response) -> Reply:
    """Read the reply to a batch, as far as it comes."""
    pieces: list[bytes] = []
    failure: Exception | None = None
    try:
        pieces.extend(_pieces(response))  # what comes before an error stays in it
    except requests.RequestException as error:
        failure = error
    except (Urllib3Error, OSError) as error:
        failure = RequestsConnectionError(error, request=response.request)
    finally:
        response.close()
    fields = tuple(response.headers.items())
    return Reply(response.status_code, fields, b"".join(pieces), failure)


def _pieces(response: requests.Response) -> Iterator[bytes]:
    """Yield the body as it arrives: ``iter_content`` would drop what precedes a broken end."""
    read1 = getattr(response.raw, "read1", None)
    consumed = getattr(response, "_content_consumed", False)  # a hook may have read it
    if consumed or read1 is None or getattr(response.raw, "chunked", False):
        yield from response.iter_content(_PIECE)
        return
    while piece := read1(_PIECE, decode_content=True):
        yield piece


def error_of(error: Exception, request: requests.PreparedRequest) -> Exception:
    """Return the error for one of several callers, as one of requests'."""
    if isinstance(error, BatchProtocolError) and not isinstance(error, requests.RequestException):
        return RequestsBatchProtocolError(str(error), request=request)
    made = own(error)
    if isinstance(made, requests.RequestException):
        made.request = request
    return made


def longest(timeouts: Iterable[object]) -> Any:
    """Return the timeout of the most patient caller, as requests takes it."""
    pairs = [_pair(each) for each in timeouts]
    return _most([pair[0] for pair in pairs]), _most([pair[1] for pair in pairs])


def _pair(timeout: object) -> tuple[float | None, float | None]:
    if isinstance(timeout, urllib3.Timeout):
        started = timeout.clone()
        started.start_connect()
        return _seconds(started.connect_timeout), _seconds(started.read_timeout)
    if isinstance(timeout, tuple):
        connect, read = timeout
        return _seconds(connect), _seconds(read)
    return _seconds(timeout), _seconds(timeout)


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _most(values: list[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return max(known) if len(known) == len(values) and known else None
