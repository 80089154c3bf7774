"""The SQLite store among several real processes, and on a disk that fails."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from demijohn.core import idempotency as core
from demijohn.core.step import Decision, Outcome, Step, StepKind
from demijohn.errors import ConfigError, CorruptRecord, StoreError, StoreUnavailable
from demijohn.stores.opening import open_store
from demijohn.stores.sqlite import SqliteStore
from demijohn.stores.sqlite import file as file_module
from demijohn.testing.contract import ManualClock

SPAWN = multiprocessing.get_context("spawn")


def begin(key: str, token: bytes = b"t", lease_ms: int = 60_000) -> Step:
    return core.begin((key,), fingerprint=b"f", token=token, lease_ms=lease_ms, retain_ms=60_000)


def complete(key: str, token: bytes = b"t", frame: bytes = b"done", ttl_ms: int = 60_000) -> Step:
    return core.complete(key, token=token, frame=frame, ttl_ms=ttl_ms, retain_ms=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "rows.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path, synchronous="normal", busy_timeout_ms=200)
    yield store
    store.close()


def until(condition: Callable[[], Any]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never became so")


# --- several processes --------------------------------------------------------------------------


def _claim_all(path: Path, keys: list[str], barrier: Any, queue: Any) -> None:
    store = SqliteStore(path, synchronous="normal")
    token = os.urandom(16)
    barrier.wait()
    won = []
    for key in keys:
        if store.run([begin(key, token)])[0].status == "run":
            won.append(key)
            store.run([complete(key, token, token)])
    queue.put(won)


def test_each_key_is_won_by_one_of_several_processes_that_start_at_once(path: Path) -> None:
    keys = [f"key{number}" for number in range(100)]
    barrier, queue = SPAWN.Barrier(4), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=_claim_all, args=(path, keys, barrier, queue)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    won = [key for _ in processes for key in queue.get(timeout=60)]
    for process in processes:
        process.join(30)
    assert sorted(won) == sorted(keys)


def _write_until_killed(path: Path, pipe: Any) -> None:
    store = SqliteStore(path)
    number = 0
    while True:
        key = f"key{number}"
        store.run([begin(key)])
        store.run([complete(key)])
        pipe.send(key)  # only now is it acknowledged
        number += 1


def test_acknowledged_rows_survive_kill_9(path: Path) -> None:
    for _ in range(3):
        receiver, sender = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=_write_until_killed, args=(path, sender))
        process.start()
        acknowledged = [receiver.recv() for _ in range(50)]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        sender.close()
        with suppress(EOFError):  # the end of what it had sent
            while receiver.poll():
                acknowledged.append(receiver.recv())
        store = SqliteStore(path)
        assert all(store.run([begin(key, b"x")])[0].status == "replay" for key in acknowledged)
        store.close()
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
        path.unlink()


def _complete_when_told(path: Path, key: str, told: Any, done: Any) -> None:
    store = SqliteStore(path, synchronous="normal")
    told.wait(60)
    store.run([complete(key)])
    done.set()


@pytest.fixture
def other_process(path: Path) -> Iterator[tuple[Any, Any]]:
    """A process that completes "key" when it is told to."""
    told, done = SPAWN.Event(), SPAWN.Event()
    process = SPAWN.Process(target=_complete_when_told, args=(path, "key", told, done))
    process.start()
    yield told, done
    told.set()
    process.join(30)


def test_waiter_is_woken_by_another_process(
    store: SqliteStore, other_process: tuple[Any, Any]
) -> None:
    told, _ = other_process
    store.run([begin("key")])
    mark = store.mark
    assert store.run([begin("key", b"x")])[0].status == "busy"
    threading.Timer(0.2, told.set).start()
    assert store.wait("key", since=mark, timeout_ms=30_000)
    assert store.run([begin("key", b"x")])[0].status == "replay"


def test_end_in_another_process_between_look_and_wait_is_not_missed(
    store: SqliteStore, other_process: tuple[Any, Any]
) -> None:
    told, done = other_process
    store.run([begin("key")])
    mark = store.mark
    assert store.run([begin("key", b"x")])[0].status == "busy"
    told.set()
    assert done.wait(30)
    # Nothing will be written any more: only the comparison with what was seen can tell.
    assert store.wait("key", since=mark, timeout_ms=30_000)


def test_end_that_another_thread_has_seen_is_not_missed(store: SqliteStore, path: Path) -> None:
    other = SqliteStore(path, synchronous="normal")
    store.run([begin("key")])
    mark = store.mark
    assert store.run([begin("key", b"x")])[0].status == "busy"
    other.run([complete("key")])
    assert store.run([begin("key", b"y")])[0].status == "replay"  # another thread's look
    assert store.wait("key", since=mark, timeout_ms=30_000)
    other.close()


def test_writes_to_other_rows_wake_nobody(store: SqliteStore, path: Path) -> None:
    other = SqliteStore(path, synchronous="normal")
    store.run([begin("key")])
    store.run([begin("key", b"x")])
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            other.run([begin(f"other{number}")])
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    assert not store.wait("key", since=store.mark, timeout_ms=300)
    stop.set()
    writer.join(30)
    other.close()


def test_watching_ends_when_nobody_waits_and_begins_again(store: SqliteStore) -> None:
    def watching() -> bool:
        return store._watcher._thread is not None

    for _ in range(2):
        assert not store.wait("key", since=store.mark, timeout_ms=20)
        until(lambda: not watching())


def test_forgotten_row_is_looked_at_again(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demijohn.stores.sqlite.watcher.REMEMBERED", 1)
    for key in ("key", "other"):
        store.run([begin(key)])
        store.run([begin(key, b"x")])
    assert store.wait("key", since=store.mark, timeout_ms=10_000)


def test_waiters_look_again_when_the_file_cannot_be_watched(
    store: SqliteStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.run([begin("key")])
    connection = sqlite3.connect(path)
    connection.execute("ALTER TABLE rows RENAME TO gone")
    connection.close()
    assert store.wait("key", since=store.mark, timeout_ms=10_000)
    assert "cannot watch" in caplog.text


def test_file_that_cannot_be_opened_for_watching_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rows.db").mkdir()
    store = SqliteStore(tmp_path / "rows.db")
    assert store.wait("key", since=store.mark, timeout_ms=10_000)
    assert "cannot watch" in caplog.text
    store.close()
    assert store.wait("key", since=store.mark - 1, timeout_ms=10)


# --- statements ---------------------------------------------------------------------------------


def statements(store: SqliteStore, *steps: Step) -> list[str]:
    """Return the first words of what a run has SQLite do."""
    seen: list[str] = []
    with store._file.connection() as connection:
        connection.set_trace_callback(lambda text: seen.append(text.split()[0]))
    store.run(list(steps))
    with store._file.connection() as connection:
        connection.set_trace_callback(None)
    return seen


def test_statements_of_each_run_are_counted(store: SqliteStore) -> None:
    store.run([begin("warm")])
    first = ["SELECT", "BEGIN", "SELECT", "INSERT", "COMMIT"]
    assert statements(store, begin("key")) == first
    assert statements(store, begin("key", b"x")) == ["SELECT"]  # busy
    assert statements(store, complete("key")) == ["BEGIN", "SELECT", "INSERT", "COMMIT"]
    assert statements(store, begin("key", b"x")) == ["SELECT"]  # replay
    both = core.begin(("key", "old"), fingerprint=b"f", token=b"x", lease_ms=1, retain_ms=1)
    assert statements(store, both) == ["BEGIN", "SELECT", "SELECT", "COMMIT"]


# --- disks that fail ----------------------------------------------------------------------------


def _forked(act: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_full_disk_refuses_new_rows_and_loses_none(path: Path) -> None:
    store = SqliteStore(path, synchronous="normal")
    store.run([begin("kept")])
    store.run([complete("kept")])

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = sum(each.stat().st_size for each in path.parent.iterdir() if "wal" in each.name)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50_000, -1))
        many = [begin(f"key{number}") for number in range(1000)]
        with pytest.raises(StoreUnavailable, match=r"rows\.db"):
            store.run(many)
        assert store.run([begin("kept", b"x")])[0].status == "replay"
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        assert store.run([begin("new")])[0].status == "run"

    assert _forked(fill) == 0
    assert store.run([begin("kept", b"x")])[0].status == "replay"
    store.close()


def test_file_that_cannot_be_written_refuses(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.run([begin("kept")])
    store._file.close()
    connect = sqlite3.connect

    def read_only(path: Path, **options: Any) -> sqlite3.Connection:
        return connect(f"file:{path}?mode=ro", uri=True, **options)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        store.run([begin("key")])
    assert store.run([begin("kept", b"x")])[0].status == "busy"


def test_writer_that_holds_the_lock_for_too_long_is_named(store: SqliteStore, path: Path) -> None:
    store.run([begin("key")])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="busy_timeout"):
        store.run([complete("key")])
    other.execute("ROLLBACK")
    other.close()
    assert store.run([complete("key")])[0].status == "completed"


def test_first_start_waits_for_another_process_that_starts(path: Path) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.3, lambda: (other.execute("ROLLBACK"), other.close())).start()
    store = SqliteStore(path)
    assert store.run([begin("key")])[0].status == "run"
    store.close()


def test_first_start_gives_up_when_the_other_does_not_end(path: Path) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    store = SqliteStore(path, busy_timeout_ms=50)
    with pytest.raises(StoreUnavailable):
        store.run([begin("key")])
    other.close()
    store.close()


@pytest.mark.parametrize(
    ("code", "refusals", "timeout_ms", "succeeds"),
    [
        (sqlite3.SQLITE_BUSY, 2, 5000, True),
        (sqlite3.SQLITE_BUSY_RECOVERY, 2, 5000, True),
        (sqlite3.SQLITE_BUSY, 2, 0, False),
        (sqlite3.SQLITE_IOERR, 1, 5000, False),
    ],
)
def test_change_of_the_journal_mode_is_tried_again_while_others_start(
    path: Path, code: int, refusals: int, timeout_ms: int, succeeds: bool
) -> None:
    """SQLite answers "busy" here at once, in a moment too short to be hit on purpose."""
    left = [refusals]

    class Busy:
        def execute(self, statement: str) -> None:
            if left[0]:
                left[0] -= 1
                error = sqlite3.OperationalError("refused")
                error.sqlite_errorcode = code
                raise error

    file = file_module.File(path, "full", timeout_ms)
    if succeeds:
        file._persist(Busy(), "PRAGMA journal_mode = wal")  # type: ignore[arg-type]
        assert left == [0]
    else:
        with pytest.raises(sqlite3.OperationalError):
            file._persist(Busy(), "PRAGMA journal_mode = wal")  # type: ignore[arg-type]


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = SqliteStore(tmp_path / "file" / "rows.db")
    with pytest.raises(StoreUnavailable, match="cannot be made"):
        store.run([begin("key")])
    assert not store.health().ok


def test_file_that_is_no_database_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(CorruptRecord, match="damaged"):
        SqliteStore(path).run([begin("key")])
    assert path.read_bytes() == b"not a database" * 100


def test_database_of_another_application_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StoreError, match="another application"):
        SqliteStore(path).run([begin("key")])


def test_newer_schema_is_refused(store: SqliteStore, path: Path) -> None:
    store.run([begin("key")])
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="version 99"):
        SqliteStore(path).run([begin("key")])


def test_older_schema_is_migrated(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.run([begin("key")])
    later = (*file_module.MIGRATIONS, ("ALTER TABLE rows ADD COLUMN later INTEGER",))
    monkeypatch.setattr(file_module, "MIGRATIONS", later)
    newer = SqliteStore(path)
    assert newer.run([begin("key", b"x")])[0].status == "busy"
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()
    newer.close()


def test_lost_table_is_an_error_of_its_own(store: SqliteStore, path: Path) -> None:
    store.run([begin("key")])
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE rows")
    connection.close()
    with pytest.raises(StoreError, match="no such table"):
        store.run([begin("key")])


@pytest.mark.parametrize(
    "data", ["x''", "x'02'", "x'0181a173c101'", "x'0181a17301'", "x'0181a1ff01'"]
)
def test_damaged_row_is_named(store: SqliteStore, path: Path, data: str) -> None:
    store.run([begin("key")])
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE rows SET data = {data}")
    connection.commit()
    connection.close()
    with pytest.raises(CorruptRecord, match="row key"):
        store.run([begin("key")])


def test_step_that_fails_leaves_no_transaction_behind(store: SqliteStore) -> None:
    store.run([begin("key")])
    with pytest.raises(TypeError):
        store.run([complete("key"), Step(core.RENEW, ("key",), ())])
    assert store.run([begin("key", b"x")])[0].status == "busy"
    assert store.run([complete("key")])[0].status == "completed"


def test_connection_that_cannot_even_be_closed_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def close(self) -> None:
            raise sqlite3.OperationalError("unable to close")

    monkeypatch.setattr(file_module, "_abandoned", [])
    file_module.discard(Broken())  # type: ignore[arg-type]
    assert len(file_module._abandoned) == 1


def test_child_leaves_its_parents_connections_alone(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a real child does (see the contract), here where it can be looked at."""
    store.run([begin("key")])
    monkeypatch.setattr(file_module, "_abandoned", [])
    watcher, purger = store._watcher, store._purger
    store.renew_after_fork()
    assert len(file_module._abandoned) == 1
    assert store._watcher is not watcher
    assert store.run([begin("key", b"x")])[0].status == "busy"
    purger.close()
    file_module._abandoned[0].close()


def test_row_may_be_deleted(store: SqliteStore) -> None:
    def delete(rows: Any, now_ms: int) -> Decision:
        return Decision(Outcome("deleted"), {0: None})

    store.run([begin("key")])
    store.run([Step(StepKind("test.delete", delete, "none.lua"), ("key",), ())])
    assert dict(store.scan("")) == {}


def test_idle_connections_are_bounded(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "MOST_IDLE", 1)
    with store._file.connection(), store._file.connection():
        pass
    assert len(store._file._idle) == 1


# --- expiry -------------------------------------------------------------------------------------


def test_expired_rows_are_removed_in_batches_by_the_background(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demijohn.stores.purger.BATCH", 10)
    clock = ManualClock()
    store = SqliteStore(path, synchronous="normal", purge_every_s=0.05, clock=clock)
    for number in range(35):
        store.run([begin(f"key{number}"), complete(f"key{number}", ttl_ms=1000)])
    store.run([begin("kept")])
    clock.advance(2000)
    until(lambda: store.health().detail.startswith("1 rows"))
    store.close()
    store.close()


def test_rows_may_be_purged_at_once(path: Path) -> None:
    clock = ManualClock()
    store = SqliteStore(path, synchronous="normal", clock=clock)
    for number in range(5):
        store.run([begin(f"key{number}"), complete(f"key{number}", ttl_ms=1000)])
    clock.advance(2000)
    assert store.purge() == 5
    assert store.purge() == 0
    store.close()
    assert store.purge() == 0
    store.run([begin("key")])  # a closed store that is used again starts no thread


def test_purge_that_fails_is_tried_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SqliteStore(path, synchronous="normal", purge_every_s=0.02, busy_timeout_ms=10)
    store.run([begin("key")])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    until(lambda: "cannot remove expired rows" in caplog.text)
    other.execute("ROLLBACK")
    other.close()
    store.close()


def test_threads_that_write_first_at_once_start_one_purger(store: SqliteStore) -> None:
    with store._purger._lock:
        waiting = threading.Thread(target=store._purger.start)
        waiting.start()
        other = threading.Thread(target=store._purger.start)
        other.start()
    waiting.join(10)
    other.join(10)
    names = [each.name for each in threading.enumerate()]
    assert names.count("demijohn-sqlite-purger") >= 1


@pytest.mark.campaign
def test_file_stays_flat_over_a_million_expired_keys(path: Path) -> None:
    clock = ManualClock()
    store = SqliteStore(path, synchronous="normal", clock=clock, purge_every_s=3600)
    sizes = []
    for _ in range(100):
        steps = [begin(f"key{clock.now_ms}.{number}") for number in range(10_000)]
        store.run(steps)
        clock.advance(10_000_000)
        assert store.purge() >= 9_900
        sizes.append(path.stat().st_size)
    assert max(sizes[10:]) <= 2 * max(sizes[:10])
    store.close()


# --- from a URL ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://", "does not name a file"),
        ("sqlite://host/x.db", "does not name a file"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///x.db?synchronos=full", "did you mean 'synchronous'"),
        ("sqlite:///x.db?synchronous=off", "full or normal"),
        ("sqlite:///x.db?busy_timeout=soon", "busy_timeout='soon' is not a duration"),
        ("sqlite:///x.db?purge_every=0", "above 0"),
    ],
)
def test_wrong_url_is_refused_in_words(url: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert words in str(caught.value)


def test_url_names_a_path_and_options(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a%20b.db?synchronous=normal&busy_timeout=2.5"
    store = open_store(url)
    assert isinstance(store, SqliteStore)
    assert store._file.path == tmp_path / "a b.db"
    assert store._file._busy_timeout_ms == 2500
    assert store.health().ok
