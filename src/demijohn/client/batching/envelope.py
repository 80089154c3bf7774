"""Entries as the request for a batch, and its reply as their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from ...core.batch import (
    Answer,
    Bounds,
    Fields,
    Malformed,
    Part,
    boundary_of,
    make_boundary,
    media_type,
    occurs,
    read_json_answers,
    read_multipart_answers,
    without_response,
    write_json_parts,
    write_multipart,
    write_request,
)
from ...core.batch import field as field_of
from .entries import Entry
from .errors import BatchProtocolError
from .settings import Format

_NO_BOUNDS: Final = Bounds(parts=1 << 30, part=1 << 40, head=1 << 20, fields=10_000, depth=1000)
# A server gives these of the batch to every part that has none of its own.
_INHERITED: Final = frozenset({"accept-language", "authorization", "cookie", "user-agent"})
# And these speak of one request; on the batch they would mean something else.
_OF_ONE: Final = frozenset(
    {"date", "idempotency-key", "prefer", "traceparent", "tracestate", "x-request-id"}
)
_OF_ONE_BEGINS: Final = ("accept", "content-", "if-", "x-http-method", "x-method")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The request for a batch; a POST.

    Args:
        fields: its header fields.
        body: its body.
        names: the ids of its parts, in their order.
        entries: what is in it.
    """

    fields: Fields
    body: bytes
    names: tuple[str, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of it.

    Args:
        status: of the response; 0 if none came.
        fields: its header fields.
        body: as much of it as has arrived, decoded.
        error: what broke the exchange off, at whatever point.
    """

    status: int
    fields: Fields = ()
    body: bytes = b""
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reply says.

    Args:
        answers: by the number of the part.
        whole: whether the reply is all there; what has no answer in it will never have one.
        errors: why a part has no answer, by its number.
    """

    answers: dict[int, Answer]
    whole: bool
    errors: dict[int, BatchProtocolError] = field(default_factory=dict)


# --- writing ------------------------------------------------------------------------------------


def write(
    entries: Sequence[Entry], form: Format, key: str | None, random: Callable[[int], bytes]
) -> Outgoing:
    """Return the request for a batch.

    Args:
        entries: of one lane, at least one.
        form: multipart or JSON.
        key: the idempotency key of the batch, as the value of a field.
        random: gives so many random bytes.
    """
    names = names_of(entries)
    shared, parts = hoisted([entry.part for entry in entries])
    if key is not None:
        shared = (*shared, ("Idempotency-Key", key))
    if form == "json":
        kind, body = "application/json", _in_json(parts, names)
    else:
        kind, body = _in_multipart(parts, names, random)
    accepted = "application/json" if form == "json" else "multipart/mixed"
    fields = (("Content-Type", kind), ("Accept", accepted), *shared)
    return Outgoing(fields, body, names, tuple(entries))


def names_of(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return an id for each: the caller's, that of an earlier batch, or its number."""
    taken = {name.casefold() for entry in entries if (name := entry.part.id or entry.name)}
    taken.update(entry.part.group.casefold() for entry in entries if entry.part.group)
    names, number = [], 0
    for entry in entries:
        name = entry.part.id or entry.name
        while name is None:
            free, number = str(number), number + 1
            name = free if free not in taken else None
        names.append(name)
    return tuple(names)


def hoisted(parts: Sequence[Part]) -> tuple[Fields, list[Part]]:
    """Return the fields that are equal in all parts, for the batch, and the parts.

    A gateway, which sees the batch only, finds in it who is calling. What every server gives on to
    the parts is taken out of them.
    """
    candidates = dict.fromkeys(parts[0].fields)
    for part in parts[1:]:
        fields = set(part.fields)
        candidates = {pair: None for pair in candidates if pair in fields}
    times = Counter(name.lower() for name, _ in parts[0].fields)
    shared = tuple(
        [pair for pair in candidates if times[pair[0].lower()] == 1 and _may_hoist(pair[0])]
    )
    moved = {pair for pair in shared if pair[0].lower() in _INHERITED}
    if not moved:
        return shared, list(parts)
    return shared, [_without(part, moved) for part in parts]


def _may_hoist(name: str) -> bool:
    lower = name.lower()
    if lower in _INHERITED:
        return True
    return lower not in _OF_ONE and not lower.startswith(_OF_ONE_BEGINS)


def _without(part: Part, moved: set[tuple[str, str]]) -> Part:
    fields = tuple([pair for pair in part.fields if pair not in moved])
    return msgspec.structs.replace(part, fields=fields)


def _in_json(parts: Sequence[Part], names: Sequence[str]) -> bytes:
    named = [
        msgspec.structs.replace(part, id=name) for part, name in zip(parts, names, strict=True)
    ]
    return write_json_parts(named)


def _in_multipart(
    parts: Sequence[Part], names: Sequence[str], random: Callable[[int], bytes]
) -> tuple[str, bytes]:
    messages = [write_request(part) for part in parts]
    boundary = make_boundary(random(22))
    while occurs(boundary, messages):
        boundary = make_boundary(random(22))
    tagged = [(f"<{name}>", message) for name, message in zip(names, messages, strict=True)]
    return f"multipart/mixed; boundary={boundary}", write_multipart(tagged, boundary)


# --- reading ------------------------------------------------------------------------------------


def read(outgoing: Outgoing, reply: Reply) -> Reading:
    """Return what a reply of success says of each part."""
    kind, _ = media_type(field_of(reply.fields, "content-type") or "")
    try:
        if kind == "multipart/mixed":
            answers, whole = _from_multipart(reply)
        elif kind == "application/json":
            answers, whole = _from_json(reply)
        else:
            raise Malformed("unsupported-media-type", f"it has Content-Type: {kind or 'nothing'}")
    except ValueError as error:
        wrong = BatchProtocolError(f"The answer to the batch can not be read: {error}")
        return Reading({}, True, dict.fromkeys(range(len(outgoing.names)), wrong))
    return _matched(answers, outgoing.names, whole)


def _from_multipart(reply: Reply) -> tuple[list[Answer], bool]:
    boundary = boundary_of(field_of(reply.fields, "content-type") or "")
    answers = read_multipart_answers(reply.body, boundary, _NO_BOUNDS)
    named = [
        msgspec.structs.replace(answer, id=_bare(without_response(answer.id)))
        if answer.id is not None
        else answer
        for answer in answers
    ]
    return named, f"--{boundary}--".encode() in reply.body


def _bare(name: str) -> str:
    return name[1:-1] if name.startswith("<") and name.endswith(">") else name


def _from_json(reply: Reply) -> tuple[list[Answer], bool]:
    if reply.error is not None:
        return [], False
    return read_json_answers(reply.body), True


def _matched(answers: Sequence[Answer], names: Sequence[str], whole: bool) -> Reading:
    if not any(answer.id is not None for answer in answers):
        return _by_position(answers, len(names), whole)
    numbers = {name: number for number, name in enumerate(names)}
    found: dict[int, Answer] = {}
    errors: dict[int, BatchProtocolError] = {}
    for answer in answers:
        number = numbers.get(answer.id or "")
        if number is None:
            continue  # of nothing that was sent: whose it is, is not known, so it is nobody's
        if number in found:
            errors[number] = BatchProtocolError(f"The part {answer.id!r} was answered twice.")
        elif not answer.status:
            errors[number] = _unreadable(answer)
        found[number] = answer
    return Reading({n: each for n, each in found.items() if n not in errors}, whole, errors)


def _unreadable(answer: Answer) -> BatchProtocolError:
    return BatchProtocolError(f"The answer to a part can not be read: {answer.reason}")


def _by_position(answers: Sequence[Answer], count: int, whole: bool) -> Reading:
    # Answers without ids tell whose they are by their number alone, so that must be right.
    if len(answers) > count or (whole and len(answers) != count):
        wrong = BatchProtocolError(
            f"A batch of {count} has {len(answers)} answers, and none of them says to what."
        )
        return Reading({}, True, dict.fromkeys(range(count), wrong))
    errors = {n: _unreadable(answer) for n, answer in enumerate(answers) if not answer.status}
    return Reading({n: each for n, each in enumerate(answers) if each.status}, whole, errors)
