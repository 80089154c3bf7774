"""What a client sees: section 2 of the specification, on every store."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import abort
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from demijohn import idempotency
from demijohn.idempotency import signals
from tests.acceptance.conftest import Bank, heard, new_key, together

Make = Callable[..., Bank]


def slug(response: Any) -> str:
    assert response.mimetype == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    document = response.get_json()
    assert document["status"] == response.status_code
    assert document["title"]
    assert document["detail"]
    return str(document["type"]).rpartition("#")[2]


def test_same_key_twice_runs_once_and_gives_the_same_bytes(bank: Bank) -> None:
    key = new_key()
    first, second = bank.post(key), bank.post(key)
    assert bank.runs == 1
    assert (first.status_code, first.data) == (second.status_code, second.data) == (201, first.data)
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert second.headers["Cache-Control"] == "no-store"
    assert second.headers["Content-Type"] == first.headers["Content-Type"]


def test_concurrent_duplicates_run_once_and_all_get_the_first_response(bank: Bank) -> None:
    key = new_key()
    bank.go.clear()
    with together(20) as start:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        others = [start(bank.post, key) for _ in range(19)]
        bank.go.set()
        answers = [future.result(30) for future in [first, *others]]
    assert bank.runs == 1
    assert {(answer.status_code, answer.data) for answer in answers} == {(201, answers[0].data)}
    assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 19


def test_different_keys_never_share(bank: Bank) -> None:
    assert bank.post(new_key()).json != bank.post(new_key()).json


def test_request_without_a_key_runs_each_time_and_stores_nothing(bank: Bank) -> None:
    bank.post()
    bank.post()
    assert bank.runs == 2
    assert list(bank.store.scan("")) == []


@pytest.mark.parametrize(
    "other",
    [
        {"json": {"amount": 2}},
        {"query_string": {"x": "1"}},
        {"path": "/other"},
        {"method": "PATCH", "path": "/many"},
        {"json": None, "data": b'{"amount": 1}', "content_type": "text/plain"},
    ],
    ids=["body", "query", "path", "method", "type"],
)
def test_key_with_another_request_is_refused(bank: Bank, other: dict[str, Any]) -> None:
    bank.add("/other", lambda: {"other": True})
    bank.add("/many", lambda: {"many": True})
    key = new_key()
    bank.post(key, path="/many" if other.get("path") == "/many" else "/pay")
    answer = bank.post(key, **other)
    assert (answer.status_code, slug(answer)) == (422, "idempotency-key-reused")
    assert b"run" not in answer.data.replace(b"running", b"")


def test_key_with_another_request_is_refused_while_the_first_runs(bank: Bank) -> None:
    key = new_key()
    bank.go.clear()
    with together(1) as start:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        assert bank.post(key, json={"amount": 2}).status_code == 422
        bank.go.set()
        assert first.result(30).status_code == 201


def test_order_of_members_and_white_space_make_no_difference(bank: Bank) -> None:
    key = new_key()
    json = {"content_type": "application/json", "json": None}
    bank.post(key, data=b'{"a": 1, "b": [1.50, "x"]}', **json)
    same = bank.post(key, data=b'{ "b":[1.50,"x"],"a":1 }', **json)
    assert same.headers["Idempotent-Replayed"] == "true"
    assert bank.post(key, data=b'{"a": 1.0, "b": [1.50, "x"]}', **json).status_code == 422
    assert bank.post(key, data=b'{"a": 1, "b": [1.5, "x"]}', **json).status_code == 422


def test_form_that_a_browser_sends_again_is_the_same(bank: Bank) -> None:
    key = new_key()

    def upload(content: bytes, boundary: str) -> Any:
        data = {"note": "n", "file": FileStorage(io.BytesIO(content), "f.txt", "file")}
        _, body = encode_multipart(data, boundary=boundary)
        kind = f"multipart/form-data; boundary={boundary}"
        return bank.post(key, json=None, data=body, content_type=kind)

    assert upload(b"content", "one").status_code == 201
    assert upload(b"content", "two").headers["Idempotent-Replayed"] == "true"
    assert upload(b"CONTENT", "two").status_code == 422


def test_key_of_another_caller_is_another_key(bank: Bank) -> None:
    key = new_key()
    assert bank.post(key).json == {"run": 1}
    bank.caller = "bob"
    assert bank.post(key).json == {"run": 2}


def test_anonymous_callers_must_send_keys_that_are_hard_to_guess(bank: Bank) -> None:
    bank.caller = None
    answer = bank.post("order-17")
    assert (answer.status_code, slug(answer)) == (400, "idempotency-key-invalid")
    assert bank.post("x" * 20).status_code == 201
    assert bank.post(new_key()).status_code == 201
    bank.caller = "alice"
    assert bank.post("order-17").status_code == 201


def test_anonymous_callers_may_be_refused(make_bank: Make) -> None:
    bank = make_bank(anonymous="refuse")
    bank.caller = None
    answer = bank.post(new_key())
    assert (answer.status_code, slug(answer)) == (401, "idempotency-caller-unknown")
    assert bank.runs == 0


@pytest.mark.parametrize("status", [200, 202, 204, 301, 303, 400, 404, 410, 422])
def test_final_answers_are_replayed(bank: Bank, status: int) -> None:
    runs = []

    def view() -> Any:
        runs.append(1)
        return f"{status}", status, {"Location": "/there", "X-Own": "kept"}

    bank.add("/final", view)
    key = new_key()
    first, second = bank.post(key, "/final"), bank.post(key, "/final")
    assert (first.status_code, first.data) == (second.status_code, second.data)
    assert second.headers["Location"] == first.headers["Location"]
    assert second.headers["X-Own"] == "kept"
    assert len(runs) == 1


@pytest.mark.parametrize("status", [401, 403, 408, 409, 421, 423, 425, 429, 500, 502, 503])
def test_answers_that_a_retry_may_change_are_not_replayed(bank: Bank, status: int) -> None:
    runs = []

    def view() -> Any:
        runs.append(1)
        return "later", status

    bank.add("/later", view)
    key = new_key()
    with heard(signals.released) as seen:
        bank.post(key, "/later")
        bank.post(key, "/later")
    assert len(runs) == 2
    assert len(seen) == 2


@pytest.mark.parametrize(("status", "runs"), [(400, 1), (404, 1), (401, 2), (429, 2), (500, 2)])
def test_aborting_is_answering(bank: Bank, status: int, runs: int) -> None:
    count = []

    def view() -> Any:
        count.append(1)
        abort(status)

    bank.add("/abort", view)
    key = new_key()
    first, second = bank.post(key, "/abort"), bank.post(key, "/abort")
    assert first.status_code == second.status_code == status
    assert first.data == second.data
    assert len(count) == runs


def test_exception_gives_the_key_back(bank: Bank) -> None:
    count = []

    def view() -> Any:
        count.append(1)
        if len(count) == 1:
            raise RuntimeError("first time")
        return f"attempt {idempotency.current.attempt} {idempotency.current.is_retry}"

    bank.add("/raise", view)
    key = new_key()
    assert bank.post(key, "/raise").status_code == 500
    assert bank.post(key, "/raise").text == "attempt 2 True"


def test_exception_that_an_error_handler_answers_is_an_answer(bank: Bank) -> None:
    count = []

    def view() -> Any:
        count.append(1)
        raise KeyError("amount")

    bank.app.register_error_handler(KeyError, lambda error: ("bad amount", 400))
    bank.add("/handled", view)
    key = new_key()
    answers = [bank.post(key, "/handled") for _ in range(2)]
    assert [(answer.status_code, answer.text) for answer in answers] == [(400, "bad amount")] * 2
    assert len(count) == 1


def test_exception_that_passes_flask_gives_the_key_back(bank: Bank) -> None:
    bank.app.testing = True
    count = []

    def view() -> Any:
        count.append(1)
        raise RuntimeError("to the debugger")

    bank.add("/passes", view)
    key = new_key()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            bank.post(key, "/passes")
    assert len(count) == 2


def test_end_of_the_process_is_no_result(make_bank: Make) -> None:
    bank = make_bank(lease=0.2, wait=5)
    count = []

    def view() -> Any:
        count.append(1)
        if len(count) == 1:
            raise SystemExit(1)
        return f"attempt {idempotency.current.attempt}"

    bank.add("/exit", view)
    key = new_key()
    with pytest.raises(SystemExit):
        bank.post(key, "/exit")
    assert next(bank.store.scan(""))[1]["s"] == 1  # still claimed: its lease decides
    assert bank.post(key, "/exit").text == "attempt 2"


def test_error_after_the_point_of_no_return_is_final(bank: Bank) -> None:
    count = []

    def view() -> Any:
        count.append(1)
        idempotency.effects_done()
        raise RuntimeError("after the charge")

    bank.add("/done", view)
    key = new_key()
    first, second = bank.post(key, "/done"), bank.post(key, "/done")
    assert first.status_code == second.status_code == 500
    assert first.data == second.data
    assert len(count) == 1


def test_error_after_the_point_of_no_return_is_final_even_if_it_passes_flask(bank: Bank) -> None:
    bank.app.testing = True
    count = []

    def view() -> Any:
        count.append(1)
        idempotency.effects_done()
        raise RuntimeError("after the charge")

    bank.add("/done", view)
    key = new_key()
    with pytest.raises(RuntimeError):
        bank.post(key, "/done")
    assert bank.post(key, "/done").status_code == 500
    assert len(count) == 1


def test_duplicate_is_told_to_come_back_when_it_has_waited_long_enough(make_bank: Make) -> None:
    bank = make_bank(wait=0.2)
    key = new_key()
    bank.go.clear()
    with together(1) as start, heard(signals.waited, signals.conflicted) as seen:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        answer = bank.post(key)
        bank.go.set()
        first.result(30)
    assert (answer.status_code, slug(answer)) == (409, "idempotency-key-in-progress")
    assert 1 <= int(answer.headers["Retry-After"]) <= 5
    assert [name for name, _ in seen] == ["idempotency-waited", "idempotency-conflicted"]
    assert bank.post(key).headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("how", [{"wait": 0}, {"max_waiters": 0}, {"max_waiters_per_key": 0}])
def test_duplicate_may_be_told_at_once(make_bank: Make, how: dict[str, Any]) -> None:
    bank = make_bank(**how)
    key = new_key()
    bank.go.clear()
    with together(1) as start:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        assert bank.post(key).status_code == 409
        bank.go.set()
        assert first.result(30).status_code == 201


def test_client_may_shorten_its_wait(bank: Bank) -> None:
    key = new_key()
    bank.go.clear()
    with together(1) as start:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        prefer = {"Prefer": "respond-async, wait=0"}
        assert bank.post(key, headers=prefer).status_code == 409
        bank.go.set()
        assert first.result(30).status_code == 201


def test_waiters_beyond_the_bound_are_told_and_do_not_block_others(make_bank: Make) -> None:
    bank = make_bank(max_waiters=2, wait=20)
    key = new_key()
    bank.go.clear()
    with together(6) as start, heard(signals.conflicted) as seen:
        futures = [start(bank.post, key) for _ in range(6)]
        assert bank.entered.acquire(timeout=10)
        while len(seen) < 3:
            threading.Event().wait(0.01)
        bank.go.set()
        answers = [future.result(30).status_code for future in futures]
    assert sorted(answers) == [201, 201, 201, 409, 409, 409]
    assert bank.runs == 1


def test_waiter_runs_when_the_first_gives_the_key_back(bank: Bank) -> None:
    entered, go, count = threading.Event(), threading.Event(), []

    def view() -> Any:
        count.append(1)
        if len(count) == 1:
            entered.set()
            assert go.wait(20)
            abort(503)
        return f"attempt {idempotency.current.attempt}"

    bank.add("/again", view)
    key = new_key()
    with together(2) as start:
        first = start(bank.post, key, "/again")
        assert entered.wait(10)
        second = start(bank.post, key, "/again")
        go.set()
        assert first.result(30).status_code == 503
        assert second.result(30).text == "attempt 2"


def test_long_view_keeps_its_lease(make_bank: Make) -> None:
    bank = make_bank(lease=0.3, wait=0)
    key = new_key()
    bank.go.clear()
    with together(1) as start:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        for _ in range(10):
            threading.Event().wait(0.1)
            assert bank.post(key).status_code == 409
        bank.go.set()
        assert first.result(30).status_code == 201
    assert bank.runs == 1


def test_late_result_of_a_lost_run_is_refused_and_both_see_the_winners(make_bank: Make) -> None:
    bank = make_bank(lease=0.2)
    key = new_key()
    bank.go.clear()
    # Renewal stops, as if the process were paused.
    bank.app.extensions["demijohn"].keeper.keep = lambda *a, **k: None
    with together(2) as start, heard(signals.taken_over, signals.fenced) as seen:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        second = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)  # it has taken over
        winner_key = next(name for name, _ in bank.store.scan(""))
        bank.go.set()
        answers = [first.result(30), second.result(30)]
    assert bank.runs == 2
    names = [name for name, _ in seen]
    assert names[0] == "idempotency-taken-over"
    assert names.count("idempotency-fenced") == 1
    statuses = {answer.status_code for answer in answers}
    # Whoever ended first, the zombie never gives a result of its own.
    assert statuses in ({201}, {201, 409})
    results = {answer.data for answer in answers if answer.status_code == 201}
    assert results == {bank.post(key).data}
    assert winner_key


def test_lost_request_may_wait_for_an_operator(make_bank: Make) -> None:
    bank = make_bank(lease=0.2, on_lost="refuse")
    key = new_key()

    def view() -> Any:
        raise SystemExit(1)

    bank.add("/lost", view)
    with pytest.raises(SystemExit):
        bank.post(key, "/lost")
    with heard(signals.unknown) as seen:
        answer = bank.post(key, "/lost")
    assert (answer.status_code, slug(answer)) == (409, "idempotency-outcome-unknown")
    assert "Retry-After" not in answer.headers
    assert bank.post(key, "/lost").status_code == 409
    assert seen
    assert bank.post(key, "/pay").status_code == 422


def test_response_that_is_too_large_is_not_run_for_again(make_bank: Make) -> None:
    bank = make_bank(max_body=10)
    count = []

    def view() -> Any:
        count.append(1)
        return "x" * 11, 202

    bank.add("/large", view)
    key = new_key()
    assert bank.post(key, "/large").text == "x" * 11
    answer = bank.post(key, "/large")
    assert (answer.status_code, slug(answer)) == (409, "idempotency-response-not-kept")
    assert answer.get_json()["original_status"] == 202
    assert len(count) == 1


def test_key_is_forgotten_after_its_time(make_bank: Make) -> None:
    bank = make_bank(ttl=1)
    key = new_key()
    bank.post(key)
    assert bank.post(key).json == {"run": 1}
    threading.Event().wait(1.2)
    assert bank.post(key).json == {"run": 2}


def test_key_may_stay_refused_after_its_time(make_bank: Make) -> None:
    bank = make_bank(ttl=1, tombstone=60)
    key = new_key()
    bank.post(key)
    threading.Event().wait(1.2)
    answer = bank.post(key)
    assert (answer.status_code, slug(answer)) == (422, "idempotency-key-expired")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_key_on_another_method_is_ignored(bank: Bank, method: str) -> None:
    count = []

    def view() -> Any:
        count.append(1)
        return "x"

    guarded = bank.dj.idempotent(view)
    bank.app.add_url_rule("/any", view_func=guarded, methods=[method])
    key = new_key()
    for _ in range(2):
        answer = bank.post(key, "/any", method=method)
        assert "Idempotent-Replayed" not in answer.headers
    assert list(bank.store.scan("")) == []


def test_methods_may_be_chosen(make_bank: Make) -> None:
    bank = make_bank(methods=["put"])
    key = new_key()
    bank.add("/put", lambda: "x")
    bank.post(key, "/put", method="PUT")
    assert "Idempotent-Replayed" in bank.post(key, "/put", method="PUT").headers
    assert "Idempotent-Replayed" not in bank.post(new_key()).headers
    assert bank.post(key).status_code == 201


def test_missing_key_is_refused_where_one_is_required(make_bank: Make) -> None:
    bank = make_bank(required=True)
    answer = bank.post()
    assert (answer.status_code, slug(answer)) == (400, "idempotency-key-missing")
    assert 'rel="describedby"' in answer.headers["Link"]
    assert bank.runs == 0
    assert bank.post(new_key()).status_code == 201


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("", "empty"),
        ('""', "empty"),
        ("two words", "space"),
        ('"two words"', "space"),
        ("a" * 256, "256 characters"),
        ("a, b", "comma"),
        ('"a", "b"', "comma"),
        ('a"b', "double quote"),
        ('"open', "double quote"),
        ("clé-" + "a" * 20, "outside of ASCII"),
        ("a\tb", "control"),
    ],
)
def test_malformed_key_is_refused_in_words(bank: Bank, key: str, words: str) -> None:
    answer = bank.post(key)
    assert (answer.status_code, slug(answer)) == (400, "idempotency-key-invalid")
    assert words in answer.get_json()["detail"]
    assert bank.runs == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("abcdef", '"abcdef"'),
        ('"abcdef"', ' "abcdef" ; param=1'),
        ('"a\\"b\\\\c"', '"a\\"b\\\\c";x'),
        ("a" * 255, '"' + "a" * 255 + '"'),
    ],
)
def test_quoted_and_bare_spellings_are_one_key(bank: Bank, one: str, other: str) -> None:
    bank.post(one)
    assert bank.post(other).headers["Idempotent-Replayed"] == "true"


def test_key_may_have_to_be_of_a_form(make_bank: Make) -> None:
    bank = make_bank(key_pattern="uuid")
    assert bank.post("not-a-uuid").status_code == 400
    assert bank.post(new_key().upper()).status_code == 201


def test_stored_names_reveal_neither_key_nor_caller(bank: Bank) -> None:
    bank.post("a-rather-telling-key")
    for name, row in bank.store.scan(""):
        assert "telling" not in name
        assert "alice" not in name
        assert not any(b"telling" in value for value in row.values() if isinstance(value, bytes))


def test_scope_separates(make_bank: Make) -> None:
    bank = make_bank(scope=lambda request: request.headers["X-Tenant"])
    key = new_key()
    assert bank.post(key, headers={"X-Tenant": "one"}).json == {"run": 1}
    assert bank.post(key, headers={"X-Tenant": "two"}).json == {"run": 2}
    assert bank.post(key, headers={"X-Tenant": "one"}).json == {"run": 1}


def test_each_decision_is_signalled(bank: Bank) -> None:
    key = new_key()
    with heard(signals.begun, signals.completed, signals.replayed, signals.mismatched) as seen:
        bank.post(key)
        bank.post(key)
        bank.post(key, json={"amount": 2})
    assert [name.removeprefix("idempotency-") for name, _ in seen] == [
        "begun",
        "completed",
        "replayed",
        "mismatched",
    ]
    for _, details in seen:
        assert details["endpoint"] == "pay"
        assert details["key_name"].startswith("idempotency:{")
    assert seen[0][1]["attempt"] == 1
    assert seen[0][1]["fence"] == 1
