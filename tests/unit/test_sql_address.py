"""What the URL of an SQL store may say."""

from __future__ import annotations

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("psycopg")
pytest.importorskip("pymysql")

from pymysql.err import OperationalError as MariaDBError
from sqlalchemy.exc import OperationalError

from demijohn.errors import ConfigError
from demijohn.stores.sql import make, parse_url
from demijohn.stores.sql.address import Options
from demijohn.stores.sql.dialect import Trouble
from demijohn.stores.sql.listener import Listener
from demijohn.stores.sql.mariadb import MariaDB
from demijohn.stores.sql.postgres import Postgres
from demijohn.stores.sql.waking import Poller


def test_options_of_the_store_are_taken_and_those_of_the_driver_left() -> None:
    address = parse_url(
        "postgresql://ann:s3cret@host:5433/shop?timeout=0.5&table=kept&sslmode=require"
        "&max_connections=3&breaker_failures=7&breaker_reset=1&breaker_reset_max=2"
    )
    assert address.server == "postgresql"
    assert address.options.timeout == 0.5
    assert address.options.table == "kept"
    assert address.options.max_connections == 3
    assert address.options.breaker.failures == 7
    assert address.options.breaker.reset_ms == 1000
    assert dict(address.url.query) == {"sslmode": "require"}
    assert address.url.drivername == "postgresql+psycopg"
    assert address.name == "postgresql at host:5433/shop"


def test_name_of_a_local_server_says_so() -> None:
    assert parse_url("mariadb:///shop?unix_socket=/run/s").name == "mariadb at localhost/shop"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://h", "name a database"),
        ("postgresql://h:port/d", "cannot be read"),
        ("mysql://h/d", "MySQL is not supported"),
        ("mysql+pymysql://h/d", "write mariadb://"),
        ("postgresql://h/d?timeot=1", "did you mean 'timeout'"),
        ("postgresql://h/d?sslmod=require", "did you mean 'sslmode'"),
        ("mariadb://h/d?sslmode=require", "no option 'sslmode'"),
        ("mariadb://h/d?zzz=1", "known are timeout"),
        ("postgresql://h/d?timeout=soon", "not a duration"),
        ("postgresql://h/d?timeout=0", "above 0"),
        ("postgresql://h/d?timeout=1&timeout=2", "given twice"),
        ("postgresql://h/d?max_connections=many", "not a whole number"),
        ("postgresql://h/d?max_connections=0", "at least 1"),
        ("postgresql://h/d?breaker_failures=0", "at least 1"),
        ("postgresql://h/d?table=Robert');--", "small letters"),
        ("postgresql://h/d?waking=never", "neither notify nor poll"),
        ("postgresql://h/d?pgbouncer=maybe", "neither yes nor no"),
    ],
)
def test_wrong_url_is_refused_in_words(url: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(url)
    assert words in str(caught.value)


def test_password_is_in_no_message() -> None:
    for url in (
        "postgresql://ann:s3cret@h",
        "mysql://ann:s3cret@h/d",
        "mariadb://ann:s3cret@h:x/d",
    ):
        with pytest.raises(ConfigError) as caught:
            make(url)
        assert "s3cret" not in str(caught.value)


def told(url: str) -> dict[str, object]:
    address = parse_url(url)
    return Postgres(address.options).connect_arguments(address)


def test_server_is_told_to_end_in_time_what_takes_too_long() -> None:
    arguments = told("postgresql://h/d?timeout=1&connect_timeout=0.5")
    assert arguments["tcp_user_timeout"] == 1000
    assert arguments["connect_timeout"] == 2
    assert "statement_timeout=850 -c lock_timeout=700" in str(arguments["options"])
    assert arguments["prepare_threshold"] == 2


def test_what_the_url_says_to_libpq_counts() -> None:
    arguments = told("postgresql://h/d?options=-c%20lock_timeout%3D5&tcp_user_timeout=7")
    assert arguments.keys().isdisjoint({"options", "tcp_user_timeout"})


def test_pgbouncer_is_told_nothing_that_belongs_to_a_session() -> None:
    arguments = told("postgresql://h/d?pgbouncer=yes")
    assert "options" not in arguments
    assert arguments["prepare_threshold"] is None
    store = make("postgresql://h/d?pgbouncer=yes")
    assert isinstance(store._ear, Poller)
    assert isinstance(make("postgresql://h/d?pgbouncer=yes&waking=notify")._ear, Listener)


def test_mariadb_has_nobody_to_notify() -> None:
    with pytest.raises(NotImplementedError):
        MariaDB(Options()).notify([])


class _Said(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("what the server said")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("code", "trouble"),
    [
        (None, Trouble.LOST),
        ("08006", Trouble.LOST),
        ("57P01", Trouble.LOST),
        ("53300", Trouble.REFUSED),
        ("53100", Trouble.REFUSED),
        ("28P01", Trouble.REFUSED),
        ("3D000", Trouble.REFUSED),
        ("58030", Trouble.REFUSED),
        ("40001", Trouble.CONFLICT),
        ("40P01", Trouble.CONFLICT),
        ("55P03", Trouble.LOCKED),
        ("22012", Trouble.MISTAKE),
    ],
)
def test_codes_of_postgresql_say_who_may_try_again(code: str | None, trouble: Trouble) -> None:
    error = OperationalError("SELECT", (), _Said(code))
    assert Postgres(Options()).trouble(error) is trouble


@pytest.mark.parametrize(
    ("arguments", "trouble"),
    [
        ((2013, "lost"), Trouble.LOST),
        ((), Trouble.LOST),
        (("odd",), Trouble.LOST),
        ((1213, "deadlock"), Trouble.CONFLICT),
        ((1205, "lock wait"), Trouble.LOCKED),
        ((1114, "full"), Trouble.REFUSED),
        ((1064, "syntax"), Trouble.MISTAKE),
    ],
)
def test_codes_of_mariadb_say_who_may_try_again(
    arguments: tuple[object, ...], trouble: Trouble
) -> None:
    error = OperationalError("SELECT", (), MariaDBError(*arguments))
    assert MariaDB(Options()).trouble(error) is trouble


def test_error_that_nobody_has_raised_is_a_lost_connection() -> None:
    error = OperationalError("SELECT", (), _Said(None))
    error.orig = None
    assert MariaDB(Options()).trouble(error) is Trouble.LOST
