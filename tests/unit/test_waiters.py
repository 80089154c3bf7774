"""Places for those who wait, and what they hear of each other."""

from __future__ import annotations

from demijohn.core.step import Outcome
from demijohn.idempotency.waiters import Waiters

ONE, OTHER = b"one request", b"another request"
REPLAY = Outcome("replay", (0, b"frame"), halts=True)


def test_bounds_are_for_all_keys_and_for_each() -> None:
    waiters = Waiters(2, 1)
    with waiters.place("a") as first, waiters.place("a") as second:
        assert first is not None
        assert second is None
        with waiters.place("b") as third, waiters.place("c") as fourth:
            assert third is not None
            assert fourth is None
    with waiters.place("a") as again:
        assert again is not None


def test_what_one_is_told_all_hear_who_sent_the_same_request() -> None:
    waiters = Waiters(3, 3)
    with waiters.place("k") as one, waiters.place("k") as two:
        assert one is not None
        assert two is not None
        assert two.overheard(ONE) is None
        one.room.seen = (ONE, REPLAY)
        assert two.overheard(ONE) is REPLAY
        assert two.overheard(OTHER) is None


def test_what_was_seen_before_one_came_is_not_heard() -> None:
    waiters = Waiters(3, 3)
    with waiters.place("k") as early:
        assert early is not None
        early.room.seen = (ONE, REPLAY)
        with waiters.place("k") as late:
            assert late is not None
            assert late.overheard(ONE) is None  # it may have expired before
            late.room.seen = (ONE, REPLAY)
            assert late.overheard(ONE) is REPLAY


def test_room_ends_with_the_last_who_waits() -> None:
    waiters = Waiters(3, 3)
    with waiters.place("k") as one:
        assert one is not None
        one.room.seen = (ONE, REPLAY)
    with waiters.place("k") as next_one:
        assert next_one is not None
        assert next_one.room is not one.room


def test_child_begins_with_nobody_waiting() -> None:
    waiters = Waiters(1, 1)
    with waiters.place("k"):
        waiters.renew_after_fork()  # as in a child that was forked meanwhile
        with waiters.place("k") as place:
            assert place is not None
