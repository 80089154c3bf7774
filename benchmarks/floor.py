"""What the servers themselves cost: the floor that no library can get below."""

from __future__ import annotations

import sqlite3
import sys
import uuid
from pathlib import Path
from typing import Final

import redis

from .requests import BODY, Case

CLAIM: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local found = redis.call('HMGET', KEYS[1], 's', 'p', 'r')
if found[1] then return {found[1], found[2], found[3]} end
redis.call('HSET', KEYS[1], 's', '1', 'p', ARGV[1], 't', ARGV[2], 'l', now + 60000)
redis.call('PEXPIRE', KEYS[1], 86400000)
return {'run'}
"""
COMPLETE: Final = """
if redis.call('HGET', KEYS[1], 't') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 's', '2', 'r', ARGV[2])
redis.call('PEXPIRE', KEYS[1], 86400000)
return 1
"""


def get(client: redis.Redis) -> Case:
    """One GET of 1 kB: the unit for comparing with other machines."""
    client.set("benchmark", BODY)
    return lambda _: _use(client.get("benchmark"))


def _use(value: object) -> None:
    if value is None:
        raise RuntimeError("the server has lost what was set")


def two_scripts(client: redis.Redis) -> Case:
    """A bare prototype of the protocol: claim and complete, two EVALSHA by redis-py."""
    claim, complete = client.script_load(CLAIM), client.script_load(COMPLETE)
    run, counter = uuid.uuid4().hex, iter(range(sys.maxsize))

    def act(_: int) -> None:
        key = f"{{{run}}}:{next(counter)}"
        client.evalsha(claim, 1, key, b"f" * 32, b"t" * 16)
        client.evalsha(complete, 1, key, b"t" * 16, BODY)

    return act


def rows(path: Path, synchronous: str) -> Case:
    """Two transactions on SQLite: insert a row, then write 1 kB into it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, key TEXT UNIQUE, data BLOB)")
    run, counter = uuid.uuid4().hex, iter(range(sys.maxsize))

    def act(_: int) -> None:
        key = f"{run}{next(counter)}"
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO rows (key, data) VALUES (?, ?)", (key, b"claim"))
        connection.execute("COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE rows SET data = ? WHERE key = ?", (BODY, key))
        connection.execute("COMMIT")

    return act
