"""How a cluster's map is learned, corrected and asked for again, on servers that are played."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

pytest.importorskip("redis")

from demijohn.errors import StoreTimeout, StoreUnavailable
from demijohn.stores.redis import cluster
from demijohn.stores.redis.address import Address, parse_url
from demijohn.stores.redis.cluster import ClusterLink, Place
from demijohn.stores.redis.driver import Call, Node, Redirected, Reply, connect
from demijohn.stores.redis.scripts import Script
from demijohn.stores.redis.store import RedisStore

CALL = Call(Script(b"", "", {}), [], [])
A: Place = ("a", 1)
B: Place = ("b", 1)

Act = Callable[[], list[Reply]]


class Played:
    """Servers that answer as they are told."""

    def __init__(self) -> None:
        self.asked: list[Place] = []
        self.maps: dict[Place, Callable[[], Reply]] = {}
        self.acts: dict[Place, Act] = {}

    def connect(self, address: Address, place: Place) -> PlayedNode:
        return PlayedNode(self, place)


class PlayedNode:
    def __init__(self, played: Played, place: Place) -> None:
        self.played, self.place = played, place

    def command(self, *command: str) -> Reply:
        assert command == ("CLUSTER", "SLOTS")
        self.played.asked.append(self.place)
        return self.played.maps[self.place]()

    def evaluate(self, call: Call, *, asking: bool) -> list[Reply]:
        return self.played.acts[self.place]()


def slots(*ranges: tuple[int, int, bytes]) -> Callable[[], Reply]:
    return lambda: [[first, last, [host, 1, b"id"]] for first, last, host in ranges]


def fails(error: Exception) -> Callable[[], list[Reply]]:
    def act() -> list[Reply]:
        raise error

    return act


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played()
    monkeypatch.setattr(cluster, "connect", played.connect)
    played.maps = dict.fromkeys((A, B), slots((0, 99, b"a"), (100, 199, b"b")))
    played.acts = {A: lambda: ["a"], B: lambda: ["b"]}
    return played


@pytest.fixture
def link(played: Played) -> ClusterLink:
    return ClusterLink(parse_url("redis+cluster://a:1,b:1"))


def test_map_is_asked_for_once(link: ClusterLink, played: Played) -> None:
    assert link.evaluate(5, CALL) == ["a"]
    assert link.evaluate(105, CALL) == ["b"]
    assert played.asked == [A]


def test_server_without_a_name_is_called_as_we_call_it(link: ClusterLink, played: Played) -> None:
    played.maps[A] = slots((0, 199, b""))
    assert link.evaluate(5, CALL) == ["a"]
    played.acts[A] = fails(Redirected(("", 2), 5, asking=False))
    played.acts["a", 2] = lambda: ["a2"]
    assert link.evaluate(5, CALL) == ["a2"]


def test_slot_that_nobody_serves_is_told_and_the_map_asked_for_again(
    link: ClusterLink, played: Played
) -> None:
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="nobody serves slot 500"):
            link.evaluate(500, CALL)
    assert len(played.asked) == 2


def test_slot_that_is_moved_on_and_on_is_given_up(link: ClusterLink, played: Played) -> None:
    played.acts[A] = fails(Redirected(B, 5, asking=False))
    played.acts[B] = fails(Redirected(A, 5, asking=False))
    with pytest.raises(StoreUnavailable, match="moved on and on"):
        link.evaluate(5, CALL)


def test_after_a_failure_another_server_is_asked(link: ClusterLink, played: Played) -> None:
    link.evaluate(5, CALL)
    link.evaluate(105, CALL)
    played.acts[A] = played.maps[A] = fails(StoreTimeout("hung"))
    with pytest.raises(StoreTimeout):
        link.evaluate(5, CALL)
    played.maps[B] = slots((0, 199, b"b"))
    assert link.evaluate(5, CALL) == ["b"]
    assert played.asked == [A, B]


def test_old_map_is_used_while_nobody_gives_a_new_one(link: ClusterLink, played: Played) -> None:
    link.evaluate(5, CALL)
    played.maps = dict.fromkeys((A, B), fails(StoreUnavailable("gone")))
    link._stale = True
    assert link.evaluate(5, CALL) == ["a"]
    assert len(played.asked) == 3


def test_without_any_map_the_failure_is_told(link: ClusterLink, played: Played) -> None:
    played.maps = dict.fromkeys((A, B), fails(StoreUnavailable("gone")))
    with pytest.raises(StoreUnavailable, match="gone"):
        link.evaluate(5, CALL)
    assert played.asked == [A, B]


def test_asking_for_the_map_ends_with_the_deadline(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = ClusterLink(parse_url("redis+cluster://a:1,b:1?timeout=0.001&connect_timeout=0.001"))

    def hang() -> Reply:
        time.sleep(0.01)
        raise StoreTimeout("hung")

    played.maps = dict.fromkeys((A, B), hang)
    with pytest.raises(StoreTimeout):
        link.evaluate(5, CALL)
    assert played.asked == [A]


@pytest.mark.parametrize(
    "url",
    [
        "rediss://h?tls_ca=/ca.pem&tls_cert=/c.pem&tls_key=/k.pem",
        "rediss+cluster://h",
        "rediss+sentinel://h/main",
        "redis+sentinel://h/main?sentinel_username=u&sentinel_password=p",
        "redis+unix:///run/r.sock",
    ],
)
def test_nothing_is_sent_before_the_first_call(url: str) -> None:
    store = RedisStore(parse_url(url))
    assert (store.inbox, store.mark) == ("", 0)
    store.renew_after_fork()  # as in a child
    store.close()


def test_tls_is_asked_of_the_connections() -> None:
    node = connect(parse_url("rediss://h?tls_ca=/ca.pem"))
    assert isinstance(node, Node)
    assert type(node._make()).__name__ == "SSLConnection"
    managed = connect(parse_url("rediss+sentinel://h/main"))._make()
    assert type(managed).__name__ == "SentinelManagedSSLConnection"
