"""What holds a lock or a socket is made anew in a child."""

from __future__ import annotations

import gc
import threading

from demijohn.stores import forks
from demijohn.stores.breaker import BreakerOptions, CircuitBreaker, Guarded
from demijohn.stores.forks import renew_in_children
from demijohn.stores.memory import MemoryStore


class Renewed:
    def __init__(self) -> None:
        self.times = 0
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        self.times += 1


def test_all_that_live_are_renewed_in_a_child() -> None:
    renewed = Renewed()
    forks._renew_all()  # what a child does first
    assert renewed.times == 1


def test_what_is_gone_is_not_kept_for_it() -> None:
    before = len(forks._renewables)
    renewed = Renewed()
    assert len(forks._renewables) == before + 1
    del renewed
    gc.collect()
    assert len(forks._renewables) <= before


def test_breaker_has_a_new_lock_in_a_child() -> None:
    guarded = Guarded(MemoryStore(), CircuitBreaker(BreakerOptions()), name="memory")
    held: threading.Lock = guarded._lock  # type: ignore[assignment]
    with held:
        guarded.renew_after_fork()
        assert not guarded._lock.locked()
