"""What the memory store does beyond the contract: it forgets what has expired."""

from __future__ import annotations

import time

import pytest

from demijohn.core.step import Decision, Outcome, Rows, Step, StepKind
from demijohn.errors import ConfigError
from demijohn.stores.memory import MemoryStore, from_url, wall_clock_ms
from demijohn.testing.contract import LEASE_MS, RETAIN_MS, ManualClock, begin, complete


def test_clock_is_that_of_this_machine() -> None:
    assert abs(wall_clock_ms() - time.time() * 1000) < 1000


def test_expired_rows_do_not_pile_up() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    for number in range(1000):
        store.run([begin(f"{number}")])
        clock.advance(LEASE_MS + RETAIN_MS)
    assert len(store._rows) <= 3
    assert len(store._expiries) <= 3


def test_rows_that_live_on_are_kept() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    store.run([begin("kept"), complete("kept")])
    for number in range(10):
        clock.advance(LEASE_MS + RETAIN_MS)
        store.run([begin(f"{number}")])
    assert "kept" in dict(store.scan("kept"))


def test_deleted_row_is_swept_without_harm() -> None:
    def delete(rows: Rows, now_ms: int) -> Decision:
        return Decision(Outcome("deleted"), {0: None})

    clock = ManualClock()
    store = MemoryStore(clock=clock)
    store.run([begin("gone")])
    store.run([Step(StepKind("test.delete", delete, "none.lua"), ("gone",), ())])
    assert dict(store.scan("")) == {}
    clock.advance(LEASE_MS + RETAIN_MS)
    store.run([begin("other")])
    assert len(store._expiries) == 1


@pytest.mark.parametrize("url", ["memory:", "memory://"])
def test_url_takes_nothing(url: str) -> None:
    store = from_url(url)
    assert store.health().ok
    store.close()
    with pytest.raises(ConfigError, match="neither a path nor options"):
        from_url(url + "/path")
