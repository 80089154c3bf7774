"""The SQL store when connections break, locks are held, servers hang, and processes die."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")

from sqlalchemy import make_url

from demijohn.core.step import Decision, Step, StepKind
from demijohn.errors import StoreBusy, StoreError, StoreTimeout, StoreUnavailable
from demijohn.stores.breaker import CircuitBreaker, Guarded
from demijohn.stores.sql import SqlStore, database
from demijohn.stores.sql.run import key_of
from demijohn.testing.contract import BOB, begin, complete, forked, renew
from tests.processes import free_port, wait_until
from tests.sql_tools import (
    Proxy,
    beside,
    connections,
    counted,
    cut_off,
    hooked,
    in_transaction,
    is_postgres,
    opened,
    waits_for_lock,
)

GENEROUS_S = 10.0


@pytest.fixture(params=["postgres", "mariadb"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    store = opened(url)
    assert store.health().ok
    yield store
    store.close()


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    with Proxy(url) as proxy:
        yield proxy


@pytest.fixture
def keys() -> list[str]:
    """Two keys nobody has used, in the order in which they are locked."""
    return sorted((uuid.uuid4().hex, uuid.uuid4().hex), key=lambda key: key_of(key).digest)


@pytest.fixture
def key(keys: list[str]) -> str:
    return keys[0]


def row_of(key: str, url: str) -> str:
    """The condition that finds the row of ``key``."""
    digest = key_of(key).digest.hex()
    return f"id = '\\x{digest}'" if is_postgres(url) else f"id = X'{digest}'"


@contextmanager
def locked(url: str, key: str) -> Iterator[Callable[[str], object]]:
    """Hold the lock of the row of ``key``; gives what executes more in that transaction."""
    with beside(url) as holder:
        holder.exec_driver_sql("BEGIN")
        holder.exec_driver_sql(f"SELECT id FROM demijohn_rows WHERE {row_of(key, url)} FOR UPDATE")
        yield holder.exec_driver_sql
        holder.exec_driver_sql("ROLLBACK")


def timed(act: Callable[[], object]) -> tuple[float, StoreError]:
    started = time.monotonic()
    with pytest.raises(StoreError) as caught:
        act()
    return time.monotonic() - started, caught.value


def once(act: Callable[[], object], at: str) -> Callable[[str], None]:
    """Return a hook that acts before the first statement that begins with ``at``."""
    left = [True]

    def hook(statement: str) -> None:
        if left[0] and statement.startswith(at):
            left[0] = False
            act()

    return hook


# --- connections --------------------------------------------------------------------------------


def test_connection_cut_while_idle_is_not_noticed(store: SqlStore, url: str, key: str) -> None:
    store.run([begin(key)])
    assert cut_off(url) >= 1
    assert store.run([renew(key)])[0].status == "renewed"


def test_connection_cut_while_idle_is_not_noticed_by_a_run_that_locks(
    store: SqlStore, url: str, keys: list[str]
) -> None:
    store.run([begin(key) for key in keys])
    assert cut_off(url) >= 1
    assert store.run([renew(key) for key in keys])[1].status == "renewed"


def test_connection_cut_before_the_write_leaves_the_outcome_unknown(
    store: SqlStore, url: str, key: str
) -> None:
    with hooked(store, once(lambda: cut_off(url), "INSERT")), pytest.raises(StoreTimeout):
        store.run([begin(key)])
    assert store.run([begin(key, token=BOB)])[0].status == "run"


def test_connection_cut_within_a_transaction_has_written_nothing(
    store: SqlStore, url: str, keys: list[str]
) -> None:
    store.run([begin(key) for key in keys])
    cut = once(lambda: cut_off(url), "UPDATE" if is_postgres(url) else "INSERT")
    with hooked(store, cut), pytest.raises(StoreUnavailable) as caught:
        store.run([complete(key) for key in keys])
    assert not isinstance(caught.value, StoreTimeout)
    assert [one.status for one in store.run([renew(key) for key in keys])] == ["renewed"] * 2


@pytest.mark.parametrize("answered", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize("count", [1, 2])
def test_lost_answer_to_a_commit_is_told_as_unknown(
    proxy: Proxy, url: str, keys: list[str], count: int, answered: bool
) -> None:
    store = opened(proxy.url)
    chosen = keys[:count]
    store.run([begin(key) for key in chosen])
    commit = b"COMMIT\0" if is_postgres(url) else b"\x03COMMIT"
    proxy.cut_at = (b"UPDATE demijohn" if count == 1 else commit, answered)
    with pytest.raises(StoreTimeout, match="may have been done"):
        store.run([complete(key) for key in chosen])
    assert proxy.cuts == 1
    if not answered:
        wait_until(lambda: not in_transaction(url), "the server has undone it")
    expected = "replay" if answered else "busy"
    assert [store.run([begin(key, token=BOB)])[0].status for key in chosen] == [expected] * count
    store.close()


def test_store_closed_in_the_midst_of_a_run_leaves_no_connection(url: str, key: str) -> None:
    store = opened(url)
    within, closed = threading.Event(), threading.Event()

    def pause() -> None:
        within.set()
        assert closed.wait(GENEROUS_S)

    with hooked(store, once(pause, "INSERT")), ThreadPoolExecutor(1) as pool:
        running = pool.submit(store.run, [begin(key)])
        assert within.wait(GENEROUS_S)
        store.close()
        closed.set()
        assert running.result()[0].status == "run"
    wait_until(lambda: not connections(url), "no connection of the store is left")
    assert store.run([begin(key, token=BOB)])[0].status == "busy", "it can be used again"
    wait_until(lambda: not connections(url), "nor one of its later use")


def test_server_that_is_not_there_is_unavailable_at_once(url: str, key: str) -> None:
    nowhere = make_url(url).set(port=free_port()).render_as_string(hide_password=False)
    store = opened(nowhere)
    elapsed, error = timed(lambda: store.run([begin(key)]))
    assert isinstance(error, StoreUnavailable)
    assert "cannot be reached" in str(error)
    assert elapsed < GENEROUS_S
    assert not store.health().ok
    store.close()


def test_wrong_password_is_told_and_not_repeated(url: str, key: str) -> None:
    wrong = make_url(url).set(username="nobody", password="s3cret")
    store = opened(wrong.render_as_string(hide_password=False))
    _, error = timed(lambda: store.run([begin(key)]))
    assert isinstance(error, StoreUnavailable)
    assert "nobody" in str(error)
    assert "s3cret" not in str(error)
    store.close()


def test_all_connections_in_use_is_told(url: str, key: str) -> None:
    store = opened(url, max_connections=1, timeout=0.3)
    store.health()
    with store.database.engine.connect():
        elapsed, error = timed(lambda: store.run([begin(key)]))
    assert isinstance(error, StoreBusy)
    assert "max_connections" in str(error)
    assert elapsed < GENEROUS_S
    store.close()


# --- servers that hang --------------------------------------------------------------------------


def test_hung_server_costs_the_deadline_and_is_found_again(proxy: Proxy, key: str) -> None:
    store = opened(proxy.url, timeout=2, connect_timeout=2)
    store.run([begin(key)])
    proxy.silent.set()
    elapsed, error = timed(lambda: store.run([renew(key)]))
    assert isinstance(error, StoreUnavailable)
    assert not isinstance(error, StoreTimeout)
    assert elapsed < GENEROUS_S
    # Now there is no connection: to make one is bounded as well.
    elapsed, error = timed(lambda: store.run([renew(key)]))
    assert isinstance(error, StoreUnavailable)
    assert elapsed < GENEROUS_S
    proxy.silent.clear()
    assert store.run([renew(key)])[0].status == "renewed"
    store.close()


def test_server_that_hangs_over_a_write_leaves_the_outcome_unknown(proxy: Proxy, key: str) -> None:
    store = opened(proxy.url, timeout=2)
    store.health()
    with hooked(store, once(proxy.silent.set, "INSERT")):
        elapsed, error = timed(lambda: store.run([begin(key)]))
    assert isinstance(error, StoreTimeout)
    assert elapsed < GENEROUS_S
    proxy.silent.clear()
    assert store.run([begin(key)])[0].status == "run"
    store.close()


def test_transaction_that_hangs_is_given_up_with_its_connection(
    proxy: Proxy, keys: list[str]
) -> None:
    store = opened(proxy.url, timeout=2)
    store.run([begin(key) for key in keys])
    with hooked(store, once(proxy.silent.set, "COMMIT")):
        elapsed, error = timed(lambda: store.run([renew(key) for key in keys]))
    assert isinstance(error, StoreTimeout)
    assert elapsed < GENEROUS_S
    proxy.silent.clear()
    assert [each.status for each in store.run([renew(key) for key in keys])] == ["renewed"] * 2
    store.close()


def test_deadline_that_passes_between_statements_writes_nothing(
    url: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(url, timeout=5)
    store.run([begin(key)])
    real = time.monotonic

    def jump() -> None:
        monkeypatch.setattr(database.time, "monotonic", lambda: real() + 60)

    with hooked(store, once(jump, "SELECT")), pytest.raises(StoreUnavailable, match="deadline"):
        store.run([complete(key)])
    monkeypatch.undo()
    assert store.run([renew(key)])[0].status == "renewed"
    store.close()


# --- locks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_lock_that_is_held_too_long_is_told_and_does_not_open_the_circuit(
    url: str, keys: list[str], count: int
) -> None:
    store = opened(url, timeout=2)
    store.run([begin(key) for key in keys])
    guarded = Guarded(store, CircuitBreaker(store.address.options.breaker), name="sql")
    with locked(url, keys[0]):
        elapsed, error = timed(lambda: guarded.run([renew(key) for key in keys[:count]]))
    assert isinstance(error, StoreBusy)
    assert elapsed < GENEROUS_S
    assert guarded.breaker.failures == 0
    assert guarded.run([renew(keys[0])])[0].status == "renewed"
    guarded.close()


def test_statement_that_takes_too_long_is_ended_by_the_server(url: str, key: str) -> None:
    store = opened(url, timeout=1)
    store.health()
    sleep = "SELECT pg_sleep(30)" if is_postgres(url) else "SELECT SLEEP(30) FROM demijohn_rows"
    store.run([begin(key)])
    elapsed, error = timed(lambda: store.database.run(lambda session: session.rows((sleep, ()))))
    assert isinstance(error, StoreUnavailable)
    assert elapsed < GENEROUS_S
    store.close()


def test_read_does_not_wait_for_a_lock(store: SqlStore, url: str, key: str) -> None:
    store.run([begin(key), complete(key)])
    with locked(url, key):
        assert store.run([begin(key, token=BOB)])[0].status == "replay"


def deadlocked(store: SqlStore, url: str, keys: list[str]) -> list[str]:
    """Have a run over ``keys`` meet who takes the same locks in the wrong order."""
    with ThreadPoolExecutor(1) as pool:
        with locked(url, keys[1]) as execute:
            # MariaDB undoes whoever has changed less, PostgreSQL whoever has waited for longer.
            for _ in range(20 * (not is_postgres(url))):
                execute(
                    "INSERT INTO demijohn_rows (id, name, version, expires, data)"
                    f" VALUES (UNHEX('{uuid.uuid4().hex * 2}'), '', 0, 0, '')"
                )
            run = pool.submit(store.run, [renew(key) for key in keys])
            wait_until(lambda: waits_for_lock(url), "the run waits for the second lock")
            execute(f"SELECT id FROM demijohn_rows WHERE {row_of(keys[0], url)} FOR UPDATE")
        return [each.status for each in run.result()]


def test_deadlock_is_run_again(store: SqlStore, url: str, keys: list[str]) -> None:
    store.run([begin(key) for key in keys])
    with counted(store) as seen:
        assert deadlocked(store, url, keys) == ["renewed"] * 2
    assert seen.count("BEGIN") >= 2


def test_deadlocks_without_end_are_told(
    store: SqlStore, url: str, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "MOST_TRIES", 1)
    store.run([begin(key) for key in keys])
    with pytest.raises(StoreBusy, match="undid the transaction"):
        deadlocked(store, url, keys)
    assert store.run([renew(key) for key in keys])[1].status == "renewed"


# --- servers that refuse ------------------------------------------------------------------------


def test_server_that_only_reads_is_unavailable(url: str, keys: list[str]) -> None:
    store = opened(url)
    store.run([begin(keys[0]), complete(keys[0])])
    read_only = (
        "SET default_transaction_read_only = on"
        if is_postgres(url)
        else "SET SESSION TRANSACTION READ ONLY"
    )
    with store.database.engine.connect() as connection:
        connection.exec_driver_sql(read_only)
    with pytest.raises(StoreUnavailable, match=r"(?i)read.only"):
        store.run([begin(keys[1])])
    assert store.run([begin(keys[0], token=BOB)])[0].status == "replay"
    store.close()


def test_server_that_is_not_a_mariadb_is_told(mariadb_url: str, key: str) -> None:
    store = opened(mariadb_url)
    dialect: Any = store.database.engine.dialect
    # What a MySQL server says of itself.
    dialect._get_server_version_info = lambda _: dialect._parse_server_version("8.0.36")
    with pytest.raises(StoreError, match="not a MariaDB variant"):
        store.run([begin(key)])
    store.close()


# --- processes ----------------------------------------------------------------------------------


def test_process_killed_inside_of_a_run_has_written_nothing_and_holds_no_lock(
    store: SqlStore, url: str, keys: list[str]
) -> None:
    store.run([begin(key) for key in keys])

    def die() -> None:
        with hooked(store, once(lambda: os.kill(os.getpid(), signal.SIGKILL), "COMMIT")):
            store.run([complete(key) for key in keys])

    child = forked(die)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [each.status for each in store.run([renew(key) for key in keys])] == ["renewed"] * 2


def test_process_stopped_inside_of_a_run_does_not_keep_its_locks(url: str, keys: list[str]) -> None:
    store = opened(url, timeout=2)
    patient = opened(url)
    store.run([begin(key) for key in keys])

    def stop() -> None:
        with hooked(store, once(lambda: os.kill(os.getpid(), signal.SIGSTOP), "COMMIT")):
            store.run([complete(key) for key in keys])

    child = forked(stop)
    os.waitpid(child, os.WUNTRACED)
    assert [each.status for each in patient.run([renew(key) for key in keys])] == ["renewed"] * 2
    os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert [each.status for each in patient.run([renew(key) for key in keys])] == ["renewed"] * 2
    store.close()
    patient.close()


class Interrupted(BaseException):
    """As a signal's handler may raise it."""


def test_interrupted_run_leaves_nothing_behind(store: SqlStore, key: str) -> None:
    def interrupt() -> None:
        raise Interrupted

    with hooked(store, once(interrupt, "INSERT")), pytest.raises(Interrupted):
        store.run([begin(key)])
    assert store.run([begin(key)])[0].status == "run"


def test_call_interrupted_before_its_answer_closes_the_connection(
    postgres_url: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from demijohn.stores.sql import wire

    def interrupted(gen: Generator[int, int, None], *_: object) -> None:
        next(gen)
        raise Interrupted

    store = opened(postgres_url)
    store.run([begin(key)])
    with monkeypatch.context() as patch:
        patch.setattr(wire, "_drive", interrupted)
        with pytest.raises(Interrupted):
            store.run([renew(key)])
    assert store.run([renew(key)])[0].status == "renewed"
    store.close()


def test_mistake_of_a_step_on_a_connection_that_broke_is_told_as_it_is(
    store: SqlStore, url: str, keys: list[str]
) -> None:
    def decide(rows: object, now_ms: int) -> Decision:
        cut_off(url)
        raise LookupError("a mistake")

    with pytest.raises(LookupError, match="a mistake"):
        store.run([Step(StepKind("test.mistake", decide, ""), tuple(keys), ())])
    assert store.run([begin(keys[0])])[0].status == "run"


def test_transaction_that_is_left_open_ends_with_the_use_of_its_connection(
    store: SqlStore, url: str, key: str
) -> None:
    store.run([begin(key)])
    with store.database.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql(f"DELETE FROM demijohn_rows WHERE {row_of(key, url)}")
    assert store.run([renew(key)])[0].status == "renewed"


def test_fork_while_connections_are_in_use_leaves_them_to_the_parent(
    store: SqlStore, key: str
) -> None:
    store.run([begin(key)])
    entered, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        entered.set()
        assert go_on.wait(20)

    with hooked(store, once(pause, "UPDATE")), ThreadPoolExecutor(1) as pool:
        running = pool.submit(store.run, [complete(key)])
        assert entered.wait(20)
        child = forked(lambda: _is_busy(store, key))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        go_on.set()
        assert running.result()[0].status == "completed"


def _is_busy(store: SqlStore, key: str) -> None:
    assert store.run([begin(key, token=BOB)])[0].status == "busy"
