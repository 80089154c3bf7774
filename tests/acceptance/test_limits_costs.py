"""What a request costs, before and after the view, and in shadow."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, Response, abort, jsonify, request

from demijohn.limits import signals
from tests.acceptance.limited import Make, Shop, clock, left, lone, make, shop, store

__all__ = ["clock", "lone", "make", "shop", "store"]


# --- what it costs -------------------------------------------------------------------------------


def test_cost_is_taken_at_once_or_not_at_all(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("10/minute", cost=lambda: int(request.args["n"])))
    assert [shop.get(f"/a?n={n}").status_code for n in (4, 4, 4, 2)] == [200, 200, 429, 200]
    assert left(shop.get("/a?n=0")) == {"10/minute": 0}


def test_cost_above_the_limit_is_refused_for_good(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.add("/a", shop.dj.limit("3/minute", cost=4))
    for _ in range(2):
        refusal = shop.get("/a")
        assert refusal.status_code == 429
        assert "Retry-After" not in refusal.headers
    warnings = [record for record in caplog.records if "ever admits" in record.getMessage()]
    assert len(warnings) == 1


def test_cost_that_only_the_view_knows_is_charged_after_it(shop: Shop) -> None:
    def view() -> Response:
        return jsonify(rows=int(request.args["rows"]))

    def rows(response: Response) -> int:
        return int(response.get_json()["rows"])

    shop.add("/a", shop.dj.limit("10/minute", cost=2, cost_after=rows), view=view)
    assert left(shop.get("/a?rows=5")) == {"10/minute": 5}
    assert left(shop.get("/a?rows=0")) == {"10/minute": 5}
    assert left(shop.get("/a?rows=9")) == {"10/minute": 0}  # beyond what was left
    assert shop.get("/a?rows=0").status_code == 429
    shop.pass_ms(66_001)
    assert left(shop.get("/a?rows=1")) == {"10/minute": 9}


def test_failures_alone_are_charged(shop: Shop) -> None:
    def login() -> Any:
        return ({}, 200) if request.args.get("password") == "right" else ({}, 401)

    shop.add("/login", shop.dj.limit("2/minute", charge="on_failure"), view=login)
    assert shop.statuses("/login?password=right", 5) == [200] * 5
    assert shop.statuses("/login", 3) == [401, 401, 429]
    assert shop.get("/login?password=right").status_code == 429


def test_successes_alone_are_charged(shop: Shop) -> None:
    view = lambda: abort(int(request.args["s"])) if "s" in request.args else {}  # noqa: E731
    shop.add("/a", shop.dj.limit("1/minute", charge="on_success"), view=view)
    assert shop.statuses("/a?s=500", 3) == [500] * 3
    assert shop.statuses("/a", 2) == [200, 429]


def test_response_decides_whether_it_is_charged(shop: Shop) -> None:
    charged = shop.dj.limit("1/minute", charge=lambda response: "X-Free" not in response.headers)
    shop.add("/a", charged, view=lambda: ({}, {"X-Free": "1"} if "free" in request.args else {}))
    assert shop.statuses("/a?free", 3) == [200] * 3
    assert shop.statuses("/a", 2) == [200, 429]


def test_crowd_that_fails_is_charged_before_it_is_known(lone: Make) -> None:
    """A test before the view and a charge after it would let all of them through."""
    shop, inside, go = lone(), threading.Semaphore(0), threading.Event()

    def login() -> Any:
        inside.release()
        assert go.wait(30)
        return {}, 401

    shop.add("/login", shop.dj.limit("5/minute", charge="on_failure"), view=login)
    with ThreadPoolExecutor(30) as pool:
        waiting = [pool.submit(lambda: shop.get("/login").status_code) for _ in range(30)]
        for _ in range(5):
            assert inside.acquire(timeout=30)
        go.set()
        statuses = sorted(each.result() for each in waiting)
    assert statuses == [401] * 5 + [429] * 25


# --- shadow --------------------------------------------------------------------------------------


def test_limit_in_shadow_counts_and_refuses_nobody(shop: Shop) -> None:
    heard: list[list[str]] = []

    def hear(sender: Flask, policies: list[str], **rest: Any) -> None:
        heard.append(policies)

    shop.add("/a", shop.dj.limit("2/minute", shadow=True), shop.dj.limit("4/minute"))
    with signals.shadowed.connected_to(hear, shop.app):
        assert shop.statuses("/a", 5) == [200] * 4 + [429]
    assert heard == [["2/minute"]] * 2
    assert left(shop.get("/a")) == {"4/minute": 0}


def test_everything_may_be_in_shadow_or_off(lone: Make) -> None:
    for limits in ({"shadow": True}, {"enabled": False}):
        shop = lone(limits=limits)
        shop.add("/a", shop.dj.limit("1/minute"))
        assert shop.statuses("/a", 3) == [200] * 3
