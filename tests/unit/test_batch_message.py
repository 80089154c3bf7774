"""HTTP messages within a batch: strict where readers could differ, as generous as clients need."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demijohn.core.batch import (
    Answer,
    Bounds,
    Malformed,
    Part,
    field,
    read_response,
    write_request,
    write_response,
)
from demijohn.core.batch.message import REASONS, read_request

BOUNDS = Bounds()


def request(data: bytes, bounds: Bounds = BOUNDS) -> Part:
    return read_request(data, 0, bounds)


def kind_of(data: bytes, bounds: Bounds = BOUNDS) -> str:
    with pytest.raises(Malformed) as caught:
        request(data, bounds)
    return caught.value.kind


# --- requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", [b"GET /x HTTP/1.1", b"GET /x HTTP/1.0", b"GET /x", b"GET /x ", b"GET /x HTTP/1.1 \t"]
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("before", [b"", b"\n", b"\r\n\n"])
def test_request_line_may_lack_its_version(line: bytes, end: bytes, before: bytes) -> None:
    assert request(before + line + end + end) == Part("GET", "/x")


@pytest.mark.parametrize(
    "data",
    [
        b"GET\n\n",
        b"GET  /x\n\n",
        b"GET\t/x\n\n",
        b" GET /x\n\n",
        b"GET /a b HTTP/1.1\n\n",
        b"GET /x HTTP/2.0\n\n",
        b"GET /x HTTP/1.2\n\n",
        b"GET /x http/1.1\n\n",
        b"G@T /x\n\n",
        b"GET /x\x00\n\n",
        b"GET /x\x7f\n\n",
        b"GET /\xc3\xa9\n\n",
        b"GET /x\rX: y\n\n",
        b"GET /x HTTP/1.1\r\r\n\r\n",
        b"GET /x\n a: folded\n\n",
        b"GET /x\na: b\n folded\n\n",
        b"GET /x\na : b\n\n",
        b"GET /x\n: b\n\n",
        b"GET /x\nab\n\n",
        b"GET /x\na: b\rc: d\n\n",
        b"GET /x\na: b\x00\n\n",
        b"GET /x\na: b\x1b\n\n",
        b"GET /x\na\xe9: b\n\n",
        b"GET /x\nHost: a\nhost: b\n\n",
        b"GET /x\nContent-Type: a\ncontent-type: a\n\n",
    ],
)
def test_request_that_readers_could_differ_on_is_refused(data: bytes) -> None:
    assert kind_of(data) == "malformed-part"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\n",
        b"GET /x",
        b"GET /x\n",
        b"GET /x\na: b",
        b"GET /x\na: b\n",
        b"POST /x\nTransfer-Encoding: chunked\n\n0\n\n",
        b"POST /x\nTransfer-Encoding: identity\n\n",
        b"POST /x\nContent-Length: 3\nContent-Length: 3\n\nabc",
        b"POST /x\nContent-Length: 3, 3\n\nabc",
        b"POST /x\nContent-Length: +3\n\nabc",
        b"POST /x\nContent-Length: 0x3\n\nabc",
        b"POST /x\nContent-Length: -1\n\nabc",
        b"POST /x\nContent-Length: \xb3\n\nabc",
        b"POST /x\nContent-Length:\n\nabc",
        b"POST /x\nContent-Length: 1111111111111111111\n\nabc",
        b"POST /x\nContent-Length: 4\n\nabc",
        b"POST /x\nContent-Length: 2\n\nabc",
        b"POST /x\nContent-Length: 2\n\nab \n",
    ],
)
def test_length_that_is_not_true_is_refused(data: bytes) -> None:
    assert kind_of(data) == "malformed-batch"


@pytest.mark.parametrize(
    ("rest", "body"),
    [
        (b"\n", b""),
        (b"\n\n", b""),
        (b"\n\r\n\n", b""),
        (b"\nabc", b"abc"),
        (b"\nabc\n", b"abc"),
        (b"\nabc\r\n", b"abc"),
        (b"\nabc\n\n", b"abc\n"),
        (b"\nabc\r", b"abc\r"),
        (b"Content-Length: 3\n\nabc\r\n\n", b"abc"),
        (b"Content-Length: 4\n\nabc\n", b"abc\n"),
        (b"Content-Length: 2\n\n\n\n\n", b"\n\n"),
        (b"Content-Length: 0\n\n\n", b""),
        (b"Content-Length: 0003 \n\nabc\n", b"abc"),
    ],
)
def test_body_ends_where_its_length_or_its_last_line_break_says(rest: bytes, body: bytes) -> None:
    assert request(b"POST /x\n" + rest).body == body


def test_fields_keep_their_names_and_lose_their_padding() -> None:
    assert request(b"GET /x\nX-A: \t b c\t \nx-a:\nY:\xe9\n\n").fields == (
        ("X-A", "b c"), ("x-a", ""), ("Y", "\xe9"),
    )  # fmt: skip


def test_request_line_is_bounded() -> None:
    line = b"GET /123 HTTP/1.1\r\n"
    assert request(line + b"\r\n", Bounds(head=len(line))).target == "/123"
    assert kind_of(line + b"\r\n", Bounds(head=len(line) - 1)) == "part-header-too-large"


def test_head_is_bounded() -> None:
    fields = b"A: 1234567890\r\nB: 1234567890\r\n"
    data = b"GET /\r\n" + fields + b"\r\n"
    assert len(request(data, Bounds(head=len(data) - 2)).fields) == 2
    assert kind_of(data, Bounds(head=len(data) - 3)) == "part-header-too-large"
    assert kind_of(data, Bounds(fields=1)) == "part-header-too-large"


# --- responses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nabc\r\n", Answer(200, (), b"abc", reason="OK")),
        (b"\nHTTP/1.1 404 Not Found\n\n", Answer(404, reason="Not Found")),
        (b"HTTP/2 200\n\nabc", Answer(200, (), b"abc")),
        (b"HTTP/1.1 200 \n\n", Answer(200)),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n\r\n",
            Answer(200, (("Content-Length", "9"),), reason="OK"),
        ),
        (
            b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc\n",
            Answer(200, (("Content-Length", "3"),), b"abc", reason="OK"),
        ),
        (b"HTTP/1.1 204 No Content", Answer(204, reason="No Content")),
        (
            b"HTTP/1.1 304 Not Modified\nContent-Length: 9\n\n",
            Answer(304, (("Content-Length", "9"),), reason="Not Modified"),
        ),
    ],
)
def test_response_is_read(data: bytes, answer: Answer) -> None:
    assert read_response(data, 0, BOUNDS) == answer


@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 20 OK\n\n", b"HTTP/1.1 099 X\n\n", b"200 OK\n\n", b"HTTP/1.1 200OK\n"]
)
def test_response_without_a_status_line_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        read_response(data, 0, BOUNDS)
    assert caught.value.kind == "malformed-part"


def test_response_that_lacks_some_of_its_content_is_refused() -> None:
    with pytest.raises(Malformed) as caught:
        read_response(b"HTTP/1.1 200 OK\nContent-Length: 9\n\nabc\n", 0, BOUNDS)
    assert caught.value.kind == "malformed-batch"


def test_response_says_its_own_length_and_never_an_empty_phrase() -> None:
    assert write_response(Answer(599, (("content-length", "7"),), b"abc")) == (
        b"HTTP/1.1 599 Unknown\r\nContent-Length: 3\r\n\r\nabc"
    )
    assert all(REASONS.values())


@pytest.mark.parametrize("status", [204, 304])
def test_response_that_has_no_body_is_written_without_one(status: int) -> None:
    written = write_response(Answer(status, (("Content-Length", "3"), ("A", "b")), b"abc"))
    assert written == f"HTTP/1.1 {status} {REASONS[status]}\r\nA: b\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("reason", "written"),
    [
        ("OK\r\nX: y", b"OK X: y"),
        ("OK\n\nbody", b"OK body"),
        ("\r\n", b"Created"),
        (" ", b"Created"),
        ("Tr\xe8s \u20ac bien", b"Tr\xe8s   bien"),
    ],
)
def test_phrase_cannot_be_another_line(reason: str, written: bytes) -> None:
    expected = b"HTTP/1.1 201 " + written + b"\r\nContent-Length: 0\r\n\r\n"
    assert write_response(Answer(201, reason=reason)) == expected


# --- writing ------------------------------------------------------------------------------------

BAD_FIELDS = [
    ("a", "b\r\nc: d"),
    ("a", "b\nc: d"),
    ("a", "b\rc"),
    ("a", "b\r"),
    ("a", "b\0"),
    ("a", "\u20ac"),
    ("a: b", "c"),
    ("a:b", "c"),
    ("a\r\nb", "c"),
    ("a b", "c"),
    ("a ", "c"),
    ("", "c"),
    ("\xe9", "c"),
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS)
def test_field_that_would_be_another_is_not_written(name: str, value: str) -> None:
    with pytest.raises(ValueError):
        write_request(Part("GET", "/", ((name, value),)))
    with pytest.raises(ValueError):
        write_response(Answer(200, ((name, value),)))


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/x\r\nA: b"),
        ("GET", "/x HTTP/1.1\r\nA: b\r\n\r\nGET /y"),
        ("GET", "/a b"),
        ("GET", "/x "),
        ("GET", ""),
        ("GET", "/\xe9"),
        ("GET /y", "/x"),
        ("", "/x"),
        ("G\xe9T", "/x"),
    ],
)
def test_request_line_that_would_be_another_is_not_written(method: str, target: str) -> None:
    with pytest.raises(ValueError):
        write_request(Part(method, target))


@pytest.mark.parametrize(
    "fields", [(("Host", "a"), ("host", "b")), (("Transfer-Encoding", "chunked"),)]
)
def test_request_that_no_reader_would_take_is_not_written(
    fields: tuple[tuple[str, str], ...],
) -> None:
    with pytest.raises(ValueError):
        write_request(Part("POST", "/", fields))


def test_request_says_its_own_length() -> None:
    part = Part("POST", "/x", (("content-length", "9"), ("A", "b")), b"abc\n")
    assert write_request(part) == b"POST /x HTTP/1.1\r\nA: b\r\nContent-Length: 4\r\n\r\nabc\n"


# --- beside h11 ---------------------------------------------------------------------------------


def by_h11(data: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]:
    h11 = pytest.importorskip("h11")
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    connection.receive_data(b"")
    head = connection.next_event()
    assert isinstance(head, h11.Request)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    return head.method, head.target, list(head.headers), body


# Why h11 may refuse what is taken here; each is mended before it is asked again.
def with_version(line: bytes) -> bytes:
    """Add what documents leave out, and take away white space at the end of the line."""
    line = line.rstrip(b" \t")
    return line if re.search(rb" HTTP/1\.[01]\Z", line) else line + b" HTTP/1.1"


def as_h11_wants_it(data: bytes, part: Part) -> bytes:
    """Give h11 the same request: with a version, a Host, and a length in place of a delimiter."""
    data = data.lstrip(b"\r\n")
    line, _, rest = data.partition(b"\n")
    written = [with_version(line.rstrip(b"\r"))]
    if field(part.fields, "host") is None:
        written.append(b"Host: h")
    if field(part.fields, "content-length") is None:
        written.append(b"Content-Length: %d" % len(part.body))
    return b"\r\n".join(written) + b"\r\n" + rest


TOKENS = st.sampled_from(
    [
        b"GET", b"POST", b" ", b"  ", b"/x", b"/a?b=%20", b"http://h/y", b" HTTP/1.1", b" HTTP/1.0",
        b"\n", b"\r\n", b"\r", b"A: b\r\n", b"a:b\n", b"Host: h\r\n", b"Content-Length: 3\n",
        b"Content-Length: 0\n", b"content-length:03\r\n", b"Transfer-Encoding: chunked\n", b"abc",
        b":", b"\t", b"\0", b"\xe9", b"A : b\n", b" fold\n", b"B: c \xe9 d\t\n", b"\x7f", b"\"(),/",
        b"Content-Length: 3, 3\n",
    ]
)  # fmt: skip
REQUESTS = st.one_of(
    st.lists(TOKENS, max_size=14).map(b"".join),
    st.tuples(
        st.sampled_from([b"GET /x HTTP/1.1\r\n", b"POST /y\n", b"PUT http://h/?q HTTP/1.0\n"]),
        st.lists(TOKENS, max_size=6).map(b"".join),
        st.sampled_from([b"\r\n", b"\n\n", b"\nabc\n"]),
    ).map(b"".join),
)


@given(REQUESTS)
def test_what_is_taken_h11_reads_the_same(data: bytes) -> None:
    try:
        part = request(data)
    except Malformed:
        return
    method, target, headers, body = by_h11(as_h11_wants_it(data, part))
    assert (method.decode(), target.decode()) == (part.method, part.target)
    added = {b"host", b"content-length"}
    ours = [(name.lower().encode(), value.encode("latin-1")) for name, value in part.fields]
    theirs = [pair for pair in headers if pair[0] not in added]
    assert theirs == [pair for pair in ours if pair[0] not in added]
    assert body == part.body


@given(st.binary(max_size=60))
def test_whatever_is_in_a_part_is_read_or_refused(data: bytes) -> None:
    for reader in (read_request, read_response):
        with contextlib.suppress(Malformed):
            reader(data, 0, BOUNDS)
