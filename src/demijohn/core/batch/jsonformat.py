"""Batches in JSON, as OData 4.01 (Batch Requests, 19) and Microsoft Graph define them.

A body is a JSON value where its media type is JSON, a string where that is text, and else base64.
JSON bodies are handed on byte for byte as they stood there: a number keeps all its digits.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn, cast

import msgspec

from .message import check_fields, read_head
from .multipart import media_type
from .part import Answer, Bounds, Fields, Malformed, Part, field

_METHOD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET: Final = re.compile(r"[\x21-\x7e]+")
_NO_CONTENT: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_JSON: Final = "application/json"
_KEYS: Final = frozenset(
    {"id", "method", "url", "headers", "body", "dependsOn", "depends_on", "atomicityGroup"}
)


class _Bodies(msgspec.Struct):
    """What is taken from the text as it stands there."""

    body: msgspec.Raw = msgspec.Raw(b"")


class _Whole(msgspec.Struct):
    requests: list[_Bodies] = []
    responses: list[_Bodies] = []


def is_json(kind: str) -> bool:
    """Whether a media type is JSON."""
    return kind == _JSON or kind.endswith("+json")


def _load(body: bytes, depth: int) -> tuple[dict[str, Any], _Whole]:
    """Read a JSON object strictly: no name twice, no NaN, no deeper than ``depth``."""
    try:
        found = json.loads(
            body,
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_int=str,
            parse_float=str,
        )
        _check_depth(found, depth)
        whole = msgspec.json.decode(body, type=_Whole) if isinstance(found, dict) else _Whole()
    except Malformed:
        raise
    except (ValueError, RecursionError) as error:
        raise Malformed("malformed-batch", f"The body is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise Malformed("malformed-batch", 'The body must be an object with "requests".')
    return found, whole


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed("malformed-batch", f"An object has the name {twice!r} twice.")
    return found


def _no_constant(name: str) -> NoReturn:
    raise Malformed("malformed-batch", f"{name} is not JSON.")


def _check_depth(value: object, most: int) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > most + 1:
            raise Malformed("malformed-batch", f"The JSON is nested deeper than {most} levels.")
        inner: list[object] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        level = inner


# --- requests -----------------------------------------------------------------------------------


def read_json_parts(body: bytes, bounds: Bounds) -> list[Part]:
    """Read the requests of a batch.

    Raises:
        Malformed: something is wrong with it.
    """
    found, whole = _load(body, bounds.depth)
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
    return [
        _read_part(number, request, bytes(raw.body), bounds)
        for number, (request, raw) in enumerate(zip(requests, whole.requests, strict=True))
    ]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


def _read_part(number: int, request: object, raw: bytes, bounds: Bounds) -> Part:
    if not isinstance(request, dict):
        raise Malformed("malformed-batch", "A request must be an object.", number)
    name = request.get("id")
    try:
        return _part(cast("dict[str, Any]", request), raw, bounds)
    except Malformed as error:
        raise error.at(number, name if isinstance(name, str) else None) from None


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
    if not isinstance(method, str) or not _METHOD.fullmatch(method):
        raise Malformed("malformed-part", f"A method must be a token, not {method!r}.")
    if not isinstance(url, str) or not _TARGET.fullmatch(url):
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
    return Part(method, url, fields, body, name, group, _depends_on(request))


def _id(value: object) -> str:
    # A number has become a string already.
    if not isinstance(value, str) or not value or len(value) > 256 or not value.isprintable():
        raise Malformed("bad-id", "A request needs an id: a string that no other one has.")
    return value


def _fields(given: object, bounds: Bounds) -> Fields:
    if given is None:
        return ()
    if not isinstance(given, dict):
        raise Malformed("malformed-part", "headers must be an object.")
    block = "".join([f"{name}:{_value(name, value)}\r\n" for name, value in given.items()])
    try:
        data = block.encode("latin-1")
    except UnicodeEncodeError:
        raise Malformed("malformed-part", "A header value has a character beyond U+00FF.") from None
    if data.count(b"\n") != len(given) or data.count(b"\r") != len(given):
        raise Malformed("malformed-part", "A header has a line break in it.")
    fields, _ = read_head(data, 0, bounds)
    check_fields(fields)
    # JSON has no lengths: the body is what it is.
    return tuple([pair for pair in fields if pair[0].lower() != "content-length"])


def _value(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise Malformed("malformed-part", f"The header {name!r} must be a string.")
    return value


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
    except UnicodeEncodeError:
        raise Malformed("malformed-part", "A body has half of a surrogate pair.") from None
    except (ValueError, binascii.Error):
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
    return tuple(given)


def write_json_parts(parts: Sequence[Part]) -> bytes:
    """Return the body of a batch.

    Raises:
        ValueError: a part cannot be said in JSON: a field that is there twice, say.
    """
    return msgspec.json.encode({"requests": [_written(part) for part in parts]})


def _written(part: Part) -> dict[str, object]:
    written: dict[str, object] = {"id": part.id, "method": part.method, "url": part.target}
    headers: dict[str, str] = {}
    for name, value in part.fields:
        lower = name.lower()
        if lower in headers:
            headers[lower] += ("; " if lower == "cookie" else ", ") + value
        elif lower != "content-length":
            headers[lower] = value
    if headers:
        written["headers"] = headers
    if part.body:
        written["body"] = _as_json(part.body, headers.get("content-type", ""), standard=False)
        headers.setdefault("content-type", "application/octet-stream")
        written["headers"] = headers
    if part.depends_on:
        written["dependsOn"] = part.depends_on
    if part.group is not None:
        written["atomicityGroup"] = part.group
    return written


def _as_json(body: bytes, content_type: str, *, standard: bool) -> msgspec.Raw | str:
    """Return what stands for a body in JSON."""
    kind, _ = media_type(content_type)
    text: str | None
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if text is not None and is_json(kind):
        try:
            msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError):
            return text  # a view has answered what is no JSON; it must not spoil the others
        return msgspec.Raw(body)
    if text is not None and kind.startswith("text/"):
        return text
    encode = base64.b64encode if standard else base64.urlsafe_b64encode
    return encode(body).decode("ascii")


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
        kind = str(headers.get("content-type", ""))
        written["body"] = _as_json(answer.body, kind, standard=standard)
    return msgspec.json.encode(written)


def read_json_answers(body: bytes) -> list[Answer]:
    """Read the responses of a batch.

    Raises:
        Malformed: it is none.
    """
    found, whole = _load(body, 1000)
    responses = found.get("responses")
    if not isinstance(responses, list):
        raise Malformed("malformed-batch", '"responses" must be a list.')
    return [
        _answer(number, response, bytes(raw.body))
        for number, (response, raw) in enumerate(zip(responses, whole.responses, strict=True))
    ]


def _answer(number: int, response: object, raw: bytes) -> Answer:
    if not isinstance(response, dict):
        raise Malformed("malformed-batch", "A response must be an object.", number)
    name, status = response.get("id"), response.get("status")
    if not isinstance(status, str) or not re.fullmatch("[1-9][0-9][0-9]", status):
        raise Malformed("malformed-batch", f"A status is {status!r}.", number)
    fields: list[tuple[str, str]] = []
    for name, value in (response.get("headers") or {}).items():
        values = value if isinstance(value, list) else [value]
        fields += [(name, str(each)) for each in values]
    kind, _ = media_type(field(tuple(fields), "content-type") or _JSON)
    return Answer(
        int(status), tuple(fields), _content(raw, kind), None if name is None else str(name)
    )


def _content(raw: bytes, kind: str) -> bytes:
    if raw in {b"", b"null"}:
        return b""
    if is_json(kind) or not raw.startswith(b'"'):
        return raw
    text = str(json.loads(raw))
    if kind.startswith("text/"):
        return text.encode("utf-8", "surrogatepass")
    try:
        return from_base64(text)
    except (ValueError, binascii.Error):
        return text.encode("utf-8", "surrogatepass")
