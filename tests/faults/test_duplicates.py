"""Many at once: one run, one response, and nobody else is held up."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from tests.faults.conftest import PATIENT, Payments, new_key, together, until
from tests.servers import RedisServer


def results(futures: list[Future[Any]]) -> list[Any]:
    return [future.result(120) for future in futures]


def test_200_concurrent_duplicates_over_4_workers_run_the_view_once(payments: Payments) -> None:
    # Threads for all in each worker, as nothing says that connections are dealt out evenly.
    payments.start(workers=4, threads=200, lease=30)
    key = new_key()
    payments.hold("in-view")
    with together(200) as start:
        futures = [start(payments.post, key) for _ in range(200)]
        payments.held("in-view")
        until(lambda: len(payments.waiters()) == 199)
        payments.release("in-view")
        answers = results(futures)
    assert len(payments.ledger()) == 1
    assert {(answer.status_code, answer.content) for answer in answers} == {
        (201, answers[0].content)
    }
    replayed = [answer for answer in answers if answer.headers.get("Idempotent-Replayed")]
    assert len(replayed) == 199


def test_duplicates_beyond_the_default_bound_are_refused_and_get_the_response_later(
    payments: Payments,
) -> None:
    workers, threads = 4, 8
    most = workers * threads // 4  # a quarter of a process's threads may wait
    payments.start(workers=workers, threads=threads, max_waiters=None, lease=30)
    key = new_key()
    payments.hold("in-view-of-p")
    with together(200) as start:
        futures = [start(payments.post, key) for _ in range(200)]
        payments.held("in-view-of-p")
        until(lambda: sum(future.done() for future in futures) >= 199 - most)
        # The view is held and as many wait as may, and there are threads for others all the same.
        others = [start(payments.post, new_key(), f"other{number}") for number in range(16)]
        assert [other.status_code for other in results(others)] == [201] * 16
        payments.release("in-view-of-p")
        answers = results(futures)
    assert len(payments.waiters()) <= most
    refused = [answer for answer in answers if answer.status_code == 409]
    assert len(refused) >= 199 - most
    assert all(1 <= int(answer.headers["Retry-After"]) <= 5 for answer in refused)
    later = [payments.post_until_answered(key) for _ in refused]
    answered = [answer for answer in answers if answer.status_code != 409] + later
    assert {(answer.status_code, answer.content) for answer in answered} == {
        (201, answered[0].content)
    }
    assert sum("Idempotent-Replayed" in answer.headers for answer in answered) == 199
    assert len(payments.ledger()) == 1


def test_waiting_greenlets_leave_their_worker_to_others(payments: Payments) -> None:
    pytest.importorskip("gevent")
    payments.start(workers=1, threads=1, lease=30, serve={"worker_class": "gevent"})
    key = new_key()
    payments.hold("in-view-of-p")
    with together(40) as start:
        futures = [start(payments.post, key) for _ in range(30)]
        payments.held("in-view-of-p")
        until(lambda: len(payments.waiters()) == 29)
        others = [start(payments.post, new_key(), f"other{number}") for number in range(8)]
        assert [other.status_code for other in results(others)] == [201] * 8
        payments.release("in-view-of-p")
        assert len({answer.content for answer in results(futures)}) == 1
    assert len(payments.ledger()) == 1


@pytest.mark.parametrize("worker_class", ["gevent", "sync"])
def test_other_kinds_of_workers(payments: Payments, worker_class: str) -> None:
    pytest.importorskip("gevent")
    serve: dict[str, Any] = {"worker_class": worker_class}
    payments.start(workers=4, threads=1, serve=serve)
    key = new_key()
    with together(24) as start:
        futures = [start(payments.post_until_answered, key) for _ in range(24)]
        answers = {answer.content for answer in results(futures)}
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
            answer.content for answer in results([start(payments.post, key) for _ in range(24)])
        }
    assert len(payments.ledger()) == 1
    assert len(answers) == 1


def test_waiters_of_a_process_share_one_subscription(
    payments_on: Callable[[str], Payments], own_redis: RedisServer
) -> None:
    payments = payments_on(f"{own_redis.url()}?{PATIENT}")
    payments.start(workers=2, threads=40, lease=30)
    client = own_redis.client()

    def subscriptions() -> set[str]:
        return {each["addr"] for each in client.client_list(_type="pubsub")}

    key = new_key()
    payments.hold("in-view")
    with together(40) as start:
        futures = [start(payments.post, key) for _ in range(40)]
        payments.held("in-view")
        until(lambda: len(payments.waiters()) == 39)
        processes = {pid for pid, _ in payments.waiters()}
        until(lambda: len(subscriptions()) >= len(processes))
        before = subscriptions()
        assert len(before) == len(processes)
        client.client_kill_filter(_type="pubsub")  # waiters survive the loss of it
        until(lambda: len(subscriptions() - before) >= len(processes))
        assert len(subscriptions()) == len(processes)
        payments.release("in-view")
        assert len({answer.content for answer in results(futures)}) == 1
    assert len(payments.ledger()) == 1
