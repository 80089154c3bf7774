"""What a Redis that is gone, hung, full, demoted or reset does to a call, and for how long."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("redis")

from demijohn.core.step import Decision, Outcome, Step, StepKind
from demijohn.errors import StoreError, StoreTimeout, StoreUnavailable
from demijohn.stores.breaker import Circuit, Guarded
from demijohn.stores.redis import from_url
from demijohn.stores.redis.address import parse_url
from demijohn.stores.redis.store import RedisStore
from demijohn.testing.contract import (
    BOB,
    begin,
    complete,
    forked,
    one,
    release,
    renew,
    stored,
)
from tests.servers import (
    HOST,
    RedisCluster,
    RedisServer,
    binary_on_path,
    redis_62_binary,
    valkey_91_binary,
)

DEADLINE_S = 0.1  # 50 ms to connect, 50 ms to read
SLACK_S = 0.15  # of two busy cores


@pytest.fixture
def key() -> str:
    return f"{{{uuid.uuid4().hex}}}:key"


@contextmanager
def opened(url: str, options: str = "timeout=2&connect_timeout=2") -> Iterator[RedisStore]:
    separator = "&" if "?" in url else "?"
    store = RedisStore(parse_url(f"{url}{separator}{options}"))
    yield store
    store.close()


@contextmanager
def guarded(url: str, options: str = "") -> Iterator[Guarded]:
    store = from_url(f"{url}?{options}")
    yield store
    store.close()


def timed(act: Callable[[], object]) -> tuple[float, StoreError | None]:
    started = time.perf_counter()
    error = None
    try:
        act()
    except StoreError as caught:
        error = caught
    return time.perf_counter() - started, error


@pytest.fixture
def deaf() -> Iterator[str]:
    """The URL of a socket that accepts and never answers."""
    with socket.create_server((HOST, 0), backlog=64) as listener:
        yield f"redis://{HOST}:{listener.getsockname()[1]}"


# --- gone --------------------------------------------------------------------------------------


def test_refused_connection_is_unavailable_at_once(own_redis: RedisServer, key: str) -> None:
    own_redis.stop()
    with opened(own_redis.url()) as store:
        seconds, error = timed(lambda: one(store, begin(key)))
    assert type(error) is StoreUnavailable
    assert seconds < 1
    assert not store.health().ok


def test_unknown_host_is_unavailable(key: str) -> None:
    with opened("redis://no-such-host.invalid") as store:
        with pytest.raises(StoreUnavailable, match="no-such-host"):
            one(store, begin(key))
        assert not store.wait(key, since=0, timeout_ms=1) or not store.inbox


def test_restart_does_not_fail_the_first_request(own_redis: RedisServer, key: str) -> None:
    with opened(own_redis.url()) as store:
        one(store, begin(key))
        own_redis.restart()
        assert one(store, begin(key)).status == "run"


def test_connection_killed_while_idle_is_not_noticed(own_redis: RedisServer, key: str) -> None:
    with opened(own_redis.url()) as store:
        one(store, begin(key))
        own_redis.client().client_kill_filter(_type="normal", skipme=True)
        assert one(store, begin(key)).status == "run"


def test_server_that_dies_in_mid_reply_is_unavailable_and_its_connection_dropped(
    key: str,
) -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]

        def half_a_reply() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65_536)
                peer.sendall(b"*2\r\n:1\r\n*6\r\n$3\r\nru")

        server = threading.Thread(target=half_a_reply)
        server.start()
        with opened(f"redis://{HOST}:{port}") as store:
            with pytest.raises(StoreUnavailable):
                one(store, begin(key))
            server.join()


def test_reply_that_comes_too_late_is_never_taken_for_another(
    own_redis: RedisServer, key: str
) -> None:
    with opened(own_redis.url(), "timeout=0.1") as store:
        store.run([begin(key), complete(key)])
        own_redis.pause()
        with pytest.raises(StoreTimeout):
            one(store, begin(key, token=BOB))
        own_redis.resume()
        assert one(store, renew(key + "other")).status == "fenced"


# --- hung --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "db=1"])
def test_deaf_server_costs_its_deadline_once_then_nothing(
    deaf: str, key: str, options: str
) -> None:
    with guarded(deaf, options) as store:
        for _ in range(3):
            seconds, error = timed(lambda: one(store, begin(key)))
            assert isinstance(error, StoreTimeout)
            assert seconds < DEADLINE_S + SLACK_S
        assert store.breaker.state is Circuit.OPEN
        seconds, error = timed(lambda: one(store, begin(key)))
        assert seconds < 0.01
        assert isinstance(error, StoreUnavailable)
        assert error.retry_after_ms is not None
        assert 0 < error.retry_after_ms <= 250


def test_deaf_server_with_password_costs_its_deadline_once(deaf: str, key: str) -> None:
    with opened(deaf.replace("://", "://:pw@"), "") as store:
        seconds, error = timed(lambda: one(store, begin(key)))
    assert isinstance(error, StoreTimeout)
    assert seconds < DEADLINE_S + SLACK_S


def test_hung_server_is_given_up_and_found_again(own_redis: RedisServer, key: str) -> None:
    with guarded(own_redis.url(), "breaker_reset=0.1") as store:
        one(store, begin(key))
        own_redis.pause()
        for _ in range(3):
            seconds, error = timed(lambda: one(store, renew(key)))
            assert isinstance(error, StoreTimeout)
            assert seconds < DEADLINE_S + SLACK_S
        assert timed(lambda: one(store, renew(key)))[0] < 0.01
        own_redis.resume()
        deadline = time.monotonic() + 10
        while timed(lambda: one(store, renew(key)))[1] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert store.breaker.untroubled


def test_timed_out_script_is_not_sent_again(own_redis: RedisServer, key: str) -> None:
    with opened(own_redis.url(), "timeout=0.05") as store:
        one(store, begin(key))
        with own_redis.commands() as commands:
            own_redis.pause()
            with pytest.raises(StoreTimeout):
                one(store, renew(key))
            own_redis.resume()
    assert [command[0] for command in commands].count("EVALSHA") == 1


def test_hung_cluster_costs_no_more_than_a_few_exchanges(key: str) -> None:
    with RedisCluster() as cluster, guarded(cluster.url()) as store:
        deadline = time.monotonic() + 10
        while timed(lambda: one(store, begin(key)))[1] and time.monotonic() < deadline:
            time.sleep(0.05)
        for node in cluster.nodes:
            node.pause()
        worst = max(timed(lambda: one(store, renew(key)))[0] for _ in range(5))
        for node in cluster.nodes:
            node.resume()
        assert worst < 3 * DEADLINE_S + SLACK_S


def test_lost_node_of_a_cluster_fails_its_slots_and_is_found_again(key: str) -> None:
    with RedisCluster() as cluster, opened(cluster.url()) as store:
        keys = [f"{{{number}}}{key}" for number in range(30)]
        for each in keys:
            one(store, begin(each))
        cluster.nodes[2].stop()
        failed = [each for each in keys if timed(lambda each=each: one(store, renew(each)))[1]]
        assert 0 < len(failed) < len(keys)
        cluster.nodes[2].start()
        deadline = time.monotonic() + 20
        while timed(lambda: one(store, renew(failed[0])))[1] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert {one(store, renew(each)).status for each in failed} <= {"fenced", "renewed"}


# --- refused -----------------------------------------------------------------------------------

BINARIES = {
    "redis-6.2": redis_62_binary,
    "redis": binary_on_path,
    "valkey-9.1": valkey_91_binary,
}


@pytest.fixture(params=list(BINARIES))
def each_redis(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    binary = BINARIES[request.param]()
    if binary is None:
        pytest.skip(f"{request.param} is not here")
    with RedisServer(binary) as server:
        yield server


def test_full_server_takes_no_new_key_but_lets_running_ones_end(
    each_redis: RedisServer, key: str
) -> None:
    running = [f"{key}{name}" for name in ("completed", "released", "busy")]
    with opened(each_redis.url()) as store:
        store.run([begin(key), complete(key)])
        store.run([begin(each) for each in running])
        each_redis.fill()
        with pytest.raises(StoreUnavailable, match=r"OOM.*maxmemory"):
            one(store, begin(key + "new"))
        assert stored(store, key + "new") is None
        assert one(store, begin(key, token=BOB)).status == "replay"
        assert [one(store, renew(each)).status for each in running] == ["renewed"] * 3
        assert one(store, complete(running[0])).status == "completed"
        assert one(store, release(running[1])).status == "released"
        assert one(store, begin(running[2], token=BOB)).status == "busy"
        each_redis.empty()
        assert one(store, begin(running[0], token=BOB)).status == "replay"


def test_replica_is_unavailable(each_redis: RedisServer, key: str) -> None:
    following = ("--replicaof", HOST, str(each_redis.port))
    with RedisServer(each_redis.binary, *following) as replica, opened(replica.url()) as store:
        deadline = time.monotonic() + 20
        while "READONLY" not in str(timed(lambda: one(store, begin(key)))[1]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(StoreUnavailable, match="name the master"):
            one(store, begin(key))


def test_demoted_server_loses_all_its_connections(own_redis: RedisServer, key: str) -> None:
    """What lies idle leads to the demoted server as well, so none of it is kept."""
    with opened(own_redis.url()) as store:
        node = store._link.nodes()[0]
        both = [node._take(), node._take()]
        for connection in both:
            connection.connect()
        node._idle += both
        own_redis.client().replicaof(HOST, 1)
        with pytest.raises(StoreUnavailable, match="READONLY"):
            one(store, begin(key))
        assert not any(connection.is_connected for connection in both)
        own_redis.client().replicaof("NO", "ONE")
        assert one(store, begin(key)).status == "run"


def test_connection_with_an_unread_reply_is_not_used(own_redis: RedisServer, key: str) -> None:
    with opened(own_redis.url()) as store:
        node = store._link.nodes()[0]
        connection = node._take()
        connection.send_command("ECHO", "stale")
        time.sleep(0.1)
        node._idle.append(connection)
        assert one(store, begin(key)).status == "run"


def test_replica_without_its_master_is_unavailable(own_redis: RedisServer, key: str) -> None:
    own_redis.config_set(replica_serve_stale_data="no")
    own_redis.client().replicaof(HOST, 1)
    with opened(own_redis.url()) as store, pytest.raises(StoreUnavailable, match="MASTERDOWN"):
        one(store, begin(key))
    own_redis.client().replicaof("NO", "ONE")


def test_password_is_told(make_redis: Callable[..., RedisServer], key: str) -> None:
    server = make_redis()
    server.config_set(requirepass="secret")
    for userinfo, told in (("", "wants a password"), (":wrong@", "are wrong")):
        url = server.url().replace("//", f"//{userinfo}")
        with opened(url) as store, pytest.raises(StoreUnavailable, match=told):
            one(store, begin(key))
    with opened(server.url().replace("//", "//:secret@")) as store:
        assert one(store, begin(key)).status == "run"


def test_missing_permission_is_told_and_publishing_is_not_needed(
    own_redis: RedisServer, key: str
) -> None:
    client = own_redis.client()
    client.acl_setuser("app", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all"])
    client.execute_command("ACL", "SETUSER", "app", "resetchannels")
    with opened(own_redis.url().replace("//", "//app:pw@")) as store:
        one(store, begin(key))
        one(store, begin(key, token=BOB, inbox="somebody"))
        assert one(store, complete(key)).status == "completed"
        client.execute_command("ACL", "SETUSER", "app", "-evalsha")
        with pytest.raises(StoreUnavailable, match="lacks a permission"):
            one(store, begin(key))
    client.acl_deluser("app")


def test_busy_server_is_unavailable(own_redis: RedisServer, key: str) -> None:
    own_redis.config_set(**{"lua-time-limit": 10})
    busy = pytest.raises(StoreUnavailable, match=r"BUSY.*SCRIPT KILL")
    with opened(own_redis.url()) as store, RedisEndless(own_redis), busy:
        one(store, begin(key))


class RedisEndless:
    """A script that does not end by itself."""

    def __init__(self, server: RedisServer) -> None:
        import redis

        self._server = server
        self._client = redis.Redis(HOST, server.port, socket_timeout=20)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        import redis

        with pytest.raises(redis.ResponseError):
            self._client.eval("while true do end", 0)

    def __enter__(self) -> None:
        self._thread.start()
        time.sleep(0.3)

    def __exit__(self, *_: object) -> None:
        self._server.client().script_kill()
        self._thread.join()
        self._client.close()


def test_too_few_replicas_in_time_leave_the_outcome_unknown(
    own_redis: RedisServer, key: str
) -> None:
    options = "timeout=2&wait_replicas=1&wait_timeout=0.05"
    with opened(own_redis.url(), options) as store:
        with pytest.raises(StoreTimeout, match="0 of 1 replicas"):
            one(store, begin(key))
        # What only reads waits for nobody.
        assert one(store, begin(key, token=BOB)).status == "busy"


def test_all_connections_in_use_is_told(own_redis: RedisServer, key: str) -> None:
    with opened(own_redis.url(), "timeout=5&max_connections=1") as store:
        one(store, begin(key))
        own_redis.pause()
        first = threading.Thread(target=timed, args=(lambda: one(store, begin(key)),))
        first.start()
        time.sleep(0.1)
        with pytest.raises(StoreUnavailable, match="raise max_connections"):
            one(store, begin(key))
        own_redis.resume()
        first.join()
        assert one(store, begin(key)).status == "run"


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lua",
    [
        "return function() error('a mistake') end",
        "return function() return nothing.here end",
        "return function() redis.call('NOSUCH') end",
        "return function(keys) redis.call('LPUSH', keys[1], 1) read(keys[1], 's') end",
        "this is not Lua",
    ],
)
def test_mistake_in_a_twin_is_not_taken_for_an_outage(
    each_redis: RedisServer, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lua: str
) -> None:
    (tmp_path / "third_party").mkdir()
    (tmp_path / "third_party" / "__init__.py").touch()
    (tmp_path / "third_party" / "twin.lua").write_text(lua)
    monkeypatch.syspath_prepend(tmp_path)
    kind = StepKind(
        "third.party", lambda rows, now_ms: Decision(Outcome("")), "third_party/twin.lua"
    )
    with opened(each_redis.url()) as store:
        with pytest.raises(StoreError) as caught:
            store.run([Step(kind, (key,), ())])
        assert not isinstance(caught.value, StoreUnavailable)
        assert one(store, begin(key + "2")).status == "run"


def test_unexpected_exception_drops_the_connection(
    own_redis: RedisServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from demijohn.stores.redis import driver

    with opened(own_redis.url()) as store:
        one(store, begin(key))

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(driver, "_execute", interrupted)
            with pytest.raises(KeyboardInterrupt):
                one(store, begin(key))
        assert one(store, begin(key)).status == "run"


# --- eviction ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "limit", "warns"),
    [
        ("allkeys-lru", "100mb", True),
        ("volatile-ttl", "100mb", True),
        ("noeviction", "100mb", False),
        ("allkeys-lru", "0", False),
    ],
)
def test_server_that_may_evict_records_is_warned_of_once(
    own_redis: RedisServer,
    caplog: pytest.LogCaptureFixture,
    policy: str,
    limit: str,
    warns: bool,
) -> None:
    own_redis.config_set(maxmemory=limit, maxmemory_policy=policy)
    caplog.set_level(logging.WARNING, "demijohn.stores")
    with opened(own_redis.url()) as store:
        assert store.health().ok
        assert store.health().ok
    warnings = [record.getMessage() for record in caplog.records if policy in record.getMessage()]
    assert len(warnings) == warns
    assert all("maxmemory-policy" in warning for warning in warnings)


def test_server_that_does_not_tell_its_policy_is_not_warned_of(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    client = own_redis.client()
    client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-info")
    with opened(own_redis.url().replace("//", "//app:pw@")) as store:
        assert store.health().ok
    assert not caplog.records
    client.acl_deluser("app")


# --- fork --------------------------------------------------------------------------------------


def test_child_leaves_the_sockets_of_its_parent_alone(own_redis: RedisServer, key: str) -> None:
    with opened(own_redis.url()) as store:
        one(store, begin(key))
        before = own_redis.connections_received()

        def act() -> None:
            assert one(store, begin(key, token=BOB)).status == "busy"
            store.close()

        child = forked(act)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert one(store, renew(key)).status == "renewed"
        assert own_redis.connections_received() == before + 1
