"""What the servers themselves cost: the floor that no library can get below."""

from __future__ import annotations

import itertools
import sqlite3
import uuid
from pathlib import Path
from typing import Final

import redis

from .requests import BODY, Case, UnexpectedAnswer

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
FINGERPRINT: Final = b"f" * 32
TOKEN: Final = b"t" * 16


def get(client: redis.Redis) -> Case:
    """One GET of 1 kB: the unit for comparing with other machines."""
    client.set("benchmark", BODY)

    def act() -> None:
        if client.get("benchmark") is None:
            raise UnexpectedAnswer("the server has lost what was set")

    return act


def two_scripts(client: redis.Redis) -> Case:
    """A bare prototype of a first request: claim and complete, two EVALSHA by redis-py."""
    claim, complete = client.script_load(CLAIM), client.script_load(COMPLETE)
    run, counter = uuid.uuid4().hex, itertools.count()

    def act() -> None:
        key = f"{{{run}}}:{next(counter)}"
        client.evalsha(claim, 1, key, FINGERPRINT, TOKEN)
        client.evalsha(complete, 1, key, TOKEN, BODY)

    return act


def replay_script(client: redis.Redis) -> Case:
    """A bare prototype of a replay: the claim alone, which finds 1 kB."""
    claim, key = client.script_load(CLAIM), f"{{{uuid.uuid4().hex}}}"
    client.evalsha(claim, 1, key, FINGERPRINT, TOKEN)
    client.evalsha(client.script_load(COMPLETE), 1, key, TOKEN, BODY)

    def act() -> None:
        client.evalsha(claim, 1, key, FINGERPRINT, TOKEN)

    return act


def two_commits(path: Path, synchronous: str) -> Case:
    """Two transactions on SQLite: insert a row, then write 1 kB into it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, key TEXT UNIQUE, data BLOB)")
    run, counter = uuid.uuid4().hex, itertools.count()

    def act() -> None:
        key = f"{run}{next(counter)}"
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO rows (key, data) VALUES (?, ?)", (key, b"claim"))
        connection.execute("COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE rows SET data = ? WHERE key = ?", (BODY, key))
        connection.execute("COMMIT")

    return act
