"""Small requests in batches, beside as many that come singly: in process, and how they are read.

What a batch costs over direct calls is reading it, an environment for each part, and writing the
answers. :mod:`.wire` measures what it saves.
"""

from __future__ import annotations

import functools
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from email import policy
from email.parser import BytesParser
from typing import Any, Final

import h11
from flask import Flask

from demijohn.core import batch as core
from demijohn.core.batch import Part

from . import timing
from .echo import (
    COUNT,
    FORMATS,
    JSON,
    MULTIPART,
    batch_of,
    check,
    decoded,
    echo_app,
    encoded,
    parts_of,
)
from .requests import Case, UnexpectedAnswer
from .timing import Times
from .wire import SEQUENCE, SIX, STREAMS, over

COUNTS: Final = (100, 200, 1000)
LINE_ENDS: Final = {"CRLF": b"\r\n", "LF": b"\n"}
_BOUNDS: Final = core.Bounds()


# --- in process ---------------------------------------------------------------------------------


def direct(count: int) -> str:
    """Return the name of the case in which requests come singly."""
    return f"{count} direct calls"


def in_process(count: int, kind: str) -> str:
    """Return the name of the case in which they come as a batch."""
    return f"{batch_of(count, kind)}, in process"


def in_process_cases() -> dict[str, Case]:
    """Return the cases by name; ``wsgi_app`` is called directly."""
    app = echo_app()
    found: dict[str, Case] = {direct(COUNT): functools.partial(_singly, app, parts_of(COUNT))}
    for kind in FORMATS:
        for count in COUNTS:
            found[in_process(count, kind)] = _batch(app, count, kind)
    return found


def _singly(app: Flask, parts: Sequence[Part]) -> None:
    for part in parts:
        fields = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in part.fields}
        content_type = fields.pop("HTTP_CONTENT_TYPE")
        _call(app, part.method, part.target, content_type, part.body, fields)


def _batch(app: Flask, count: int, kind: str) -> Case:
    content_type, body = encoded(parts_of(count), kind)
    fields = {"HTTP_ACCEPT": "*/*", "HTTP_USER_AGENT": "benchmark"}
    call = functools.partial(_call, app, "POST", "/batch", content_type, body, fields)
    headers, answered = call()
    check([answer.status for answer in decoded(headers["Content-Type"], answered)], count)
    return lambda: void(call)


def void(call: Callable[[], object]) -> None:
    """Call it, and drop what it returns."""
    call()


def _call(
    app: Flask, method: str, path: str, content_type: str, body: bytes, fields: Mapping[str, str]
) -> tuple[dict[str, str], bytes]:
    heads: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], *_: object) -> Any:
        heads.extend([status, headers])

    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "REQUEST_URI": path,
        "REMOTE_ADDR": "192.0.2.1",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "CONTENT_TYPE": content_type,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        **fields,
    }
    answer = app.wsgi_app(environ, start_response)
    read = b"".join(answer)
    answer.close()  # type: ignore[attr-defined]
    status, headers = heads
    check([int(status[:3])], 1)
    return dict(headers), read


# --- reading ------------------------------------------------------------------------------------

BOUNDARY: Final = "===============7330845974216740156=="
# As google-api-python-client sends it; with its delimiter a part has some 440 bytes.
_GOOGLE: Final = """\
--{boundary}
Content-Type: application/http
MIME-Version: 1.0
Content-Transfer-Encoding: binary
Content-ID: <b29c5de2-0db4-490b-b421-6a51b598bd22 + {number:03}>

PUT /items/{number:03}?alt=json HTTP/1.1
Content-Type: application/json
MIME-Version: 1.0
accept: application/json
accept-encoding: gzip, deflate
user-agent: (gzip)
Host: www.googleapis.com
content-length: {length}

{body}
"""


def google_like(count: int, end: bytes) -> bytes:
    """Return the body of a batch as Google's client sends it, with ``end`` behind each line."""
    text = ""
    for number in range(count):
        body = json.dumps({"name": f"Article {number:03}", "price": number * 100 + 10099})
        text += _GOOGLE.format(boundary=BOUNDARY, number=number, length=len(body), body=body)
    return f"{text}--{BOUNDARY}--\n".encode().replace(b"\n", end)


def ours_reads(what: str) -> str:
    """Return the name of the case in which we read a batch."""
    return f"read {COUNT} parts, {what}"


def email_reads(end: str) -> str:
    """Return the name of the case in which the standard library reads the outer parts alone."""
    return f"email: {COUNT} outer parts, {end}"


def h11_reads(end: str) -> str:
    """Return the name of the case in which h11 reads the requests in them."""
    return f"h11: {COUNT} requests, {end}"


def reading_cases() -> dict[str, Case]:
    """Return the cases by name."""
    found: dict[str, Case] = {}
    parts: list[Part] = []
    for name, end in LINE_ENDS.items():
        body = google_like(COUNT, end)
        head = b"Content-Type: multipart/mixed; boundary=" + f'"{BOUNDARY}"'.encode()
        messages = _messages(head + end + end + body)
        parts = core.read_multipart_parts(body, BOUNDARY, _BOUNDS)
        read = functools.partial(core.read_multipart_parts, body, BOUNDARY, _BOUNDS)
        found[ours_reads(f"multipart {name}")] = functools.partial(void, read)
        read_outer = functools.partial(_messages, head + end + end + body)
        found[email_reads(name)] = functools.partial(void, read_outer)
        found[h11_reads(name)] = functools.partial(_by_h11, messages)
    as_json = core.write_json_parts(parts)
    read = functools.partial(core.read_json_parts, as_json, _BOUNDS)
    found[ours_reads("JSON")] = functools.partial(void, read)
    return found


def _messages(whole: bytes) -> list[bytes]:
    message = BytesParser(policy=policy.compat32).parsebytes(whole)
    inner: Any = message.get_payload()
    return [each.get_payload().encode() for each in inner]


def _by_h11(messages: Sequence[bytes]) -> None:
    for message in messages:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(message)
        event: Any = None
        while type(event) is not h11.EndOfMessage:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                raise UnexpectedAnswer("h11 found no whole request")


# --- measuring, and bars ------------------------------------------------------------------------


def measure(rounds: int) -> dict[str, Times]:
    """Measure what needs no network; a call is a whole batch, so a few are enough."""
    reading = timing.measure(reading_cases(), rounds=rounds, calls=5, warm_up=2, settle=1)
    in_process = timing.measure(in_process_cases(), rounds=rounds, calls=1, warm_up=2, settle=0)
    return reading | in_process


def ratios(times: Mapping[str, Times]) -> Iterator[tuple[str, float, float | None]]:
    """Yield what batches cost and save, as far as it was measured, and the bar if there is one."""
    medians = {name: each.median for name, each in times.items()}
    if direct(COUNT) in medians:
        yield from _in_process_ratios(medians)
        yield from _reading_ratios(medians)
    for rtt_ms, times_faster in ((0, 4), (20, 50)):
        singly = medians.get(over(SEQUENCE, rtt_ms))
        if singly is not None:
            for kind in FORMATS:
                name = over(batch_of(COUNT, kind), rtt_ms)
                yield (
                    f"{times_faster} x {name} / one by one",
                    times_faster * medians[name] / singly,
                    1,
                )
    yield from _saved(medians)


def _in_process_ratios(medians: Mapping[str, float]) -> Iterator[tuple[str, float, float]]:
    for kind in FORMATS:
        small = medians[in_process(COUNT, kind)]
        yield f"batch of {COUNT}, {kind} / {direct(COUNT)}", small / medians[direct(COUNT)], 1.5
        for count, at_most in ((200, 2.3), (1000, 12)):
            ratio = medians[in_process(count, kind)] / small
            yield f"batch of {count}, {kind} / of {COUNT}", ratio, at_most


def _reading_ratios(medians: Mapping[str, float]) -> Iterator[tuple[str, float, None]]:
    for end in LINE_ENDS:
        others = medians[email_reads(end)] + medians[h11_reads(end)]
        ours = medians[ours_reads(f"{MULTIPART} {end}")]
        yield f"{ours_reads(f'{MULTIPART} {end}')} / email and h11", ours / others, None
    ratio = medians[ours_reads(JSON)] / medians[ours_reads(f"{MULTIPART} CRLF")]
    yield f"{ours_reads(JSON)} / multipart CRLF", ratio, None


def _saved(medians: Mapping[str, float]) -> Iterator[tuple[str, float, None]]:
    for kind in FORMATS:
        ours = batch_of(COUNT, kind)
        for name, median in medians.items():
            way, _, network = name.rpartition(", ")
            if way in {SEQUENCE, SIX, STREAMS}:
                yield f"{name} / {ours}", median / medians[f"{ours}, {network}"], None
