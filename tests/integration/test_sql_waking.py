"""How waiters of one process hear what others did in the database."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("sqlalchemy")

from demijohn.errors import StoreUnavailable
from demijohn.stores.bell import Bell
from demijohn.stores.sql import SqlStore, listener, waking
from demijohn.stores.sql.listener import Listener
from demijohn.stores.sql.waking import Poller
from demijohn.testing.contract import (
    BOB,
    PROMPTLY_S,
    begin,
    complete,
    listening,
    renew,
    wait_until_woken,
)
from tests.processes import wait_until
from tests.sql_tools import Proxy, beside, cut_off, opened

WAYS = ["postgres-notify", "postgres-poll", "mariadb-poll"]


@pytest.fixture(params=WAYS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[SqlStore, SqlStore]]:
    """Two stores on one database: two processes, as far as they can tell."""
    server, way = str(request.param).split("-")
    url = str(request.getfixturevalue(f"{server}_url"))
    options = {"waking": way} if server == "postgres" else {}
    stores = opened(url, **options), opened(url, **options)
    yield stores
    for store in stores:
        store.close()


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def close_by(started: float) -> bool:
    return time.monotonic() - started < PROMPTLY_S


def waiting(store: SqlStore) -> bool:
    return store._bell.waiting > 0


# --- between processes --------------------------------------------------------------------------


def test_waiter_hears_the_end_of_a_run_elsewhere(pair: tuple[SqlStore, SqlStore], key: str) -> None:
    here, there = pair
    inbox = listening(here)
    there.run([begin(key)])
    mark = here.mark
    assert here.run([begin(key, token=BOB, inbox=inbox)])[0].status == "busy"
    with ThreadPoolExecutor(1) as pool:
        woken = pool.submit(wait_until_woken, here, key, mark)
        wait_until(lambda: waiting(here), "the waiter waits")
        there.run([complete(key)])
        assert woken.result()
    assert here.run([begin(key, token=BOB)])[0].status == "replay"


def test_end_between_look_and_wait_is_not_missed(pair: tuple[SqlStore, SqlStore], key: str) -> None:
    here, there = pair
    inbox = listening(here)
    there.run([begin(key)])
    mark = here.mark
    assert here.run([begin(key, token=BOB, inbox=inbox)])[0].status == "busy"
    there.run([complete(key)])
    started = time.monotonic()
    assert wait_until_woken(here, key, mark)
    assert close_by(started)


def test_end_before_a_later_look_of_another_thread_is_not_missed(
    pair: tuple[SqlStore, SqlStore], key: str
) -> None:
    """Who looks later sees the row as it is now; who looked earlier must be told all the same."""
    here, there = pair
    inbox = listening(here)
    there.run([begin(key)])
    mark = here.mark
    assert here.run([begin(key, token=BOB, inbox=inbox)])[0].status == "busy"
    there.run([complete(key)])
    assert here.run([begin(key, token=b"carol")])[0].status == "replay"
    assert wait_until_woken(here, key, mark)


def test_several_waiters_of_a_process_are_woken_each_by_its_key(
    pair: tuple[SqlStore, SqlStore], key: str
) -> None:
    here, there = pair
    inbox = listening(here)
    names = [f"{key}:{number}" for number in range(5)]
    there.run([begin(name) for name in names])
    mark = here.mark
    for name in names:
        here.run([begin(name, token=BOB, inbox=inbox)])
    with ThreadPoolExecutor(5) as pool:
        woken = [pool.submit(wait_until_woken, here, name, mark) for name in names]
        wait_until(lambda: here._bell.waiting == 5, "all wait")
        there.run([complete(names[0])])
        assert woken[0].result()
        there.run([complete(name) for name in names[1:]])
        assert all(each.result() for each in woken)


# --- listening ----------------------------------------------------------------------------------


def test_lost_connection_wakes_everybody_and_is_made_anew(
    postgres_url: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "demijohn.stores")
    here, there = opened(postgres_url), opened(postgres_url)
    inbox = listening(here)
    there.run([begin(key)])
    mark = here.mark
    here.run([begin(key, token=BOB, inbox=inbox)])
    with ThreadPoolExecutor(1) as pool:
        woken = pool.submit(wait_until_woken, here, key, mark)
        wait_until(lambda: waiting(here), "the waiter waits")
        assert cut_off(postgres_url) >= 1
        assert woken.result()
    wait_until(lambda: "wake-ups are heard again" in caplog.text, "it listens again")
    assert here.inbox == inbox
    mark = here.mark
    there.run([complete(key)])
    assert wait_until_woken(here, key, mark)
    here.close()
    there.close()


def test_while_nothing_can_be_heard_waits_are_short_and_say_look_again(
    postgres_url: str, key: str
) -> None:
    with Proxy(postgres_url) as proxy:
        store = opened(proxy.url, connect_timeout=2, timeout=1)
        store.run([begin(key)])
        proxy.silent.set()
        started = time.monotonic()
        assert store.wait(key, since=store.mark, timeout_ms=60_000)
        assert time.monotonic() - started < 20
        assert store.inbox == ""
        store.close()


def test_deaf_connection_is_found_by_a_ping(
    postgres_url: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "PING_EVERY_S", 0.05)
    with Proxy(postgres_url) as proxy:
        store = opened(proxy.url, connect_timeout=2, timeout=2)
        listening(store)
        time.sleep(0.2)  # pings that are answered
        ear = store._ear
        assert isinstance(ear, Listener)
        assert ear._listening.is_set()
        proxy.silent.set()
        wait_until(lambda: not ear._listening.is_set(), "the silence is noticed")
        started = time.monotonic()
        assert store.wait(key, since=store.mark, timeout_ms=60_000)
        assert close_by(started)
        store.close()


def test_closed_store_does_not_begin_to_listen(postgres_url: str, key: str) -> None:
    store = opened(postgres_url)
    store.close()
    assert store.wait(key, since=store.mark, timeout_ms=10)
    assert store.inbox == ""


def test_close_while_the_connection_is_being_made_ends_the_thread() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Silent:
        closed = False

        def listen(self, inbox: str) -> None:
            entered.set()
            assert go_on.wait(20)

        def receive(self, seconds: float) -> Sequence[str]:
            raise AssertionError("closed before")

        def ping(self) -> None:
            raise AssertionError("closed before")

        def wake(self) -> None:
            go_on.set()

        def close(self) -> None:
            self.closed = True

    line = Silent()
    ear = Listener(lambda: line, Bell(), 20)
    assert ear.wait("key", 0, 5)
    assert entered.wait(20)
    ear.close()
    assert line.closed


def test_word_that_comes_with_the_answer_to_a_ping_is_heard(postgres_url: str) -> None:
    import psycopg

    from demijohn.stores.sql.wire import Line

    store = opened(postgres_url)
    inbox = f"inbox_{uuid.uuid4().hex[:8]}"
    connection = store.database.connect_apart(autocommit=True)
    assert isinstance(connection, psycopg.Connection)
    line = Line(connection, 20)  # type: ignore[arg-type]
    line.listen(inbox)
    with beside(postgres_url) as other:
        other.exec_driver_sql(f"NOTIFY {inbox}, 'word'")
    line.ping()
    started = time.monotonic()
    assert line.receive(60) == ["word"]
    assert close_by(started)
    line.wake()
    assert line.receive(60) == []
    connection.pgconn.finish()
    with pytest.raises(StoreUnavailable, match="is dead"):
        line.ping()
    with pytest.raises(StoreUnavailable, match="is dead"):
        line._take_in()
    line.close()
    store.close()


def test_failures_to_listen_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    tried = threading.Semaphore(0)

    def dial() -> listener.Line:
        tried.release()
        raise StoreUnavailable("not there")

    ear = Listener(dial, Bell(), 20)
    assert ear.wait("key", 0, 5)
    for _ in range(3):
        assert tried.acquire(timeout=20)
    ear.close()
    assert caplog.text.count("wake-ups are not heard") == 1


def test_connection_that_held_for_a_while_is_made_anew_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "BACKOFF_MAX_S", 0.0)
    paused: list[int] = []
    monkeypatch.setattr(listener, "_pause", lambda failures: paused.append(failures) or 0.001)

    def dial() -> listener.Line:
        time.sleep(0.001)
        raise StoreUnavailable("not there")

    ear = Listener(dial, Bell(), 20)
    ear.wait("key", 0, 5)
    wait_until(lambda: len(paused) >= 3, "it has tried again")
    ear.close()
    assert set(paused) == {0}


def test_pauses_grow_to_their_most() -> None:
    assert 0.025 <= listener._pause(0) <= 0.05
    assert 1.0 <= listener._pause(50) <= 2.0


# --- polling ------------------------------------------------------------------------------------


class Asked:
    """Answers for the database, with versions that the test sets."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.questions: list[list[str]] = []
        self.failing = False

    def __call__(self, keys: Sequence[str]) -> Mapping[str, int]:
        self.questions.append(list(keys))
        if self.failing:
            raise StoreUnavailable("not there")
        return {key: self.versions[key] for key in keys if key in self.versions}


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def poller(asked: Asked) -> Iterator[Poller]:
    poller = Poller(asked, Bell())
    yield poller
    poller.close()


def test_all_waiters_of_a_process_are_asked_for_at_once(poller: Poller, asked: Asked) -> None:
    with ThreadPoolExecutor(3) as pool:
        woken = [pool.submit(poller.wait, key, 0, 20_000) for key in ("a", "b", "c")]
        wait_until(
            lambda: set(asked.questions[-1:][0] if asked.questions else ()) == {"a", "b", "c"},
            "all",
        )
        assert [thread.name for thread in threading.enumerate()].count("demijohn-sql-poller") == 1
        asked.versions = {"a": 1, "b": 2, "c": 3}
        assert [each.result() for each in woken] == [True] * 3


def test_nobody_waits_nobody_asks(poller: Poller, asked: Asked) -> None:
    assert not poller.wait("key", 0, 30)
    wait_until(lambda: poller._thread is None, "the thread has ended")
    count = len(asked.questions)
    time.sleep(0.05)
    assert len(asked.questions) == count
    assert not poller.wait("key", 0, 30)
    assert len(asked.questions) > count


def test_questions_become_rare_while_nothing_happens(
    poller: Poller, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waking, "LONGEST_PAUSE_S", 30.0)
    monkeypatch.setattr(waking, "GROWTH", 1000.0)
    assert not poller.wait("key", 0, 300)
    assert len(asked.questions) <= 4
    with ThreadPoolExecutor(1) as pool:
        # A new waiter is asked for at once, whatever the pause has grown to.
        asked.versions["other"] = 1
        assert pool.submit(poller.wait, "other", 0, 20_000).result(20)


def test_question_that_fails_wakes_everybody_and_is_repeated(
    poller: Poller, asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    asked.failing = True
    assert poller.wait("key", 0, 20_000)
    assert "cannot ask for rows" in caplog.text
    asked.failing = False
    asked.versions["key"] = 7
    assert poller.wait("key", poller._bell.mark, 20_000)


def test_version_that_the_waiter_saw_is_what_counts(poller: Poller, asked: Asked) -> None:
    poller.saw("key", 1)
    asked.versions["key"] = 1
    assert not poller.wait("key", poller._bell.mark, 50)
    poller.saw("key", 1)
    asked.versions["key"] = 2
    assert poller.wait("key", poller._bell.mark, 20_000)


def test_forgotten_version_counts_as_never_seen(
    poller: Poller, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waking, "REMEMBERED", 1)
    poller.saw("key", 1)
    poller.saw("other", 1)
    asked.versions["key"] = 1
    assert poller.wait("key", 0, 20_000)


def test_closed_poller_asks_no_more(asked: Asked) -> None:
    poller = Poller(asked, Bell())
    poller.close()
    assert not poller.wait("key", 0, 10)
    assert asked.questions == []


def test_renewal_elsewhere_is_a_cause_to_look_and_no_more(mariadb_url: str, key: str) -> None:
    here, there = opened(mariadb_url), opened(mariadb_url)
    there.run([begin(key)])
    mark = here.mark
    assert here.run([begin(key, token=BOB)])[0].status == "busy"
    there.run([renew(key)])
    assert wait_until_woken(here, key, mark)
    assert here.run([begin(key, token=BOB)])[0].status == "busy"
    here.close()
    there.close()


def test_process_that_ended_leaves_nobody_listening(postgres_url: str) -> None:
    store = opened(postgres_url)
    inbox = listening(store)
    assert inbox
    store.close()
    question = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        f" AND query = 'LISTEN \"{inbox}\"'"
    )
    with beside(postgres_url) as connection:
        wait_until(lambda: connection.exec_driver_sql(question).scalar() == 0, "it hung up")
