"""What a run of several steps does, and what a store keeps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from demijohn.core.idempotency import State
from demijohn.core.step import EXPIRES, Outcome
from demijohn.stores.protocol import Store

from .fixtures import Fixtures
from .tools import (
    BOB,
    LEASE_MS,
    RETAIN_MS,
    TTL_MS,
    ManualClock,
    begin,
    complete,
    one,
    release,
    renew,
    stored,
)


class Runs(Fixtures):
    """One atomic trip, and rows to the byte."""

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

    # --- what is stored --------------------------------------------------------------------------

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
