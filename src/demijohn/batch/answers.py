"""The response to a batch: its parts in the format that the client wants, whole or as a stream."""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec
from flask import Response
from werkzeug.http import dump_options_header

from ..core.batch import (
    Answer,
    Unit,
    closing,
    make_boundary,
    occurs,
    response_id,
    section,
    write_json_answer,
    write_response,
)
from .negotiation import JSON, MULTIPART, Wishes
from .running import FAILED
from .settings import Settings

Units = Iterable[tuple[Unit, Sequence[Answer]]]

_WORTH_COMPRESSING: Final = 1024
_GZIP: Final = 31


def whole(units: Units, wishes: Wishes, settings: Settings) -> Response:
    """Return the response when everything has been carried out."""
    if wishes.answer == JSON:
        body = b"".join(_json(units, wishes, settings))
        return Response(body, settings.success_status, content_type=JSON)
    found = [
        (unit, [write_response(answer) for answer in answers], answers) for unit, answers in units
    ]
    boundary = _boundary(message for _, messages, _ in found for message in messages)
    sections = [
        each
        for unit, messages, answers in found
        for each in _sections(unit, messages, answers, boundary, wishes)
    ]
    body = b"".join([*sections, closing(boundary)])
    return Response(body, settings.success_status, content_type=_content_type(boundary))


def streamed(units: Units, wishes: Wishes, settings: Settings) -> Response:
    """Return a response that is made while parts are carried out."""
    if wishes.answer == JSON:
        body = _json(units, wishes, settings)
        return Response(body, settings.success_status, content_type=JSON)
    boundary = make_boundary(secrets.token_bytes(22))

    def make() -> Iterator[bytes]:
        for unit, answers in units:
            messages = [write_response(answer) for answer in answers]
            yield from _sections(unit, messages, answers, boundary, wishes)
        yield closing(boundary)

    return Response(make(), settings.success_status, content_type=_content_type(boundary))


def _content_type(boundary: str) -> str:
    return dump_options_header(MULTIPART, {"boundary": boundary})


def _boundary(messages: Iterable[bytes]) -> str:
    found = list(messages)
    while True:
        boundary = make_boundary(secrets.token_bytes(22))
        if not occurs(boundary, found):
            return boundary


def _sections(
    unit: Unit,
    messages: Sequence[bytes],
    answers: Sequence[Answer],
    boundary: str,
    wishes: Wishes,
) -> Iterator[bytes]:
    ids = [None if answer.id is None else response_id(answer.id) for answer in answers]
    # In multipart a group is a change set, which came nested, unless the whole batch is one.
    if unit.group is None or wishes.format == JSON or wishes.atomic:
        for name, message in zip(ids, messages, strict=True):
            yield section(name, message, boundary)
        return
    failed = [index for index, answer in enumerate(answers) if answer.status >= FAILED]
    if failed:
        # Of a change set that fails OData wants one answer: that of the part that failed it.
        own = [index for index in failed if answers[index].status != 424] or failed
        yield section(ids[own[0]], messages[own[0]], boundary)
        return
    inner = _boundary(messages)
    yield b"--%b\r\nContent-Type: %b\r\n\r\n" % (boundary.encode(), _content_type(inner).encode())
    for name, message in zip(ids, messages, strict=True):
        yield section(name, message, inner)
    yield closing(inner)


def _json(units: Units, wishes: Wishes, settings: Settings) -> Iterator[bytes]:
    standard = settings.json_binary == "base64"
    before = b'{"responses":['
    for unit, answers in units:
        for index, answer in zip(unit.parts, answers, strict=True):
            named = answer
            if answer.id is None:
                named = msgspec.structs.replace(answer, id=str(index))
            yield before + write_json_answer(named, standard=standard, minimal=wishes.minimal)
            before = b","
    yield b"]}"


def compressed(response: Response) -> None:
    """Compress ``response`` as a whole: parts that are alike cost next to nothing."""
    response.vary.add("Accept-Encoding")
    if response.is_streamed:
        response.response = _deflated(response.iter_encoded(), response.response)
        response.headers["Content-Encoding"] = "gzip"
        return
    body = response.get_data()
    if len(body) < _WORTH_COMPRESSING:
        return
    coder = zlib.compressobj(wbits=_GZIP)
    response.set_data(coder.compress(body) + coder.flush())
    response.headers["Content-Encoding"] = "gzip"


def _deflated(body: Iterator[bytes], source: object) -> Iterator[bytes]:
    coder = zlib.compressobj(wbits=_GZIP)
    try:
        for chunk in body:
            # What was carried out is to be seen now, not when there is enough of it.
            yield coder.compress(chunk) + coder.flush(zlib.Z_SYNC_FLUSH)
        yield coder.flush()
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()
