"""The SQL store keeps the contract on PostgreSQL and on MariaDB, however it hears wake-ups."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("sqlalchemy")

from sqlalchemy import create_engine, text

from demijohn.stores.protocol import Store
from demijohn.stores.sql import SqlStore, from_url, make
from demijohn.stores.sql.run import key_of
from demijohn.testing.contract import ManualClock, StoreContract

# Two busy cores are slower than the default deadline, and frames of 10 MB are not what it is for.
PATIENT = {"timeout": "20", "connect_timeout": "20"}


def patient(url: str, **options: str) -> str:
    separator = "&" if "?" in url else "?"
    return url + separator + "&".join(f"{n}={v}" for n, v in (PATIENT | options).items())


class _OnOneServer(StoreContract):
    def corrupt(self, store: Store, key: str) -> None:
        assert isinstance(store, SqlStore)
        engine = create_engine(store.address.url)
        with engine.begin() as connection:
            damage = text("UPDATE demijohn_rows SET data = :data WHERE id = :id")
            connection.execute(damage, {"data": b"\x01\xff", "id": key_of(key).digest})
        engine.dispose()


class TestPostgres(_OnOneServer):
    @pytest.fixture
    def store(self, postgres_url: str, clock: ManualClock) -> Iterator[Store]:
        store = make(patient(postgres_url), clock=clock)
        yield store
        store.close()


class TestPostgresPolling(_OnOneServer):
    @pytest.fixture
    def store(self, postgres_url: str, clock: ManualClock) -> Iterator[Store]:
        store = make(patient(postgres_url, waking="poll"), clock=clock)
        yield store
        store.close()


class TestMariaDB(_OnOneServer):
    @pytest.fixture
    def store(self, mariadb_url: str, clock: ManualClock) -> Iterator[Store]:
        store = make(patient(mariadb_url), clock=clock)
        yield store
        store.close()


class TestGuarded(StoreContract):
    """Behind its circuit breaker."""

    @pytest.fixture
    def store(self, postgres_url: str, clock: ManualClock) -> Iterator[Store]:
        guarded = from_url(patient(postgres_url))
        guarded.store.close()
        guarded.store = make(patient(postgres_url), clock=clock)
        yield guarded
        guarded.close()
