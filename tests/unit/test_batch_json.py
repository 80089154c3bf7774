"""Batches in JSON: what Microsoft's and OData's clients send, what is refused, what comes back."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from demijohn.core.batch import (
    Answer,
    Bounds,
    Fields,
    Malformed,
    Part,
    read_json_answers,
    read_json_parts,
    write_json_answer,
    write_json_parts,
)

BOUNDS = Bounds()
JSON = ("content-type", "application/json")
MINIMAL: dict[str, Any] = {"id": "1", "method": "POST", "url": "/x"}


def read(body: bytes, bounds: Bounds = BOUNDS) -> list[Part]:
    return read_json_parts(body, bounds)


def batch(*requests: object) -> bytes:
    return json.dumps({"requests": requests}).encode()


def one(**members: object) -> Part:
    (part,) = read(batch(MINIMAL | members))
    return part


def refusal(body: bytes, bounds: Bounds = BOUNDS) -> tuple[str, int | None]:
    with pytest.raises(Malformed) as caught:
        read(body, bounds)
    caught.value.detail.encode("utf-8")
    return caught.value.kind, caught.value.part


# --- what real clients send ---------------------------------------------------------------------


def test_batch_of_msgraph_core_is_read() -> None:
    body = b"""{"requests": [
        {"id": "a", "method": "GET", "url": "https://graph.example/v1.0/me", "headers": {},
         "body": null},
        {"id": "b", "method": "POST", "url": "https://graph.example/v1.0/me/events",
         "depends_on": ["a"], "headers": {"Content-Type": "application/json"},
         "body": {"subject": "Lunch", "size": 1.10}}
    ]}"""
    assert read(body) == [
        Part("GET", "https://graph.example/v1.0/me", id="a"),
        Part(
            "POST",
            "https://graph.example/v1.0/me/events",
            (("Content-Type", "application/json"),),
            b'{"subject": "Lunch", "size": 1.10}',
            "b",
            depends_on=("a",),
        ),
    ]


def test_batch_of_odata_is_read() -> None:
    body = b"""{"requests": [
        {"id": "0", "method": "get", "url": "customers('ALFKI')"},
        {"id": "1", "atomicityGroup": "group1", "method": "patch", "url": "/service/Customers",
         "headers": {"Prefer": "return=minimal"}, "body": {"Name": "x"}, "dependsOn": ["0"]}
    ]}"""
    assert read(body) == [
        Part("GET", "customers('ALFKI')", id="0"),
        Part(
            "PATCH",
            "/service/Customers",
            (("Prefer", "return=minimal"), ("Content-Type", "application/json")),
            b'{"Name": "x"}',
            "1",
            "group1",
            ("0",),
        ),
    ]


def test_ids_may_be_numbers() -> None:
    body = b'{"requests": [{"id": 1, "method": "GET", "url": "/"},'
    body += b'{"id": 2, "method": "GET", "url": "/", "dependsOn": [1]}]}'
    parts = read(body)
    assert [(part.id, part.depends_on) for part in parts] == [("1", ()), ("2", ("1",))]
    assert {type(name) for part in parts for name in (part.id, *part.depends_on)} == {str}


@pytest.mark.parametrize("text", ['{"a":1.10}', "[1e400]", "9" * 5000, '"\\u00e9"', "0", "false"])
def test_body_keeps_its_bytes(text: str) -> None:
    body = f'{{"requests":[{{"id":"1","method":"PUT","url":"/","body":  {text}  }}]}}'
    (part,) = read(body.encode())
    assert part.body == text.encode()
    assert part.fields == (("Content-Type", "application/json"),)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/problem+JSON"])
def test_body_of_a_json_type_is_what_stands_there(kind: str) -> None:
    assert one(headers={"content-type": kind}, body="x").body == b'"x"'


def test_body_of_a_text_is_its_text() -> None:
    assert one(headers={"Content-Type": "text/plain"}, body="\xe9\n").body == b"\xc3\xa9\n"


@pytest.mark.parametrize("text", ["-_8=", "-_8", "+/8=", "+/8"])
def test_any_other_body_is_base64_of_either_alphabet(text: str) -> None:
    assert one(headers={"Content-Type": "image/png"}, body=text).body == b"\xfb\xff"


def test_body_has_no_content_length() -> None:
    assert one(headers={"Content-Length": "999", "A": " b "}).fields == (("A", "b"),)


@pytest.mark.parametrize("body", ["", None])
def test_empty_text_and_null_are_no_body(body: object) -> None:
    assert one(headers={"Content-Type": "text/plain"}, body=body).body == b""


def test_names_of_members_may_be_escaped() -> None:
    body = b'{"requests":[{"id":"1","method":"POST","url":"/","\\u0062ody":[1]}]}'
    assert read(body)[0].body == b"[1]"
    assert refusal(body.replace(b"POST", b"GET")) == ("malformed-batch", 0)


# --- what is refused ----------------------------------------------------------------------------

DEEP = b'{"requests":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="no requests"),
        pytest.param(b'{"requests":{}}', id="requests not a list"),
        pytest.param(b'{"requests":null}', id="requests null"),
        pytest.param(b'{"requests":[]}', id="no parts"),
        pytest.param(b'{"requests":[],"x":1}', id="unknown member"),
        pytest.param(b'{"requests":[],"responses":[]}', id="responses"),
        pytest.param(b'{"\\ud800":[]}', id="unknown member that cannot be encoded"),
        pytest.param(b'{"requests":[],"requests":[]}', id="twice"),
        pytest.param(b'{"requests":[{"body":{"a":1,"\\u0061":2}}]}', id="twice, escaped"),
        pytest.param(b'{"requests":[{"body":NaN}]}', id="NaN"),
        pytest.param(b'{"requests":[{"body":-Infinity}]}', id="Infinity"),
        pytest.param(b'{"requests":[{"body":"\\ud800"}]}', id="half a pair in a request"),
        pytest.param(batch(MINIMAL | {"body": "\ud800"}), id="half a pair"),
        pytest.param(b'{"requests":[{"body":"\xed\xa0\x80"}]}', id="half a pair in UTF-8"),
        pytest.param(b'{"requests":[{"body":"\xff"}]}', id="no UTF-8"),
        pytest.param(b'{"requests":[{"body":"\n"}]}', id="control character"),
        pytest.param(b'{"requests":[{}],}', id="comma"),
        pytest.param(b"\xef\xbb\xbf" + batch(MINIMAL), id="BOM"),
        pytest.param(batch(MINIMAL).decode().encode("utf-16"), id="UTF-16"),
        pytest.param(batch(MINIMAL).decode().encode("utf-16-le"), id="UTF-16-LE"),
        pytest.param(batch(MINIMAL).decode().encode("utf-32"), id="UTF-32"),
        pytest.param(DEEP, id="deep"),
        pytest.param(DEEP[:50_000], id="deep and cut"),
    ],
)
def test_what_is_no_batch_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        read(body)
    assert caught.value.kind == "malformed-batch"


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ({"Body": 1}, "malformed-batch"),
        ({"id": None}, "bad-id"),
        ({"id": ""}, "bad-id"),
        ({"id": True}, "bad-id"),
        ({"id": ["1"]}, "bad-id"),
        ({"id": "a\r\nX: y"}, "bad-id"),
        ({"id": "a\x00"}, "bad-id"),
        ({"id": "a\x85"}, "bad-id"),
        ({"id": " a"}, "bad-id"),
        ({"id": "a\xa0"}, "bad-id"),
        ({"id": "\u20ac"}, "bad-id"),
        ({"id": "x" * 257}, "bad-id"),
        ({"id": 1.5}, "bad-id"),
        ({"method": None}, "malformed-part"),
        ({"method": 5}, "malformed-part"),
        ({"url": 5}, "malformed-part"),
        ({"headers": {"a": 5}}, "malformed-part"),
        ({"atomicityGroup": 1.5}, "bad-id"),
        ({"dependsOn": [1.5]}, "bad-dependency"),
        ({"method": "G T"}, "malformed-part"),
        ({"method": "GET\n"}, "malformed-part"),
        ({"method": ""}, "malformed-part"),
        ({"url": None}, "malformed-part"),
        ({"url": ""}, "malformed-part"),
        ({"url": "/a b"}, "malformed-part"),
        ({"url": "/x\r\n"}, "malformed-part"),
        ({"url": "/\xe9"}, "malformed-part"),
        ({"url": "/\t"}, "malformed-part"),
        ({"url": "/" + "x" * (16 << 10)}, "part-header-too-large"),
        ({"headers": []}, "malformed-part"),
        ({"headers": {"a": None}}, "malformed-part"),
        ({"headers": {"a": ["b"]}}, "malformed-part"),
        ({"headers": {"": "b"}}, "malformed-part"),
        ({"headers": {"a b": "c"}}, "malformed-part"),
        ({"headers": {"a:b": "c"}}, "malformed-part"),
        ({"headers": {"Content-Length: 5\r\nA": "c"}}, "malformed-part"),
        ({"headers": {"a\n": "c"}}, "malformed-part"),
        ({"headers": {"a": "b\r\nc: d"}}, "malformed-part"),
        ({"headers": {"a": "b\nc: d"}}, "malformed-part"),
        ({"headers": {"a": "b\r\n"}}, "malformed-part"),
        ({"headers": {"a": "b\r"}}, "malformed-part"),
        ({"headers": {"a": "\x00"}}, "malformed-part"),
        ({"headers": {"a": "\u20ac"}}, "malformed-part"),
        ({"headers": {"\u212a": "b"}}, "malformed-part"),
        ({"headers": {"Content-Type": "a/b", "content-type": "a/b"}}, "malformed-part"),
        ({"headers": {"Authorization": "a", "authorization": "b"}}, "malformed-part"),
        ({"headers": {"Transfer-Encoding": "chunked"}}, "malformed-batch"),
        ({"headers": {"Content-Length": "x"}}, "malformed-batch"),
        ({"headers": {"a": "x" * (16 << 10)}}, "part-header-too-large"),
        ({"headers": {f"a{n}": "" for n in range(101)}}, "part-header-too-large"),
        ({"headers": {"Content-Type": "text/plain"}, "body": {}}, "malformed-part"),
        ({"headers": {"Content-Type": "image/png"}, "body": 1}, "malformed-part"),
        ({"headers": {"Content-Type": "image/png"}, "body": "\xe9"}, "malformed-part"),
        ({"headers": {"Content-Type": "image/png"}, "body": "a=b"}, "malformed-part"),
        ({"headers": {"Content-Type": "image/png"}, "body": "abcde"}, "malformed-part"),
        ({"headers": {"Content-Type": "image/png"}, "body": "ab\n="}, "malformed-part"),
        ({"method": "get", "body": {}}, "malformed-batch"),
        ({"method": "DELETE", "body": False}, "malformed-batch"),
        ({"method": "HEAD", "body": ""}, "malformed-batch"),
        ({"atomicityGroup": ""}, "bad-id"),
        ({"atomicityGroup": []}, "bad-id"),
        ({"dependsOn": "1"}, "bad-dependency"),
        ({"dependsOn": [None]}, "bad-dependency"),
        ({"dependsOn": [""]}, "bad-dependency"),
        ({"depends_on": {"a": 1}}, "bad-dependency"),
        ({"body": "x" * (1 << 20)}, "part-too-large"),
    ],
)
def test_bad_request_is_refused_with_its_kind_and_part(
    members: dict[str, object], kind: str
) -> None:
    assert refusal(batch(MINIMAL | {"id": "0"}, MINIMAL | members)) == (kind, 1)


def test_refusal_names_the_id() -> None:
    with pytest.raises(Malformed) as caught:
        read(batch(MINIMAL | {"method": ""}))
    assert (caught.value.id, caught.value.part) == ("1", 0)


@pytest.mark.parametrize("request_", [1, None, "x", [], True])
def test_request_that_is_no_object_is_refused_with_its_part(request_: object) -> None:
    assert refusal(batch(MINIMAL, request_)) == ("malformed-batch", 1)


SMALL = Bounds(parts=2, part=4, head=20, fields=2, depth=6)


def test_sizes_at_the_bounds_are_taken() -> None:
    members = {"id": "x" * 256, "url": "/" * 20, "headers": {"a": "1234", "b": "12345678"}}
    assert len(read(batch(MINIMAL, MINIMAL | members), SMALL)) == 2
    assert read(batch(MINIMAL | {"body": 1234}), SMALL)[0].body == b"1234"
    assert read(batch(MINIMAL | {"body": [[1]]}), Bounds(depth=5))[0].body == b"[[1]]"


@pytest.mark.parametrize(
    ("body", "kind", "part"),
    [
        (batch(*[MINIMAL] * 3), "too-many-parts", None),
        (batch(MINIMAL | {"url": "/" * 21}), "part-header-too-large", 0),
        (batch(MINIMAL | {"headers": {"a": "1234", "b": "123456789"}}), "part-header-too-large", 0),
        (batch(MINIMAL | {"headers": {"a": "", "b": "", "c": ""}}), "part-header-too-large", 0),
        (batch(MINIMAL | {"body": 12345}), "part-too-large", 0),
        (batch(MINIMAL | {"body": [[[[]]]]}), "malformed-batch", None),
        (batch(MINIMAL | {"body": {"a": [{"b": [1]}]}}), "malformed-batch", None),
    ],
)
def test_sizes_above_the_bounds_are_refused(body: bytes, kind: str, part: int | None) -> None:
    assert refusal(body, SMALL) == (kind, part)


# --- answers ------------------------------------------------------------------------------------


def response(**members: object) -> Answer:
    (answer,) = read_json_answers(json.dumps({"responses": [{"status": 200} | members]}).encode())
    return answer


def written(answer: Answer, *, standard: bool = False, minimal: bool = False) -> Any:
    return json.loads(write_json_answer(answer, standard=standard, minimal=minimal))


def test_answer_keeps_its_id_beside_its_headers() -> None:
    headers = {"content-type": "application/json", "etag": "x", "set-cookie": ["a", "b"]}
    assert response(id="7", headers=headers, body={"a": 1}) == Answer(
        200,
        (JSON, ("etag", "x"), ("set-cookie", "a"), ("set-cookie", "b")),
        b'{"a": 1}',
        "7",
    )


def test_answer_may_lack_all_but_its_status() -> None:
    assert response() == Answer(200)
    assert response(id=1, headers=None, body=None) == Answer(200, id="1")
    assert response(status="404", headers={"x": 1}) == Answer(404, (("x", "1"),))


@pytest.mark.parametrize(
    ("content_type", "body", "content"),
    [
        (None, "x", b'"x"'),
        ("application/json", None, b"null"),
        ("text/plain", "x\xe9", b"x\xc3\xa9"),
        ("text/plain", {"a": 1}, b'{"a": 1}'),
        ("image/png", "-_8", b"\xfb\xff"),
        ("image/png", "+/8=", b"\xfb\xff"),
        ("image/png", "no base64", b"no base64"),
    ],
)
def test_body_of_an_answer_is_read_by_its_type(
    content_type: str | None, body: object, content: bytes
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    assert response(headers=headers, body=body).body == content


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"responses":{}}',
        b'{"responses":[1]}',
        b'{"responses":[{}]}',
        b'{"responses":[{"status":99}]}',
        b'{"responses":[{"status":1000}]}',
        b'{"responses":[{"status":"OK"}]}',
        b'{"responses":[{"status":200,"headers":[1]}]}',
        b'{"responses":[{"status":200,"headers":{"a":"b\\r\\nc: d"}}]}',
        b'{"responses":[{"status":200,"headers":{"a\\n":"b"}}]}',
        b'{"responses":[{"status":200,"headers":{"a":"\\u20ac"}}]}',
        b'{"responses":[{"status":200,"headers":{"content-type":"text/x"},"body":"\xff"}]}',
        b'{"responses":[{"status":200,"body":"\\ud800"}]}',
        b'{"responses":' + DEEP + b"}",
    ],
)
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        read_json_answers(body)
    assert caught.value.kind == "malformed-batch"


def test_name_twice_in_one_answer_leaves_the_others_alone() -> None:
    answers = [Answer(200, (JSON,), b'{"a":1,"a":2}', "1"), Answer(200, (JSON,), b"{}", "2")]
    items = [write_json_answer(answer, standard=False, minimal=False) for answer in answers]
    assert read_json_answers(b'{"responses":[%b]}' % b",".join(items)) == answers


def test_answer_is_written_as_odata_defines_it() -> None:
    fields = (
        ("Content-Type", "application/json"), ("Content-Length", "7"), ("Vary", "a"), ("vary", "b"),
        ("Set-Cookie", "x=1; expires=Mon, 1"), ("Set-Cookie", "y=2"),
    )  # fmt: skip
    assert written(Answer(201, fields, b'{"v":1}', "1")) == {
        "id": "1",
        "status": 201,
        "headers": {
            "content-type": "application/json",
            "vary": "a, b",
            "set-cookie": ["x=1; expires=Mon, 1", "y=2"],
        },
        "body": {"v": 1},
    }


def test_binary_content_is_written_in_the_alphabet_that_is_asked_for() -> None:
    answer = Answer(200, (("content-type", "image/png"),), b"\xfb\xff")
    assert written(answer)["body"] == "-_8="
    assert written(answer, standard=True)["body"] == "+/8="


def test_minimal_answer_has_no_content_where_it_succeeded() -> None:
    assert "body" not in written(Answer(200, (JSON,), b"1"), minimal=True)
    assert written(Answer(404, (JSON,), b"1"), minimal=True)["body"] == 1


@pytest.mark.parametrize("content", [b"{", b"NaN", b'{"a":1}x', b"[" * 5000, b'"\\ud800"'])
def test_json_of_a_view_that_is_none_is_written_as_text(content: bytes) -> None:
    assert written(Answer(200, (JSON,), content))["body"] == content.decode()


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_content_that_is_no_text_is_written_in_base64(kind: str) -> None:
    answer = Answer(200, (("content-type", kind),), b"\xff")
    assert written(answer)["body"] == base64.urlsafe_b64encode(b"\xff").decode()


# --- writing requests ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        Part("POST", "/"),
        Part("GET", "/", (), b"x", "1"),
        Part("POST", "/", (JSON,), b"{", "1"),
        Part("POST", "/", (JSON,), b"\xff", "1"),
        Part("POST", "/", (JSON,), b" null", "1"),
        Part("POST", "/", (JSON,), b'"\\ud800"', "1"),
        Part("POST", "/", (JSON,), b'{"a":1,"a":2}', "1"),
        Part("POST", "/", (JSON,), b"NaN", "1"),
        Part("POST", "/", (JSON,), b"[" * 62 + b"]" * 62, "1"),
        Part("POST", "/", (JSON, JSON), b"1", "1"),
        Part("POST", "/", (("Transfer-Encoding", "chunked"),), b"1", "1"),
        Part("POST", "/", (("a", "\ud800"),), b"1", "1"),
    ],
)
def test_part_that_cannot_be_said_in_json_is_not_written(part: Part) -> None:
    with pytest.raises(ValueError):
        write_json_parts([part])


def test_deepest_body_that_is_written_is_read() -> None:
    part = Part("POST", "/", (JSON,), b"[" * 61 + b"]" * 61, "1")
    assert read(write_json_parts([part])) == [part]


@pytest.mark.parametrize("body", [b"9" * 5000, b'{"a":1e400}', b"1.10", b"[-0]", b'"\\u00e9"'])
def test_numbers_are_written_as_they_are(body: bytes) -> None:
    part = Part("POST", "/", (JSON,), body, "1", "g")
    assert read(write_json_parts([part])) == [part]
    answer = Answer(200, (JSON,), body, "1")
    item = write_json_answer(answer, standard=False, minimal=False)
    assert read_json_answers(b'{"responses":[%b]}' % item) == [answer]


def test_fields_that_are_there_twice_are_joined() -> None:
    fields = (("Cookie", "a=1"), ("cookie", "b=2"), ("A", "1"), ("a", "2"), ("Content-Length", "9"))
    assert read(write_json_parts([Part("GET", "/", fields, id="1")])) == [
        Part("GET", "/", (("cookie", "a=1; b=2"), ("a", "1, 2")), id="1")
    ]


NAMES = st.text("abcx-_!#$%&'*+.^`|~09", min_size=1, max_size=12).filter(
    lambda name: name not in {"content-length", "content-type", "host", "transfer-encoding"}
)
VALUES = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=20).map(
    lambda value: value.strip(" ")
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), inner),
    max_leaves=8,
)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CONTENTS = st.one_of(
    st.tuples(st.just(()), st.just(b"")),
    st.tuples(
        st.sampled_from([(JSON,), (("content-type", "application/x+json; a=b"),)]),
        VALUE.filter(lambda value: value is not None).map(lambda value: json.dumps(value).encode()),
    ),
    st.tuples(st.just((("content-type", "text/plain"),)), TEXT.map(str.encode)),
    st.tuples(st.just((("content-type", "image/png"),)), st.binary(max_size=30)),
)
FIELDS = st.dictionaries(NAMES, VALUES, max_size=4).map(lambda fields: tuple(fields.items()))
IDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=9)
TARGETS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30)


def part_of(
    target: str, fields: Fields, content: tuple[Fields, bytes], name: str, needs: list[str]
) -> Part:
    return Part("POST", target, fields + content[0], content[1], name, None, tuple(needs))


PARTS = st.builds(part_of, TARGETS, FIELDS, CONTENTS, IDS, st.lists(IDS, max_size=3))


@given(st.lists(PARTS, min_size=1, max_size=5))
def test_parts_come_back_as_they_were_written(parts: list[Part]) -> None:
    assert read(write_json_parts(parts)) == parts


@given(st.integers(100, 999), FIELDS, CONTENTS, IDS, st.booleans())
def test_answer_comes_back_as_it_was_written(
    status: int, fields: Fields, content: tuple[Fields, bytes], name: str, standard: bool
) -> None:
    fields = tuple(pair for pair in fields if pair[0] != "set-cookie")
    answer = Answer(status, fields + content[0], content[1], name)
    item = write_json_answer(answer, standard=standard, minimal=False)
    assert read_json_answers(b'{"responses":[%b]}' % item) == [answer]


def test_content_without_a_type_comes_back_as_bytes() -> None:
    item = write_json_answer(Answer(200, (), b"\xff1"), standard=False, minimal=False)
    (answer,) = read_json_answers(b'{"responses":[%b]}' % item)
    assert answer == Answer(200, (("content-type", "application/octet-stream"),), b"\xff1")


# --- whatever arrives ---------------------------------------------------------------------------

VALID = batch(
    MINIMAL | {"headers": {"Content-Type": "text/plain"}, "body": "x", "dependsOn": ["a"]},
    MINIMAL | {"body": {"a": [1.5, None]}, "atomicityGroup": "g"},
)
ANSWERED = json.dumps(
    {"responses": [{"id": 1, "status": 200, "headers": {"content-type": "a/b"}, "body": "eA"}]}
).encode()


def or_refused(body: bytes) -> None:
    with contextlib.suppress(Malformed):
        read(body)
    with contextlib.suppress(Malformed):
        read_json_answers(body)


@given(st.binary(max_size=60))
def test_whatever_arrives_is_read_or_refused(body: bytes) -> None:
    or_refused(body)


@given(st.sampled_from(["requests", "responses"]), st.lists(VALUE, max_size=3))
def test_whatever_stands_in_the_list_is_read_or_refused(name: str, items: list[object]) -> None:
    or_refused(json.dumps({name: items}).encode())


@given(
    st.dictionaries(
        st.sampled_from([*MINIMAL, "headers", "body", "dependsOn", "status", "atomicityGroup"]),
        VALUE | st.dictionaries(st.text(max_size=5), st.text(max_size=5)) | st.just("\ud800"),
    )
)
@example({"body": "\ud800"})
@example({"headers": {"content-type": "\u20ac"}, "body": "x"})
def test_whatever_a_member_is_it_is_read_or_refused(members: dict[str, object]) -> None:
    or_refused(batch(MINIMAL | members))
    or_refused(json.dumps({"responses": [{"status": 200} | members]}).encode())


@given(
    st.sampled_from([VALID, ANSWERED]),
    st.lists(
        st.tuples(st.integers(0, 250), st.integers(0, 3), st.binary(max_size=3)),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
def test_damaged_batch_is_read_or_refused(
    body: bytes, damages: list[tuple[int, int, bytes]]
) -> None:
    for at, deleted, inserted in damages:
        body = body[:at] + inserted + body[at + deleted :]
    or_refused(body)
