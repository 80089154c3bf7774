"""Requests that meet at the worst moment; each moment is forced, none is hoped for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from demijohn import Demijohn, defaults, idempotency
from demijohn.idempotency import policy, signals
from demijohn.stores.memory import MemoryStore
from tests.acceptance.conftest import Bank, FailingStore, heard, new_key, together

Make = Callable[..., Bank]


def replayed(response: Any) -> bool:
    return bool(response.headers.get("Idempotent-Replayed") == "true")


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never became so"
        time.sleep(0.005)


# --- duplicates ---------------------------------------------------------------------------------


def test_two_hundred_duplicates_run_once_and_all_get_the_first_response(bank: Bank) -> None:
    key, count = new_key(), 200
    bank.go.clear()
    barrier = threading.Barrier(count)

    def post() -> Any:
        barrier.wait(30)
        return bank.post(key)

    with together(count) as start:
        futures = [start(post) for _ in range(count)]
        assert bank.entered.acquire(timeout=30)
        time.sleep(0.2)  # most of them wait by now; those that do not find the answer
        bank.go.set()
        answers = [future.result(60) for future in futures]
    assert bank.runs == 1
    assert {(answer.status_code, answer.data) for answer in answers} == {(201, answers[0].data)}
    assert sum(map(replayed, answers)) == count - 1


def test_waiter_hears_a_completion_between_its_look_and_its_wait(
    make_bank: Make, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "LOOK_AGAIN_MS", 60_000)  # nothing else would wake it
    store = FailingStore(store_url)
    bank = make_bank(store=store, wait=60)
    wait, between = store.wait, []

    def late(key: str, *, since: int, timeout_ms: int) -> bool:
        if not between:
            between.append(key)
            bank.go.set()
            first.result(30)  # the response is stored and the bell rung before anybody listens
        return wait(key, since=since, timeout_ms=timeout_ms)

    monkeypatch.setattr(store, "wait", late)
    key = new_key()
    bank.go.clear()
    with together(2) as start:
        first: Future[Any] = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        second = start(bank.post, key)
        assert replayed(second.result(30))
    assert len(between) == 1
    assert bank.runs == 1


def test_waiter_returns_within_its_patience(make_bank: Make) -> None:
    bank = make_bank(wait=0.3)
    key = new_key()
    bank.go.clear()
    with together(1) as start:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        began = time.monotonic()
        assert bank.post(key).status_code == 409
        assert 0.3 <= time.monotonic() - began < 1.3
        bank.go.set()
        first.result(30)


def test_waiters_for_one_key_leave_places_for_another(make_bank: Make) -> None:
    bank = make_bank(max_waiters=10, max_waiters_per_key=1)
    one, other = new_key(), new_key()
    bank.go.clear()
    with together(6) as start, heard(signals.conflicted) as refused:
        futures = [start(bank.post, key) for key in (one, one, one, other, other, other)]
        assert bank.entered.acquire(timeout=10)
        assert bank.entered.acquire(timeout=10)
        until(lambda: len(refused) == 2)
        bank.go.set()
        statuses = [future.result(30).status_code for future in futures]
    assert sorted(statuses[:3]) == sorted(statuses[3:]) == [201, 201, 409]
    assert bank.runs == 2


def test_record_that_vanishes_while_a_duplicate_waits_is_run_for_again(
    lone_bank: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FailingStore()
    bank = lone_bank(store=store)
    wait = store.wait

    def evicted(key: str, *, since: int, timeout_ms: int) -> bool:
        store.close()  # forgets every row, as a flushed or full server may
        return wait(key, since=since, timeout_ms=1)

    monkeypatch.setattr(store, "wait", evicted)
    key = new_key()
    bank.go.clear()
    with together(2) as start:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        second = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        bank.go.set()
        statuses = {first.result(30).status_code, second.result(30).status_code}
    assert statuses <= {201, 409}


# --- lost leases --------------------------------------------------------------------------------


class Lapsing:
    """A view whose first run loses its lease: the gates say who ends when."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.gates = {1: threading.Event(), 2: threading.Event()}
        self.entered = {1: threading.Event(), 2: threading.Event()}
        self.fails = False
        bank.add("/lapse", self)
        # Renewal stops, as it does for a process that is paused.
        bank.app.extensions["demijohn"].keeper.keep = lambda *a, **k: None

    def __call__(self) -> Any:
        attempt = idempotency.current.attempt
        self.entered[attempt].set()
        assert self.gates[attempt].wait(30)
        if self.fails and attempt == 1:
            raise RuntimeError("late")
        return {"by": attempt}

    @contextmanager
    def both(self, key: str) -> Iterator[list[Future[Any]]]:
        """Have the second request take over from the first; both are in the view."""
        with together(2) as start:
            first = start(self.bank.post, key, "/lapse")
            assert self.entered[1].wait(10)
            second = start(self.bank.post, key, "/lapse")
            assert self.entered[2].wait(10)
            try:
                yield [first, second]
            finally:
                for gate in self.gates.values():
                    gate.set()


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_late_run_is_given_the_result_of_who_took_over(make_bank: Make, fails: bool) -> None:
    bank = make_bank(lease=0.2)
    view, key = Lapsing(bank), new_key()
    view.fails = fails
    with heard(signals.fenced, signals.completed) as seen, view.both(key) as (first, second):
        view.gates[2].set()
        assert second.result(30).json == {"by": 2}
        view.gates[1].set()
        late = first.result(30)
    assert late.json == {"by": 2}
    assert replayed(late)
    assert [name for name, _ in seen] == ["idempotency-completed", "idempotency-fenced"]
    assert bank.post(key, "/lapse").json == {"by": 2}


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_late_run_that_ends_first_is_told_to_come_back(make_bank: Make, fails: bool) -> None:
    bank = make_bank(lease=0.2)
    bank.app.register_error_handler(409, lambda error: ({"mine": error.problem.status}, 409))
    view, key = Lapsing(bank), new_key()
    view.fails = fails
    with view.both(key) as (first, second):
        view.gates[1].set()
        late = first.result(30)
        assert (late.status_code, late.json) == (409, {"mine": 409})
        view.gates[2].set()
        assert second.result(30).json == {"by": 2}
    assert bank.post(key, "/lapse").json == {"by": 2}


# --- instants -----------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_response_ends_exactly_with_its_time(lone_bank: Make, clock: Clock) -> None:
    bank = lone_bank(store=MemoryStore(clock=clock), ttl=60)
    key = new_key()
    bank.post(key)
    clock.now_ms += 59_999
    assert bank.post(key).json == {"run": 1}
    clock.now_ms += 1
    assert bank.post(key).json == {"run": 2}


def test_tombstone_ends_exactly_with_its_time(lone_bank: Make, clock: Clock) -> None:
    bank = lone_bank(store=MemoryStore(clock=clock), ttl=60, lease=1, tombstone=3600)
    key = new_key()
    bank.post(key)
    clock.now_ms += 60_000
    assert bank.post(key).status_code == 422
    clock.now_ms += 3_599_999
    assert bank.post(key).status_code == 422
    clock.now_ms += 1
    assert bank.post(key).json == {"run": 2}


def test_lease_ends_exactly_with_its_time(lone_bank: Make, clock: Clock) -> None:
    bank = lone_bank(store=MemoryStore(clock=clock), lease=10, wait=0)

    def view() -> Any:
        if idempotency.current.attempt == 1:
            raise SystemExit  # the lease decides
        return f"fence {idempotency.current.fence}"

    bank.add("/exit", view)
    key = new_key()
    with pytest.raises(SystemExit):
        bank.post(key, "/exit")
    clock.now_ms += 9_999
    answer = bank.post(key, "/exit")
    assert (answer.status_code, answer.headers["Retry-After"]) == (409, "1")
    clock.now_ms += 1
    assert bank.post(key, "/exit").text == "fence 2"


def test_fence_never_goes_backwards_while_an_earlier_run_may_live(
    lone_bank: Make, clock: Clock
) -> None:
    bank = lone_bank(store=MemoryStore(clock=clock), lease=1, ttl=1)
    fences: list[int] = []

    def view() -> Any:
        fences.append(idempotency.current.fence)
        return "", 500 if len(fences) == 1 else 200

    bank.add("/fence", view)
    key = new_key()
    for _ in range(4):  # released, then completed and expired again and again
        bank.post(key, "/fence")
        clock.now_ms += 9_000
    assert fences == [1, 2, 3, 4]


# --- the first request --------------------------------------------------------------------------


def test_first_requests_at_once_guard_a_view_by_default_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Flask("app", instance_path=str(tmp_path))
    dj = Demijohn(app, stores="memory://", idempotency={"default": True, "max_waiters": 8})
    assert dj
    runs: list[int] = []
    app.post("/", endpoint="view")(lambda: {"run": runs.append(1) or len(runs)})
    barrier, chosen = threading.Barrier(8), defaults._defaults_for

    def together_now(*args: Any) -> Any:
        barrier.wait(10)  # all of them have found the view as it was written
        return chosen(*args)

    monkeypatch.setattr(defaults, "_defaults_for", together_now)
    headers = {"Idempotency-Key": new_key()}
    with together(8) as start:
        futures = [start(app.test_client().post, "/", headers=headers) for _ in range(8)]
        assert [future.result(30).json for future in futures] == [{"run": 1}] * 8
    wrapped = app.view_functions["view"].__wrapped__  # type: ignore[attr-defined]
    assert not hasattr(wrapped, "__wrapped__")
