"""How many run at the same time: places, waiting for one, and shedding."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response

from demijohn import Limits
from demijohn.errors import ConfigError
from demijohn.limits import signals
from demijohn.stores import Store, open_store
from demijohn.stores.memory import MemoryStore
from demijohn.testing.contract import ManualClock
from tests.acceptance.limited import Shop, left

IANA = "https://iana.org/assignments/http-problem-types#"


class Slow(Shop):
    """A shop whose view can be held up."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.inside = threading.Semaphore(0)
        self.go = threading.Event()

    def view(self) -> Any:
        self.inside.release()
        assert self.go.wait(30)
        return super().view()

    @contextmanager
    def held(self, path: str, count: int, **options: Any) -> Iterator[list[Future[Any]]]:
        """Have ``count`` requests be in the view; they end with the block."""
        with ThreadPoolExecutor(max(count, 1)) as pool:
            held = [pool.submit(self.get, path, **options) for _ in range(count)]
            try:
                for _ in range(count):
                    assert self.inside.acquire(timeout=30)
                yield held
            finally:
                self.go.set()


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    made = open_store(store_url)
    yield made
    made.close()


@pytest.fixture
def shop(tmp_path: Path, store: Store) -> Slow:
    return Slow(tmp_path, store, ManualClock())


@pytest.fixture
def lone(tmp_path: Path) -> Callable[..., Slow]:
    return lambda **options: Slow(tmp_path, MemoryStore(), ManualClock(), **options)


def test_no_more_run_than_there_are_places(shop: Slow) -> None:
    shop.add("/a", shop.dj.concurrent(2, by="principal"))
    with shop.held("/a", 2, user="alice") as held:
        refusal = shop.get("/a", user="alice")
        assert refusal.status_code == 429
        assert refusal.get_json()["violated-policies"] == ["2 at once"]
        assert refusal.headers["Retry-After"] == "1"
        assert left(refusal) == {"2 at once": 0}
        shop.go.set()
        assert [each.result().status_code for each in held] == [200, 200]
    assert left(shop.get("/a", user="alice")) == {"2 at once": 2}


@pytest.mark.parametrize("fails", ["raises", "aborts"])
def test_place_is_given_back_when_the_view_fails(shop: Slow, fails: str) -> None:
    from flask import abort

    def view() -> None:
        if fails == "aborts":
            abort(409)
        raise RuntimeError("in the view")

    shop.add("/a", shop.dj.concurrent(1), view=view)
    expected = 409 if fails == "aborts" else 500
    assert shop.statuses("/a", 3) == [expected] * 3


def test_place_is_given_back_when_the_exception_passes_flask(shop: Slow) -> None:
    def view() -> None:
        raise RuntimeError("in the view")

    shop.app.testing = True
    shop.add("/a", shop.dj.concurrent(1), view=view)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            shop.get("/a")


def test_place_of_a_stream_is_held_until_it_is_closed(shop: Slow) -> None:
    shop.add(
        "/a", shop.dj.concurrent(1, by="all"), view=lambda: Response(iter(["one", "two", "three"]))
    )
    client = shop.app.test_client()
    streaming = client.get("/a", buffered=False)
    body = streaming.iter_encoded()
    assert next(body) == b"one"
    assert shop.get("/a").status_code == 429
    streaming.close()  # in the middle: the client has gone away
    assert shop.get("/a").status_code == 200
    assert shop.get("/a").text == "onetwothree"


def test_place_is_renewed_while_the_view_runs(shop: Slow) -> None:
    shop.add("/a", shop.dj.concurrent(1, lease=0.3))
    with shop.held("/a", 1):
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert shop.get("/a").status_code == 429
            time.sleep(0.05)
    assert shop.get("/a").status_code == 200


def test_place_whose_lease_lapsed_is_told_of(shop: Slow) -> None:
    lost = threading.Event()

    def hear(sender: Flask, endpoint: str, **rest: Any) -> None:
        assert endpoint == "a"
        lost.set()

    shop.add("/a", shop.dj.concurrent(1, lease=0.3))
    with signals.place_lost.connected_to(hear, shop.app), shop.held("/a", 1):
        from demijohn.core import limits as core

        rows = [name for name, _ in shop.store.scan("limits:")]
        shop.store.run([core.reset((name,)) for name in rows])
        assert lost.wait(10)


def test_request_waits_for_a_place(shop: Slow) -> None:
    shop.add("/a", shop.dj.concurrent(1, wait=30))
    waiting_room = shop.app.extensions["demijohn"].capabilities["limits"]._waiting
    with shop.held("/a", 1), ThreadPoolExecutor(1) as pool:
        second = pool.submit(shop.get, "/a")
        while not waiting_room.count:
            assert not second.done()
            time.sleep(0.001)
        shop.go.set()
        assert second.result(30).status_code == 200
    assert waiting_room.count == 0


def test_request_waits_no_longer_than_it_is_told_to(shop: Slow) -> None:
    shop.add("/a", shop.dj.concurrent(1, wait=0.2))
    with shop.held("/a", 1):
        assert shop.get("/a").status_code == 429


def test_only_so_many_wait(tmp_path: Path, lone: Callable[..., Slow]) -> None:
    shop = lone(limits={"max_waiters": 0})
    shop.add("/a", shop.dj.concurrent(1, wait=30))
    with shop.held("/a", 1):
        assert shop.get("/a").status_code == 429


def test_rate_is_not_waited_for(lone: Callable[..., Slow]) -> None:
    shop = lone()
    shop.go.set()
    shop.add("/a", shop.dj.concurrent(5, wait=30), shop.dj.limit("1/hour"))
    assert shop.statuses("/a", 2) == [200, 429]


def test_rate_that_runs_out_ends_the_wait(lone: Callable[..., Slow]) -> None:
    shop = lone()
    shop.add("/a", shop.dj.concurrent(1, wait=30, by="all"), shop.dj.limit("1/hour"))
    waiting_room = shop.app.extensions["demijohn"].capabilities["limits"]._waiting
    with shop.held("/a", 1, ip="192.0.2.1"), ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(shop.get, "/a", ip="192.0.2.2") for _ in range(2)]
        while waiting_room.count < 2:
            time.sleep(0.001)
        shop.go.set()
        statuses = sorted(each.result(30).status_code for each in waiting)
    assert statuses == [200, 429]


def test_places_and_rates_are_taken_together_or_not_at_all(shop: Slow) -> None:
    shop.add("/a", shop.dj.concurrent(1), shop.dj.limit("9/minute"))
    with shop.held("/a", 1):
        assert shop.statuses("/a", 3) == [429] * 3
    assert left(shop.get("/a")) == {"1 at once": 1, "9/minute": 7}


# --- shedding ------------------------------------------------------------------------------------


def critical() -> bool:
    from flask import request

    return request.headers.get("X-User") == "critical"


def test_what_is_not_critical_is_shed_first(lone: Callable[..., Slow]) -> None:
    heard: list[tuple[int, int]] = []

    def hear(sender: Flask, running: int, capacity: int, **rest: Any) -> None:
        heard.append((running, capacity))

    shop = lone()
    shop.add("/a", shop.dj.shed(capacity=5, reserve=0.2, critical=critical))
    with shop.held("/a", 4), signals.shed.connected_to(hear, shop.app):
        refusal = shop.get("/a")
        assert refusal.status_code == 503
        assert refusal.get_json()["type"] == f"{IANA}temporary-reduced-capacity"
        assert refusal.headers["Retry-After"] == "1"
        assert refusal.headers["Cache-Control"] == "no-store"
        with ThreadPoolExecutor(1) as pool:
            vital = pool.submit(shop.get, "/a", user="critical")
            assert shop.inside.acquire(timeout=30)
            assert shop.get("/a", user="critical").status_code == 503
            shop.go.set()
            assert vital.result(30).status_code == 200
    assert heard == [(4, 5), (5, 5)]
    assert shop.get("/a").status_code == 200


def test_load_of_the_whole_application_is_shed(lone: Callable[..., Slow]) -> None:
    shop = lone(limits={"shed": {"capacity": 1, "reserve": 0}})
    shop.add("/a")
    shop.add("/b", shop.dj.limit("9/minute"))
    with shop.held("/a", 1):
        assert shop.get("/b").status_code == 503
        assert shop.get("/a").status_code == 503
    assert left(shop.get("/b")) == {"9/minute": 8}  # what was shed has taken nothing


def test_stream_counts_as_running_until_it_is_sent(lone: Callable[..., Slow]) -> None:
    for decorators in ("shed", "shed and limit"):
        shop = lone()
        shed = [shop.dj.shed(capacity=1, reserve=0)]
        limit = [shop.dj.limit("9/minute")] if "limit" in decorators else []
        shop.add("/a", *shed, *limit, view=lambda: Response(iter(["one", "two"])))
        streaming = shop.app.test_client().get("/a", buffered=False)
        assert shop.get("/a").status_code == 503
        streaming.close()
        assert shop.get("/a").status_code == 200


def test_what_fails_does_not_run_on(lone: Callable[..., Slow]) -> None:
    def view() -> None:
        raise RuntimeError("in the view")

    shop = lone()
    shop.add("/a", shop.dj.shed(capacity=1, reserve=0), shop.dj.limit("2/minute"), view=view)
    assert shop.statuses("/a", 4) == [500, 500, 429, 429]


def test_groups_are_shed_by_themselves(lone: Callable[..., Slow]) -> None:
    shop = lone()
    shop.add("/a", shop.dj.shed(capacity=1, reserve=0, group="reports"))
    shop.add("/b", shop.dj.shed(capacity=1, reserve=0), view=lambda: "b")
    with shop.held("/a", 1):
        assert shop.get("/a").status_code == 503
        assert shop.get("/b").status_code == 200


def test_capacity_may_be_found_or_told_by_the_server(
    lone: Callable[..., Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = lone()
    shop.go.set()
    shop.app.testing = True
    shop.add("/a", shop.dj.shed(adaptive=True))
    shop.add("/b", shop.dj.shed(group="b"))
    shop.add("/c", shop.dj.shed(group="c"))
    assert shop.get("/a").status_code == 200
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--threads 8")
    assert shop.get("/b").status_code == 200
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "")
    with pytest.raises(ConfigError, match="capacity="):
        shop.get("/c")
    with pytest.raises(ConfigError, match="reserve"):
        Limits().shed(reserve=1.5)
