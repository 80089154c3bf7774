"""How many trips and connections a request costs, counted on the server: exactly so many."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

pytest.importorskip("redis")

from demijohn import Demijohn
from tests.servers import RedisServer


class Api:
    """One idempotent view on a server of its own."""

    def __init__(self, folder: Path, server: RedisServer) -> None:
        self.app = Flask("trips", instance_path=str(folder))
        self.app.secret_key = "s"
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()
        url = f"{server.url()}?timeout=5&connect_timeout=5"
        dj = Demijohn(self.app, stores=url, idempotency={"wait": 30})
        self.app.post("/")(dj.idempotent(self.view))

    def view(self) -> dict[str, bool]:
        self.entered.set()
        assert self.go.wait(30)
        return {"done": True}

    def post(self, key: str | None = None) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.app.test_client().post("/", headers=headers)


@pytest.fixture
def api(tmp_path: Path, own_redis: RedisServer) -> Iterator[Api]:
    api = Api(tmp_path, own_redis)
    api.post(str(uuid.uuid4()))  # the first of all connects and loads the scripts
    yield api
    api.app.extensions["demijohn"].keeper.stop()


def count(server: RedisServer, act: Callable[[], object]) -> tuple[dict[str, int], int]:
    """Return which commands clients sent, and how many connections were made for them."""

    def made(act: Callable[[], object]) -> tuple[list[str], int]:
        before = server.connections_received()
        with server.commands() as seen:
            act()
        return [words[0].lower() for words in seen], server.connections_received() - before

    _, own = made(lambda: None)  # counting takes connections of its own
    names, connections = made(act)
    return dict(Counter(names)), connections - own


def test_first_request_is_two_trips(api: Api, own_redis: RedisServer) -> None:
    assert count(own_redis, lambda: api.post(str(uuid.uuid4()))) == ({"evalsha": 2}, 0)


def test_replay_is_one_trip_and_no_new_connection(api: Api, own_redis: RedisServer) -> None:
    key = str(uuid.uuid4())
    api.post(key)
    assert count(own_redis, lambda: api.post(key)) == ({"evalsha": 1}, 0)


def test_request_without_a_key_is_no_trip(api: Api, own_redis: RedisServer) -> None:
    assert count(own_redis, api.post) == ({}, 0)


def test_refused_request_is_one_trip_at_most(api: Api, own_redis: RedisServer) -> None:
    assert count(own_redis, lambda: api.post("")) == ({}, 0)


def test_waiter_is_one_trip_a_push_and_one_trip(api: Api, own_redis: RedisServer) -> None:
    def duplicate() -> None:
        key = str(uuid.uuid4())
        api.entered.clear()
        api.go.clear()
        first = threading.Thread(target=api.post, args=[key])
        first.start()
        assert api.entered.wait(10)
        second = threading.Thread(target=api.post, args=[key])
        second.start()
        threading.Event().wait(0.5)  # it waits: for less than a second, when it would look again
        api.go.set()
        first.join(30)
        second.join(30)

    duplicate()  # the first of all subscribes
    commands, connections = count(own_redis, duplicate)
    # Two of the first request and two of the duplicate, which takes a connection of its own if
    # the pool has none to spare; the push comes on the one subscription that is there already.
    assert commands.pop("evalsha") == 4
    assert commands in ({}, {"select": 1})
    assert connections <= 1


def test_crowd_that_is_woken_looks_once(api: Api, own_redis: RedisServer) -> None:
    crowd = 12

    def duplicates() -> None:
        key = str(uuid.uuid4())
        api.entered.clear()
        api.go.clear()
        threads = [threading.Thread(target=api.post, args=[key]) for _ in range(1 + crowd)]
        threads[0].start()
        assert api.entered.wait(10)
        for thread in threads[1:]:
            thread.start()
        threading.Event().wait(0.5)
        api.go.set()
        for thread in threads:
            thread.join(30)

    duplicates()
    commands, _ = count(own_redis, duplicates)
    # Begin and complete; one look of each duplicate; and one of all of them when they are woken.
    assert commands["evalsha"] == 2 + crowd + 1
