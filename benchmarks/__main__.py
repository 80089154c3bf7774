"""``python -m benchmarks``: measure, print a table, write ``benchmarks/results.json``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import redis

from tests.servers import RedisServer

from . import floor, requests, wakeup
from .bars import Bar, null_check, peers, request_bars, wake_bars
from .timing import Times, measure

RESULTS: Final = Path(__file__).parent / "results.json"
LIBRARIES: Final = ("flask", "werkzeug", "msgspec", "redis", "hiredis")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if ``--check`` was given and a bar is broken."""
    options = _options(arguments)
    rounds, calls = (3, 50) if options.quick else (12, 300)
    samples, crowds = (5, 1) if options.quick else (60, 4)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demijohn-bench-")))
        url = None if options.only_memory else stack.enter_context(RedisServer()).url()
        cases = _cases(folder, url)
        times = measure(cases, rounds=rounds, calls=calls)
        wakes = _wakes(folder, url, samples, crowds)
    bars = [*request_bars(times), *wake_bars(wakes)]
    apart = null_check(times)
    _print(times, wakes, bars, apart)
    results = _results(times, wakes, bars, apart)
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    broken = [bar for bar in bars if not bar.holds]
    if options.check and apart > 0.1:
        print("the machine is too busy for a verdict")
        return 0
    return 1 if options.check and broken else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run: its numbers mean little")
    parser.add_argument("--only-memory", action="store_true", help="without a Redis server")
    parser.add_argument("--check", action="store_true", help="fail if a bar is broken")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    return parser.parse_args(arguments)


def _cases(folder: Path, url: str | None) -> dict[str, requests.Case]:
    bare, memory = requests.bare_app(), requests.guarded_app("memory://")
    cases = {
        "bare Flask": requests.without_key(bare),
        "bare Flask, again": requests.without_key(bare),
        "keyless, memory": requests.without_key(memory),
        "first, memory": requests.first(memory),
        "replay, memory": requests.replay(memory),
    }
    for mode in ("normal", "full"):
        app = requests.guarded_app(f"sqlite:///{folder}/{mode}.db?synchronous={mode}")
        cases[f"raw: two SQLite commits, {mode}"] = floor.rows(folder / f"raw-{mode}.db", mode)
        cases[f"first, SQLite {mode}"] = requests.first(app)
        cases[f"replay, SQLite {mode}"] = requests.replay(app)
    if url is not None:
        cases |= _redis_cases(url)
    return cases


def _redis_cases(url: str) -> dict[str, requests.Case]:
    client = redis.Redis.from_url(url)
    app, peer = requests.guarded_app(f"{url}?timeout=5"), requests.peer_app(client)
    return {
        "redis GET": floor.get(client),
        "raw: two EVALSHA": floor.two_scripts(client),
        "raw: GET in a view": requests.without_key(requests.raw_app(floor.get(client))),
        "raw: two EVALSHA in a view": requests.without_key(
            requests.raw_app(floor.two_scripts(client))
        ),
        "keyless, Redis": requests.without_key(app),
        "first, Redis": requests.first(app),
        "replay, Redis": requests.replay(app),
        "flask-idempotent first": requests.first(peer),
        "flask-idempotent replay": requests.replay(peer),
    }


def _wakes(folder: Path, url: str | None, samples: int, crowds: int) -> dict[str, dict[str, float]]:
    stores = {
        "memory": "memory://",
        "SQLite": f"sqlite:///{folder}/wake.db?synchronous=normal",
    }
    wakes: dict[str, dict[str, float]] = {}
    if url is not None:
        wakes["raw pub/sub"] = wakeup.publish(url, samples)
        stores["Redis"] = f"{url}?timeout=5"
    for name, store in stores.items():
        wakes[f"{name}, 1 waiter"] = wakeup.wake(store, samples, 1)
        wakes[f"{name}, 100 waiters"] = wakeup.wake(store, crowds, 100)
    return wakes


def _print(
    times: Mapping[str, Times],
    wakes: Mapping[str, Mapping[str, float]],
    bars: Sequence[Bar],
    apart: float,
) -> None:
    bare = times["bare Flask"].median
    print(f"{'case':34} {'median':>9} {'min - max of rounds':>21} {'CPU':>8} {'/ bare':>7}")
    for name, each in times.items():
        spread = f"{min(each.medians):.1f} - {max(each.medians):.1f}"
        share = f"{each.median / bare:.2f}"
        print(f"{name:34} {each.median:7.1f} us {spread:>21} {each.cpu_mean:6.1f} us {share:>6}")
    print(f"\n{'waking':34} {'p50':>9} {'p99':>12}")
    for name, wake in wakes.items():
        print(f"{name:34} {wake['p50_ms']:6.2f} ms {wake['p99_ms']:9.2f} ms")
    print(f"\n{'bar':48} {'ratio':>7} {'at most':>8}")
    for bar in bars:
        word = "ok" if bar.holds else "BROKEN"
        print(f"{bar.name:48} {bar.ratio:7.2f} {bar.at_most:8.2f}  {word}")
    for name, ratio in peers(times):
        print(f"{name:48} {ratio:7.2f}")
    print(f"\nThe same case measured twice is {apart:.1%} apart.")


def _results(
    times: Mapping[str, Times],
    wakes: Mapping[str, Mapping[str, float]],
    bars: Sequence[Bar],
    apart: float,
) -> dict[str, Any]:
    return {
        "environment": {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "load": round(os.getloadavg()[0], 2),
            "optimised_python": "--enable-optimizations" in _configuration(),
            **{name: _version(name) for name in LIBRARIES},
        },
        "null_check": round(apart, 4),
        "microseconds": {
            name: {
                "median": round(each.median, 1),
                "min": round(min(each.medians), 1),
                "max": round(max(each.medians), 1),
                "cpu": round(each.cpu_mean, 1),
            }
            for name, each in times.items()
        },
        "waking": {
            name: {key: round(value, 3) for key, value in wake.items()}
            for name, wake in wakes.items()
        },
        "bars": [
            {"name": bar.name, "ratio": round(bar.ratio, 3), "at_most": bar.at_most} for bar in bars
        ],
    }


def _configuration() -> str:
    return str(sysconfig.get_config_var("CONFIG_ARGS") or "")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
