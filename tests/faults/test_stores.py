"""Stores that fail under a running API: never a second run, never a hung request."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import PATIENT, Payments, new_key, together, until
from tests.servers import RedisServer

ABLE_TO_FILL = {
    "app": "tests.apps.payments:create_app()",
    "env": {"DISK_LIMIT": "yes"},
}


@pytest.fixture
def on_redis(payments_on: Callable[[str], Payments], own_redis: RedisServer) -> Payments:
    return payments_on(f"{own_redis.url()}?{PATIENT}")


def is_refused(answer: Any) -> bool:
    assert answer.status_code == 503
    assert answer.json()["type"].endswith("#store-unavailable")
    assert answer.headers["Retry-After"] == "1"
    return True


def test_redis_that_is_down_refuses_and_serves_again(
    on_redis: Payments, own_redis: RedisServer
) -> None:
    on_redis.start()
    assert on_redis.post(new_key()).status_code == 201
    own_redis.stop()
    key = new_key()
    assert is_refused(on_redis.post(key, "down"))
    assert on_redis.ledger("down") == []
    own_redis.start()
    assert on_redis.post_until_answered(key, "down").json()["attempt"] == 1
    assert len(on_redis.ledger("down")) == 1


def test_redis_that_hangs_holds_no_request_for_longer_than_its_deadline(
    payments_on: Callable[[str], Payments], own_redis: RedisServer
) -> None:
    payments = payments_on(own_redis.url()).start()  # with the deadlines of a real application
    own_redis.pause()
    key = new_key()
    started = time.monotonic()
    for _ in range(10):
        assert is_refused(payments.post(key, "hung"))
    # Ten requests, each at most 0.1 s for the store: generous for a busy machine.
    assert time.monotonic() - started < 10
    own_redis.resume()
    assert payments.post_until_answered(key, "hung").status_code == 201
    assert len(payments.ledger("hung")) == 1


def test_redis_that_goes_down_in_the_view_is_given_the_result_when_it_is_back(
    payments_on: Callable[[str], Payments], make_redis: Callable[..., RedisServer]
) -> None:
    server = make_redis("--appendonly", "yes", "--appendfsync", "always")
    payments = payments_on(f"{server.url()}?{PATIENT}").start(lease=30)
    key = new_key()
    payments.hold("after-effect")
    with together(1) as start:
        first = start(payments.post, key)
        payments.held("after-effect")
        server.stop()
        payments.release("after-effect")
        answer = first.result(60)
    assert answer.status_code == 201  # the work is done, and the client hears of it
    server.start()
    until(lambda: "completed" in payments.signals())
    again = payments.post(key)
    assert again.content == answer.content
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(payments.ledger()) == 1


def test_redis_that_forgets_everything_in_the_view_runs_nothing_twice_by_itself(
    on_redis: Payments, own_redis: RedisServer
) -> None:
    """Without persistence a restart forgets the claim: the run's result is refused, and told."""
    on_redis.start()
    key = new_key()
    on_redis.hold("after-effect")
    with together(1) as start:
        first = start(on_redis.post, key)
        on_redis.held("after-effect")
        own_redis.restart()
        on_redis.release("after-effect")
        assert first.result(60).status_code == 409
    assert len(on_redis.ledger()) == 1
    assert "fenced" in on_redis.signals()


def test_redis_whose_scripts_are_flushed_in_mid_flight_completes(
    on_redis: Payments, own_redis: RedisServer
) -> None:
    on_redis.start()
    key = new_key()
    on_redis.hold("in-view")
    with together(1) as start:
        first = start(on_redis.post, key)
        on_redis.held("in-view")
        own_redis.flush_scripts()
        on_redis.release("in-view")
        assert first.result(60).status_code == 201
    own_redis.flush_scripts()
    assert on_redis.post(key).headers["Idempotent-Replayed"] == "true"
    assert len(on_redis.ledger()) == 1


def test_redis_that_is_full_refuses_new_keys_and_ends_running_ones(
    on_redis: Payments, own_redis: RedisServer
) -> None:
    on_redis.start()
    key = new_key()
    on_redis.hold("in-view")
    with together(1) as start:
        first = start(on_redis.post, key)
        on_redis.held("in-view")
        own_redis.fill()
        assert is_refused(on_redis.post(new_key(), "full"))
        assert on_redis.ledger("full") == []
        on_redis.release("in-view")
        answer = first.result(60)
    assert answer.status_code == 201
    own_redis.empty()
    until(lambda: "completed" in on_redis.signals())
    assert on_redis.post_until_answered(new_key(), "full").status_code == 201


def test_redis_that_became_a_replica_refuses(on_redis: Payments, own_redis: RedisServer) -> None:
    on_redis.start()
    own_redis.client().replicaof("127.0.0.1", 1)
    key = new_key()
    assert is_refused(on_redis.post(key, "replica"))
    own_redis.client().replicaof("no", "one")
    assert on_redis.post_until_answered(key, "replica").status_code == 201
    assert len(on_redis.ledger("replica")) == 1


def test_clock_of_a_host_has_no_effect(on_redis: Payments, own_redis: RedisServer) -> None:
    """The row's instants are the server's: what the process believes is nowhere in them."""
    on_redis.start()
    on_redis.post(new_key())
    client = own_redis.client()
    ((_, key),) = [(0, key) for key in client.scan_iter("*idempotency*")]
    seconds, micros = client.time()
    now_ms = seconds * 1000 + micros // 1000
    completed_ms = int(client.hget(key, "c"))  # type: ignore[arg-type]
    assert 0 <= now_ms - completed_ms < 60_000


def test_full_disk_refuses_and_loses_no_record(
    payments_on: Callable[[str], Payments], tmp_path: Path
) -> None:
    payments = payments_on(f"sqlite:///{tmp_path}/rows.db").start(workers=1)
    kept = new_key()
    assert payments.post(kept, "kept").status_code == 201
    pid = payments.post(new_key(), "who").json()["by"]
    import resource

    limit = sum(file.stat().st_size for file in tmp_path.glob("rows.db*"))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit // 2, resource.RLIM_INFINITY))
    refused = []
    for _ in range(50):
        answer = payments.post(new_key(), "full")
        if answer.status_code == 503:
            refused.append(answer)
            break
    assert refused
    assert is_refused(refused[0])
    runs = len(payments.ledger("full"))
    assert payments.post(kept, "kept").headers["Idempotent-Replayed"] == "true"
    infinity = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, infinity)
    assert payments.post_until_answered(new_key(), "full").status_code == 201
    assert len(payments.ledger("full")) == runs + 1


def test_database_that_cannot_be_opened_refuses(
    payments_on: Callable[[str], Payments], tmp_path: Path
) -> None:
    (tmp_path / "rows.db").mkdir()
    payments = payments_on(f"sqlite:///{tmp_path}/rows.db").start()
    key = new_key()
    assert is_refused(payments.post(key))
    assert payments.ledger() == []
    (tmp_path / "rows.db").rmdir()
    assert payments.post_until_answered(key).status_code == 201
