"""Every decision is signalled, with the arguments that its documentation promises."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from demijohn import idempotency
from demijohn.errors import CorruptRecord, StoreUnavailable
from demijohn.idempotency import signals
from tests.acceptance.conftest import Bank, FailingStore, heard, new_key, together

ALWAYS = {"key_name", "endpoint", "attempt", "fence"}
DOWN = StoreUnavailable("down")


class Scene:
    """A bank in memory, and the ways to bring each decision about."""

    def __init__(self, make: Callable[..., Bank]) -> None:
        self.store = FailingStore()
        self.make = make

    def bank(self, **options: Any) -> Bank:
        return self.make(store=self.store, **{"wait": 0, **options})

    def row(self) -> dict[str, Any]:
        ((_, row),) = self.store.scan("")
        return row  # type: ignore[return-value]


def once(scene: Scene) -> None:
    scene.bank().post(new_key())


def twice(scene: Scene) -> None:
    bank, key = scene.bank(), new_key()
    bank.post(key)
    bank.post(key)


def while_running(scene: Scene, **options: Any) -> None:
    bank, key = scene.bank(**options), new_key()
    bank.go.clear()
    with together(1) as start:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        bank.post(key)
        bank.go.set()
        first.result(10)


def waiting(scene: Scene) -> None:
    while_running(scene, wait=0.05)


def other_body(scene: Scene) -> None:
    bank, key = scene.bank(), new_key()
    bank.post(key)
    bank.post(key, json={"amount": 2})


def failing(scene: Scene) -> None:
    bank = scene.bank()
    bank.add("/fails", lambda: ("", 503))
    bank.post(new_key(), "/fails")


def dying(scene: Scene, **options: Any) -> Bank:
    """A first request that dies, and a second one when its lease has ended."""
    bank, key = scene.bank(lease=0.1, **options), new_key()

    def view() -> Any:
        if idempotency.current.attempt == 1:
            raise SystemExit
        return "x"

    bank.add("/dies", view)
    with pytest.raises(SystemExit):
        bank.post(key, "/dies")
    threading.Event().wait(0.15)
    bank.post(key, "/dies")
    return bank


def dying_for_good(scene: Scene) -> None:
    dying(scene, on_lost="refuse")


def late(scene: Scene) -> None:
    bank, key, go = scene.bank(lease=0.1), new_key(), threading.Event()
    bank.app.extensions["demijohn"].keeper.keep = lambda *a, **k: None

    def view() -> Any:
        if idempotency.current.attempt == 1:
            bank.entered.release()
            assert go.wait(10)
        return "x"

    bank.add("/late", view)
    with together(1) as start:
        first = start(bank.post, key, "/late")
        assert bank.entered.acquire(timeout=10)
        threading.Event().wait(0.15)
        bank.post(key, "/late")
        go.set()
        first.result(10)


def losing(scene: Scene) -> None:
    """The row goes while the view runs, so that the next renewal is refused."""
    bank, lost = scene.bank(lease=0.3), threading.Event()

    def receive(sender: Any, **_: Any) -> None:
        lost.set()

    def view() -> Any:
        scene.store.close()
        assert lost.wait(10)
        return "x"

    bank.add("/loses", view)
    with signals.lost.connected_to(receive):
        bank.post(new_key(), "/loses")


def down_before(scene: Scene) -> None:
    bank = scene.bank()
    scene.store.fails["begin"] = DOWN
    bank.post(new_key())


def down_after(scene: Scene) -> None:
    bank = scene.bank()
    scene.store.fails["complete"] = DOWN
    bank.post(new_key())


def down_and_open(scene: Scene) -> None:
    bank = scene.bank(on_store_failure="open")
    scene.store.fails["begin"] = DOWN
    bank.post(new_key())


def damaged(scene: Scene) -> None:
    bank, key = scene.bank(), new_key()
    bank.post(key)
    scene.row()["r"] = b"\x02"
    bank.post(key)


def damaged_row(scene: Scene) -> None:
    bank = scene.bank()
    scene.store.fails["begin"] = CorruptRecord("row cannot be read")
    bank.post(new_key())


CASES: list[tuple[Callable[[Scene], object], str, dict[str, Any]]] = [
    (once, "begun", {"attempt": 1, "fence": 1}),
    (once, "completed", {"attempt": 1, "fence": 1}),
    (twice, "replayed", {}),
    (while_running, "conflicted", {}),
    (waiting, "waited", {"waited_ms": int, "status": "busy"}),
    (waiting, "conflicted", {}),
    (other_body, "mismatched", {}),
    (failing, "released", {"attempt": 1, "fence": 1}),
    (dying, "taken_over", {"attempt": 2, "fence": 2}),
    (dying, "begun", {"attempt": 2, "fence": 2}),
    (dying_for_good, "unknown", {}),
    (late, "fenced", {"attempt": 1, "fence": 1}),
    (losing, "lost", {"attempt": 1, "fence": 1}),
    (down_before, "store_failed", {"error": DOWN, "phase": "before"}),
    (down_after, "store_failed", {"error": DOWN, "phase": "after"}),
    (down_and_open, "unprotected", {"error": DOWN}),
    (damaged, "corrupt", {"error": CorruptRecord}),
    (damaged_row, "corrupt", {"error": CorruptRecord}),
]


@pytest.mark.parametrize(
    ("act", "name", "details"), CASES, ids=[f"{case[1]}-{case[0].__name__}" for case in CASES]
)
def test_decision_is_signalled_with_its_arguments(
    lone_bank: Callable[..., Bank],
    act: Callable[[Scene], object],
    name: str,
    details: dict[str, Any],
) -> None:
    scene = Scene(lone_bank)
    with heard(getattr(signals, name)) as seen:
        act(scene)
    _, last = seen[-1]
    assert set(last) - ALWAYS == set(details) - ALWAYS
    assert last["key_name"].startswith("idempotency:{")
    assert last["endpoint"] in {"pay", "/fails", "/dies", "/late", "/loses"}
    for argument, expected in details.items():
        value = last[argument]
        assert isinstance(value, expected) if isinstance(expected, type) else value == expected


def test_every_signal_has_a_case() -> None:
    names = {name for name in vars(signals) if hasattr(getattr(signals, name), "connect")}
    assert names == {name for _, name, _ in CASES}


def test_sender_is_the_application(lone_bank: Callable[..., Bank]) -> None:
    one, other = lone_bank(), lone_bank()
    seen: list[Any] = []

    def receive(sender: Any, **_: Any) -> None:
        seen.append(sender)

    with signals.begun.connected_to(receive, one.app):
        one.post(new_key())
        other.post(new_key())
    assert seen == [one.app]


def test_duplicate_that_waited_tells_how_it_ended(lone_bank: Callable[..., Bank]) -> None:
    bank, key = lone_bank(), new_key()
    bank.go.clear()
    with together(2) as start, heard(signals.waited, signals.replayed) as seen:
        first = start(bank.post, key)
        assert bank.entered.acquire(timeout=10)
        second = start(bank.post, key)
        threading.Event().wait(0.1)
        bank.go.set()
        first.result(10)
        second.result(10)
    assert [name for name, _ in seen] == ["idempotency-waited", "idempotency-replayed"]
    assert seen[0][1]["status"] == "replay"
    assert 0 <= seen[0][1]["waited_ms"] < 10_000


def test_receiver_that_fails_does_not_hold_the_key_for_ever(
    lone_bank: Callable[..., Bank],
) -> None:
    bank, key = lone_bank(lease=0.2, wait=5), new_key()

    def fails(sender: Any, **_: Any) -> None:
        raise RuntimeError("metrics are down")

    with signals.begun.connected_to(fails):
        assert bank.post(key).status_code == 500
    assert bank.post(key).json == {"run": 1}  # when the lease has ended
