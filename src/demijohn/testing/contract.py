"""The classes that prove a store, for pytest.

A store of your own is proved by a subclass that says how to make it::

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self, clock):
            store = MyStore(clock=clock)
            yield store
            store.close()

        def corrupt(self, store, key):
            ...  # make the row of ``key`` unreadable, behind the store's back

The store must take its time from ``clock``. Keys are new in each test, so that tests may share
one server.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from demijohn.core import idempotency as idem
from demijohn.core.idempotency import OnLost, State
from demijohn.core.step import EXPIRES, Outcome, Row, Step
from demijohn.errors import CorruptRecord
from demijohn.stores.protocol import Store

LEASE_MS: Final = 60_000
RETAIN_MS: Final = 600_000
TTL_MS: Final = 86_400_000
PRINT: Final = b"fingerprint"
OTHER_PRINT: Final = b"other fingerprint"
ALICE: Final = b"alice's token"
BOB: Final = b"bob's token"
FRAME: Final = b"\x01the stored response"
PROMPTLY_S: Final = 5.0


class ManualClock:
    """Milliseconds since the epoch; starts at the real time, and moves only when told."""

    def __init__(self) -> None:
        self.now_ms = time.time_ns() // 1_000_000

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, milliseconds: int) -> None:
        """Let ``milliseconds`` pass; time never goes back."""
        self.now_ms += milliseconds


def begin(
    *keys: str,
    token: bytes = ALICE,
    fingerprint: bytes = PRINT,
    on_lost: OnLost = OnLost.RUN,
    inbox: str = "",
) -> Step:
    """Return a step that begins ``keys``, with a lease of :data:`LEASE_MS`."""
    return idem.begin(
        keys,
        fingerprint=fingerprint,
        token=token,
        lease_ms=LEASE_MS,
        retain_ms=RETAIN_MS,
        on_lost=on_lost,
        inbox=inbox,
    )


def renew(key: str, *, token: bytes = ALICE) -> Step:
    """Return a step that renews the lease of ``key`` by :data:`LEASE_MS`."""
    return idem.renew(key, token=token, lease_ms=LEASE_MS)


def complete(
    key: str, *, token: bytes = ALICE, frame: bytes = FRAME, tombstone_ms: int = 0
) -> Step:
    """Return a step that completes ``key`` for :data:`TTL_MS`."""
    return idem.complete(
        key,
        token=token,
        frame=frame,
        ttl_ms=TTL_MS,
        retain_ms=RETAIN_MS,
        tombstone_ms=tombstone_ms,
    )


def release(key: str, *, token: bytes = ALICE) -> Step:
    """Return a step that gives ``key`` back."""
    return idem.release(key, token=token, retain_ms=RETAIN_MS)


def resolve(key: str, *, frame: bytes = b"") -> Step:
    """Return a step that decides ``key`` as an operator does."""
    return idem.resolve(key, frame=frame, ttl_ms=TTL_MS, retain_ms=RETAIN_MS)


def one(store: Store, step: Step) -> Outcome:
    """Run ``step`` alone."""
    outcomes = store.run([step])
    assert len(outcomes) == 1
    return outcomes[0]


def stored(store: Store, key: str) -> Row | None:
    """Return the live row of ``key``, or ``None``."""
    return dict(store.scan(key)).get(key)


def listening(store: Store) -> str:
    """Wait until the store hears wake-ups, which some learn to do at the first wait only."""
    unused = f"{{{uuid.uuid4().hex}}}:unused"
    for _ in range(100):
        if not store.wait(unused, since=store.mark, timeout_ms=50):
            return store.inbox
    raise AssertionError("wait() never says that nothing happened")


def wait_until_woken(store: Store, key: str, since: int, seconds: float = PROMPTLY_S) -> bool:
    """Wait once, for at most ``seconds``, and say whether a wake-up was heard."""
    return store.wait(key, since=since, timeout_ms=int(seconds * 1000))


def follow(store: Store, step: Callable[[], Step], *, seconds: float = 10.0) -> Outcome:
    """Do what a duplicate does: begin, and while that says "busy", wait and look again."""
    deadline = time.monotonic() + seconds
    while True:
        mark = store.mark
        outcome = one(store, step())
        if outcome.status != "busy" or time.monotonic() > deadline:
            return outcome
        store.wait(outcome_key(step()), since=mark, timeout_ms=1000)


def outcome_key(step: Step) -> str:
    """Return the key that those who wait for ``step`` wait on."""
    return step.keys[0]


class StoreContract:
    """Everything that Demijohn relies on in a store."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The clock that the store must use."""
        return ManualClock()

    @pytest.fixture
    def store(self, clock: ManualClock) -> Iterator[Store]:
        """The store to prove; override this."""
        raise NotImplementedError("override the fixture `store`")

    @pytest.fixture
    def key(self) -> str:
        """A key that nobody has used."""
        return f"{{{uuid.uuid4().hex}}}:key"

    def corrupt(self, store: Store, key: str) -> None:
        """Make the row of ``key`` unreadable; override this where it can be done."""
        pytest.skip("this store's rows cannot be spoiled from outside")

    # --- begin ---------------------------------------------------------------------------------

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

    # --- renew, complete, release, resolve -----------------------------------------------------

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

    # --- runs ----------------------------------------------------------------------------------

    def test_run_without_steps_answers_nothing(self, store: Store) -> None:
        assert store.run([]) == []

    def test_steps_of_one_run_see_one_another(self, store: Store, key: str) -> None:
        steps = [begin(key), renew(key), complete(key), release(key), begin(key, token=BOB)]
        statuses = [outcome.status for outcome in store.run(steps)]
        assert statuses == ["run", "renewed", "completed", "fenced", "replay"]

    def test_halting_outcome_stops_the_run_and_later_writes(self, store: Store, key: str) -> None:
        later = key + ":later"
        one(store, begin(key))
        outcomes = store.run([renew(key), begin(key, token=BOB), begin(later), release(key)])
        assert [outcome.status for outcome in outcomes] == ["renewed", "busy"]
        assert stored(store, later) is None
        assert one(store, renew(key)).status == "renewed"

    def test_row_is_gone_exactly_at_its_expiry(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        one(store, begin(key))
        clock.advance(LEASE_MS + RETAIN_MS - 1)
        row = stored(store, key)
        assert row is not None
        assert row[EXPIRES] == clock.now_ms + 1
        clock.advance(1)
        assert stored(store, key) is None
        assert one(store, begin(key, token=BOB)) == Outcome("run", (0, 1, 1, 0))

    def test_rows_keep_every_field_and_its_type(
        self, store: Store, clock: ManualClock, key: str
    ) -> None:
        # A token of digits must not come back as a number.
        one(store, begin(key, token=b"123", fingerprint=b"-7", inbox="inbox"))
        assert stored(store, key) == {
            "s": 1,
            "f": 1,
            "a": 1,
            "t": b"123",
            "p": b"-7",
            "l": clock.now_ms + LEASE_MS,
            "c": clock.now_ms,
            "x": clock.now_ms + LEASE_MS + RETAIN_MS,
        }
        one(store, complete(key, token=b"123", frame=b"0"))
        assert stored(store, key) == {
            "s": 2,
            "f": 1,
            "a": 1,
            "t": b"123",
            "p": b"-7",
            "r": b"0",
            "u": clock.now_ms + TTL_MS,
            "k": 0,
            "c": clock.now_ms,
            "x": clock.now_ms + TTL_MS + RETAIN_MS,
        }

    def test_one_of_many_threads_runs(self, store: Store, key: str) -> None:
        threads, keys = 8, [f"{key}:{index}" for index in range(20)]

        def race(me: int) -> list[str]:
            return [one(store, begin(key, token=b"token %d" % me)).status for key in keys]

        with ThreadPoolExecutor(threads) as pool:
            answers = list(pool.map(race, range(threads)))
        for statuses in zip(*answers, strict=True):
            assert sorted(statuses) == ["busy"] * (threads - 1) + ["run"]

    def test_runs_of_many_threads_do_not_interleave(self, store: Store, key: str) -> None:
        # begin and release in one run: were runs not atomic, somebody would be busy or fenced.
        threads, times = 4, 25

        def cycle(me: int) -> None:
            token = b"token %d" % me
            for _ in range(times):
                outcomes = store.run([begin(key, token=token), release(key, token=token)])
                assert [outcome.status for outcome in outcomes] == ["run", "released"]

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(cycle, range(threads)))
        assert one(store, begin(key)).values[1] == threads * times + 1

    # --- what is stored ------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [0, 1, 1 << 20, 10_000_000])
    def test_frame_of_any_size_comes_back_to_the_byte(
        self, store: Store, key: str, size: int
    ) -> None:
        frame = (bytes(range(256)) * (size // 256 + 1))[:size]
        store.run([begin(key), complete(key, frame=frame)])
        assert one(store, begin(key, token=BOB)).values == (0, frame)
        assert one(store, renew(key, token=BOB)).values == (State.COMPLETED, frame)

    @pytest.mark.parametrize(
        "awkward",
        [b"", b"0", b"-1", b"\x0112", b"\x00\r\n\xff", b"1e5", b"0x10", b" 7", b"inf", b"nan"],
    )
    def test_awkward_bytes_are_told_apart(self, store: Store, key: str, awkward: bytes) -> None:
        one(store, begin(key, token=b"\xfe" + awkward, fingerprint=awkward))
        assert one(store, begin(key, token=BOB, fingerprint=awkward)).status == "busy"
        for other in (awkward + b"0", b"\x01" + awkward, b"0" + awkward):
            assert one(store, begin(key, token=BOB, fingerprint=other)).status == "mismatch"
        one(store, complete(key, token=b"\xfe" + awkward, frame=awkward))
        assert one(store, begin(key, fingerprint=awkward)).values == (0, awkward)

    @pytest.mark.parametrize(
        "tail", ["", " ", "\n", "\x00", "'\"`;--", "*?[a-z]^\\", "ключ", "😀", "{}", "x" * 500]
    )
    def test_any_text_is_a_key_of_its_own(self, store: Store, key: str, tail: str) -> None:
        odd = f"{key}:{tail}"
        store.run([begin(odd), complete(odd)])
        assert one(store, begin(odd, token=BOB)).status == "replay"
        assert [found for found, _ in store.scan(odd)] == [odd]
        assert one(store, begin(odd + "x", token=BOB)).status == "run"

    # --- waiting -------------------------------------------------------------------------------

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

    # --- the rest ------------------------------------------------------------------------------

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


def forked(act: Callable[[], None]) -> int:
    """Run ``act`` in a child made by ``fork``; return its process id. It exits 0 if all went well.

    The child leaves by ``_exit``: what pytest would do at its end is the parent's to do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: that is what is tested
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        act()
        status = 0
    finally:
        os._exit(status)
