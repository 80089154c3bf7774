"""When a request may be sent again, and how long to wait before.

Theory of operation. Sending again is safe where a second arrival changes nothing: for the methods
that HTTP defines as idempotent (RFC 9110, 9.2.2), and for POST and PATCH under an idempotency key.
It is possible where the body can be produced again, and it makes sense after what may be gone at
the next attempt: a connection that fails, a request with the same key that still runs, a server
that asks for patience. The pause before the next attempt is drawn from a range that doubles with
each attempt ("full jitter": Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog,
2015), and never less than what ``Retry-After`` asks for (RFC 9110, 10.2.3).

:func:`decide` holds all of this, and is told even the time and the random number. Nothing here
sleeps or sends; :class:`LogicalCall` counts attempts and reads the clocks that it is given.
"""

from __future__ import annotations

import json
import math
import random
import ssl
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final, TypeAlias

Duration: TypeAlias = timedelta | int | float

IDEMPOTENT_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
KEYED_METHODS: Final = frozenset({"POST", "PATCH"})
PROBLEM: Final = "application/problem+json"
IN_PROGRESS: Final = "idempotency-key-in-progress"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, as far as it matters here.

    Args:
        status: its status.
        headers: its fields; looked up by lower-case name.
        body: all of it, decoded, or ``b""`` if it was not read.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def is_problem(self) -> bool:
        """Whether the body is a problem document (RFC 9457)."""
        return is_problem_type(self.headers.get("content-type", ""))

    @property
    def problem_type(self) -> str:
        """The problem's ``type``, or ``""`` where there is none that can be read."""
        if not self.is_problem:
            return ""
        try:
            document = json.loads(self.body)
        except (ValueError, RecursionError):
            return ""
        kind = document.get("type") if isinstance(document, dict) else None
        return kind if isinstance(kind, str) else ""

    @property
    def still_running(self) -> bool:
        """Whether a 409 says that the first request with this key is not done yet.

        Demijohn says so by the problem's type. Other servers say 409 with ``Retry-After``; a
        problem of any other type is a conflict that will not pass.
        """
        if self.status != 409:
            return False
        if self.is_problem:
            return self.problem_type.endswith(IN_PROGRESS)
        return "retry-after" in self.headers

    @property
    def settles_the_key(self) -> bool:
        """Whether a 409 says something of the key that no retry will change.

        Such are ``idempotency-outcome-unknown`` and ``idempotency-response-not-kept``.
        """
        kind = self.problem_type if self.status == 409 else ""
        return "idempotency-" in kind and not self.still_running


@dataclass(frozen=True, slots=True)
class Retry:
    """What an ``on_retry`` function is told.

    Args:
        attempt: the number of the attempt that has failed, from 1.
        delay: seconds until the next.
        reason: the response, or the exception.
    """

    attempt: int
    delay: float
    reason: Answer | Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a client retries.

    Args:
        deadline: the time for a logical call, all attempts and pauses together; seconds or a
            ``timedelta``. No attempt is begun after it, and no attempt waits for the network, at
            any one point, longer than was left when it began. Bytes that go on arriving are never
            cut off, and each hop of a redirect has a deadline of its own.
        max_attempts: the most attempts, the first included.
        base: the upper end of the first pause, in seconds; it doubles with each attempt.
        cap: the largest upper end, in seconds. ``Retry-After`` may ask for more.
        statuses: which responses are worth another attempt, besides a 409 that says that the
            first request still runs. A 409 that says how a key ended never is.
        keyed_methods: methods that are given an idempotency key, which makes them safe. A POST or
            PATCH that has a key of the caller's is safe even if they are not among them.
        key_header: the name of the field.
        bare: send the key as a bare token, without the quotes of a structured-field string
            (RFC 9651); some servers know no other form.
        max_replay: the largest body, in bytes, that httpx's transports read into memory so that
            it can be sent again, where it is neither in memory nor a file that can be rewound.
        on_retry: called before each pause.

    Raises:
        ValueError: a value is out of range.
    """

    deadline: Duration = 30
    max_attempts: int = 10
    base: float = 0.1
    cap: float = 5.0
    statuses: Collection[int] = frozenset({429, 502, 503, 504})
    keyed_methods: Collection[str] = KEYED_METHODS
    key_header: str = "Idempotency-Key"
    bare: bool = False
    max_replay: int = 1024 * 1024
    on_retry: Callable[[Retry], None] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.deadline_s < math.inf:
            raise ValueError(f"deadline must be more than 0 seconds, got {self.deadline!r}")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts!r}")
        if not 0 < self.base <= self.cap:
            raise ValueError("base must be more than 0 and at most cap")

    @property
    def deadline_s(self) -> float:
        """The deadline in seconds."""
        if isinstance(self.deadline, timedelta):
            return self.deadline.total_seconds()
        return float(self.deadline)

    def new_key(self) -> str:
        """Return a field value with a new key."""
        key = str(uuid.uuid4())
        return key if self.bare else f'"{key}"'

    def is_safe(self, method: str, *, key: str | bytes | None) -> bool:
        """Whether a second arrival of the request changes nothing.

        A key on another method is no promise: servers look for it on POST and PATCH only.

        Args:
            method: in any case.
            key: the value of the key's field, if it is there. An empty one counts as none.
        """
        name = method.upper()
        if name in IDEMPOTENT_METHODS:
            return True
        text = key.decode("latin-1") if isinstance(key, bytes) else key or ""
        return bool(text.strip(' \t"')) and (name in KEYED_METHODS or name in self.keyed_methods)


def is_problem_type(content_type: str) -> bool:
    """Whether a ``Content-Type`` is that of a problem document, whatever its parameters."""
    return content_type.partition(";")[0].strip().lower() == PROBLEM


def is_hopeless(error: BaseException) -> bool:
    """Whether an attempt fails in the same way again: the server's certificate is refused."""
    return any(isinstance(each, ssl.SSLCertVerificationError) for each in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and what it says it comes from; requests says it in ``args``."""
    pending, seen = [error], set[int]()
    while pending:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        causes = (each.__cause__, *each.args)
        pending += [cause for cause in causes if isinstance(cause, BaseException)]


def retry_after_s(value: str | None, now: datetime) -> float:
    """Return how many seconds a ``Retry-After`` field asks for; 0 where it says nothing readable.

    Args:
        value: seconds, or an HTTP date.
        now: with a time zone.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        # More than a year is refused all the same, and a float must be able to hold it.
        return float(text[:9])
    then = _date(text)
    return 0.0 if then is None else max(0.0, (then - now).total_seconds())


def _date(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date


def asked_s(answer: Answer, now: datetime) -> float:
    """Return how many seconds ``answer`` asks for.

    A date is compared with the answer's own ``Date``, so that the two clocks need not agree, and
    with ``now`` only where it has none.
    """
    return retry_after_s(
        answer.headers.get("retry-after"), _date(answer.headers.get("date")) or now
    )


def pause_s(policy: RetryPolicy, attempt: int, asked_s: float, draw: float) -> float:
    """Return the pause after ``attempt``, in seconds.

    Args:
        policy: gives the range.
        attempt: from 1.
        asked_s: what the server asked for; the pause is added to it, so that the clients that
            were all asked to wait the same time do not all come back at once.
        draw: a random number from 0 to 1.
    """
    ceiling = min(policy.cap, policy.base * 2.0 ** min(attempt - 1, 60))
    return asked_s + draw * ceiling


def may_pass(policy: RetryPolicy, outcome: Answer | Exception) -> bool:
    """Whether the next attempt may end otherwise."""
    if isinstance(outcome, Exception):
        return not is_hopeless(outcome)
    if outcome.still_running:
        return True
    return outcome.status in policy.statuses and not outcome.settles_the_key


def decide(
    policy: RetryPolicy,
    *,
    repeatable: bool,
    outcome: Answer | Exception,
    attempt: int,
    elapsed_s: float,
    draw: float,
    now: datetime,
) -> float | None:
    """Return the pause before another attempt, in seconds; ``None`` to give up.

    Args:
        policy: how to retry.
        repeatable: whether the request is safe to send again, and its body can be.
        outcome: how the attempt ended; an exception is a connection that failed.
        attempt: its number, from 1.
        elapsed_s: since the logical call began.
        draw: a random number from 0 to 1.
        now: with a time zone; for dates in ``Retry-After``.
    """
    if not repeatable or attempt >= policy.max_attempts or not may_pass(policy, outcome):
        return None
    asked = asked_s(outcome, now) if isinstance(outcome, Answer) else 0.0
    pause = pause_s(policy, attempt, asked, draw)
    return pause if elapsed_s + pause < policy.deadline_s else None


class LogicalCall:
    """One call of the user's, and the attempts at it.

    Args:
        policy: how to retry.
        repeatable: whether it may be sent again and its body can be.
        clock: monotonic seconds.
        draw: gives random numbers from 0 to 1.
        wall_clock: for dates in ``Retry-After``.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        repeatable: bool,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._policy = policy
        self._repeatable = repeatable
        self._clock = clock
        self._draw = draw
        self._wall_clock = wall_clock
        self._began = clock()
        self.attempts = 1
        """The number of the attempt that is being made."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    @property
    def left_s(self) -> float:
        """How much of the deadline is left, in seconds; never less than a millisecond."""
        return max(0.001, self._policy.deadline_s - self.elapsed_s)

    def limited(self, timeout: float | None) -> float:
        """Return the timeout of the next attempt: what the user wants, or what is left."""
        return self.left_s if timeout is None else min(timeout, self.left_s)

    def after(self, outcome: Answer | Exception) -> Retry | None:
        """Return the retry to make, and count its attempt; ``None`` if ``outcome`` is the last."""
        delay = decide(
            self._policy,
            repeatable=self._repeatable,
            outcome=outcome,
            attempt=self.attempts,
            elapsed_s=self.elapsed_s,
            draw=self._draw(),
            now=self._wall_clock(),
        )
        if delay is None:
            return None
        self.attempts += 1
        return Retry(self.attempts - 1, delay, outcome)

    def announce(self, retry: Retry) -> float:
        """Tell the policy's ``on_retry``; return the seconds to pause.

        Called when the last response is closed already, so that a function that raises leaves no
        connection behind.
        """
        if self._policy.on_retry is not None:
            self._policy.on_retry(retry)
        return retry.delay
