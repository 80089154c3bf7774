"""The circuit breaker that stands in front of every remote store.

Theory of operation. The store's own deadline bounds one call. Were the store down, every request
would still pay that deadline, and every thread would sit in it. So after some failures in a row
the breaker *opens*: calls are refused at once. After a pause it is *half open*: one call goes
through as a probe, the others are still refused. If the probe is answered the breaker *closes*;
if not it opens again, for twice as long, up to a limit::

    CLOSED --failures in a row--> OPEN --pause over, one probe--> HALF_OPEN
    HALF_OPEN --answered--> CLOSED          HALF_OPEN --not answered--> OPEN, pause doubled

Only unavailability counts as a failure: a store that answers "this record is corrupt" is there.
Calls that began before the last change of state say nothing about the present one, so their end
is not heeded: each is admitted under a period, and a change of state begins the next.
"""

from __future__ import annotations

import enum
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from demijohn.core.step import Outcome, Row, Step
from demijohn.errors import StoreBusy, StoreError, StoreUnavailable
from demijohn.stores.forks import renew_in_children
from demijohn.stores.protocol import Health, Store, scattered

logger: Final = logging.getLogger("demijohn.stores")


class Circuit(enum.Enum):
    """The states of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


@dataclass(frozen=True, slots=True)
class BreakerOptions:
    """When a breaker opens and for how long.

    Args:
        failures: how many failures in a row open it; 1 or more.
        reset_ms: the first pause, in milliseconds.
        reset_max_ms: the longest pause, in milliseconds.
    """

    failures: int = 3
    reset_ms: int = 250
    reset_max_ms: int = 5000


class CircuitBreaker:
    """The state machine alone: no lock, no I/O.

    Args:
        options: when it opens and for how long.
        clock: seconds that only advance.
        jitter: gives the part of a pause that is waited, so that many processes do not probe in
            step; at least 0, at most 1.
    """

    def __init__(
        self,
        options: BreakerOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.0),  # noqa: S311 - no secret
    ) -> None:
        self._options = options
        self._clock = clock
        self._jitter = jitter
        self._period = 0
        self._in_a_row = 0
        self._pause_ms = options.reset_ms
        self._opens_until = 0.0
        self.state = Circuit.CLOSED
        self.failures = 0
        """How many calls have failed."""
        self.opens = 0
        """How often the breaker has opened."""
        self.rejected = 0
        """How many calls were refused at once."""

    @property
    def untroubled(self) -> bool:
        """Whether the breaker is closed and the last call was answered."""
        return self.state is Circuit.CLOSED and not self._in_a_row

    @property
    def period(self) -> int:
        """The number of the present period."""
        return self._period

    def admit(self) -> int:
        """Admit a call: return 0, or in how many milliseconds to try again if it is refused."""
        if self.state is Circuit.CLOSED:
            return 0
        left_ms = (self._opens_until - self._clock()) * 1000
        if self.state is Circuit.OPEN and left_ms <= 0:
            self._enter(Circuit.HALF_OPEN)
            return 0
        self.rejected += 1
        return max(int(left_ms), 1) if self.state is Circuit.OPEN else self._options.reset_ms

    def succeeded(self, period: int) -> None:
        """Note that a call of ``period`` was answered."""
        if period != self._period:
            return
        self._in_a_row = 0
        if self.state is Circuit.HALF_OPEN:
            self._pause_ms = self._options.reset_ms
            self._enter(Circuit.CLOSED)

    def failed(self, period: int) -> None:
        """Note that a call of ``period`` was not answered."""
        self.failures += 1
        if period != self._period:
            return
        self._in_a_row += 1
        if self.state is Circuit.HALF_OPEN:
            self._pause_ms = min(self._pause_ms * 2, self._options.reset_max_ms)
            self._open()
        elif self._in_a_row >= self._options.failures:
            self._open()

    def abandoned(self, period: int) -> None:
        """Note that a call of ``period`` ended without a verdict: another may probe at once."""
        if period == self._period and self.state is Circuit.HALF_OPEN:
            self._opens_until = self._clock()
            self._enter(Circuit.OPEN)

    def _open(self) -> None:
        self.opens += 1
        self._opens_until = self._clock() + self._pause_ms * self._jitter() / 1000
        self._enter(Circuit.OPEN)

    def _enter(self, state: Circuit) -> None:
        self.state = state
        self._period += 1
        self._in_a_row = 0


class Guarded:
    """A remote store behind a circuit breaker.

    ``run`` alone is guarded. ``wait`` sleeps on what the store hears and costs no trip; ``scan``
    and ``health`` are for operators, who want the truth.

    Args:
        store: the store; it must bound each call by a deadline of its own.
        breaker: the state machine.
        name: how the log calls the store; no password in it.
    """

    def __init__(self, store: Store, breaker: CircuitBreaker, *, name: str) -> None:
        self.store = store
        self.breaker = breaker
        self._name = name
        self._lock = threading.Lock()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Make the lock anew: a thread of the parent may have held it."""
        self._lock = threading.Lock()

    @property
    def scattered(self) -> bool:
        """See :func:`demijohn.stores.scattered`."""
        return scattered(self.store)

    @property
    def inbox(self) -> str:
        """See :attr:`Store.inbox`."""
        return self.store.inbox

    @property
    def mark(self) -> int:
        """See :attr:`Store.mark`."""
        return self.store.mark

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        """See :meth:`Store.run`.

        Raises:
            StoreUnavailable: at once while the breaker is open, with ``retry_after_ms``.
        """
        period = self._admit()
        try:
            outcomes = self.store.run(steps)
        except StoreBusy:
            # It says nothing of the store, which others are using well.
            self._report(self.breaker.abandoned, period)
            raise
        except StoreUnavailable as error:
            self._report(self.breaker.failed, period, error)
            raise
        except StoreError:
            self._report(self.breaker.succeeded, period)
            raise
        except BaseException:
            self._report(self.breaker.abandoned, period)
            raise
        if not self.breaker.untroubled:
            self._report(self.breaker.succeeded, period)
        return outcomes

    def _admit(self) -> int:
        # Closed is what it nearly always is, and then no lock is taken: a call that slips
        # through while another thread opens the breaker pays one deadline more, no worse.
        if self.breaker.untroubled:
            return self.breaker.period
        with self._lock:
            before = self.breaker.state
            retry_after_ms = self.breaker.admit()
            after, period = self.breaker.state, self.breaker.period
        self._log(before, after)
        if retry_after_ms:
            raise _refusal(self._name, retry_after_ms)
        return period

    def _report(
        self, note: Callable[[int], None], period: int, error: StoreError | None = None
    ) -> None:
        with self._lock:
            before = self.breaker.state
            note(period)
            after = self.breaker.state
        self._log(before, after, error)

    def _log(self, before: Circuit, after: Circuit, error: StoreError | None = None) -> None:
        if after is before:
            return
        level = logging.WARNING if after is Circuit.OPEN else logging.INFO
        logger.log(
            level,
            "store %s: circuit %s, was %s%s",
            self._name,
            after.value,
            before.value,
            f": {error}" if error else "",
        )

    def wait(self, key: str, *, since: int, timeout_ms: int) -> bool:
        """See :meth:`Store.wait`."""
        return self.store.wait(key, since=since, timeout_ms=timeout_ms)

    def scan(self, prefix: str) -> Iterator[tuple[str, Row]]:
        """See :meth:`Store.scan`."""
        return self.store.scan(prefix)

    def health(self) -> Health:
        """See :meth:`Store.health`; the detail tells the state of the breaker as well."""
        health = self.store.health()
        circuit = f"circuit {self.breaker.state.value}"
        detail = f"{health.detail}; {circuit}" if health.detail else circuit
        return Health(health.kind, health.ok, health.latency_ms, detail)

    def close(self) -> None:
        """See :meth:`Store.close`."""
        self.store.close()


def _refusal(name: str, retry_after_ms: int) -> StoreUnavailable:
    refusal = StoreUnavailable(
        f"store {name} did not answer lately; its circuit is open,"
        f" and the next call is tried in {retry_after_ms} ms"
    )
    refusal.retry_after_ms = retry_after_ms
    return refusal
