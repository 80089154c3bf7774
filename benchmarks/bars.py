"""The bars: ratios of what one run has measured, against what issue and specification demand.

"Over bare" is minus bare Flask, of the floor as well: the units are one GET and two EVALSHA through
redis-py *within a view*. A loop of nothing but trips finds the processor's caches and its clock as
it left them; a process that serves a request has slept through the trip before and finds neither.
Where waking costs much, as on a virtual machine, the bare prototype in a view is dearer than the
bar against the loop allows, whatever is built around it. Both ratios are printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from . import atomic, batch, cases, limits
from .timing import Times
from .wakeup import Percentiles, Wakes

NULL_CHECK_AT_MOST: Final = 0.1
"""A run in which the same case differs from itself by more is no basis for a verdict."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A ratio and what it may be at most."""

    name: str
    ratio: float
    at_most: float

    @property
    def holds(self) -> bool:
        """Whether it is kept."""
        return self.ratio <= self.at_most


def null_check(times: Mapping[str, Times]) -> float:
    """Return how far the same case, measured twice, is apart: the run is worth as much."""
    one, other = times[cases.BARE].median, times[cases.BARE_AGAIN].median
    return abs(one - other) / min(one, other)


def over_bare(times: Mapping[str, Times], name: str) -> float:
    """Return the microseconds that a case costs more than bare Flask."""
    return times[name].median - times[cases.BARE].median


def request_bars(times: Mapping[str, Times]) -> Iterator[Bar]:
    """Yield the bars for requests, as far as their cases were measured."""
    bare = times[cases.BARE].median
    keyless = [over_bare(times, name) for name in times if name.startswith("keyless")]
    if keyless:
        yield Bar("keyless over bare / bare, worst store", max(keyless) / bare, 0.1)
    if "first, memory" in times:
        yield Bar("first on memory / bare", times["first, memory"].median / bare, 1.6)
    if cases.GET not in times:
        return
    for name, unit, at_most in (
        ("first", cases.TWO_SCRIPTS_IN_VIEW, 1.3),
        ("replay", cases.GET_IN_VIEW, 1.4),
    ):
        ratio = over_bare(times, f"{name}, Redis") / over_bare(times, unit)
        yield Bar(f"{name} on Redis / {unit}, over bare", ratio, at_most)


def beside(times: Mapping[str, Times], wakes: Mapping[str, Wakes]) -> Iterator[tuple[str, float]]:
    """Yield ratios that help to judge the bars, and are none.

    Among them what the bare prototypes themselves reach by the units of the loop, and what else
    a duplicate does once it is woken: it looks at the key again, which is a trip.
    """
    if cases.GET in times:
        for name, loop, floor in (
            ("first", cases.TWO_SCRIPTS, cases.TWO_SCRIPTS_IN_VIEW),
            ("replay", cases.GET, cases.GET_IN_VIEW),
        ):
            unit, ours = times[loop].median, over_bare(times, f"{name}, Redis")
            peer = over_bare(times, f"{name}, {cases.PEER}")
            yield f"{name} on Redis over bare / {loop}", ours / unit
            yield f"{floor} over bare / {loop}", over_bare(times, floor) / unit
            yield f"{name} on Redis / flask-idempotent's, over bare", ours / peer
    if "Redis, 1 waiter" in wakes:
        answered, raw = _of_one(wakes, lambda wake: wake.answered_ms)
        yield "answered on Redis p50 / raw pub/sub", answered.p50 / raw.p50


def atomic_bars(times: Mapping[str, Times], statements: Mapping[str, int]) -> Iterator[Bar]:
    """Yield the bars for the record in the view's own transaction, as far as they were measured."""
    for database in _databases(times):
        view, first, replay = atomic.names(database)
        more = statements[first] - statements[view]
        yield Bar(f"atomic first, {database}: statements more than the view", more, 2)
        yield Bar(f"atomic replay, {database}: statements", statements[replay], 1)
        if database == "SQLite full":
            ratio = times[first].median / times[view].median
            yield Bar(f"atomic first / view on {database}", ratio, 1.5)


def beside_atomic(times: Mapping[str, Times]) -> Iterator[tuple[str, float]]:
    """Yield what the record costs on each database, as a ratio to the view alone."""
    for database in _databases(times):
        view, first, replay = (times[name].median for name in atomic.names(database))
        yield f"atomic first / view on {database}", first / view
        yield f"atomic replay / view on {database}", replay / view


def _databases(times: Mapping[str, Times]) -> list[str]:
    return [name.removeprefix("view on ") for name in times if name.startswith("view on ")]


def limits_bars(times: Mapping[str, Times], counted: Mapping[str, int]) -> Iterator[Bar]:
    """Yield the bars for limits, as far as they were measured."""
    for name, ratio, at_most in limits.ratios(times):
        if at_most is not None:
            yield Bar(name, ratio, at_most)
    for name, value, at_most in limits.counted(counted):
        yield Bar(name, value, at_most)


def beside_limits(
    times: Mapping[str, Times], counted: Mapping[str, int]
) -> Iterator[tuple[str, float]]:
    """Yield what limits cost beside the peer's other strategy, and what the peer takes."""
    for name, ratio, at_most in limits.ratios(times):
        if at_most is None:
            yield name, ratio
    judged = {name for name, _, _ in limits.counted(counted)}
    yield from ((name, value) for name, value in counted.items() if name not in judged)


def batch_bars(times: Mapping[str, Times]) -> Iterator[Bar]:
    """Yield the bars for batches, as far as they were measured."""
    for name, ratio, at_most in batch.ratios(times):
        if at_most is not None:
            yield Bar(name, ratio, at_most)


def beside_batches(times: Mapping[str, Times]) -> Iterator[tuple[str, float]]:
    """Yield how many times faster batches are, and what reading them takes beside others."""
    for name, ratio, at_most in batch.ratios(times):
        if at_most is None:
            yield name, ratio


def wake_bars(wakes: Mapping[str, Wakes]) -> Iterator[Bar]:
    """Yield the bars for waking, as far as they were measured."""
    if "Redis, 1 waiter" in wakes:
        one, raw = _of_one(wakes, lambda wake: wake.woken_ms)
        crowd = Percentiles.of(wakes["Redis, 100 waiters"].woken_ms)
        yield Bar("woken on Redis p50 / raw pub/sub", one.p50 / raw.p50, 1.5)
        yield Bar("woken on Redis p99, 100 waiters / 20 ms", crowd.p99 / 20, 1)
    yield Bar("waiters that were not answered", sum(each.failed for each in wakes.values()), 0)


def _of_one(
    wakes: Mapping[str, Wakes], which: Callable[[Wakes], list[float]]
) -> tuple[Percentiles, Percentiles]:
    """Return the percentiles of one waiter, and of the floor."""
    ours, floor = wakes["Redis, 1 waiter"], wakes["raw pub/sub, 1 waiter"]
    return Percentiles.of(which(ours)), Percentiles.of(which(floor))
