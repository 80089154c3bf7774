"""Real PostgreSQL and MariaDB for the tests: a database of one's own on a server.

The server is the one that ``DEMIJOHN_TEST_POSTGRES_URL`` or ``DEMIJOHN_TEST_MARIADB_URL`` names,
else the one on the standard port, else one that is spawned: PostgreSQL from the wheel ``pgserver``,
MariaDB from PATH. On it a database with a name of its own is created, and dropped in the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import URL, Connection, create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from tests.processes import HOST, free_port, spawn, stop, wait_until
from tests.servers import unavailable

PATIENCE_S: Final = 30.0


@contextmanager
def postgres_database() -> Iterator[str]:
    """Give the URL of an empty PostgreSQL database, for psycopg 3."""
    with ExitStack() as stack:
        server = (
            _named("DEMIJOHN_TEST_POSTGRES_URL", "postgresql+psycopg")
            or _listening(5432, "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
            or _spawned_postgres(stack)
        )
        if server is None:
            unavailable("PostgreSQL", "name one by DEMIJOHN_TEST_POSTGRES_URL, or install pgserver")
        with _database_on(server) as url:
            yield url


@contextmanager
def mariadb_database() -> Iterator[str]:
    """Give the URL of an empty MariaDB database, for PyMySQL."""
    with ExitStack() as stack:
        server = (
            _named("DEMIJOHN_TEST_MARIADB_URL", "mariadb+pymysql")
            or _listening(3306, "mariadb+pymysql://root@127.0.0.1:3306/?charset=utf8mb4")
            or _spawned_mariadb(stack)
        )
        if server is None:
            unavailable("MariaDB", "name one by DEMIJOHN_TEST_MARIADB_URL, or install mariadbd")
        with _database_on(server) as url:
            yield url


def _named(variable: str, driver: str) -> URL | None:
    named = os.environ.get(variable)
    return make_url(named).set(drivername=driver) if named else None


def _listening(port: int, url: str) -> URL | None:
    """Return ``url`` if somebody listens on the standard port and lets us in."""
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)):
            return None
    return make_url(url) if _answers(make_url(url)) else None


def _answers(url: URL) -> bool:
    try:
        with _administration(url):
            return True
    except OperationalError:
        return False


@contextmanager
def _administration(url: URL) -> Iterator[Connection]:
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        yield connection


@contextmanager
def _database_on(server: URL) -> Iterator[str]:
    name = f"demijohn_test_{uuid.uuid4().hex[:12]}"
    with _administration(server) as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        forced = " WITH (FORCE)" if server.drivername.startswith("postgresql") else ""
        with _administration(server) as connection:
            connection.execute(text(f"DROP DATABASE {name}{forced}"))


# --- servers of our own --------------------------------------------------------------------------


def _spawned_postgres(stack: ExitStack) -> URL | None:
    try:
        from pgserver import postgres_server as wheel
    except ImportError:
        return None
    folder = tempfile.mkdtemp(prefix="demijohn-postgres-")
    server = wheel.get_server(folder)
    stack.callback(lambda: shutil.rmtree(folder, ignore_errors=True))
    stack.callback(server.cleanup)
    return make_url(server.get_uri()).set(drivername="postgresql+psycopg")


def _spawned_mariadb(stack: ExitStack) -> URL | None:
    server, install = shutil.which("mariadbd"), shutil.which("mariadb-install-db")
    if server is None or install is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="demijohn-mariadb-"))
    stack.callback(lambda: shutil.rmtree(folder, ignore_errors=True))
    data, log, port = folder / "data", folder / "log", free_port()
    # Neither runs as root unless it is told to.
    common = ["--no-defaults", f"--datadir={data}", *(["--user=root"] if os.geteuid() == 0 else [])]
    installing = spawn([install, *common, "--auth-root-authentication-method=normal"], log=log)
    installing.wait(PATIENCE_S)
    place = [f"--port={port}", f"--bind-address={HOST}", f"--socket={folder}/socket"]
    process = spawn(
        [server, *common, *place, f"--pid-file={folder}/pid"], log=log, dies_by=signal.SIGTERM
    )
    stack.callback(lambda: stop(process))
    url = make_url(f"mariadb+pymysql://root@{HOST}:{port}/?charset=utf8mb4")
    wait_until(lambda: _answers(url), "MariaDB answers", timeout_s=PATIENCE_S)
    return url
