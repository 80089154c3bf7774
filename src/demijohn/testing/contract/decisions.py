"""What each step of idempotency decides."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from demijohn.core.idempotency import OnLost, State
from demijohn.core.step import EXPIRES, Outcome, Step
from demijohn.stores.protocol import Store

from .fixtures import Fixtures
from .tools import (
    BOB,
    FRAME,
    LEASE_MS,
    OTHER_PRINT,
    RETAIN_MS,
    TTL_MS,
    ManualClock,
    begin,
    complete,
    one,
    release,
    renew,
    resolve,
    stored,
)


class Decisions(Fixtures):
    """The rules of idempotent requests, each on its own."""

    # --- begin -----------------------------------------------------------------------------

    def test_first_begin_runs_with_fence_and_attempt_one(self, store: Store, key: str) -> None:
        assert one(store, begin(key)) == Outcome("run", (0, 1, 1, 0))

    def test_repeated_begin_by_its_own_token_answers_the_same(self, store: Store, key: str) -> None:
        first = one(store, begin(key))
        assert one(store, begin(key)) == first

    def test_second_begin_is_busy_and_halts(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        one(store, begin(key))
        clock.advance(10_000)
        busy = one(store, begin(key, token=BOB))
        assert busy == Outcome("busy", (0, LEASE_MS - 10_000), halts=True)

    def test_other_request_is_a_mismatch_before_during_and_after(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        mismatch = Outcome("mismatch", (0,), halts=True)
        other = begin(key, token=BOB, fingerprint=OTHER_PRINT)
        one(store, begin(key))
        assert one(store, other) == mismatch
        one(store, complete(key))
        assert one(store, other) == mismatch
        clock.advance(TTL_MS)
        assert one(store, other).status == "run"

    def test_completed_key_replays_its_frame(self, store: Store, key: str) -> None:
        store.run([begin(key), complete(key)])
        assert one(store, begin(key, token=BOB)) == Outcome("replay", (0, FRAME), halts=True)

    def test_lapsed_lease_is_taken_over_exactly_at_its_end(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        one(store, begin(key))
        clock.advance(LEASE_MS - 1)
        assert one(store, begin(key, token=BOB)) == Outcome("busy", (0, 1), halts=True)
        clock.advance(1)
        assert one(store, begin(key, token=BOB)) == Outcome("run", (0, 2, 2, 1))

    def test_lapsed_lease_becomes_unknown_where_that_is_asked(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        one(store, begin(key))
        clock.advance(LEASE_MS)
        refusing = begin(key, token=BOB, on_lost=OnLost.REFUSE)
        unknown = Outcome("unknown", (0, clock.now_ms), halts=True)
        assert one(store, refusing) == unknown
        clock.advance(5)
        assert one(store, begin(key, token=BOB)) == unknown

    def test_tombstone_says_expired_until_it_ends(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        tombstone_ms = RETAIN_MS + 1000
        store.run([begin(key), complete(key, tombstone_ms=tombstone_ms)])
        clock.advance(TTL_MS - 1)
        assert one(store, begin(key)).status == "replay"
        clock.advance(1)
        assert one(store, begin(key)) == Outcome("expired", (0,), halts=True)
        clock.advance(tombstone_ms - 1)
        assert one(store, begin(key)).status == "expired"
        clock.advance(1)
        assert one(store, begin(key)) == Outcome("run", (0, 1, 1, 0))

    def test_fence_outlives_a_completed_record_and_ends_with_the_retention(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        store.run([begin(key), complete(key)])
        clock.advance(TTL_MS)
        assert one(store, begin(key, token=BOB)) == Outcome("run", (0, 2, 1, 0))
        store.run([complete(key, token=BOB)])
        clock.advance(TTL_MS + RETAIN_MS - 1)
        assert one(store, begin(key)).values[1] == 3
        store.run([complete(key)])
        clock.advance(TTL_MS + RETAIN_MS)
        assert one(store, begin(key)).values[1] == 1

    def test_begin_finds_the_record_under_an_earlier_name(self, store: Store, key: str) -> None:
        new, old = key, key + ":old"
        store.run([begin(old), complete(old)])
        assert one(store, begin(new, old, token=BOB)) == Outcome("replay", (1, FRAME), halts=True)

    def test_begin_counts_on_from_the_fence_under_an_earlier_name(
        self, store: Store, key: str
    ) -> None:
        new, old, older = key, key + ":old", key + ":older"
        store.run([begin(old), release(old)])
        assert one(store, begin(new, old, older, token=BOB)) == Outcome("run", (1, 2, 2, 0))

    # --- renew, complete, release, resolve -------------------------------------------------

    def test_renewal_moves_lease_and_expiry(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        one(store, begin(key))
        clock.advance(LEASE_MS - 1)
        assert one(store, renew(key)) == Outcome("renewed")
        clock.advance(LEASE_MS - 1)
        assert one(store, begin(key, token=BOB)).status == "busy"
        row = stored(store, key)
        assert row is not None
        assert row[EXPIRES] == clock.now_ms + 1 + RETAIN_MS

    def test_owner_believed_lost_may_renew_again(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        one(store, begin(key))
        clock.advance(LEASE_MS)
        assert one(store, begin(key, token=BOB, on_lost=OnLost.REFUSE)).status == "unknown"
        assert one(store, renew(key)) == Outcome("renewed")
        assert one(store, begin(key, token=BOB)).status == "busy"

    @pytest.mark.parametrize("step", [renew, complete, release])
    def test_nobody_else_may_touch_a_running_key(
        self, store: Store, key: str, step: Callable[..., Step]
    ) -> None:
        one(store, begin(key))
        before = stored(store, key)
        assert one(store, step(key, token=BOB)) == Outcome("fenced", (State.RUNNING, b""))
        assert stored(store, key) == before

    @pytest.mark.parametrize("step", [renew, complete, release])
    def test_zombie_is_fenced_and_learns_what_the_winner_stored(
        self, store: Store, clock: ManualClock, key: str, step: Callable[..., Step]
    ) -> None:
        one(store, begin(key))
        clock.advance(LEASE_MS)
        store.run([begin(key, token=BOB), complete(key, token=BOB)])
        assert one(store, step(key)) == Outcome("fenced", (State.COMPLETED, FRAME))

    @pytest.mark.parametrize("step", [renew, complete, release])
    def test_steps_on_an_absent_key_are_fenced(
        self, store: Store, key: str, step: Callable[..., Step]
    ) -> None:
        assert one(store, step(key)) == Outcome("fenced", (State.ABSENT, b""))

    @pytest.mark.parametrize("step", [renew, complete, release])
    def test_steps_on_a_tombstone_are_fenced(
        self, store: Store, clock: ManualClock, key: str, step: Callable[..., Step]
    ) -> None:
        store.run([begin(key), complete(key, tombstone_ms=1000)])
        clock.advance(TTL_MS)
        assert one(store, step(key)) == Outcome("fenced", (State.EXPIRED, b""))

    def test_repeated_completion_keeps_the_first_frame(self, store: Store, key: str) -> None:
        store.run([begin(key), complete(key)])
        assert one(store, complete(key, frame=b"another")) == Outcome("completed")
        assert one(store, begin(key, token=BOB)).values[1] == FRAME

    def test_owner_believed_lost_may_complete(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        one(store, begin(key))
        clock.advance(LEASE_MS)
        one(store, begin(key, token=BOB, on_lost=OnLost.REFUSE))
        assert one(store, complete(key)) == Outcome("completed")

    def test_released_key_runs_again_as_the_next_attempt(self, store: Store, key: str) -> None:
        assert store.run([begin(key), release(key)])[1] == Outcome("released")
        assert one(store, begin(key, token=BOB)) == Outcome("run", (0, 2, 2, 0))

    def test_repeated_release_answers_the_same(self, store: Store, key: str) -> None:
        store.run([begin(key), release(key)])
        assert one(store, release(key)) == Outcome("released")

    def test_operator_completes_an_unknown_key(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        one(store, begin(key))
        clock.advance(LEASE_MS)
        one(store, begin(key, token=BOB, on_lost=OnLost.REFUSE))
        assert one(store, resolve(key, frame=b"decided")) == Outcome("resolved")
        assert one(store, begin(key, token=BOB)).values == (0, b"decided")
        assert one(store, complete(key)) == Outcome("fenced", (State.COMPLETED, b"decided"))

    def test_operator_lets_an_unknown_key_run_again(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        one(store, begin(key))
        clock.advance(LEASE_MS)
        assert one(store, resolve(key)) == Outcome("resolved")
        assert one(store, complete(key)) == Outcome("fenced", (State.ABSENT, b""))
        assert one(store, begin(key, token=BOB)) == Outcome("run", (0, 2, 2, 0))

    def test_operator_is_refused_where_nothing_is_unknown(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        assert one(store, resolve(key)) == Outcome("refused", (State.ABSENT,))
        one(store, begin(key))
        assert one(store, resolve(key)) == Outcome("refused", (State.RUNNING,))
        one(store, complete(key, tombstone_ms=1000))
        assert one(store, resolve(key)) == Outcome("refused", (State.COMPLETED,))
        clock.advance(TTL_MS)
        assert one(store, resolve(key)) == Outcome("refused", (State.EXPIRED,))
