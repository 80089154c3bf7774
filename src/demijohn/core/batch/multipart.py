"""``multipart/mixed`` (RFC 2046), whose parts are HTTP messages.

What delimits is a line of its own that begins with ``--`` and the boundary; a boundary elsewhere
in a line is content. Lines end with CRLF or LF, delimiters may have white space behind them. Text
before the first delimiter and behind the last one is left out; a body without its last delimiter
was cut off, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

import msgspec

from .message import read_head, read_request, read_response
from .part import Answer, Bounds, Fields, Malformed, Part, field

T = TypeVar("T")

# RFC 2046, 5.1.1; a space may stand within, and not at the end. Real boundaries are quoted, or
# not although they should be ("===============8727=="), so the bare form takes all of them too.
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_PARAMETER: Final = re.compile(
    r'[ \t]*;[ \t]*(?:([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^;"]*)))?'
)
# What can be the value of a header field, and comes back from it as it was.
_CONTENT_ID: Final = re.compile(
    r"[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?"
)
_ENCODINGS: Final = frozenset({"7bit", "8bit", "binary"})
_SINGLE: Final = frozenset(
    {"content-type", "content-id", "content-transfer-encoding", "transfer-encoding"}
)
_LETTERS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def media_type(value: str) -> tuple[str, dict[str, str]]:
    """Return the type in lower case, and its parameters as far as they can be read.

    Of one that is given twice the first counts.
    """
    kind, _, _ = value.partition(";")
    at = len(kind)
    found: dict[str, str] = {}
    while at < len(value):
        match = _PARAMETER.match(value, at)
        if match is None:
            break
        at = match.end()
        if match[1]:
            quoted, bare = match[2], match[3]
            text = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare.strip()
            found.setdefault(match[1].lower(), text)
    return kind.strip().lower(), found


def boundary_of(content_type: str) -> str:
    """Return the boundary that a Content-Type of ``multipart/mixed`` gives.

    Raises:
        Malformed: there is none, or it is none that may be.
    """
    boundary = media_type(content_type)[1].get("boundary")
    if boundary is None:
        raise Malformed("bad-boundary", "Content-Type: multipart/mixed needs a boundary.")
    if not _BOUNDARY.fullmatch(boundary):
        raise Malformed(
            "bad-boundary",
            "The boundary must have 1 to 70 characters of those that RFC 2046 allows.",
        )
    return boundary


def sections(body: bytes, boundary: str, most: int) -> Iterator[bytes]:
    """Give what stands between the delimiters, with its last line break.

    Raises:
        Malformed: there is nothing, no end, or more than ``most``.
    """
    quoted = re.escape(boundary.encode("ascii"))
    delimiter = re.compile(rb"^--" + quoted + rb"(--)?[ \t]*\r?$", re.MULTILINE)
    start, count, closed = -1, 0, False
    for found in delimiter.finditer(body):
        if closed:
            raise Malformed("malformed-batch", "There is a delimiter behind the last one.")
        if start >= 0:
            count += 1
            if count > most:
                raise Malformed("too-many-parts", f"A batch may have {most} parts.")
            yield body[start : found.start()]
        start = found.end() + 1
        closed = found[1] is not None
    if not closed:
        what = "is not closed: its end is missing" if start >= 0 else "has no parts"
        raise Malformed("malformed-batch", f"The multipart body {what}.")
    if not count:
        raise Malformed("malformed-batch", "The batch has no parts.")


def read_multipart_parts(body: bytes, boundary: str, bounds: Bounds) -> list[Part]:
    """Read the requests of a batch.

    Raises:
        Malformed: something is wrong with it.
    """
    parts: list[Part] = []
    for number, section in enumerate(sections(body, boundary, bounds.parts)):
        try:
            _read_section(section, bounds, parts, number)
        except Malformed as error:
            raise error.at(len(parts)) from None
        if len(parts) > bounds.parts:
            raise Malformed("too-many-parts", f"A batch may have {bounds.parts} parts.")
    return parts


def _read_section(section: bytes, bounds: Bounds, parts: list[Part], number: int) -> None:
    fields, at = read_head(section, 0, bounds)
    said = _once(fields)
    kind, parameters = media_type(said.get("content-type") or "text/plain")
    if kind == "multipart/mixed":
        if at < 0:
            raise Malformed("malformed-batch", "A change set has no content.")
        parts += _read_change_set(section[at:], parameters, bounds, f"changeset {number}")
        return
    parts.append(_read_part(section, said, at, bounds, kind))


def _read_change_set(
    body: bytes, parameters: dict[str, str], bounds: Bounds, name: str
) -> Iterator[Part]:
    """Read a nested multipart: in OData all or nothing of it happens."""
    boundary = parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise Malformed("bad-boundary", "A change set has no boundary, or none that may be.")
    for section in sections(body, boundary, bounds.parts):
        fields, at = read_head(section, 0, bounds)
        said = _once(fields)
        kind, _ = media_type(said.get("content-type") or "text/plain")
        yield msgspec.structs.replace(_read_part(section, said, at, bounds, kind), group=name)


def _read_part(section: bytes, said: dict[str, str], at: int, bounds: Bounds, kind: str) -> Part:
    if len(section) > bounds.part:
        raise Malformed(
            "part-too-large", f"A part has {len(section)} bytes; {bounds.part} are allowed."
        )
    if kind != "application/http":
        raise Malformed(
            "bad-part-type", f"A part has Content-Type: {kind}; it must be application/http."
        )
    _check_encoding(said)
    if at < 0:
        raise Malformed("malformed-batch", "The head of a part has no end: an empty line.")
    part = read_request(section, at, bounds)
    name = said.get("content-id")
    return msgspec.structs.replace(part, id=name) if name else part


def _check_encoding(said: dict[str, str]) -> None:
    encoding = said.get("content-transfer-encoding")
    if encoding is not None and encoding.lower() not in _ENCODINGS:
        raise Malformed(
            "malformed-batch",
            f"A part has Content-Transfer-Encoding: {encoding}; it must be binary.",
        )
    if "transfer-encoding" in said:
        raise Malformed("malformed-batch", "A part has a Transfer-Encoding; send it whole.")


def _once(fields: Fields) -> dict[str, str]:
    """Return the fields by their names in lower case; what decides may stand there once."""
    found: dict[str, str] = {}
    for key, value in fields:
        name = key.lower()
        if name in found and name in _SINGLE:
            raise Malformed("malformed-batch", f"A part has more than one {name}.")
        found[name] = value
    return found


def read_multipart_answers(body: bytes, boundary: str, bounds: Bounds) -> list[Answer]:
    """Read the responses of a batch, as far as they are there: a body that breaks off is cut.

    A part that is no response has the status 0, and why it is none as its reason: the others stand.

    Raises:
        Malformed: what is there is no batch.
    """
    answers: list[Answer] = []
    for section in _until_cut(sections(body, boundary, bounds.parts)):
        fields, at = read_head(section, 0, bounds)
        given = field(fields, "content-type") or "application/http"
        if media_type(given)[0] == "multipart/mixed":
            # A change set; there is none within another.
            inner = sections(section[max(at, 0) :], boundary_of(given), bounds.parts)
            answers += [
                _read_answer(each, *read_head(each, 0, bounds), bounds)
                for each in _until_cut(inner)
            ]
        else:
            answers.append(_read_answer(section, fields, at, bounds))
    return answers


def _read_answer(section: bytes, fields: Fields, at: int, bounds: Bounds) -> Answer:
    """Read one response; one that cannot be read has the status 0, and the reason."""
    name = field(fields, "content-id")
    try:
        answer = read_response(section, at if at >= 0 else len(section), bounds)
    except Malformed as error:
        return Answer(0, id=name, reason=error.detail)
    return msgspec.structs.replace(answer, id=name)


def _until_cut(found: Iterator[T]) -> Iterator[T]:
    try:
        yield from found
    except Malformed as error:
        if error.kind != "malformed-batch":
            raise


# --- writing ------------------------------------------------------------------------------------


def make_boundary(random: Sequence[int]) -> str:
    """Return a boundary, made of 22 random bytes or more."""
    return "batch_" + "".join([_LETTERS[byte % 62] for byte in random])


def write_multipart(messages: Iterable[tuple[str | None, bytes]], boundary: str) -> bytes:
    """Return the body of a batch.

    Args:
        messages: Content-IDs, ``None`` for none, and the HTTP messages.
        boundary: must not begin a line of any of them; see :func:`occurs`.

    Raises:
        ValueError: a Content-ID cannot be sent as it is.
    """
    parts = [section(name, message, boundary) for name, message in messages]
    return b"".join([*parts, closing(boundary)])


def section(name: str | None, message: bytes, boundary: str) -> bytes:
    """Return one part of a body, with the delimiter before it.

    Raises:
        ValueError: the Content-ID cannot be sent as it is.
    """
    head = f"--{boundary}\r\nContent-Type: application/http\r\n"
    if name is not None:
        if not _CONTENT_ID.fullmatch(name):
            raise ValueError(f"no Content-ID: {name!r}")
        head += f"Content-ID: {name}\r\n"
    return b"%b\r\n%b\r\n" % (head.encode("latin-1"), message)


def closing(boundary: str) -> bytes:
    """Return the last delimiter."""
    return f"--{boundary}--\r\n".encode("ascii")


def occurs(boundary: str, messages: Iterable[bytes]) -> bool:
    """Whether ``boundary`` stands in a message, where it would end it."""
    wanted = b"--" + boundary.encode("ascii")
    return any(wanted in message for message in messages)
