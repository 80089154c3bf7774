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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import msgspec

from .part import Answer, Fields, Part, field

# An id has no braces where it is referred to; the shortest one that is followed by a place.
_REFERENCE: Final = re.compile(r"@(@\{)|@\{([^{}]+?)\.(body|headers)((?:\.[^.{}]+)*)\}")
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')
_LEADING: Final = re.compile(r"/?\$([^/?]+)")
_TAGGED: Final = frozenset({"if-match", "if-none-match"})
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f]")

Answers = Mapping[str, Answer]


class Unresolved(ValueError):
    """What is referred to is not in the answer, or may not stand where it is wanted."""


def mentioned(part: Part, ids: Iterable[str]) -> set[str]:
    """Return the ids whose answers ``part`` refers to."""
    known = ids if isinstance(ids, dict) else set(ids)
    found = {match[2] for match in _references(part.target)}
    leading = _leading(part.target, known)
    if leading is not None:
        found.add(leading)
    for name, value in part.fields:
        found.update(match[2] for match in _references(value))
        if name.lower() in _TAGGED and value.startswith("$") and value[1:] in known:
            found.add(value[1:])
    return found


def _references(text: str) -> list[re.Match[str]]:
    if "@{" not in text:
        return []
    return [match for match in _REFERENCE.finditer(text) if match[2]]


def _leading(target: str, known: Iterable[str]) -> str | None:
    """Return the id in the first segment of a target, if there is such a part."""
    match = _LEADING.match(target)
    if match is None:
        return None
    name = unquote(match[1])
    return name if name in known else None


def resolve(part: Part, answers: Answers, own: Callable[[str], str]) -> Part:
    """Return ``part`` with the values that it refers to.

    Args:
        part: of a batch.
        answers: of the parts before it, by their ids.
        own: returns the path and query of a URL of ours; raises ``ValueError`` for another's.

    Raises:
        Unresolved: there is no such value, or it may not stand there.
    """
    target = _target(part.target, answers, own)
    fields = tuple([(name, _field(name, value, answers)) for name, value in part.fields])
    body = _body(part, answers)
    if target == part.target and fields == part.fields and body is part.body:
        return part
    return msgspec.structs.replace(part, target=target, fields=fields, body=body)


def _target(target: str, answers: Answers, own: Callable[[str], str]) -> str:
    name = _leading(target, answers)
    if name is not None:
        found = _LEADING.match(target)
        rest = target[found.end() :] if found else ""
        location = field(answers[name].fields, "location")
        if location is None:
            raise Unresolved(f"The answer to {name!r} has no Location.")
        try:
            path = urlsplit(own(location)).path
        except ValueError as error:
            raise Unresolved(f"The Location of {name!r} leads elsewhere: {error}") from None
        target = path.rstrip("/") + rest if rest.startswith("/") else path + rest
    return _substituted(target, answers, _in_target)


def _in_target(value: object) -> str:
    text = _as_text(value)
    if text in {"", ".", ".."}:
        raise Unresolved(f"{text!r} may not be put into a url.")
    return quote(text, safe="")


def _as_text(value: object) -> str:
    if isinstance(value, str):
        text = value
    elif isinstance(value, bool) or value is None or isinstance(value, dict | list):
        raise Unresolved("Only a string or a number can be put there.")
    else:
        text = json.dumps(value)
    if _UNSAFE.search(text):
        raise Unresolved("A value with control characters can not be put there.")
    return text


def _field(name: str, value: str, answers: Answers) -> str:
    if name.lower() in _TAGGED and value.startswith("$") and value[1:] in answers:
        tag = field(answers[value[1:]].fields, "etag")
        if tag is None:
            raise Unresolved(f"The answer to {value[1:]!r} has no ETag.")
        return tag
    found = _substituted(value, answers, _as_text)
    try:
        found.encode("latin-1")
    except UnicodeEncodeError:
        raise Unresolved("A header can not carry that value.") from None
    return found


def _substituted(text: str, answers: Answers, write: Callable[[object], str]) -> str:
    if "@{" not in text:
        return text
    return _REFERENCE.sub(lambda match: "@{" if match[1] else write(_value(match, answers)), text)


def _value(match: re.Match[str], answers: Answers) -> object:
    name, place, path = match[2], match[3], match[4].split(".")[1:]
    answer = answers.get(name)
    if answer is None:
        raise Unresolved(f"There is no answer to {name!r}.")
    if place == "headers":
        found = field(answer.fields, ".".join(path).lower())
        if found is None:
            raise Unresolved(f"The answer to {name!r} has no header {'.'.join(path)!r}.")
        return found
    try:
        return _walk(json.loads(answer.body), path)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise Unresolved(f"The answer to {name!r} has no {'.'.join(path)!r}.") from None


def _walk(value: Any, path: Sequence[str]) -> Any:
    for step in path:
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def _body(part: Part, answers: Answers) -> bytes:
    if not part.depends_on or b"@{" not in part.body or not _carries_json(part.fields):
        return part.body
    named = {name: answers[name] for name in part.depends_on if name in answers}
    body = part.body

    def written(match: re.Match[bytes]) -> bytes:
        token = match[0]
        if b"@" not in token or body[match.end() :].lstrip(b" \t\r\n")[:1] == b":":
            return token  # a name, not a value
        text = json.loads(token)
        whole = _REFERENCE.fullmatch(text)
        if whole is not None and whole[2] in named:
            return json.dumps(_value(whole, named)).encode()
        found = _REFERENCE.sub(lambda one: _in_text(one, named), text)
        return token if found == text else json.dumps(found).encode()

    return _STRING.sub(written, body)


def _in_text(match: re.Match[str], named: Answers) -> str:
    if match[1]:
        return "@{"
    if match[2] not in named:
        return match[0]
    return _as_text(_value(match, named))


def _carries_json(fields: Fields) -> bool:
    kind = (field(fields, "content-type") or "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")
