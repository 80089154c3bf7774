"""Batches in JSON, as OData 4.01 (Batch Requests, 19) and Microsoft Graph define them.

A body is a JSON value where its media type is JSON, a string where that is text, and else base64.
JSON bodies are handed on byte for byte as they stood there: a number keeps all its digits.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeGuard

import msgspec

from .message import check_fields, check_names, check_number, check_size
from .multipart import media_type
from .part import NOT_JSON, Answer, Bounds, Fields, Malformed, Part, field

_METHOD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET: Final = re.compile(r"[\x21-\x7e]+")
_NO_CONTENT: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_JSON: Final = "application/json"
_KEYS: Final = frozenset(
    {"id", "method", "url", "headers", "body", "dependsOn", "depends_on", "atomicityGroup"}
)


# It comes back as a Content-ID where the answer is multipart/mixed.
_ID: Final = re.compile(r"[\x21-\x7e\xa1-\xff](?:[\x20-\x7e\xa0-\xff]{,254}[\x21-\x7e\xa1-\xff])?")
_LINE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# How deep the body of a part is within a batch.
_ABOVE_BODY: Final = 3
# A union would be slower, and every value of a batch is asked.
_NESTING: Final = (dict, list)


class _Number(str):
    """A whole number, as it stands there: ids may be numbers, and of any length."""

    __slots__ = ()


class _Body(msgspec.Struct):
    """What is taken from the text as it stands there."""

    body: msgspec.Raw = msgspec.Raw(b"")


class _Requests(msgspec.Struct):
    requests: list[_Body]


class _Response(msgspec.Struct):
    """A response, of a server that may be more generous than this one."""

    id: str | int | None = None
    status: str | int = ""
    headers: dict[str, str | int | float | bool | list[str] | None] | None = None
    body: msgspec.Raw = msgspec.Raw(b"")


class _Responses(msgspec.Struct):
    responses: list[_Response]


def is_json(kind: str) -> bool:
    """Whether a media type is JSON."""
    return kind == _JSON or kind.endswith("+json")


def _load(body: bytes, depth: int) -> object:
    """Read JSON strictly: UTF-8, no name twice, no NaN, no deeper than ``depth``."""
    try:
        # Decoded here, because json.loads would guess at UTF-16 and let surrogates through.
        found: object = _STRICT.decode(body.decode("utf-8"))
    except Malformed:
        raise
    except NOT_JSON as error:
        raise Malformed("malformed-batch", f"The body is not JSON: {error}.") from None
    _check_depth(found, depth)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Malformed("malformed-batch", f"An object has the name {name!r} twice.")
        found[name] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise Malformed("malformed-batch", f"{name} is not JSON.")


# Made once: json.loads would make one for each body.
_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_once, parse_constant=_no_constant, parse_int=_Number
)


def _check_depth(value: object, most: int) -> None:
    level = [value] if isinstance(value, _NESTING) else []
    for _ in range(most):
        if not level:
            return
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, _NESTING)
        ]
    if level:
        raise Malformed("malformed-batch", f"The JSON is nested deeper than {most} levels.")


# --- requests -----------------------------------------------------------------------------------


def read_json_parts(body: bytes, bounds: Bounds) -> list[Part]:
    """Read the requests of a batch.

    Raises:
        Malformed: something is wrong with it.
    """
    found = _load(body, bounds.depth)
    if not isinstance(found, dict):
        raise Malformed("malformed-batch", 'The body must be an object with "requests".')
    unknown = found.keys() - {"requests"}
    if unknown:
        raise Malformed("malformed-batch", f"The batch has unknown members: {_listed(unknown)}.")
    requests = found.get("requests")
    if not isinstance(requests, list):
        raise Malformed("malformed-batch", '"requests" must be a list.')
    if not requests:
        raise Malformed("malformed-batch", "The batch has no parts.")
    if len(requests) > bounds.parts:
        raise Malformed("too-many-parts", f"A batch may have {bounds.parts} parts.")
    for number, request in enumerate(requests):
        if not isinstance(request, dict):
            raise Malformed("malformed-batch", "A request must be an object.", number)
    return [
        _read_part(number, request, raw, bounds)
        for number, (request, raw) in enumerate(zip(requests, _bodies(body), strict=True))
    ]


def _bodies(body: bytes) -> list[bytes]:
    try:
        whole = msgspec.json.decode(body, type=_Requests)
    except NOT_JSON as error:  # half of a surrogate pair
        raise Malformed("malformed-batch", f"The body is not JSON: {error}.") from None
    return [bytes(each.body) for each in whole.requests]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


def _read_part(number: int, request: dict[str, Any], raw: bytes, bounds: Bounds) -> Part:
    name = request.get("id")
    try:
        return _part(request, raw, bounds)
    except Malformed as error:
        raise error.at(number, str(name) if isinstance(name, str) else None) from None


def _part(request: dict[str, Any], raw: bytes, bounds: Bounds) -> Part:
    name = _id(request.get("id"))
    unknown = request.keys() - _KEYS
    if unknown:
        raise Malformed("malformed-batch", f"A request has unknown members: {_listed(unknown)}.")
    if len(raw) > bounds.part:
        raise Malformed(
            "part-too-large", f"A part has {len(raw)} bytes of content; {bounds.part} are allowed."
        )
    method, url = request.get("method"), request.get("url")
    if not _is_text(method) or not _METHOD.fullmatch(method):
        raise Malformed("malformed-part", f"A method must be a token, not {method!r}.")
    if not _is_text(url) or not _TARGET.fullmatch(url):
        raise Malformed("malformed-part", "A url must be of visible ASCII characters.")
    if len(url) > bounds.head:
        raise Malformed("part-header-too-large", f"A url is longer than {bounds.head} characters.")
    method = method.upper()
    fields = _fields(request.get("headers"), bounds)
    body = b""
    if raw not in {b"", b"null"}:
        if method in _NO_CONTENT:
            raise Malformed("malformed-batch", f"A {method} request has a body.")
        fields, body = _body(raw, fields)
    group = request.get("atomicityGroup")
    if group is not None and (not isinstance(group, str) or not group):
        raise Malformed("bad-id", "An atomicityGroup must be a string that is not empty.")
    group = None if group is None else str(group)
    return Part(method, url, fields, body, name, group, _depends_on(request))


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and not isinstance(value, _Number)


def _id(value: object) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise Malformed(
            "bad-id",
            "A request needs an id: a string of 1 to 256 printable characters up to U+00FF, "
            "without spaces around it.",
        )
    return str(value)


def _fields(given: object, bounds: Bounds) -> Fields:
    if given is None:
        return ()
    if not isinstance(given, dict):
        raise Malformed("malformed-part", "headers must be an object.")
    check_names(given)
    if len({name.lower() for name in given}) != len(given):
        raise Malformed("malformed-part", "A header is there twice, in different cases.")
    fields = tuple([(name, _value(name, value)) for name, value in given.items()])
    # As it would be in a message: with a colon and a line end.
    check_size(sum([len(name) + len(given[name]) + 3 for name in given]), bounds)
    check_number(len(fields), bounds)
    if check_fields(fields) is None:
        return fields
    # JSON has no lengths: the body is what it is.
    return tuple([pair for pair in fields if pair[0].lower() != "content-length"])


def _value(name: str, value: object) -> str:
    if not _is_text(value):
        raise Malformed("malformed-part", f"The header {name!r} must be a string.")
    if not _LINE.fullmatch(value):
        raise Malformed(
            "malformed-part",
            f"The header {name!r} has a line break in it, or another control character, or one "
            "beyond U+00FF.",
        )
    return value.strip(" \t")


def _body(raw: bytes, fields: Fields) -> tuple[Fields, bytes]:
    given = field(fields, "content-type")
    if given is None:
        return (*fields, ("Content-Type", _JSON)), raw
    kind, _ = media_type(given)
    if is_json(kind):
        return fields, raw
    if not raw.startswith(b'"'):
        raise Malformed("malformed-part", f"A body of {kind} must be a string.")
    text = json.loads(raw)
    try:
        if kind.startswith("text/"):
            return fields, text.encode("utf-8")
        return fields, from_base64(text)
    except ValueError:
        raise Malformed("malformed-part", f"A body of {kind} must be base64url.") from None


def from_base64(text: str) -> bytes:
    """Decode either alphabet, with padding or without.

    Raises:
        ValueError: it is neither.
    """
    standard = text.replace("-", "+").replace("_", "/").rstrip("=")
    return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)


def _depends_on(request: Mapping[str, Any]) -> tuple[str, ...]:
    # Microsoft's Python client says it in snake case.
    given = request.get("dependsOn")
    if given is None:
        given = request.get("depends_on")
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(each, str) and each for each in given):
        raise Malformed("bad-dependency", "dependsOn must be a list of ids.")
    return tuple(map(str, given))


def write_json_parts(parts: Sequence[Part]) -> bytes:
    """Return the body of a batch.

    Names of header fields become lower case, and a field that is there twice one with commas.

    Raises:
        ValueError: a part cannot be said in JSON. It has no id, a field twice that may be there
            once, a body that its method or :func:`read_json_parts` would not have, or ``null``.
    """
    return msgspec.json.encode({"requests": [_written(part) for part in parts]})


def _written(part: Part) -> dict[str, object]:
    if part.id is None:
        raise ValueError("a request in JSON needs an id")
    check_fields(part.fields)
    written: dict[str, object] = {"id": part.id, "method": part.method, "url": part.target}
    headers = _joined(part.fields)
    if part.body:
        if part.method.upper() in _NO_CONTENT:
            raise ValueError(f"a {part.method} request in JSON has no body")
        kind, _ = media_type(headers.setdefault("content-type", "application/octet-stream"))
        said = _said(part.body) if is_json(kind) else None
        written["body"] = said or _as_json(part.body, kind, standard=False)
    if headers:
        written["headers"] = headers
    if part.depends_on:
        written["dependsOn"] = part.depends_on
    if part.group is not None:
        written["atomicityGroup"] = part.group
    return written


def _joined(fields: Fields) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in fields:
        lower = name.lower()
        if lower in headers:
            headers[lower] += ("; " if lower == "cookie" else ", ") + value
        elif lower != "content-length":
            headers[lower] = value
    return headers


def _said(body: bytes) -> msgspec.Raw:
    if _load(body, Bounds().depth - _ABOVE_BODY) is None:
        raise ValueError("a body in JSON cannot be null: that is none")
    try:
        return msgspec.json.decode(body, type=msgspec.Raw)
    except NOT_JSON as error:  # half of a surrogate pair
        raise ValueError(f"a body is no JSON: {error}") from None


def _as_json(body: bytes, kind: str, *, standard: bool) -> msgspec.Raw | str:
    """Return what stands for a body in JSON."""
    text = _text(body)
    if text is not None and is_json(kind):
        try:
            # As it stands there: a number may be too large for any type.
            return msgspec.json.decode(body, type=msgspec.Raw)
        except NOT_JSON:
            return text  # a view has answered what is no JSON; it must not spoil the others
    if text is not None and kind.startswith("text/"):
        return text
    encode = base64.b64encode if standard else base64.urlsafe_b64encode
    return encode(body).decode("ascii")


def _text(body: bytes) -> str | None:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        return None


# --- responses ----------------------------------------------------------------------------------


def write_json_answer(answer: Answer, *, standard: bool, minimal: bool) -> bytes:
    """Return one item of ``responses``.

    Args:
        answer: with the id of its request.
        standard: whether base64 is that of RFC 4648, section 4, as Microsoft's client reads it;
            else section 5, as OData has it.
        minimal: whether the content of what succeeded is left out (``Prefer: return=minimal``).
    """
    headers: dict[str, object] = {}
    cookies: list[str] = []
    for name, value in answer.fields:
        lower = name.lower()
        if lower == "set-cookie":
            cookies.append(value)  # a comma within a date: they cannot be joined
        elif lower in headers:
            headers[lower] = f"{headers[lower]}, {value}"
        elif lower != "content-length":
            headers[lower] = value
    if cookies:
        headers["set-cookie"] = cookies
    written: dict[str, object] = {"id": answer.id, "status": answer.status, "headers": headers}
    if answer.body and not (minimal and 200 <= answer.status < 300):
        kind, _ = media_type(str(headers.setdefault("content-type", "application/octet-stream")))
        written["body"] = _as_json(answer.body, kind, standard=standard)
    return msgspec.json.encode(written)


def read_json_answers(body: bytes) -> list[Answer]:
    """Read the responses of a batch.

    Raises:
        Malformed: it is none.
    """
    try:
        found = msgspec.json.decode(body.decode("utf-8"), type=_Responses)
    except NOT_JSON as error:
        raise Malformed("malformed-batch", f"The body is no answer to a batch: {error}.") from None
    return [_answer(number, response) for number, response in enumerate(found.responses)]


def _answer(number: int, response: _Response) -> Answer:
    status = str(response.status)
    if not re.fullmatch("[1-9][0-9][0-9]", status):
        raise Malformed("malformed-batch", f"A status is {status!r}.", number)
    fields: list[tuple[str, str]] = []
    for name, value in (response.headers or {}).items():
        values = value if isinstance(value, list) else [value]
        fields += [(name, str(each)) for each in values]
    if not all(_LINE.fullmatch(name) and _LINE.fullmatch(value) for name, value in fields):
        raise Malformed("malformed-batch", "A header has what cannot be sent in one.", number)
    given = field(tuple(fields), "content-type")
    return Answer(
        int(status),
        tuple(fields),
        _content(bytes(response.body), given),
        None if response.id is None else str(response.id),
    )


def _content(raw: bytes, content_type: str | None) -> bytes:
    kind, _ = media_type(content_type or _JSON)
    if not raw or (raw == b"null" and content_type is None):
        return b""
    if is_json(kind) or not raw.startswith(b'"'):
        return raw
    text = msgspec.json.decode(raw, type=str)
    if kind.startswith("text/"):
        return text.encode("utf-8")
    try:
        return from_base64(text)
    except ValueError:
        return text.encode("utf-8")
