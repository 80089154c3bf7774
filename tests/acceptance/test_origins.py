"""What Flask-Idempotent and flask-idempotent2 did wrong: for each defect, its opposite.

The numbers are those of the specification: F for Flask-Idempotent, G for flask-idempotent2 (annex
A2); S for the list of its section 1.
"""

from __future__ import annotations

import ast
import os
import pickle  # noqa: TID251 - to show that it is never unpickled
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, request

import demijohn
from demijohn import Demijohn, idempotency
from demijohn.errors import StoreTimeout, StoreUnavailable
from demijohn.idempotency import policy
from tests.acceptance.conftest import Bank, FailingStore, new_key, together

Make = Callable[..., Bank]
FORM = "application/x-www-form-urlencoded"
EXECUTES = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}


def replayed(response: Any) -> bool:
    return bool(response.headers.get("Idempotent-Replayed") == "true")


# --- Flask-Idempotent ---------------------------------------------------------------------------


def test_f1_completion_while_a_duplicate_prepares_to_wait_is_not_missed(
    make_bank: Make, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "LOOK_AGAIN_MS", 60_000)
    store = FailingStore(store_url)
    bank, run, key = make_bank(store=store, wait=60), store.run, new_key()

    def slow_subscriber(steps: Any) -> Any:
        outcomes = run(steps)
        if outcomes[0].status == "busy":
            bank.go.set()
            first.result(30)  # it completes before the duplicate has heard that it must wait
        return outcomes

    monkeypatch.setattr(store, "run", slow_subscriber)
    bank.go.clear()
    with together(2) as start:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        began = time.monotonic()
        assert replayed(start(bank.post, key).result(30))
    assert time.monotonic() - began < 10


def test_f2_wait_does_not_overshoot_and_ends_in_409(make_bank: Make) -> None:
    bank, key = make_bank(wait=0.2), new_key()
    bank.go.clear()
    with together(1) as start:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        began = time.monotonic()
        answer = bank.post(key)
        assert time.monotonic() - began < 1.2
        assert answer.status_code == 409
        assert "Retry-After" in answer.headers
        bank.go.set()
        first.result(30)


def test_f3_key_that_expires_between_two_looks_is_no_server_error(make_bank: Make) -> None:
    bank, key = make_bank(ttl=1), new_key()
    bank.post(key)
    statuses = []
    end = time.monotonic() + 1.3
    while time.monotonic() < end:  # through the instant of expiry and beyond
        statuses.append(bank.post(key).status_code)
    assert set(statuses) == {201}
    assert bank.runs == 2


def test_f4_view_that_overran_its_time_cannot_overwrite_its_successor(make_bank: Make) -> None:
    bank, key, go = make_bank(lease=0.2), new_key(), threading.Event()
    bank.app.extensions["demijohn"].keeper.keep = lambda *a, **k: None

    def view() -> Any:
        attempt = idempotency.current.attempt
        if attempt == 1:
            bank.entered.release()
            assert go.wait(30)
        return {"by": attempt}

    bank.add("/overruns", view)
    with together(1) as start:
        first = start(bank.post, key, "/overruns")
        assert bank.entered.acquire(timeout=10)
        assert bank.post(key, "/overruns").json == {"by": 2}
        go.set()
        assert first.result(30).json == {"by": 2}
    assert bank.post(key, "/overruns").json == {"by": 2}


def test_f4_view_longer_than_its_lease_is_not_run_twice(make_bank: Make) -> None:
    bank, key = make_bank(lease=0.3), new_key()
    bank.go.clear()
    with together(2) as start:
        first, second = start(bank.post, key), start(bank.post, key)
        threading.Event().wait(1)
        bank.go.set()
        assert first.result(30).data == second.result(30).data
    assert bank.runs == 1


def test_f5_duplicate_takes_over_from_a_worker_that_died_and_knows_it(make_bank: Make) -> None:
    bank, key = make_bank(lease=0.3, wait=10), new_key()

    def view() -> Any:
        if idempotency.current.attempt == 1:
            raise SystemExit
        return {"retry": idempotency.current.is_retry}

    bank.add("/dies", view)
    with pytest.raises(SystemExit):
        bank.post(key, "/dies")
    assert bank.post(key, "/dies").json == {"retry": True}


@pytest.mark.parametrize("other", ["caller", "method", "path", "body", "query"])
def test_f6_nobody_gets_the_answer_to_another_request(bank: Bank, other: str) -> None:
    bank.add("/one/<name>", lambda name: f"secret of {bank.caller}")
    key = new_key()
    assert bank.post(key, "/one/a").text == "secret of alice"
    options: dict[str, Any] = {
        "caller": {"path": "/one/a"},
        "method": {"path": "/one/a", "method": "PATCH"},
        "path": {"path": "/one/b"},
        "body": {"path": "/one/a", "json": {"amount": 2}},
        "query": {"path": "/one/a", "query_string": "x=1"},
    }[other]
    if other == "caller":
        bank.caller = "malory"
    answer = bank.post(key, **options)
    assert b"alice" not in answer.data
    assert answer.status_code == (200 if other == "caller" else 422)


def test_f6_get_is_not_treated_as_a_post(bank: Bank) -> None:
    runs: list[int] = []
    bank.add("/read", lambda: {"run": runs.append(1) or len(runs)})
    key = new_key()
    answers = [bank.post(key, "/read", method="GET", json=None).json for _ in range(2)]
    assert answers == [{"run": 1}, {"run": 2}]


def test_f6_key_in_the_query_is_not_looked_for_unless_asked(bank: Bank) -> None:
    query = {"__idempotent_key": new_key()}
    assert bank.post(query_string=query).json == {"run": 1}
    assert bank.post(query_string=query).json == {"run": 2}


@pytest.mark.parametrize("key", ["****", "{tag}", "ab:cd", "../etc", "%00%00", "';--x", "a" * 255])
def test_f7_no_part_of_a_key_stands_in_the_store(bank: Bank, key: str) -> None:
    bank.post(key)
    assert replayed(bank.post(key))
    ((name, row),) = bank.store.scan("")
    assert set(name) <= set("idempotency:{}0123456789abcdef")
    assert not any(key.encode() in value for value in row.values() if isinstance(value, bytes))


def test_f7_endless_key_is_refused(bank: Bank) -> None:
    assert bank.post("a" * 1_000_000).status_code == 400
    assert list(bank.store.scan("")) == []


class Exploit:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["DEMIJOHN_EXPLOIT"],)


def test_f8_stored_bytes_are_never_executed(
    lone_bank: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEMIJOHN_EXPLOIT", str(tmp_path / "owned"))
    store = FailingStore()
    bank, key = lone_bank(store=store), new_key()
    bank.post(key)
    ((_, row),) = store.scan("")
    for payload in (pickle.dumps(Exploit()), b"\x01" + pickle.dumps(Exploit())):
        row["r"] = payload  # type: ignore[index]
        assert bank.post(key).status_code == 500
    assert not (tmp_path / "owned").exists()
    assert bank.runs == 1


def test_f8_nothing_that_executes_data_is_imported() -> None:
    found = set()
    for file in Path(demijohn.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, file
    assert found & EXECUTES == set()


def test_f9_cookie_of_the_first_caller_is_not_given_again(bank: Bank) -> None:
    def view() -> Any:
        response = Response("x")
        response.set_cookie("session", "of alice")
        return response

    bank.add("/login", view)
    key = new_key()
    assert "Set-Cookie" in bank.post(key, "/login").headers
    again = bank.post(key, "/login")
    assert replayed(again)
    assert "Set-Cookie" not in again.headers


def test_f9_server_error_is_not_given_again(bank: Bank) -> None:
    runs: list[int] = []

    def view() -> Any:
        runs.append(1)
        return ("broken", 500) if len(runs) == 1 else "mended"

    bank.add("/breaks", view)
    key = new_key()
    assert [bank.post(key, "/breaks").text for _ in range(2)] == ["broken", "mended"]


def test_f10_nobody_waits_when_all_have_their_answers(bank: Bank) -> None:
    key = new_key()
    bank.go.clear()
    with together(4) as start:
        futures = [start(bank.post, key) for _ in range(4)]
        assert bank.entered.acquire(timeout=10)
        bank.go.set()
        for future in futures:
            future.result(30)
    waiters = bank.app.extensions["demijohn"].capabilities["idempotency"].waiters
    assert (waiters._all, waiters._rooms) == (0, {})


def test_f11_body_that_is_made_while_it_is_sent_is_given_again(bank: Bank) -> None:
    bank.add("/stream", lambda: Response(str(part) for part in range(10)))
    key = new_key()
    assert bank.post(key, "/stream").data == bank.post(key, "/stream").data == b"0123456789"


@pytest.mark.parametrize("error", [StoreUnavailable("down"), StoreTimeout("hangs")])
def test_f12_store_that_is_down_is_a_503_and_only_for_requests_with_a_key(
    lone_bank: Make, error: StoreUnavailable
) -> None:
    store = FailingStore()
    bank = lone_bank(store=store)
    store.fails["begin"] = error
    assert bank.post(new_key()).status_code == 503
    assert bank.post().status_code == 201


def test_f13_old_names_work_on_the_flask_of_today(tmp_path: Path) -> None:
    app = Flask("old", instance_path=str(tmp_path))
    app.config.update(IDEMPOTENT_TIMEOUT=5, IDEMPOTENT_EXPIRE=60, SECRET_KEY="s")
    dj = Demijohn(app, stores="memory://", idempotency={"legacy": True, "default": True})
    assert dj
    runs: list[int] = []
    app.post("/", endpoint="view")(lambda: {"run": runs.append(1) or len(runs)})
    app.get("/form", endpoint="form")(
        lambda: app.jinja_env.from_string("{{ idempotent_input() }}").render()
    )
    client = app.test_client()
    key = client.get("/form").text.split('value="')[1].split('"')[0]
    assert client.post("/", data={"__idempotent_key": key}).json == {"run": 1}
    again = client.post("/", data={"__idempotent_key": key})
    assert again.json == {"run": 1}
    assert replayed(again)


def test_s_view_that_raises_does_not_lock_its_key(bank: Bank) -> None:
    runs: list[int] = []

    def view() -> Any:
        runs.append(1)
        raise RuntimeError("before any hook")

    bank.add("/raises", view)
    key = new_key()
    began = time.monotonic()
    assert [bank.post(key, "/raises").status_code for _ in range(3)] == [500] * 3
    assert len(runs) == 3
    assert time.monotonic() - began < 5


def test_s_time_to_live_counts_from_the_completion(make_bank: Make) -> None:
    bank, key = make_bank(ttl=1), new_key()
    bank.go.clear()
    with together(1) as start:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        threading.Event().wait(1.2)  # longer than the time to live
        bank.go.set()
        first.result(30)
    assert replayed(bank.post(key))


# --- flask-idempotent2 --------------------------------------------------------------------------


def test_g1_forms_of_equal_length_are_two_requests(bank: Bank) -> None:
    bank.add("/form", lambda: request.form["to"])
    key = new_key()
    form: dict[str, Any] = {"path": "/form", "json": None, "content_type": FORM}
    assert bank.post(key, data="to=alice", **form).text == "alice"
    assert bank.post(key, data="to=malor", **form).status_code == 422


def test_g2_duplicates_that_look_at_once_do_not_both_run(bank: Bank) -> None:
    key, barrier = new_key(), threading.Barrier(10)

    def post() -> Any:
        barrier.wait(10)
        return bank.post(key)

    with together(10) as start:
        futures = [start(post) for _ in range(10)]
        assert {future.result(30).data for future in futures} == {b'{"run":1}\n'}
    assert bank.runs == 1


def test_g3_every_decoration_gives_a_view(bank: Bank) -> None:
    decorator = bank.dj.idempotent(required=True)
    views = [decorator(lambda number=number: str(number)) for number in range(3)]
    assert all(callable(view) for view in views)
    for number, view in enumerate(views):
        bank.app.add_url_rule(f"/{number}", f"v{number}", view, methods=["POST"])
    texts = [bank.post(new_key(), f"/{number}").text for number in range(3)]
    assert texts == ["0", "1", "2"]


def test_g4_evicted_record_is_as_if_it_had_never_been(lone_bank: Make) -> None:
    store = FailingStore()
    bank, key = lone_bank(store=store), new_key()
    bank.post(key)
    store.close()  # forgets every row
    assert bank.post(key).json == {"run": 2}


def test_g8_first_request_is_two_trips_and_a_replay_one(lone_bank: Make) -> None:
    store = FailingStore()
    bank, key = lone_bank(store=store), new_key()
    bank.post(key)
    assert store.calls == [("begin",), ("complete",)]
    bank.post(key)
    assert store.calls[2:] == [("begin",)]
    bank.post()
    assert len(store.calls) == 3


def test_g9_lock_that_was_lost_is_no_server_error_after_the_effect(make_bank: Make) -> None:
    bank, key = make_bank(lease=0.2), new_key()
    bank.app.extensions["demijohn"].keeper.keep = lambda *a, **k: None

    def view() -> Any:
        threading.Event().wait(0.4)  # past the lease, and nobody has come
        return "paid"

    bank.add("/slow", view)
    assert bank.post(key, "/slow").text == "paid"
    assert replayed(bank.post(key, "/slow"))


def test_g10_forwarded_address_is_nobodys_name(bank: Bank) -> None:
    bank.caller = None
    key = new_key()
    addresses = [{"X-Forwarded-For": f"10.0.0.{number}"} for number in range(2)]
    answers = [bank.post(key, headers=headers) for headers in addresses]
    assert [answer.json for answer in answers] == [{"run": 1}] * 2


def test_g11_digest_does_not_depend_on_how_a_dict_is_written(bank: Bank) -> None:
    key = new_key()
    bank.post(key, json={"a": 1, "b": {"c": 2, "d": 3}})
    assert replayed(bank.post(key, json={"b": {"d": 3, "c": 2}, "a": 1}))
