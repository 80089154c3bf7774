"""A stored response: a version byte, then status, headers and body as msgpack.

Nothing in a frame can execute, and a frame of another version is refused, never guessed at.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import msgspec
from flask import Flask, Response
from werkzeug.datastructures import Headers

from .errors import CorruptRecord

VERSION: Final = b"\x01"

NEVER_STORED: Final = frozenset(
    {
        # Hop-by-hop: they describe one connection (RFC 9110, 7.6.1).
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        # They describe one message; a replay is another.
        "content-length",
        "date",
        "server",
        # They belong to the request that was answered, not to the result.
        "set-cookie",
        "x-request-id",
        "x-correlation-id",
        "request-id",
        "traceparent",
        "tracestate",
        "server-timing",
        "ratelimit",
        "ratelimit-policy",
    }
)
NEVER_STORED_PREFIXES: Final = ("ratelimit-", "x-ratelimit-", "x-rate-limit-")


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """A response at rest. ``body`` is ``None`` where it was too large to keep."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def encode(frame: Frame) -> bytes:
    """Return the bytes of ``frame``."""
    return VERSION + _encoder.encode(frame)


def decode(data: bytes) -> Frame:
    """Return the frame in ``data``.

    Raises:
        CorruptRecord: it is empty, truncated, altered, or of another version.
    """
    if data[:1] != VERSION:
        version = data[0] if data else "none"
        raise CorruptRecord(f"stored response has version {version}; this release reads 1")
    try:
        frame = _decoder.decode(memoryview(data)[1:])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptRecord(f"stored response cannot be read: {error}") from error
    if not 100 <= frame.status <= 999:
        raise CorruptRecord(f"stored response has the impossible status {frame.status}")
    return frame


def storable_fields(fields: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return those of ``fields`` that may be stored in every case."""
    return tuple(
        [
            (name, value)
            for name, value in fields
            if name.lower() not in NEVER_STORED
            and not name.lower().startswith(NEVER_STORED_PREFIXES)
        ]
    )


def storable_headers(headers: Headers, drop: Collection[str]) -> tuple[list[tuple[str, str]], str]:
    """Return the headers that belong to the result, not to one message or one caller.

    Returns:
        The headers, and the content coding among them (lower case), ``""`` for none.
    """
    kept: list[tuple[str, str]] = []
    coding = ""
    for name, value in headers:
        lower = name.lower()
        if lower in drop or lower.startswith(NEVER_STORED_PREFIXES):
            continue
        if lower == "content-encoding":
            coding = value.strip().lower()
        kept.append((name, value))
    return kept, coding


def from_response(
    response: Response,
    body: bytes | None,
    *,
    max_body: int,
    drop: Collection[str] = NEVER_STORED,
) -> Frame:
    """Make the frame of ``response``.

    Args:
        response: gives status and headers.
        body: what was sent; ``None`` if it was too large to be collected.
        max_body: the largest body that is kept, in bytes.
        drop: names of headers, lower case, that are not stored.
    """
    headers, coding = storable_headers(response.headers, drop)
    if coding and body is not None:
        plain = _identity(body, coding, max_body)
        if plain is not None:
            body = plain
            headers = [pair for pair in headers if pair[0].lower() != "content-encoding"]
    if body is not None and len(body) > max_body:
        body = None
    return Frame(response.status_code, headers, body)


def _identity(body: bytes, coding: str, max_body: int) -> bytes | None:
    """Undo a content coding, so that a replay suits a client that accepts others.

    An unknown coding, damaged data and data that grows past ``max_body`` give ``None``: then the
    body is kept as it was sent, with its coding named.
    """
    if coding not in {"gzip", "x-gzip", "deflate"}:
        return None
    decompressor = zlib.decompressobj(wbits=47)  # gzip or zlib, told apart by their headers
    try:
        plain = decompressor.decompress(body, max_body + 1)
    except zlib.error:
        return None
    return plain if decompressor.eof and not decompressor.unused_data else None


def to_response(frame: Frame, app: Flask, fresh: Sequence[tuple[str, str]] = ()) -> Response:
    """Make a response of ``app``'s class from a frame that has kept its body.

    Args:
        frame: what was stored.
        app: gives the class.
        fresh: headers that stand in for stored ones of the same name.

    Raises:
        CorruptRecord: a header was altered so that it could not be sent.
    """
    replaced = [name.lower() for name, _ in fresh]
    headers, typed = list(fresh), False
    for pair in frame.headers:
        name = pair[0].lower()
        typed = typed or name == "content-type"
        if name not in replaced:
            headers.append(pair)
    try:
        response = app.response_class(frame.body or b"", frame.status, headers)
    except ValueError as error:  # a line feed: sent, it would begin a header of its own
        raise CorruptRecord(f"stored response cannot be sent: {error}") from error
    if not typed:
        response.headers.remove("Content-Type")  # the class has made one up
    return response
