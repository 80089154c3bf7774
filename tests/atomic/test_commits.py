"""Work that waits for the true commit: a model, and every way in which a transaction can end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from demijohn.errors import UsageError
from demijohn.records import after_commit, after_session_commit, watch
from demijohn.records.savepoints import shorten
from tests.acceptance.conftest import new_key
from tests.atomic.shop import Order, Shop


@pytest.fixture
def watched(engine: Engine) -> Engine:
    watch(engine)
    return engine


@pytest.fixture
def connection(watched: Engine) -> Iterator[Connection]:
    with watched.connect() as connection:
        yield connection


class Acts(list[str]):
    """What has been done, in order."""

    def named(self, name: str) -> Any:
        return lambda: self.append(name)


@pytest.fixture
def acts() -> Acts:
    return Acts()


def write(connection: Connection) -> None:
    connection.execute(text("INSERT INTO orders (what) VALUES ('x')"))


# --- connections --------------------------------------------------------------------------------


def test_act_runs_after_the_commit_and_once(connection: Connection, acts: Acts) -> None:
    write(connection)
    after_commit(connection, acts.named("one"))
    after_commit(connection, acts.named("two"))
    assert acts == []
    connection.commit()
    assert acts == ["one", "two"]
    write(connection)
    connection.commit()
    assert acts == ["one", "two"]


def test_rows_are_there_for_others_when_the_act_runs(watched: Engine, acts: Acts) -> None:
    seen: list[int] = []

    def count() -> None:
        with watched.connect() as other:
            seen.append(other.scalar(text("SELECT count(*) FROM orders")) or 0)

    with watched.begin() as connection:
        write(connection)
        after_commit(connection, count)
    assert seen == [1]


def test_rollback_drops_it(connection: Connection, acts: Acts) -> None:
    write(connection)
    after_commit(connection, acts.named("one"))
    connection.rollback()
    write(connection)
    connection.commit()
    assert acts == []


def test_connection_that_is_closed_without_a_commit_drops_it(watched: Engine, acts: Acts) -> None:
    with watched.connect() as connection:
        write(connection)
        after_commit(connection, acts.named("one"))
    with watched.begin() as connection:  # the same one, from the pool
        write(connection)
    assert acts == []


def test_connection_that_is_closed_before_anything_drops_it(watched: Engine, acts: Acts) -> None:
    with watched.connect() as connection:
        after_commit(connection, acts.named("never"))
    with watched.begin() as connection:
        write(connection)
    assert acts == []


def test_before_the_first_statement_it_belongs_to_what_begins(
    connection: Connection, acts: Acts
) -> None:
    after_commit(connection, acts.named("one"))
    write(connection)
    connection.commit()
    assert acts == ["one"]


def test_released_savepoint_hands_on_and_an_undone_one_drops(
    connection: Connection, acts: Acts
) -> None:
    write(connection)
    after_commit(connection, acts.named("root"))
    with connection.begin_nested():
        after_commit(connection, acts.named("kept"))
        inner = connection.begin_nested()
        after_commit(connection, acts.named("undone"))
        deepest = connection.begin_nested()
        after_commit(connection, acts.named("undone with it"))
        deepest.commit()
        inner.rollback()
        after_commit(connection, acts.named("later"))
    assert acts == []
    connection.commit()
    assert acts == ["root", "kept", "later"]


def test_failed_commit_runs_nothing_and_leaves_nothing(watched: Engine, acts: Acts) -> None:
    if watched.dialect.name != "postgresql":
        pytest.skip("of these only PostgreSQL defers constraints to the COMMIT")
    with watched.begin() as setup:
        setup.execute(text("CREATE TABLE late (x integer UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    try:
        with watched.connect() as connection:
            connection.execute(text("INSERT INTO late VALUES (1), (1)"))
            after_commit(connection, acts.named("one"))
            with pytest.raises(IntegrityError):
                connection.commit()
        with watched.begin() as connection:
            write(connection)
        assert acts == []
    finally:
        with watched.begin() as setup:
            setup.execute(text("DROP TABLE late"))


def test_act_that_fails_is_logged_and_the_others_run(
    connection: Connection, acts: Acts, caplog: pytest.LogCaptureFixture
) -> None:
    write(connection)
    after_commit(connection, lambda: 1 / 0)
    after_commit(connection, acts.named("two"))
    with caplog.at_level(logging.ERROR):
        connection.commit()
    assert acts == ["two"]
    assert "the commit stands" in caplog.text


def test_act_may_have_a_transaction_of_its_own(watched: Engine, acts: Acts) -> None:
    def act() -> None:
        with watched.begin() as other:
            write(other)
            after_commit(other, acts.named("inner"))
        acts.append("outer")

    with watched.begin() as connection:
        write(connection)
        after_commit(connection, act)
    assert acts == ["inner", "outer"]


def test_with_autocommit_it_runs_at_once(watched: Engine, acts: Acts) -> None:
    each = watched.execution_options(isolation_level="AUTOCOMMIT")
    with each.connect() as connection:
        after_commit(connection, acts.named("one"))
        assert acts == ["one"]


def test_engine_with_autocommit_throughout(watched: Engine, acts: Acts) -> None:
    engine = create_engine(watched.url, isolation_level="AUTOCOMMIT")
    watch(engine)
    with engine.connect() as connection:
        after_commit(connection, acts.named("one"))
        assert acts == ["one"]
    engine.dispose()


def test_invalidated_connection_runs_nothing(watched: Engine, acts: Acts) -> None:
    with watched.connect() as connection:
        write(connection)
        after_commit(connection, acts.named("one"))
        connection.invalidate()
        connection.rollback()
        write(connection)
        connection.commit()
    assert acts == []


def test_watching_twice_is_watching_once(watched: Engine, acts: Acts) -> None:
    watch(watched)
    watch(watched.execution_options(isolation_level="SERIALIZABLE"))
    with watched.begin() as connection:
        write(connection)
        after_commit(connection, acts.named("one"))
    assert acts == ["one"]


def test_engine_that_nobody_watches_is_refused(engine: Engine, acts: Acts) -> None:
    with engine.connect() as connection, pytest.raises(UsageError, match=r"watch\(engine\)"):
        after_commit(connection, acts.named("one"))


@pytest.mark.parametrize(
    "end", ["commit", "rollback", "prepare and commit", "prepare and rollback"]
)
def test_two_phase_commit(watched: Engine, acts: Acts, end: str) -> None:
    if watched.dialect.name == "sqlite":
        pytest.skip("SQLite has no two-phase commit")
    with watched.connect() as connection:
        if watched.dialect.name == "postgresql" and end.startswith("prepare"):
            allowed = connection.scalar(text("SHOW max_prepared_transactions"))
            connection.rollback()
            if allowed == "0":
                pytest.skip("this server allows no prepared transactions")
        both = connection.begin_twophase()
        write(connection)
        after_commit(connection, acts.named("one"))
        if end.startswith("prepare"):
            both.prepare()
            assert acts == []
        if end.endswith("commit"):
            both.commit()
        else:
            both.rollback()
    assert acts == (["one"] if end.endswith("commit") else [])


# --- sessions -----------------------------------------------------------------------------------


@pytest.fixture
def make_session(watched: Engine) -> sessionmaker[Session]:
    return sessionmaker(watched)


def test_session_commit(make_session: sessionmaker[Session], acts: Acts) -> None:
    with make_session() as session:
        after_session_commit(session, acts.named("before the first statement"))
        session.add(Order(what="x"))
        session.commit()
        assert acts == ["before the first statement"]
        after_session_commit(session, acts.named("second"))
        session.commit()
        after_session_commit(session, acts.named("undone"))
        session.rollback()
        session.commit()
    assert acts == ["before the first statement", "second"]


def test_nested_transaction_of_a_session(make_session: sessionmaker[Session], acts: Acts) -> None:
    with make_session.begin() as session:
        with session.begin_nested():
            session.add(Order(what="x"))
            after_session_commit(session, acts.named("kept"))
        undone = session.begin_nested()
        after_session_commit(session, acts.named("undone"))
        undone.rollback()
        assert acts == []
    assert acts == ["kept"]


@pytest.mark.parametrize("commits", [True, False])
def test_joined_session_waits_for_the_outer_transaction(
    watched: Engine, acts: Acts, commits: bool
) -> None:
    with watched.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            session.add(Order(what="x"))
            after_session_commit(session, acts.named("one"))
            session.commit()
            after_session_commit(session, acts.named("undone"))
            session.rollback()
            after_session_commit(session, acts.named("two"))
            session.commit()
        assert acts == []
        if commits:
            outer.commit()
        else:
            outer.rollback()
    assert acts == (["one", "two"] if commits else [])


@pytest.mark.parametrize("status", [201, 500])
def test_in_an_atomic_view_it_waits_for_the_record(
    shop: Shop, engine: Engine, acts: Acts, status: int
) -> None:
    watch(engine)

    def view() -> Any:
        with shop.make_session() as session:
            session.add(Order(what="x"))
            after_session_commit(session, acts.named("one"))
            session.commit()
        assert acts == []
        return {}, status

    shop.add("/view", view)
    key = new_key()
    assert shop.post(key, "/view").status_code == status
    assert acts == (["one"] if status == 201 else [])
    shop.post(key, "/view")
    assert acts == (["one"] if status == 201 else [])


# --- a model ------------------------------------------------------------------------------------

MOVES = st.lists(
    st.sampled_from(["act", "act", "begin nested", "commit", "rollback", "commit all", "undo all"]),
    max_size=25,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(moves=MOVES)
def test_any_order_of_events_is_as_the_model_says(watched: Engine, moves: list[str]) -> None:
    done, expected = Acts(), list[str]()
    levels: list[list[str]] = [[]]
    with watched.connect() as connection:
        nested: list[Any] = []
        for number, move in enumerate(moves):
            if move == "act":
                after_commit(connection, done.named(str(number)))
                levels[-1].append(str(number))
            elif move == "begin nested":
                nested.append(connection.begin_nested())
                levels.append([])
            elif move in {"commit", "rollback"} and nested:
                getattr(nested.pop(), move)()
                top = levels.pop()
                levels[-1] += top if move == "commit" else []
            elif move == "commit all" and not nested and connection.in_transaction():
                connection.commit()
                expected += levels[0]
                levels = [[]]
            elif move == "undo all" and connection.in_transaction():
                connection.rollback()
                nested, levels = [], [[]]
            assert done == expected
    assert done == expected


def test_lost_answer_to_a_commit_runs_nothing(watched: Engine, acts: Acts) -> None:
    plain = watched.dialect.do_commit

    class Lost(Exception):
        pass

    with watched.connect() as connection:
        write(connection)
        after_commit(connection, acts.named("one"))
        driver = connection.connection.dbapi_connection
        assert driver is not None
        driver.close()
        with pytest.raises((DBAPIError, Lost)):
            connection.commit()
        connection.invalidate()
    assert watched.dialect.do_commit == plain
    assert acts == []


# --- savepoints ---------------------------------------------------------------------------------


def test_savepoints_are_sent_as_they_are(engine: Engine) -> None:
    shorten(engine)
    with engine.connect() as connection:
        write(connection)
        outer = connection.begin_nested()
        write(connection)
        inner = connection.begin_nested()
        write(connection)
        inner.rollback()
        outer.commit()
        connection.commit()
        assert connection.scalar(text("SELECT count(*) FROM orders")) == 2


def test_dialect_with_its_own_savepoints_keeps_them(engine: Engine) -> None:
    class Own(type(engine.dialect)):  # type: ignore[misc]
        def do_savepoint(self, connection: Connection, name: str) -> None:
            raise NotImplementedError

    engine.dialect.__class__ = Own
    shorten(engine)
    assert "do_savepoint" not in engine.dialect.__dict__
