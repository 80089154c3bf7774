"""Scanning, damage, health, closing, forking."""

from __future__ import annotations

import os

import pytest

from demijohn.core.step import Outcome
from demijohn.errors import CorruptRecord
from demijohn.stores.protocol import Store

from .fixtures import Fixtures
from .tools import (
    BOB,
    LEASE_MS,
    PROMPTLY_S,
    RETAIN_MS,
    ManualClock,
    begin,
    complete,
    forked,
    listening,
    one,
    release,
    renew,
    resolve,
    stored,
    wait_until_woken,
)


class Lifecycle(Fixtures):
    """What operators and process managers do to a store."""

    def test_scan_yields_the_live_rows_below_a_prefix(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        names = {f"{key}:{index}" for index in range(250)}
        store.run([begin(name) for name in sorted(names)])
        one(store, begin(key.replace(":key", ":other")))
        assert {found for found, _ in store.scan(key)} == names
        clock.advance(LEASE_MS + RETAIN_MS)
        assert list(store.scan(key)) == []

    def test_prefix_of_a_scan_is_not_a_pattern(self, store: Store, key: str) -> None:
        store.run([begin(f"{key}:a*"), begin(f"{key}:ab")])
        assert [found for found, _ in store.scan(f"{key}:a*")] == [f"{key}:a*"]

    def test_unreadable_row_is_an_error_of_its_own(self, store: Store, key: str) -> None:
        store.run([begin(key), complete(key)])
        self.corrupt(store, key)
        for step in (begin(key, token=BOB), renew(key), complete(key), release(key), resolve(key)):
            with pytest.raises(CorruptRecord):
                store.run([step])

    def test_unreadable_row_undoes_the_whole_run(self, store: Store, key: str) -> None:
        before = key + ":before"
        store.run([begin(key), complete(key)])
        self.corrupt(store, key)
        with pytest.raises(CorruptRecord):
            store.run([begin(before), begin(key, token=BOB)])
        assert stored(store, before) is None

    def test_health_tells_that_the_store_answers(self, store: Store) -> None:
        health = store.health()
        assert health.ok
        assert health.kind
        assert 0 <= health.latency_ms < PROMPTLY_S * 1000

    def test_close_may_be_called_twice(self, store: Store, key: str) -> None:
        listening(store)
        one(store, begin(key))
        store.close()
        store.close()

    def test_child_process_uses_the_store_of_its_parent(self, store: Store, key: str) -> None:
        inbox = listening(store)
        one(store, begin(key))
        child = forked(lambda: self._act_as_child(store, key, inbox))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert one(store, complete(key)) == Outcome("completed")
        assert not store.wait(key + ":unused", since=store.mark, timeout_ms=50)

    def _act_as_child(self, store: Store, key: str, parent_inbox: str) -> None:
        assert one(store, begin(key, token=BOB)).status == "busy"
        inbox = listening(store)
        assert not inbox or inbox != parent_inbox
        mine = key + ":child"
        one(store, begin(mine))
        mark = store.mark
        assert one(store, begin(mine, token=BOB, inbox=inbox)).status == "busy"
        one(store, complete(mine))
        assert wait_until_woken(store, mine, mark)
        store.close()
