"""The defects of peers, and of the decorator that many applications have: none of them is here.

Each was seen in Flask-Limiter 4.1 with limits 5.8, in another peer, or in the decorator that
``docs/howto/from-a-limit-decorator.md`` shows.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, g, request

from demijohn import Demijohn
from demijohn.core import limits as core
from demijohn.stores import open_store

Make = Callable[..., "Site"]


class Site:
    """An application with limits and one caller."""

    def __init__(self, url: Any, **options: Any) -> None:
        self.app = Flask("site")
        self.app.secret_key = "s"
        self.dj = Demijohn(self.app, stores=url, limits=options)

    def add(self, path: str, *limits: Any, view: Any = lambda: "done") -> None:
        for limit in limits:
            view = limit(view)
        self.app.add_url_rule(path, path[1:], view, methods=["GET", "POST"])

    def ask(self, path: str, ip: str = "192.0.2.1", **headers: str) -> Any:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        environ = {"REMOTE_ADDR": ip}
        return self.app.test_client().get(path, headers=names, environ_overrides=environ)

    def statuses(self, path: str, count: int, **options: str) -> list[int]:
        return [self.ask(path, **options).status_code for _ in range(count)]

    def close(self) -> None:
        for store in self.app.extensions["demijohn"].stores.values():
            store.close()


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    found: str = request.getfixturevalue("redis_url")
    joint = "&" if "?" in found else "?"
    return f"{found}{joint}prefix={uuid.uuid4().hex}:&timeout=5&connect_timeout=5"


@pytest.fixture
def make(url: str) -> Iterator[Make]:
    sites: list[Site] = []

    def made(**options: Any) -> Site:
        sites.append(Site(options.pop("url", url), **options))
        return sites[-1]

    yield made
    for site in sites:
        site.close()


# --- Flask-Limiter and limits --------------------------------------------------------------------


def test_limits_of_a_request_are_not_counted_one_after_the_other(make: Make) -> None:
    site = make()
    site.add("/a", site.dj.limit("2/hour"), site.dj.limit("5/minute"))
    assert site.statuses("/a", 7) == [200, 200, *[429] * 5]
    assert '"5/minute";r=3' in site.ask("/a").headers["RateLimit"]


def test_refused_cost_is_not_charged(make: Make) -> None:
    site = make()
    site.add("/a", site.dj.limit("100/minute", cost=lambda: int(request.args["n"])))
    assert [site.ask(f"/a?n={n}").status_code for n in (98, 5, 1, 1, 1)] == [
        200,
        429,
        200,
        200,
        429,
    ]


def test_failures_are_not_tested_before_the_view_and_charged_after_it(make: Make) -> None:
    site, inside, go = make(), threading.Semaphore(0), threading.Event()

    def login() -> tuple[str, int]:
        inside.release()
        assert go.wait(30)
        return "wrong", 401

    site.add("/login", site.dj.limit("5/minute", charge="on_failure"), view=login)
    with ThreadPoolExecutor(30) as pool:
        asked = [pool.submit(lambda: site.ask("/login").status_code) for _ in range(30)]
        for _ in range(5):
            assert inside.acquire(timeout=30)
        go.set()
        assert sorted(each.result() for each in asked) == [401] * 5 + [429] * 25


def test_caller_without_a_key_is_not_let_past(make: Make) -> None:
    site = make()
    site.add("/a", site.dj.limit("2/minute", by="api_key"))
    site.add("/b", site.dj.limit("2/minute", by=lambda: request.headers.get("X-Tenant", "")))
    for path in ("/a", "/b"):
        assert site.statuses(path, 6) == [401] * 6


def test_another_algorithm_on_a_live_store_is_no_error(make: Make) -> None:
    store = make().app.extensions["demijohn"].stores["default"]
    for algorithm in ("window", "log", "gcra", "calendar"):
        site = make(url={"default": store}, algorithm=algorithm)
        site.add("/a", site.dj.limit("2/minute"))
        assert site.statuses("/a", 3) == [200, 200, 429]


def test_worker_with_a_wrong_clock_changes_nothing(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"prefix={uuid.uuid4().hex}:&timeout=5&connect_timeout=5"
    joint = "&" if "?" in redis_url else "?"
    site = Site(f"{redis_url}{joint}{prefix}", algorithm="log", rejection_cache=0)
    site.add("/a", site.dj.limit("5/minute"))
    site.ask("/a")
    real = time.time
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: real() + 60)
        patched.setattr(time, "time_ns", lambda: int((real() + 60) * 1e9))
        site.ask("/a")
    assert site.statuses("/a", 4) == [200, 200, 200, 429]
    reset = int(site.ask("/a").headers["RateLimit"].rpartition("t=")[2])
    assert 0 < reset <= 60
    site.close()


def test_many_threads_on_memory_do_not_break_it() -> None:
    store = open_store("memory://")
    barrier = threading.Barrier(72)

    def take(_: int) -> int:
        barrier.wait(30)
        step = core.take(("limits:{k}:s",), [(core.WINDOW, 1000, 600_000, 0, 1)])
        return sum(store.run([step])[0].status == "taken" for _ in range(50))

    with ThreadPoolExecutor(72) as pool:
        assert sum(pool.map(take, range(72))) == 1000


def test_reset_does_not_stop_the_server(own_redis: Any) -> None:
    from flask.cli import FlaskGroup

    site = Site(own_redis.url())
    site.add("/a", site.dj.limit("1/minute"))
    assert site.statuses("/a", 2) == [200, 429]
    group = FlaskGroup(create_app=lambda: site.app)
    with own_redis.commands() as commands:
        done = site.app.test_cli_runner().invoke(group, ["limits", "reset", "--all", "--yes"])
    assert done.output == "1 reset\n"
    names = {command[0].upper() for command in commands}
    assert "SCAN" in names
    assert not names & {"KEYS", "FLUSHDB", "FLUSHALL"}
    assert site.ask("/a").status_code == 200
    site.close()


def test_limits_of_one_length_are_both_named(make: Make) -> None:
    site = make()
    site.add("/a", site.dj.limit("10/5 minute; 10/minute; 10/minute"))
    policy = site.ask("/a").headers["RateLimit-Policy"]
    assert policy == '"10/5minute";q=10;w=300, "10/minute";q=10;w=60, "10/minute (2)";q=10;w=60'


def test_store_that_hangs_costs_a_deadline_and_then_nothing(own_redis: Any) -> None:
    breaker = "breaker_failures=1&breaker_reset=60&breaker_reset_max=60"
    url = f"{own_redis.url()}?timeout=0.2&connect_timeout=0.2&{breaker}"
    site = Site(url)
    site.add("/a", site.dj.limit("3/minute"))
    assert site.ask("/a").status_code == 200
    own_redis.pause()
    try:
        began = time.monotonic()
        assert site.ask("/a").status_code == 200
        assert time.monotonic() - began < 5
        # The circuit is open: nobody waits for the store any more, and each counts by itself.
        breaker = site.app.extensions["demijohn"].stores["default"].breaker
        asked = breaker.failures
        assert site.statuses("/a", 20) == [200, 200, *[429] * 18]
        assert breaker.failures == asked
    finally:
        own_redis.resume()
        site.close()


# --- others --------------------------------------------------------------------------------------


def test_changing_callers_do_not_make_it_forget(make: Make) -> None:
    """A store that keeps so many keys only forgets who comes with many addresses."""
    site = make(rejection_cache=10)
    site.add("/a", site.dj.limit("1/minute"))
    assert site.ask("/a", "203.0.113.1").status_code == 200
    for number in range(1500):
        site.ask("/a", f"198.51.{number // 250}.{number % 250}")
    assert site.ask("/a", "203.0.113.1").status_code == 429


@pytest.mark.parametrize("field", ["X_Forwarded_For", "X_Real_IP", "Forwarded", "Client_IP"])
def test_address_cannot_be_made_up(make: Make, field: str) -> None:
    site = make()
    site.add("/a", site.dj.limit("1/minute"))
    statuses = [site.ask("/a", **{field: f"203.0.113.{n}"}).status_code for n in range(3)]
    assert statuses == [200, 429, 429]


# --- the decorator of the talk -------------------------------------------------------------------


def test_group_is_the_endpoint_unless_it_is_named(make: Make) -> None:
    site = make()
    for path in ("/a", "/b"):
        site.add(path, site.dj.limit(requests=1, window=60, by="ip", group=None))
    for path in ("/c", "/d"):
        site.add(path, site.dj.limit(requests=1, window=60, group="both"))
    assert [site.ask(path).status_code for path in ("/a", "/b", "/c", "/d")] == [200, 200, 200, 429]


def test_window_ends(make: Make) -> None:
    site = make(algorithm="log")
    site.add("/a", site.dj.limit(requests=3, window=1))
    assert site.statuses("/a", 4) == [200, 200, 200, 429]
    deadline = time.monotonic() + 30
    while site.ask("/a").status_code == 429:
        assert time.monotonic() < deadline, "it is locked out for good"
        time.sleep(0.05)


def test_crowd_is_counted_to_the_last(make: Make) -> None:
    site = make()
    site.add("/a", site.dj.limit(requests=20, window=60))
    barrier = threading.Barrier(40)

    def ask(_: int) -> int:
        barrier.wait(30)
        status: int = site.ask("/a").status_code
        return status

    with ThreadPoolExecutor(40) as pool:
        assert sorted(pool.map(ask, range(40))) == [200] * 20 + [429] * 20


def test_refusal_is_json_with_a_wait_and_nothing_below_zero(make: Make) -> None:
    site = make(headers=["draft", "legacy"])
    site.add("/a", site.dj.limit(requests=1, window=60))
    refusal = [site.ask("/a") for _ in range(3)][-1]
    assert refusal.get_json()["status"] == 429
    assert int(refusal.headers["Retry-After"]) >= 60
    assert refusal.headers["X-RateLimit-Remaining"] == "0"


def test_all_decorators_reach_the_response(make: Make) -> None:
    site = make()
    site.add("/a", site.dj.limit("5/minute"), site.dj.limit("9/hour"), view=lambda: dict(g))
    assert site.ask("/a").headers["RateLimit"].count(";r=") == 2
