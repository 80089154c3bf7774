"""The pure decisions about limits: what they promise, whatever arrives when."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demijohn.core import limits
from demijohn.core.limits import Rule, calendar
from demijohn.core.limits.leases import SOON_MS
from demijohn.core.step import EXPIRES, Outcome, Row, Step, decide, live

NOW = 1_795_000_000_123
WINDOW_MS = 2000
TOKEN = b"12345678"


class Rows:
    """Rows under a clock, changed by steps."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.now_ms = NOW

    def run(self, step: Step) -> Outcome:
        decision = decide(step, [self.rows.get(key) for key in step.keys], self.now_ms)
        for index, row in decision.writes.items():
            if row is None:
                self.rows.pop(step.keys[index], None)
            else:
                assert live(row, self.now_ms) is not None, "a row is written that is over already"
                self.rows[step.keys[index]] = row
        return decision.outcome

    def take(self, *rules: Rule, **options: object) -> Outcome:
        keys = tuple(f"k{index}" for index in range(len(rules)))
        return self.run(limits.take(keys, rules, **options))  # type: ignore[arg-type]

    def settle(self, *acts: tuple[int, Rule, int], token: bytes = TOKEN) -> Outcome:
        keys = tuple(f"k{index}" for index in range(len(acts)))
        return self.run(limits.settle(keys, acts, token=token))

    def left(self, rule: Rule) -> int:
        return self.take((*rule[:4], 0)).integer(limits.FIRST)


def rule(algorithm: int, amount: int, cost: int = 1, *, burst: int = 0) -> Rule:
    return algorithm, amount, WINDOW_MS, burst, cost


def most_in_a_window(instants: Sequence[int]) -> int:
    """Return how many fell into any window, half open."""
    return max(
        (sum(1 for at in instants if start <= at < start + WINDOW_MS) for start in instants),
        default=0,
    )


# Crowds at the edges of parts and windows, and single arrivals.
ARRIVALS = st.lists(
    st.tuples(
        st.one_of(
            st.integers(0, 40),
            st.sampled_from([199, 200, 201, 1799, 1800, 1999, 2000, 2001, 2199, 2200, 4000]),
        ),
        st.integers(1, 12),
        st.integers(1, 3),
    ),
    max_size=60,
)


@pytest.mark.parametrize("algorithm", [limits.WINDOW, limits.LOG])
@given(ARRIVALS, st.integers(0, WINDOW_MS), st.integers(1, 9))
def test_no_window_ever_sees_more_than_the_quota(
    algorithm: int, arrivals: list[tuple[int, int, int]], offset: int, amount: int
) -> None:
    rows, admitted = Rows(), []
    rows.now_ms += offset
    for pause_ms, crowd, cost in arrivals:
        rows.now_ms += pause_ms
        for _ in range(crowd):
            if rows.take(rule(algorithm, amount, cost)).status == "taken":
                admitted += [rows.now_ms] * cost
    assert most_in_a_window(admitted) <= amount


@given(ARRIVALS, st.integers(1, 9), st.integers(1, 6))
def test_burst_is_bounded_by_rate_and_burst(
    arrivals: list[tuple[int, int, int]], amount: int, burst: int
) -> None:
    rows, admitted = Rows(), []
    for pause_ms, crowd, cost in arrivals:
        rows.now_ms += pause_ms
        for _ in range(crowd):
            if rows.take(rule(limits.GCRA, amount, cost, burst=burst)).status == "taken":
                admitted += [rows.now_ms] * cost
    assert most_in_a_window(admitted) <= amount + burst


ALGORITHMS = [limits.WINDOW, limits.GCRA, limits.CALENDAR, limits.LOG]


def of(algorithm: int, cost: int = 1) -> Rule:
    return rule(algorithm, 7, cost, burst=0 if algorithm != limits.GCRA else 7)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(ARRIVALS)
def test_wait_that_is_told_is_enough_and_not_too_long(
    algorithm: int, arrivals: list[tuple[int, int, int]]
) -> None:
    rows = Rows()
    for pause_ms, crowd, cost in arrivals:
        rows.now_ms += pause_ms
        for _ in range(crowd):
            outcome = rows.take(of(algorithm, cost))
            if outcome.status == "taken":
                continue
            wait_ms, before = outcome.integer(limits.FIRST + 2), rows.now_ms
            assert wait_ms > 0
            assert rows.left(of(algorithm)) < cost
            rows.now_ms = before + wait_ms - 1
            assert rows.left(of(algorithm)) < cost, "it could have been told to come earlier"
            rows.now_ms = before + wait_ms
            assert rows.left(of(algorithm)) >= cost, "it was told to come too early"
            rows.now_ms = before


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(ARRIVALS)
def test_reset_that_is_told_brings_more(
    algorithm: int, arrivals: list[tuple[int, int, int]]
) -> None:
    rows = Rows()
    for pause_ms, _, cost in arrivals:
        rows.now_ms += pause_ms
        outcome = rows.take(of(algorithm, cost))
        left, reset_ms = outcome.integer(limits.FIRST), outcome.integer(limits.FIRST + 1)
        assert (reset_ms == 0) == (left == 7)
        before = rows.now_ms
        rows.now_ms += reset_ms
        assert reset_ms == 0 or rows.left(of(algorithm)) > left
        rows.now_ms = before


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(ARRIVALS)
def test_refund_undoes_a_take(algorithm: int, arrivals: list[tuple[int, int, int]]) -> None:
    rows = Rows()
    for pause_ms, _, cost in arrivals:
        rows.now_ms += pause_ms
        before = rows.left(of(algorithm))
        outcome = rows.take(of(algorithm, cost))
        if outcome.status != "taken" or cost == 2:
            continue
        settled = rows.settle((limits.REFUND, of(algorithm, cost), outcome.integer(1)))
        assert settled.integer(1) == before == rows.left(of(algorithm))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_that_is_refunded_leaves_no_row(algorithm: int) -> None:
    rows = Rows()
    at_ms = rows.take(of(algorithm, 3)).integer(1)
    assert rows.rows
    rows.settle((limits.REFUND, of(algorithm, 3), at_ms))
    assert not rows.rows


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_refund_of_what_is_over_changes_nothing(algorithm: int) -> None:
    rows = Rows()
    at_ms = rows.take(of(algorithm, 3)).integer(1)
    rows.now_ms += 2 * WINDOW_MS
    rows.take(of(algorithm, 2))
    rows.settle((limits.REFUND, of(algorithm, 3), at_ms))
    # What flowed back evenly is not told from what was given back.
    assert rows.left(of(algorithm)) == (7 if algorithm == limits.GCRA else 5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_charge_goes_one_quota_below_nothing_at_the_most(algorithm: int) -> None:
    rows = Rows()
    rows.take(of(algorithm, 7))
    for _ in range(3):
        rows.settle((limits.CHARGE, of(algorithm, 100), rows.now_ms))
    outcome = rows.take(of(algorithm))
    assert outcome.status == "refused"
    rows.now_ms += outcome.integer(limits.FIRST + 2)
    assert rows.take(of(algorithm)).status == "taken"
    rows.now_ms += 3 * WINDOW_MS
    assert rows.left(of(algorithm)) == 7


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_quota_takes_no_more_room_than_it_must(algorithm: int) -> None:
    rows = Rows()
    for _ in range(500):
        rows.take(rule(algorithm, 1000, burst=1000 if algorithm == limits.GCRA else 0))
        rows.now_ms += 7
    if algorithm != limits.LOG:
        assert len(rows.rows["k0"]) <= 13
        assert all(isinstance(value, int) for value in rows.rows["k0"].values())


# --- all or nothing ------------------------------------------------------------------------------


def test_refusal_by_one_writes_nothing() -> None:
    rows = Rows()
    rows.take(rule(limits.WINDOW, 5), rule(limits.GCRA, 1, burst=1), rule(limits.LOG, 5))
    before = dict(rows.rows)
    outcome = rows.take(rule(limits.WINDOW, 5), rule(limits.GCRA, 1, burst=1), rule(limits.LOG, 5))
    assert (outcome.status, outcome.halts) == ("refused", True)
    assert rows.rows == before
    waits = outcome.values[limits.FIRST + 2 :: 3]
    assert [bool(wait) for wait in waits] == [False, True, False]
    assert outcome.values[limits.FIRST :: 3] == (4, 0, 4)


def test_part_is_taken_where_that_is_enough() -> None:
    rows = Rows()
    asked = [rule(limits.WINDOW, 5, 9), rule(limits.LOG, 3, 9), rule(limits.GCRA, 0, 9)]
    asked[2] = rule(limits.GCRA + limits.SHADOW, 1, 9, burst=1)
    outcome = rows.take(*asked, some=True)
    assert (outcome.status, outcome.integer(2)) == ("taken", 3)
    assert rows.take(*asked, some=True).status == "refused"
    assert rows.left(rule(limits.WINDOW, 5)) == 2


def test_limit_left_out_is_neither_read_nor_written() -> None:
    rows = Rows()
    outcome = rows.take(limits.NO_RULE, rule(limits.WINDOW, 5))
    assert outcome.values[limits.FIRST : limits.FIRST + 3] == (0, 0, 0)
    assert list(rows.rows) == ["k1"]
    settled = rows.settle((limits.CHARGE, limits.NO_RULE, 0), (0, limits.NO_RULE, 0))
    assert settled.values[1:] == (0, 0, 0, 0)


def test_what_can_never_be_is_told_apart() -> None:
    rows = Rows()
    for algorithm in ALGORITHMS:
        assert rows.take(of(algorithm, 8)).integer(limits.FIRST + 2) == limits.NEVER
    assert rows.take(rule(limits.LEASES, 0), token=TOKEN).integer(limits.FIRST + 2) == limits.NEVER
    assert not rows.rows


# --- the calendar --------------------------------------------------------------------------------


@given(st.integers(0, 220_000_000_000))
def test_periods_are_those_of_the_calendar(instant_s: int) -> None:
    aware = datetime.fromtimestamp(instant_s, UTC)
    now_ms = instant_s * 1000 + 7
    month = aware.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)
    expected = int(month.timestamp()) * 1000, int(following.timestamp()) * 1000
    assert calendar.period(now_ms, 0, limits.MONTH) == expected
    year = month.replace(month=1)
    ends = year.replace(year=year.year + 1)
    expected = int(year.timestamp()) * 1000, int(ends.timestamp()) * 1000
    assert calendar.period(now_ms, 0, limits.YEAR) == expected
    start, end = calendar.period(now_ms, 86_400_000, 0)
    assert start <= now_ms < end
    assert start == int(aware.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()) * 1000


# --- clocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("back_ms", [1, 150, 500])
def test_clock_that_is_put_back_a_little_admits_nothing_more(algorithm: int, back_ms: int) -> None:
    rows = Rows()
    rows.now_ms += WINDOW_MS - rows.now_ms % WINDOW_MS  # at the turn of parts and periods
    rows.take(of(algorithm, 7))
    rows.now_ms -= back_ms
    assert rows.take(of(algorithm)).status == "refused"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_clock_that_was_a_year_ahead_locks_nobody_out(algorithm: int) -> None:
    rows = Rows()
    rows.now_ms += 365 * 86_400_000
    rows.take(of(algorithm, 7))
    rows.now_ms -= 365 * 86_400_000
    assert rows.take(of(algorithm)).status == "taken"


# --- places --------------------------------------------------------------------------------------


def place(amount: int = 2, lease_ms: int = 100, cost: int = 1) -> Rule:
    return limits.LEASES, amount, lease_ms, 0, cost


def test_places_are_taken_kept_and_given_back() -> None:
    rows = Rows()
    assert rows.take(place(), token=b"aaaaaaaa").integer(limits.FIRST) == 1
    assert rows.take(place(), token=b"bbbbbbbb").integer(limits.FIRST) == 0
    refused = rows.take(place(), token=b"cccccccc")
    assert refused.integer(limits.FIRST + 2) == SOON_MS
    # Who repeats a take whose answer was lost has its place already.
    assert rows.take(place(), token=b"aaaaaaaa").status == "taken"
    assert rows.settle((limits.LEAVE, place(), 0), token=b"aaaaaaaa").integer(1) == 1
    assert rows.settle((limits.LEAVE, place(), 0), token=b"aaaaaaaa").integer(1) == 1
    assert rows.take(place(), token=b"cccccccc").status == "taken"


def test_place_of_the_dead_is_free_when_its_lease_lapses() -> None:
    rows = Rows()
    rows.take(place(1), token=b"aaaaaaaa")
    rows.now_ms += 60
    assert rows.run(limits.renew("k0", token=b"aaaaaaaa", lease_ms=100)).status == "renewed"
    rows.now_ms += 99
    assert rows.take(place(1), token=b"bbbbbbbb").status == "refused"
    rows.now_ms += 1
    assert rows.take(place(1), token=b"bbbbbbbb").status == "taken"
    assert rows.run(limits.renew("k0", token=b"aaaaaaaa", lease_ms=100)).status == "fenced"
    assert rows.run(limits.renew("none", token=b"aaaaaaaa", lease_ms=100)).status == "fenced"


def test_who_waits_is_woken_by_who_leaves() -> None:
    rows = Rows()
    rows.take(place(1), token=b"aaaaaaaa")
    for inbox in ("one", "two", "one"):
        assert rows.take(place(1), token=b"bbbbbbbb", inbox=inbox).status == "refused"
    step = limits.settle(("k0",), [(limits.LEAVE, place(1), 0)], token=b"aaaaaaaa")
    decision = decide(step, [rows.rows["k0"]], rows.now_ms)
    assert [(wake.key, wake.inboxes) for wake in decision.wakes] == [("k0", ("one", "two"))]
    assert decision.writes == {0: None}


def test_place_is_neither_charged_nor_refunded() -> None:
    rows = Rows()
    rows.take(place(), token=TOKEN)
    for act in (0, limits.CHARGE, limits.REFUND):
        assert rows.settle((act, place(), 0)).integer(1) == 1


def test_looking_takes_no_place() -> None:
    rows = Rows()
    assert rows.take(place(cost=0)).status == "taken"
    assert not rows.rows


@given(st.lists(st.tuples(st.sampled_from("tlrw"), st.integers(0, 5), st.integers(0, 120))))
def test_there_are_never_more_places_than_there_are(history: list[tuple[str, int, int]]) -> None:
    rows, held = Rows(), {}
    for what, who, number in history:
        token = bytes([who]) * 8
        rows.now_ms += number if what == "w" else 0
        held = {other: end for other, end in held.items() if end > rows.now_ms}
        if what == "t" and rows.take(place(3), token=token).status == "taken":
            held[token] = rows.now_ms + 100
        elif what == "l":
            rows.settle((limits.LEAVE, place(3), 0), token=token)
            held.pop(token, None)
        elif what == "r":
            renewed = rows.run(limits.renew("k0", token=token, lease_ms=100))
            assert (renewed.status == "renewed") == (token in held)
            if token in held:
                held[token] = rows.now_ms + 100
        assert len(held) <= 3
        assert rows.left(place(3)) == 3 - len(held)


# --- for operators -------------------------------------------------------------------------------


def test_reset_forgets_and_says_how_much() -> None:
    rows = Rows()
    rows.take(rule(limits.WINDOW, 5), rule(limits.LOG, 5))
    assert rows.run(limits.reset(("k0", "none", "k1"))).integer(0) == 2
    assert not rows.rows


def test_tally_adds_up_and_is_forgotten() -> None:
    rows = Rows()
    for sum_ in (3, 6):
        assert rows.run(limits.tally("k", 3, keep_ms=500, label="login")).integer(0) == sum_
    assert rows.rows["k"]["d"] == b"login"
    assert rows.rows["k"][EXPIRES] == rows.now_ms + 500
    rows.now_ms += 500
    assert rows.run(limits.tally("k", 1, keep_ms=500, label="login")).integer(0) == 1
