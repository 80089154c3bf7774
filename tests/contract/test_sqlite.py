"""The SQLite store keeps the contract."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from demijohn.stores.protocol import Store
from demijohn.stores.sqlite import SqliteStore
from demijohn.testing.contract import ManualClock, StoreContract


class TestSqlite(StoreContract):
    @pytest.fixture
    def store(self, clock: ManualClock, tmp_path: Path) -> Iterator[Store]:
        store = SqliteStore(tmp_path / "rows.db", clock=clock, synchronous="normal")
        yield store
        store.close()

    def corrupt(self, store: Store, key: str) -> None:
        assert isinstance(store, SqliteStore)
        with sqlite3.connect(store._file.path) as connection:
            connection.execute("UPDATE rows SET data = x'01ff' WHERE key = ?", (key,))
        connection.close()
