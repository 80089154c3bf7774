"""Batches as multipart/mixed: what clients send, what is refused, and what must come back."""

from __future__ import annotations

import contextlib
import email
import email.policy
import tracemalloc
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from demijohn.core.batch import (
    Answer,
    Bounds,
    Malformed,
    Part,
    boundary_of,
    closing,
    make_boundary,
    media_type,
    occurs,
    read_multipart_answers,
    read_multipart_parts,
    response_id,
    section,
    without_response,
    write_multipart,
    write_request,
    write_response,
)
from demijohn.core.batch.multipart import sections

GOOGLE = "===============8727737459799949750=="
BOUNDS = Bounds()

# google-api-python-client 2.202: LF throughout, a GET ends in two line breaks.
GOOGLE_API = b"""\
--===============8727737459799949750==
Content-Type: application/http
MIME-Version: 1.0
Content-Transfer-Encoding: binary
Content-ID: <62951420-7dd3-4e0a-9a4f-1e1d3f1a7a4b + a%20b>

PUT /cats/p?alt=json HTTP/1.1
Host: api.example
accept: application/json
accept-encoding: gzip, deflate
content-type: application/json
content-length: 8

{"v": 1}
--===============8727737459799949750==
Content-Type: application/http
MIME-Version: 1.0
Content-Transfer-Encoding: binary
Content-ID: <62951420-7dd3-4e0a-9a4f-1e1d3f1a7a4b + 2>

GET /cats/q?alt=json HTTP/1.1
Host: api.example
content-type: application/json


--===============8727737459799949750==--
"""
# google-cloud-storage 3.17: absolute targets, no Content-ID, no Content-Length, no Host.
GOOGLE_STORAGE = b"""\
--===============1==
Content-Type: application/http
MIME-Version: 1.0

PATCH http://api.example/storage/v1/b/x HTTP/1.1
Content-Type: application/json

{"cors": []}
--===============1==
Content-Type: application/http
MIME-Version: 1.0

DELETE http://api.example/storage/v1/b/y HTTP/1.1

--===============1==--
"""
# The documents of Google and OASIS leave HTTP/1.1 out, and have ids with a colon and a host.
DOCUMENTS = b"""\
--batch_foobarbaz
Content-Type: application/http
Content-ID: <item1:12930812@barnyard.example.com>

GET /farm/v1/animals/pony

--batch_foobarbaz
Content-Type: application/http; msgtype=request
Content-ID: <item2:12930812@barnyard.example.com>

PUT /farm/v1/animals/sheep
Content-Type: application/json
Content-Length: 16
If-Match: "etag/sheep"

{"legs": "four"}
--batch_foobarbaz--"""
# pyodata: a blank line first, no space behind colons, nested change sets, relative targets.
PYODATA = b"""\

--batch_r1
Content-Type: application/http
Content-Transfer-Encoding:binary

GET Employees('1') HTTP/1.1
Accept: application/json


--batch_r1
Content-Type: multipart/mixed; boundary=changeset_1

--changeset_1
Content-Type: application/http
Content-Transfer-Encoding:binary

POST Employees HTTP/1.1
Content-Type: application/json

{"Name": "A"}
--changeset_1
Content-Type: application/http
Content-Transfer-Encoding:binary

DELETE Employees('2') HTTP/1.1


--changeset_1--

--batch_r1--
"""


def read(body: bytes, boundary: str = "b", bounds: Bounds = BOUNDS) -> list[Part]:
    return read_multipart_parts(body, boundary, bounds)


def one(inner: str, head: str = "Content-Type: application/http\n") -> bytes:
    return f"--b\n{head}\n{inner}\n--b--\n".encode("latin-1")


def refusal(body: bytes, bounds: Bounds = BOUNDS, boundary: str = "b") -> tuple[str, int | None]:
    with pytest.raises(Malformed) as caught:
        read(body, boundary, bounds)
    return caught.value.kind, caught.value.part


def crlf(body: bytes) -> bytes:
    return body.replace(b"\n", b"\r\n")


# --- what real clients send ---------------------------------------------------------------------


@pytest.mark.parametrize("body", [GOOGLE_API, crlf(GOOGLE_API)], ids=["LF", "CRLF"])
def test_batch_of_google_api_python_client_is_read(body: bytes) -> None:
    put, get = read(body, GOOGLE)
    assert put == Part(
        "PUT",
        "/cats/p?alt=json",
        (
            ("Host", "api.example"),
            ("accept", "application/json"),
            ("accept-encoding", "gzip, deflate"),
            ("content-type", "application/json"),
            ("content-length", "8"),
        ),
        b'{"v": 1}',
        "<62951420-7dd3-4e0a-9a4f-1e1d3f1a7a4b + a%20b>",
    )
    assert (get.method, get.target, get.body) == ("GET", "/cats/q?alt=json", b"")
    assert get.id == "<62951420-7dd3-4e0a-9a4f-1e1d3f1a7a4b + 2>"


def test_batch_of_google_cloud_storage_is_read() -> None:
    assert read(GOOGLE_STORAGE, "===============1==") == [
        Part(
            "PATCH",
            "http://api.example/storage/v1/b/x",
            (("Content-Type", "application/json"),),
            b'{"cors": []}',
        ),
        Part("DELETE", "http://api.example/storage/v1/b/y"),
    ]


def test_batch_of_the_documents_is_read_without_a_version() -> None:
    get, put = read(DOCUMENTS, "batch_foobarbaz")
    assert (get.method, get.target, get.fields, get.body) == (
        "GET", "/farm/v1/animals/pony", (), b"",
    )  # fmt: skip
    assert get.id == "<item1:12930812@barnyard.example.com>"
    assert (put.method, put.body) == ("PUT", b'{"legs": "four"}')


def test_change_sets_of_pyodata_become_groups() -> None:
    found = [(p.method, p.target, p.body, p.group) for p in read(PYODATA, "batch_r1")]
    assert found == [
        ("GET", "Employees('1')", b"", None),
        ("POST", "Employees", b'{"Name": "A"}', "changeset 1"),
        ("DELETE", "Employees('2')", b"", "changeset 1"),
    ]


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (f'multipart/mixed; boundary="{GOOGLE}"', GOOGLE),
        (f"multipart/mixed; boundary={GOOGLE}", GOOGLE),
        ("multipart/mixed; charset=utf-8; boundary=b", "b"),
        ("multipart/mixed;boundary=b;type=x", "b"),
        ("Multipart/Mixed ; BOUNDARY=b ", "b"),
        ('multipart/mixed; a="x;boundary=c"; boundary=b', "b"),
        ('multipart/mixed; boundary="a\\b"', "ab"),
        ("multipart/mixed;; boundary=b; boundary=c", "b"),
        ('multipart/mixed; boundary="a b"', "a b"),
        ("multipart/mixed; boundary=" + "x" * 70, "x" * 70),
    ],
)
def test_boundary_is_found_wherever_it_stands(content_type: str, boundary: str) -> None:
    assert media_type(content_type)[0] == "multipart/mixed"
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/mixed",
        "multipart/mixed; boundary=",
        'multipart/mixed; boundary=""',
        'multipart/mixed; boundary="b',
        'multipart/mixed; boundary="b "',
        "multipart/mixed; boundary = b",
        "multipart/mixed; boundary=a*b",
        "multipart/mixed; boundary=\xe9",
        'multipart/mixed; boundary="a\r\nb"',
        "multipart/mixed; boundary=" + "x" * 71,
        'multipart/mixed; "x"; boundary=b',
    ],
)
def test_bad_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(Malformed) as caught:
        boundary_of(content_type)
    assert caught.value.kind == "bad-boundary"


@pytest.mark.parametrize("padding", ["", " ", "\t \t", "\r", "  \r"])
def test_delimiters_may_have_white_space_behind_them(padding: str) -> None:
    body = f"text before\n--b{padding}\nContent-Type: application/http\n\nGET /x\n\n--b--{padding}"
    assert read(body.encode()) == [Part("GET", "/x")]
    assert read(body.encode() + b"\ntext behind\n--c\n") == [Part("GET", "/x")]


@pytest.mark.parametrize(
    "line",
    [b"--bb", b" --b", b"x--b", b"--b-", b"--b--x", b"--B", b"--b x", b"--b\r\r", b"--b\r--b"],
)
def test_boundary_elsewhere_in_a_line_is_content(line: bytes) -> None:
    body = b"--b\nContent-Type: application/http\n\nPOST /x\n\n1\n" + line + b"\n2\n--b--"
    assert read(body) == [Part("POST", "/x", (), b"1\n" + line + b"\n2")]


@pytest.mark.parametrize("encoding", ["7bit", "8bit", "binary", "BINARY"])
def test_encodings_that_change_nothing_are_taken(encoding: str) -> None:
    head = f"Content-Type: application/http\nContent-Transfer-Encoding: {encoding}\n"
    assert read(one("GET /x\n", head)) == [Part("GET", "/x")]


# --- what is refused ----------------------------------------------------------------------------

HTTP = "Content-Type: application/http\n"
GET = b"--b\nContent-Type: application/http\n\nGET /x\n\n"


@pytest.mark.parametrize(
    ("body", "kind", "part"),
    [
        pytest.param(b"", "malformed-batch", None, id="nothing"),
        pytest.param(b"--b--\n", "malformed-batch", None, id="no parts"),
        pytest.param(b"--c\n\n--c--", "malformed-batch", None, id="another boundary"),
        pytest.param(GET, "malformed-batch", None, id="not closed"),
        pytest.param(GET + b"--b\n", "malformed-batch", None, id="not closed behind a part"),
        pytest.param(GET + b"--b--\n" + GET, "malformed-batch", None, id="part behind the end"),
        pytest.param(GET + b"--b--\n--b--\n", "malformed-batch", None, id="two ends"),
        pytest.param(GET + b"--b\n--b--\n", "bad-part-type", 1, id="part without lines"),
        pytest.param(one("GET /x\n", ""), "bad-part-type", 0, id="no type"),
        pytest.param(one("GET /x\n", "Content-Type: text/plain\n"), "bad-part-type", 0, id="type"),
        pytest.param(one("GET /x\n", HTTP + HTTP), "malformed-batch", 0, id="two types"),
        pytest.param(
            one("GET /x\n", HTTP + "Content-Transfer-Encoding: base64\n"),
            "malformed-batch", 0, id="encoding",
        ),
        pytest.param(
            one("GET /x\n", HTTP + "Content-Transfer-Encoding: binary\n" * 2),
            "malformed-batch", 0, id="two encodings",
        ),
        pytest.param(
            one("GET /x\n", HTTP + "Transfer-Encoding: chunked\n"),
            "malformed-batch", 0, id="transfer encoding of a part",
        ),
        pytest.param(
            one("GET /x\n", HTTP + "Content-ID: 1\ncontent-id: 1\n"),
            "malformed-batch", 0, id="two ids",
        ),
        pytest.param(
            b"--b\nContent-Type: application/http\n--b--\n", "malformed-batch", 0, id="no head end"
        ),
        pytest.param(one("\n\n"), "malformed-batch", 0, id="no request"),
        pytest.param(one("GET /x HTTP/1.1\nA: b"), "malformed-batch", 0, id="no inner head end"),
        pytest.param(one("GET /x\n", HTTP + " folded: x\n"), "malformed-part", 0, id="folded"),
        pytest.param(one("GET /x\n", HTTP + "a b: x\n"), "malformed-part", 0, id="name"),
        pytest.param(GET + one("GET\n"), "malformed-part", 1, id="second part"),
        pytest.param(
            one("--c--\n", "Content-Type: multipart/mixed; boundary=c\n"),
            "malformed-batch", 0, id="empty change set",
        ),
        pytest.param(
            one("x", "Content-Type: multipart/mixed\n"), "bad-boundary", 0, id="change set"
        ),
        pytest.param(
            one("x", "Content-Type: multipart/mixed; boundary=\xe9\n"),
            "bad-boundary", 0, id="boundary beyond ASCII",
        ),
        pytest.param(
            b"--b\nContent-Type: multipart/mixed; boundary=c\n--b--\n",
            "malformed-batch", 0, id="change set without content",
        ),
        pytest.param(
            one(
                "--c\nContent-Type: multipart/mixed; boundary=d\n\n--d--\n--c--\n",
                "Content-Type: multipart/mixed; boundary=c\n",
            ),
            "bad-part-type", 0, id="change set in a change set",
        ),
        pytest.param(
            one(
                "--c\n" + HTTP + "\nGET /x\n\n--c\n" + HTTP + "\nGET\n\n--c--\n",
                "Content-Type: multipart/mixed; boundary=c\n",
            ),
            "malformed-part", 1, id="second of a change set",
        ),
    ],
)  # fmt: skip
def test_bad_batch_is_refused_with_its_kind_and_part(
    body: bytes, kind: str, part: int | None
) -> None:
    assert refusal(body) == (kind, part)
    assert refusal(crlf(body)) == (kind, part)


def test_number_of_parts_is_bounded() -> None:
    bounds = Bounds(parts=3)
    assert len(read(GET * 3 + b"--b--", bounds=bounds)) == 3
    assert refusal(GET * 4 + b"--b--", bounds) == ("too-many-parts", None)


def test_parts_of_change_sets_are_counted() -> None:
    def nested(count: int) -> bytes:
        inner = GET.replace(b"--b", b"--c") * count + b"--c--\n"
        return b"--b\nContent-Type: multipart/mixed; boundary=c\n\n" + inner

    bounds = Bounds(parts=3)
    assert len(read(nested(2) + GET + b"--b--", bounds=bounds)) == 3
    assert refusal(nested(2) + nested(2) + b"--b--", bounds) == ("too-many-parts", None)
    assert refusal(nested(4) + b"--b--", bounds) == ("too-many-parts", 3)


def test_size_of_a_part_is_bounded() -> None:
    part = b"Content-Type: application/http\n\nPOST /x\n\n12345\n"
    body = b"--b\n" + part + b"--b--"
    assert read(body, bounds=Bounds(part=len(part)))[0].body == b"12345"
    assert refusal(body, Bounds(part=len(part) - 1)) == ("part-too-large", 0)


def test_head_of_a_part_is_bounded() -> None:
    head = "Content-Type: application/http\nX: 12345\n"
    body = one("GET /x\n", head)
    assert read(body, bounds=Bounds(head=len(head)))[0].target == "/x"
    assert refusal(body, Bounds(head=len(head) - 1)) == ("part-header-too-large", 0)


def test_fields_of_a_part_are_bounded() -> None:
    body = one("GET /x\n", HTTP + "X: 1\nY: 2\n")
    assert read(body, bounds=Bounds(fields=3))[0].target == "/x"
    assert refusal(body, Bounds(fields=2)) == ("part-header-too-large", 0)


def test_millions_of_fields_are_refused_without_a_note_of_each() -> None:
    body = one("GET /x\n", "a:\n" * 1_000_000)
    tracemalloc.start()
    try:
        assert refusal(body) == ("part-header-too-large", 0)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body)
    finally:
        tracemalloc.stop()


# --- answers ------------------------------------------------------------------------------------


def answers(body: bytes, bounds: Bounds = BOUNDS) -> list[Answer]:
    return read_multipart_answers(body, "b", bounds)


OK = b"--b\nContent-Type: application/http\nContent-ID: 1\n\nHTTP/1.1 200 OK\n\nx\n"


def test_answers_before_a_cut_are_read() -> None:
    assert answers(OK + OK[:-3]) == [Answer(200, (), b"x", "1", "OK")]
    assert answers(b"") == []


def test_answers_of_a_change_set_are_read() -> None:
    inner = OK.replace(b"--b", b"--c") * 2 + b"--c--\n"
    body = b"--b\nContent-Type: multipart/mixed; boundary=c\n\n" + inner + OK + b"--b--\n"
    assert answers(body) == [Answer(200, (), b"x", "1", "OK")] * 3


def test_answer_without_any_head_is_read() -> None:
    assert answers(b"--b\n\nHTTP/1.1 204 No Content\n--b--") == [Answer(204, reason="No Content")]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"--b\nContent-Type: multipart/mixed; boundary=\xe9\n\n--b--", "bad-boundary"),
        (b"--b\nContent-Type: multipart/mixed\n\n--b--", "bad-boundary"),
        (OK * 1001 + b"--b--", "too-many-parts"),
    ],
)
def test_answers_that_cannot_be_read_are_refused(body: bytes, kind: str) -> None:
    with pytest.raises(Malformed) as caught:
        answers(body)
    assert caught.value.kind == kind


@pytest.mark.parametrize("bad", [b"--b\n\nHTTP/1.1\n", b"--b\nContent-ID: 1\n"])
def test_answer_that_cannot_be_read_leaves_the_others(bad: bytes) -> None:
    first, second = answers(bad + OK + b"--b--")
    assert (first.status, first.id) == (0, "1" if b"Content-ID" in bad else None)
    assert "status line" in first.reason
    assert second.status == 200


def test_answers_nested_without_end_are_refused() -> None:
    head = b"--b\nContent-Type: multipart/mixed; boundary=c\n\n"
    body = head + head.replace(b"--b", b"--c") * 5000 + b"--c--\n--b--"
    with pytest.raises(Malformed):
        answers(body)


# --- writing ------------------------------------------------------------------------------------


def test_answer_is_written_as_googles_client_reads_it() -> None:
    message = write_response(Answer(200, (("Content-Type", "application/json"),), b'{"v": 1}'))
    assert write_multipart([(response_id("<x + 1>"), message)], "batch_X") == (
        b"--batch_X\r\n"
        b"Content-Type: application/http\r\n"
        b"Content-ID: <response-x + 1>\r\n"
        b"\r\n"
        b"HTTP/1.1 200 OK\r\n"
        b"Content-Type: application/json\r\n"
        b"Content-Length: 8\r\n"
        b"\r\n"
        b'{"v": 1}\r\n'
        b"--batch_X--\r\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a\r\nX: y",
        "a\nb",
        "a\rb",
        "a\0b",
        "a\x7fb",
        " a",
        "a ",
        "\ta",
        "\u20ac",
        "\ud800",
        "a\r",
    ],
)
def test_content_id_cannot_be_another_header(name: str) -> None:
    with pytest.raises(ValueError, match="no Content-ID"):
        section(name, b"", "b")


@given(st.text(min_size=1))
@example("<a + 1>")
@example("<response-a>")
@example("response-a")
def test_content_id_of_a_part_names_its_answer(name: str) -> None:
    assert without_response(response_id(name)) == name


def test_boundary_is_made_of_random_bytes() -> None:
    assert make_boundary(bytes(range(60, 66))) == "batch_yz0123"
    assert boundary_of(f"multipart/mixed; boundary={make_boundary(bytes(22))}") == (
        "batch_" + "0" * 22
    )


def test_boundary_that_stands_in_a_message_is_found() -> None:
    assert occurs("b", [b"x", b"x\n--b"])
    assert not occurs("b", [b"x", b"b", b"-b"])


NAMES = st.text("ABCXabcx-_!#$%&'*+.^`|~09", min_size=1, max_size=12).filter(
    lambda name: name.lower() not in {"content-length", "content-type", "host", "transfer-encoding"}
)
VALUES = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=20).map(
    lambda value: value.strip(" ")
)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=5).map(tuple)
LOOKALIKES = st.sampled_from(
    [b"--B", b"--b", b"--batch", b"\r\n--batch_y--\r\n", b"\n", b"\r", b"\r\n\r\n", b"--", b"\0"]
)
BODIES = st.lists(st.one_of(st.binary(max_size=20), LOOKALIKES), max_size=8).map(b"".join)
IDS = st.one_of(
    st.none(),
    st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), min_size=1).filter(
        lambda name: name == name.strip(" ")
    ),
)
TARGETS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30)
PARTS = st.builds(
    Part, st.text("AGETpost-_!~", min_size=1, max_size=8), TARGETS, FIELDS, BODIES, IDS
)
ANSWERS = st.builds(
    Answer,
    st.integers(200, 599).filter(lambda status: status not in {204, 304}),
    FIELDS,
    BODIES,
    IDS,
    st.text("abcXYZ '-", max_size=10).map(str.strip),
)


def without_length(fields: Any) -> Any:
    return tuple(pair for pair in fields if pair[0] != "Content-Length")


@given(st.lists(PARTS, min_size=1, max_size=6))
def test_parts_come_back_as_they_were_written(parts: list[Part]) -> None:
    messages = [(part.id, write_request(part)) for part in parts]
    assume(not occurs("batch_x", [message for _, message in messages]))
    found = read(write_multipart(messages, "batch_x"), "batch_x")
    assert [(p.method, p.target, without_length(p.fields), p.body, p.id) for p in found] == [
        (p.method, p.target, p.fields, p.body, p.id) for p in parts
    ]


@given(st.lists(ANSWERS, min_size=1, max_size=6))
def test_answers_come_back_as_they_were_written(given_answers: list[Answer]) -> None:
    messages = [(answer.id, write_response(answer)) for answer in given_answers]
    assume(not occurs("batch_x", [message for _, message in messages]))
    found = read_multipart_answers(write_multipart(messages, "batch_x"), "batch_x", BOUNDS)
    assert [(a.status, without_length(a.fields), a.body, a.id) for a in found] == [
        (a.status, a.fields, a.body, a.id) for a in given_answers
    ]
    assert all(
        back.reason == answer.reason or not answer.reason
        for back, answer in zip(found, given_answers, strict=True)
    )


# --- whatever arrives ---------------------------------------------------------------------------

VALID = [
    (GOOGLE_API, GOOGLE),
    (GOOGLE_STORAGE, "===============1=="),
    (DOCUMENTS, "batch_foobarbaz"),
    (PYODATA, "batch_r1"),
    (OK * 2 + b"--b--", "b"),
]


@pytest.mark.parametrize(("body", "boundary"), VALID[:4])
def test_line_ends_make_no_difference(body: bytes, boundary: str) -> None:
    assert read(crlf(body), boundary) == read(body, boundary)


def or_refused(body: bytes, boundary: str) -> None:
    """Read it as both; what is raised besides Malformed fails the test."""
    for reader in (read_multipart_parts, read_multipart_answers):
        with contextlib.suppress(Malformed):
            reader(body, boundary, BOUNDS)


PIECES = st.sampled_from(
    [
        b"--b\n", b"--b\r\n", b"--b--", b"\n", b"\r\n", b"\r", b"Content-Type: application/http\n",
        b"Content-Type: multipart/mixed; boundary=c\n\n", b"--c\n", b"--c--\n", b"GET /x\n",
        b"POST /x HTTP/1.1\r\n", b"Content-Length: 3\n", b"HTTP/1.1 200 OK\n", b"abc", b": ",
        b"Content-Type: multipart/mixed; boundary=\xff\n\n", b"HTTP/1.1 204 \n",
    ]
)  # fmt: skip


@given(st.lists(st.one_of(PIECES, st.binary(max_size=6)), max_size=20).map(b"".join))
@example(b"--b\nContent-Type: multipart/mixed; boundary=\xff\n\n--b--")
def test_whatever_arrives_is_read_or_refused(body: bytes) -> None:
    or_refused(body, "b")


@given(
    st.sampled_from(VALID),
    st.lists(
        st.tuples(st.integers(0, 1200), st.integers(0, 3), st.binary(max_size=3)),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
def test_damaged_batch_is_read_or_refused(
    valid: tuple[bytes, str], damages: list[tuple[int, int, bytes]]
) -> None:
    body, boundary = valid
    for at, deleted, inserted in damages:
        body = body[:at] + inserted + body[at + deleted :]
    or_refused(body, boundary)


def by_email(body: bytes, boundary: str, policy: Any) -> list[bytes]:
    head = f'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="{boundary}"\r\n\r\n'
    message: Any = email.message_from_bytes(head.encode() + body, policy=policy)
    return [part.get_payload(decode=True) for part in message.get_payload()]


# Each: Content-Type, blank line, then lines that may look like delimiters.
LINES = st.lists(
    st.sampled_from(
        ["x", "", "--b", "--bb", "--b-", " --b", "--c", "--c--", "--b--x", "-- b", "--"]
    ),
    max_size=6,
)


@pytest.mark.parametrize("policy", [email.policy.compat32, email.policy.HTTP], ids=["32", "HTTP"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@given(st.lists(LINES, min_size=1, max_size=4))
def test_parts_are_split_where_email_splits_them(
    policy: Any, end: str, parts: list[list[str]]
) -> None:
    head = "Content-Type: application/octet-stream"
    lines = [line for part in parts for line in ("--z", head, "", *part)]
    body = end.join([*lines, "--z--", ""]).encode()
    ours = [
        piece.partition(f"{end}{end}".encode())[2].removesuffix(end.encode())
        for piece in sections(body, "z", 100)
    ]
    assert ours == by_email(body, "z", policy)


def test_closing_delimiter_is_one_line() -> None:
    assert closing("x") == b"--x--\r\n"
