"""Measuring cases side by side: in rounds, in an order that rotates, so that drift hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from .requests import Case

WARM_UP: Final = 20
"""Calls of each case before anything is measured."""
SETTLE: Final = 3
"""Calls at the start of each round that do not count: the case before has left its traces."""

T = TypeVar("T")


@dataclass(slots=True)
class Times:
    """What was measured of one case, in microseconds: one entry a round."""

    medians: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the rounds' medians."""
        return statistics.median(self.medians)

    @property
    def cpu_median(self) -> float:
        """The median of the rounds' processor time of this process, for one call."""
        return statistics.median(self.cpu)


def rotations(names: Sequence[T], rounds: int) -> Iterator[T]:
    """Yield all ``names`` once a round, each round beginning with the next one."""
    for turn in range(rounds if names else 0):
        shift = turn % len(names)
        yield from (*names[shift:], *names[:shift])


def measure(
    cases: Mapping[str, Case],
    *,
    rounds: int,
    calls: int,
    warm_up: int = WARM_UP,
    settle: int = SETTLE,
) -> dict[str, Times]:
    """Run every case ``calls`` times in each of ``rounds`` rounds.

    Args:
        cases: by their names.
        rounds: how many.
        calls: how many of a case in each.
        warm_up: calls of each case before anything is measured.
        settle: calls at the start of each case's turn that do not count.
    """
    times = {name: Times() for name in cases}
    for case in cases.values():
        for _ in range(warm_up):
            case()
    for name in rotations(list(cases), rounds):
        _measure_round(cases[name], times[name], calls, settle)
    return times


def _measure_round(case: Case, times: Times, calls: int, settle: int) -> None:
    clock = time.perf_counter
    taken = []
    for _ in range(settle):
        case()
    cpu = time.process_time()
    for _ in range(calls):
        started = clock()
        case()
        taken.append(clock() - started)
    times.cpu.append((time.process_time() - cpu) / calls * 1e6)
    times.medians.append(statistics.median(taken) * 1e6)
