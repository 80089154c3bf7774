"""A URL's scheme chooses the store, and says what is missing."""

from __future__ import annotations

import sys

import pytest

from demijohn.errors import ConfigError, MissingExtra
from demijohn.stores import open_store
from demijohn.stores.breaker import Guarded
from demijohn.stores.memory import MemoryStore
from demijohn.stores.opening import SCHEMES


def test_memory_is_explicit() -> None:
    assert isinstance(open_store("memory://"), MemoryStore)


def test_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown scheme 'mongo'.*redis"):
        open_store("mongo://h")


@pytest.mark.parametrize(
    "scheme",
    ["postgresql", "postgresql+psycopg", "postgres", "mariadb", "mariadb+pymysql"],
)
def test_every_way_to_name_a_database_opens_a_guarded_store(scheme: str) -> None:
    for library in ("sqlalchemy", "psycopg", "pymysql"):
        pytest.importorskip(library)
    store = open_store(f"{scheme}://user@host/database")
    assert isinstance(store, Guarded)
    store.close()


@pytest.mark.parametrize("server", ["redis", "valkey"])
@pytest.mark.parametrize("tls", ["", "s"])
@pytest.mark.parametrize("tail", ["://h", "+cluster://h", "+sentinel://h/main"])
def test_every_way_to_name_a_redis_opens_a_guarded_store(server: str, tls: str, tail: str) -> None:
    pytest.importorskip("redis")
    store = open_store(server + tls + tail)
    assert isinstance(store, Guarded)
    store.close()


def test_socket_of_a_redis_opens_a_guarded_store() -> None:
    pytest.importorskip("redis")
    assert isinstance(open_store("valkey+unix:///run/valkey.sock"), Guarded)


def _forget(monkeypatch: pytest.MonkeyPatch, store: str, library: str) -> None:
    """Have neither the store nor the library be there."""
    for name in list(sys.modules):
        if name.startswith(f"demijohn.stores.{store}") or name.split(".")[0] == library:
            monkeypatch.delitem(sys.modules, name)

    class Nothing:
        def find_spec(self, name: str, *_: object) -> None:
            if name == library:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Nothing(), *sys.meta_path])


@pytest.mark.parametrize(
    ("url", "library", "extra"),
    [("redis://h", "redis", "redis"), ("postgresql://h/d", "sqlalchemy", "sql")],
)
def test_missing_driver_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, url: str, library: str, extra: str
) -> None:
    _forget(monkeypatch, extra, library)
    with pytest.raises(MissingExtra, match=rf"demijohn\[{extra}\]"):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "library", "cure"),
    [
        ("postgresql://h/d", "psycopg", r"pip install 'psycopg\[binary\]'"),
        ("mariadb://h/d", "pymysql", "pip install 'pymysql'"),
    ],
)
def test_missing_driver_of_a_database_is_told_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, url: str, library: str, cure: str
) -> None:
    pytest.importorskip("sqlalchemy")
    _forget(monkeypatch, "sql", library)
    with pytest.raises(ConfigError, match=cure):
        open_store(url)


def test_other_missing_module_is_not_taken_for_the_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SCHEMES, "broken", ("no_such_module", "redis", "redis"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        open_store("broken://h")
