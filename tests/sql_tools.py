"""What the tests of the SQL store look with: statements, a second way in, a proxy in between."""

from __future__ import annotations

import re
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

from sqlalchemy import create_engine, event, make_url
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from demijohn.stores.sql import SqlStore, make

Hook = Callable[[str], None]


def opened(url: str, *, clock: Callable[[], int] | None = None, **options: object) -> SqlStore:
    """Make a store that is patient, if ``options`` do not say otherwise."""
    told = {"timeout": "20", "connect_timeout": "20"} | {n: str(v) for n, v in options.items()}
    whole = make_url(url).update_query_dict(told)
    return make(whole.render_as_string(hide_password=False), clock=clock)


@contextmanager
def hooked(store: SqlStore, hook: Hook) -> Iterator[None]:
    """Call ``hook`` with every statement that ``store`` is about to send."""

    def before(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        hook(statement)

    engine = store.database.engine
    event.listen(engine, "before_cursor_execute", before)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", before)


@contextmanager
def counted(store: SqlStore) -> Iterator[list[str]]:
    """Give the first words of the statements that ``store`` sends; FOR UPDATE is told."""
    seen: list[str] = []

    def note(statement: str) -> None:
        locks = " FOR UPDATE" if "FOR UPDATE" in statement else ""
        word = statement.removeprefix("START ").split()[0].replace("TRANSACTION", "BEGIN")
        changed = [each for each in ("INSERT", "UPDATE") if f"AS ({each}" in statement]
        word = changed[0] if changed else word
        seen.append(("SELECT" if word == "WITH" else word) + locks)

    with hooked(store, note):
        yield seen


@contextmanager
def beside(url: str) -> Iterator[Connection]:
    """Give a connection of the test's own, which commits by itself."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def is_postgres(url: str) -> bool:
    return url.startswith("postgresql")


def connections(url: str) -> int:
    """How many connections stores have to the database of ``url``."""
    with beside(url) as connection:
        question = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'demijohn'"
            if is_postgres(url)
            else "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE()"
            " AND id <> CONNECTION_ID()"
        )
        return int(connection.exec_driver_sql(question).scalar() or 0)


def cut_off(url: str, *, idle: bool = False) -> int:
    """End all connections of stores to the database of ``url``; return how many."""
    with beside(url) as connection:
        if is_postgres(url):
            condition = " AND state = 'idle'" if idle else ""
            return len(
                connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE"
                    " datname = current_database() AND application_name = 'demijohn'" + condition
                ).fetchall()
            )
        found = connection.exec_driver_sql(
            "SELECT id FROM information_schema.processlist WHERE db = DATABASE()"
            " AND id <> CONNECTION_ID()"
        ).fetchall()
        for (number,) in found:
            connection.exec_driver_sql(f"KILL {number}")
        return len(found)


def waits_for_lock(url: str) -> bool:
    """Whether anybody waits for a row's lock in the database of ``url``."""
    with beside(url) as connection:
        if not is_postgres(url):
            return any("LOCK WAIT" in one for one in _innodb_transactions(connection))
        question = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock'"
        )
        return bool(connection.exec_driver_sql(question).scalar())


def in_transaction(url: str) -> bool:
    """Whether anybody has a transaction open in the database of ``url``."""
    with beside(url) as connection:
        if not is_postgres(url):
            return any(", ACTIVE" in one for one in _innodb_transactions(connection))
        question = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND state = 'idle in transaction'"
        )
        return bool(connection.exec_driver_sql(question).scalar())


def _innodb_transactions(connection: Connection) -> list[str]:
    """What InnoDB says of each transaction in this database.

    ``information_schema.innodb_trx`` is a cache that is not renewed while anybody reads it more
    often than every 100 ms: who polls it sees the first answer for ever.
    """
    ours = {
        number
        for (number,) in connection.exec_driver_sql(
            "SELECT id FROM information_schema.processlist WHERE db = DATABASE()"
        )
    }
    (status,) = [row[2] for row in connection.exec_driver_sql("SHOW ENGINE INNODB STATUS")]
    return [
        transaction
        for transaction in str(status).split("---TRANSACTION ")[1:]
        if (thread := re.search(r"thread id (\d+)", transaction)) and int(thread[1]) in ours
    ]


class Proxy:
    """Stands before a server; can fall silent, and can cut at a word.

    Args:
        url: of the database behind it.
    """

    def __init__(self, url: str) -> None:
        self._behind = make_url(url)
        self.silent = threading.Event()
        self.cut_at: tuple[bytes, bool] | None = None
        """Break the connection at this word; behind its answer, or before it is passed on."""
        self.cuts = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.silent.clear()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def url(self) -> str:
        port = self._listener.getsockname()[1]
        told = {"sslmode": "disable"} if self._behind.drivername.startswith("postgres") else {}
        url = self._behind.set(host="127.0.0.1", port=port).update_query_dict(told)
        return url.render_as_string(hide_password=False)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        port = self._behind.port or (5432 if "postgres" in self._behind.drivername else 3306)
        place = (self._behind.host or "127.0.0.1", port)
        with client, socket.create_connection(place) as server, suppress(OSError):
            while True:
                for source in select.select([client, server], [], [], 10)[0]:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    if self.silent.is_set():
                        continue  # what arrives meanwhile is lost, as if the server had hung
                    target = server if source is client else client
                    if source is client and self.cut_at and self.cut_at[0] in data:
                        behind = self.cut_at[1]
                        self.cut_at, self.cuts = None, self.cuts + 1
                        if behind:
                            server.sendall(data)
                            server.recv(1 << 16)
                        return
                    target.sendall(data)
