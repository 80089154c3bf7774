"""Measuring cases side by side: in rounds, in an order that rotates, so that drift hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from .requests import Case

WARM_UP: Final = 20


@dataclass(slots=True)
class Times:
    """What was measured of one case, in microseconds."""

    medians: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the rounds' medians."""
        return statistics.median(self.medians)

    @property
    def cpu_mean(self) -> float:
        """Processor time of this process for one call."""
        return statistics.median(self.cpu)


def measure(cases: Mapping[str, Case], *, rounds: int, calls: int) -> dict[str, Times]:
    """Run every case ``calls`` times in each of ``rounds`` rounds."""
    times = {name: Times() for name in cases}
    names = list(cases)
    for case in cases.values():
        for number in range(WARM_UP):
            case(number)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            _measure_round(cases[name], times[name], calls)
    return times


def _measure_round(case: Case, times: Times, calls: int) -> None:
    clock = time.perf_counter
    taken = []
    cpu = time.process_time()
    for number in range(calls):
        started = clock()
        case(number)
        taken.append(clock() - started)
    times.cpu.append((time.process_time() - cpu) / calls * 1e6)
    times.medians.append(statistics.median(taken) * 1e6)
