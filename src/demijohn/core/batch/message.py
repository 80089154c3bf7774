"""HTTP messages within a batch (RFC 9112, and what clients really send).

Lines end with CRLF or LF. Names, values and lengths are taken strictly, because what one reader
overlooks and another does not is how requests are smuggled: no folded lines, no space before a
colon, no control characters, no Transfer-Encoding, one Content-Length that is true.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, cast

from .part import Answer, Bounds, Fields, Malformed, Part

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# The value is what stands between the colon and the end of the line; it is stripped afterwards, so
# that no two parts of the expression can match the same space.
_VALUE: Final = rb"[\t\x20-\x7e\x80-\xff]*+"
_LINE_END: Final = rb"(?:\r?\n|\Z)"
# Possessive: an expression that could go back would keep a note of every field, 150 times its size.
_HEAD: Final = re.compile(rb"(?:" + _TOKEN + rb":" + _VALUE + _LINE_END + rb")*+")
_EACH: Final = re.compile((rb"(" + _TOKEN + rb"):(" + _VALUE + rb")" + _LINE_END).decode("ascii"))
_NAME: Final = re.compile(_TOKEN.decode("ascii"))
_NO_PHRASE: Final = re.compile(r"[^\t\x20-\x7e\xa0-\xff]+")
_END: Final = re.compile(rb"\r?\n")
_REQUEST: Final = re.compile(
    rb"(" + _TOKEN + rb") ([\x21-\x7e]+)(?: HTTP/1\.[01])?[ \t]*(?:\r?\n|\Z)"
)
_STATUS: Final = re.compile(rb"HTTP/[0-9](?:\.[0-9])? ([1-9][0-9]{2})(?: ([^\r\n]*))?(?:\r?\n|\Z)")
_DIGITS: Final = re.compile(r"[0-9]{1,18}")
_LINE_BREAKS: Final = b"\r\n"
_NO_BODY: Final = frozenset({204, 304})
# What decides how a message is read, or where it goes, may stand there once.
_SINGLE: Final = frozenset({"content-length", "content-type", "host"})

REASONS: Final = {
    100: "Continue", 101: "Switching Protocols", 102: "Processing", 103: "Early Hints",
    200: "OK", 201: "Created", 202: "Accepted", 203: "Non-Authoritative Information",
    204: "No Content", 205: "Reset Content", 206: "Partial Content", 207: "Multi-Status",
    208: "Already Reported", 226: "IM Used", 300: "Multiple Choices", 301: "Moved Permanently",
    302: "Found", 303: "See Other", 304: "Not Modified", 305: "Use Proxy",
    307: "Temporary Redirect", 308: "Permanent Redirect", 400: "Bad Request", 401: "Unauthorized",
    402: "Payment Required", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    406: "Not Acceptable", 407: "Proxy Authentication Required", 408: "Request Timeout",
    409: "Conflict", 410: "Gone", 411: "Length Required", 412: "Precondition Failed",
    413: "Content Too Large", 414: "URI Too Long", 415: "Unsupported Media Type",
    416: "Range Not Satisfiable", 417: "Expectation Failed", 418: "I'm a teapot",
    421: "Misdirected Request", 422: "Unprocessable Content", 423: "Locked",
    424: "Failed Dependency", 425: "Too Early", 426: "Upgrade Required",
    428: "Precondition Required", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
    451: "Unavailable For Legal Reasons", 500: "Internal Server Error", 501: "Not Implemented",
    502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
    505: "HTTP Version Not Supported", 507: "Insufficient Storage", 508: "Loop Detected",
    511: "Network Authentication Required",
}  # fmt: skip


def read_head(data: bytes, start: int, bounds: Bounds, *, above: int = 0) -> tuple[Fields, int]:
    """Read header fields up to the empty line that ends them, or the end of ``data``.

    Args:
        data: has them.
        start: where they begin.
        bounds: of the head.
        above: how long the line above them is, which belongs to the head.

    Returns:
        The fields, and where the body begins; ``-1`` where no empty line came.

    Raises:
        Malformed: it is no head, or one that is too large.
    """
    end = cast("re.Match[bytes]", _HEAD.match(data, start)).end()  # it matches nothing, too
    check_size(end - start + above, bounds)
    blank = _END.match(data, end)
    if blank is None and end < len(data):
        raise Malformed("malformed-part", f"This is no header field: {_shown(data, end)}.")
    found = _EACH.findall(data[start:end].decode("latin-1"))
    check_number(len(found), bounds)
    fields = tuple([(name, value.strip(" \t")) for name, value in found])
    return fields, blank.end() if blank is not None else -1


def check_size(size: int, bounds: Bounds) -> None:
    """Refuse a head of so many bytes.

    Raises:
        Malformed: it is too large.
    """
    if size > bounds.head:
        raise Malformed(
            "part-header-too-large",
            f"The head of a part has {size} bytes; {bounds.head} are allowed.",
        )


def check_number(number: int, bounds: Bounds) -> None:
    """Refuse a head of so many fields.

    Raises:
        Malformed: they are too many.
    """
    if number > bounds.fields:
        raise Malformed(
            "part-header-too-large",
            f"A part has {number} header fields; {bounds.fields} are allowed.",
        )


def _shown(data: bytes, at: int) -> str:
    line = data[at : at + 60].split(b"\n", 1)[0]
    return ascii(line.decode("latin-1"))


def read_request(data: bytes, start: int, bounds: Bounds) -> Part:
    """Read the request that begins at ``start``; what stands behind it is its body.

    Its last line break belongs to the delimiter that follows, unless it ends the head.

    Raises:
        Malformed: it is none.
    """
    while (blank := _END.match(data, start)) is not None:
        start = blank.end()
    if start == len(data):
        raise Malformed("malformed-batch", "A part has no request in it.")
    line = _REQUEST.match(data, start)
    if line is None:
        raise Malformed("malformed-part", f"This is no request line: {_shown(data, start)}.")
    fields, at = read_head(data, line.end(), bounds, above=line.end() - start)
    if at < 0:
        raise Malformed("malformed-batch", "The head of a request has no end: an empty line.")
    return Part(
        line[1].decode("ascii"),
        line[2].decode("ascii"),
        fields,
        _body(data, at, check_fields(fields)),
    )


def read_response(data: bytes, start: int, bounds: Bounds) -> Answer:
    """Read the response that begins at ``start``; see :func:`read_request`.

    Raises:
        Malformed: it is none.
    """
    while (blank := _END.match(data, start)) is not None:
        start = blank.end()
    line = _STATUS.match(data, start)
    if line is None:
        raise Malformed("malformed-part", f"This is no status line: {_shown(data, start)}.")
    fields, at = read_head(data, line.end(), bounds)
    status = int(line[1])
    has_body = at >= 0 and status not in _NO_BODY
    body = _content(data, at, check_fields(fields)) if has_body else b""
    return Answer(status, fields, body, reason=(line[2] or b"").decode("latin-1").strip())


def _content(data: bytes, at: int, length: int | None) -> bytes:
    # An answer to HEAD has the length of what it leaves out.
    if length is not None and len(data) - at < length and not data[at:].strip(_LINE_BREAKS):
        return b""
    return _body(data, at, length)


def check_fields(fields: Fields) -> int | None:
    """Return the Content-Length, ``None`` if there is none.

    Raises:
        Malformed: the fields contradict each other, or say what has no meaning in a batch.
    """
    length: int | None = None
    seen: set[str] = set()
    for name, value in fields:
        lower = name.lower()
        if lower in _SINGLE:
            if lower in seen:
                kind = "malformed-batch" if lower == "content-length" else "malformed-part"
                raise Malformed(kind, f"A part has more than one {name}.")
            seen.add(lower)
            if lower == "content-length":
                if not _DIGITS.fullmatch(value):
                    raise Malformed("malformed-batch", f"A Content-Length is {value!r}.")
                length = int(value)
        elif lower == "transfer-encoding":
            raise Malformed("malformed-batch", "A part has a Transfer-Encoding; send it whole.")
    return length


def check_names(names: Iterable[str]) -> None:
    """Refuse what is no name of a field; with a colon in it, it would be the name of another.

    Raises:
        Malformed: one is none.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise Malformed("malformed-part", f"This is no name of a header field: {name!r}.")


def _body(data: bytes, at: int, length: int | None) -> bytes:
    body = data[at:]
    if length is None:
        if not body.strip(_LINE_BREAKS):
            return b""
        if body.endswith(b"\r\n"):
            return body[:-2]
        return body[:-1] if body.endswith(b"\n") else body
    if len(body) < length:
        raise Malformed(
            "malformed-batch",
            f"A part has Content-Length: {length}, and {len(body)} bytes of content.",
        )
    if body[length:].strip(_LINE_BREAKS):
        raise Malformed(
            "malformed-batch", f"A part has more content than its Content-Length of {length}."
        )
    return body[:length]


# --- writing ------------------------------------------------------------------------------------


def write_request(part: Part) -> bytes:
    """Return ``part`` as an HTTP/1.1 request with an exact Content-Length.

    Raises:
        ValueError: a method, target or field cannot be sent.
    """
    method, target = part.method.encode("ascii"), part.target.encode("ascii")
    head = b"%b %b HTTP/1.1\r\n" % (method, target)
    if not _REQUEST.fullmatch(head):
        raise ValueError(f"no request line: {part.method!r} {part.target!r}")
    fields = [pair for pair in part.fields if pair[0].lower() != "content-length"]
    check_fields(tuple(fields))
    if part.body:
        fields.append(("Content-Length", str(len(part.body))))
    return head + _write_fields(fields) + b"\r\n" + part.body


def write_response(answer: Answer) -> bytes:
    """Return ``answer`` as an HTTP/1.1 response with an exact Content-Length.

    The phrase is never empty: Google's client splits the line at its second space. Of a response
    to HEAD, or a 304, the Content-Length would speak of a body that is not there.

    Raises:
        ValueError: a field cannot be sent.
    """
    reason = _NO_PHRASE.sub(" ", answer.reason).strip()
    reason = reason or REASONS.get(answer.status, "Unknown")
    head = f"HTTP/1.1 {answer.status} {reason}\r\n".encode("latin-1")
    fields = [pair for pair in answer.fields if pair[0].lower() != "content-length"]
    if answer.status in _NO_BODY:
        return head + _write_fields(fields) + b"\r\n"
    fields.append(("Content-Length", str(len(answer.body))))
    return head + _write_fields(fields) + b"\r\n" + answer.body


def check_sendable(fields: Fields) -> None:
    """Refuse what :func:`write_response` could not write; next to nothing where all is usual.

    Raises:
        ValueError: a field cannot be sent.
    """
    values = "".join([value for _, value in fields])
    check_names([name for name, _ in fields])
    if not (values.isascii() and values.isprintable()):
        _write_fields(list(fields))


def _write_fields(fields: list[tuple[str, str]]) -> bytes:
    block = "".join([f"{name}: {value}\r\n" for name, value in fields]).encode("latin-1")
    check_names(name for name, _ in fields)
    if not _HEAD.fullmatch(block) or block.count(b"\n") != len(fields):
        raise ValueError("a header field has characters that cannot be sent")
    return block
