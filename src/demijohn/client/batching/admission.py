"""Which requests can go in a batch, and as what."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Final
from urllib.parse import urlsplit

from ...core.batch import (
    Bounds,
    Fields,
    Malformed,
    Part,
    field,
    origin,
    read_json_parts,
    write_json_parts,
    write_request,
)
from ...core.batch.targets import normal
from .entries import Entry
from .settings import Settings

# What the envelope itself takes for each part: delimiter, Content-Type, Content-ID, line breaks.
ENVELOPE: Final = 160
_METHODS: Final = frozenset({"CONNECT", "TRACE"})
# A part has no connection of its own, and the envelope says how long it is.
_LEFT_OUT: Final = frozenset(
    {"accept-encoding", "connection", "content-length", "host", "keep-alive", "proxy-connection"}
)
# These mean something for a connection, for a body that comes in pieces, or for a proxy.
_ALONE: Final = frozenset(
    {"expect", "forwarded", "range", "te", "trailer", "transfer-encoding", "upgrade", "x-real-ip"}
)
_ALONE_BEGINS: Final = ("proxy-", "sec-websocket-", "x-forwarded-")
_ONCE: Final = frozenset({"authorization", "content-type"})
_HEAD_BYTES: Final = 16 << 10
_FIELDS: Final = 100
_NAME: Final = re.compile(r"[!#$%&'*+\-.^`|~0-9A-Za-z]+")  # no "_": CGI takes it for a "-"


class Endpoint:
    """Where the batches of a server are, and what it takes in them.

    Args:
        url: of the batch resource, absolute.
        settings: limits and format.

    Raises:
        ValueError: the URL is not an absolute one of HTTP.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        parts = urlsplit(url)
        if parts.scheme.lower() not in {"http", "https"} or not parts.netloc:
            raise ValueError(f"The URL of a batch must begin with http:// or https://, got {url!r}")
        self.url = url
        self.settings = settings
        self._origin = _origin_of(url)
        self._path = normal(parts.path)

    def admit(
        self, method: str, url: str, fields: Fields, body: bytes, *, lane: Hashable = None
    ) -> Entry | None:
        """Return the request as an entry; ``None`` if it must go by itself.

        Args:
            method: in any case.
            url: absolute, encoded.
            fields: all that the library would send.
            body: all of it.
            lane: what must be equal besides the identity, for those that share a batch.
        """
        target = self._target(url)
        if target is None or not _is_plain(method, fields, url):
            return None
        kept = tuple([pair for pair in fields if pair[0].lower() not in _LEFT_OUT])
        return self.entry(Part(method.upper(), target, kept, body), lane=lane)

    def entry(self, part: Part, *, lane: Hashable = None) -> Entry | None:
        """Return the part as an entry; ``None`` if it cannot be said in the format."""
        size = self._size(part)
        if size is None or size > self.settings.max_part_bytes:
            return None
        identity = (field(part.fields, "authorization"), field(part.fields, "cookie"))
        related = part.id is not None or part.group is not None or bool(part.depends_on)
        return Entry(part, (identity, lane), size, related)

    def _target(self, url: str) -> str | None:
        """Return path and query of what is on this origin, and is no batch itself."""
        parts = urlsplit(url)
        if _origin_of(url) != self._origin or normal(parts.path) == self._path:
            return None
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        unclear = target.startswith("//") or "\\" in target
        return None if unclear else target

    def _size(self, part: Part) -> int | None:
        try:
            if self.settings.format == "multipart":
                return len(write_request(part)) + ENVELOPE
            return _size_in_json(part)
        except ValueError:
            return None


def _origin_of(url: str) -> str:
    parts = urlsplit(url)
    return origin(parts.scheme, parts.netloc.rpartition("@")[2])


def _is_plain(method: str, fields: Fields, url: str) -> bool:
    """Whether a request asks for nothing that only a request by itself can have."""
    names = [name.lower() for name, _ in fields]
    host = field(fields, "host")
    return (
        method.upper() not in _METHODS
        and len(names) <= _FIELDS
        and sum(len(name) + len(value) + 4 for name, value in fields) <= _HEAD_BYTES
        and all(_may_share(name) for name in names)
        and all(names.count(name) < 2 for name in _ONCE)
        and (host is None or origin(urlsplit(url).scheme, host) == _origin_of(url))
        and "text/event-stream" not in (field(fields, "accept") or "")
    )


def _may_share(name: str) -> bool:
    return (
        name not in _ALONE
        and not name.startswith(_ALONE_BEGINS)
        and _NAME.fullmatch(name) is not None
    )


def _size_in_json(part: Part) -> int | None:
    """Return the size of a part that the server will read as it was meant.

    JSON has no place for some bodies: one with a name twice, one that is not what its type says,
    one of a GET.
    """
    named = Part(part.method, part.target, part.fields, part.body, part.id or "0")
    body = write_json_parts([named])
    try:
        [read] = read_json_parts(body, Bounds(part=len(body), head=1 << 16, fields=200))
    except Malformed:
        return None
    same = read.body == part.body and (read.method, read.target) == (part.method, part.target)
    return len(body) + ENVELOPE if same else None
