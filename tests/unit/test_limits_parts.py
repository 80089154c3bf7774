"""The parts of limits that need no store: notation, fields, refusals that are remembered, load."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demijohn.core.limits import NEVER
from demijohn.limits import headers
from demijohn.limits.headers import Standing
from demijohn.limits.identity import network
from demijohn.limits.notation import UNITS, Rate, parse, rate_of
from demijohn.limits.rejections import Rejections
from demijohn.limits.shedding import Shedder
from tests.sf_item import Item


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- notation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("100/minute", [Rate(100, 1, "minute")]),
        ("100 per minute", [Rate(100, 1, "minute")]),
        (" 5 PER 10 Seconds ", [Rate(5, 10, "second")]),
        ("1/day; 2/hour, 3/5minutes|4 per 2 weeks", None),
        ("10/year", [Rate(10, 1, "year")]),
        (["1/day", "2/hour; 3/second"], None),
    ],
)
def test_limits_are_read_as_users_of_limits_write_them(text: object, rates: object) -> None:
    found = list(parse(text))
    assert found == rates or len(found) in {3, 4}


def test_several_are_read_in_order() -> None:
    rates = parse("1/day; 2/hour, 3/5minutes|4 per 2 weeks")
    assert [str(rate) for rate in rates] == ["1/day", "2/hour", "3/5minute", "4/2week"]
    assert [rate.seconds for rate in rates] == [86_400, 3600, 300, 1_209_600]


@pytest.mark.parametrize(
    "text", ["", "100", "100/", "/minute", "100/minutely", "-1/minute", "1.5/minute", "1/0 day", 5]
)
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must"):
        parse(text)


@given(st.integers(0, 10**12), st.integers(1, 9), st.sampled_from(sorted(UNITS)))
def test_what_is_written_is_read_again(amount: int, multiple: int, unit: str) -> None:
    rate = Rate(amount, multiple, unit)
    assert parse(str(rate)) == (rate,)


def test_older_form_takes_durations() -> None:
    assert rate_of(5, timedelta(minutes=2)).seconds == 120
    assert rate_of(5, 60.0) == Rate(5, 60)
    assert str(rate_of(5, 60)) == "5/60s"
    for requests, window in ((True, 60), (-1, 60), (5, True), (5, 0.5), (5, 0), (5, None)):
        with pytest.raises(ValueError, match=r"needs|must"):
            rate_of(requests, window)


# --- fields --------------------------------------------------------------------------------------


@given(
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1),
    st.integers(0, 10**18),
    st.integers(0, 10**6),
)
def test_policies_are_structured_fields(name: str, amount: int, window_s: int) -> None:
    item = headers.policy(name, amount, window_s, concurrent=False)
    assert Item(item).parse() == name
    window = f";w={window_s}" if window_s else ""
    assert item.removeprefix(headers.quoted(name)) == f";q={min(amount, headers.MOST)}{window}"


def test_tightest_limit_is_the_one_of_which_least_is_left() -> None:
    many, few = Standing("many", 100, 50, 1000), Standing("few", 4, 1, 10)
    assert headers.tightest([many, few]) is few
    none = Standing("none", 0, 0, 0)
    assert headers.tightest([many, none, few]) is none


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2ff::1", "2001:db8:1:200::/56"),
        ("fe80::1%eth0", "fe80::/56"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unix:", "unix:"),
        ("", ""),
    ],
)
def test_network_is_what_is_counted(address: str, counted: str) -> None:
    assert network(address, 56) == counted


# --- refusals that are remembered ----------------------------------------------------------------

REFUSED = (0, 5000, 0, 0, 900, 900, 3, 0, 0)


def test_refusal_is_remembered_until_something_comes_back() -> None:
    clock = Clock()
    rejections = Rejections(10, 1000, clock)
    rejections.note(("k",), REFUSED)
    clock.now += 0.4
    assert rejections.recall(("k",)) == [0, 5400, 0, 0, 500, 500, 3, 0, 0]
    assert rejections.recall(("other",)) is None
    clock.now += 0.5
    assert rejections.recall(("k",)) is None
    assert len(rejections) == 0


def test_refusal_is_remembered_for_a_second_at_the_most() -> None:
    clock = Clock()
    rejections = Rejections(10, 1000, clock)
    rejections.note(("long",), (0, 5000, 0, 0, 90_000, 90_000))
    rejections.note(("ever",), (0, 5000, 0, 0, 0, NEVER))
    clock.now += 0.9
    assert rejections.recall(("ever",)) == [0, 5900, 0, 0, 0, NEVER]
    clock.now += 0.1
    assert rejections.recall(("long",)) is rejections.recall(("ever",)) is None


def test_no_more_refusals_are_remembered_than_there_is_room_for() -> None:
    rejections = Rejections(2, 1000, Clock())
    for name in "abca":
        rejections.note((name,), REFUSED)
    assert len(rejections) == 2
    assert rejections.recall(("b",)) is None
    assert rejections.recall(("a",)) is not None
    rejections.clear()
    assert len(rejections) == 0
    none = Rejections(0, 1000, Clock())
    none.note(("a",), REFUSED)
    assert len(none) == 0


# --- load ----------------------------------------------------------------------------------------


def test_part_of_the_capacity_is_kept_for_what_is_critical() -> None:
    shedder = Shedder(10, 0.2, clock=Clock())
    assert [shedder.enter(critical=False) for _ in range(9)] == [True] * 8 + [False]
    assert [shedder.enter(critical=True) for _ in range(3)] == [True, True, False]
    shedder.leave(shedder.now())
    assert shedder.running == 9
    assert not shedder.enter(critical=False)
    assert shedder.enter(critical=True)


def test_smallest_capacity_lets_somebody_in() -> None:
    shedder = Shedder(1, 0.5, clock=Clock())
    assert shedder.enter(critical=False)


def test_capacity_grows_while_it_is_used_and_answers_come_in_time() -> None:
    clock = Clock()
    shedder = Shedder(200, 0.0, 100, clock)
    first = shedder.capacity
    for _ in range(100):
        began = [clock.now for _ in range(first) if shedder.enter(critical=False)]
        clock.now += 0.05
        for each in began:
            shedder.leave(each)
    assert shedder.capacity > first
    grown = shedder.capacity
    for _ in range(1000):  # hardly used: nothing is learnt
        assert shedder.enter(critical=False)
        shedder.leave(clock.now)
    assert shedder.capacity == grown


def test_capacity_shrinks_when_answers_are_late_and_not_at_once_to_nothing() -> None:
    clock = Clock()
    shedder = Shedder(200, 0.0, 100, clock)
    clock.now += 1
    began = [clock.now for _ in range(20) if shedder.enter(critical=False)]
    clock.now += 0.5
    for each in began:  # one jam, however many sat in it
        shedder.leave(each)
    assert shedder.capacity == 18
    for _ in range(500):
        assert shedder.enter(critical=False)
        clock.now += 0.5
        shedder.leave(clock.now - 0.5)
    assert shedder.capacity == 1
