"""An application whose views count their runs, on every store."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from blinker import Signal
from flask import Flask, Response, abort, request
from werkzeug.test import TestResponse

from demijohn import Demijohn
from demijohn.core.step import Outcome, Row, Step
from demijohn.idempotency import Options
from demijohn.stores import Health, Store, open_store


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "memory":
        return "memory://"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/rows.db?synchronous=normal"
    url: str = request.getfixturevalue("redis_url")
    joint = "&" if "?" in url else "?"
    # Nothing here is about deadlines, and a busy machine may be slow.
    options = "timeout=5&connect_timeout=5&max_connections=300"
    return f"{url}{joint}prefix={uuid.uuid4().hex}:&{options}"


def new_key() -> str:
    return str(uuid.uuid4())


class Bank:
    """An application with one view, the runs of which are counted and can be held up."""

    def __init__(self, tmp_path: Path, store: str | Store = "memory://", **options: Any) -> None:
        self.runs = 0
        self.caller: str | None = "alice"
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()
        self.app = Flask("bank", instance_path=str(tmp_path))
        self.app.secret_key = "the bank's"
        stores = {"default": store}
        idempotency: Options = {"wait": 20, "max_waiters": 300, **options}
        self.dj = Demijohn(
            self.app, stores=stores, principal=lambda: self.caller, idempotency=idempotency
        )
        self.app.add_url_rule("/pay", view_func=self.dj.idempotent(self.pay), methods=["POST"])

    def pay(self) -> Any:
        self.runs += 1
        run = self.runs
        self.entered.release()
        assert self.go.wait(30)
        return {"run": run}, 201

    def add(self, path: str, view: Callable[..., Any], **options: Any) -> None:
        """Add an idempotent view."""
        guarded = self.dj.idempotent(**options)(view)
        methods = ["GET", "POST", "PATCH", "PUT"]
        self.app.add_url_rule(path, endpoint=path, view_func=guarded, methods=methods)

    def post(self, key: str | None = None, path: str = "/pay", **options: Any) -> TestResponse:
        headers = dict(options.pop("headers", {}))
        if key is not None:
            headers["Idempotency-Key"] = key
        options.setdefault("json", {"amount": 1})
        if options["json"] is None:
            del options["json"]
        method = options.pop("method", "POST")
        # As a server does: the body is sent and closed before the next request.
        options.setdefault("buffered", True)
        return self.app.test_client().open(path, method=method, headers=headers, **options)

    @property
    def store(self) -> Store:
        store: Store = self.app.extensions["demijohn"].stores["default"]
        return store

    def close(self) -> None:
        binding = self.app.extensions["demijohn"]
        binding.keeper.stop()
        for store in binding.stores.values():
            store.close()


@pytest.fixture
def make_bank(tmp_path: Path, store_url: str) -> Iterator[Callable[..., Bank]]:
    """Make banks on the store under test; they are closed at the end."""
    banks: list[Bank] = []

    def make(**options: Any) -> Bank:
        banks.append(Bank(tmp_path, options.pop("store", store_url), **options))
        return banks[-1]

    yield make
    for bank in banks:
        bank.close()


@pytest.fixture
def bank(make_bank: Callable[..., Bank]) -> Bank:
    return make_bank()


@pytest.fixture
def lone_bank(tmp_path: Path) -> Iterator[Callable[..., Bank]]:
    """Make banks in memory, for what has nothing to do with the store."""
    banks: list[Bank] = []

    def make(**options: Any) -> Bank:
        banks.append(Bank(tmp_path, options.pop("store", "memory://"), **options))
        return banks[-1]

    yield make
    for bank in banks:
        bank.close()


@contextmanager
def together(count: int) -> Iterator[Callable[..., Future[Any]]]:
    """Run calls in threads of their own."""
    with ThreadPoolExecutor(count) as pool:
        yield pool.submit


@contextmanager
def heard(*signals: Signal) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Collect what is signalled, as (name, arguments)."""
    seen: list[tuple[str, dict[str, Any]]] = []
    receivers = []
    for signal in signals:

        def receive(sender: Any, _name: str = signal.name, **details: Any) -> None:  # type: ignore[attr-defined]
            seen.append((_name, details))

        signal.connect(receive)
        receivers.append((signal, receive))
    try:
        yield seen
    finally:
        for signal, receive in receivers:
            signal.disconnect(receive)


class FailingStore:
    """A real store that fails when it is told to: before it acts, or after."""

    def __init__(self, url: str = "memory://") -> None:
        self._store = open_store(url)
        self.fails: dict[str, Exception] = {}
        self.loses: dict[str, Exception] = {}
        self.calls: list[tuple[str, ...]] = []

    @property
    def inbox(self) -> str:
        return self._store.inbox

    @property
    def mark(self) -> int:
        return self._store.mark

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        names = tuple(step.kind.name.split(".")[1] for step in steps)
        self.calls.append(names)
        for name in names:
            if name in self.fails:
                raise self.fails[name]
        outcomes = self._store.run(steps)
        for name in names:
            if name in self.loses:
                raise self.loses.pop(name)
        return outcomes

    def wait(self, key: str, *, since: int, timeout_ms: int) -> bool:
        return self._store.wait(key, since=since, timeout_ms=timeout_ms)

    def scan(self, prefix: str) -> Iterator[tuple[str, Row]]:
        return self._store.scan(prefix)

    def health(self) -> Health:
        return self._store.health()

    def close(self) -> None:
        self._store.close()


__all__ = ["Response", "abort", "request"]
