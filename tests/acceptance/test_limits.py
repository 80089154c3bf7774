"""What a client meets that is limited, on every store."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import abort, redirect

from tests.acceptance.limited import Make, Shop, clock, left, lone, make, resets, shop, store

__all__ = ["clock", "lone", "make", "shop", "store"]

IANA = "https://iana.org/assignments/http-problem-types#"


# --- rates --------------------------------------------------------------------------------------


def test_request_over_the_limit_is_refused_until_the_window_has_passed(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("3/minute"))
    assert shop.statuses("/a", 5) == [200, 200, 200, 429, 429]
    assert shop.runs == 3
    shop.pass_ms(60_000)
    assert shop.get("/a").status_code == 429  # nothing comes back early ...
    shop.pass_ms(6_001)
    assert shop.get("/a").status_code == 200  # ... and all of it at most a tenth late


def test_refusal_says_which_limits_and_when(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("2/minute", name="burst"), shop.dj.limit("2/hour; 50/day"))
    shop.statuses("/a", 2)
    refusal = shop.get("/a")
    assert refusal.status_code == 429
    assert refusal.mimetype == "application/problem+json"
    assert refusal.headers["Cache-Control"] == "no-store"
    document = refusal.get_json()
    assert document["type"] == f"{IANA}quota-exceeded"
    assert document["violated-policies"] == ["burst", "2/hour"]
    # The longest of the waits: before that the request would be refused again.
    wait = int(refusal.headers["Retry-After"])
    assert 3600 < wait <= 3960
    assert resets(refusal)["2/hour"] <= wait


def test_refused_request_takes_nothing_from_any_limit(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("2/hour"), shop.dj.limit("5/minute"))
    assert shop.statuses("/a", 7) == [200, 200, *[429] * 5]
    assert left(shop.get("/a")) == {"2/hour": 0, "5/minute": 3}


def test_every_response_says_how_all_limits_stand(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("10/minute; 100/day"), shop.dj.concurrent(4, name="at once"))
    response = shop.get("/a")
    policy = '"10/minute";q=10;w=60, "100/day";q=100;w=86400, '
    assert response.headers["RateLimit-Policy"] == f'{policy}"at once";q=4;qu="concurrent-requests"'
    assert left(response) == {"10/minute": 9, "100/day": 99, "at once": 4}
    assert "Retry-After" not in response.headers
    again = shop.get("/a")
    assert again.headers["RateLimit-Policy"] == response.headers["RateLimit-Policy"]


@pytest.mark.parametrize("status", [200, 201, 400, 404, 500])
def test_errors_say_so_too(shop: Shop, status: int) -> None:
    shop.add("/a", shop.dj.limit("10/minute"), view=lambda: ({}, status))
    shop.add("/raise", shop.dj.limit("10/minute"), view=lambda: abort(409))
    assert left(shop.get("/a")) == {"10/minute": 9}
    assert left(shop.get("/raise")) == {"10/minute": 9}


def test_redirects_do_not_say_so(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("1/minute"), view=lambda: redirect("/b"))
    response = shop.get("/a")
    assert response.status_code == 302
    assert "RateLimit" not in response.headers


def test_older_fields_speak_of_the_tightest_limit(lone: Make) -> None:
    shop = lone(limits={"headers": "legacy"})
    shop.add("/a", shop.dj.limit("10/minute"), shop.dj.limit("4/hour"))
    response = shop.get("/a")
    assert "RateLimit" not in response.headers
    assert response.headers["X-RateLimit-Limit"] == "4"
    assert response.headers["X-RateLimit-Remaining"] == "3"
    reset = int(response.headers["X-RateLimit-Reset"]) - shop.clock.now_ms / 1000
    assert 3600 <= reset <= 3961


def test_no_fields_if_none_are_wanted(lone: Make) -> None:
    shop = lone(limits={"headers": None})
    shop.add("/a", shop.dj.limit("1/minute"))
    assert not [name for name, _ in shop.get("/a").headers if "RateLimit" in name]
    assert shop.get("/a").headers["Retry-After"]


def test_burst_is_admitted_above_an_even_rate(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("60/minute", burst=5))
    assert shop.statuses("/a", 6) == [200] * 5 + [429]
    assert shop.get("/a").headers["Retry-After"] == "1"
    shop.pass_ms(1000)
    assert shop.statuses("/a", 2) == [200, 429]


def test_calendar_begins_anew_at_the_turn_of_the_period(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("2/day", algorithm="calendar"))
    shop.add("/m", shop.dj.limit("2/month", algorithm="calendar"))
    assert shop.statuses("/a", 3) == [200, 200, 429]
    assert "w=" not in shop.get("/m").headers["RateLimit-Policy"]
    day_ms = 86_400_000
    shop.pass_ms(day_ms - shop.clock.now_ms % day_ms)
    assert shop.statuses("/a", 3) == [200, 200, 429]


def test_log_is_exact(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("2/minute", algorithm="log"))
    shop.get("/a")
    shop.pass_ms(30_000)
    assert shop.statuses("/a", 2) == [200, 429]
    shop.pass_ms(29_999)
    assert shop.get("/a").status_code == 429
    shop.pass_ms(1)
    assert shop.statuses("/a", 2) == [200, 429]


def test_limit_of_nothing_blocks_without_a_hope(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("0/minute"))
    refusal = shop.get("/a")
    assert refusal.status_code == 429
    assert "Retry-After" not in refusal.headers


def test_older_form_counts_the_same(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit(requests=2, window=60, by="ip", group=None))
    assert shop.statuses("/a", 3) == [200, 200, 429]
    assert shop.get("/a").get_json()["violated-policies"] == ["2/60s"]


# --- beside idempotency --------------------------------------------------------------------------


def test_replays_are_not_charged_what_the_view_costs(make: Make) -> None:
    shop = make(limits={"replays": "4/minute"})
    shop.add("/pay", shop.dj.limit("2/minute"), shop.dj.idempotent)
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first = shop.get("/pay", method="POST", headers=key)
    assert first.get_json() == {"run": 1}
    for _ in range(4):
        replay = shop.get("/pay", method="POST", headers=key)
        assert (replay.status_code, replay.get_json()) == (200, {"run": 1})
        assert left(replay) == {"2/minute": 1}
    # They are cheap, and not free: a flood of them ends as well.
    refusal = shop.get("/pay", method="POST", headers=key)
    assert refusal.status_code == 429
    assert refusal.get_json()["violated-policies"] == ["replays 4/minute"]
    other = {"Idempotency-Key": str(uuid.uuid4())}
    assert shop.get("/pay", method="POST", headers=other).status_code == 200


def test_refusal_is_never_the_response_of_a_key(make: Make) -> None:
    shop = make()
    shop.add("/pay", shop.dj.idempotent, shop.dj.limit("1/minute"))
    keys = [{"Idempotency-Key": str(uuid.uuid4())} for _ in range(2)]
    statuses = [shop.get("/pay", method="POST", headers=key).status_code for key in keys]
    assert statuses == [200, 429]
    shop.pass_ms(66_001)
    again = shop.get("/pay", method="POST", headers=keys[1])
    assert (again.status_code, again.get_json()) == (200, {"run": 2})


def test_view_that_ran_after_all_is_charged(make: Make) -> None:
    """A duplicate that waited for the first is charged when that has given the key back."""
    shop, inside, go = make(idempotency={"wait": 20}), threading.Event(), threading.Event()

    def pay() -> Any:
        shop.runs += 1
        if shop.runs == 1:
            inside.set()
            assert go.wait(30)
            return {}, 503
        return {"run": shop.runs}

    shop.add("/pay", shop.dj.idempotent, shop.dj.limit("5/minute"), view=pay)
    key = {"Idempotency-Key": str(uuid.uuid4())}
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(shop.get, "/pay", method="POST", headers=key)
        assert inside.wait(30)
        second = pool.submit(shop.get, "/pay", method="POST", headers=key)
        waiters = shop.app.extensions["demijohn"].capabilities["idempotency"].waiters
        while not second.done() and not waiters._all:
            pass
        go.set()
        assert first.result().status_code == 503
        assert second.result().get_json() == {"run": 2}
    assert left(shop.get("/pay", method="POST")) == {"5/minute": 2}


def test_key_that_is_not_valid_costs_a_look(make: Make) -> None:
    shop = make(limits={"replays": "2/minute"})
    shop.add("/pay", shop.dj.idempotent, shop.dj.limit("5/minute"))
    for _ in range(3):
        bad = shop.get("/pay", method="POST", headers={"Idempotency-Key": "a b"})
        assert bad.status_code == 400
        assert left(bad) == {"5/minute": 5}
