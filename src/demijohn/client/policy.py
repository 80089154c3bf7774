"""When a request may be sent again, and how long to wait before.

Theory of operation. Sending again is safe where a second arrival changes nothing: for the methods
that HTTP defines as idempotent (RFC 9110, 9.2.2), and for any method under an idempotency key. It
is possible where the body can be produced again, and it makes sense after what may be gone at the
next attempt: a connection that fails, a request with the same key that still runs, a server that
asks for patience. The pause before the next attempt is drawn from a range that doubles with each
attempt ("full jitter": Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015), and
never less than what ``Retry-After`` asks for (RFC 9110, 10.2.3).

Nothing here reads a clock, sleeps or sends: :class:`LogicalCall` is told what happened.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final, TypeAlias

Duration: TypeAlias = timedelta | int | float

IDEMPOTENT_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
IN_PROGRESS: Final = "idempotency-key-in-progress"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, as far as it matters here.

    Args:
        status: its status.
        headers: its fields; looked up by lower-case name.
        body: all of it, or ``b""`` if it was not read.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def still_running(self) -> bool:
        """Whether a 409 says that the first request with this key is not done yet.

        Demijohn says so by the problem's type. Other servers say 409 with ``Retry-After``; a
        problem of any other type is a conflict that will not pass.
        """
        if self.status != 409:
            return False
        if not self.headers.get("content-type", "").startswith("application/problem+json"):
            return "retry-after" in self.headers
        try:
            document = json.loads(self.body)
        except ValueError:
            return False
        kind = document.get("type") if isinstance(document, dict) else None
        return isinstance(kind, str) and kind.endswith(IN_PROGRESS)


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
            ``timedelta``. No attempt is begun after it, and none is given more than is left.
        max_attempts: the most attempts, the first included.
        base: the upper end of the first pause, in seconds; it doubles with each attempt.
        cap: the largest upper end, in seconds. ``Retry-After`` may ask for more.
        statuses: which responses are worth another attempt, besides a 409 that says that the
            first request still runs.
        keyed_methods: methods that are given an idempotency key, which makes them safe.
        key_header: the name of the field.
        bare: send the key as a bare token, without the quotes of a structured-field string
            (RFC 9651); some servers know no other form.
        max_replay: the largest body, in bytes, that is read into memory so that it can be sent
            again, where it does not come from memory.
        on_retry: called before each pause.

    Raises:
        ValueError: a value is out of range.
    """

    deadline: Duration = 30
    max_attempts: int = 10
    base: float = 0.1
    cap: float = 5.0
    statuses: Collection[int] = frozenset({429, 502, 503, 504})
    keyed_methods: Collection[str] = frozenset({"POST", "PATCH"})
    key_header: str = "Idempotency-Key"
    bare: bool = False
    max_replay: int = 1024 * 1024
    on_retry: Callable[[Retry], None] | None = None

    def __post_init__(self) -> None:
        if self.deadline_s <= 0:
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

    def is_safe(self, method: str, *, keyed: bool) -> bool:
        """Whether a second arrival of the request changes nothing."""
        return keyed or method.upper() in IDEMPOTENT_METHODS


def retry_after_s(value: str | None, now: datetime) -> float:
    """Return how many seconds a ``Retry-After`` field asks for; 0 where it says nothing readable.

    Args:
        value: seconds, or an HTTP date.
        now: with a time zone.
    """
    if not value:
        return 0.0
    text = value.strip()
    if text.isascii() and text.isdigit():
        # More than a year is refused all the same, and a float must be able to hold it.
        return float(text[:9])
    try:
        then = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return 0.0
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - now).total_seconds())


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
        self._ends = clock() + policy.deadline_s
        self.attempts = 1
        """The number of the attempt that is being made."""

    @property
    def left_s(self) -> float:
        """How much of the deadline is left, in seconds; never less than a millisecond."""
        return max(0.001, self._ends - self._clock())

    def limited(self, timeout: float | None) -> float:
        """Return the timeout of the next attempt: what the user wants, or what is left."""
        return self.left_s if timeout is None else min(timeout, self.left_s)

    def after_answer(self, answer: Answer) -> float | None:
        """Return how long to pause before another attempt, in seconds; ``None`` for none."""
        if answer.status not in self._policy.statuses and not answer.still_running:
            return None
        asked_s = retry_after_s(answer.headers.get("retry-after"), self._wall_clock())
        return self._pause(asked_s, answer)

    def after_failure(self, error: Exception) -> float | None:
        """Return how long to pause after a broken connection, in seconds; ``None`` for none."""
        return self._pause(0.0, error)

    def _pause(self, asked_s: float, reason: Answer | Exception) -> float | None:
        policy = self._policy
        if not self._repeatable or self.attempts >= policy.max_attempts:
            return None
        delay = pause_s(policy, self.attempts, asked_s, self._draw())
        if self._clock() + delay >= self._ends:
            return None
        if policy.on_retry is not None:
            policy.on_retry(Retry(self.attempts, delay, reason))
        self.attempts += 1
        return delay
