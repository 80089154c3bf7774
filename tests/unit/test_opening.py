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


def _forget_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("demijohn.stores.redis")]:
        monkeypatch.delitem(sys.modules, name)


def test_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_the_store(monkeypatch)
    for name in [name for name in sys.modules if name.split(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, name)

    class Nothing:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "redis":
                raise ModuleNotFoundError("No module named 'redis'", name="redis")

    monkeypatch.setattr(sys, "meta_path", [Nothing(), *sys.meta_path])
    with pytest.raises(MissingExtra, match=r"demijohn\[redis\]"):
        open_store("redis://h")


def test_other_missing_module_is_not_taken_for_the_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SCHEMES, "broken", ("no_such_module", "redis", "redis"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        open_store("broken://h")
