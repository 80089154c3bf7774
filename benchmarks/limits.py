"""The same limits by Demijohn and by Flask-Limiter, around the same view, with all fields.

The limits are never reached, so every call does the whole work. Flask-Limiter is set up as its
documentation has it, with the fields on: it describes one of the limits, we describe all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import redis
from flask import Flask
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from demijohn import Demijohn, Limits
from demijohn.core import limits as core
from demijohn.stores import open_store
from tests.servers import RedisServer

from . import cases
from .requests import Case, first, pay, without_key
from .timing import Times

COUNTS: Final = (1, 2, 5)
STRATEGIES: Final = ("fixed-window", "moving-window")
UNITS: Final = ("minute", "hour", "day", "month", "year")
AMOUNT: Final = 1_000_000
STACKED: Final = "first and 2 limits, Redis"
ROOMS: Final = (10, 1000, 100_000)


def limits_of(count: int) -> str:
    """Return so many limits, in the notation of both."""
    return "; ".join(f"{AMOUNT * (number + 1)}/{UNITS[number]}" for number in range(count))


def ours(store: str, count: int) -> str:
    """Return the name of our case."""
    return f"{count} limits, {store}"


def peers(strategy: str, store: str, count: int) -> str:
    """Return the name of the peer's case."""
    return f"Flask-Limiter {strategy}, {count}, {store}"


def limits_cases(url: str | None, stores: Collection[str]) -> dict[str, Case]:
    """Return the cases by name.

    Args:
        url: of a Redis server of our own, ``None`` for none.
        stores: which are measured.
    """
    places = {"memory": ("memory://", "memory://")} if "memory" in stores else {}
    if url is not None:
        places["Redis"] = (f"{url}?timeout=5&connect_timeout=5", url)
    found: dict[str, Case] = {}
    for store, (our_url, peer_url) in places.items():
        for count in COUNTS:
            found[ours(store, count)] = without_key(_our_app(our_url, count))
            for strategy in STRATEGIES:
                app = _peer_app(peer_url, count, strategy)
                found[peers(strategy, store, count)] = without_key(app)
    if url is not None:
        found[STACKED] = first(_stacked_app(places["Redis"][0]))
    return found


def _our_app(store: str, count: int) -> Flask:
    app = _app("limited")
    limits = Limits(app, stores=store)
    app.post("/pay")(limits.limit(limits_of(count))(pay))
    return app


def _stacked_app(store: str) -> Flask:
    app = _app("stacked")
    dj = Demijohn(app, stores=store)
    app.post("/pay")(dj.limit(limits_of(2))(dj.idempotent(pay)))
    return app


def _peer_app(store: str, count: int, strategy: str) -> Flask:
    app = _app(f"peer-{strategy}-{count}")
    limiter = Limiter(
        get_remote_address,
        app=app,
        storage_uri=store,
        strategy=strategy,
        headers_enabled=True,
        key_prefix=f"{strategy}-{count}",
    )
    app.post("/pay")(limiter.limit(limits_of(count))(pay))
    return app


def _app(name: str) -> Flask:
    app = Flask(name)
    app.secret_key = "a benchmark's"
    return app


# --- exact figures -------------------------------------------------------------------------------


def exact(server: RedisServer) -> dict[str, int]:
    """Return what is counted, not timed: trips of a request, and bytes of a row."""
    url = f"{server.url()}?timeout=5&connect_timeout=5"
    found: dict[str, int] = {}
    for count in COUNTS:
        found[f"trips of {ours('Redis', count)}"] = _trips(
            server, without_key(_our_app(url, count))
        )
        for strategy in STRATEGIES:
            case = without_key(_peer_app(server.url(), count, strategy))
            found[f"trips of {peers(strategy, 'Redis', count)}"] = _trips(server, case)
    alone = first(_idempotent_app(url))
    found["trips of a first request"] = _trips(server, alone)
    found[f"trips of {STACKED}"] = _trips(server, first(_stacked_app(url)))
    return found | _rooms(server)


def _idempotent_app(store: str) -> Flask:
    app = _app("idempotent")
    dj = Demijohn(app, stores=store)
    app.post("/pay")(dj.idempotent(pay))
    return app


def _trips(server: RedisServer, case: Case) -> int:
    case()  # connects, and loads the scripts
    with server.commands() as commands:
        case()
    return len(commands)


def _rooms(server: RedisServer) -> dict[str, int]:
    store = open_store(f"{server.url()}?timeout=5&connect_timeout=5")
    client = server.client()
    found: dict[str, int] = {}
    for amount in ROOMS:
        for name, algorithm, burst in (("window", core.WINDOW, 0), ("gcra", core.GCRA, amount)):
            key = f"limits:{{{0:020x}}}:{amount:012x}{name}"
            rule = (algorithm, amount, 10_000, burst, amount // 10)
            while store.run([core.take((key,), [rule])])[0].status == "taken":
                pass
            if algorithm == core.WINDOW:  # as if every part of the window had counted
                for slot in range(11):
                    client.hset(f"demijohn:{key}", str(slot), str(amount // 10))
            used = client.memory_usage(f"demijohn:{key}")
            found[f"bytes of a row, {name}, limit {amount}"] = int(used or 0)
        found[f"bytes of Flask-Limiter's moving window, limit {amount}"] = _peer_room(
            client, amount
        )
    store.close()
    return found


def _peer_room(client: redis.Redis, amount: int) -> int:
    """Return what its list of as many instants takes, written as it writes them."""
    key, pipeline = f"peer-room-{amount}", client.pipeline(transaction=False)
    for number in range(amount):
        pipeline.lpush(key, repr(1_795_000_000.123456 + number))
    pipeline.execute()
    used: Any = client.memory_usage(key, samples=0)
    client.delete(key)
    return int(used)


# --- bars ----------------------------------------------------------------------------------------


def added(times: Mapping[str, Times], name: str) -> float:
    """Return the microseconds that a case costs more than bare Flask."""
    return times[name].median - times[cases.BARE].median


def ratios(times: Mapping[str, Times]) -> Iterator[tuple[str, float, float | None]]:
    """Yield what limits add, by what Flask-Limiter adds, and the bar if there is one."""
    for store, at_most in (("memory", 0.2), ("Redis", 0.35)):
        for strategy in STRATEGIES:
            for count in COUNTS:
                name, peer = ours(store, count), peers(strategy, store, count)
                if name in times:
                    ratio = added(times, name) / added(times, peer)
                    bar = at_most if strategy == "fixed-window" else None
                    yield f"{name} / {peer}, added", ratio, bar
    if STACKED in times and "first, Redis" in times:
        ratio = added(times, STACKED) / added(times, "first, Redis")
        yield f"{STACKED} / first, Redis, added", ratio, None


def counted(figures: Mapping[str, int]) -> Iterator[tuple[str, float, float]]:
    """Yield the bars for what is counted."""
    for name, value in figures.items():
        if name.startswith("bytes of a row"):
            yield name, value, 400
        elif name.startswith("trips of") and name.endswith("limits, Redis"):
            yield name, value, 2 if "first" in name else 1
