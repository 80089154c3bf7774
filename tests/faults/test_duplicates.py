"""Many at once: one run, one response, and nobody else is held up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.conftest import Payments, new_key, together, until
from tests.servers import RedisServer


def test_200_concurrent_duplicates_over_4_workers_run_the_view_once(payments: Payments) -> None:
    payments.start(workers=4, threads=60)
    key = new_key()
    payments.hold("in-view")
    with together(200) as start:
        futures = [start(payments.post, key) for _ in range(200)]
        payments.held("in-view")
        payments.release("in-view")
        answers = [future.result(120) for future in futures]
    assert len(payments.ledger()) == 1
    assert {(answer.status_code, answer.content) for answer in answers} == {
        (201, answers[0].content)
    }
    replayed = [answer for answer in answers if answer.headers.get("Idempotent-Replayed")]
    assert len(replayed) == 199


def test_duplicates_beyond_the_bound_leave_threads_for_others(payments: Payments) -> None:
    payments.start(workers=2, threads=8, max_waiters=2)
    key = new_key()
    payments.hold("in-view")
    with together(40) as start:
        futures = [start(payments.post, key) for _ in range(40)]
        payments.held("in-view")
        until(lambda: sum(future.done() for future in futures) >= 40 - 1 - 2 * 2)
        others = [
            start(lambda: __import__("requests").get(payments.served.url("/alive"), timeout=30))
            for _ in range(5)
        ]
        assert [future.result(30).status_code for future in others] == [200] * 5
        payments.release("in-view")
        answers = [future.result(60) for future in futures]
    refused = [answer for answer in answers if answer.status_code == 409]
    assert len(refused) >= 35
    assert all(1 <= int(answer.headers["Retry-After"]) <= 5 for answer in refused)
    assert {answer.status_code for answer in answers} == {201, 409}
    assert payments.post(key).headers["Idempotent-Replayed"] == "true"
    assert len(payments.ledger()) == 1


@pytest.mark.parametrize("worker_class", ["gevent", "sync"])
def test_other_kinds_of_workers(payments: Payments, worker_class: str) -> None:
    pytest.importorskip("gevent")
    serve: dict[str, Any] = {"worker_class": worker_class}
    payments.start(workers=4, threads=1, serve=serve)
    key = new_key()
    with together(24) as start:
        futures = [start(payments.post_until_answered, key) for _ in range(24)]
        answers = {future.result(120).content for future in futures}
    assert len(payments.ledger()) == 1
    assert len(answers) == 1


def test_application_that_is_loaded_before_the_fork(payments: Payments) -> None:
    serve: dict[str, Any] = {
        "app": "tests.apps.payments:app",
        "env": {"PRELOAD": "1"},
        "arguments": ["--preload"],
    }
    payments.start(workers=4, serve=serve)
    key = new_key()
    with together(24) as start:
        answers = {
            future.result(120).content for future in [start(payments.post, key) for _ in range(24)]
        }
    assert len(payments.ledger()) == 1
    assert len(answers) == 1


def test_waiters_of_a_process_share_one_subscription(
    payments_on: Callable[[str], Payments], own_redis: RedisServer
) -> None:
    payments = payments_on(f"{own_redis.url()}?timeout=2&connect_timeout=2").start(
        workers=2, threads=30
    )
    client = own_redis.client()
    key = new_key()
    payments.hold("in-view")
    with together(40) as start:
        futures = [start(payments.post, key) for _ in range(40)]
        payments.held("in-view")
        until(lambda: len(client.client_list(_type="pubsub")) >= 1)
        # All are busy or waiting when nobody asks any more.
        until(lambda: client.info("clients")["connected_clients"] >= 3)
        assert len(client.client_list(_type="pubsub")) <= 2
        client.client_kill_filter(_type="pubsub")  # waiters survive the loss of it
        payments.release("in-view")
        answers = {future.result(60).content for future in futures}
    assert len(answers) == 1
    assert len(payments.ledger()) == 1
