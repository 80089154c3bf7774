"""Requests that share a context, guards within guards, and views called in unusual ways."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from flask import Response, abort, request, send_file

from demijohn import idempotency
from demijohn.extension import Binding
from demijohn.flow import PROCEED, Call, Flow, Result
from demijohn.guard import guarded
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


# --- guards within guards, and exceptions on their way through them ------------------------------


class Watching:
    """A policy of another capability that writes down how the view ended."""

    capability = "limits"

    def __init__(self) -> None:
        self.heard: list[Result] = []

    complete = True
    postpones = False

    def join(self, inner: object) -> None: ...

    def bind(self, binding: Binding, beside: frozenset[str]) -> Watching:
        self.store = binding.store(self.capability)
        return self

    def flow(self, call: Call) -> Flow:
        result: Result = yield PROCEED
        self.heard.append(result)
        return None


def foreign(view: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("nested", [False, True], ids=["merged", "nested"])
@pytest.mark.parametrize("passes", [False, True], ids=["rendered", "passes flask"])
def test_every_policy_hears_of_an_exception(make_bank: Make, nested: bool, passes: bool) -> None:
    bank, watching, runs = make_bank(wait=0), Watching(), []
    bank.app.testing = passes

    def view() -> Any:
        runs.append(1)
        raise RuntimeError("in the view")

    inner = bank.dj.idempotent(view)
    outer = guarded(foreign(inner) if nested else inner, watching)
    bank.app.add_url_rule("/raise", view_func=outer, methods=["POST"])
    key = new_key()
    for _ in range(2):
        with pytest.raises(RuntimeError) if passes else nullcontext():
            assert bank.post(key, "/raise").status_code == 500
    assert len(runs) == 2  # the key was given back
    assert [str(result.exception) for result in watching.heard] == ["in the view"] * 2
    assert [result.response is None for result in watching.heard] == [passes] * 2


def test_decorator_that_tries_a_view_again_completes_the_key(bank: Bank) -> None:
    runs: list[str | None] = []

    def view() -> Any:
        runs.append(idempotency.current.key)
        if len(runs) == 1:
            raise RuntimeError("first time")
        return "second time"

    def tries_again(inner: Callable[[], Any]) -> Callable[[], Any]:
        def wrapper() -> Any:
            try:
                return inner()
            except RuntimeError:
                return inner()

        return wrapper

    guarded_view = tries_again(bank.dj.idempotent(view))
    bank.app.add_url_rule("/again", "again", guarded_view, methods=["POST"])
    key = new_key()
    assert bank.post(key, "/again").text == "second time"
    assert replayed(bank.post(key, "/again"))
    assert runs == [key, key]


def test_decorator_that_answers_for_an_exception_decides_what_is_kept(bank: Bank) -> None:
    runs: list[int] = []

    def view() -> Any:
        runs.append(1)
        raise KeyError("amount")

    def answers(inner: Callable[[], Any]) -> Callable[[], Any]:
        def wrapper() -> Any:
            try:
                return inner()
            except KeyError:
                return "which amount?", 400

        return wrapper

    guarded_view = answers(bank.dj.idempotent(view))
    bank.app.add_url_rule("/answers", "answers", guarded_view, methods=["POST"])
    key = new_key()
    answers_given = [bank.post(key, "/answers") for _ in range(2)]
    assert [(a.status_code, a.text) for a in answers_given] == [(400, "which amount?")] * 2
    assert len(runs) == 1


@pytest.mark.parametrize("value", [None, object(), {"amount": object()}, ("x", "not a status", 7)])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_value_that_is_no_response_gives_the_key_back(
    make_bank: Make, value: Any, asynchronous: bool
) -> None:
    bank, runs = make_bank(wait=0), []

    def view() -> Any:
        runs.append(1)
        return value if len(runs) == 1 else "mended"

    async def later() -> Any:
        return view()

    if asynchronous:
        pytest.importorskip("asgiref")
    bank.add("/value", later if asynchronous else view)
    key = new_key()
    assert bank.post(key, "/value").status_code == 500
    assert bank.post(key, "/value").text == "mended"


def test_error_handler_that_fails_gives_the_key_back(bank: Bank) -> None:
    runs: list[int] = []

    def view() -> Any:
        runs.append(1)
        raise KeyError("amount")

    def fails(error: KeyError) -> Any:
        raise RuntimeError("in the handler")

    bank.app.register_error_handler(KeyError, fails)
    bank.add("/fails", view)
    key = new_key()
    assert [bank.post(key, "/fails").status_code for _ in range(2)] == [500, 500]
    assert len(runs) == 2


def test_ready_response_that_a_view_aborts_with_is_an_answer(bank: Bank) -> None:
    runs: list[int] = []

    def view() -> Any:
        runs.append(1)
        abort(Response("sold out", 410, {"X-Own": "kept"}))

    bank.add("/ready", view)
    key = new_key()
    first, second = bank.post(key, "/ready"), bank.post(key, "/ready")
    assert (second.status_code, second.data, second.headers["X-Own"]) == (410, first.data, "kept")
    assert len(runs) == 1


def test_interrupt_leaves_every_policy_to_its_lease(make_bank: Make) -> None:
    bank, watching = make_bank(lease=0.3, wait=5), Watching()

    def view() -> Any:
        if idempotency.current.attempt == 1:
            raise KeyboardInterrupt
        return f"attempt {idempotency.current.attempt}"

    outer = guarded(foreign(bank.dj.idempotent(view)), watching)
    bank.app.add_url_rule("/stop", view_func=outer, methods=["POST"])
    key = new_key()
    with pytest.raises(KeyboardInterrupt):
        bank.post(key, "/stop")
    assert watching.heard == []
    assert bank.post(key, "/stop").text == "attempt 2"


class Answering(Watching):
    """A policy behind idempotency that answers in the view's place, as a cache does."""

    capability = "caching"

    def flow(self, call: Call) -> Flow:
        return Response("from the cache")
        yield PROCEED  # what makes it a generator


def test_answer_of_another_policy_is_not_kept(bank: Bank) -> None:
    answering = Answering()
    view = guarded(bank.dj.idempotent(lambda: "never"), answering)
    bank.app.add_url_rule("/cached", "cached", view, methods=["POST"])
    key = new_key()
    for _ in range(2):
        answer = bank.post(key, "/cached")
        assert answer.text == "from the cache"
        assert not replayed(answer)


def test_error_page_from_a_file_is_replayed(bank: Bank) -> None:
    def page(error: Any) -> Any:
        return send_file(io.BytesIO(b"gone"), "text/plain"), 410

    bank.app.register_error_handler(410, page)
    bank.add("/gone", lambda: abort(410))
    key = new_key()
    answers = [bank.post(key, "/gone") for _ in range(2)]
    assert [(answer.status_code, answer.data) for answer in answers] == [(410, b"gone")] * 2
    assert replayed(answers[1])
