"""The circuit breaker: its state machine on a clock of its own, and the wrapper around a store."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from demijohn.core.step import Outcome, Row, Step
from demijohn.errors import CorruptRecord, StoreBusy, StoreTimeout, StoreUnavailable, UsageError
from demijohn.stores.breaker import BreakerOptions, Circuit, CircuitBreaker, Guarded
from demijohn.stores.protocol import Health, Store
from demijohn.testing.contract import forked

OPTIONS = BreakerOptions(failures=3, reset_ms=250, reset_max_ms=1000)


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(OPTIONS, clock=clock, jitter=lambda: 1.0)


def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        assert breaker.admit() == 0
        breaker.failed(breaker.period)


class TestStateMachine:
    def test_failures_in_a_row_open_it(self, breaker: CircuitBreaker) -> None:
        fail(breaker, 2)
        assert breaker.state is Circuit.CLOSED
        fail(breaker, 1)
        assert breaker.state is Circuit.OPEN
        assert (breaker.failures, breaker.opens) == (3, 1)

    def test_an_answer_in_between_begins_the_count_anew(self, breaker: CircuitBreaker) -> None:
        fail(breaker, 2)
        breaker.succeeded(breaker.period)
        assert breaker.untroubled
        fail(breaker, 2)
        assert breaker.state is Circuit.CLOSED

    def test_while_open_it_says_when_to_come_back(
        self, breaker: CircuitBreaker, clock: Clock
    ) -> None:
        fail(breaker, 3)
        assert breaker.admit() == 250
        clock.seconds += 0.2499
        assert breaker.admit() == 1
        assert breaker.rejected == 2

    def test_after_the_pause_one_call_probes(self, breaker: CircuitBreaker, clock: Clock) -> None:
        fail(breaker, 3)
        clock.seconds += 0.25
        assert breaker.admit() == 0
        assert breaker.state is Circuit.HALF_OPEN
        assert breaker.admit() == 250

    def test_an_answered_probe_closes_it_and_forgets_the_pauses(
        self, breaker: CircuitBreaker, clock: Clock
    ) -> None:
        fail(breaker, 3)
        for _ in range(2):
            clock.seconds += 5
            fail(breaker, 1)
        clock.seconds += 5
        assert breaker.admit() == 0
        breaker.succeeded(breaker.period)
        assert breaker.untroubled
        fail(breaker, 3)
        assert breaker.admit() == 250

    def test_failed_probes_double_the_pause_up_to_the_limit(
        self, breaker: CircuitBreaker, clock: Clock
    ) -> None:
        fail(breaker, 3)
        pauses = []
        for _ in range(4):
            clock.seconds += 5
            fail(breaker, 1)
            pauses.append(breaker.admit())
        assert pauses == [500, 1000, 1000, 1000]
        assert breaker.opens == 5

    def test_calls_of_an_earlier_period_are_not_heeded(
        self, breaker: CircuitBreaker, clock: Clock
    ) -> None:
        early = breaker.period
        fail(breaker, 3)
        breaker.failed(early)
        breaker.succeeded(early)
        breaker.abandoned(early)
        assert breaker.state is Circuit.OPEN
        clock.seconds += 0.25
        assert breaker.admit() == 0
        breaker.succeeded(early)
        assert breaker.state is Circuit.HALF_OPEN
        breaker.failed(early)
        assert breaker.state is Circuit.HALF_OPEN
        assert breaker.failures == 5

    def test_an_abandoned_probe_lets_another_probe(
        self, breaker: CircuitBreaker, clock: Clock
    ) -> None:
        fail(breaker, 3)
        clock.seconds += 0.25
        assert breaker.admit() == 0
        breaker.abandoned(breaker.period)
        assert breaker.state is Circuit.OPEN
        assert breaker.admit() == 0
        breaker.succeeded(breaker.period)
        assert breaker.state is Circuit.CLOSED

    def test_abandoning_a_call_while_closed_says_nothing(self, breaker: CircuitBreaker) -> None:
        fail(breaker, 2)
        breaker.abandoned(breaker.period)
        fail(breaker, 1)
        assert breaker.state is Circuit.OPEN

    def test_jitter_shortens_the_pause(self, clock: Clock) -> None:
        breaker = CircuitBreaker(OPTIONS, clock=clock, jitter=lambda: 0.5)
        fail(breaker, 3)
        assert breaker.admit() == 125

    def test_default_jitter_keeps_within_half_and_whole(self) -> None:
        pauses = set()
        for _ in range(50):
            breaker = CircuitBreaker(OPTIONS, clock=lambda: 0.0)
            fail(breaker, 3)
            pauses.add(breaker.admit())
        assert len(pauses) > 10
        assert 124 <= min(pauses) <= max(pauses) <= 250


class Fake:
    """A store that does as it is told."""

    inbox = "inbox"
    mark = 7

    def __init__(self) -> None:
        self.act: Callable[[], list[Outcome]] = lambda: [Outcome("done")]
        self.calls = 0
        self.closed = 0
        self.detail = ""

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        self.calls += 1
        return self.act()

    def wait(self, key: str, *, since: int, timeout_ms: int) -> bool:
        return (key, since, timeout_ms) == ("key", 1, 2)

    def scan(self, prefix: str) -> Iterator[tuple[str, Row]]:
        return iter([(prefix, {"x": 1})])

    def health(self) -> Health:
        return Health("fake", ok=True, latency_ms=0.0, detail=self.detail)

    def close(self) -> None:
        self.closed += 1

    def breaks(self, error: BaseException) -> None:
        def act() -> list[Outcome]:
            raise error

        self.act = act

    def heals(self) -> None:
        self.act = lambda: [Outcome("done")]


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def guarded(fake: Fake, breaker: CircuitBreaker) -> Guarded:
    return Guarded(fake, breaker, name="fake at home")


def refused(guarded: Guarded, error: type[Exception] = StoreUnavailable, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(error):
            guarded.run([])


class TestGuarded:
    def test_is_a_store(self, guarded: Guarded) -> None:
        assert isinstance(guarded, Store)
        assert guarded.run([]) == [Outcome("done")]
        assert (guarded.inbox, guarded.mark) == ("inbox", 7)
        assert guarded.wait("key", since=1, timeout_ms=2)
        assert list(guarded.scan("some")) == [("some", {"x": 1})]

    def test_opens_and_then_refuses_without_asking_the_store(
        self, guarded: Guarded, fake: Fake
    ) -> None:
        fake.breaks(StoreTimeout("too late"))
        refused(guarded, StoreTimeout, times=3)
        with pytest.raises(StoreUnavailable, match=r"fake at home.*250 ms") as refusal:
            guarded.run([])
        assert refusal.value.retry_after_ms == 250
        assert fake.calls == 3
        assert guarded.breaker.rejected == 1

    def test_recovers_by_a_probe(self, guarded: Guarded, fake: Fake, clock: Clock) -> None:
        fake.breaks(StoreUnavailable("gone"))
        refused(guarded, times=3)
        fake.heals()
        clock.seconds += 0.3
        assert guarded.run([]) == [Outcome("done")]
        assert guarded.breaker.untroubled

    def test_one_answer_forgives_earlier_failures(self, guarded: Guarded, fake: Fake) -> None:
        fake.breaks(StoreUnavailable("gone"))
        refused(guarded, times=2)
        fake.heals()
        guarded.run([])
        fake.breaks(StoreUnavailable("gone"))
        refused(guarded, times=2)
        assert guarded.breaker.state is Circuit.CLOSED

    def test_errors_of_a_store_that_answers_do_not_count(
        self, guarded: Guarded, fake: Fake
    ) -> None:
        fake.breaks(CorruptRecord("spoiled"))
        refused(guarded, CorruptRecord, times=10)
        assert guarded.breaker.untroubled
        assert guarded.breaker.failures == 0

    def test_want_of_a_connection_says_nothing_of_the_store(
        self, guarded: Guarded, fake: Fake
    ) -> None:
        fake.breaks(StoreBusy("all connections are in use"))
        refused(guarded, StoreBusy, times=10)
        assert guarded.breaker.untroubled
        assert guarded.breaker.failures == 0

    @pytest.mark.parametrize("error", [UsageError("no"), KeyboardInterrupt(), GeneratorExit()])
    def test_a_call_that_was_broken_off_says_nothing(
        self, guarded: Guarded, fake: Fake, clock: Clock, error: BaseException
    ) -> None:
        fake.breaks(StoreUnavailable("gone"))
        refused(guarded, times=3)
        clock.seconds += 0.3
        fake.breaks(error)
        with pytest.raises(type(error)):
            guarded.run([])
        fake.heals()
        assert guarded.run([]) == [Outcome("done")]

    def test_only_one_of_many_threads_probes(
        self, guarded: Guarded, fake: Fake, clock: Clock
    ) -> None:
        fake.breaks(StoreUnavailable("gone"))
        refused(guarded, times=3)
        clock.seconds += 0.3
        probing, finish = threading.Event(), threading.Event()

        def slowly() -> list[Outcome]:
            probing.set()
            finish.wait(5)
            return []

        fake.act = slowly
        probe = threading.Thread(target=guarded.run, args=([],))
        probe.start()
        assert probing.wait(5)
        refused(guarded, times=5)
        assert fake.calls == 4
        finish.set()
        probe.join()
        assert guarded.breaker.state is Circuit.CLOSED

    def test_logs_one_line_for_each_change(
        self, guarded: Guarded, fake: Fake, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "demijohn.stores")
        fake.breaks(StoreUnavailable("gone"))
        refused(guarded, times=9)
        fake.heals()
        clock.seconds += 1
        guarded.run([])
        guarded.run([])
        assert [record.getMessage() for record in caplog.records] == [
            "store fake at home: circuit open, was closed: gone",
            "store fake at home: circuit half open, was open",
            "store fake at home: circuit closed, was half open",
        ]

    def test_health_tells_the_state(self, guarded: Guarded, fake: Fake) -> None:
        assert guarded.health().detail == "circuit closed"
        fake.detail = "version 1"
        fake.breaks(StoreUnavailable("gone"))
        refused(guarded, times=3)
        assert guarded.health().detail == "version 1; circuit open"

    def test_close_closes_the_store(self, guarded: Guarded, fake: Fake) -> None:
        guarded.close()
        assert fake.closed == 1

    def test_child_is_not_locked_by_a_thread_of_its_parent(
        self, guarded: Guarded, fake: Fake
    ) -> None:
        fake.breaks(StoreUnavailable("gone"))
        refused(guarded)
        with guarded._lock:  # held, as another thread might hold it at the fork
            child = forked(lambda: refused(guarded))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
