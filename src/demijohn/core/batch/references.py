"""Values of earlier answers in later parts.

=============================  ================================================================
``$id/rest`` as a target       the path of that answer's Location, and ``rest`` (OData)
``If-Match: $id``              its ETag, likewise in ``If-None-Match``
``@{id.body.a.0.b}``           a value in its JSON body
``@{id.headers.location}``     one of its header fields
``@@{``                        ``@{`` itself
=============================  ================================================================

The last three may stand in targets and header values. In a JSON body they are only looked for
where the part names the id in ``dependsOn``: a body carries what users have typed, and a text that
looks like a reference must neither break a batch nor fetch the answer of another part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, AnyStr, Final, NoReturn, cast
from urllib.parse import quote, unquote

import msgspec

from .part import NOT_JSON, Answer, Bounds, Fields, Part, brief, field

# Possessive, and what is between the braces is taken apart afterwards: one pass, whatever is there.
_BRACES: Final = re.compile(r"@(@\{)|@\{([^{}]*+)\}")
# The shortest id that a place follows.
_PLACE: Final = re.compile(r"(.+?)\.(body|headers)(?=\.|\Z)", re.DOTALL)
# A string of a JSON text; with a colon behind it it is a name.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"([ \t\r\n]*+:)?')
_LEADING: Final = re.compile(r"/?\$([^/?]+)")
_TAGGED: Final = frozenset({"if-match", "if-none-match"})
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f]")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_SEPARATOR: Final = re.compile(r"[/\\]")
_DOTS: Final = frozenset({".", ".."})
# The path of a target: what is between the braces of a reference may have a question mark.
_PATH: Final = re.compile(r"(?:@\{[^{}]*+\}|[^?])*+")
_HALF: Final = re.compile("[\ud800-\udfff]")
_INDEX: Final = re.compile("0|[1-9][0-9]{0,8}")

Answers = Mapping[str, Answer]


class _Reference(msgspec.Struct, frozen=True):
    """What stands between braces: of whose answer what is wanted."""

    id: str
    place: str
    path: tuple[str, ...]


class Unresolved(ValueError):
    """What is referred to is not in the answer, or may not stand where it is wanted."""

    def __init__(self, detail: str) -> None:
        super().__init__(brief(detail))


def mentioned(part: Part, ids: Iterable[str]) -> set[str]:
    """Return the ids whose answers ``part`` refers to."""
    found: set[str] = set()
    if not _may_refer(part):
        return found
    known = ids if isinstance(ids, dict) else set(ids)
    found |= _named_in(part.target)
    leading = _leading(part.target, known)
    if leading is not None:
        found.add(leading)
    for name, value in part.fields:
        found |= _named_in(value)
        if name.lower() in _TAGGED and value.startswith("$") and value[1:] in known:
            found.add(value[1:])
    return found


def _may_refer(part: Part) -> bool:
    """Whether there is anything to look at in the head of ``part``; of most there is not."""
    if "@{" in part.target or "$" in part.target[:2]:
        return True
    return any("@{" in value or value.startswith("$") for _, value in part.fields)


def _named_in(text: str) -> set[str]:
    references = [_reference(match[2] or "") for match in _BRACES.finditer(text)]
    return {reference.id for reference in references if reference is not None}


def _reference(text: str) -> _Reference | None:
    """Take apart what stands between braces; ``None`` if it is no reference."""
    found = _PLACE.match(text)
    if found is None:
        return None
    path = tuple(text[found.end() + 1 :].split(".")) if found.end() < len(text) else ()
    return _Reference(found[1], found[2], path) if all(path) else None


def _leading(target: str, known: Iterable[str]) -> str | None:
    """Return the id in the first segment of a target, if there is such a part."""
    match = _LEADING.match(target)
    if match is None:
        return None
    name = unquote(match[1])
    return name if name in known else None


def resolve(
    part: Part, answers: Answers, own: Callable[[str], str], bounds: Bounds | None = None
) -> Part:
    """Return ``part`` with the values that it refers to.

    Args:
        part: of a batch.
        answers: of the parts before it, by their ids.
        own: returns the path and query of a URL of ours; raises ``ValueError`` for another's.
        bounds: how large it may become; a short reference can stand for a long value.

    Raises:
        Unresolved: there is no such value, or it may not stand there.
    """
    if not part.depends_on and not _may_refer(part):
        return part
    values = _Values(answers, bounds or Bounds())
    target = _target(part.target, values, own)
    fields = tuple([(name, _field(name, value, values)) for name, value in part.fields])
    body = _body(part, values)
    if target == part.target and fields == part.fields and body is part.body:
        return part
    _check_size(target, fields, body, values.bounds)
    return msgspec.structs.replace(part, target=target, fields=fields, body=body)


def _check_size(target: str, fields: Fields, body: bytes, bounds: Bounds) -> None:
    head = len(target) + sum([len(name) + len(value) for name, value in fields])
    if head > bounds.head or len(body) > bounds.part:
        raise Unresolved("What is referred to makes the part too large.")


class _Number:
    """A number in JSON, with all its digits."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class _Values:
    """What can be referred to. The JSON of an answer is read once, however often it is asked for.

    Args:
        answers: by the ids of their parts.
        bounds: how much may be made of them; a short reference can stand for a long value, often.
    """

    def __init__(self, answers: Answers, bounds: Bounds) -> None:
        self.answers = answers
        self.bounds = bounds
        self._room = bounds.part
        self._read: dict[str, object] = {}

    def find(self, reference: _Reference) -> object:
        """Return a header field, or a value of a body in JSON."""
        name, wanted = reference.id, ".".join(reference.path)
        answer = self.answers.get(name)
        if answer is None:
            raise Unresolved(f"There is no answer to {name!r}.")
        if reference.place == "headers":
            found = field(answer.fields, wanted.lower())
            if found is None:
                raise Unresolved(f"The answer to {name!r} has no header {wanted!r}.")
            return found
        try:
            if name not in self._read:
                self._read[name] = _read(answer.body)
            return _walk(self._read[name], reference.path)
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Unresolved(f"The answer to {name!r} has no {wanted!r}.") from None

    def spend(self, text: AnyStr) -> AnyStr:
        """Return ``text``, which has been made of an answer, while there is room for it."""
        self._room -= len(text)
        if self._room < 0:
            raise Unresolved("What is referred to makes the part too large.")
        return text


def _read(body: bytes) -> object:
    return json.loads(
        body.decode("utf-8"), parse_int=_Number, parse_float=_Number, parse_constant=_no_constant
    )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _walk(value: Any, path: Sequence[str]) -> object:
    for step in path:
        if isinstance(value, list) and not _INDEX.fullmatch(step):
            raise LookupError(step)
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def _target(target: str, values: _Values, own: Callable[[str], str]) -> str:
    location, rest = _relocated(target, values, own)
    cut = cast("re.Match[str]", _PATH.match(rest)).end()  # it matches nothing, too
    path = location + _substituted(rest[:cut], values, _in_path)
    if location and path.startswith(location + "/"):
        path = location.rstrip("/") + path[len(location) :]
    found = path + _substituted(rest[cut:], values, _in_query)
    if found == target:
        return target
    if not _VISIBLE.fullmatch(found) or _dots(path) > _dots(_BRACES.sub("x", rest[:cut])):
        raise Unresolved(f"{found!r} is no target.")
    return found


def _relocated(target: str, values: _Values, own: Callable[[str], str]) -> tuple[str, str]:
    """Return the path of the Location that a target begins with, ``""`` if none, and the rest.

    No reference is looked for in a Location: it is a value itself.
    """
    name = _leading(target, values.answers)
    if name is None:
        return "", target
    location = field(values.answers[name].fields, "location")
    if location is None:
        raise Unresolved(f"The answer to {name!r} has no Location.")
    try:
        path = own(location.partition("#")[0]).partition("?")[0]
    except ValueError as error:
        raise Unresolved(f"The Location of {name!r} leads elsewhere: {error}") from None
    return path, _LEADING.sub("", target, count=1)


def _dots(path: str) -> int:
    """Count the segments that lead elsewhere, as an application sees them: decoded."""
    return sum([segment in _DOTS for segment in _SEPARATOR.split(unquote(path))])


def _in_path(value: object) -> str:
    if value == "":
        raise Unresolved("An empty text may not be put into a path.")
    return _in_query(value)


def _in_query(value: object) -> str:
    return quote(_in_head(value), safe="")


def _in_head(value: object) -> str:
    text = _as_text(value)
    if _UNSAFE.search(text):
        raise Unresolved("A value with control characters can not be put there.")
    return text


def _as_text(value: object) -> str:
    if isinstance(value, _Number):
        return value.text
    if not isinstance(value, str) or _HALF.search(value):
        raise Unresolved("Only a text or a number can be put there.")
    return value


def _field(name: str, value: str, values: _Values) -> str:
    if name.lower() in _TAGGED and value.startswith("$") and value[1:] in values.answers:
        tag = field(values.answers[value[1:]].fields, "etag")
        if tag is None:
            raise Unresolved(f"The answer to {value[1:]!r} has no ETag.")
        return _in_head(tag)
    found = _substituted(value, values, _in_head)
    try:
        found.encode("latin-1")
    except UnicodeEncodeError:
        raise Unresolved("A header can not carry that value.") from None
    return found


def _substituted(text: str, values: _Values, write: Callable[[object], str]) -> str:
    def written(match: re.Match[str]) -> str:
        if match[1]:
            return "@{"
        reference = _reference(match[2])
        return values.spend(write(values.find(reference))) if reference else match[0]

    return _BRACES.sub(written, text) if "@{" in text else text


def _body(part: Part, values: _Values) -> bytes:
    if not part.depends_on or b"@{" not in part.body or not _carries_json(part.fields):
        return part.body
    try:
        msgspec.json.decode(part.body, type=msgspec.Raw)
    except NOT_JSON:
        return part.body  # what is no JSON has no strings
    named = frozenset(part.depends_on)

    def written(match: re.Match[bytes]) -> bytes:
        token = match[0]
        if b"@{" not in token or match[1] is not None:
            return token
        text = msgspec.json.decode(token, type=str)
        whole = _BRACES.fullmatch(text)
        reference = _reference(whole[2] or "") if whole is not None else None
        if reference is not None and reference.id in named:
            return values.spend(_as_json(values.find(reference)))
        found = _in_text(text, named, values)
        return token if found == text else msgspec.json.encode(found)

    return _STRING.sub(written, part.body)


def _in_text(text: str, named: Collection[str], values: _Values) -> str:
    def written(match: re.Match[str]) -> str:
        if match[1]:
            return "@{"
        reference = _reference(match[2])
        if reference is None or reference.id not in named:
            return match[0]
        return values.spend(_as_text(values.find(reference)))

    return _BRACES.sub(written, text)


def _as_json(value: object) -> bytes:
    try:
        return msgspec.json.encode(value, enc_hook=_digits)
    except NOT_JSON:
        raise Unresolved("That value can not be put into JSON.") from None


def _digits(number: _Number) -> msgspec.Raw:
    return msgspec.Raw(number.text.encode("ascii"))


def _carries_json(fields: Fields) -> bool:
    kind = (field(fields, "content-type") or "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")
