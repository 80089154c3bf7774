"""Atomicity groups of batches: all parts are in the database, or none."""

from __future__ import annotations

import contextvars
import dataclasses
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, request
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.orm import scoped_session, sessionmaker
from werkzeug.test import TestResponse

from demijohn import Demijohn, idempotency, records
from demijohn.batch import signals
from tests.acceptance.batched import MULTIPART, answers, parts, slugs, statuses
from tests.atomic.batched import Batches, batches, new_key
from tests.atomic.shop import Order, Shop

Make = Callable[..., Shop]


__all__ = ["batches"]


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


def test_group_in_json_is_no_change_set_whatever_its_name(batches: Batches) -> None:
    response = batches.group(
        "/orders/a", "/orders/b", group="changeset 0", Accept="multipart/mixed"
    )
    assert [answer.status for answer in answers(response)] == [201, 201]
    assert response.data.count(b"multipart/mixed") == 0
    response = batches.group(
        "/orders/c", "/fail/403", group="changeset 0", Accept="multipart/mixed"
    )
    assert [answer.status for answer in answers(response)] == [424, 403]


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


def test_unread_json_of_the_request_is_still_there(batches: Batches) -> None:
    batches.add("/json", lambda: {"got": request.get_json()})
    response = batches.post({"url": "/json", "atomicityGroup": "g", "body": {"a": 1}})
    assert parts(response)[0]["body"] == {"got": {"a": 1}}
    assert json.loads(response.data)["responses"][0]["status"] == 200


def test_database_session_of_a_part_is_not_that_of_the_next(engine: Engine, tmp_path: Any) -> None:
    """Also outside of groups: what one part has left in its session ends with the part."""
    pytest.importorskip("flask_sqlalchemy")
    from flask_sqlalchemy import SQLAlchemy

    app = Flask("fsa", instance_path=str(tmp_path))
    app.secret_key = "x"
    app.config["SQLALCHEMY_DATABASE_URI"] = engine.url.render_as_string(hide_password=False)
    db = SQLAlchemy(app)
    Demijohn(app, stores="memory://", batch={})
    seen: list[Any] = []

    def leave() -> Any:
        session = db.session()
        seen.append(session)  # kept, so that no other has its place in memory
        session.execute(text("INSERT INTO orders (what) VALUES ('left')"))
        return {"orders": session.scalar(text("SELECT count(*) FROM orders"))}

    app.add_url_rule("/leave", view_func=leave, methods=["POST"])
    requests = [{"id": str(i), "method": "POST", "url": "/leave"} for i in range(3)]
    response = app.test_client().post("/batch", json={"requests": requests})
    assert [part["body"] for part in parts(response)] == [{"orders": 1}] * 3
    assert len({id(session) for session in seen}) == 3
    with app.app_context():
        assert db.session.scalar(text("SELECT count(*) FROM orders")) == 0
        db.session.remove()
        db.engine.dispose()


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
