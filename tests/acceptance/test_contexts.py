"""Requests that share a context, guards within guards, and views called in unusual ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import request

from demijohn import idempotency
from tests.acceptance.conftest import Bank, new_key

Make = Callable[..., Bank]


def replayed(response: Any) -> bool:
    return bool(response.headers.get("Idempotent-Replayed") == "true")


# --- contexts -----------------------------------------------------------------------------------


def test_requests_in_one_application_context_are_requests_of_their_own(bank: Bank) -> None:
    key = new_key()
    with bank.app.app_context():  # Flask gives both requests this one's g
        assert bank.post(key).json == {"run": 1}
        assert replayed(bank.post(key))


def test_callers_in_one_application_context_never_share_an_answer(bank: Bank) -> None:
    key = new_key()
    with bank.app.app_context():
        assert bank.post(key).json == {"run": 1}
        bank.caller = "bob"
        assert bank.post(key).json == {"run": 2}


def test_request_inside_a_view_has_a_key_and_a_caller_of_its_own(bank: Bank) -> None:
    seen: list[Any] = []

    def batch() -> Any:
        inner = request.headers["X-Inner"]
        bank.caller = "bob"  # the part acts for somebody else
        seen.extend(bank.post(inner).json for _ in range(2))
        bank.caller = "alice"
        seen.append(idempotency.current.key)
        return {"parts": 2}

    bank.add("/batch", batch)
    outer, inner = new_key(), new_key()
    assert bank.post(outer, "/batch", headers={"X-Inner": inner}).json == {"parts": 2}
    assert seen == [{"run": 1}, {"run": 1}, outer]
    assert replayed(bank.post(outer, "/batch", headers={"X-Inner": inner}))
    assert bank.post(inner).json == {"run": 2}  # alice's, though bob has used the same key
