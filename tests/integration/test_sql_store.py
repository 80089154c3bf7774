"""The SQL store: what it sends, how it meets others, its table."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")

from sqlalchemy import make_url

from demijohn.core.step import Decision, Outcome, Step, StepKind, Wake
from demijohn.errors import StoreError
from demijohn.stores.sql import SqlStore, schema
from demijohn.stores.sql.run import heard_as, key_of
from demijohn.testing.contract import (
    BOB,
    FRAME,
    LEASE_MS,
    RETAIN_MS,
    ManualClock,
    begin,
    complete,
    forked,
    release,
    renew,
)
from tests.processes import wait_until
from tests.sql_tools import beside, counted, hooked, is_postgres, opened


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
def other(url: str) -> Iterator[SqlStore]:
    """Another process's store, as far as the database can tell."""
    other = opened(url)
    assert other.health().ok
    yield other
    other.close()


@pytest.fixture
def keys() -> list[str]:
    """Two keys nobody has used, in the order in which they are locked."""
    return sorted((uuid.uuid4().hex, uuid.uuid4().hex), key=lambda key: key_of(key).digest)


@pytest.fixture
def key(keys: list[str]) -> str:
    return keys[0]


@pytest.fixture
def table(url: str) -> Iterator[str]:
    """The name of a table that is not there."""
    name = f"rows_{uuid.uuid4().hex[:12]}"
    yield name
    with beside(url) as connection:
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")


def statuses(store: SqlStore, *steps: Step) -> list[str]:
    return [outcome.status for outcome in store.run(steps)]


# --- what is sent -------------------------------------------------------------------------------


def test_first_begin_reads_and_inserts(store: SqlStore, key: str) -> None:
    with counted(store) as seen:
        assert statuses(store, begin(key)) == ["run"]
    assert seen == ["SELECT", "INSERT"]


@pytest.mark.parametrize("end", [renew, complete, release])
def test_step_on_ones_own_row_reads_and_updates(
    store: SqlStore, key: str, end: Callable[..., Step]
) -> None:
    store.run([begin(key)])
    with counted(store) as seen:
        store.run([end(key)])
    assert seen == ["SELECT", "UPDATE"]


def test_decision_without_a_write_is_one_read(store: SqlStore, keys: list[str]) -> None:
    key, absent = keys
    store.run([begin(key), begin(absent), release(absent)])
    for steps, answer in [
        ([begin(key, token=BOB)], ["busy"]),
        ([renew(key, token=BOB)], ["fenced"]),
        ([complete(absent, token=BOB)], ["fenced"]),
        ([begin(key, absent, token=BOB)], ["busy"]),
        ([begin(key, token=BOB), begin(absent)], ["busy"]),
    ]:
        with counted(store) as seen:
            assert statuses(store, *steps) == answer
        assert seen == ["SELECT"]
    store.run([complete(key)])
    with counted(store) as seen:
        assert store.run([begin(key, token=BOB)]) == [Outcome("replay", (0, FRAME), halts=True)]
    assert seen == ["SELECT"]


def test_busy_answer_that_leaves_an_inbox_reads_and_updates(store: SqlStore, key: str) -> None:
    store.run([begin(key)])
    with counted(store) as seen:
        assert statuses(store, begin(key, token=BOB, inbox="inbox")) == ["busy"]
    assert seen == ["SELECT", "UPDATE"]


def test_end_that_wakes_another_process_costs_no_statement_more(store: SqlStore, key: str) -> None:
    store.run([begin(key)])
    store.run([begin(key, token=BOB, inbox="inbox")])
    with counted(store) as seen:
        assert statuses(store, complete(key)) == ["completed"]
    assert seen == ["SELECT", "UPDATE"]


def test_several_rows_that_are_there_are_locked_in_order(
    store: SqlStore, url: str, keys: list[str]
) -> None:
    store.run([begin(key) for key in keys])
    written = "UPDATE" if is_postgres(url) else "INSERT"
    with counted(store) as seen:
        assert statuses(store, *[renew(key) for key in reversed(keys)]) == ["renewed"] * 2
    assert seen == ["BEGIN", "SELECT FOR UPDATE", written, "COMMIT"]


def test_several_new_rows_are_looked_for_made_and_written(
    store: SqlStore, url: str, keys: list[str]
) -> None:
    written = "UPDATE" if is_postgres(url) else "INSERT"
    with counted(store) as seen:
        assert statuses(store, *[begin(key) for key in keys]) == ["run"] * 2
    assert seen == ["SELECT", "BEGIN", "INSERT", written, "COMMIT"]


def test_several_rows_hoped_for_in_vain_are_locked_anew_in_order(
    store: SqlStore, keys: list[str]
) -> None:
    store.run([begin(keys[1])])
    with counted(store) as seen:
        assert statuses(store, *[renew(key, token=BOB) for key in keys]) == ["fenced"] * 2
    assert seen == ["BEGIN", "SELECT FOR UPDATE", "ROLLBACK", "BEGIN", "INSERT", "ROLLBACK"]
    assert dict(store.scan(keys[0])) == {}


def test_waking_end_of_several_rows_notifies_in_its_transaction(
    store: SqlStore, url: str, keys: list[str]
) -> None:
    store.run([begin(key) for key in keys])
    store.run([begin(keys[0], token=BOB, inbox="inbox")])
    with counted(store) as seen:
        assert statuses(store, *[complete(key) for key in keys]) == ["completed"] * 2
    told = ["UPDATE", "SELECT"] if is_postgres(url) else ["INSERT"]
    assert seen == ["BEGIN", "SELECT FOR UPDATE", *told, "COMMIT"]


def test_nothing_is_sent_behind_a_run(
    mariadb_url: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy's events do not tell of the ROLLBACK behind each use that PyMySQL would send."""
    from demijohn.stores.sql.mariadb import BoundedConnection

    seen: list[str] = []
    query = BoundedConnection.query
    monkeypatch.setattr(
        BoundedConnection,
        "query",
        lambda self, sql, *a: (seen.append(sql), query(self, sql, *a))[1],
    )
    store = opened(mariadb_url)
    store.health()
    seen.clear()
    store.run([begin(key)])
    assert [str(sql).split()[0] for sql in seen] == ["SELECT", "INSERT"]
    store.close()


# --- meeting others -----------------------------------------------------------------------------


def meeting(act: Callable[[], object], *, at: str, times: int = 1) -> Callable[[str], None]:
    """Return a hook that acts before the first statements in which there is ``at``."""
    left = [times]

    def hook(statement: str) -> None:
        if at in statement and left[0]:
            left[0] -= 1
            act()

    return hook


def test_who_is_overtaken_looks_again(store: SqlStore, other: SqlStore, key: str) -> None:
    overtaken = meeting(lambda: other.run([begin(key, token=BOB)]), at="INSERT")
    with counted(store) as seen, hooked(store, overtaken):
        assert statuses(store, begin(key)) == ["busy"]
    assert seen == ["SELECT", "INSERT", "SELECT"]
    assert statuses(other, complete(key, token=BOB)) == ["completed"]


def test_who_is_overtaken_twice_takes_the_lock(
    store: SqlStore, other: SqlStore, key: str, url: str
) -> None:
    store.run([begin(key)])
    written = "UPDATE" if is_postgres(url) else "INSERT"
    overtaken = meeting(lambda: other.run([renew(key)]), at="UPDATE demijohn_rows SET", times=2)
    with counted(store) as seen, hooked(store, overtaken):
        assert statuses(store, complete(key)) == ["completed"]
    swap = ["SELECT", "UPDATE"]
    assert seen == [*swap, *swap, "BEGIN", "SELECT FOR UPDATE", written, "COMMIT"]
    assert statuses(other, renew(key)) == ["fenced"]


def test_row_that_was_removed_and_made_again_is_not_taken_for_what_it_was(
    store: SqlStore, other: SqlStore, key: str
) -> None:
    store.run([begin(key)])
    gone = Step(
        StepKind("test.delete", lambda rows, now: Decision(Outcome("gone"), {0: None}), ""),
        (key,),
        (),
    )

    def anew() -> None:
        other.run([gone])
        other.purge()
        other.run([begin(key, token=BOB)])

    with hooked(store, meeting(anew, at="UPDATE demijohn_rows SET")):
        assert statuses(store, complete(key)) == ["fenced"]
    assert statuses(other, renew(key, token=BOB)) == ["renewed"]


def test_overtaken_end_tells_nobody(
    postgres_url: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = opened(postgres_url), opened(postgres_url)
    inbox = f"inbox_{uuid.uuid4().hex[:8]}"
    store.run([begin(key)])
    store.run([begin(key, token=BOB, inbox=inbox)])
    heard: list[str] = []
    with beside(postgres_url) as ear:
        driver = ear.connection.driver_connection
        assert driver is not None
        driver.add_notify_handler(lambda notice: heard.append(notice.payload))
        ear.exec_driver_sql(f'LISTEN "{inbox}"')
        told_when: list[int] = []

        def overtake() -> None:
            other.run([renew(key)])

        def look(statement: str) -> None:
            if statement.startswith("SELECT") and told_when != []:
                ear.exec_driver_sql("SELECT 1")
                assert heard == []
            if "UPDATE" in statement:
                told_when.append(1)

        with hooked(store, meeting(overtake, at="UPDATE")), hooked(store, look):
            assert statuses(store, complete(key)) == ["completed"]
        ear.exec_driver_sql("SELECT 1")
    assert heard == [heard_as(key)]
    store.close()
    other.close()


def test_wake_without_a_write_is_told_as_well(
    postgres_url: str, mariadb_url: str, key: str
) -> None:
    def tell(rows: Any, now_ms: int) -> Decision:
        return Decision(Outcome("told"), {}, (Wake(key, ("inbox", "", "x" * 64)),))

    step = Step(StepKind("test.tell", tell, ""), (key,), ())
    for url in (postgres_url, mariadb_url):
        store = opened(url)
        store.run([begin(key)])
        mark = store.mark
        assert statuses(store, step) == ["told"]
        assert store.mark > mark
        store.close()


def test_row_may_be_deleted_and_counts_as_absent(store: SqlStore, keys: list[str]) -> None:
    kind = StepKind(
        "test.delete", lambda rows, now: Decision(Outcome("gone"), {0: None, 1: None}), ""
    )
    store.run([begin(key) for key in keys])
    assert statuses(store, Step(kind, tuple(keys), ())) == ["gone"]
    assert dict(store.scan(keys[0])) == {}
    assert store.run([begin(keys[0])]) == [Outcome("run", (0, 1, 1, 0))]


def test_runs_over_the_same_rows_from_four_processes_do_not_interleave(
    store: SqlStore, keys: list[str]
) -> None:
    processes, times = 4, 25

    def cycle(me: int) -> None:
        token = b"token %d" % me
        order = keys if me % 2 else keys[::-1]
        for _ in range(times):
            steps = [each(key, token=token) for key in order for each in (begin, release)]
            assert statuses(store, *steps) == ["run", "released"] * 2
            one = [begin(keys[0], token=token), release(keys[0], token=token)]
            assert statuses(store, *one) == ["run", "released"]

    store.run([begin(keys[0]), release(keys[0])])
    children = [forked(lambda me=me: cycle(me)) for me in range(processes)]
    assert [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children] == [0] * 4
    assert store.run([begin(keys[0])])[0].values[1] == 2 * processes * times + 2
    assert store.run([begin(keys[1])])[0].values[1] == processes * times + 1


def test_of_many_processes_one_begins(store: SqlStore, key: str) -> None:
    def race(me: int) -> None:
        os._exit(10 if statuses(store, begin(key, token=b"%d" % me)) == ["run"] else 20)

    children = [forked(lambda me=me: race(me)) for me in range(4)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children]
    assert sorted(codes) == [10, 20, 20, 20]


def test_step_that_fails_leaves_no_transaction_behind(store: SqlStore, keys: list[str]) -> None:
    from demijohn.core import idempotency as core

    store.run([begin(key) for key in keys])
    with pytest.raises(TypeError):
        store.run([complete(keys[0]), Step(core.RENEW, (keys[1],), ())])
    with pytest.raises(TypeError):
        store.run([Step(core.RENEW, (keys[1],), ())])
    assert statuses(store, begin(keys[0], token=BOB)) == ["busy"]
    assert statuses(store, *[complete(key) for key in keys]) == ["completed"] * 2


# --- expiry -------------------------------------------------------------------------------------


def test_expired_rows_are_removed_in_batches_by_the_background(
    url: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demijohn.stores.purger.BATCH", 10)
    clock = ManualClock()
    store = opened(url, clock=clock, table=table, purge_every=0.05)
    store.run([begin(f"key{number}") for number in range(35)])
    clock.advance(LEASE_MS + RETAIN_MS)
    store.run([begin("kept")])
    with beside(url) as connection:
        count = f"SELECT count(*) FROM {table}"
        wait_until(lambda: connection.exec_driver_sql(count).scalar() == 1, "rows are removed")
    store.close()


def test_rows_are_purged_by_the_clock_of_the_server(url: str, table: str) -> None:
    store = opened(url, table=table)
    store.run([begin("key")])
    assert store.purge() == 0
    with beside(url) as connection:
        connection.exec_driver_sql(f"UPDATE {table} SET expires = 1")
    assert store.purge() == 1
    store.close()


def test_placeholder_of_a_run_that_did_not_write_it_is_purged(
    store: SqlStore, keys: list[str]
) -> None:
    assert statuses(store, begin(*keys)) == ["run"]
    assert store.purge() >= 1
    assert statuses(store, renew(keys[0])) == ["renewed"]


# --- sizes --------------------------------------------------------------------------------------


def test_row_that_does_not_fit_is_refused_before_it_is_sent(mariadb_url: str, key: str) -> None:
    store = opened(mariadb_url)
    store.run([begin(key)])
    with pytest.raises(StoreError, match="max_allowed_packet"):
        store.run([complete(key, frame=bytes(store._dialect.most_bytes))])
    assert statuses(store, renew(key)) == ["renewed"]
    store.close()


def test_many_rows_are_written_in_statements_that_the_server_takes(
    store: SqlStore, url: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store._dialect, "most_bytes", 4_000)
    names = [f"{key}:{number}" for number in range(10)]
    with counted(store) as seen:
        store.run([begin(name) for name in names])
    assert seen[3:-1] == ["UPDATE" if is_postgres(url) else "INSERT"] * 4
    assert {name for name, _ in store.scan(key)} == set(names)


# --- the table ----------------------------------------------------------------------------------


def test_table_is_made_once_by_all_who_start_at_the_same_time(url: str, table: str) -> None:
    def start(me: int) -> None:
        store = opened(url, table=table)
        assert statuses(store, begin(f"key{me}")) == ["run"]
        store.close()

    children = [forked(lambda me=me: start(me)) for me in range(6)]
    assert [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children] == [0] * 6
    store = opened(url, table=table)
    assert len(list(store.scan("key"))) == 6
    store.close()


def test_table_of_somebody_else_is_left_alone(url: str, table: str) -> None:
    with beside(url) as connection:
        connection.exec_driver_sql(f"CREATE TABLE {table} (id INTEGER)")
    store = opened(url, table=table)
    with pytest.raises(StoreError, match=rf"{table} is not Demijohn's.*\?table="):
        store.run([begin("key")])
    store.close()


def test_table_of_a_newer_release_is_refused(
    url: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(schema, "VERSION", 2)
        store = opened(url, table=table)
        store.run([begin("key")])
        store.close()
    store = opened(url, table=table)
    with pytest.raises(StoreError, match="version 2, made by a newer release"):
        store.run([begin("key")])
    store.close()


def test_lost_table_is_an_error_of_its_own_and_made_anew(url: str, table: str) -> None:
    store = opened(url, table=table)
    store.run([begin("key")])
    with beside(url) as connection:
        connection.exec_driver_sql(f"DROP TABLE {table}")
    with pytest.raises(StoreError, match=table):
        store.run([begin("key")])
    assert statuses(store, begin("key")) == ["run"]
    store.close()


def test_user_who_may_not_make_the_table_is_told_what_to_execute(url: str, table: str) -> None:
    user = f"user_{uuid.uuid4().hex[:8]}"
    database = make_url(url).database
    with beside(url) as connection:
        if is_postgres(url):
            connection.exec_driver_sql(f"CREATE ROLE {user} LOGIN PASSWORD 'secret'")
        else:
            connection.exec_driver_sql(f"CREATE USER {user} IDENTIFIED BY 'secret'")
            connection.exec_driver_sql(f"GRANT SELECT ON {database}.* TO {user}")
        try:
            alike = make_url(url).set(username=user, password="secret")
            store = opened(alike.render_as_string(hide_password=False), table=table)
            with pytest.raises(StoreError, match=rf"(?s)may not make it.*CREATE TABLE.*{table}"):
                store.run([begin("key")])
            store.close()
        finally:
            connection.exec_driver_sql(f"DROP {'ROLE' if is_postgres(url) else 'USER'} {user}")


def test_table_that_cannot_be_made_for_another_reason_is_told(
    url: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(url, table=table)
    monkeypatch.setattr(store._dialect, "create", lambda comment: [("CREATE NONSENSE", ())])
    with pytest.raises(StoreError, match="NONSENSE"):
        store.run([begin("key")])
    store.close()


def test_child_leaves_its_parents_connections_and_threads_alone(store: SqlStore, key: str) -> None:
    """What a real child does (see the contract), here where it can be looked at."""
    store.run([begin(key)])
    pool, ear, purger = store.database.engine.pool, store._ear, store._purger
    assert pool.checkedin() == 1  # type: ignore[attr-defined]
    store.renew_after_fork()
    assert store.database.engine.pool is not pool
    assert pool.checkedin() == 1  # type: ignore[attr-defined]
    assert store._ear is not ear
    assert store.run([renew(key)])[0].status == "renewed"
    purger.close()
    pool.dispose()


def test_threads_share_the_connections_of_the_process(url: str, key: str) -> None:
    store = opened(url, max_connections=2)
    threads = 6
    barrier = threading.Barrier(threads)

    def act(me: int) -> str:
        barrier.wait()
        return statuses(store, begin(f"{key}:{me}"))[0]

    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(act, range(threads))) == ["run"] * threads
    store.close()
