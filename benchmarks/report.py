"""What a run says: a table to read, and a JSON document to keep."""

from __future__ import annotations

import os
import platform
import sqlite3
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from . import bars as bars_of
from .bars import NULL_CHECK_AT_MOST, Bar
from .cases import BARE
from .timing import Times
from .wakeup import Percentiles, Wakes

LIBRARIES: Final = (
    "flask",
    "werkzeug",
    "msgspec",
    "redis",
    "flask-limiter",
    "limits",
    "gunicorn",
    "h11",
    "h2",
    "httpx",
    "hypercorn",
    "hiredis",
    "sqlalchemy",
    "psycopg",
    "pymysql",
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run: what was measured, and on what."""

    times: Mapping[str, Times]
    wakes: Mapping[str, Wakes]
    environment: Mapping[str, object]
    statements: Mapping[str, int] = field(default_factory=dict)
    quick: bool = False
    counted: Mapping[str, int] = field(default_factory=dict)
    batches: Mapping[str, Times] = field(default_factory=dict)

    @property
    def bars(self) -> list[Bar]:
        """All bars for which there are measurements."""
        return [
            *bars_of.request_bars(self.times),
            *bars_of.atomic_bars(self.times, self.statements),
            *bars_of.limits_bars(self.times, self.counted),
            *bars_of.batch_bars(self.batches),
            *bars_of.wake_bars(self.wakes),
        ]

    @property
    def beside(self) -> list[tuple[str, float]]:
        """What helps to judge the bars."""
        return [
            *bars_of.beside(self.times, self.wakes),
            *bars_of.beside_atomic(self.times),
            *bars_of.beside_limits(self.times, self.counted),
            *bars_of.beside_batches(self.batches),
        ]

    @property
    def null_check(self) -> float:
        """How far the same case, measured twice, is apart."""
        return bars_of.null_check(self.times)

    @property
    def steady(self) -> bool:
        """Whether the run is a basis for a verdict."""
        return self.null_check <= NULL_CHECK_AT_MOST


def environment(server: str | None) -> dict[str, object]:
    """Return what the numbers depend on; nothing that names the machine."""
    return {
        "python": platform.python_version(),
        "optimised_python": "--enable-optimizations" in _configuration(),
        "cpus": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "sqlite": sqlite3.sqlite_version,
        "redis_server": server,
        **{name: _version(name) for name in LIBRARIES},
    }


def _configuration() -> str:
    return str(sysconfig.get_config_var("CONFIG_ARGS") or "")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# --- to read -------------------------------------------------------------------------------------


def table(run: Run) -> str:
    """Return the table."""
    measured = [_times(run.times), _batches(run.batches), _wakes(run.wakes)]
    parts = [*measured, _bars(run.bars), _beside(run), _end(run)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _times(times: Mapping[str, Times]) -> list[str]:
    bare = times[BARE].median
    lines = [f"{'case':38} {'median':>10} {'min - max of rounds':>20} {'CPU':>10} {'/ bare':>7}"]
    for name, each in times.items():
        spread = f"{min(each.medians):.1f} - {max(each.medians):.1f}"
        lines.append(
            f"{name:38} {each.median:7.1f} us {spread:>20} {each.cpu_median:7.1f} us"
            f" {each.median / bare:7.2f}"
        )
    return lines


def _batches(batches: Mapping[str, Times]) -> list[str]:
    if not batches:
        return []
    lines = [f"{'batches, in ms':38} {'median':>10} {'min - max of rounds':>20} {'CPU':>10}"]
    for name, each in batches.items():
        least, median, most = min(each.medians) / 1000, each.median / 1000, max(each.medians) / 1000
        spread = f"{least:.2f} - {most:.2f}"
        lines.append(f"{name:38} {median:10.2f} {spread:>20} {each.cpu_median / 1000:10.2f}")
    return lines


def _wakes(wakes: Mapping[str, Wakes]) -> list[str]:
    if not wakes:
        return []
    lines = [f"{'waking, in ms':38} {'woken p50':>10} {'p99':>7} {'answered p50':>13} {'p99':>7}"]
    for name, wake in wakes.items():
        woken, answered = Percentiles.of(wake.woken_ms), Percentiles.of(wake.answered_ms)
        failed = f"  {wake.failed} failed" if wake.failed else ""
        lines.append(
            f"{name:38} {woken.p50:10.2f} {woken.p99:7.2f} {answered.p50:13.2f}"
            f" {answered.p99:7.2f}{failed}"
        )
    return lines


def _bars(bars: Sequence[Bar]) -> list[str]:
    return [f"{'bar':54} {'ratio':>7} {'at most':>8}"] + [
        f"{bar.name:54} {bar.ratio:7.2f} {bar.at_most:8.2f}  {'ok' if bar.holds else 'BROKEN'}"
        for bar in bars
    ]


def _beside(run: Run) -> list[str]:
    pairs = [f"{name:54} {ratio:7.2f}" for name, ratio in run.beside]
    return ["beside the bars, without one:", *pairs] if pairs else []


def _end(run: Run) -> list[str]:
    end = [f"The same case measured twice is {run.null_check:.1%} apart."]
    if not run.steady:
        end.append("The machine is too busy for a verdict.")
    if run.quick:
        end.append("A quick run: its numbers mean little.")
    return end


# --- to keep -------------------------------------------------------------------------------------


def document(run: Run) -> dict[str, Any]:
    """Return the run for ``results.json``."""
    return {
        "quick": run.quick,
        "environment": dict(run.environment),
        "null_check": round(run.null_check, 4),
        "microseconds": {name: _time(each) for name, each in run.times.items()},
        "batches_microseconds": {name: _time(each) for name, each in run.batches.items()},
        "statements": dict(run.statements),
        "counted": dict(run.counted),
        "waking_ms": {name: _wake(each) for name, each in run.wakes.items()},
        "bars": [
            {
                "name": bar.name,
                "ratio": round(bar.ratio, 3),
                "at_most": bar.at_most,
                "holds": bar.holds,
            }
            for bar in run.bars
        ],
        "beside": {name: round(ratio, 3) for name, ratio in run.beside},
    }


def _time(each: Times) -> dict[str, float]:
    return {
        "median": round(each.median, 1),
        "min": round(min(each.medians), 1),
        "max": round(max(each.medians), 1),
        "cpu": round(each.cpu_median, 1),
    }


def _wake(each: Wakes) -> dict[str, object]:
    return {
        "woken": _percentiles(each.woken_ms),
        "answered": _percentiles(each.answered_ms),
        "failed": each.failed,
    }


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    # JSON has no infinity: where nobody was answered there is no number.
    found = Percentiles.of(values)._asdict().items()
    return {name: round(value, 3) if values else None for name, value in found}
