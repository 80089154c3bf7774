"""Which requests are measured, and beside what."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import redis
from flask import Flask

from . import floor, requests
from .requests import Case

BARE: Final = "bare Flask"
BARE_AGAIN: Final = "bare Flask, again"
GET: Final = "raw: one GET"
TWO_SCRIPTS: Final = "raw: two EVALSHA"
GET_IN_VIEW: Final = "raw: one GET in a view"
TWO_SCRIPTS_IN_VIEW: Final = "raw: two EVALSHA in a view"
PEER: Final = "flask-idempotent's protocol"
SQLITE_MODES: Final = ("normal", "full")
STORES: Final = ("memory", "sqlite", "redis", "postgres", "mariadb")


def request_cases(folder: Path, url: str | None, stores: Collection[str]) -> dict[str, Case]:
    """Return the cases by name.

    Args:
        folder: an empty one, for SQLite's files.
        url: of a Redis server of our own, ``None`` for none.
        stores: which of :data:`STORES` are measured. Bare Flask always is.
    """
    bare = requests.bare_app()
    cases = {BARE: requests.without_key(bare), BARE_AGAIN: requests.without_key(bare)}
    if "memory" in stores:
        cases |= _guarded("memory", requests.guarded_app("memory://"))
    if "sqlite" in stores:
        for mode in SQLITE_MODES:
            raw = floor.two_commits(folder / f"raw-{mode}.db", mode)
            cases[f"raw: two SQLite commits, {mode}"] = raw
            location = f"sqlite:///{folder}/{mode}.db?synchronous={mode}"
            cases |= _guarded(f"SQLite {mode}", requests.guarded_app(location))
    if url is not None:
        cases |= _redis_cases(url)
    return cases


def _guarded(store: str, app: Flask) -> dict[str, Case]:
    return {
        f"keyless, {store}": requests.without_key(app),
        f"first, {store}": requests.first(app),
        f"replay, {store}": requests.replay(app),
    }


def _redis_cases(url: str) -> dict[str, Case]:
    client = redis.Redis.from_url(url)
    # RESP2 and no greeting, as at the peer's time: each of its replays makes a connection.
    peer = requests.peer_app(redis.Redis.from_url(url, protocol=2, driver_info=None))
    return {
        GET: floor.get(client),
        TWO_SCRIPTS: floor.two_scripts(client),
        "raw: replay by one EVALSHA": floor.replay_script(client),
        GET_IN_VIEW: requests.without_key(requests.raw_app(floor.get(client))),
        TWO_SCRIPTS_IN_VIEW: requests.without_key(requests.raw_app(floor.two_scripts(client))),
        **_guarded("Redis", requests.guarded_app(f"{url}?timeout=5&connect_timeout=5")),
        f"first, {PEER}": requests.first(peer),
        f"replay, {PEER}": requests.replay(peer),
    }
