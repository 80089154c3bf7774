"""Conflicts, deadlocks, lost connections: the transaction commits once, or nothing has happened."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import abort
from sqlalchemy import Connection, Engine, create_engine, event, select, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from demijohn import idempotency, records
from demijohn.errors import ConfigError, UsageError
from demijohn.idempotency import signals
from demijohn.records.keys import Keys
from demijohn.records.tables import keys
from tests.acceptance.conftest import heard, new_key
from tests.atomic.shop import Order, Shop
from tests.atomic.test_atomic import replayed

Make = Callable[..., Shop]


def killing(engine: Engine, session: Session) -> str:
    """Return the command by which the server ends the connection of ``session``."""
    connection = session.connection()
    if engine.dialect.name == "postgresql":
        number = connection.scalar(text("SELECT pg_backend_pid()"))
        return f"SELECT pg_terminate_backend({number}, 5000)"
    return f"KILL {connection.scalar(text('SELECT connection_id()'))}"


def kill(engine: Engine, command: str) -> None:
    with engine.connect() as other:
        other.execute(text(command))


@pytest.fixture
def server(engine: Engine) -> Engine:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no server")
    return engine


# --- conflicts ----------------------------------------------------------------------------------


class Deadlock:
    """Two rows that two transactions lock in turn; the view's is made the one that gives way."""

    def __init__(self, shop: Shop, engine: Engine) -> None:
        self.shop, self.engine = shop, engine
        self.runs = 0
        self.times = 1
        shop.write("one", "two")

    def view(self) -> Any:
        self.runs += 1
        with self.shop.make_session() as session:
            session.add(Order(what=f"run {self.runs}"))
            session.flush()
            if self.runs <= self.times:
                self.collide(session)
            session.commit()
        return {"attempt": idempotency.current.attempt}, 201

    def collide(self, session: Session, *, tidy: bool = True) -> None:
        lock = "UPDATE orders SET what = what WHERE id = :id"
        locked = threading.Event()

        def other() -> None:
            with self.engine.begin() as connection:
                # Whoever has written more is not chosen to give way.
                for number in range(200):
                    connection.execute(
                        text("INSERT INTO orders (id, what) VALUES (:id, 'ballast')"),
                        {"id": 10_000 + number},
                    )
                connection.execute(text(lock), {"id": 2})
                locked.set()
                connection.execute(text(lock), {"id": 1})
                connection.execute(text("DELETE FROM orders WHERE what = 'ballast'"))

        session.execute(text(lock), {"id": 1})
        thread = threading.Thread(target=other)
        thread.start()
        assert locked.wait(20)
        try:
            # PostgreSQL ends the one whose deadlock_timeout is over first: let it be this one.
            if self.engine.dialect.name == "postgresql":
                session.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
            threading.Event().wait(0.2)
            session.execute(text(lock), {"id": 2})
        finally:
            try:
                if tidy:
                    session.rollback()  # as views do; MariaDB has nothing to go back to
            finally:
                thread.join(30)


def test_deadlock_undoes_everything_and_is_a_503(shop: Shop, server: Engine) -> None:
    deadlock = Deadlock(shop, server)
    shop.add("/view", deadlock.view)
    key = new_key()
    answer = shop.post(key, "/view")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json["type"].endswith("store-unavailable")  # type: ignore[index]
    assert (shop.orders(), shop.records()) == (["one", "two"], 0)
    assert shop.post(key, "/view").status_code == 201
    assert shop.orders() == ["one", "two", "run 2"]


def test_deadlock_has_the_view_run_again_where_it_may(make_shop: Make, server: Engine) -> None:
    shop = make_shop(retry=1)
    deadlock = Deadlock(shop, server)
    shop.add("/view", deadlock.view)
    answer = shop.post(new_key(), "/view")
    assert (answer.status_code, answer.json) == (201, {"attempt": 2})
    assert shop.orders() == ["one", "two", "run 2"]


def test_scoped_session_is_as_new_when_the_view_runs_again(make_shop: Make, server: Engine) -> None:
    scoped = scoped_session(sessionmaker(server))
    shop = make_shop(db=scoped, retry=1)
    deadlock = Deadlock(shop, server)

    def view() -> Any:
        deadlock.runs += 1
        scoped.add(Order(what=f"run {deadlock.runs}"))
        scoped.flush()
        if deadlock.runs == 1:
            deadlock.collide(scoped(), tidy=False)
        scoped.commit()
        return {}, 201

    shop.add("/view", view)
    shop.app.teardown_appcontext(lambda _: scoped.remove())
    assert shop.post(new_key(), "/view").status_code == 201
    assert shop.orders() == ["one", "two", "run 2"]


def test_session_may_be_used_where_an_error_is_rendered(make_shop: Make, engine: Engine) -> None:
    scoped = scoped_session(sessionmaker(engine))
    shop = make_shop(db=scoped)

    def view() -> Any:
        scoped.add(Order(what="undone"))
        scoped.flush()
        return {}, 500

    shop.add("/view", view)
    seen: list[int] = []

    @shop.app.after_request
    def count(response: Any) -> Any:
        seen.append(len(scoped.scalars(select(Order)).all()))
        return response

    shop.app.teardown_appcontext(lambda _: scoped.remove())
    assert shop.post(new_key(), "/view").status_code == 500
    assert seen == [0]


def test_view_runs_again_as_often_as_it_may(make_shop: Make, server: Engine) -> None:
    shop = make_shop(retry=1)
    deadlock = Deadlock(shop, server)
    deadlock.times = 5
    shop.add("/view", deadlock.view)
    assert shop.post(new_key(), "/view").status_code == 503
    assert deadlock.runs == 2
    assert shop.orders() == ["one", "two"]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_stricter_isolation(make_shop: Make, server: Engine, level: str) -> None:
    strict = server.execution_options(isolation_level=level)
    shop = make_shop(db=sessionmaker(strict))
    shop.engine = strict
    shop.make_session = shop.dj._db  # type: ignore[assignment]
    key = new_key()
    shop.go.clear()
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(shop.post, key) for _ in range(4)]
        assert shop.entered.acquire(timeout=20)
        threading.Event().wait(0.3)
        shop.go.set()
        answers = [future.result(60) for future in futures]
    assert {answer.status_code for answer in answers} == {201}
    assert shop.orders() == ["tea"]


def test_failure_to_serialise_at_commit_has_the_view_run_again(
    make_shop: Make, server: Engine
) -> None:
    if server.dialect.name != "postgresql":
        pytest.skip("MariaDB serialises by locks, so that nothing fails at COMMIT")
    strict = server.execution_options(isolation_level="SERIALIZABLE")
    shop = make_shop(db=sessionmaker(strict), retry=1)
    make = shop.dj._db
    runs: list[int] = []

    def view() -> Any:
        runs.append(1)
        with make() as session:  # type: ignore[operator]
            count = session.scalar(text("SELECT count(*) FROM orders"))
            if len(runs) == 1:  # write skew: each reads what the other writes
                with strict.begin() as other:
                    other.scalar(text("SELECT count(*) FROM orders"))
                    other.execute(text("INSERT INTO orders (what) VALUES ('other')"))
            session.add(Order(what=f"saw {count}"))
            session.commit()
        return {}, 201

    shop.add("/view", view)
    assert shop.post(new_key(), "/view").status_code == 201
    assert shop.orders() == ["other", "saw 1"]


def test_answer_that_the_view_makes_of_a_conflict_is_its_own(shop: Shop, server: Engine) -> None:
    deadlock = Deadlock(shop, server)

    def view() -> Any:
        try:
            return deadlock.view()
        except OperationalError:
            abort(500)

    shop.add("/view", view)
    assert shop.post(new_key(), "/view").status_code == 500
    assert shop.orders() == ["one", "two"]


def test_transaction_that_was_rolled_back_under_the_view_is_not_taken_for_done(
    shop: Shop, server: Engine
) -> None:
    def view() -> Any:
        with shop.make_session() as session:
            session.add(Order(what="undone"))
            session.flush()
            # What MariaDB does at a deadlock, under a view that notices nothing.
            session.connection().connection.rollback()
            session.connection().exec_driver_sql("SELECT 1")
        return {}, 201

    shop.add("/view", view)
    assert shop.post(new_key(), "/view").status_code in {500, 503}
    assert (shop.orders(), shop.records()) == ([], 0)


# --- lost connections ---------------------------------------------------------------------------


def test_connection_that_breaks_in_the_view_leaves_nothing(shop: Shop, server: Engine) -> None:
    broken: list[int] = []

    def view() -> Any:
        with shop.make_session() as session:
            session.add(Order(what="half"))
            session.flush()
            if not broken:
                broken.append(1)
                kill(server, killing(server, session))
            session.add(Order(what="whole"))
            session.commit()
        return {}, 201

    shop.add("/view", view)
    key = new_key()
    assert shop.post(key, "/view").status_code == 503
    assert (shop.orders(), shop.records()) == ([], 0)
    assert shop.post(key, "/view").status_code == 201
    assert shop.orders() == ["half", "whole"]


def test_connection_that_breaks_between_view_and_commit_leaves_nothing(
    shop: Shop, server: Engine
) -> None:
    def view() -> Any:
        with shop.make_session() as session:
            session.add(Order(what="half"))
            session.commit()
            kill(server, killing(server, session))
        return {}, 201

    shop.add("/view", view)
    assert shop.post(new_key(), "/view").status_code == 503
    assert (shop.orders(), shop.records()) == ([], 0)


@pytest.mark.parametrize("happened", [True, False])
def test_commit_whose_answer_is_lost_is_looked_up(
    make_shop: Make, server: Engine, happened: bool
) -> None:
    shop = make_shop(wait=1)
    plain = server.dialect.do_commit
    lose = threading.Event()

    def losing(connection: Any) -> None:
        if not lose.is_set():
            plain(connection)
            return
        lose.clear()
        if happened:
            plain(connection)
        connection.close() if server.dialect.name == "mysql" else None
        raise_lost(server)

    key = new_key()

    def view() -> Any:
        shop.write("tea")
        lose.set()
        return {}, 201

    shop.add("/view", view)
    server.dialect.do_commit = losing  # type: ignore[method-assign]
    try:
        answer = shop.post(key, "/view")
    finally:
        server.dialect.do_commit = plain  # type: ignore[method-assign]
    if happened:
        assert answer.status_code == 201
        assert replayed(shop.post(key, "/view"))
        assert (shop.orders(), shop.records()) == (["tea"], 1)
    else:
        assert answer.status_code == 503
        assert (shop.orders(), shop.records()) == ([], 0)


def raise_lost(engine: Engine) -> None:
    """Raise what the driver raises when the connection breaks."""
    dbapi = engine.dialect.dbapi
    assert dbapi is not None
    if engine.dialect.name == "postgresql":
        raise dbapi.OperationalError("server closed the connection unexpectedly")
    raise dbapi.OperationalError(2013, "Lost connection to MySQL server during query")


def test_commit_that_fails_leaves_nothing_to_the_next_user_of_its_connection(
    shop: Shop, engine: Engine
) -> None:
    plain, fail = engine.dialect.do_commit, threading.Event()

    def failing(connection: Any) -> None:
        if fail.is_set():
            fail.clear()
            raise_refused(engine)
        plain(connection)

    def view() -> Any:
        shop.write("tea")
        fail.set()
        return {}, 201

    shop.add("/view", view)
    engine.dialect.do_commit = failing  # type: ignore[method-assign]
    try:
        assert shop.post(new_key(), "/view").status_code == 500
        shop.write("later")
    finally:
        engine.dialect.do_commit = plain  # type: ignore[method-assign]
    assert (shop.orders(), shop.records()) == (["later"], 0)


def raise_refused(engine: Engine) -> None:
    """Raise what the driver raises when the server refuses a COMMIT."""
    dbapi = engine.dialect.dbapi
    assert dbapi is not None
    raise dbapi.IntegrityError(1452, "a constraint fails")


def test_database_that_is_not_there_is_a_503(make_shop: Make, server: Engine) -> None:
    away = create_engine(server.url.set(host="127.0.0.1", port=1))
    shop = make_shop(db=sessionmaker(away))
    database = shop.app.extensions["demijohn"].database
    with heard(signals.store_failed) as seen:
        for database._ready in (False, True):  # whether it was there when all began
            assert shop.post(new_key()).status_code == 503
    assert len(seen) == 2


# --- SQLite -------------------------------------------------------------------------------------


def test_default_transactions_of_sqlite_are_refused_with_the_cure(
    make_shop: Make, engine: Engine
) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("this is SQLite's own")
    careless = create_engine(engine.url)
    shop = make_shop(db=sessionmaker(careless))
    shop.app.testing = True
    with pytest.raises(ConfigError, match=r"real_transactions\(engine\)"):
        shop.post(new_key())
    careless.dispose()


# --- what cannot be right -----------------------------------------------------------------------


def test_session_that_is_bound_to_a_connection_cannot_join(shop: Shop, engine: Engine) -> None:
    def view() -> Any:
        with engine.connect() as connection, shop.make_session(bind=connection) as session:
            session.add(Order(what="elsewhere"))
            session.commit()
        return {}, 201

    shop.app.testing = True
    shop.add("/view", view)
    with pytest.raises(UsageError, match="bound to a Connection"):
        shop.post(new_key(), "/view")
    assert (shop.orders(), shop.records()) == ([], 0)


def test_missing_tables_are_named(make_shop: Make, engine: Engine) -> None:
    keys.drop(engine)
    shop = make_shop()
    shop.app.testing = True
    with pytest.raises(ConfigError, match=r"has no demijohn_idempotency: .*init-db"):
        shop.post(new_key())
    records.create(engine)
    assert shop.post(new_key()).status_code == 201


def test_missing_columns_are_named(engine: Engine) -> None:
    with engine.begin() as connection:
        drop_column(connection)
    assert records.missing(engine) == ["demijohn_idempotency.until"]
    with pytest.raises(ConfigError, match=r"demijohn_idempotency\.until"):
        records.verify(engine)


def drop_column(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE demijohn_idempotency DROP COLUMN until"))


def test_tables_of_another_version_are_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE demijohn_schema SET version = 7"))
    for act in (records.verify, records.create):
        with pytest.raises(ConfigError, match="have version 7, and this release needs 1"):
            act(engine)


def test_tables_are_made_by_many_at_once(engine: Engine) -> None:
    records.metadata.drop_all(engine)
    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(records.create, engine) for _ in range(6)]:
            done.result(60)
    records.verify(engine)


def test_statement_that_waits_for_the_database_is_not_made_to_wait_less(
    shop: Shop, engine: Engine
) -> None:
    """The bound on the claim's wait is not one on the view's statements."""
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one bound, the connection's")
    setting = {
        "postgresql": "SELECT current_setting('lock_timeout')",
        "mariadb": "SELECT @@innodb_lock_wait_timeout",
    }[engine.dialect.name]
    with engine.connect() as connection:
        usual = connection.scalar(text(setting))
    seen: list[object] = []

    def view() -> Any:
        with shop.make_session() as session:
            seen.append(session.scalar(text(setting)))
        return {}, 201

    shop.add("/view", view)
    shop.post(new_key(), "/view")
    assert seen == [usual]


def test_claim_that_always_finds_a_record_just_gone_gives_up(
    shop: Shop, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from demijohn.records.keys import Moved

    tries: list[int] = []

    def claim(*_: Any) -> None:
        tries.append(1)
        raise Moved("k")

    monkeypatch.setattr(Keys, "claim", claim)
    assert shop.post(new_key()).status_code == 503
    assert len(tries) == 5


def test_engine_takes_listeners_once(engine: Engine) -> None:
    begun: list[int] = []
    event.listen(engine, "begin", lambda _: begun.append(1))
    records.real_transactions(engine)
    with engine.begin():
        pass
    assert begun == [1]


# --- where the view has answered by an exception ------------------------------------------------


def test_refusal_whose_transaction_was_undone_is_a_503(shop: Shop, server: Engine) -> None:
    def view() -> Any:
        with shop.make_session() as session:
            session.add(Order(what="undone"))
            session.flush()
            session.connection().connection.rollback()
            session.connection().exec_driver_sql("SELECT 1")
            session.rollback() if server.dialect.name == "none" else None
            abort(422)

    shop.add("/view", view)
    assert shop.post(new_key(), "/view").status_code in {500, 503}
    assert (shop.orders(), shop.records()) == ([], 0)


def test_refusal_whose_connection_breaks_is_a_503(shop: Shop, server: Engine) -> None:
    def view() -> Any:
        with shop.make_session() as session:
            session.add(Order(what="half"))
            session.commit()
            kill(server, killing(server, session))
        abort(422)

    shop.add("/view", view)
    with heard(signals.store_failed) as seen:
        assert shop.post(new_key(), "/view").status_code == 503
    assert len(seen) == 1
    assert (shop.orders(), shop.records()) == ([], 0)


def test_mistake_while_a_refusal_is_recorded_is_a_500(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ProgrammingError("UPDATE", {}, Exception("no such column"))

    monkeypatch.setattr(Keys, "complete", fail)
    shop.add("/view", lambda: abort(422))
    assert shop.post(new_key(), "/view").status_code == 500
    assert shop.records() == 0


def test_outcome_that_cannot_be_looked_up_is_a_503(
    shop: Shop, server: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demijohn.records.resolving.PAUSES_S", (0, 0))
    claim, tries = Keys.claim, list[int]()

    def only_once(*args: Any) -> Any:
        tries.append(1)
        if len(tries) > 1:
            raise_lost_error(server)
        return claim(*args)

    monkeypatch.setattr(Keys, "claim", only_once)

    def view() -> Any:
        with shop.make_session() as session:
            session.add(Order(what="half"))
            command = killing(server, session)
            session.commit()
        kill(server, command)
        return {}, 201

    monkeypatch.setattr(Keys, "complete", lambda *_, **__: True)  # so that COMMIT notices first
    shop.add("/view", view)
    answer = shop.post(new_key(), "/view")
    assert answer.status_code == 503
    assert len(tries) == 3
    assert "if it was carried out" in answer.json["detail"]  # type: ignore[index]
    assert shop.orders() == []


def raise_lost_error(engine: Engine) -> None:
    raise OperationalError("SELECT", {}, Exception("the connection is gone"))


def test_request_that_was_overtaken_while_it_ran_again_gets_the_others_response(
    make_shop: Make, server: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = make_shop(retry=1)
    deadlock = Deadlock(shop, server)
    shop.add("/view", deadlock.view)
    key, others = new_key(), list[Any]()
    database = shop.app.extensions["demijohn"].database
    settle = database.settle

    def overtaken() -> None:
        if deadlock.runs == 1 and not others:  # undone, and about to claim again
            others.append(None)
            others[0] = shop.post(key, "/view")
        settle()

    monkeypatch.setattr(database, "settle", overtaken)
    answer = shop.post(key, "/view")
    assert replayed(answer)
    assert answer.data == others[0].data
    assert shop.orders() == ["one", "two", "run 2"]


def test_transaction_that_cannot_begin_gives_its_connection_back(
    make_shop: Make, engine: Engine
) -> None:
    shop = make_shop()
    shop.post(new_key())

    def refuse(_: Any) -> None:
        raise OperationalError("BEGIN", {}, Exception())

    event.listen(engine, "begin", refuse)
    try:
        assert shop.post(new_key()).status_code == 503
    finally:
        event.remove(engine, "begin", refuse)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_tables_are_as_migrations_would_have_them(engine: Engine) -> None:
    alembic = pytest.importorskip("alembic.autogenerate")
    from alembic.migration import MigrationContext

    mine = set(records.metadata.tables)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_name": lambda name, kind, _: kind != "table" or name in mine}
        )
        assert alembic.compare_metadata(context, records.metadata) == []
