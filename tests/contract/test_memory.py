"""The memory store keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demijohn.stores.memory import MemoryStore
from demijohn.stores.protocol import Store
from demijohn.testing.contract import ManualClock, StoreContract


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self, clock: ManualClock) -> Iterator[Store]:
        store = MemoryStore(clock=clock)
        yield store
        store.close()

    def corrupt(self, store: Store, key: str) -> None:
        assert isinstance(store, MemoryStore)
        store._rows[key] = {**store._rows[key], "s": 99}
