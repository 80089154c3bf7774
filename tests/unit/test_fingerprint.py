"""What makes two requests the same."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest
from flask import Flask, request
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.test import encode_multipart

from demijohn.errors import ConfigError
from demijohn.fingerprint import IN_MEMORY, canonical_json, of_request, parse_pointers

app = Flask(__name__)
JSON = "application/json"


def fingerprint(
    data: bytes = b"",
    content_type: str | None = None,
    *,
    path: str = "/p",
    method: str = "POST",
    environ: dict[str, Any] | None = None,
    **options: Any,
) -> bytes:
    with app.test_request_context(
        path, method=method, data=data, content_type=content_type, environ_overrides=environ
    ):
        return of_request(request._get_current_object(), **options)  # type: ignore[attr-defined]


documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def shuffled(document: Any, chance: random.Random) -> Any:
    if isinstance(document, dict):
        items = [(name, shuffled(value, chance)) for name, value in document.items()]
        chance.shuffle(items)
        return dict(items)
    if isinstance(document, list):
        return [shuffled(value, chance) for value in document]
    return document


@given(documents, st.randoms(use_true_random=False), st.sampled_from([None, 2, "\t"]))
def test_order_of_members_and_white_space_never_matter(
    document: Any, chance: random.Random, indent: Any
) -> None:
    plain = json.dumps(document).encode()
    other = json.dumps(shuffled(document, chance), indent=indent, ensure_ascii=False)
    try:
        raw = other.encode()
    except UnicodeEncodeError:  # a lone surrogate can only be written as an escape
        raw = json.dumps(shuffled(document, chance), indent=indent).encode()
    if canonical_json(plain) is not None:
        assert canonical_json(plain) == canonical_json(raw)


@given(documents, documents)
def test_different_documents_differ(one: Any, other: Any) -> None:
    first, second = json.dumps(one).encode(), json.dumps(other).encode()
    canonical = canonical_json(first), canonical_json(second)
    if None not in canonical:
        same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
        assert (canonical[0] == canonical[1]) == same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"1", b"1.0"),
        (b"1.0", b"1.00"),
        (b"1e2", b"100.0"),
        (b"12345678901234567890.1", b"12345678901234567890.2"),
        (b'"1"', b"1"),
        (b'"1.5"', b"1.5"),
        (b"null", b"false"),
        (b"[]", b"{}"),
    ],
)
def test_values_count_as_they_are_written(one: bytes, other: bytes) -> None:
    assert fingerprint(one, JSON) != fingerprint(other, JSON)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"NaN", b'{"a": 1} x', b'"\\ud800"', b"\xff", b"[" * 5000 + b"]" * 5000]
)
def test_what_is_not_json_counts_byte_by_byte(body: bytes) -> None:
    assert canonical_json(body) is None
    assert fingerprint(body, JSON) == fingerprint(body, JSON)
    assert fingerprint(body, JSON) != fingerprint(body + b" ", JSON)


@given(st.lists(st.tuples(st.text(), st.text()), unique_by=lambda pair: pair[0]))
def test_order_of_query_arguments_never_matters(pairs: list[tuple[str, str]]) -> None:
    from urllib.parse import urlencode

    def of(some: list[tuple[str, str]]) -> bytes:
        return fingerprint(environ={"QUERY_STRING": urlencode(some, errors="surrogatepass")})

    assert of(pairs) == of(pairs[::-1])


def test_every_part_of_a_request_counts() -> None:
    base = fingerprint(b"x", "text/plain", path="/p?a=1")
    others = [
        fingerprint(b"y", "text/plain", path="/p?a=1"),
        fingerprint(b"x", "text/html", path="/p?a=1"),
        fingerprint(b"x", "text/plain", path="/q?a=1"),
        fingerprint(b"x", "text/plain", path="/p?a=2"),
        fingerprint(b"x", "text/plain", path="/p?a=1&a=1"),
        fingerprint(b"x", "text/plain", path="/p?b=1"),
        fingerprint(b"x", "text/plain", path="/p"),
        fingerprint(b"x", "text/plain", path="/p?a=1", method="PATCH"),
        fingerprint(b"x", None, path="/p?a=1"),
    ]
    assert len({base, *others}) == 10
    assert fingerprint(b"x", "text/plain; charset=utf-8", path="/p?a=1") == base
    assert fingerprint(b"x", "text/plain", path="/%70?%61=1") == base


def test_parts_never_run_together() -> None:
    assert fingerprint(path="/p?a=1&b=2") != fingerprint(path="/p?a=1%26b%3D2")
    form = "application/x-www-form-urlencoded"
    assert fingerprint(b"a=b&c=d", form) != fingerprint(b"a=bc&=d", form)
    assert fingerprint(b"a=1&a=2", form) != fingerprint(b"a=2&a=1", form)


def test_key_in_a_form_or_query_does_not_count() -> None:
    form = "application/x-www-form-urlencoded"
    one = fingerprint(b"a=1&key=x", form, path="/p?key=x", key_field="key")
    assert one == fingerprint(b"key=y&a=1", form, key_field="key")
    assert one != fingerprint(b"a=1&key=x", form, path="/p?key=x")


def upload(content: bytes, name: str = "f.txt", boundary: str = "b", **fields: str) -> bytes:
    data = {**fields, "file": FileStorage(io.BytesIO(content), name, "file")}
    _, body = encode_multipart(data, boundary=boundary)
    return fingerprint(body, f"multipart/form-data; boundary={boundary}")


def test_upload_is_the_same_under_another_boundary() -> None:
    large = b"x" * (2 * IN_MEMORY)
    assert upload(b"c", note="n") == upload(b"c", boundary="other", note="n")
    assert upload(large) == upload(large, boundary="other")
    different = {
        upload(b"c"), upload(b"d"), upload(b"c", "g.txt"), upload(b"c", note="n"),
        upload(b"c", note="m"), upload(large), upload(large + b"x"),
    }  # fmt: skip
    assert len(different) == 7


def test_upload_stays_readable() -> None:
    data = {"file": FileStorage(io.BytesIO(b"content"), "f.txt", "file")}
    boundary, body = encode_multipart(data, boundary="b")
    kind = f"multipart/form-data; boundary={boundary}"
    with app.test_request_context("/p", method="POST", data=body, content_type=kind):
        of_request(request._get_current_object())  # type: ignore[attr-defined]
        assert request.files["file"].read() == b"content"


@pytest.mark.parametrize("chunked", [False, True])
def test_large_body_is_digested_as_it_streams_and_stays_readable(chunked: bool) -> None:
    body = b"0123456789abcdef" * (IN_MEMORY // 8)
    environ: dict[str, Any] = {"wsgi.input": io.BytesIO(body), "CONTENT_TYPE": "x/y"}
    if chunked:
        environ |= {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
    else:
        environ |= {"CONTENT_LENGTH": str(len(body))}
    with app.test_request_context("/p", method="POST", environ_overrides=environ):
        first = of_request(request._get_current_object())  # type: ignore[attr-defined]
        assert request.get_data() == body
    environ["wsgi.input"] = io.BytesIO(body + b"!")
    if not chunked:
        environ["CONTENT_LENGTH"] = str(len(body) + 1)
    assert fingerprint(environ=environ) != first


def test_limit_on_the_length_of_a_body_holds() -> None:
    body = b"x" * (2 * IN_MEMORY)
    environ = {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    with app.test_request_context("/p", method="POST", environ_overrides=environ):
        request.max_content_length = IN_MEMORY
        with pytest.raises(RequestEntityTooLarge):
            of_request(request._get_current_object())  # type: ignore[attr-defined]


CUT = [
    (b'{"amount": 1000}', JSON, {}),
    (b"1000", "text/plain", {}),  # what is there of it would be another, valid request
    (b"amount=1000", "application/x-www-form-urlencoded", {}),
    (b"x" * (IN_MEMORY + 1), "application/octet-stream", {}),
    (b'{"amount": 1000}', JSON, {"how": ("/amount",)}),
    (b"1000", "text/plain", {"how": lambda request: request.get_data()}),
]


@pytest.mark.parametrize(("body", "content_type", "options"), CUT)
def test_request_that_breaks_off_has_no_fingerprint(
    body: bytes, content_type: str, options: dict[str, Any]
) -> None:
    """gunicorn ends such a body without a word, and says that it ends bodies itself."""
    environ = {
        "wsgi.input": io.BytesIO(body[:-1]),
        "wsgi.input_terminated": True,
        "CONTENT_LENGTH": str(len(body)),
    }
    with pytest.raises(ClientDisconnected):
        fingerprint(b"", content_type, environ=environ, **options)


def test_request_that_breaks_off_is_found_after_a_hook_has_read_it() -> None:
    environ = {
        "wsgi.input": io.BytesIO(b"100"),
        "wsgi.input_terminated": True,
        "CONTENT_LENGTH": "4",
    }
    with app.test_request_context("/p", method="POST", environ_overrides=environ):
        assert request.get_data() == b"100"
        with pytest.raises(ClientDisconnected):
            of_request(request._get_current_object())  # type: ignore[attr-defined]


def test_own_function_decides() -> None:
    def amount(request: Any) -> str:
        return str(request.get_json()["amount"])

    def of(body: bytes) -> bytes:
        return fingerprint(body, JSON, how=amount)

    assert of(b'{"amount": 1, "note": "a"}') == of(b'{"amount": 1, "note": "b"}')
    assert of(b'{"amount": 1}') != of(b'{"amount": 2}')
    assert fingerprint(b"", how=lambda request: b"x") == fingerprint(b"y", how=lambda r: "x")


def test_pointers_decide() -> None:
    how = parse_pointers(["/amount", "/items/0/sku", "/a~1b/c~0d"])

    def of(document: Any) -> bytes:
        return fingerprint(json.dumps(document).encode(), JSON, how=how)

    assert of({"amount": 1, "note": "a"}) == of({"note": "b", "amount": 1})
    documents: list[Any] = [
        {},
        {"amount": None},
        {"amount": 1},
        {"amount": "1"},
        {"items": [{"sku": 1}]},
        {"items": [{"sku": 2}]},
        {"a/b": {"c~d": 1}},
    ]
    assert len({of(document) for document in documents}) == 7
    assert of({"items": []}) == of({"items": {"1": 2}}) == of({})
    assert fingerprint(b"{", JSON, how=how) != fingerprint(b"}", JSON, how=how)


def test_pointer_must_be_one() -> None:
    with pytest.raises(ConfigError, match="'amount' is not a JSON Pointer"):
        parse_pointers(["amount"])
    assert parse_pointers(["", "/a"]) == ("", "/a")
