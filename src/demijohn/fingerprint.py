"""Is it the same request? One SHA-256 digest of what a request asks for.

Two requests that a client would call the same must agree: the order of JSON members, white space,
the order of query arguments and form fields, and a browser's random multipart boundary make no
difference. Everything else does: numbers count as they are written (``1`` is not ``1.0``), and
each part is length-prefixed, so that no two different requests run together.

Bodies that are too large for memory are digested while they are moved to a temporary file, from
which the view then reads as if nothing had happened.
"""

from __future__ import annotations

import functools
import hashlib
import io
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import parse_qsl

import msgspec
from flask import Request
from werkzeug.exceptions import ClientDisconnected
from werkzeug.http import parse_options_header
from werkzeug.wsgi import get_input_stream

from .errors import ConfigError, UsageError

if TYPE_CHECKING:
    from werkzeug.datastructures import MultiDict

Fingerprint: TypeAlias = Callable[[Request], str | bytes] | Sequence[str]
"""What makes two requests the same: a function of the request, or JSON Pointers (RFC 6901) to the
members of a JSON body that count."""

IN_MEMORY: Final = 512 * 1024
"""Bodies of more bytes than this, or of unknown length, go through a temporary file."""
_CHUNK: Final = 64 * 1024

_FORMS: Final = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})


def _number_as_written(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


_json_decoder = msgspec.json.Decoder(float_hook=_number_as_written)
_json_encoder = msgspec.json.Encoder(order="deterministic")


def canonical_json(body: bytes) -> bytes | None:
    """Return ``body`` with sorted members and without white space, numbers as written.

    Returns:
        ``None`` when it is not JSON (RFC 8259).
    """
    try:
        return _json_encoder.encode(_json_decoder.decode(body))
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError):
        return None


def _packed(parts: Iterable[bytes]) -> bytes:
    """Join ``parts`` so that no other parts give the same bytes."""
    return b"".join([b"%d:%b" % (len(part), part) for part in parts])


def of_request(
    request: Request, *, how: Fingerprint | None = None, key_field: str | None = None
) -> bytes:
    """Return the 32 byte fingerprint of ``request``.

    Args:
        request: the current request; its body stays readable.
        how: what counts of the body, instead of all of it.
        key_field: a form field and query argument that carries the key, and does not count.

    Raises:
        ClientDisconnected: the connection broke off before the body was there. What there is of
            it must not run, nor be taken for the request that the client will send again.
    """
    _demand_the_whole_body(request.environ)
    query = request.environ.get("QUERY_STRING")
    pairs = _sorted_query(query, key_field) if query else ()
    path = request.path
    kind, content = _content(request, how, key_field)
    head = f"{request.method} {len(path)}:{path}{len(pairs)}:{kind}\n"
    digest = hashlib.sha256(head.encode("utf-8", "surrogatepass"))
    if pairs:
        digest.update(_packed(pairs))
    # The content is last, so that it needs no length.
    digest.update(content)
    return digest.digest()


def _demand_the_whole_body(environ: dict[str, Any]) -> None:
    """Have werkzeug raise where the body ends too early.

    Some servers say that they end the stream themselves, and end it without a word when the
    connection breaks off (gunicorn does). Werkzeug counts only where they do not say so.
    """
    if environ.get("CONTENT_LENGTH") and "HTTP_TRANSFER_ENCODING" not in environ:
        environ.pop("wsgi.input_terminated", None)


def _content(request: Request, how: Fingerprint | None, key_field: str | None) -> tuple[str, bytes]:
    """Return the kind of the content, and the bytes that stand for it."""
    if how is None:
        return _body(request, key_field)
    if callable(how):
        chosen = how(request)
        if not isinstance(chosen, str | bytes):
            raise UsageError(f"{how!r} returned {chosen!r}; a fingerprint is a string or bytes")
        return "own", chosen.encode() if isinstance(chosen, str) else chosen
    return "pointers", _packed(_pointed_at(request, how))


def _sorted_query(query: str, key_field: str | None) -> list[bytes]:
    pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    return _sorted_pairs((name, value) for name, value in pairs if name != key_field)


def _sorted_pairs(pairs: Iterable[tuple[str, str]]) -> list[bytes]:
    # Sorted by name only: the order of the values of one name may mean something.
    ordered = sorted(pairs, key=lambda pair: pair[0])
    return [text.encode("utf-8", "surrogateescape") for pair in ordered for text in pair]


@functools.lru_cache(maxsize=256)
def _media_type(content_type: str) -> tuple[str, str]:
    """Return the type without parameters, and which kind of body that is."""
    name = parse_options_header(content_type)[0].lower()
    if name in _FORMS:
        return name, "form"
    return name, "json" if name == "application/json" or name.endswith("+json") else "raw"


def _body(request: Request, key_field: str | None) -> tuple[str, bytes]:
    name, kind = _media_type(request.environ.get("CONTENT_TYPE", ""))
    if kind == "form":
        return f"form {name}", _packed(_form_parts(request, key_field))
    if not _fits_in_memory(request) and not _was_read(request):
        return f"digest {name}", _digest_through_file(request)
    body = _read(request)
    canonical = canonical_json(body) if kind == "json" else None
    if canonical is None:
        return f"raw {name}", body
    return f"json {name}", canonical


def _was_read(request: Request) -> bool:
    """Whether somebody before us, such as a hook, has read the body into memory."""
    return getattr(request, "_cached_data", None) is not None


def _read(request: Request) -> bytes:
    """Read the body into memory, and leave it to be read again in every way."""
    length = request.environ.get("CONTENT_LENGTH", "")
    body = request.get_data(cache=True)
    if length.isdecimal() and len(body) < int(length):
        raise ClientDisconnected  # it was read before we were asked, and nobody has counted
    _put_back(request, io.BytesIO(body), len(body))
    return body


def _put_back(request: Request, body: IO[bytes], size: int) -> None:
    request.environ["wsgi.input"] = body
    # werkzeug reads the length again from here when the view asks for the stream.
    request.environ["CONTENT_LENGTH"] = str(size)
    request.__dict__.pop("stream", None)


def form_of(request: Request) -> MultiDict[str, str]:
    """Return the form, and leave the bytes of a small one to be read again.

    Who checks a signature over the body needs them, and parsing alone uses them up.
    """
    if "form" in request.__dict__ or not (_fits_in_memory(request) or _was_read(request)):
        return request.form
    _read(request)
    form = request.form
    request.__dict__.pop("stream", None)  # what is left of it behind the parser
    return form


def _form_parts(request: Request, key_field: str | None) -> Iterator[bytes]:
    fields = form_of(request).items(multi=True)
    yield from _sorted_pairs((name, value) for name, value in fields if name != key_field)
    files = sorted(request.files.items(multi=True), key=lambda item: item[0])
    for name, file in files:
        yield from (b"file", name.encode(), (file.filename or "").encode())
        yield (file.mimetype or "").encode()
        yield _digest_file(file.stream)


def _digest_file(stream: IO[bytes]) -> bytes:
    """Digest what an upload holds, and put its reader back to the start."""
    stream.seek(0)
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    stream.seek(0)
    return digest.digest()


def _fits_in_memory(request: Request) -> bool:
    length = request.environ.get("CONTENT_LENGTH", "")
    if length.isdecimal():
        return int(length) <= IN_MEMORY
    return not request.environ.get("wsgi.input_terminated", False)


def _digest_through_file(request: Request) -> bytes:
    """Move the body to a temporary file while digesting it; the view reads it from there.

    The limit on the length (``MAX_CONTENT_LENGTH``) holds here as it would for the view.
    """
    source = get_input_stream(request.environ, max_content_length=request.max_content_length)
    spool: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
    # The view, or the response that it streams, may read as long as there is a request.
    weakref.finalize(request, spool.close)
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        spool.write(chunk)
        size += len(chunk)
    spool.seek(0)
    _put_back(request, spool, size)
    return digest.digest()


# --- JSON Pointers (RFC 6901) -------------------------------------------------------------------


def parse_pointers(pointers: Sequence[str]) -> tuple[str, ...]:
    """Check JSON Pointers when they are configured.

    Raises:
        ConfigError: one of them is not a pointer.
    """
    for pointer in pointers:
        if not isinstance(pointer, str) or (pointer and not pointer.startswith("/")):
            raise ConfigError(
                f"fingerprint: {pointer!r} is not a JSON Pointer; one looks like '/amount'"
            )
    return tuple(pointers)


def _pointed_at(request: Request, pointers: Sequence[str]) -> Iterator[bytes]:
    body = _read(request)
    try:
        document = _json_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        yield body  # not JSON: then all of it counts, so that it matches nothing but itself
        return
    for pointer in pointers:
        found = list(_look_up(document, pointer))
        yield pointer.encode()
        yield _json_encoder.encode(found)


def _look_up(document: Any, pointer: str) -> Iterator[Any]:
    """Yield what ``pointer`` names, or nothing: an absent member differs from a null one."""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict) and name in document:
            document = document[name]
        elif isinstance(document, list) and name.isdigit() and int(name) < len(document):
            document = document[int(name)]
        else:
            return
    yield document
