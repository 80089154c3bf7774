"""When a request is sent again, and after which pause."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demijohn.client import Answer, Retry, RetryPolicy
from demijohn.client.policy import LogicalCall, pause_s, retry_after_s

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
PROBLEM = {"content-type": "application/problem+json"}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def call(policy: RetryPolicy, clock: Clock, *, repeatable: bool = True) -> LogicalCall:
    return LogicalCall(
        policy, repeatable=repeatable, clock=clock, draw=lambda: 1.0, wall_clock=lambda: NOW
    )


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_passing_trouble_is_worth_another_attempt(status: int) -> None:
    assert call(RetryPolicy(), Clock()).after_answer(Answer(status, {})) == 0.1


@pytest.mark.parametrize("status", [200, 201, 303, 400, 401, 404, 409, 422, 500])
def test_final_answer_is_final(status: int) -> None:
    assert call(RetryPolicy(), Clock()).after_answer(Answer(status, {})) is None


def test_conflict_is_retried_only_while_the_first_request_runs() -> None:
    def type_of(slug: str) -> bytes:
        return b'{"type": "https://x/problems#%s"}' % slug.encode()

    assert Answer(409, PROBLEM, type_of("idempotency-key-in-progress")).still_running
    assert not Answer(409, PROBLEM, type_of("idempotency-outcome-unknown")).still_running
    assert not Answer(409, {**PROBLEM, "retry-after": "1"}, type_of("other")).still_running
    assert Answer(409, {"retry-after": "1"}).still_running
    assert not Answer(409, {}).still_running
    assert not Answer(503, {"retry-after": "1"}).still_running
    for body in (b"", b"[]", b"{}", b'{"type": 1}', b"\xff"):
        assert not Answer(409, PROBLEM, body).still_running


def test_request_that_cannot_be_repeated_is_sent_once() -> None:
    once = call(RetryPolicy(), Clock(), repeatable=False)
    assert once.after_answer(Answer(503, {})) is None
    assert once.after_failure(OSError()) is None


@pytest.mark.parametrize("method", ["GET", "head", "OPTIONS", "TRACE", "PUT", "DELETE"])
def test_idempotent_methods_are_safe_without_a_key(method: str) -> None:
    assert RetryPolicy().is_safe(method, keyed=False)


@pytest.mark.parametrize("method", ["POST", "PATCH", "PURGE"])
def test_other_methods_are_safe_with_a_key_only(method: str) -> None:
    assert not RetryPolicy().is_safe(method, keyed=False)
    assert RetryPolicy().is_safe(method, keyed=True)


def test_attempts_end_at_their_number() -> None:
    policy = RetryPolicy(max_attempts=3, deadline=timedelta(hours=1))
    thing = call(policy, Clock())
    assert [thing.after_failure(OSError()) is None for _ in range(3)] == [False, False, True]
    assert thing.attempts == 3


def test_no_pause_reaches_past_the_deadline() -> None:
    clock = Clock()
    thing = call(RetryPolicy(deadline=10), clock)
    clock.now += 9.95
    assert thing.after_failure(OSError()) is None


def test_server_that_asks_for_more_than_the_deadline_is_not_waited_for() -> None:
    thing = call(RetryPolicy(deadline=10), Clock())
    assert thing.after_answer(Answer(503, {"retry-after": "11"})) is None


def test_attempt_is_given_no_more_than_is_left() -> None:
    clock = Clock()
    thing = call(RetryPolicy(deadline=10), clock)
    assert thing.limited(None) == 10
    assert thing.limited(3) == 3
    clock.now += 8
    assert thing.limited(3) == pytest.approx(2)
    clock.now += 8
    assert thing.limited(3) == 0.001


def test_hook_is_told_of_each_retry() -> None:
    told: list[Retry] = []
    thing = call(RetryPolicy(on_retry=told.append), Clock())
    error = OSError("gone")
    thing.after_failure(error)
    thing.after_answer(Answer(503, {}))
    assert [(retry.attempt, retry.delay) for retry in told] == [(1, 0.1), (2, 0.2)]
    assert told[0].reason is error
    assert isinstance(told[1].reason, Answer)


@given(
    attempt=st.integers(1, 10_000),
    asked=st.floats(0, 1e6),
    draw=st.floats(0, 1),
    base=st.floats(0.001, 1),
    cap=st.floats(1, 100),
)
def test_pause_is_jittered_within_its_range(
    attempt: int, asked: float, draw: float, base: float, cap: float
) -> None:
    pause = pause_s(RetryPolicy(base=base, cap=cap), attempt, asked, draw)
    assert asked <= pause <= asked + cap
    if attempt == 1:
        assert pause <= asked + base


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    later = format_datetime(NOW + timedelta(seconds=90), usegmt=True)
    assert retry_after_s("7", NOW) == 7
    assert retry_after_s(" 7 ", NOW) == 7
    assert retry_after_s(later, NOW) == 90
    assert retry_after_s("Fri, 20 Nov 2026 12:00:05 -0000", NOW) == 5
    assert retry_after_s("Thu, 19 Nov 2026 12:00:00 GMT", NOW) == 0


@given(st.none() | st.text())
def test_any_retry_after_is_read_without_an_error(value: str | None) -> None:
    assert retry_after_s(value, NOW) >= 0


def test_keys_are_new_each_time_and_quoted_as_structured_fields() -> None:
    first, second = RetryPolicy().new_key(), RetryPolicy().new_key()
    assert first != second
    assert first[0] == first[-1] == '"'
    assert uuid.UUID(first.strip('"')).version == 4
    assert uuid.UUID(RetryPolicy(bare=True).new_key()).version == 4


@pytest.mark.parametrize(
    ("options", "name"),
    [({"deadline": 0}, "deadline"), ({"max_attempts": 0}, "max_attempts"), ({"base": 9}, "base")],
)
def test_value_out_of_range_is_refused_by_name(options: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        RetryPolicy(**options)  # type: ignore[arg-type]
