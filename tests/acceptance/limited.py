"""An application with limits, on a store whose clock is turned by hand."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from demijohn import Demijohn
from demijohn.limits import LimitsOptions
from demijohn.stores import Store
from demijohn.stores.memory import MemoryStore
from demijohn.stores.sqlite import SqliteStore
from demijohn.testing.contract import ManualClock

View = Callable[..., Any]
_STATE = re.compile(r'"([^"]*)";r=(\d+)(?:;t=(\d+))?')


class Shop:
    """An application with limited views; whoever calls says so in a header."""

    def __init__(self, folder: Path, store: Store, clock: ManualClock, **options: Any) -> None:
        self.clock = clock
        self.store = store
        self.runs = 0
        self.app = Flask("shop", instance_path=str(folder))
        self.app.secret_key = "the shop's"
        limits: LimitsOptions = options.pop("limits", {})
        self.dj = Demijohn(
            self.app, stores={"default": store}, principal=self.caller, limits=limits, **options
        )

    @staticmethod
    def caller() -> str | None:
        from flask import request

        return request.headers.get("X-User")

    def view(self) -> Any:
        self.runs += 1
        return {"run": self.runs}

    def add(self, path: str, *decorators: Callable[[View], View], view: View | None = None) -> None:
        """Add a view under ``decorators``, the first outermost."""
        found = view or self.view
        for decorate in reversed(decorators):
            found = decorate(found)
        methods = ["GET", "POST", "PUT"]
        self.app.add_url_rule(path, endpoint=path[1:], view_func=found, methods=methods)

    def get(self, path: str, user: str | None = None, **options: Any) -> TestResponse:
        headers = dict(options.pop("headers", {}))
        if user is not None:
            headers["X-User"] = user
        environ = {"REMOTE_ADDR": options.pop("ip", "192.0.2.1")}
        method = options.pop("method", "GET")
        return self.app.test_client().open(
            path,
            method=method,
            headers=headers,
            environ_overrides=environ,
            buffered=True,
            **options,
        )

    def statuses(self, path: str, count: int, **options: Any) -> list[int]:
        return [self.get(path, **options).status_code for _ in range(count)]

    def pass_ms(self, milliseconds: int) -> None:
        """Let time pass, for the store and for what the process remembers of it."""
        self.clock.advance(milliseconds)
        self.app.extensions["demijohn"].capabilities["limits"].rejections.clear()


def left(response: TestResponse) -> dict[str, int]:
    """Return what is left, by the names of the limits."""
    states = _STATE.findall(response.headers.get("RateLimit", ""))
    return {name: int(remaining) for name, remaining, _ in states}


def resets(response: TestResponse) -> dict[str, int]:
    """Return in how many seconds there is more, by the names of the limits."""
    states = _STATE.findall(response.headers.get("RateLimit", ""))
    return {name: int(reset) for name, _, reset in states if reset}


# --- fixtures -----------------------------------------------------------------------------------

Make = Callable[..., Shop]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
    made: Store
    if request.param == "memory":
        made = MemoryStore(clock=clock)
    elif request.param == "sqlite":
        made = SqliteStore(tmp_path / "rows.db", synchronous="normal", clock=clock)
    else:
        url = request.getfixturevalue("redis_url")
        from demijohn.stores.redis.address import parse_url
        from demijohn.stores.redis.store import RedisStore

        joint = "&" if "?" in url else "?"
        options = f"timeout=5&connect_timeout=5&prefix={uuid.uuid4().hex}:"
        made = RedisStore(parse_url(f"{url}{joint}{options}"), clock=clock)
    yield made
    made.close()


@pytest.fixture
def make(tmp_path: Path, store: Store, clock: ManualClock) -> Make:
    return lambda **options: Shop(tmp_path, store, clock, **options)


@pytest.fixture
def shop(make: Make) -> Shop:
    return make()


@pytest.fixture
def lone(tmp_path: Path, clock: ManualClock) -> Make:
    """In memory, for what has nothing to do with the store."""
    return lambda **options: Shop(tmp_path, MemoryStore(clock=clock), clock, **options)
