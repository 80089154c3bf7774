"""Atomicity groups whose database has another mind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError

from demijohn.records import grouping
from demijohn.records.keys import Keys
from tests.acceptance.batched import problem, slugs, statuses
from tests.atomic.batched import Batches, batches, new_key
from tests.atomic.shop import Order, Shop

Make = Callable[..., Shop]


__all__ = ["batches"]


def test_transaction_that_the_database_has_thrown_away_is_no_success(batches: Batches) -> None:
    """As MariaDB does at a deadlock: what came before is gone, and the views do not notice."""

    def lose() -> Any:
        with batches.make_session() as session:
            session.connection().exec_driver_sql("ROLLBACK")
        return {}

    batches.add("/lose", lose)
    assert statuses(batches.group("/orders/tea", "/lose", "/orders/milk")) != [201, 200, 201]
    assert batches.orders() == []


def test_commit_that_fails_rolls_everything_back(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise DBAPIError("COMMIT", (), Exception("serialization failure"))

    monkeypatch.setattr(grouping.Transaction, "commit", fail)
    response = batches.group("/orders/tea", "/kept/milk")
    assert slugs(response) == ["group-unavailable"] * 2
    assert batches.orders() == []


def lose(monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
    """Have the connection break at the COMMIT of a group: before it, or before its answer."""
    commit = grouping.Transaction.commit

    def break_off(transaction: grouping.Transaction) -> None:
        monkeypatch.setattr(grouping.Transaction, "commit", commit)
        if after:
            commit(transaction)
        raise OperationalError("COMMIT", (), Exception())

    monkeypatch.setattr(grouping.Transaction, "commit", break_off)


@pytest.mark.parametrize("after", [True, False])
def test_commit_whose_answer_is_lost_is_asked_for_by_the_groups_key(
    batches: Batches, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    lose(monkeypatch, after=after)
    key = new_key()
    response = batches.group("/orders/tea", "/kept/milk", Idempotency_Key=key)
    assert statuses(response) == ([201, 201] if after else [503, 503])
    assert batches.orders() == (["milk", "tea"] if after else [])
    again = batches.group("/orders/tea", "/kept/milk", Idempotency_Key=key)
    assert statuses(again) == [201, 201]
    assert batches.orders() == ["milk", "tea"]


def test_commit_whose_answer_is_lost_is_unknown_without_a_key(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(monkeypatch, after=True)
    assert slugs(batches.group("/orders/tea")) == ["group-outcome-unknown"]
    assert batches.orders() == ["tea"]


def test_connection_that_is_lost_at_the_claim_is_not_another_batch_with_the_key(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def claim(*_: Any) -> None:
        raise OperationalError("SELECT", (), Exception())

    batches.group("/orders/first")  # what is looked at once
    monkeypatch.setattr(Keys, "claim", claim)
    response = batches.group("/orders/tea", Idempotency_Key=new_key())
    assert (statuses(response), slugs(response)) == ([503], ["group-unavailable"])
    assert batches.orders() == ["first"]


def test_group_whose_savepoint_cannot_be_made_gives_its_connection_back(batches: Batches) -> None:
    batches.group("/orders/first")

    def refuse(*_: Any) -> None:
        raise OperationalError("SAVEPOINT", (), Exception())

    event.listen(batches.engine, "savepoint", refuse)
    response = batches.group("/orders/tea")
    event.remove(batches.engine, "savepoint", refuse)
    assert slugs(response) == ["group-unavailable"]
    assert batches.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_group_without_a_database_is_501_and_nothing_runs(engine: Engine, tmp_path: Any) -> None:
    batches = Batches(engine, tmp_path, db=engine)  # makes no sessions that could join
    response = batches.post({"url": "/orders/a"}, {"url": "/orders/b", "atomicityGroup": "g"})
    assert (response.status_code, problem(response)) == (501, "atomic-not-supported")
    assert batches.runs == []


def test_sqlite_that_does_not_roll_back_is_refused(tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/false.db")
    Order.metadata.create_all(engine)
    batches = Batches(engine, tmp_path)
    response = batches.group("/orders/a")
    assert response.status_code == 500
    assert batches.orders() == []
    engine.dispose()


def test_database_that_is_down_refuses_the_batch(tmp_path: Any) -> None:
    pytest.importorskip("psycopg")
    engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:9/none")
    batches = Batches(engine, tmp_path)
    response = batches.group("/orders/a", Idempotency_Key=new_key())
    assert (response.status_code, problem(response)) == (503, "batch-unavailable")


def test_pool_without_a_connection_fails_the_group_alone(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches.group("/orders/a")
    real = batches.engine.connect

    def connect() -> Any:
        monkeypatch.setattr(batches.engine, "connect", real)
        raise DBAPIError("connect", (), Exception("too many connections"))

    monkeypatch.setattr(batches.engine, "connect", connect)
    response = batches.post({"url": "/orders/b", "atomicityGroup": "g"}, {"url": "/orders/c"})
    assert statuses(response) == [503, 201]
    assert slugs(response)[0] == "group-unavailable"
    assert batches.orders() == ["a", "c"]
