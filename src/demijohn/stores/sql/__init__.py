"""The store on PostgreSQL or MariaDB."""

from __future__ import annotations

from importlib import import_module
from typing import Final, cast

from demijohn.errors import ConfigError
from demijohn.stores.breaker import CircuitBreaker, Guarded
from demijohn.stores.protocol import Clock
from demijohn.stores.sql.address import Address, Server, parse_url, refuse_unknown
from demijohn.stores.sql.dialect import Dialect
from demijohn.stores.sql.store import SqlStore

__all__ = ["Address", "SqlStore", "from_url", "make", "parse_url"]

# server -> (module below this package, class, the driver that it imports)
_DIALECTS: Final[dict[Server, tuple[str, str, str]]] = {
    "postgresql": ("postgres", "Postgres", "psycopg[binary]"),
    "mariadb": ("mariadb", "MariaDB", "pymysql"),
}


def from_url(url: str) -> Guarded:
    """Make the store that ``url`` names, behind its circuit breaker. Nothing is sent yet.

    Raises:
        ConfigError: a part of the URL or an option makes no sense, or the driver is missing.
    """
    store = make(url)
    breaker = CircuitBreaker(store.address.options.breaker)
    return Guarded(store, breaker, name=store.address.name)


def make(url: str, *, clock: Clock | None = None) -> SqlStore:
    """Make the store that ``url`` names, without a breaker.

    Args:
        url: see :func:`from_url`.
        clock: see :class:`SqlStore`.

    Raises:
        ConfigError: see :func:`from_url`.
    """
    address = parse_url(url)
    dialect = _dialect_for(address)
    refuse_unknown(address, dialect.parameters)
    return SqlStore(address, dialect, clock=clock)


def _dialect_for(address: Address) -> Dialect:
    module, name, driver = _DIALECTS[address.server]
    try:
        found = getattr(import_module(f"{__package__}.{module}"), name)
    except ImportError as error:
        # psycopg is there without its libpq: that is an ImportError, too.
        raise ConfigError(
            f"a store on {address.server} needs the driver {driver.partition('[')[0]}, which"
            f" cannot be loaded ({error}): pip install '{driver}'"
        ) from error
    return cast("Dialect", found(address.options))
