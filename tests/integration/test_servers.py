"""The tests' own servers: what they promise is what the contract and fault tests rest on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import flush
from tests.servers import RedisCluster, RedisSentinel, RedisServer, borrow, redis_for_session

if TYPE_CHECKING:
    import redis
else:
    redis = pytest.importorskip("redis")


def connect(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=0.2, decode_responses=True, retry=None)


def test_session_has_a_database_of_its_own(redis_url: str) -> None:
    with redis_for_session() as other:
        assert other != redis_url


def test_database_is_empty_for_a_test_that_asks(redis_url: str, empty_redis_url: str) -> None:
    with connect(redis_url) as client:
        client.set("a", "1")
        flush(empty_redis_url)
        assert client.dbsize() == 0


def test_used_database_is_not_borrowed(own_redis: RedisServer) -> None:
    for database in range(1, 16):
        with connect(own_redis.url(database)) as client:
            client.set("of", "somebody else")
    borrowed = borrow(own_redis.url())
    assert borrowed is not None
    assert borrowed.url == own_redis.url(0)
    assert borrow(own_redis.url()) is None
    borrowed.close()


def test_each_version_answers(any_redis_url: str) -> None:
    with connect(any_redis_url) as client:
        assert client.ping()


def test_restarted_server_keeps_its_port_and_nothing_else(own_redis: RedisServer) -> None:
    with connect(own_redis.url()) as client:
        client.set("a", "1")
        own_redis.restart()
        with connect(own_redis.url()) as again:
            assert again.get("a") is None


def test_server_with_a_log_keeps_its_data(make_redis: Callable[..., RedisServer]) -> None:
    server = make_redis("--appendonly", "yes", "--appendfsync", "always")
    with connect(server.url()) as client:
        client.set("a", "1")
    server.kill()
    server.start()
    with connect(server.url()) as client:
        assert client.get("a") == "1"


def test_paused_server_hangs_until_resumed(own_redis: RedisServer) -> None:
    with connect(own_redis.url()) as client:
        own_redis.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        own_redis.resume()
        assert client.ping()


def test_full_server_refuses_writes_until_emptied(own_redis: RedisServer) -> None:
    with connect(own_redis.url()) as client:
        own_redis.fill()
        with pytest.raises(redis.ResponseError, match=r"OOM|maxmemory"):
            client.set("a", "1")
        own_redis.empty()
        assert client.set("a", "1")


def test_commands_are_recorded_but_not_those_of_scripts(own_redis: RedisServer) -> None:
    with connect(own_redis.url()) as client:
        client.ping()
        with own_redis.commands() as seen:
            client.eval("return redis.call('SET', KEYS[1], '1')", 1, "a")
            client.get("a")
    assert [command[0] for command in seen] == ["EVAL", "GET"]
    assert own_redis.command_counts()["set"] == 1


def test_killed_server_leaves_nothing(own_redis: RedisServer) -> None:
    pid = own_redis.pid()
    own_redis.kill()
    assert not Path(f"/proc/{pid}").exists()
    with connect(own_redis.url()) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_cluster_spreads_keys_over_its_nodes(redis_cluster: RedisCluster) -> None:
    redis_cluster.flush()
    node = redis_cluster.nodes[0]
    with redis.RedisCluster(host="127.0.0.1", port=node.port) as client:
        for number in range(30):
            client.set(f"key-{number}", "1")
    assert all(node.client().dbsize() for node in redis_cluster.nodes)


def test_sentinel_names_the_new_master_behind_a_failover(own_sentinel: RedisSentinel) -> None:
    assert own_sentinel.master_port() == own_sentinel.master.port
    own_sentinel.failover()
    assert own_sentinel.master_port() == own_sentinel.replica.port
