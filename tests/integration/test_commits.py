"""Work that waits for a commit is done if its rows are there, whatever has become of them.

The judge is the database: each act has a row of its own, written just before it was registered.
"""

from __future__ import annotations

import gc
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import (
    DBAPIError,
    InvalidRequestError,
    OperationalError,
    SQLAlchemyError,
    UnboundExecutionError,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session
from sqlalchemy.orm import sessionmaker as make_sessionmaker
from sqlalchemy.pool import NullPool

from demijohn.errors import UsageError
from demijohn.records import after_commit, after_session_commit, real_transactions, watch


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "commit_rows"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Ledger:
    """Rows, the acts that belong to them, and which of either are there."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.done: list[int] = []
        self.last = 0

    def write(self, connection: Connection) -> int:
        """Write the next row, and have its act wait for the commit."""
        self.last += 1
        number = self.last
        connection.execute(text("INSERT INTO commit_rows VALUES (:id)"), {"id": number})
        after_commit(connection, lambda: self.done.append(number))
        return number

    def add(self, session: Session) -> None:
        """Do the same in a session."""
        self.last += 1
        number = self.last
        session.add(Row(id=number))
        session.flush()
        after_session_commit(session, lambda: self.done.append(number))

    def fail(self, connection: Connection) -> None:
        """Have a statement fail, in whichever way hurts most, and go on as if it had not."""
        worse = " OR ROLLBACK" if self.engine.dialect.name == "sqlite" else ""
        with pytest.raises(DBAPIError):
            connection.execute(text(f"INSERT{worse} INTO commit_rows VALUES (-1)"))

    def rows(self) -> list[int]:
        with self.engine.connect() as connection:
            query = text("SELECT id FROM commit_rows WHERE id > 0 ORDER BY id")
            return list(connection.scalars(query))

    def clear(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("DELETE FROM commit_rows"))
            connection.execute(text("INSERT INTO commit_rows VALUES (-1), (-2)"))
        self.done.clear()

    def check(self, *expected: int) -> None:
        assert (self.done, self.rows()) == (list(expected), list(expected))


@contextmanager
def open_engine(url: str, **options: Any) -> Iterator[Engine]:
    engine = real_transactions(create_engine(url, **options))
    if engine.dialect.name == "mariadb":
        event.listen(engine, "connect", _lose_patience)
    watch(engine)
    try:
        yield engine
    finally:
        engine.dispose()


def _lose_patience(driver: Any, _record: object) -> None:
    with driver.cursor() as cursor:
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 5")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with open_engine(database_url) as engine:
        Base.metadata.drop_all(engine)
        Base.metadata.create_all(engine)
        yield engine
        Base.metadata.drop_all(engine)


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    ledger = Ledger(engine)
    ledger.clear()
    return ledger


def only(engine: Engine, *names: str) -> None:
    if engine.dialect.name not in names:
        pytest.skip(f"of {' and '.join(names)} only")


# --- what the database undoes of its own accord -------------------------------------------------
def test_commit_after_an_error_that_was_swallowed(engine: Engine, ledger: Ledger) -> None:
    with engine.connect() as connection:
        ledger.write(connection)
        ledger.fail(connection)
        connection.commit()  # no error: PostgreSQL and SQLite have nothing to commit
        ledger.check(*([1] if engine.dialect.name == "mariadb" else []))
        last = ledger.write(connection)
        connection.commit()
    assert ledger.done == ledger.rows()
    assert last in ledger.done


def test_error_in_a_savepoint_that_is_rolled_back_undoes_no_more(
    engine: Engine, ledger: Ledger
) -> None:
    only(engine, "postgresql", "mariadb")
    with engine.connect() as connection:
        ledger.write(connection)
        with suppress(DBAPIError), connection.begin_nested():
            ledger.write(connection)
            connection.execute(text("INSERT INTO commit_rows VALUES (-1)"))
        ledger.write(connection)
        connection.commit()
    ledger.check(1, 3)


def test_error_that_only_reads_undoes_nothing_on_sqlite(engine: Engine, ledger: Ledger) -> None:
    only(engine, "sqlite")
    with engine.connect() as connection:
        ledger.write(connection)
        with pytest.raises(OperationalError):
            connection.execute(text("SELECT * FROM nothing"))
        connection.commit()
    ledger.check(1)


def test_error_before_anything_is_registered(engine: Engine, ledger: Ledger) -> None:
    with engine.connect() as connection:
        ledger.fail(connection)
        connection.rollback()
        ledger.write(connection)
        connection.commit()
    ledger.check(1)


class Rival:
    """Another transaction, with which a deadlock is had and lost."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._locked, self._go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._engine.connect() as connection:
            # InnoDB undoes whoever has written less.
            connection.execute(text("INSERT INTO commit_rows VALUES (-3), (-4), (-5), (-6)"))
            connection.execute(text("SELECT * FROM commit_rows WHERE id = -2 FOR UPDATE"))
            self._locked.set()
            self._go.wait(10)
            connection.execute(text("SELECT * FROM commit_rows WHERE id = -1 FOR UPDATE"))

    def collide(self, connection: Connection) -> None:
        self._thread.start()
        assert self._locked.wait(10)
        connection.execute(text("SELECT * FROM commit_rows WHERE id = -1 FOR UPDATE"))
        self._go.set()
        with pytest.raises(OperationalError, match="1213"):
            connection.execute(text("SELECT * FROM commit_rows WHERE id = -2 FOR UPDATE"))
        self._thread.join(10)


def test_lost_deadlock_that_was_swallowed(engine: Engine, ledger: Ledger) -> None:
    only(engine, "mariadb")
    with engine.connect() as connection:
        ledger.write(connection)
        Rival(engine).collide(connection)
        ledger.write(connection)
        connection.commit()
    ledger.check(2)


def test_savepoint_that_a_deadlock_has_taken_away(engine: Engine, ledger: Ledger) -> None:
    only(engine, "mariadb")
    with engine.connect() as connection:
        ledger.write(connection)
        nested = connection.begin_nested()
        Rival(engine).collide(connection)
        ledger.write(connection)
        with pytest.raises(OperationalError, match="1305"):  # there is no such savepoint
            nested.rollback()
        connection.rollback()
    ledger.check()


# --- commits that fail --------------------------------------------------------------------------
def test_connection_that_is_lost_before_the_commit(engine: Engine, ledger: Ledger) -> None:
    only(engine, "postgresql", "mariadb")
    postgres = engine.dialect.name == "postgresql"
    ask = "SELECT pg_backend_pid()" if postgres else "SELECT connection_id()"
    end = "SELECT pg_terminate_backend({})" if postgres else "KILL {}"
    with engine.connect() as connection, engine.connect() as other:
        ledger.write(connection)
        other.execute(text(end.format(connection.scalar(text(ask)))))
        with pytest.raises(DBAPIError):
            connection.commit()
        connection.rollback()
        ledger.write(connection)
        connection.commit()
    ledger.check(2)


def test_lost_answer_to_a_commit_runs_nothing_though_the_rows_are_there(
    engine: Engine, ledger: Ledger
) -> None:
    with open_engine(str(engine.url.render_as_string(hide_password=False))) as other:
        with other.connect() as connection:
            ledger.write(connection)
            real = connection.connection.dbapi_connection

            class Deaf:
                """Its COMMIT arrives, and no answer comes back."""

                def __getattr__(self, name: str) -> Any:
                    return getattr(real, name)

                def commit(self) -> None:
                    assert real is not None
                    real.commit()
                    raise OSError("nobody answers")

            connection.connection.dbapi_connection = Deaf()  # type: ignore[assignment,misc]
            try:
                with pytest.raises(OSError, match="nobody"):
                    connection.commit()
            finally:
                connection.connection.dbapi_connection = real  # type: ignore[misc]
        assert (ledger.done, ledger.rows()) == ([], [1])


def test_deferred_constraint_that_fails_the_commit(engine: Engine, ledger: Ledger) -> None:
    only(engine, "postgresql", "sqlite")
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE commit_children (parent integer"
                " REFERENCES commit_rows (id) DEFERRABLE INITIALLY DEFERRED)"
            )
        )
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.connection.dbapi_connection.execute(  # type: ignore[union-attr]
                    "PRAGMA foreign_keys = ON"
                )
            ledger.write(connection)
            connection.execute(text("INSERT INTO commit_children VALUES (99)"))
            with pytest.raises(DBAPIError):
                connection.commit()
            # SQLAlchemy sends no ROLLBACK then, and SQLite's transaction would go back to the pool.
            connection.connection.rollback()
        with engine.begin() as connection:
            ledger.write(connection)
        ledger.check(2)
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE commit_children"))


# --- acts that misbehave ------------------------------------------------------------------------
class Ends(BaseException):
    """As SystemExit, and timeouts of gevent."""


def test_what_ends_the_thread_passes_when_the_others_have_run(
    engine: Engine, ledger: Ledger
) -> None:
    def end() -> None:
        raise Ends

    with engine.connect() as connection:
        after_commit(connection, end)
        ledger.write(connection)
        ledger.write(connection)
        with pytest.raises(Ends):
            connection.commit()
    ledger.check(1, 2)


class Broken(logging.Handler):
    def handle(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("the disk with the log is full")


def test_log_that_fails_too_does_not_reach_the_commit(engine: Engine, ledger: Ledger) -> None:
    handler, log = Broken(), logging.getLogger("demijohn.records")
    log.addHandler(handler)
    try:
        with engine.begin() as connection:
            after_commit(connection, lambda: 1 / 0)
            ledger.write(connection)
    finally:
        log.removeHandler(handler)
    ledger.check(1)


def test_act_that_wants_a_connection_of_a_pool_of_one_is_logged(
    engine: Engine, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    url = engine.url.render_as_string(hide_password=False)
    with open_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.1) as narrow:
        with narrow.begin() as connection:
            after_commit(connection, lambda: narrow.connect().close())
            ledger.write(connection)
        assert "QueuePool limit" in caplog.text
        with narrow.begin() as connection:  # it was given back all the same
            ledger.write(connection)
    ledger.check(1, 2)


def test_act_may_write_by_another_connection(engine: Engine, ledger: Ledger) -> None:
    def write() -> None:
        with engine.begin() as other:
            ledger.write(other)

    with engine.begin() as connection:
        ledger.write(connection)
        after_commit(connection, write)
    ledger.check(1, 2)


def test_act_of_a_session_that_uses_the_session_is_logged(
    engine: Engine, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    with Session(engine) as session:
        after_session_commit(session, lambda: ledger.add(session))
        session.commit()
    assert "the commit stands" in caplog.text
    ledger.check()


# --- where transactions begin and connections go ------------------------------------------------
def test_registering_begins_a_transaction_as_a_statement_does(
    engine: Engine, ledger: Ledger
) -> None:
    with engine.connect() as connection:
        after_commit(connection, lambda: ledger.done.append(0))
        assert connection.in_transaction()
        connection.commit()
        assert ledger.done == [0]
        after_commit(connection, lambda: ledger.done.append(1))
        connection.rollback()
        ledger.done.clear()
        ledger.write(connection)
        connection.commit()
    ledger.check(1)


def test_transaction_that_has_ended_in_its_block_takes_nothing_more(
    engine: Engine, ledger: Ledger
) -> None:
    with engine.connect() as connection, connection.begin() as transaction:
        transaction.commit()
        with pytest.raises(InvalidRequestError):
            after_commit(connection, lambda: ledger.done.append(0))
    ledger.check()


@pytest.mark.parametrize("engine_wide", [True, False])
def test_autocommit_runs_at_once(engine: Engine, ledger: Ledger, engine_wide: bool) -> None:
    url = engine.url.render_as_string(hide_password=False)
    with ExitStack() as stack:
        if engine_wide:
            each = create_engine(url, isolation_level="AUTOCOMMIT")
            watch(each)
            stack.callback(each.dispose)
        else:
            each = engine.execution_options(isolation_level="AUTOCOMMIT")
        with each.connect() as connection:
            after_commit(connection, lambda: ledger.done.append(0))
            assert ledger.done == [0]


def test_engine_that_is_not_watched_names_the_cure(engine: Engine) -> None:
    other = create_engine(engine.url)
    with other.connect() as connection, pytest.raises(UsageError, match=r"watch\(engine\)"):
        after_commit(connection, print)
    other.dispose()


@pytest.mark.parametrize("commits", [True, False])
def test_detached_connection(engine: Engine, ledger: Ledger, commits: bool) -> None:
    with engine.connect() as connection:
        ledger.write(connection)
        connection.detach()
        with engine.begin() as other:  # on what has taken its place in the pool
            other.execute(text("SELECT 1"))
        ledger.done.append(-1)
        connection.commit() if commits else connection.rollback()
    assert ledger.done == ([-1, 1] if commits else [-1])
    assert ledger.rows() == ([1] if commits else [])


def test_pool_that_is_disposed_of_in_the_middle(engine: Engine, ledger: Ledger) -> None:
    with engine.connect() as connection:
        ledger.write(connection)
        before = engine.pool
        engine.dispose()
        watch(engine)
        connection.commit()
    before.dispose()
    with engine.begin() as connection:
        ledger.write(connection)
    ledger.check(1, 2)


def test_connection_that_is_invalidated(engine: Engine, ledger: Ledger) -> None:
    with engine.connect() as connection:
        ledger.write(connection)
        connection.invalidate()
        with pytest.raises(SQLAlchemyError):
            ledger.write(connection)
        connection.rollback()
        ledger.write(connection)
        connection.commit()
    ledger.check(3)


@pytest.mark.parametrize("reset", ["rollback", None])
def test_connection_that_nobody_closes_leaves_nothing_behind(
    engine: Engine, ledger: Ledger, reset: Any
) -> None:
    url = engine.url.render_as_string(hide_password=False)
    with open_engine(url, pool_reset_on_return=reset, pool_size=1, max_overflow=0) as other:
        connection = other.connect()
        driver = connection.connection.dbapi_connection
        after_commit(connection, lambda: ledger.done.append(0))
        assert driver is not None
        driver.rollback()
        del connection
        gc.collect()
        with other.begin() as connection:
            assert connection.connection.dbapi_connection is driver
            ledger.write(connection)
    ledger.check(1)


def test_engines_may_share_a_dialect(engine: Engine, ledger: Ledger) -> None:
    other = Engine(engine.pool.recreate(), engine.dialect, engine.url)
    watch(other)
    assert event.contains(other.pool, "checkin", after_commit.__globals__["_forget"])
    with other.begin() as connection:
        ledger.write(connection)
    with engine.begin() as connection:
        ledger.write(connection)
    other.dispose()
    ledger.check(1, 2)


def test_options_make_no_engine_of_their_own(engine: Engine, ledger: Ledger) -> None:
    other = engine.execution_options(isolation_level="SERIALIZABLE")
    watch(other)
    with other.begin() as connection:
        ledger.write(connection)
    ledger.check(1)


def test_driver_connection_may_be_committed_by_the_dialect(engine: Engine) -> None:
    raw = engine.raw_connection()
    assert raw.dbapi_connection is not None
    engine.dialect.do_commit(raw.dbapi_connection)  # type: ignore[arg-type]
    raw.close()


def test_database_that_is_not_there_is_its_own_error(engine: Engine) -> None:
    away = engine.url.set(host="127.0.0.1", port=1)
    if engine.dialect.name == "sqlite":
        away = engine.url.set(database="/nowhere/at/all.db")
    url = away.render_as_string(hide_password=False)
    with open_engine(url) as other, pytest.raises(OperationalError):
        other.connect()


def test_threads_run_their_own_acts(engine: Engine, ledger: Ledger) -> None:
    wrong: list[int] = []

    def work(thread: int) -> None:
        for turn in range(20):
            watch(engine)
            with engine.connect() as connection:
                own: list[int] = []
                after_commit(connection, lambda own=own: own.append(threading.get_ident()))
                connection.commit() if turn % 2 else connection.rollback()
                if own != ([threading.get_ident()] if turn % 2 else []):
                    wrong.append(thread)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


# --- SQLite without BEGIN, and in memory --------------------------------------------------------
@pytest.mark.parametrize("commits", [True, False])
def test_sqlite_as_python_ships_it(engine: Engine, ledger: Ledger, commits: bool) -> None:
    only(engine, "sqlite")
    legacy = create_engine(engine.url)
    watch(legacy)
    with legacy.connect() as connection:
        ledger.write(connection)
        with pytest.raises(OperationalError):
            connection.execute(text("SELECT * FROM nothing"))
        ledger.write(connection)
        connection.commit() if commits else connection.rollback()
    legacy.dispose()
    ledger.check(*([1, 2] if commits else []))


def test_read_that_fails_where_nothing_was_begun_drops_nothing() -> None:
    legacy, done = create_engine("sqlite://"), list[int]()
    watch(legacy)
    with legacy.connect() as connection:
        after_commit(connection, lambda: done.append(1))
        with pytest.raises(OperationalError):
            connection.execute(text("SELECT * FROM nothing"))
        connection.commit()
    legacy.dispose()
    assert done == [1]


def test_sqlite_in_memory_where_a_thread_has_one_connection() -> None:
    with open_engine("sqlite://") as engine:
        Base.metadata.create_all(engine)
        ledger = Ledger(engine)

        def write() -> None:
            with engine.begin() as other:
                ledger.write(other)

        with engine.connect() as connection:
            ledger.write(connection)
            after_commit(connection, write)
            connection.commit()
            ledger.check(1, 2)


# --- savepoints ---------------------------------------------------------------------------------
@pytest.mark.parametrize("undone", [None, 0, 1, 2])
def test_three_savepoints_deep(engine: Engine, ledger: Ledger, undone: int | None) -> None:
    with engine.connect() as connection:
        ledger.write(connection)
        nested = []
        for _ in range(3):
            nested.append(connection.begin_nested())
            ledger.write(connection)
        for level in (2, 1, 0):
            nested[level].rollback() if level == undone else nested[level].commit()
        connection.commit()
    ledger.check(*range(1, 5 if undone is None else undone + 2))


@pytest.mark.parametrize("registers", [True, False])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_savepoint_that_is_older_than_the_watch(
    engine: Engine, ledger: Ledger, end: str, registers: bool
) -> None:
    late = real_transactions(create_engine(engine.url))
    with late.connect() as connection:
        nested = connection.begin_nested()
        watch(late)
        if registers:
            ledger.write(connection)
        getattr(nested, end)()
        connection.commit()
    late.dispose()
    ledger.check(*([1] if registers and end == "commit" else []))


# --- sessions -----------------------------------------------------------------------------------
@pytest.mark.parametrize("outer_commits", [True, False])
@pytest.mark.parametrize(
    "mode", ["create_savepoint", "conditional_savepoint", "control_fully", "rollback_only"]
)
@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_session_that_has_joined_a_transaction(
    engine: Engine, ledger: Ledger, mode: Any, end: str, outer_commits: bool
) -> None:
    with engine.connect() as connection:
        outer = connection.begin()
        ledger.write(connection)
        with Session(connection, join_transaction_mode=mode) as session:
            ledger.add(session)
            with session.begin_nested():
                ledger.add(session)
            getattr(session, end)()
            if end == "commit" and mode != "control_fully":
                assert ledger.done == []
        if outer.is_active:
            outer.commit() if outer_commits else outer.rollback()
    assert ledger.done == ledger.rows()


def test_failed_flush_of_a_session(engine: Engine, ledger: Ledger) -> None:
    with Session(engine) as session:
        ledger.add(session)
        session.add(Row(id=-1))
        with pytest.raises(DBAPIError):
            session.commit()
        with suppress(SQLAlchemyError):  # 2.1 has rolled back already where 2.0 asks to be told
            after_session_commit(session, lambda: ledger.done.append(0))
        session.rollback()
        ledger.add(session)
        session.commit()
        session.commit()
    ledger.check(2)


def test_scoped_session(engine: Engine, ledger: Ledger) -> None:
    scoped = scoped_session(make_sessionmaker(engine))
    after_session_commit(scoped, lambda: ledger.done.append(1))
    scoped.add(Row(id=1))
    scoped.commit()
    scoped.remove()
    ledger.check(1)


def test_session_with_several_databases_must_be_told_which(engine: Engine, ledger: Ledger) -> None:
    with Session(binds={Row: engine}) as session:
        with pytest.raises(UnboundExecutionError):
            after_session_commit(session, lambda: ledger.done.append(0))
        session.add(Row(id=1))
        after_session_commit(session, lambda: ledger.done.append(1), bind_arguments={"mapper": Row})
        session.commit()
    ledger.check(1)


# --- any order of events ------------------------------------------------------------------------
MOVES = ["write", "write", "write", "nest", "nest", "release", "undo", "commit", "rollback", "fail"]


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")  # some orders make no sense
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(moves=st.lists(st.sampled_from([*MOVES, "new"]), max_size=30))
def test_acts_and_rows_are_the_same_on_connections(
    engine: Engine, ledger: Ledger, moves: list[str]
) -> None:
    ledger.clear()
    connection, nested = engine.connect(), list[Any]()
    for move in moves:
        with suppress(SQLAlchemyError):  # on PostgreSQL one error brings others
            if move == "write":
                ledger.write(connection)
            elif move == "fail" and engine.dialect.name != "sqlite":
                ledger.fail(connection)
            elif move == "nest":
                nested.append(connection.begin_nested())
            elif move in {"release", "undo"} and nested:
                level = nested.pop()
                level.commit() if move == "release" else level.rollback()
            elif move in {"commit", "rollback"}:
                nested.clear()
                getattr(connection, move)()
            elif move == "new":
                nested.clear()
                connection.close()
                connection = engine.connect()
    connection.close()
    assert ledger.done == ledger.rows()


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")  # some orders make no sense
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    moves=st.lists(st.sampled_from([*MOVES, "new"]), max_size=25),
    mode=st.sampled_from([None, "create_savepoint", "rollback_only", "control_fully"]),
    outer=st.sampled_from(["commit", "rollback"]),
)
def test_acts_and_rows_are_the_same_in_sessions(
    engine: Engine, ledger: Ledger, moves: list[str], mode: Any, outer: str
) -> None:
    ledger.clear()
    with engine.connect() as connection, ExitStack() as stack:
        transaction = connection.begin()
        options = {"bind": connection, "join_transaction_mode": mode} if mode else {"bind": engine}
        if mode is None:
            transaction.rollback()
        session, nested = stack.enter_context(Session(**options)), list[Any]()
        for move in moves:
            with suppress(SQLAlchemyError):
                if move == "write":
                    ledger.add(session)
                elif move == "fail":
                    session.add(Row(id=-1))
                    session.flush()
                elif move == "nest":
                    nested.append(session.begin_nested())
                elif move in {"release", "undo"} and nested:
                    level = nested.pop()
                    level.commit() if move == "release" else level.rollback()
                elif move in {"commit", "rollback"}:
                    nested.clear()
                    getattr(session, move)()
                elif move == "new":
                    nested.clear()
                    session.close()
        session.close()
        if transaction.is_active:
            getattr(transaction, outer)()
    assert ledger.done == ledger.rows()


# --- two phases ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def preparing_postgres() -> Iterator[str]:
    """A PostgreSQL that prepares transactions: as it comes, it refuses to."""
    server = pytest.importorskip("pgserver", reason="no PostgreSQL that prepares transactions")
    folder = tempfile.mkdtemp(prefix="demijohn-preparing-")
    try:
        with server.get_server(folder) as first:
            first.psql("ALTER SYSTEM SET max_prepared_transactions = 10")
        with server.get_server(folder) as second:
            url = make_url(second.get_uri()).set(drivername="postgresql+psycopg")
            yield url.render_as_string(hide_password=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["postgres", "mariadb"])
def preparing(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    name = "preparing_postgres" if request.param == "postgres" else "mariadb_url"
    with open_engine(request.getfixturevalue(name)) as engine:
        Base.metadata.drop_all(engine)
        Base.metadata.create_all(engine)
        ledger = Ledger(engine)
        ledger.clear()
        yield ledger
        Base.metadata.drop_all(engine)


@pytest.mark.parametrize("prepares", [True, False])
@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_two_phases(preparing: Ledger, prepares: bool, end: str) -> None:
    with preparing.engine.connect() as connection:
        both = connection.begin_twophase()
        preparing.write(connection)
        if prepares:
            both.prepare()
            assert preparing.done == []
        getattr(both, end)()
    preparing.check(*([1] if end == "commit" else []))
    with preparing.engine.begin() as connection:
        preparing.write(connection)
    assert preparing.done == preparing.rows()


def test_two_phases_leave_nothing_to_the_next_transaction(preparing: Ledger) -> None:
    with preparing.engine.connect() as connection:
        both = connection.begin_twophase()
        preparing.write(connection)
        both.rollback()
        preparing.write(connection)
        connection.commit()
    preparing.check(2)


def test_two_phases_after_an_error_that_was_swallowed(preparing: Ledger) -> None:
    with preparing.engine.connect() as connection:
        both = connection.begin_twophase()
        preparing.write(connection)
        preparing.fail(connection)
        both.commit()
    assert preparing.done == preparing.rows()


def test_session_in_two_phases(preparing: Ledger) -> None:
    with Session(preparing.engine, twophase=True) as session:
        preparing.add(session)
        with session.begin_nested():
            preparing.add(session)
        session.commit()
        preparing.add(session)
        session.rollback()
    preparing.check(1, 2)


def test_what_another_has_prepared_runs_no_acts_of_ones_own(preparing_postgres: str) -> None:
    with open_engine(preparing_postgres, poolclass=NullPool) as engine:
        Base.metadata.drop_all(engine)
        Base.metadata.create_all(engine)
        ledger = Ledger(engine)
        with engine.connect() as connection:
            both = connection.begin_twophase()
            ledger.write(connection)
            both.prepare()
            connection.invalidate()  # the process that was to commit it is gone
            connection.close()
        with engine.connect() as other:
            ledger.write(other)  # which recovering undoes
            other.commit_prepared(both.xid, recover=True)
            assert ledger.done == []
            other.rollback()
        assert (ledger.done, ledger.rows()) == ([], [1])
        Base.metadata.drop_all(engine)
