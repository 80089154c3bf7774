"""Leases are renewed in one trip, and late steps are delivered or given up."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from demijohn import keeper as module
from demijohn.core import idempotency as core
from demijohn.core.step import Outcome, Step
from demijohn.errors import CorruptRecord, StoreUnavailable
from demijohn.keeper import Keeper
from demijohn.stores.memory import MemoryStore


class Recording(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.trips: list[list[str]] = []
        self.error: Exception | None = None

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        self.trips.append([step.kind.name for step in steps])
        if self.error is not None:
            raise self.error
        return super().run(steps)


class Claim:
    def __init__(self, store: Recording, name: str) -> None:
        self.name = name
        self.lost = threading.Event()
        store.run([core.begin((name,), fingerprint=b"f", token=b"t", lease_ms=300, retain_ms=1000)])

    def renewal(self) -> Step:
        return core.renew(self.name, token=b"t", lease_ms=300)

    def lose(self) -> None:
        self.lost.set()


@pytest.fixture
def store() -> Recording:
    return Recording()


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    keeper = Keeper()
    yield keeper
    keeper.stop()


def until(condition: Callable[[], Any]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never became so")


def test_claims_of_one_store_are_renewed_in_one_trip(keeper: Keeper, store: Recording) -> None:
    claims = [Claim(store, name) for name in "abc"]
    store.trips.clear()
    for claim in claims:
        keeper.keep(claim.name, store, claim, lease_ms=300)
    until(lambda: store.trips.count(["idempotency.renew"] * 3) >= 3)
    for claim in claims:
        keeper.forget(claim.name)
    assert not any(claim.lost.is_set() for claim in claims)


def test_holder_of_a_lost_claim_is_told_once(keeper: Keeper, store: Recording) -> None:
    claim = Claim(store, "a")
    store.run([core.release("a", token=b"t", retain_ms=1000)])
    keeper.keep("a", store, claim, lease_ms=300)
    assert claim.lost.wait(10)
    trips = len(store.trips)
    threading.Event().wait(0.2)
    assert len(store.trips) == trips


def test_thread_outlives_a_callback_that_fails(
    keeper: Keeper, store: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    claim = Claim(store, "a")
    claim.lose = lambda: 1 / 0  # type: ignore[assignment,method-assign]
    store.run([core.release("a", token=b"t", retain_ms=1000)])
    keeper.keep("a", store, claim, lease_ms=300)
    until(lambda: "ZeroDivisionError" in caplog.text)
    other = Claim(store, "b")
    keeper.keep("b", store, other, lease_ms=300)
    store.run([core.release("b", token=b"t", retain_ms=1000)])
    assert other.lost.wait(10)


def test_step_is_delivered_when_the_store_is_back(keeper: Keeper, store: Recording) -> None:
    Claim(store, "a")
    store.error = StoreUnavailable("down")
    done: list[Outcome | None] = []
    step = core.release("a", token=b"t", retain_ms=1000)
    keeper.deliver("a", store, step, for_ms=60_000, done=done.append)
    until(lambda: len(store.trips) >= 3)
    assert done == []
    store.error = None
    until(lambda: done)
    assert done == [Outcome("released")]


def test_step_is_given_up_after_its_time(keeper: Keeper, store: Recording) -> None:
    store.error = StoreUnavailable("down")
    done: list[Outcome | None] = []
    step = core.release("a", token=b"t", retain_ms=1000)
    keeper.deliver("a", store, step, for_ms=0, done=done.append)
    until(lambda: done)
    assert done == [None]


def test_oldest_step_is_given_up_when_there_are_too_many(
    keeper: Keeper, store: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_DELIVERIES", 1)
    store.error = StoreUnavailable("down")
    done: list[str] = []
    step = core.release("a", token=b"t", retain_ms=1000)
    for name in "ab":
        keeper.deliver(
            name, store, step, for_ms=60_000, done=lambda outcome, name=name: done.append(name)
        )
    assert done == ["a"]


def test_stopped_keeper_starts_nothing(store: Recording) -> None:
    keeper = Keeper()
    keeper.stop()
    keeper.stop()
    keeper.keep("a", store, Claim(store, "a"), lease_ms=300)
    assert keeper._process.thread is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_child_keeps_its_own_claims_only(keeper: Keeper, store: Recording) -> None:
    keeper.keep("a", store, Claim(store, "a"), lease_ms=300)
    child = os.fork()
    if child == 0:
        status = 1
        with suppress(Exception):
            claim = Claim(store, "b")
            store.trips.clear()
            keeper.keep("b", store, claim, lease_ms=300)
            until(lambda: store.trips)
            status = 0 if store.trips[0] == ["idempotency.renew"] else 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_damaged_row_does_not_cost_others_their_leases(
    keeper: Keeper,
    store: Recording,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    claims = [Claim(store, name) for name in "abc"]
    run = store.run
    renewed: list[str] = []

    def damaged(steps: Sequence[Step]) -> list[Outcome]:
        if any(step.keys == ("b",) for step in steps):
            raise CorruptRecord("row b cannot be read")
        renewed.extend(step.keys[0] for step in steps)
        return run(steps)

    monkeypatch.setattr(store, "run", damaged)
    for claim in claims:
        keeper.keep(claim.name, store, claim, lease_ms=300)
    until(lambda: renewed.count("a") >= 3 and renewed.count("c") >= 3)
    assert "row b cannot be read" in caplog.text
    assert not any(claim.lost.is_set() for claim in claims)


def test_claim_that_was_forgotten_while_it_was_renewed_is_not_lost(
    keeper: Keeper, store: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Claim(store, "a")
    run = store.run
    renewed = threading.Event()

    def completes_first(steps: Sequence[Step]) -> list[Outcome]:
        store.trips.clear()
        run([core.release("a", token=b"t", retain_ms=1000)])
        keeper.forget("a")
        outcomes = run(steps)
        renewed.set()
        return outcomes

    monkeypatch.setattr(store, "run", completes_first)
    keeper.keep("a", store, claim, lease_ms=300)
    assert renewed.wait(10)
    keeper.stop()
    assert not claim.lost.is_set()
