"""Processes that are killed or paused at named points, and the retry that follows."""

from __future__ import annotations

import pytest
import requests

from tests.faults.conftest import Payments, new_key, together, until


def kill_and_retry(payments: Payments, point: str) -> requests.Response:
    """Have the worker die at ``point`` of a first request, and retry as a client would."""
    key = new_key()
    payments.kill_at(point)
    with pytest.raises(requests.RequestException):
        payments.post(key)
    answer: requests.Response = payments.post_until_answered(key)
    assert payments.post(key).content == answer.content
    return answer


@pytest.mark.parametrize("point", ["after-begin", "begun", "in-view"])
def test_killed_before_the_effect_the_retry_runs_it_once(payments: Payments, point: str) -> None:
    payments.start()
    answer = kill_and_retry(payments, point)
    assert answer.json()["attempt"] == 2
    assert len(payments.ledger()) == 1
    assert payments.signals().count("taken_over") == 1


def test_killed_before_the_claim_the_retry_is_the_first(payments: Payments) -> None:
    payments.start()
    assert kill_and_retry(payments, "before-begin").json()["attempt"] == 1
    assert len(payments.ledger()) == 1


@pytest.mark.parametrize("point", ["after-effect", "before-complete"])
def test_killed_between_effect_and_completion_the_retry_runs_again_and_knows_it(
    payments: Payments, point: str
) -> None:
    """The window that no separate store can close; the reference is what closes it."""
    payments.start()
    answer = kill_and_retry(payments, point)
    assert answer.json()["attempt"] == 2
    first, second = payments.ledger()
    assert (first[0], second[0]) == (1, 2)
    assert first[2] == second[2]  # one unique column would have kept one row


@pytest.mark.parametrize("point", ["after-complete", "completed"])
def test_killed_after_completion_the_retry_gets_the_response(
    payments: Payments, point: str
) -> None:
    payments.start()
    answer = kill_and_retry(payments, point)
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert answer.json()["attempt"] == 1
    assert len(payments.ledger()) == 1


def test_waiting_duplicate_takes_over_from_a_killed_worker(payments: Payments) -> None:
    payments.start()
    key = new_key()
    payments.hold("in-view")
    with together(2) as start:
        first = start(payments.post, key)
        pid = payments.held("in-view")
        second = start(payments.post_until_answered, key)
        payments.served.kill(pid)
        payments.release("in-view")
        with pytest.raises(requests.RequestException):
            first.result(60)
        assert second.result(60).json()["attempt"] == 2
    assert [row[0] for row in payments.ledger()] == [2]


def test_lost_request_waits_for_an_operator(payments: Payments) -> None:
    payments.start(on_lost="refuse")
    key = new_key()
    payments.kill_at("after-effect")
    with pytest.raises(requests.RequestException):
        payments.post(key)
    payments.served.wait_for_workers()
    answer = payments.post(key)  # waits for the lease
    assert answer.status_code == 409
    assert answer.json()["type"].endswith("#idempotency-outcome-unknown")
    assert payments.post(key).status_code == 409
    assert len(payments.ledger()) == 1


def test_paused_worker_is_fenced_when_it_wakes_and_both_see_one_result(
    payments: Payments,
) -> None:
    payments.start()
    key = new_key()
    payments.hold("after-effect")
    with together(2) as start:
        zombie = start(payments.post, key)
        pid = payments.held("after-effect")
        payments.served.pause(pid)
        payments.release("after-effect")
        winner = payments.post_until_answered(key)
        assert winner.json()["attempt"] == 2
        payments.served.resume(pid)
        late = zombie.result(60)
    assert late.content == winner.content
    assert late.headers["Idempotent-Replayed"] == "true"
    assert payments.post(key).content == winner.content
    assert "fenced" in payments.signals()


def test_view_that_outlives_its_lease_keeps_it_by_renewal(payments: Payments) -> None:
    payments.start(lease=0.6)
    key = new_key()
    with together(4) as start:
        futures = [start(payments.post, key, seconds=3) for _ in range(4)]
        assert len({future.result(60).content for future in futures}) == 1
    assert [row[0] for row in payments.ledger()] == [1]
    assert payments.signals() == ["begun", "completed"]


def test_completion_between_look_and_wait_of_another_process_is_not_missed(
    payments: Payments,
) -> None:
    payments.start(workers=2, threads=2, wait=40)
    key = new_key()
    payments.hold("in-view")
    payments.hold("before-wait")
    with together(2) as start:
        first = start(payments.post, key)
        payments.held("in-view")
        second = start(payments.post, key)
        payments.held("before-wait")  # it has looked, and does not wait yet
        payments.release("in-view")
        assert first.result(60).status_code == 201
        payments.release("before-wait")
        assert second.result(60).headers["Idempotent-Replayed"] == "true"
    assert len(payments.ledger()) == 1


def test_worker_that_ends_in_peace_ends_its_requests(payments: Payments) -> None:
    payments.start(workers=1)
    key = new_key()
    payments.hold("in-view")
    with together(1) as start:
        first = start(payments.post, key)
        pid = payments.held("in-view")
        import os
        import signal

        os.kill(pid, signal.SIGTERM)
        payments.release("in-view")
        assert first.result(60).status_code == 201
    payments.served.wait_for_workers()
    until(lambda: payments.post(key).headers.get("Idempotent-Replayed") == "true")
    assert len(payments.ledger()) == 1
