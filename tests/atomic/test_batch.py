"""Atomicity groups of batches: all parts are in the database, or none."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, abort, request
from sqlalchemy import Engine, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError
from werkzeug.test import TestResponse

from demijohn import Demijohn, records
from demijohn.batch import signals
from demijohn.records import grouping
from demijohn.records.tables import keys
from tests.acceptance.batched import MULTIPART, answers, parts, problem, slugs, statuses
from tests.atomic.shop import Order, Shop

Make = Callable[..., Shop]


class Batches:
    """A shop to which batches are sent."""

    def __init__(self, engine: Engine, folder: Any, **options: Any) -> None:
        self.shop = Shop.__new__(Shop)
        self.engine = engine
        from sqlalchemy.orm import sessionmaker

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


def test_group_that_failed_runs_again(batches: Batches) -> None:
    key = new_key()
    broken = [409]
    batches.add("/may", lambda: ({}, broken[0]))
    assert statuses(batches.group("/orders/tea", "/may", Idempotency_Key=key)) == [424, 409]
    assert batches.records() == 0
    broken[0] = 200
    assert statuses(batches.group("/orders/tea", "/may", Idempotency_Key=key)) == [201, 200]
    assert batches.orders() == ["tea"]


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
