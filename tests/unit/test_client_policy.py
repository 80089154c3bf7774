"""When a request is sent again, and after which pause."""

from __future__ import annotations

import ssl
import uuid
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demijohn.client import Answer, Retry, RetryPolicy
from demijohn.client.policy import LogicalCall, asked_s, decide, is_hopeless, pause_s, retry_after_s

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


def delay(thing: LogicalCall, outcome: Answer | Exception) -> float | None:
    retry = thing.after(outcome)
    return None if retry is None else retry.delay


def conflict(slug: str, kind: str = "application/problem+json") -> Answer:
    body = b'{"type": "https://x/problems#%s"}' % slug.encode()
    return Answer(409, {"content-type": kind, "retry-after": "1"}, body)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_passing_trouble_is_worth_another_attempt(status: int) -> None:
    assert delay(call(RetryPolicy(), Clock()), Answer(status, {})) == 0.1


@pytest.mark.parametrize("status", [200, 201, 303, 400, 401, 404, 409, 422, 500])
def test_final_answer_is_final(status: int) -> None:
    assert delay(call(RetryPolicy(), Clock()), Answer(status, {})) is None


def test_conflict_is_retried_only_while_the_first_request_runs() -> None:
    def type_of(slug: str) -> bytes:
        return b'{"type": "https://x/problems#%s"}' % slug.encode()

    assert Answer(409, PROBLEM, type_of("idempotency-key-in-progress")).still_running
    assert not Answer(409, PROBLEM, type_of("idempotency-outcome-unknown")).still_running
    assert not Answer(409, {**PROBLEM, "retry-after": "1"}, type_of("other")).still_running
    assert Answer(409, {"retry-after": "1"}).still_running
    assert not Answer(409, {}).still_running
    assert not Answer(503, {"retry-after": "1"}).still_running
    assert conflict("idempotency-key-in-progress", "Application/Problem+JSON; x=y").still_running
    assert not conflict("other", "Application/Problem+JSON; x=y").still_running
    for body in (b"", b"[]", b"{}", b'{"type": 1}', b"\xff", b"[" * 100_000):
        assert not Answer(409, PROBLEM, body).still_running


def test_request_that_cannot_be_repeated_is_sent_once() -> None:
    once = call(RetryPolicy(), Clock(), repeatable=False)
    assert delay(once, Answer(503, {})) is None
    assert delay(once, OSError()) is None


@pytest.mark.parametrize("slug", ["idempotency-outcome-unknown", "idempotency-response-not-kept"])
def test_conflict_that_settles_the_key_is_final_even_where_409_is_asked_for(slug: str) -> None:
    policy = RetryPolicy(statuses={409})
    assert delay(call(policy, Clock()), conflict(slug)) is None
    assert delay(call(policy, Clock()), Answer(409, {})) is not None


def test_refused_certificate_is_final_however_deep_it_lies() -> None:
    refused = ssl.SSLCertVerificationError("self-signed")
    told = ConnectionError(OSError(refused))
    caused = OSError()
    caused.__cause__ = told
    for error in (refused, told, caused):
        assert is_hopeless(error)
        assert delay(call(RetryPolicy(), Clock()), error) is None
    assert not is_hopeless(ssl.SSLEOFError("broken off"))


def test_errors_that_cause_each_other_are_looked_at_once() -> None:
    first, second = OSError(), OSError()
    first.__cause__, second.__cause__ = second, first
    assert not is_hopeless(first)


@pytest.mark.parametrize("method", ["GET", "head", "OPTIONS", "TRACE", "PUT", "DELETE"])
def test_idempotent_methods_are_safe_without_a_key(method: str) -> None:
    assert RetryPolicy().is_safe(method, key=None)


@pytest.mark.parametrize("method", ["POST", "patch"])
def test_post_and_patch_are_safe_with_a_key_only(method: str) -> None:
    assert RetryPolicy(keyed_methods=()).is_safe(method, key='"k"')
    assert RetryPolicy().is_safe(method, key=b"k")
    for empty in (None, "", '""', b" "):
        assert not RetryPolicy().is_safe(method, key=empty)


def test_key_makes_no_other_method_safe_unless_the_policy_says_so() -> None:
    assert not RetryPolicy().is_safe("PURGE", key="k")
    assert RetryPolicy(keyed_methods={"PURGE"}).is_safe("PURGE", key="k")


def test_attempts_end_at_their_number() -> None:
    policy = RetryPolicy(max_attempts=3, deadline=timedelta(hours=1))
    thing = call(policy, Clock())
    assert [delay(thing, OSError()) is None for _ in range(3)] == [False, False, True]
    assert thing.attempts == 3


def test_no_pause_reaches_past_the_deadline() -> None:
    clock = Clock()
    thing = call(RetryPolicy(deadline=10), clock)
    clock.now += 9.95
    assert delay(thing, OSError()) is None


def test_server_that_asks_for_more_than_the_deadline_is_not_waited_for() -> None:
    thing = call(RetryPolicy(deadline=10), Clock())
    assert delay(thing, Answer(503, {"retry-after": "11"})) is None


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
    for outcome in (error, Answer(503, {})):
        retry = thing.after(outcome)
        assert retry is not None
        assert thing.announce(retry) == retry.delay
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


def test_date_is_counted_from_the_servers_own_clock() -> None:
    server = NOW - timedelta(hours=1)
    headers = {
        "retry-after": format_datetime(server + timedelta(seconds=4), usegmt=True),
        "date": format_datetime(server, usegmt=True),
    }
    assert asked_s(Answer(503, headers), NOW) == 4
    assert asked_s(Answer(503, {**headers, "date": "sometime"}), NOW) == 0
    assert asked_s(Answer(503, {"retry-after": headers["retry-after"]}), server) == 4


outcomes = st.one_of(
    st.builds(
        Answer,
        st.sampled_from([200, 409, 422, 429, 500, 502, 503, 504]),
        st.dictionaries(
            st.sampled_from(["retry-after", "date", "content-type"]),
            st.sampled_from(["0", "3", "3600", PROBLEM["content-type"]]) | st.text(),
        ),
        st.binary(),
    ),
    st.builds(OSError),
)


@given(
    repeatable=st.booleans(),
    outcome=outcomes,
    attempt=st.integers(1, 20),
    elapsed=st.floats(0, 60),
    draw=st.floats(0, 1),
)
def test_every_decision_keeps_to_the_policy(
    repeatable: bool, outcome: Answer | Exception, attempt: int, elapsed: float, draw: float
) -> None:
    policy = RetryPolicy()
    pause = decide(
        policy,
        repeatable=repeatable,
        outcome=outcome,
        attempt=attempt,
        elapsed_s=elapsed,
        draw=draw,
        now=NOW,
    )
    if pause is None:
        return
    assert repeatable
    assert attempt < policy.max_attempts
    assert elapsed + pause < policy.deadline_s
    if isinstance(outcome, Answer):
        assert outcome.still_running or outcome.status in policy.statuses
        assert pause >= retry_after_s(outcome.headers.get("retry-after"), NOW) or (
            "date" in outcome.headers
        )


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
    [
        ({"deadline": 0}, "deadline"),
        ({"deadline": float("inf")}, "deadline"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"base": 9}, "base"),
    ],
)
def test_value_out_of_range_is_refused_by_name(options: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        RetryPolicy(**options)  # type: ignore[arg-type]
