"""Wake-ups inside a process are never missed, whatever the order of ring and wait."""

from __future__ import annotations

import threading
import time

import pytest

from demijohn.stores.bell import Bell, _Waiter


def wait_for_waiters(bell: Bell, count: int) -> None:
    deadline = time.monotonic() + 5
    while bell.waiting != count and time.monotonic() < deadline:
        time.sleep(0.001)
    assert bell.waiting == count


class Waiting(threading.Thread):
    def __init__(self, bell: Bell, key: str, since: int) -> None:
        super().__init__()
        self.bell, self.key, self.since = bell, key, since
        self.woken: bool | None = None
        self.start()

    def run(self) -> None:
        self.woken = self.bell.wait(self.key, self.since, 5000)


def test_ring_wakes_all_who_wait_for_the_key_and_nobody_else() -> None:
    bell = Bell()
    ours = [Waiting(bell, "ours", bell.mark) for _ in range(3)]
    other = Waiting(bell, "other", bell.mark)
    wait_for_waiters(bell, 4)
    bell.ring("ours")
    for thread in ours:
        thread.join()
    assert [thread.woken for thread in ours] == [True] * 3
    wait_for_waiters(bell, 1)
    bell.ring_all()
    other.join()
    assert other.woken


def test_ring_before_the_wait_ends_it_at_once() -> None:
    bell = Bell()
    mark = bell.mark
    bell.ring("key")
    assert bell.wait("key", mark, 5000)
    assert not bell.wait("key", bell.mark, 0)


def test_ring_of_another_key_does_not() -> None:
    bell = Bell()
    mark = bell.mark
    bell.ring("other")
    assert not bell.wait("key", mark, 1)


def test_ring_all_before_the_wait_ends_it_at_once() -> None:
    bell = Bell()
    mark = bell.mark
    bell.ring_all()
    assert bell.wait("key", mark, 5000)


def test_wait_ends_at_once_when_memory_does_not_reach_back() -> None:
    bell = Bell(remembered=2)
    mark = bell.mark
    for key in ("a", "b", "c"):
        bell.ring(key)
    assert bell.wait("never rung", mark, 5000)
    assert not bell.wait("never rung", bell.mark, 1)


def test_rings_of_one_key_count_once_in_memory() -> None:
    bell = Bell(remembered=2)
    mark = bell.mark
    for _ in range(10):
        bell.ring("again")
    assert not bell.wait("key", mark, 1)


def test_wait_that_timed_out_leaves_nothing_behind() -> None:
    bell = Bell()
    patient = Waiting(bell, "key", bell.mark)
    wait_for_waiters(bell, 1)
    assert not bell.wait("key", bell.mark, 1)
    assert bell.waiting == 1
    bell.ring("key")
    patient.join()
    assert not bell.wait("key", bell.mark, 1)
    assert bell.waiting == 0


def test_ring_that_crosses_the_end_of_a_wait_is_harmless() -> None:
    bell = Bell()
    for _ in range(300):
        mark = bell.mark
        ringer = threading.Thread(target=bell.ring, args=("key",))
        ringer.start()
        bell.wait("key", mark, 0)
        ringer.join()
    assert bell.waiting == 0


def test_negative_timeout_does_not_wait() -> None:
    assert not Bell().wait("key", 0, -5)


def test_ring_at_the_last_moment_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    bell = Bell()

    def sleep_until_it_is_too_late(waiter: _Waiter, timeout_ms: int) -> bool:
        bell.ring("key")
        return False

    monkeypatch.setattr(_Waiter, "sleep", sleep_until_it_is_too_late)
    assert bell.wait("key", bell.mark, 10)


def test_keys_that_are_waited_for_are_known() -> None:
    bell = Bell()
    waiting = Waiting(bell, "key", bell.mark)
    wait_for_waiters(bell, 1)
    assert bell.waited_for() == ["key"]
    bell.ring("key")
    waiting.join()
    assert bell.waited_for() == []
