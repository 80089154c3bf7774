"""Limits on real stores: exact under several processes, through crashes, in few trips."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demijohn import Demijohn
from demijohn.core import limits
from demijohn.core.limits import Rule
from demijohn.stores import Store, open_store
from demijohn.testing.contract import ManualClock

STORES = ["sqlite", "redis", "postgres", "mariadb"]
WINDOW_MS = 2000


def url_of(request: pytest.FixtureRequest, folder: Path, kind: str) -> str:
    if kind == "memory":
        return "memory://"
    if kind == "sqlite":
        return f"sqlite:///{folder}/rows.db?synchronous=normal"
    url: str = request.getfixturevalue(f"{kind}_url")
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}timeout=20&connect_timeout=20"


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that processes share."""
    return url_of(request, tmp_path, request.param)


def new_key() -> str:
    return f"limits:{{{uuid.uuid4().hex}}}:k"


# --- four processes ------------------------------------------------------------------------------


def _take_many(url: str, keys: tuple[str, ...], rules: list[Rule], times: int, result: Any) -> None:
    store = open_store(url)
    result.put("ready")
    admitted = sum(store.run([limits.take(keys, rules)])[0].status == "taken" for _ in range(times))
    store.close()
    result.put(admitted)


def test_four_processes_admit_exactly_the_limit(url: str) -> None:
    """Two limits, of which the smaller decides: what it refuses, the larger never counts."""
    context = multiprocessing.get_context("spawn")
    key = new_key()
    keys = (key, key + "2")
    rules = [(limits.WINDOW, 60, 600_000, 0, 1), (limits.GCRA, 1000, 3_600_000, 1000, 1)]
    results: Any = context.Queue()
    processes = [
        context.Process(target=_take_many, args=(url, keys, rules, 50, results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in range(8)]
    for process in processes:
        process.join(30)
    assert sum(answer for answer in answers if answer != "ready") == 60
    store = open_store(url)
    looked = store.run([limits.take(keys, [(*rule[:4], 0) for rule in rules])])[0]
    assert looked.integer(limits.FIRST) == 0
    assert 940 <= looked.integer(limits.FIRST + 3) <= 942  # some have flowed back
    store.close()


# --- the bound, on every store -------------------------------------------------------------------


@contextmanager
def under_clock(
    request: pytest.FixtureRequest, folder: Path, kind: str, clock: ManualClock
) -> Iterator[Store]:
    url = url_of(request, folder, kind)
    if kind == "sqlite":
        from demijohn.stores.sqlite import SqliteStore

        store: Store = SqliteStore(folder / "rows.db", synchronous="normal", clock=clock)
    elif kind == "redis":
        from demijohn.stores.redis.address import parse_url
        from demijohn.stores.redis.store import RedisStore

        store = RedisStore(parse_url(url), clock=clock)
    else:
        from demijohn.stores.sql import make

        store = make(url, clock=clock)
    try:
        yield store
    finally:
        store.close()


ARRIVALS = st.lists(
    st.tuples(st.sampled_from([0, 1, 199, 200, 201, 1999, 2000, 2001, 2200]), st.integers(1, 9)),
    max_size=12,
)


@pytest.mark.parametrize("kind", STORES)
def test_no_window_sees_more_than_the_quota_on_any_store(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    clock = ManualClock()
    with under_clock(request, tmp_path, kind, clock) as store:

        @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
        @given(ARRIVALS, st.integers(0, WINDOW_MS))
        def bound(arrivals: list[tuple[int, int]], offset: int) -> None:
            key, admitted = new_key(), []
            clock.advance(offset)
            for pause_ms, crowd in arrivals:
                clock.advance(pause_ms)
                for _ in range(crowd):
                    step = limits.take((key,), [(limits.WINDOW, 5, WINDOW_MS, 0, 1)])
                    if store.run([step])[0].status == "taken":
                        admitted.append(clock.now_ms)
            for start in admitted:
                assert sum(start <= at < start + WINDOW_MS for at in admitted) <= 5

        bound()


@pytest.mark.parametrize("kind", STORES)
def test_rows_go_by_themselves(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    """Every row has its time, set by the step that writes it."""
    clock = ManualClock()
    with under_clock(request, tmp_path, kind, clock) as store:
        key = new_key()
        rules = [
            (limits.WINDOW, 5, 1000, 0, 1),
            (limits.GCRA, 5, 1000, 5, 1),
            (limits.CALENDAR, 5, 1000, 0, 1),
            (limits.LOG, 5, 1000, 0, 1),
            (limits.LEASES, 5, 1000, 0, 1),
        ]
        keys = tuple(f"{key}{index}" for index in range(len(rules)))
        store.run([limits.take(keys, rules, token=b"12345678")])
        assert len(list(store.scan(key))) == 5
        clock.advance(1101)
        assert list(store.scan(key)) == []


# --- crashes -------------------------------------------------------------------------------------


def _hold(url: str, key: str, result: Any) -> None:
    store = open_store(url)
    store.run([limits.take((key,), [(limits.LEASES, 1, 1500, 0, 1)], token=b"the dead")])
    result.put("held")
    time.sleep(60)


def test_place_of_a_killed_process_is_free_when_its_lease_lapses(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    key, results = new_key(), context.Queue()
    process = context.Process(target=_hold, args=(url, key, results))
    process.start()
    assert results.get(timeout=60) == "held"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    store = open_store(url)
    step = limits.take((key,), [(limits.LEASES, 1, 1500, 0, 1)], token=b"somebody")
    statuses = [store.run([step])[0].status]
    deadline = time.monotonic() + 30
    while statuses[-1] == "refused" and time.monotonic() < deadline:
        time.sleep(0.05)
        statuses.append(store.run([step])[0].status)
    store.close()
    assert statuses[0] == "refused"
    assert statuses[-1] == "taken"


# --- trips, and room -----------------------------------------------------------------------------


def limited_app(url: str, count: int, *, idempotent: bool = False) -> Flask:
    app = Flask("limited")
    app.secret_key = "s"
    dj = Demijohn(app, stores=url)
    callers: list[Any] = ["ip", "all", ("ip", "all")]

    def view() -> str:
        return "done"

    guarded: Any = dj.idempotent(view) if idempotent else view
    for number in range(count):
        guarded = dj.limit(f"{number + 10}/minute", by=callers[number % 3])(guarded)
    app.add_url_rule("/a", view_func=guarded, methods=["POST"])
    return app


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_limits_are_one_trip_with_all_their_fields(own_redis: Any, count: int) -> None:
    app = limited_app(own_redis.url(), count)
    client = app.test_client()
    client.post("/a")  # connects, and loads the script
    with own_redis.commands() as commands:
        response = client.post("/a")
    assert [command[0] for command in commands] == ["EVALSHA"]
    assert response.headers["RateLimit"].count("r=") == count
    assert response.headers["RateLimit-Policy"].count("q=") == count


def test_limits_add_no_trip_to_idempotency(own_redis: Any) -> None:
    client = limited_app(own_redis.url(), 5, idempotent=True).test_client()
    for _ in range(2):
        key = {"Idempotency-Key": str(uuid.uuid4())}
        with own_redis.commands() as commands:
            assert client.post("/a", headers=key).status_code == 200
    assert [command[0] for command in commands] == ["EVALSHA", "EVALSHA"]
    with own_redis.commands() as commands:
        assert client.post("/a", headers=key).headers["Idempotent-Replayed"] == "true"
    assert [command[0] for command in commands] == ["EVALSHA"]


@pytest.mark.parametrize("amount", [10, 1000, 100_000])
def test_row_takes_little_room_whatever_the_limit(own_redis: Any, amount: int) -> None:
    app = Flask("roomy")
    app.secret_key = "s"
    dj = Demijohn(app, stores=own_redis.url())
    view = dj.limit(f"{amount}/minute", cost=lambda: amount // 10)(lambda: "done")
    view = dj.limit(f"{amount}/minute", burst=amount, cost=lambda: amount // 10)(view)
    view = dj.limit(f"{amount}/day", algorithm="calendar", cost=lambda: amount // 10)(view)
    app.add_url_rule("/a", view_func=view, endpoint="a")
    statuses = [app.test_client().get("/a").status_code for _ in range(10)]
    assert statuses == [200] * 10
    client = own_redis.client()
    names = list(client.scan_iter("*limits:*"))
    assert len(names) == 3
    for name in names:
        fields = {f"{n}": amount for n in range(11)}
        if client.hexists(name, "i"):  # as it is when every part of the window has counted
            client.hset(name, mapping=fields)
        assert client.memory_usage(name) <= 400
        assert 0 < client.pttl(name) <= 86_400_000


# --- a cluster -----------------------------------------------------------------------------------


@pytest.fixture
def on_cluster(redis_cluster_url: str) -> Iterator[Flask]:
    app = Flask("clustered")
    app.secret_key = "s"
    joint = "&" if "?" in redis_cluster_url else "?"
    prefix = f"prefix={uuid.uuid4().hex}:&timeout=5&connect_timeout=5"
    dj = Demijohn(app, stores=f"{redis_cluster_url}{joint}{prefix}")
    by_all = dj.limit("2/minute", by="all", name="all", charge="on_failure")
    by_key = dj.limit("5/minute", by="api_key", name="one")

    @app.post("/a")
    @by_key
    @by_all
    @dj.concurrent(3, by="api_key", name="places")
    @dj.idempotent
    def view() -> tuple[str, int]:
        from flask import request

        return "done", int(request.args.get("status", 200))

    @app.post("/nested")
    @dj.limit("100/minute", by="all")
    @dj.concurrent(1, by="api_key", wait=30)
    def nested() -> dict[str, int]:
        again = app.test_client().post("/nested", headers={"X-API-Key": "nested"})
        return {"inner": again.status_code}

    yield app
    for store in app.extensions["demijohn"].stores.values():
        store.close()


def ask(app: Flask, caller: str, status: int = 200, key: str | None = None) -> Any:
    headers = {"X-API-Key": caller} | ({"Idempotency-Key": key} if key else {})
    return app.test_client().post(f"/a?status={status}", headers=headers)


def test_limits_on_several_servers_give_back_what_one_refuses(on_cluster: Flask) -> None:
    # Of twenty callers some lie before the limit of all, some behind it, on other servers.
    for number in range(2):
        assert ask(on_cluster, f"caller {number}", 400).status_code == 400
    for number in range(20):
        caller = f"caller {number}"
        refusal = ask(on_cluster, caller)
        assert refusal.status_code == 429
        assert refusal.get_json()["violated-policies"] == ["all"]
        spent = 1 if number < 2 else 0
        assert f'"one";r={5 - spent}' in refusal.headers["RateLimit"]
        assert '"places";r=3' in refusal.headers["RateLimit"]


def test_limits_on_several_servers_admit_and_refund(on_cluster: Flask) -> None:
    for number in range(10):
        assert ask(on_cluster, f"caller {number}").status_code == 200
    key = str(uuid.uuid4())
    first, replay = ask(on_cluster, "alice", key=key), ask(on_cluster, "alice", key=key)
    assert first.status_code == replay.status_code == 200
    assert replay.headers["Idempotent-Replayed"] == "true"
    # The replay lies in yet another place: what it was charged has been given back.
    assert '"one";r=4' in replay.headers["RateLimit"]


def test_place_beside_limits_on_other_servers_is_not_waited_for(on_cluster: Flask) -> None:
    headers = {"X-API-Key": "nested"}
    for _ in range(2):
        answer = on_cluster.test_client().post("/nested", headers=headers)
        assert answer.get_json() == {"inner": 429}
    assert "r=98" in answer.headers["RateLimit"]
