"""Which of httpx's bodies can be sent again, and how.

httpx keeps a file behind a stream without a public way to it, so two attributes of its streams are
looked up by name. Where a version of httpx has them no more, such a body counts as one that can be
made only once: nothing is sent twice by mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import httpx

Rewind: TypeAlias = Callable[[], object]


def in_memory(request: httpx.Request) -> bool:
    """Whether the body is bytes, or there is none."""
    return isinstance(request.stream, httpx.ByteStream)


def rewinding(request: httpx.Request) -> Rewind | None:
    """Return what makes the body ready to be sent again; ``None`` where nothing can."""
    if in_memory(request) or _is_form_of_files(request.stream):
        return _nothing
    if not isinstance(request.stream, httpx.SyncByteStream):
        return None  # the ``seek`` of an asynchronous file would have to be awaited
    file: Any = getattr(request.stream, "_stream", None)
    if file is None or not _is_seekable(file):
        return None
    start = file.tell()
    return lambda: file.seek(start)


def _nothing() -> None:
    """Do nothing: bytes are always ready, and a form rewinds its files itself."""


def _is_form_of_files(stream: object) -> bool:
    """Whether ``stream`` is a multipart form all of whose files can be rewound."""
    fields = getattr(stream, "fields", None)
    if not isinstance(fields, list):
        return False
    files = [field.file for field in fields if hasattr(field, "file")]
    return all(isinstance(file, str | bytes) or _is_seekable(file) for file in files)


def _is_seekable(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return hasattr(file, "read") and callable(seekable) and bool(seekable())


def hands_over_unread(response: httpx.Response) -> bool:
    """Whether the body has no end to wait for: a stream of events, or another protocol."""
    kind = response.headers.get("Content-Type", "").lower()
    return response.status_code == 101 or kind.startswith("text/event-stream")


def with_body(response: httpx.Response, body: bytes) -> httpx.Response:
    """Return the response with a body as it was sent, which the client will decode."""
    return httpx.Response(
        response.status_code,
        headers=response.headers,
        stream=httpx.ByteStream(body),
        extensions=response.extensions,
    )
