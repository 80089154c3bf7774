"""Waiting for a key, and being woken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from demijohn.core.step import Outcome, Step
from demijohn.stores.protocol import Store

from .fixtures import Fixtures
from .tools import (
    BOB,
    FRAME,
    LEASE_MS,
    PROMPTLY_S,
    ManualClock,
    begin,
    complete,
    follow,
    listening,
    one,
    release,
    resolve,
    wait_until_woken,
)


class Waking(Fixtures):
    """No wake-up is missed, and none is made up."""

    @pytest.mark.parametrize("end", [complete, release])
    def test_the_end_of_a_run_wakes_who_waits(
        self, store: Store, key: str, end: Callable[..., Step]
    ) -> None:
        inbox = listening(store)
        one(store, begin(key))
        mark = store.mark
        assert one(store, begin(key, token=BOB, inbox=inbox)).status == "busy"
        with ThreadPoolExecutor(1) as pool:
            woken = pool.submit(wait_until_woken, store, key, mark)
            one(store, end(key))
            assert woken.result()

    def test_operator_wakes_who_waits(self, store: Store, clock: ManualClock, key: str) -> None:
        inbox = listening(store)
        one(store, begin(key))
        mark = store.mark
        one(store, begin(key, token=BOB, inbox=inbox))
        clock.advance(LEASE_MS)
        one(store, resolve(key))
        assert wait_until_woken(store, key, mark)

    def test_wake_up_between_look_and_wait_is_not_missed(self, store: Store, key: str) -> None:
        inbox = listening(store)
        one(store, begin(key))
        mark = store.mark
        one(store, begin(key, token=BOB, inbox=inbox))
        one(store, complete(key))
        self.let_pass(store, mark)  # the wake-up is over before the wait begins
        started = time.monotonic()
        assert wait_until_woken(store, key, mark)
        assert time.monotonic() - started < PROMPTLY_S / 2

    def let_pass(self, store: Store, mark: int) -> None:
        """Wait until the store has heard something since ``mark``; some hear late."""
        deadline = time.monotonic() + PROMPTLY_S
        while store.mark == mark and time.monotonic() < deadline:
            time.sleep(0.001)

    def test_wait_ends_in_time_when_nothing_happens(self, store: Store, key: str) -> None:
        listening(store)
        started = time.monotonic()
        assert not store.wait(key, since=store.mark, timeout_ms=150)
        assert 0.1 < time.monotonic() - started < PROMPTLY_S
        assert not store.wait(key, since=store.mark, timeout_ms=0)

    def test_wake_up_of_another_key_does_not_end_a_wait(self, store: Store, key: str) -> None:
        inbox = listening(store)
        other = key + ":other"
        one(store, begin(other))
        mark = store.mark
        one(store, begin(other, token=BOB, inbox=inbox))
        one(store, complete(other))
        assert wait_until_woken(store, other, mark)
        assert not store.wait(key, since=store.mark, timeout_ms=100)

    def test_waiters_survive_a_takeover(self, store: Store, clock: ManualClock, key: str) -> None:
        inbox = listening(store)
        one(store, begin(key))
        mark = store.mark
        one(store, begin(key, token=BOB, inbox=inbox))
        clock.advance(LEASE_MS)
        store.run([begin(key, token=b"carol"), complete(key, token=b"carol")])
        assert wait_until_woken(store, key, mark)

    def test_many_waiters_all_get_the_first_ones_answer(self, store: Store, key: str) -> None:
        waiters = 10
        barrier = threading.Barrier(waiters + 1)

        def duplicate(me: int) -> Outcome:
            barrier.wait()
            return follow(store, lambda: begin(key, token=b"%d" % me, inbox=store.inbox))

        one(store, begin(key))
        with ThreadPoolExecutor(waiters) as pool:
            answers = [pool.submit(duplicate, me) for me in range(waiters)]
            barrier.wait()
            time.sleep(0.05)
            one(store, complete(key))
            for answer in answers:
                assert answer.result() == Outcome("replay", (0, FRAME), halts=True)
