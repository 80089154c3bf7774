"""What batches are made of, whichever format they came in."""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

Fields: TypeAlias = "tuple[tuple[str, str], ...]"
"""Header fields in their order. Names are as they were sent; values are latin-1, as in WSGI."""


class Part(msgspec.Struct, frozen=True, gc=False):
    """One request of a batch.

    Args:
        method: as it was sent in multipart, in upper case in JSON.
        target: as it was sent: a path, an absolute URL, or relative to the batch.
        fields: its header fields.
        body: its content; ``b""`` for none.
        id: by which its answer is told from others; ``None`` if it has none.
        group: the atomicity group that it belongs to.
        depends_on: ids and groups that must have succeeded before it runs.
    """

    method: str
    target: str
    fields: Fields = ()
    body: bytes = b""
    id: str | None = None
    group: str | None = None
    depends_on: tuple[str, ...] = ()


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What one request of a batch was answered.

    Args:
        status: the HTTP status; 0 where what was received cannot be read.
        fields: its header fields.
        body: its content.
        id: of the part; in a response as it stood there.
        reason: the phrase behind the status.
    """

    status: int
    fields: Fields = ()
    body: bytes = b""
    id: str | None = None
    reason: str = ""


class Bounds(msgspec.Struct, frozen=True):
    """How large a batch may be; sizes in bytes.

    Args:
        parts: how many there may be.
        part: the size of one, with its head.
        head: the size of one's head; in multipart each of its two.
        fields: how many fields a head may have.
        depth: how deep JSON may nest.
    """

    parts: int = 1000
    part: int = 1 << 20
    head: int = 16 << 10
    fields: int = 100
    depth: int = 64


_BRIEF: Final = 300


def brief(text: str) -> str:
    """Return a text that may quote what somebody sent, and not all of it."""
    return text if len(text) <= _BRIEF else text[: _BRIEF - 3] + "..."


class Malformed(ValueError):
    """A batch of which nothing may run.

    Args:
        kind: the last part of the problem's type.
        detail: what is wrong, and the cure.
        part: the number of the part, from 0, where it is known.
        name: its id.
    """

    def __init__(
        self, kind: str, detail: str, part: int | None = None, name: str | None = None
    ) -> None:
        self.kind = kind
        self.detail = brief(detail)
        self.part = part
        self.id = name
        super().__init__(self.detail)

    def at(self, part: int, name: str | None = None) -> Malformed:
        """Note where it was found, if that is not known more exactly."""
        if self.part is None:
            self.part = part
        if self.id is None:
            self.id = name
        return self


RESPONSE: Final = "response-"

NOT_JSON: Final[tuple[type[Exception], ...]] = (ValueError, msgspec.MsgspecError, RecursionError)
"""What readers of JSON raise; the errors of msgspec before 0.21 are no ValueError."""


def field(fields: Fields, name: str) -> str | None:
    """Return the first value of the field ``name``, which is in lower case."""
    for key, value in fields:
        if key.lower() == name:
            return value
    return None


def response_id(name: str) -> str:
    """Return the Content-ID of the answer to the part ``name``, as Google's clients expect it."""
    if name.startswith("<") and name.endswith(">"):
        return f"<{RESPONSE}{name[1:]}"
    return RESPONSE + name


def without_response(name: str) -> str:
    """Return of which part an answer is, from its Content-ID."""
    if name.startswith(f"<{RESPONSE}"):
        return "<" + name[len(RESPONSE) + 1 :]
    return name.removeprefix(RESPONSE)
