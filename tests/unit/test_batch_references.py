"""Values of earlier answers in later parts, and what must not get in with them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demijohn.core.batch import (
    Answer,
    Bounds,
    Fields,
    Malformed,
    Part,
    Place,
    Unresolved,
    own_path,
    resolve,
)
from demijohn.core.batch.references import mentioned

PLACE = Place("http", {"http://api.example:80"}, "", "/batch", {"/batch"})
JSON = (("Content-Type", "application/json"),)


def own(url: str) -> str:
    path, query = own_path(url, PLACE)
    return f"{path}?{query}" if query else path


def answer(value: object = None, **fields: str) -> Answer:
    return Answer(201, tuple(fields.items()), json.dumps(value).encode())


ANSWERS = {
    "1": answer(
        {
            "id": 7, "name": "a b/\xe9", "deep": [{"x": "y"}, "z"], "n": None, "t": True, "": "e",
            "dot": ".", "dots": "..", "up": "../x", "back": "..\\x", "line": "a\r\nb",
            "euro": "\u20ac",
            "empty": "", "half": "\ud800", "code": "@{2.body.secret}", "quote": '"', "q?": "mark",
            "%": "%2e%2e",
        },
        Location="http://api.example/cats/7?x=1#y",
        ETag='W/"e"',
    ),
    "2": answer({"secret": "s"}, location="/dogs/"),
    "a.b": answer("dotted"),
    "none": Answer(204),
    "elsewhere": answer(Location="http://evil.example/x"),
    "evil": answer(Location="/x/@{2.body.secret}", ETag='"@{2.body.secret}"'),
    "odd": answer(Location="/x y", ETag='"\x00"'),
    "slashes": answer(Location="http://api.example//evil.example/x"),
    "climbs": answer(Location="/x/../y"),
    "numbers": Answer(200, (), b'{"f":1.10,"i":12345678901234567890123,"e":1e400,"l":[1.50]}'),
    "nan": Answer(200, (), b'{"a":1,"b":NaN}'),
    "deep": Answer(200, (), b"[" * 100_000),
    "latin": Answer(200, (), b'"\xff"'),
}  # fmt: skip


def target(text: str) -> str:
    return resolve(Part("GET", text), ANSWERS, own).target


def fields(*pairs: tuple[str, str]) -> Fields:
    return resolve(Part("GET", "/", pairs), ANSWERS, own).fields


def body(text: str, *needs: str, kind: Fields = JSON) -> str:
    part = Part("POST", "/", kind, text.encode(), depends_on=needs or ("1",))
    return resolve(part, ANSWERS, own).body.decode()


# --- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/x", "/x"),
        ("$1", "/cats/7"),
        ("/$1", "/cats/7"),
        ("$1/toys?a=b", "/cats/7/toys?a=b"),
        ("$1?a=b", "/cats/7?a=b"),
        ("$2/toys", "/dogs/toys"),
        ("$2", "/dogs/"),
        ("$a%2Eb".replace("a%2Eb", "%31"), "/cats/7"),
        ("$unknown/x", "/$unknown/x".removeprefix("/")),
        ("$1/@{1.body.id}?y=@{1.body.id}", "/cats/7/7?y=7"),
        ("/x/@{1.body.name}", "/x/a%20b%2F%C3%A9"),
        ("/x?y=@{1.body.name}&z", "/x?y=a%20b%2F%C3%A9&z"),
        ("/x?y=@{1.body.empty}", "/x?y="),
        ("/x?y=@{1.body.dots}", "/x?y=.."),
        ("/x/@{1.body.q?}?z", "/x/mark?z"),
        ("/x/@{1.body.%}", "/x/%252e%252e"),
        ("/x/@{1.body.deep.0.x}/@{1.body.deep.1}", "/x/y/z"),
        ("/x/@{a.b.body}", "/x/dotted"),
        ("/x/@{1.headers.etag}", "/x/W%2F%22e%22"),
        ("/x/@@{1.body.id}", "/x/@{1.body.id}"),
        ("/x/@{1.body.code}", "/x/%40%7B2.body.secret%7D"),
        ("/x/@{1}", "/x/@{1}"),
        ("/x/@{1.bodyguard}", "/x/@{1.bodyguard}"),
        ("/x/@{1.body.}", "/x/@{1.body.}"),
        ("/x/@{.body}", "/x/@{.body}"),
        ("/x/@{", "/x/@{"),
        ("../@{1.body.id}", "../7"),
        ("/x/@{numbers.body.f}", "/x/1.10"),
        ("/x/@{numbers.body.e}", "/x/1e400"),
    ],
)
def test_target_gets_its_values(text: str, found: str) -> None:
    assert target(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "/x/@{3.body}",
        "/x/@{1.body.missing}",
        "/x/@{1.body}",
        "/x/@{1.body.n}",
        "/x/@{1.body.t}",
        "/x/@{1.body.deep}",
        "/x/@{1.body.deep.-1}",
        "/x/@{1.body.deep.2}",
        "/x/@{1.body.deep.01}",
        "/x/@{1.body.deep.+1}",
        "/x/@{1.body.deep.\u0661}",
        "/x/@{1.body.deep." + "9" * 5000 + "}",
        "/x/@{1.body.name.0}",
        "/x/@{1.body.id.0}",
        "/x/@{1.headers}",
        "/x/@{1.headers.missing}",
        "/x/@{1.body.line}",
        "/x/@{1.body.half}",
        "/x/@{1.body.empty}",
        "/x/@{1.body.dot}",
        "/x/@{1.body.dots}",
        "/x/@{1.body.up}",
        "/x/@{1.body.back}",
        "/x/.@{1.body.dot}/y",
        "/x/@{1.body.dot}@{1.body.dot}/y",
        "/x/%2e@{1.body.dot}/y",
        "$1/@{1.body.dots}",
        "/x/@{none.body}",
        "/x/@{nan.body.a}",
        "/x/@{deep.body.0}",
        "/x/@{latin.body}",
        "$none",
        "$elsewhere/x",
        "$odd",
        "$climbs",
        "$evil/@{1.body.line}",
    ],
)
def test_target_that_cannot_be_made_is_unresolved(text: str) -> None:
    with pytest.raises(Unresolved):
        target(text)


def test_location_is_not_looked_through_for_references() -> None:
    assert target("$evil/y") == "/x/@{2.body.secret}/y"


def test_location_with_two_slashes_stays_one_that_is_refused() -> None:
    found = target("$slashes")
    assert found == "//evil.example/x"
    with pytest.raises(Malformed):
        own_path(found, PLACE)


# --- fields -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("If-Match", "$1", 'W/"e"'),
        ("if-none-match", "$1", 'W/"e"'),
        ("X-If", "$1", "$1"),
        ("If-Match", "$3", "$3"),
        ("X", "a @{1.body.id} b @{1.headers.ETAG}", 'a 7 b W/"e"'),
        ("X", "@{1.body.name}", "a b/\xe9"),
        ("X", "@{1.body.code}", "@{2.body.secret}"),
        ("X", "@@{1.body.id} @{x} {y}", "@{1.body.id} @{x} {y}"),
        ("X", "@{1.body.empty}", ""),
        ("If-Match", "$evil", '"@{2.body.secret}"'),
    ],
)
def test_field_gets_its_values(name: str, value: str, found: str) -> None:
    assert fields((name, value)) == ((name, found),)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("If-Match", "$2"),
        ("If-Match", "$odd"),
        ("X", "@{1.body.line}"),
        ("X", "@{1.body.euro}"),
        ("X", "@{1.body.half}"),
        ("X", "@{1.body.deep}"),
        ("X", "@{3.body.x}"),
    ],
)
def test_field_that_cannot_be_made_is_unresolved(name: str, value: str) -> None:
    with pytest.raises(Unresolved):
        fields((name, value))


# --- bodies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": "@{1.body.id}"}', '{"a": 7}'),
        ('{"a": "no. @{1.body.id}"}', '{"a": "no. 7"}'),
        ('["@{1.body.deep}"]', '[[{"x":"y"},"z"]]'),
        ('["@{1.body.n}", "@{1.body.t}"]', "[null, true]"),
        ('["@{1.body.line}!"]', '["a\\r\\nb!"]'),
        ('["@{1.body.quote}", "<@{1.body.quote}>"]', '["\\"", "<\\"">]'.replace('"">', '">"')),
        ('["\\u0040{1.body.id}"]', '["\\u0040{1.body.id}"]'),
        ('["@\\u007b1.body.id}"]', '["@\\u007b1.body.id}"]'),
        ('["@{1.body.code}"]', '["@{2.body.secret}"]'),
        ('["@{2.body.secret}"]', '["@{2.body.secret}"]'),
        ('["x @{2.body.secret}"]', '["x @{2.body.secret}"]'),
        ('["@@{1.body.id}", "@@{"]', '["@{1.body.id}", "@{"]'),
        ('["@{x}", "@{ @{1.body.id}"]', '["@{x}", "@{ 7"]'),
        ('{"@{1.body.id}" \n: 1, "@{1.body.id}":2}', '{"@{1.body.id}" \n: 1, "@{1.body.id}":2}'),
        ('[ 1.10, "\\"@{1.body.id}\\\\" ]', '[ 1.10, "\\"7\\\\" ]'),
        ('["@{1.headers.etag}"]', '["W/\\"e\\""]'),
        ('["@{1.body.id}", 1e400]', "[7, 1e400]"),
    ],
)  # fmt: skip
def test_body_gets_its_values(text: str, found: str) -> None:
    assert body(text) == found


def test_numbers_keep_all_their_digits() -> None:
    text = '["@{numbers.body.f}", "@{numbers.body.i}", "@{numbers.body.e}", "@{numbers.body.l}"]'
    assert body(text, "numbers") == "[1.10, 12345678901234567890123, 1e400, [1.50]]"
    assert body('["x@{numbers.body.f}"]', "numbers") == '["x1.10"]'


@pytest.mark.parametrize(
    "text",
    [
        '["@{1.body.missing}"]',
        '["@{1.body.half}"]',
        '["x @{1.body.half}"]',
        '["x @{1.body.deep}"]',
        '["x @{1.body.t}"]',
    ],
)
def test_body_that_cannot_be_made_is_unresolved(text: str) -> None:
    with pytest.raises(Unresolved):
        body(text)


def test_body_refers_to_the_answers_that_the_part_depends_on() -> None:
    with pytest.raises(Unresolved):
        body('["@{3.body.x}"]', "1", "3")
    assert body('["@{3.body.x}"]', "1") == '["@{3.body.x}"]'


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ((), '["@{1.body.id}"]'),
        ((("Content-Type", "text/plain"),), '["@{1.body.id}"]'),
        (JSON, '["@{1.body.id}"'),
        (JSON, '"@{1.body.id}" "'),
        (JSON, "[" * 5000 + '"@{1.body.id}"'),
        (JSON, '["\\ud800 @{1.body.id}"]'),
    ],
)
def test_body_that_is_no_json_is_left_alone(kind: Fields, text: str) -> None:
    assert body(text, kind=kind) == text


def test_body_without_dependencies_is_left_alone() -> None:
    part = Part("POST", "/", JSON, b'["@{1.body.id}"]')
    assert resolve(part, ANSWERS, own) is part


def test_suffix_of_a_json_type_is_json() -> None:
    assert body('["@{1.body.id}"]', kind=(("Content-Type", "Application/X+JSON; a"),)) == "[7]"


# --- how much -----------------------------------------------------------------------------------

LONG = {"1": answer("x" * 1000)}


@pytest.mark.parametrize(
    ("part", "size"),
    [
        (Part("GET", "/@{1.body}"), {"head": 1001}),
        (Part("GET", "/", (("X", "@{1.body}"),)), {"head": 1002}),
        (Part("POST", "/", JSON, b'["@{1.body}"]', depends_on=("1",)), {"part": 1004}),
    ],
)
def test_part_may_become_as_large_as_its_bounds(part: Part, size: dict[str, int]) -> None:
    assert resolve(part, LONG, own, Bounds(**size)) != part
    with pytest.raises(Unresolved):
        resolve(part, LONG, own, Bounds(**{name: most - 1 for name, most in size.items()}))


def test_short_references_cannot_make_gigabytes() -> None:
    answers = {"1": answer("x" * (1 << 20))}
    text = json.dumps(["@{1.body}"] * 50_000).encode()
    with pytest.raises(Unresolved):
        resolve(Part("POST", "/", JSON, text, depends_on=("1",)), answers, own)


# --- whatever is written ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (Part("GET", "$1/@{2.body.x}?@{3.headers.y}"), {"1", "2", "3"}),
        (Part("GET", "$9/@@{2.body.x}/@{2}"), set()),
        (Part("GET", "/", (("If-Match", "$1"), ("X", "$2 @{a.b.body.c}"))), {"1", "a.b"}),
        (Part("POST", "/", JSON, b'["@{1.body}"]', depends_on=("1",)), set()),
        (Part("GET", "/@{a.body.body.x}@{b.headers.body}"), {"a", "b"}),
    ],
)
def test_ids_that_are_referred_to_are_found(part: Part, names: set[str]) -> None:
    assert mentioned(part, ["1", "2", "3"]) == names
    assert mentioned(part, {"1": 0, "2": 0, "3": 0}) == names


TEXTS = st.lists(
    st.sampled_from(
        ["@{", "@@{", "}", "1", "2", ".body", ".headers", ".id", ".name", ".dots", "$1", "/", "..",
         "?", ".", "a.b", ".deep", ".0", ".line", "\\", "%2e"]
    ),
    min_size=1, max_size=10,
).map("".join)  # fmt: skip


@given(TEXTS, TEXTS, st.text(st.characters(exclude_categories=["Cs"]), max_size=5))
def test_whatever_is_written_is_sendable_or_unresolved(path: str, value: str, text: str) -> None:
    content: Any = {path: [value, text, 1.5], value: text}
    part = Part(
        "POST", path, (*JSON, ("X", value)), json.dumps(content).encode(), None, None, ("1",)
    )
    try:
        found = resolve(part, ANSWERS, own)
    except Unresolved:
        return
    assert re.fullmatch(r"[\x21-\x7e]+", found.target)
    assert re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", found.fields[1][1])
    read = json.loads(found.body)
    assert set(read) == {path, value}


@given(st.text(max_size=8))
def test_value_of_a_path_adds_no_segment_and_leaves_none(value: str) -> None:
    part = Part("GET", "/a/@{1.body}/b?c")
    try:
        found = resolve(part, {"1": answer(value)}, own).target
    except Unresolved:
        return
    assert found.count("/") == 3
    assert "/../" not in found
    assert found.endswith("/b?c")
