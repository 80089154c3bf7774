"""What the Redis store sends, counted on the server."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("redis")

from demijohn.core import idempotency
from demijohn.core.step import Step
from demijohn.errors import UsageError
from demijohn.stores.redis.address import parse_url
from demijohn.stores.redis.cluster import key_slot
from demijohn.stores.redis.store import RedisStore
from demijohn.testing.contract import (
    ALICE,
    BOB,
    begin,
    complete,
    listening,
    one,
    release,
    renew,
    stored,
)
from tests.servers import RedisCluster, RedisSentinel, RedisServer


@pytest.fixture
def key() -> str:
    return f"{{{uuid.uuid4().hex}}}:key"


def open_(url: str, options: str = "") -> RedisStore:
    return RedisStore(parse_url(f"{url}?timeout=2&connect_timeout=2{options}"))


@pytest.fixture
def store(own_redis: RedisServer) -> Iterator[RedisStore]:
    store = open_(own_redis.url())
    yield store
    store.close()


def warm(store: RedisStore, *kinds: Callable[[str], Step]) -> None:
    """Have the connection made and the scripts of these runs known."""
    spare = f"{{{uuid.uuid4().hex}}}"
    store.run([kind(spare) for kind in kinds])


def names(commands: list[list[str]]) -> list[str]:
    return [command[0] for command in commands]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_run_is_one_evalsha_whatever_the_number_of_its_steps(
    own_redis: RedisServer, store: RedisStore, key: str, count: int
) -> None:
    kinds = [begin, renew, complete, release, renew][:count]
    warm(store, *kinds)
    with own_redis.commands() as commands:
        assert len(store.run([kind(key) for kind in kinds])) == count
    assert names(commands) == ["EVALSHA"]


def test_renewal_of_many_keys_is_one_evalsha(own_redis: RedisServer, store: RedisStore) -> None:
    warm(store, renew)
    keys = [f"{uuid.uuid4().hex}" for _ in range(500)]
    with own_redis.commands() as commands:
        assert len(store.run([renew(each) for each in keys])) == 500
    assert names(commands) == ["EVALSHA"]


def test_first_request_is_two_trips_and_replay_one_without_a_connection(
    own_redis: RedisServer, store: RedisStore, key: str
) -> None:
    warm(store, begin)
    warm(store, complete)
    connections = own_redis.connections_received()
    with own_redis.commands() as commands:
        one(store, begin(key))
        one(store, complete(key))
    assert names(commands) == ["EVALSHA", "EVALSHA"]
    with own_redis.commands() as commands:
        assert one(store, begin(key, token=BOB)).status == "replay"
    assert names(commands) == ["EVALSHA"]
    assert own_redis.connections_received() == connections + 2  # the two that recorded


def test_connecting_sends_nothing_but_password_and_database(
    make_redis: Callable[..., RedisServer], key: str
) -> None:
    server = make_redis()
    store = open_(server.url(3))
    with server.commands() as commands:
        one(store, begin(key))
    store.close()
    assert names(commands) == ["SELECT", "EVALSHA", "EVAL"]


def test_flushed_script_costs_one_more_trip_and_nothing_else(
    own_redis: RedisServer, store: RedisStore, key: str
) -> None:
    one(store, begin(key))
    own_redis.flush_scripts()
    with own_redis.commands() as commands:
        assert one(store, begin(key)).status == "run"
        assert one(store, begin(key)).status == "run"
    assert names(commands) == ["EVALSHA", "EVAL", "EVALSHA"]


def test_script_reads_the_frame_only_for_a_replay(
    own_redis: RedisServer, store: RedisStore, key: str
) -> None:
    store.run([begin(key), complete(key)])
    before = own_redis.command_counts()
    one(store, begin(key, token=BOB, fingerprint=b"other"))
    one(store, renew(key, token=ALICE))
    after = own_redis.command_counts()
    # The renewal is fenced, and tells what is stored; the mismatch does not look.
    assert after["hget"] - before.get("hget", 0) == 1
    assert after["hmget"] - before["hmget"] == 2


def test_rows_expire_on_the_server_itself(
    own_redis: RedisServer, store: RedisStore, key: str
) -> None:
    step = idempotency.begin((key,), fingerprint=b"p", token=b"t", lease_ms=20, retain_ms=60)
    one(store, step)
    row = stored(store, key)
    assert row is not None
    left_ms = own_redis.client().pttl(f"demijohn:{key}")
    assert 0 < left_ms <= 80
    time.sleep(0.12)
    assert stored(store, key) is None
    assert own_redis.client().dbsize() == 0


def test_time_is_that_of_the_server(own_redis: RedisServer, store: RedisStore, key: str) -> None:
    one(store, begin(key))
    row = stored(store, key)
    seconds, micros = own_redis.client().time()
    assert row is not None
    since = row["c"]
    assert isinstance(since, int)
    assert 0 <= seconds * 1000 + micros // 1000 - since < 5000


def test_prefix_stands_in_front_of_keys_and_is_not_seen(own_redis: RedisServer, key: str) -> None:
    store = open_(own_redis.url(), "&prefix=my*app:")
    other = open_(own_redis.url(), "&prefix=my-other-app:")
    one(store, begin(key))
    one(other, begin(key))
    assert own_redis.client().exists(f"my*app:{key}") == 1
    assert [found for found, _ in store.scan("")] == [key]
    store.close()
    other.close()


def test_scan_asks_for_pages_and_never_for_all_keys(
    own_redis: RedisServer, store: RedisStore, key: str
) -> None:
    store.run([begin(f"{key}{number}") for number in range(300)])
    own_redis.client().set(f"demijohn:{key}-is-not-a-row", "text")
    own_redis.client().hset(f"demijohn:{key}-no-expiry", "s", 1)
    with own_redis.commands() as commands:
        assert len(list(store.scan(key))) == 300
    sent = set(names(commands))
    assert sent == {"SCAN", "HGETALL", "TIME"}


def test_unix_socket_is_as_good(
    make_redis: Callable[..., RedisServer], key: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    socket = tmp_path_factory.mktemp("s") / "s"
    make_redis("--unixsocket", str(socket))
    store = RedisStore(parse_url(f"redis+unix://{socket}?db=1&timeout=2"))
    assert one(store, begin(key)).status == "run"
    assert listening(store)
    store.close()


# --- cluster -----------------------------------------------------------------------------------


@pytest.fixture
def clustered(redis_cluster: RedisCluster) -> Iterator[RedisStore]:
    store = open_(redis_cluster.url())
    yield store
    store.close()


def in_slot_of(node: int) -> str:
    """Return a hash tag of the node that has this third of the slots."""
    share = -(-16384 // 3)
    while True:
        tag = uuid.uuid4().hex
        if key_slot(tag.encode()) // share == node:
            return f"{{{tag}}}"


def test_slot_is_that_of_the_hash_tag() -> None:
    # Source: the Redis cluster specification, "Hash tags", with its own examples.
    assert key_slot(b"{user1000}.following") == key_slot(b"{user1000}.followers")
    assert key_slot(b"foo{}{bar}") != key_slot(b"bar")
    assert key_slot(b"foo{{bar}}zap") == key_slot(b"{bar")
    assert key_slot(b"foo{bar}{zap}") == key_slot(b"bar")
    assert key_slot(b"123456789") == 0x31C3


def test_steps_of_one_slot_are_one_trip_and_slots_follow_in_order(
    clustered: RedisStore, redis_cluster: RedisCluster
) -> None:
    first, second = in_slot_of(0), in_slot_of(1)
    clustered.run([begin(first + "warm"), renew(first + "warm"), begin(second + "warm")])
    one_node, other_node = redis_cluster.nodes[:2]
    with one_node.commands() as here, other_node.commands() as there:
        steps = [begin(first + "a"), renew(first + "a"), begin(second + "b")]
        assert [outcome.status for outcome in clustered.run(steps)] == ["run", "renewed", "run"]
    assert names(here) == ["EVALSHA"]
    assert [name for name in names(there) if name != "INFO"] == ["EVALSHA"]


def test_halt_in_one_slot_keeps_the_next_from_running(clustered: RedisStore) -> None:
    first, second = in_slot_of(0) + "a", in_slot_of(1) + "b"
    one(clustered, begin(first))
    outcomes = clustered.run([begin(first, token=BOB), begin(second)])
    assert [outcome.status for outcome in outcomes] == ["busy"]
    assert stored(clustered, second) is None


def test_step_with_keys_in_two_slots_is_a_mistake(clustered: RedisStore) -> None:
    with pytest.raises(UsageError, match="hash tag"):
        clustered.run([begin(in_slot_of(0), in_slot_of(1))])


def test_step_without_keys_runs_somewhere(clustered: RedisStore) -> None:
    assert clustered._link.slot([]) == 0


def test_scan_and_health_reach_every_master(clustered: RedisStore) -> None:
    label = uuid.uuid4().hex
    keys = {f"{label}{in_slot_of(node)}" for node in range(3)}
    for each in keys:
        one(clustered, begin(each))
    assert {found for found, _ in clustered.scan(label)} == keys
    assert clustered.health().ok


def test_moved_and_asked_slots_are_followed() -> None:
    with RedisCluster() as cluster:
        store = open_(cluster.url())
        tag = in_slot_of(0)
        before, during = tag + "before", tag + "during"
        one(store, begin(before))
        source, target = (node.client() for node in cluster.nodes[:2])
        ids = [str(node.execute_command("CLUSTER", "MYID")) for node in (source, target)]
        slot = key_slot(tag[1:-1].encode())
        target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        # Not there any more, not there yet: ASK.
        assert one(store, begin(during)).status == "run"
        assert target.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
        assert one(store, renew(before)).status == "renewed"
        port = cluster.nodes[1].port
        source.execute_command("MIGRATE", "127.0.0.1", port, f"demijohn:{before}", 0, 1000)
        for node in (target, source):
            node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
        # Gone for good: MOVED.
        assert one(store, begin(before, token=BOB)).status == "busy"
        with cluster.nodes[0].commands() as there:
            assert one(store, renew(before)).status == "renewed"
        assert "EVALSHA" not in names(there)
        store.close()


# --- sentinel ----------------------------------------------------------------------------------


def test_failover_is_followed(own_sentinel: RedisSentinel) -> None:
    store = open_(own_sentinel.url(), "&wait_replicas=1&wait_timeout=2")
    first, second = (f"{{{uuid.uuid4().hex}}}" for _ in range(2))
    one(store, begin(first))
    inbox = listening(store)
    old = own_sentinel.master_port()
    own_sentinel.failover()
    assert own_sentinel.master_port() != old
    store.close()
    store = open_(own_sentinel.url())
    assert one(store, begin(first, token=BOB)).status == "busy"
    assert one(store, begin(second)).status == "run"
    assert inbox
    store.close()


def test_connection_to_a_demoted_master_is_given_up(own_sentinel: RedisSentinel) -> None:
    store = open_(own_sentinel.url())
    key = f"{{{uuid.uuid4().hex}}}"
    one(store, begin(key))
    own_sentinel.failover()
    deadline = time.monotonic() + 20
    statuses = []
    while "run" not in statuses and time.monotonic() < deadline:
        try:
            statuses.append(one(store, begin(f"{{{uuid.uuid4().hex}}}")).status)
        except Exception as error:  # noqa: BLE001 - the failover may take a moment to be seen
            statuses.append(type(error).__name__)
            time.sleep(0.05)
    assert statuses[-1] == "run"
    assert set(statuses[:-1]) <= {"StoreUnavailable", "StoreTimeout"}
    store.close()
