"""Atomicity groups that are sent again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from werkzeug.test import TestResponse

from demijohn.records.tables import keys
from tests.acceptance.batched import parts, problem, slugs, statuses
from tests.atomic.batched import Batches, batches, new_key
from tests.atomic.shop import Shop

Make = Callable[..., Shop]


__all__ = ["batches"]


def test_group_that_is_sent_again_is_replayed(batches: Batches) -> None:
    key = new_key()
    first = batches.group("/orders/tea", "/orders/milk", Idempotency_Key=key)
    again = batches.group("/orders/tea", "/orders/milk", Idempotency_Key=key)
    assert [part["body"] for part in parts(first)] == [part["body"] for part in parts(again)]
    assert [part["headers"].get("idempotent-replayed") for part in parts(again)] == ["true"] * 2
    assert batches.orders() == ["milk", "tea"]
    assert batches.runs == ["tea", "milk"]


def test_what_is_the_first_callers_alone_is_not_stored_with_a_group(batches: Batches) -> None:
    def bake() -> Any:
        return {}, 201, {"Set-Cookie": "session=secret", "X-Request-ID": "1", "ETag": '"1"'}

    batches.add("/bake", bake)
    key = new_key()
    (first,) = parts(batches.group("/bake", Idempotency_Key=key))
    assert first["headers"]["set-cookie"] == ["session=secret"]
    with batches.engine.connect() as connection:
        assert b"secret" not in connection.scalar(select(keys.c.frame))  # type: ignore[operator]
    (again,) = parts(batches.group("/bake", Idempotency_Key=key))
    assert again["headers"].keys() == {"content-type", "etag", "idempotent-replayed"}


def test_group_that_failed_runs_again(batches: Batches) -> None:
    key = new_key()
    broken = [409]
    batches.add("/may", lambda: ({}, broken[0]))
    assert statuses(batches.group("/orders/tea", "/may", Idempotency_Key=key)) == [424, 409]
    assert batches.records() == 0
    broken[0] = 200
    assert statuses(batches.group("/orders/tea", "/may", Idempotency_Key=key)) == [201, 200]
    assert batches.orders() == ["tea"]


def test_what_is_new_in_each_attempt_does_not_make_another_group(batches: Batches) -> None:
    key = new_key()
    for attempt in "12":
        headers = {"traceparent": f"00-{attempt}-2-01", "X-Request-ID": attempt}
        part = {"url": "/orders/tea", "atomicityGroup": "g", "headers": headers}
        assert statuses(batches.post(part, Idempotency_Key=key)) == [201]
    assert batches.orders() == ["tea"]
    part = {"url": "/orders/tea", "atomicityGroup": "g", "headers": {"If-Match": '"1"'}}
    assert slugs(batches.post(part, Idempotency_Key=key)) == ["group-key-reused"]


def test_key_with_another_group_is_refused(batches: Batches) -> None:
    key = new_key()
    batches.group("/orders/tea", Idempotency_Key=key)
    response = batches.group("/orders/milk", Idempotency_Key=key)
    assert (statuses(response), slugs(response)) == ([422], ["group-key-reused"])
    assert batches.orders() == ["tea"]


def test_groups_of_other_callers_are_not_replayed(batches: Batches) -> None:
    key = new_key()
    batches.group("/orders/tea", Idempotency_Key=key)
    batches.caller = "bob"
    assert statuses(batches.group("/orders/tea", Idempotency_Key=key)) == [201]
    assert batches.orders() == ["tea", "tea"]


def test_group_found_under_an_earlier_secret(batches: Batches) -> None:
    key = new_key()
    batches.group("/orders/tea", Idempotency_Key=key)
    binding = batches.app.extensions["demijohn"]
    groups = batches.app.extensions["demijohn"].capabilities["batch"]._groups
    groups._secrets = (b"n" * 32, *binding.secrets)
    assert statuses(batches.group("/orders/tea", Idempotency_Key=key)) == [201]
    assert slugs(batches.group("/orders/milk", Idempotency_Key=key)) == ["group-key-reused"]
    assert batches.orders() == ["tea"]


def test_guessable_key_of_an_unknown_caller_is_refused(batches: Batches) -> None:
    batches.caller = None
    response = batches.group("/orders/tea", Idempotency_Key="1234")
    assert (response.status_code, problem(response)) == (400, "bad-batch-key")
    assert batches.runs == []


def test_second_batch_with_the_key_waits_for_the_first(batches: Batches) -> None:
    if batches.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer: see the test of busy groups")
    key = new_key()
    entered, go = threading.Event(), threading.Event()

    def hold() -> Any:
        entered.set()
        assert go.wait(30)
        return {"held": True}

    batches.add("/hold", hold)
    found: list[Any] = []

    def run() -> None:
        found.append(parts(batches.group("/orders/tea", "/hold", Idempotency_Key=key)))

    first = threading.Thread(target=run)
    first.start()
    assert entered.wait(30)
    second = threading.Thread(target=run)
    second.start()
    go.set()
    first.join(30)
    second.join(30)
    assert [part["status"] for answer in found for part in answer] == [201, 200, 201, 200]
    assert batches.orders() == ["tea"]


def test_leased_key_of_a_part_is_kept_only_if_its_group_is_committed(batches: Batches) -> None:
    own = {"headers": {"Idempotency-Key": new_key()}}
    part = {"url": "/kept/tea", "atomicityGroup": "g", **own}
    failing = {"url": "/fail/400", "atomicityGroup": "g"}
    assert statuses(batches.post(part, failing)) == [424, 400]
    assert statuses(batches.post(part)) == [201], "it was released"
    assert statuses(batches.post({**part, "atomicityGroup": None})) == [201], "and is replayed now"
    assert batches.runs == ["tea", "tea"]
    assert batches.orders() == ["tea"]


def test_atomic_view_in_a_group_commits_with_it(batches: Batches) -> None:
    own = {"headers": {"Idempotency-Key": new_key()}}
    part = {"url": "/atomic/tea", "atomicityGroup": "g", **own}
    failing = {"url": "/fail/400", "atomicityGroup": "g"}
    assert statuses(batches.post(part, failing)) == [424, 400]
    assert (batches.orders(), batches.records()) == ([], 0)
    assert statuses(batches.post(part, {"url": "/orders/milk", "atomicityGroup": "g"})) == [201] * 2
    assert (batches.orders(), batches.records()) == (["milk", "tea"], 1)
    assert statuses(batches.post({**part, "atomicityGroup": None})) == [201]
    assert batches.runs == ["tea", "tea", "milk"]


def test_atomic_views_under_one_key_of_the_batch(batches: Batches) -> None:
    key = new_key()
    requests = [{"url": "/atomic/a"}, {"url": "/atomic/b"}]
    assert statuses(batches.post(*requests, Idempotency_Key=key)) == [201, 201]
    assert statuses(batches.post(*requests, Idempotency_Key=key)) == [201, 201]
    assert batches.orders() == ["a", "b"]


def test_unreadable_record_of_a_group_is_not_run_again(batches: Batches) -> None:
    key = new_key()
    batches.group("/orders/tea", Idempotency_Key=key)
    with batches.engine.begin() as connection:
        connection.execute(keys.update().values(frame=b"\x01\xff"))
    response = batches.group("/orders/tea", Idempotency_Key=key)
    assert (statuses(response), slugs(response)) == ([500], ["group-outcome-unknown"])
    assert batches.orders() == ["tea"]


def test_group_in_progress_elsewhere_is_told(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    if batches.engine.dialect.name == "mariadb":
        pytest.skip("it waits in whole seconds")
    monkeypatch.setattr("demijohn.batch.groups.WAIT_MS", 10)
    key = new_key()
    inner: list[TestResponse] = []

    def nested() -> Any:
        inner.append(batches.group("/nested", Idempotency_Key=key))
        return {}

    batches.add("/nested", nested)
    batches.group("/orders/first")  # what is looked at once is not looked at under a lock
    assert statuses(batches.group("/nested", Idempotency_Key=key)) == [200]
    assert slugs(inner[0]) == ["group-in-progress"]
