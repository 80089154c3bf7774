"""From a URL to a database and how to speak to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from demijohn.errors import ConfigError
from demijohn.stores import options
from demijohn.stores.breaker import BreakerOptions

Server: TypeAlias = Literal["postgresql", "mariadb"]

DRIVERS: Final[dict[str, tuple[Server, str]]] = {
    "postgresql": ("postgresql", "postgresql+psycopg"),
    "postgres": ("postgresql", "postgresql+psycopg"),
    "postgresql+psycopg": ("postgresql", "postgresql+psycopg"),
    "mariadb": ("mariadb", "mariadb+pymysql"),
    "mariadb+pymysql": ("mariadb", "mariadb+pymysql"),
}
"""scheme -> (server, what SQLAlchemy calls it with its driver)"""

# What SQLAlchemy and PyMySQL understand. For PostgreSQL libpq is asked for its own.
MARIADB_PARAMETERS: Final = frozenset(
    {
        *("bind_address", "charset", "program_name", "unix_socket"),
        *("read_default_file", "read_default_group"),
        *("ssl_ca", "ssl_capath", "ssl_cert", "ssl_check_hostname", "ssl_cipher", "ssl_key"),
    }
)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the store itself that its URL may carry; durations in seconds.

    Args:
        timeout: how long a request may be held up: by locks, by a server that hangs, or by a want
            of connections.
        connect_timeout: how long to wait for a connection; libpq knows whole seconds from 2 on.
        max_connections: the most connections of a process, besides the one that listens.
        table: the name of the table: small letters, digits and underscores.
        purge_every: how often expired rows are removed.
        waking: ``notify`` or ``poll``: how wake-ups of other processes are heard on PostgreSQL;
            ``""`` for what the server is best at.
        pgbouncer: ``yes`` if PgBouncer stands before PostgreSQL: then nothing is set or prepared
            for a session, which is another's in the next moment, and waiters poll.
        breaker_failures: how many failures in a row open the circuit breaker.
        breaker_reset: the breaker's first pause; it doubles with each failed probe.
        breaker_reset_max: the breaker's longest pause.
    """

    timeout: float = 2.0
    connect_timeout: float = 2.0
    max_connections: int = 10
    table: str = "demijohn_rows"
    purge_every: float = 10.0
    waking: str = ""
    pgbouncer: str = "no"
    breaker_failures: int = 3
    breaker_reset: float = 0.25
    breaker_reset_max: float = 5.0

    @property
    def breaker(self) -> BreakerOptions:
        """The options of the circuit breaker."""
        return BreakerOptions(
            failures=self.breaker_failures,
            reset_ms=round(self.breaker_reset * 1000),
            reset_max_ms=round(self.breaker_reset_max * 1000),
        )


@dataclass(frozen=True, slots=True)
class Address:
    """A database, and how to speak to it.

    Args:
        server: what kind it is.
        url: what SQLAlchemy connects to; its query has the driver's parameters only.
        options: the store's own.
    """

    server: Server
    url: URL
    options: Options = field(default_factory=Options)

    @property
    def name(self) -> str:
        """How messages call the store: without user and password."""
        port = f":{self.url.port}" if self.url.port else ""
        return f"{self.server} at {self.url.host or 'localhost'}{port}/{self.url.database or ''}"


def parse_url(text: str) -> Address:
    """Read a store's URL; the how-to on stores lists the options.

    Raises:
        ConfigError: a part of it makes no sense; the message names it.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise ConfigError("the URL of the SQL store cannot be read") from error
    if url.drivername.startswith("mysql"):
        raise ConfigError(
            "MySQL is not supported, for want of INSERT ... RETURNING; if the server is MariaDB,"
            " write mariadb://"
        )
    server, driver = DRIVERS[url.drivername]
    if not url.database:
        raise ConfigError(f"name a database: {url.drivername}://user@host/database")
    own = {name: value for name, value in url.query.items() if name in _KNOWN}
    return Address(server, url.set(drivername=driver).difference_update_query(own), _options(own))


def refuse_unknown(address: Address, known: frozenset[str]) -> None:
    """Check that every parameter left in the URL is one of the driver's.

    Raises:
        ConfigError: one is neither the store's nor the driver's; the message names the nearest.
    """
    for name in sorted(address.url.query.keys() - known):
        store = f"a store on {address.server}"
        raise options.unknown(store, name, [*_KNOWN, *sorted(known)], _KNOWN)


def _options(given: Mapping[str, str | tuple[str, ...]]) -> Options:
    texts: dict[str, str] = {}
    for name, value in given.items():
        if not isinstance(value, str):
            raise ConfigError(f"the option {name} of a store's URL is given twice")
        texts[name] = value
    found = options.read(Options, texts)
    if not re.fullmatch("[a-z_][a-z0-9_]{0,47}", found.table):
        raise ConfigError(f"table={found.table!r} is not small letters, digits and underscores")
    if found.waking not in {"", "notify", "poll"}:
        raise ConfigError(f"waking={found.waking!r} is neither notify nor poll")
    if found.pgbouncer not in {"yes", "no"}:
        raise ConfigError(f"pgbouncer={found.pgbouncer!r} is neither yes nor no")
    return found


_KNOWN: Final = tuple(options.readers_of(Options))
