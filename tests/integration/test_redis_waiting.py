"""One subscription wakes all the waiters of a process, and no wake-up is lost with it."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("redis")

from demijohn.core.step import Outcome
from demijohn.stores.redis import subscriber as subscriber_module
from demijohn.stores.redis.address import parse_url
from demijohn.stores.redis.store import RedisStore
from demijohn.testing.contract import (
    BOB,
    FRAME,
    begin,
    complete,
    follow,
    forked,
    listening,
    one,
    wait_until_woken,
)
from tests.processes import wait_until
from tests.servers import HOST, RedisCluster, RedisServer

REPLAY = Outcome("replay", (0, FRAME), halts=True)


@pytest.fixture
def key() -> str:
    return f"{{{uuid.uuid4().hex}}}:key"


def open_(url: str) -> RedisStore:
    return RedisStore(parse_url(f"{url}?timeout=2&connect_timeout=2"))


@pytest.fixture
def store(own_redis: RedisServer) -> Iterator[RedisStore]:
    store = open_(own_redis.url())
    yield store
    store.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a dead link noticed quickly."""
    monkeypatch.setattr(subscriber_module, "PING_EVERY_S", 0.1)
    monkeypatch.setattr(subscriber_module, "BACKOFF_MAX_S", 0.2)


def subscribers(server: RedisServer) -> int:
    return len(server.client().client_list(_type="pubsub"))


def drop_subscription(server: RedisServer) -> None:
    server.client().client_kill_filter(_type="pubsub")


def test_hundred_waiters_share_one_connection(
    own_redis: RedisServer, store: RedisStore, key: str
) -> None:
    waiters = 100
    one(store, begin(key))
    listening(store)
    before = own_redis.connections_received()
    with ThreadPoolExecutor(waiters) as pool:
        answers = [
            pool.submit(
                follow, store, lambda me=me: begin(key, token=b"%d" % me, inbox=store.inbox)
            )
            for me in range(waiters)
        ]
        wait_until(lambda: store._bell.waiting == waiters, "all wait")
        assert subscribers(own_redis) == 1
        in_use = own_redis.client().info("clients")["connected_clients"]
        one(store, complete(key))
        for answer in answers:
            assert answer.result() == REPLAY
    assert own_redis.connections_received() - before <= waiters
    assert in_use <= waiters + 3


def test_nothing_is_subscribed_before_the_first_wait(
    own_redis: RedisServer, store: RedisStore, key: str
) -> None:
    one(store, begin(key))
    assert store.inbox == ""
    assert subscribers(own_redis) == 0
    assert store.wait(key, since=store.mark, timeout_ms=5000)
    assert store.inbox.startswith("demijohn:inbox:")
    assert subscribers(own_redis) == 1


def test_key_that_ends_before_the_first_subscription_is_seen_by_looking_again(
    store: RedisStore, key: str
) -> None:
    one(store, begin(key))
    mark = store.mark
    assert one(store, begin(key, token=BOB, inbox=store.inbox)).status == "busy"
    one(store, complete(key))  # nobody to wake: the waiter had no inbox yet
    started = time.monotonic()
    assert store.wait(key, since=mark, timeout_ms=10_000)
    assert time.monotonic() - started < 1
    assert one(store, begin(key, token=BOB)) == REPLAY


def test_end_between_begin_and_wait_is_not_missed(store: RedisStore, key: str) -> None:
    """The race of check and wait, forced: the message has come and gone before the wait."""
    inbox = listening(store)
    for round_ in range(20):
        mine = f"{key}{round_}"
        one(store, begin(mine))
        mark = store.mark
        one(store, begin(mine, token=BOB, inbox=inbox))
        one(store, complete(mine))
        wait_until(lambda mark=mark: store.mark > mark, "the message came")
        started = time.monotonic()
        assert store.wait(mine, since=mark, timeout_ms=10_000)
        assert time.monotonic() - started < 0.5


def test_another_process_is_woken(own_redis: RedisServer, store: RedisStore, key: str) -> None:
    inbox = listening(store)
    other = open_(own_redis.url())
    one(other, begin(key))
    mark = store.mark
    one(store, begin(key, token=BOB, inbox=inbox))
    one(other, complete(key))
    assert wait_until_woken(store, key, mark)
    other.close()


def test_dropped_subscription_wakes_waiters_and_comes_back(
    own_redis: RedisServer,
    store: RedisStore,
    key: str,
    quick: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "demijohn.stores")
    inbox = listening(store)
    one(store, begin(key))
    with ThreadPoolExecutor(5) as pool:
        answers = [
            pool.submit(
                follow, store, lambda me=me: begin(key, token=b"%d" % me, inbox=store.inbox)
            )
            for me in range(5)
        ]
        wait_until(lambda: store._bell.waiting == 5, "all wait")
        mark = store.mark
        drop_subscription(own_redis)
        wait_until(lambda: store.mark > mark, "everybody looks again")
        wait_until(lambda: subscribers(own_redis) == 1, "it is back")
        one(store, complete(key))
        started = time.monotonic()
        for answer in answers:
            assert answer.result() == REPLAY
        assert time.monotonic() - started < 1
    assert store.inbox == inbox
    messages = [record.getMessage() for record in caplog.records]
    assert sum("not heard" in message for message in messages) == 1
    assert sum("heard again" in message for message in messages) == 1


def test_end_while_the_subscription_is_down_is_found_by_polling(
    own_redis: RedisServer, store: RedisStore, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber_module, "_pause", lambda failures: 3600.0)
    listening(store)
    one(store, begin(key))
    drop_subscription(own_redis)
    wait_until(lambda: not store._subscriber.listening, "the link is down")
    mark = store.mark
    one(store, begin(key, token=BOB, inbox=store.inbox))
    one(store, complete(key))
    started = time.monotonic()
    assert store.wait(key, since=mark, timeout_ms=10_000)
    assert time.monotonic() - started < 0.5
    assert store.wait(key + "other", since=store.mark, timeout_ms=0)


def test_server_that_restarts_is_subscribed_to_again(
    own_redis: RedisServer, store: RedisStore, key: str, quick: None
) -> None:
    inbox = listening(store)
    own_redis.stop()
    wait_until(lambda: not store._subscriber.listening, "the link is down")
    time.sleep(0.3)  # some attempts fail
    own_redis.start()
    wait_until(lambda: store._subscriber.listening, "the link is up")
    assert store.inbox == inbox
    one(store, begin(key))
    mark = store.mark
    one(store, begin(key, token=BOB, inbox=inbox))
    one(store, complete(key))
    assert wait_until_woken(store, key, mark)


def test_link_that_is_dead_without_saying_so_is_noticed(
    own_redis: RedisServer, store: RedisStore, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    listening(store)
    own_redis.pause()
    wait_until(lambda: not store._subscriber.listening, "the dead link is noticed")
    own_redis.resume()
    wait_until(lambda: store._subscriber.listening, "it is back")
    assert any("dead: no answer" in record.getMessage() for record in caplog.records)


def test_idle_link_is_kept_by_pings(own_redis: RedisServer, store: RedisStore, quick: None) -> None:
    listening(store)
    pings = own_redis.command_counts().get("ping", 0)
    time.sleep(0.5)
    assert own_redis.command_counts()["ping"] >= pings + 2
    assert store._subscriber.listening
    assert subscribers(own_redis) == 1


def test_first_wait_on_a_server_that_is_gone_ends_soon(own_redis: RedisServer, key: str) -> None:
    own_redis.stop()
    store = RedisStore(parse_url(own_redis.url()))
    started = time.monotonic()
    assert store.wait(key, since=0, timeout_ms=10_000)
    assert time.monotonic() - started < 1
    assert store.inbox == ""
    store.close()


def test_subscription_that_is_late_is_not_waited_for(key: str) -> None:
    """A server that accepts and never confirms: the waiter goes back to looking."""
    with socket.create_server((HOST, 0), backlog=8) as listener:
        store = RedisStore(parse_url(f"redis://{HOST}:{listener.getsockname()[1]}"))
        started = time.monotonic()
        assert store.wait(key, since=0, timeout_ms=10_000)
        assert time.monotonic() - started < 0.5
        assert store.inbox == ""
        store.close()


def test_delayed_message_still_wakes(
    own_redis: RedisServer, store: RedisStore, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The subscriber lags: the key has ended long ago when its message is heard."""
    inbox = listening(store)
    heard = store._bell.ring

    def late(name: str) -> None:
        time.sleep(0.2)
        heard(name)

    monkeypatch.setattr(store._bell, "ring", late)
    one(store, begin(key))
    mark = store.mark
    one(store, begin(key, token=BOB, inbox=inbox))
    one(store, complete(key))
    assert wait_until_woken(store, key, mark)


def test_close_ends_the_thread_and_wakes_who_waits(store: RedisStore, key: str) -> None:
    listening(store)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.wait, key, since=store.mark, timeout_ms=10_000)
        wait_until(lambda: store._bell.waiting == 1, "it waits")
        store.close()
        assert waiting.result(timeout=2)
    assert not [each for each in threading.enumerate() if each.name == "demijohn-subscriber"]
    assert store.wait(key, since=store.mark, timeout_ms=0)  # nobody listens any more


def test_wait_after_close_starts_no_thread(own_redis: RedisServer, key: str) -> None:
    store = open_(own_redis.url())
    store.close()
    assert store.wait(key, since=0, timeout_ms=5)
    assert not [each for each in threading.enumerate() if each.name == "demijohn-subscriber"]


def test_close_while_connecting_leaves_no_connection(
    own_redis: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting, closed = threading.Event(), threading.Event()
    node = store._link.nodes()[0]
    listen = node.listen

    def slowly() -> object:
        connecting.set()
        closed.wait(5)
        return listen()

    monkeypatch.setattr(node, "listen", slowly)
    monkeypatch.setattr(subscriber_module, "JOIN_S", 0.1)
    starter = threading.Thread(
        target=store.wait, args=("key",), kwargs={"since": 0, "timeout_ms": 1}
    )
    starter.start()
    assert connecting.wait(5)
    store.close()
    closed.set()
    starter.join()
    wait_until(lambda: subscribers(own_redis) == 0, "nobody is subscribed")
    wait_until(
        lambda: "demijohn-subscriber" not in [each.name for each in threading.enumerate()],
        "the thread ends",
    )


def test_subscriber_may_close_the_store_itself(
    store: RedisStore, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a waiter does when woken may end everything, even in the subscriber's own thread."""
    inbox = listening(store)
    monkeypatch.setattr(store._bell, "ring", lambda name: store.close())
    one(store, begin(key))
    one(store, begin(key, token=BOB, inbox=inbox))
    one(store, complete(key))
    wait_until(
        lambda: "demijohn-subscriber" not in [each.name for each in threading.enumerate()],
        "the thread ends",
    )


def test_connection_in_use_is_closed_when_its_reply_is_there(store: RedisStore, key: str) -> None:
    one(store, begin(key))
    node = store._link._node  # type: ignore[attr-defined]

    def close_meanwhile(connection: object) -> str:
        node.close()
        return "replied"

    assert node._exchange(close_meanwhile) == "replied"
    assert not any(connection.is_connected for connection in node._all)
    assert one(store, begin(key, token=BOB)).status == "busy"


def test_child_has_an_inbox_and_a_thread_of_its_own(
    own_redis: RedisServer, store: RedisStore, key: str
) -> None:
    inbox = listening(store)

    def act() -> None:
        assert store.inbox == ""
        assert listening(store) != inbox
        assert store._subscriber._thread is not None
        store.close()

    child = forked(act)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert subscribers(own_redis) == 1
    one(store, begin(key))
    mark = store.mark
    one(store, begin(key, token=BOB, inbox=inbox))
    one(store, complete(key))
    assert wait_until_woken(store, key, mark)


def test_wake_up_crosses_the_nodes_of_a_cluster(redis_cluster: RedisCluster) -> None:
    store = open_(redis_cluster.url())
    inbox = listening(store)
    for number in range(9):
        key = f"{{{number}{uuid.uuid4().hex}}}"
        one(store, begin(key))
        mark = store.mark
        one(store, begin(key, token=BOB, inbox=inbox))
        one(store, complete(key))
        assert wait_until_woken(store, key, mark)
    store.close()


def test_waiters_are_greenlets_under_gevent(
    own_redis: RedisServer, key: str, need: Callable[[str], None]
) -> None:
    need("gevent")
    program = textwrap.dedent(
        f"""
        from gevent import monkey
        monkey.patch_all()
        import gevent, threading
        from demijohn.stores import open_store
        from demijohn.testing.contract import begin, complete, follow, listening, one
        store = open_store({own_redis.url()!r} + "?timeout=2&connect_timeout=2")
        key = {key!r}
        one(store, begin(key))
        waiters = [
            gevent.spawn(follow, store, lambda me=me: begin(key, token=b"%d" % me,
                                                            inbox=store.inbox))
            for me in range(50)
        ]
        while store.store._bell.waiting < 50:
            gevent.sleep(0.01)
        one(store, complete(key))
        gevent.joinall(waiters, timeout=10)
        assert {{waiter.value.status for waiter in waiters}} == {{"replay"}}
        store.close()
        print("all replayed")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "all replayed\n", done.stderr
