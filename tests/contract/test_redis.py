"""The Redis store keeps the contract on every server and in every layout that is supported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("redis")

import redis

from demijohn.stores.protocol import Store
from demijohn.stores.redis import from_url
from demijohn.stores.redis.address import parse_url
from demijohn.stores.redis.store import RedisStore
from demijohn.testing.contract import ManualClock, StoreContract

# Two busy cores are slower than the default deadline, and frames of 10 MB are not what it is for.
PATIENT = "timeout=5&connect_timeout=5"


def made(url: str, clock: ManualClock) -> Iterator[RedisStore]:
    separator = "&" if "?" in url else "?"
    store = RedisStore(parse_url(f"{url}{separator}{PATIENT}"), clock=clock)
    yield store
    store.close()


class _OnOneServer(StoreContract):
    def control(self, store: Store) -> redis.Redis:
        assert isinstance(store, RedisStore)
        host, port = store.address.nodes[0]
        return redis.Redis(host, port, db=store.address.db)

    def corrupt(self, store: Store, key: str) -> None:
        with self.control(store) as client:
            client.hset(f"demijohn:{key}", "x", "soon")

    @pytest.mark.parametrize("spoiled", ["a string", "no expiry", "no state", "an odd state"])
    def test_every_way_to_be_unreadable_is_told(self, store: Store, key: str, spoiled: str) -> None:
        from demijohn.errors import CorruptRecord
        from demijohn.testing import contract

        row = f"demijohn:{key}"
        store.run([contract.begin(key)])
        with self.control(store) as client:
            if spoiled == "a string":
                client.set(row, "spoiled")
            elif spoiled == "no expiry":
                client.hdel(row, "x")
            elif spoiled == "no state":
                client.hdel(row, "s")
            else:
                client.hset(row, "s", "5")
        with pytest.raises(CorruptRecord):
            store.run([contract.begin(key)])


class TestRedis(_OnOneServer):
    """On Redis 6.2, on the Redis of this machine, on Valkey 9.1."""

    @pytest.fixture
    def store(self, any_redis_url: str, clock: ManualClock) -> Iterator[Store]:
        yield from made(any_redis_url, clock)


class TestGuarded(StoreContract):
    """Behind its circuit breaker, with the server's own clock where no test turns it."""

    @pytest.fixture
    def store(self, redis_url: str, clock: ManualClock) -> Iterator[Store]:
        guarded = from_url(f"{redis_url}?{PATIENT}")
        guarded.store = RedisStore(parse_url(f"{redis_url}?{PATIENT}"), clock=clock)
        yield guarded
        guarded.close()


class TestCluster(StoreContract):
    @pytest.fixture
    def store(self, redis_cluster_url: str, clock: ManualClock) -> Iterator[Store]:
        yield from made(redis_cluster_url, clock)


class TestSentinel(StoreContract):
    @pytest.fixture
    def store(self, redis_sentinel_url: str, clock: ManualClock) -> Iterator[Store]:
        yield from made(redis_sentinel_url, clock)
