"""Atomicity groups of batches: all parts are in the database, or none."""

from __future__ import annotations

import contextvars
import dataclasses
import json
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, abort, request
from sqlalchemy import Engine, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import scoped_session, sessionmaker
from werkzeug.test import TestResponse

from demijohn import Demijohn, idempotency, records
from demijohn.batch import signals
from demijohn.records import grouping
from demijohn.records.keys import Keys
from demijohn.records.tables import keys
from tests.acceptance.batched import MULTIPART, answers, parts, problem, slugs, statuses
from tests.atomic.shop import Order, Shop

Make = Callable[..., Shop]


class Batches:
    """A shop to which batches are sent."""

    def __init__(self, engine: Engine, folder: Any, **options: Any) -> None:
        self.shop = Shop.__new__(Shop)
        self.engine = engine
        self.make_session = sessionmaker(engine)
        self.app = Flask("batches", instance_path=str(folder))
        self.app.secret_key = "the shop's"
        self.caller: str | None = "ann"
        self.dj = Demijohn(
            self.app,
            stores="memory://",
            principal=lambda: self.caller,
            db=options.pop("db", self.make_session),
            idempotency={"wait": 0},
            batch=options,
        )
        self.runs: list[str] = []
        self.add("/orders/<what>", self.order)
        self.add("/kept/<what>", self.dj.idempotent(self.order))
        self.add("/atomic/<what>", self.dj.idempotent(atomic=True)(self.order))
        self.add("/fail/<int:code>", self.fail)

    def add(self, path: str, view: Callable[..., Any]) -> None:
        self.app.add_url_rule(path, endpoint=path, view_func=view, methods=["GET", "POST"])

    def order(self, what: str) -> Any:
        """Write an order, and commit as views do."""
        self.runs.append(what)
        with self.make_session() as session:
            session.add(Order(what=what))
            session.commit()
            count = session.scalar(select(func.count()).select_from(Order))
        return {"what": what, "count": count}, 201

    def fail(self, code: int) -> Any:
        with self.make_session() as session:
            session.add(Order(what="never"))
            session.commit()
        abort(code)

    def post(self, *requests: dict[str, Any], **headers: str) -> TestResponse:
        numbered = [{"id": str(i), "method": "POST", **each} for i, each in enumerate(requests)]
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.app.test_client().post(
            "/batch", json={"requests": numbered}, headers=named, buffered=True
        )

    def group(self, *urls: str, group: str = "g", **headers: str) -> TestResponse:
        return self.post(*[{"url": url, "atomicityGroup": group} for url in urls], **headers)

    def orders(self) -> list[str]:
        with self.engine.connect() as connection:
            return sorted(connection.scalars(select(Order.what)))

    def records(self) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(keys)) or 0


@pytest.fixture
def batches(engine: Engine, tmp_path: Any) -> Any:
    made = Batches(engine, tmp_path)
    yield made
    made.app.extensions["demijohn"].keeper.stop()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def new_key() -> str:
    return str(uuid.uuid4())


# --- all or nothing -----------------------------------------------------------------------------


def test_group_that_succeeds_is_committed_once(batches: Batches) -> None:
    batches.group("/orders/first")  # looks, once, whether the database keeps transactions
    commits: list[object] = []

    def committed(connection: object) -> None:
        commits.append(connection)

    event.listen(batches.engine, "commit", committed)
    response = batches.group("/orders/tea", "/orders/milk")
    event.remove(batches.engine, "commit", committed)
    assert statuses(response) == [201, 201]
    assert [part["body"]["count"] for part in parts(response)] == [2, 3]
    assert batches.orders() == ["first", "milk", "tea"]
    assert len(commits) == 1


def test_group_of_which_one_part_fails_leaves_nothing_and_says_so(batches: Batches) -> None:
    response = batches.group("/orders/tea", "/fail/409", "/orders/milk")
    assert statuses(response) == [424, 409, 424]
    assert slugs(response)[0] == slugs(response)[2] == "rolled-back"
    assert batches.orders() == []
    assert batches.runs == ["tea"]


def test_parts_outside_of_a_group_stand(batches: Batches) -> None:
    response = batches.post(
        {"url": "/orders/before"},
        {"url": "/orders/tea", "atomicityGroup": "g"},
        {"url": "/fail/500", "atomicityGroup": "g"},
        {"url": "/orders/after"},
    )
    assert statuses(response) == [201, 424, 500, 201]
    assert batches.orders() == ["after", "before"]


def test_whole_batch_is_one_group_if_that_is_preferred(batches: Batches) -> None:
    response = batches.post({"url": "/orders/tea"}, {"url": "/fail/404"}, Prefer="atomic")
    assert statuses(response) == [424, 404]
    assert response.headers["Preference-Applied"] == "atomic"
    assert batches.orders() == []
    assert statuses(batches.post({"url": "/orders/a"}, {"url": "/orders/b"}, Prefer="atomic")) == [
        201,
        201,
    ]
    assert batches.orders() == ["a", "b"]


def test_what_depends_on_a_group_that_failed_is_not_run(batches: Batches) -> None:
    response = batches.post(
        {"url": "/orders/tea", "atomicityGroup": "g"},
        {"url": "/fail/400", "atomicityGroup": "g"},
        {"url": "/orders/after", "dependsOn": ["g"]},
    )
    assert statuses(response) == [424, 400, 424]
    assert slugs(response)[2] == "dependency-failed"


def test_part_refers_to_another_of_its_group(batches: Batches) -> None:
    response = batches.post(
        {"id": "a", "url": "/orders/tea", "atomicityGroup": "g"},
        {"url": "/orders/x@{a.body.count}", "atomicityGroup": "g"},
    )
    assert statuses(response) == [201, 201]
    assert batches.orders() == ["tea", "x1"]


def change_set(*urls: str) -> str:
    inner = "".join(
        "--c\nContent-Type:application/http\nContent-Transfer-Encoding:binary\n"
        f"Content-ID: {number}\n\nPOST {url} HTTP/1.1\n\n\n"
        for number, url in enumerate(urls)
    )
    return (
        "\n--b\nContent-Type: multipart/mixed; boundary=c\n\n" + inner + "--c--\n"
        "--b\nContent-Type: application/http\n\nGET orders/after HTTP/1.1\n\n\n--b--\n"
    )


def send(batches: Batches, body: str) -> TestResponse:
    return batches.app.test_client().post("/batch", data=body, content_type=MULTIPART)


def test_nested_change_set_is_answered_as_one(batches: Batches) -> None:
    response = send(batches, change_set("/orders/tea", "/orders/milk"))
    assert [answer.status for answer in answers(response)] == [201, 201, 201]
    assert response.data.count(b"multipart/mixed; boundary=") == 1
    assert batches.orders() == ["after", "milk", "tea"]


def test_nested_change_set_that_fails_has_one_answer(batches: Batches) -> None:
    response = send(batches, change_set("/orders/tea", "/fail/403"))
    assert [answer.status for answer in answers(response)] == [403, 201]
    assert batches.orders() == ["after"]


def test_exception_of_a_view_rolls_the_group_back(batches: Batches) -> None:
    def boom() -> Any:
        with batches.make_session() as session:
            session.add(Order(what="boom"))
            session.flush()
            raise RuntimeError

    batches.add("/boom", boom)
    assert statuses(batches.group("/orders/tea", "/boom")) == [424, 500]
    assert batches.orders() == []


def test_what_a_view_left_uncommitted_is_not_committed(batches: Batches) -> None:
    left: list[Any] = []

    def forgetful() -> Any:
        session = batches.make_session()
        session.add(Order(what="forgotten"))
        session.flush()
        left.append(session)
        return {}

    batches.add("/forgetful", forgetful)
    assert statuses(batches.group("/forgetful", "/orders/tea")) == [200, 201]
    assert batches.orders() == ["tea"]


def test_view_that_rolls_back_undoes_its_own_part_only(batches: Batches) -> None:
    def undone() -> Any:
        with batches.make_session() as session:
            session.add(Order(what="undone"))
            session.flush()
            session.rollback()
        return {}

    batches.add("/undone", undone)
    assert statuses(batches.group("/orders/tea", "/undone")) == [201, 200]
    assert batches.orders() == ["tea"]


def test_what_is_written_while_a_body_is_made_belongs_to_the_group(batches: Batches) -> None:
    def streamed(what: str) -> Any:
        def body() -> Any:
            with batches.make_session() as session:
                session.add(Order(what=what))
                session.commit()
            yield what

        return body(), 201

    batches.add("/streamed/<what>", streamed)
    assert statuses(batches.group("/streamed/tea", "/fail/400")) == [424, 400]
    assert batches.orders() == []
    assert statuses(batches.group("/streamed/tea", "/orders/milk")) == [201, 201]
    assert batches.orders() == ["milk", "tea"]


def test_session_that_a_hook_began_for_the_batch_is_not_in_the_way(
    engine: Engine, tmp_path: Any
) -> None:
    """It would hold a connection while parts wait for one, and in SQLite the lock to write."""
    sessions = scoped_session(sessionmaker(engine))
    batches = Batches(engine, tmp_path, db=sessions)

    @batches.app.before_request
    def load_user() -> None:
        sessions.scalar(select(func.count()).select_from(Order))

    @batches.app.teardown_appcontext
    def remove(_: object) -> None:
        sessions.remove()

    def order(what: str) -> Any:
        sessions.add(Order(what=what))
        sessions.commit()
        return {"checked-out": engine.pool.checkedout()}  # type: ignore[attr-defined]

    batches.add("/scoped/<what>", order)
    batches.add("/bad", lambda: ({}, 400))
    response = batches.post(
        {"url": "/scoped/a"},
        {"url": "/scoped/b", "atomicityGroup": "g"},
        {"url": "/scoped/c", "atomicityGroup": "g"},
    )
    assert statuses(response) == [200] * 3
    assert [part["body"]["checked-out"] for part in parts(response)] == [0, 1, 1]
    assert statuses(batches.group("/scoped/d", "/bad")) == [424, 400]
    assert batches.orders() == ["a", "b", "c"]
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_session_of_a_context_that_outlives_the_group_works_by_itself(batches: Batches) -> None:
    left: list[contextvars.Context] = []

    def view() -> Any:
        left.append(contextvars.copy_context())
        return {}

    batches.add("/left", view)
    assert statuses(batches.group("/left", "/orders/tea")) == [200, 201]
    left[0].run(batches.order, "later")
    assert batches.orders() == ["later", "tea"]


def test_what_keys_tell_is_told_in_the_parts_context_and_when_it_is_true(
    batches: Batches,
) -> None:
    heard: list[tuple[str, str]] = []

    def told(name: str) -> Callable[..., None]:
        return lambda _, **__: heard.append((name, request.path))

    completed, released = told("completed"), told("released")
    with (
        idempotency.signals.completed.connected_to(completed),
        idempotency.signals.released.connected_to(released),
    ):
        own = [{"Idempotency-Key": new_key()}, {"Idempotency-Key": new_key()}]
        requests = [
            {"url": "/kept/a", "atomicityGroup": "g", "headers": own[0]},
            {"url": "/atomic/b", "atomicityGroup": "g", "headers": own[1]},
        ]
        batches.post(*requests, {"url": "/fail/400", "atomicityGroup": "g"})
        assert heard == [("released", "/kept/a"), ("released", "/atomic/b")]
        heard.clear()
        batches.post(*requests)
    assert heard == [("completed", "/kept/a"), ("completed", "/atomic/b")]


def test_group_that_runs_out_of_time_is_undone(batches: Batches) -> None:
    def slow() -> Any:
        threading.Event().wait(0.3)
        return {}

    batches.add("/slow", slow)
    batches.group("/orders/first")  # looks, once, whether the database keeps transactions
    view = batches.app.extensions["demijohn"].capabilities["batch"]
    view._settings = dataclasses.replace(view._settings, deadline_ms=200)
    response = batches.group("/orders/tea", "/slow", "/orders/milk")
    assert statuses(response) == [424, 424, 503]
    assert slugs(response)[2] == "deadline"
    assert batches.orders() == ["first"]


def test_group_whose_answers_are_too_large_is_undone_and_takes_no_room(
    batches: Batches,
) -> None:
    batches.add("/large", lambda: {"large": "x" * 900})
    view = batches.app.extensions["demijohn"].capabilities["batch"]
    view._settings = dataclasses.replace(view._settings, max_response_bytes=2500)
    group = [{"url": "/large", "atomicityGroup": "g"}] * 3
    response = batches.post({"url": "/orders/a", "atomicityGroup": "h"}, *group, {"url": "/large"})
    assert statuses(response) == [201, 424, 424, 500, 200]
    assert slugs(response)[3] == "part-response-too-large"
    assert batches.orders() == ["a"]


def test_after_commit_acts_wait_for_the_group(batches: Batches) -> None:
    records.watch(batches.engine)
    acts: list[str] = []

    def act(what: str) -> Any:
        with batches.make_session() as session:
            session.add(Order(what=what))
            records.after_session_commit(session, lambda: acts.append(what))
            session.commit()
        return {"acts": list(acts)}

    batches.add("/act/<what>", act)
    response = batches.group("/act/a", "/act/b")
    assert [part["body"]["acts"] for part in parts(response)] == [[], []]
    assert acts == ["a", "b"]
    assert statuses(batches.group("/act/c", "/fail/400")) == [424, 400]
    assert acts == ["a", "b"]


def test_request_that_a_view_makes_of_its_application_is_not_in_the_group(
    batches: Batches,
) -> None:
    if batches.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer: the inner request would wait for the group")

    def outer() -> Any:
        assert batches.app.test_client().post("/orders/inner").status_code == 201
        return {}

    batches.add("/outer", outer)
    assert statuses(batches.group("/outer", "/fail/400")) == [424, 400]
    assert batches.orders() == ["inner"]


def test_signals_tell_how_groups_end(batches: Batches) -> None:
    heard: list[Any] = []

    def told(_: Flask, **details: Any) -> None:
        heard.append((details["group"], details.get("offender")))

    with (
        signals.group_committed.connected_to(told),
        signals.group_rolled_back.connected_to(told),
    ):
        batches.group("/orders/tea")
        batches.group("/orders/tea", "/fail/400", group="h")
    assert heard == [("g", None), ("h", 1)]


def test_receiver_that_fails_does_not_make_a_failure_of_what_was_committed(
    batches: Batches,
) -> None:
    def fail(_: Flask, **__: Any) -> None:
        raise RuntimeError("the listener's own")

    with signals.group_committed.connected_to(fail), signals.executed.connected_to(fail):
        response = batches.group("/orders/tea")
    assert statuses(response) == [201]
    assert batches.orders() == ["tea"]


# --- the database has the last word -------------------------------------------------------------


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
    assert slugs(response) == ["rolled-back"] * 2
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
    assert statuses(response) == ([201, 201] if after else [424, 424])
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


# --- idempotency --------------------------------------------------------------------------------


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


def test_unread_json_of_the_request_is_still_there(batches: Batches) -> None:
    batches.add("/json", lambda: {"got": request.get_json()})
    response = batches.post({"url": "/json", "atomicityGroup": "g", "body": {"a": 1}})
    assert parts(response)[0]["body"] == {"got": {"a": 1}}
    assert json.loads(response.data)["responses"][0]["status"] == 200


def test_sessions_of_flask_sqlalchemy_join(engine: Engine, tmp_path: Any) -> None:
    pytest.importorskip("flask_sqlalchemy")
    from flask_sqlalchemy import SQLAlchemy

    url = engine.url.render_as_string(hide_password=False)
    app = Flask("fsa", instance_path=str(tmp_path))
    app.secret_key = "x"
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db = SQLAlchemy(app)
    with app.app_context():
        records.real_transactions(db.engine)
    Demijohn(app, stores="memory://", db=db, batch={})

    def order(what: str) -> Any:
        db.session.execute(text("INSERT INTO orders (what) VALUES (:what)"), {"what": what})
        db.session.commit()
        return {"what": what}, 400 if what == "bad" else 201

    app.add_url_rule("/orders/<what>", view_func=order, methods=["POST"])

    def group(*whats: str) -> TestResponse:
        requests = [
            {"id": str(i), "method": "POST", "url": f"/orders/{what}", "atomicityGroup": "g"}
            for i, what in enumerate(whats)
        ]
        return app.test_client().post("/batch", json={"requests": requests})

    def orders() -> list[str]:
        with engine.connect() as connection:
            return sorted(connection.scalars(select(Order.what)))

    assert statuses(group("a", "bad")) == [424, 400]
    assert orders() == []
    assert statuses(group("a", "b")) == [201, 201]
    assert orders() == ["a", "b"]
    with app.app_context():
        db.engine.dispose()
