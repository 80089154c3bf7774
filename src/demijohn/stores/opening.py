"""From a URL to a store."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Final
from urllib.parse import urlsplit

from ..errors import ConfigError, MissingExtra
from .protocol import Store

# scheme -> (module below this package, the library it needs, the extra that brings it)
SCHEMES: Final[dict[str, tuple[str, str, str]]] = {
    "memory": ("memory", "", ""),
    "sqlite": ("sqlite", "", ""),
    **{
        scheme: ("redis", "redis", "redis")
        for name in ("redis", "valkey")
        for scheme in (
            name,
            f"{name}s",
            f"{name}+unix",
            f"{name}+cluster",
            f"{name}s+cluster",
            f"{name}+sentinel",
            f"{name}s+sentinel",
        )
    },
    **dict.fromkeys(
        (
            "postgresql",
            "postgresql+psycopg",
            "postgres",
            "mariadb",
            "mariadb+pymysql",
            "mysql",  # is told why it will not do
            "mysql+pymysql",
        ),
        ("sql", "sqlalchemy", "sql"),
    ),
}
SCHEMES["rediss"] = SCHEMES["redis"]


def open_store(url: str) -> Store:
    """Make the store that ``url`` names. Nothing is connected to yet.

    Args:
        url: ``memory://``, ``sqlite:///relative.db``, ``sqlite:////absolute.db``,
            ``redis://host:6379/0``, ``rediss://``, ``redis+unix:///path?db=0``,
            ``redis+cluster://host:7000,host:7001``,
            ``redis+sentinel://host:26379,host:26380/service/0``; ``valkey`` for ``redis``
            likewise; ``postgresql://user@host/database``, ``mariadb://user@host/database``.
            Options stand in the query: see the reference of settings.

    Raises:
        ConfigError: the scheme, a part of the URL or an option is not known.
        MissingExtra: the driver for this scheme is not installed.
    """
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        known = ", ".join(sorted(SCHEMES))
        raise ConfigError(f"store URL has the unknown scheme {scheme!r}; known are {known}")
    module, library, extra = SCHEMES[scheme]
    try:
        opener: Callable[[str], Store] = import_module(f"{__package__}.{module}").from_url
    except ModuleNotFoundError as error:
        if library and error.name == library:
            raise MissingExtra(f"a {scheme}:// store", extra) from error
        raise
    return opener(url)
