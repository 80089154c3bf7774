"""Whatever is read of a request to recognise it, the view reads its body as if nothing had been."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Response, request
from werkzeug.datastructures import FileStorage

from demijohn.errors import UsageError
from demijohn.fingerprint import IN_MEMORY
from tests.acceptance.conftest import Bank, new_key

Make = Callable[..., Bank]
FORM = "application/x-www-form-urlencoded"


def replayed(response: Any) -> bool:
    return bool(response.headers.get("Idempotent-Replayed") == "true")


def stream() -> bytes:
    return request.stream.read()


WAYS: dict[str, Callable[[], bytes]] = {
    "data": lambda: request.data,
    "get_data": lambda: request.get_data(cache=True),
    "uncached": lambda: request.get_data(cache=False),
    "stream": stream,
    "in pieces": lambda: b"".join(iter(lambda: request.stream.read(1000), b"")),
    "twice": lambda: request.get_data() and request.get_data(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [0, 10, IN_MEMORY, IN_MEMORY + 1, 3 * IN_MEMORY])
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_view_reads_the_body_in_any_way(
    lone_bank: Make, way: str, size: int, chunked: bool
) -> None:
    bank = lone_bank(max_body=10_000_000)
    bank.add("/body", lambda: Response(WAYS[way](), mimetype="application/octet-stream"))
    content = (b"0123456789" * (size // 10 + 1))[:size]

    def post(key: str, body: bytes) -> Any:
        options: dict[str, Any] = {"input_stream": io.BytesIO(body)}
        environ = {"wsgi.input_terminated": True} if chunked else {"CONTENT_LENGTH": str(len(body))}
        return bank.post(
            key, "/body", json=None, content_type="x/y", environ_overrides=environ, **options
        )

    key = new_key()
    assert post(key, content).data == content
    assert replayed(post(key, content))
    assert post(key, content + b"!").status_code == 422


@pytest.mark.parametrize("way", sorted(WAYS))
def test_view_reads_the_bytes_of_a_small_form(lone_bank: Make, way: str) -> None:
    bank = lone_bank(forms=True)

    def view() -> Any:
        # `data` is empty for a form that was parsed, as it is without Demijohn.
        body = request.get_data() if way == "data" else WAYS[way]()
        return Response(body + b"|" + request.form["amount"].encode())

    bank.add("/form", view)
    body = f"__idempotent_key={new_key()}&amount=7"
    for again in (False, True):
        answer = bank.post(None, "/form", json=None, data=body, content_type=FORM)
        assert answer.data == f"{body}|7".encode()
        assert replayed(answer) == again


def test_view_reads_an_upload_and_its_bytes(lone_bank: Make) -> None:
    bank = lone_bank()

    def view() -> Any:
        upload = request.files["file"].read()
        return {"upload": upload.decode(), "bytes": request.get_data().count(upload)}

    bank.add("/upload", view)
    data = {"file": FileStorage(io.BytesIO(b"content"), "f.txt")}
    assert bank.post(new_key(), "/upload", json=None, data=data).json == {
        "upload": "content",
        "bytes": 1,
    }


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
@pytest.mark.parametrize("size", [10, 2 * IN_MEMORY])
def test_body_that_a_hook_has_read_counts(lone_bank: Make, size: int, chunked: bool) -> None:
    bank = lone_bank(max_body=10_000_000)
    bank.app.before_request(lambda: request.get_data() and None)
    bank.add("/body", lambda: Response(request.get_data()))

    def post(key: str, body: bytes) -> Any:
        environ = {"wsgi.input_terminated": True} if chunked else {"CONTENT_LENGTH": str(len(body))}
        return bank.post(
            key,
            "/body",
            json=None,
            content_type="x/y",
            input_stream=io.BytesIO(body),
            environ_overrides=environ,
        )

    key = new_key()
    assert post(key, b"a" * size).data == b"a" * size
    assert replayed(post(key, b"a" * size))
    assert post(key, b"b" * size).status_code == 422


def test_form_that_a_hook_has_parsed_counts(lone_bank: Make) -> None:
    bank = lone_bank()
    bank.app.before_request(lambda: request.form.get("amount") and None)
    key = new_key()
    form: dict[str, Any] = {"json": None, "content_type": FORM}
    bank.post(key, data="amount=1&note=a", **form)
    assert replayed(bank.post(key, data="note=a&amount=1", **form))
    assert bank.post(key, data="amount=2&note=a", **form).status_code == 422


def test_members_that_count_are_chosen_and_the_body_stays(lone_bank: Make) -> None:
    bank = lone_bank(fingerprint=["/amount"])
    bank.add("/body", lambda: Response(request.stream.read()))
    key = new_key()
    body = {"amount": 1, "sent_at": "monday"}
    assert json.loads(bank.post(key, "/body", json=body).data) == body
    assert replayed(bank.post(key, "/body", json={**body, "sent_at": "tuesday"}))
    assert bank.post(key, "/body", json={**body, "amount": 2}).status_code == 422


@pytest.mark.parametrize("value", [5, None, ["a"]])
@pytest.mark.parametrize("option", ["fingerprint", "scope"])
def test_function_that_gives_no_string_is_a_mistake(
    lone_bank: Make, option: str, value: Any
) -> None:
    bank = lone_bank(**{option: lambda request: value})
    bank.app.testing = True
    with pytest.raises(UsageError, match="returned"):
        bank.post(new_key())
    assert bank.runs == 0


@pytest.mark.parametrize("kind", ["x/y", "application/json", FORM])
def test_body_over_the_limit_of_the_application_is_refused_without_a_claim(
    lone_bank: Make, kind: str
) -> None:
    bank = lone_bank()
    bank.app.config["MAX_CONTENT_LENGTH"] = 1000
    for size in (1001, 2 * IN_MEMORY):
        answer = bank.post(new_key(), json=None, data=b"x" * size, content_type=kind)
        assert answer.status_code == 413
    assert bank.runs == 0
    assert list(bank.store.scan("")) == []


def test_form_in_another_order_is_the_same_and_another_of_equal_length_is_not(
    lone_bank: Make,
) -> None:
    bank, key = lone_bank(), new_key()
    form: dict[str, Any] = {"json": None, "content_type": FORM}
    bank.post(key, data="to=alice&amount=1", **form)
    assert replayed(bank.post(key, data="amount=1&to=alice", **form))
    assert bank.post(key, data="to=malory&amont=1", **form).status_code == 422
    assert bank.post(key, data="to=alice&amount=2", **form).status_code == 422
