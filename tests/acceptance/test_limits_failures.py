"""What limits do when their store does not answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from demijohn.core.step import Outcome, Step
from demijohn.errors import StoreTimeout, StoreUnavailable
from demijohn.limits import signals
from demijohn.stores.memory import MemoryStore
from demijohn.testing.contract import ManualClock
from tests.acceptance.limited import Shop, left


class Failing(MemoryStore):
    """A store that can be down, and counts its runs."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.error: StoreUnavailable | None = None
        self.runs: list[list[str]] = []

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        self.runs.append([step.kind.name for step in steps])
        if self.error is not None:
            raise self.error
        return super().run(steps)


class Fragile(Shop):
    store: Failing


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Fragile]:
    def made(**limits: Any) -> Fragile:
        clock = ManualClock()
        return Fragile(tmp_path, Failing(clock), clock, limits=limits)

    return made


def test_each_process_counts_by_itself_while_the_store_is_down(
    make: Callable[..., Fragile], caplog: pytest.LogCaptureFixture
) -> None:
    shop = make()
    shop.add("/a", shop.dj.limit("2/minute"), shop.dj.limit("9/hour", burst=9))
    shop.add("/b", shop.dj.concurrent(1), shop.dj.limit("4/minute", charge="on_failure"))
    shop.get("/a")
    caplog.set_level(logging.INFO)
    shop.store.error = StoreTimeout("hung")
    assert shop.statuses("/a", 3) == [200, 200, 429]
    assert shop.statuses("/b", 6) == [200] * 6
    shop.store.error = None
    assert shop.statuses("/a", 2) == [200, 429]  # as it was before
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, "one line for each change"
    assert "each process counts" in told[0]
    assert "again" in told[1]


def test_share_of_the_limit_is_admitted(make: Callable[..., Fragile]) -> None:
    shop = make(on_store_failure="local:0.25")
    shop.add("/a", shop.dj.limit("8/minute"))
    shop.add("/b", shop.dj.limit("2/minute", burst=2))
    shop.add("/c", shop.dj.limit("0/minute"))
    shop.store.error = StoreUnavailable("down")
    assert shop.statuses("/a", 3) == [200, 200, 429]
    assert shop.statuses("/b", 2) == [200, 429]
    assert shop.statuses("/c", 1) == [429]


def test_limit_that_fails_open_admits(make: Callable[..., Fragile]) -> None:
    shop = make(on_store_failure="open")
    shop.add("/a", shop.dj.limit("1/minute"))
    shop.add("/b", shop.dj.shed(capacity=1), shop.dj.limit("1/minute"))
    shop.store.error = StoreUnavailable("down")
    assert shop.statuses("/a", 3) == [200] * 3
    assert shop.statuses("/b", 3) == [200] * 3
    assert "RateLimit" not in shop.get("/a").headers


def test_limit_that_fails_closed_refuses_with_503(make: Callable[..., Fragile]) -> None:
    heard: list[str] = []

    def hear(sender: Flask, decided: str, **rest: Any) -> None:
        heard.append(decided)

    shop = make()
    closed = shop.dj.limit("1/minute", on_store_failure="closed")
    shop.add("/a", closed, shop.dj.limit("1/hour", on_store_failure="open"))
    shop.store.error = StoreUnavailable("down")
    shop.store.error.retry_after_ms = 2500
    with signals.store_failed.connected_to(hear, shop.app):
        refusal = shop.get("/a")
    assert refusal.status_code == 503
    assert refusal.mimetype == "application/problem+json"
    assert refusal.headers["Retry-After"] == "3"
    assert heard == ["closed"]
    assert shop.runs == 0


def test_limits_fail_each_in_its_way(make: Callable[..., Fragile]) -> None:
    shop = make()
    opened = shop.dj.limit("1/hour", on_store_failure="open")
    shop.add("/a", opened, shop.dj.limit("3/minute"))
    shop.store.error = StoreUnavailable("down")
    assert shop.statuses("/a", 4) == [200, 200, 200, 429]


def test_refund_that_fails_costs_nobody_a_response(
    make: Callable[..., Fragile], caplog: pytest.LogCaptureFixture
) -> None:
    shop = make()

    def view() -> str:
        shop.store.error = StoreUnavailable("down")
        return "done"

    shop.add("/a", shop.dj.limit("3/minute", charge="on_failure"), view=view)
    assert shop.get("/a").text == "done"
    assert "could not be settled" in caplog.text


def test_flood_of_one_caller_costs_hardly_any_trip(make: Callable[..., Fragile]) -> None:
    shop = make()
    shop.add("/a", shop.dj.limit("10/minute; 100/hour"))
    assert shop.statuses("/a", 500) == [200] * 10 + [429] * 490
    assert len(shop.store.runs) == 11
    # Others are asked about all the same.
    assert shop.get("/a", ip="192.0.2.2").status_code == 200
    refusal = shop.get("/a")
    assert left(refusal) == {"10/minute": 0, "100/hour": 90}
    assert int(refusal.headers["Retry-After"]) >= 59  # it has aged by what has passed since


def test_places_costs_and_shadows_are_asked_about_each_time(make: Callable[..., Fragile]) -> None:
    shop = make()
    shop.add("/a", shop.dj.limit("1/minute", cost=2))
    shop.add("/b", shop.dj.concurrent(0))
    for path in ("/a", "/b"):
        shop.statuses(path, 2)
    assert len(shop.store.runs) == 4


def test_jitter_spreads_who_comes_again(make: Callable[..., Fragile]) -> None:
    shop = make(jitter=100)
    shop.add("/a", shop.dj.limit("1/minute"))
    shop.get("/a")
    waits = {int(shop.get("/a").headers["Retry-After"]) for _ in range(20)}
    assert len(waits) > 1
    assert min(waits) >= 60


# --- trips ---------------------------------------------------------------------------------------


def test_all_limits_are_one_step_in_one_trip(make: Callable[..., Fragile]) -> None:
    shop = make(application="1000/hour")
    five = [
        shop.dj.limit(f"{n}00/minute", by=("principal", "ip", "all")[n % 3]) for n in range(1, 6)
    ]
    shop.add("/a", *five, shop.dj.concurrent(5))
    shop.get("/a", user="alice")
    assert shop.store.runs == [["limits.take"], ["limits.settle"]]


def test_limits_and_idempotency_share_their_trips(make: Callable[..., Fragile]) -> None:
    shop = make()
    charged = shop.dj.limit("9/minute", charge="on_failure")
    shop.add("/pay", charged, shop.dj.limit("100/hour"), shop.dj.idempotent)
    key = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
    shop.get("/pay", method="POST", headers=key)
    assert shop.store.runs == [
        ["limits.take", "idempotency.begin"],
        ["idempotency.complete", "limits.settle"],
    ]
    shop.store.runs.clear()
    shop.get("/pay", method="POST", headers=key)
    assert shop.store.runs == [["limits.take", "idempotency.begin"]]


# --- without a view ------------------------------------------------------------------------------


def test_any_key_can_be_limited_within_a_view(make: Callable[..., Fragile]) -> None:
    shop = make()

    def view() -> Any:
        taken = shop.dj.limits.take("2/minute; 10/day", "+49 30 1234")
        return {"sent": bool(taken), "left": taken.left}

    shop.add("/sms", view=view)
    assert [shop.get("/sms").get_json() for _ in range(3)] == [
        {"sent": True, "left": 1},
        {"sent": True, "left": 0},
        {"sent": False, "left": 0},
    ]
    assert shop.store.runs == [["limits.take"]] * 3


def test_as_many_are_taken_as_there_are(make: Callable[..., Fragile]) -> None:
    shop = make()
    with shop.app.test_request_context():
        take = shop.dj.limits.take
        assert take("5/minute", "k", cost=3).granted == 3
        partly = take("5/minute", "k", cost=3, at_most=True)
        assert (partly.granted, partly.left, partly.retry_after) == (2, 0, None)
        none = take("5/minute", "k", cost=3, at_most=True)
        assert not none
        assert none.retry_after is not None
        assert 60 <= none.retry_after.total_seconds() <= 66
        assert take("5/minute", "k", cost=9).retry_after is None
        for wrong in ({"limit": "many"}, {"cost": -1}):
            with pytest.raises(Exception, match=r"take\(\)"):
                take(**{"limit": "5/minute", "key": "k", **wrong})  # type: ignore[arg-type]


def test_take_fails_as_limits_do(make: Callable[..., Fragile]) -> None:
    shop = make(on_store_failure="open")
    shop.store.error = StoreUnavailable("down")
    with shop.app.test_request_context():
        assert shop.dj.limits.take("5/minute", "k", cost=3).granted == 3
    local = make()
    local.store.error = StoreUnavailable("down")
    with local.app.test_request_context():
        assert [bool(local.dj.limits.take("1/minute", "k")) for _ in range(2)] == [True, False]
