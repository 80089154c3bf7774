"""The bars: ratios of what one run has measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .timing import Times


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
    one, other = times["bare Flask"].median, times["bare Flask, again"].median
    return abs(one - other) / min(one, other)


def request_bars(times: Mapping[str, Times]) -> list[Bar]:
    """Return the bars for requests, as far as their cases were measured."""
    bare = times["bare Flask"].median

    def over(name: str) -> float:
        return times[name].median - bare

    bars = [
        Bar("keyless over bare / bare", over("keyless, memory") / bare, 0.1),
        Bar("first on memory / bare", times["first, memory"].median / bare, 1.6),
    ]
    if "redis GET" in times:
        get, raw = over("raw: GET in a view"), over("raw: two EVALSHA in a view")
        bars += [
            Bar("first on Redis over bare / two raw EVALSHA", over("first, Redis") / raw, 1.3),
            Bar("replay on Redis over bare / GET", over("replay, Redis") / get, 1.4),
        ]
    return bars


def wake_bars(wakes: Mapping[str, Mapping[str, float]]) -> list[Bar]:
    """Return the bars for waking, as far as they were measured."""
    if "raw pub/sub" not in wakes:
        return []
    raw, one = wakes["raw pub/sub"]["p50_ms"], wakes["Redis, 1 waiter"]["p50_ms"]
    crowd = wakes["Redis, 100 waiters"]["p99_ms"]
    return [
        Bar("wake-up on Redis p50 / raw pub/sub", one / raw, 1.5),
        Bar("wake-up on Redis p99, 100 waiters / 20 ms", crowd / 20, 1),
    ]


def peers(times: Mapping[str, Times]) -> list[tuple[str, float]]:
    """Return how Demijohn compares with Flask-Idempotent's protocol, over bare Flask."""
    bare = times["bare Flask"].median
    return [
        (
            f"{what} on Redis / flask-idempotent's",
            (times[f"{what}, Redis"].median - bare)
            / (times[f"flask-idempotent {what}"].median - bare),
        )
        for what in ("first", "replay")
        if f"{what}, Redis" in times
    ]
