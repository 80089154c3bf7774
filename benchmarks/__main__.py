"""``python -m benchmarks``: measure, print a table, write ``benchmarks/results.json``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from tests.servers import RedisServer

from . import batch, timing, wakeup, wire
from .atomic import atomic_cases
from .cases import STORES, request_cases
from .limits import exact, limits_cases
from .report import Run, document, environment, table
from .timing import Times

RESULTS: Final = Path(__file__).parent / "results.json"


class Effort(NamedTuple):
    """How much is measured."""

    rounds: int
    calls: int
    samples: int
    crowd: int
    crowds: int
    batches: int
    wire: Mapping[int, int]
    """Rounds by the milliseconds of a round trip; the far ones take seconds each."""


WHOLE: Final = Effort(
    rounds=50,
    calls=100,
    samples=100,
    crowd=100,
    crowds=15,
    batches=11,
    wire={0: 9, 20: 4, 50: 2},
)
QUICK: Final = Effort(
    rounds=3, calls=20, samples=3, crowd=100, crowds=1, batches=1, wire={0: 1, 20: 1}
)
BATCHES: Final = "batches"
PARTS: Final = (*STORES, BATCHES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if ``--check`` was given and a bar is broken."""
    options = _options(arguments)
    run = _run(set(options.only or PARTS), quick=options.quick)
    print(table(run))
    # A quick run is no result to keep, unless somebody says where.
    output = options.output or (None if options.quick else RESULTS)
    if output is not None:
        output.write_text(json.dumps(document(run), indent=2) + "\n")
    return verdict(run) if options.check else 0


def verdict(run: Run) -> int:
    """Return 1 if a bar is broken in a run that is a basis for saying so."""
    return int(run.steady and not all(bar.holds for bar in run.bars))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run; keeps no results")
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS,
        help="this store alone, or batches, which need none; may be repeated",
    )
    parser.add_argument("--check", action="store_true", help="fail if a bar is broken")
    parser.add_argument("--output", type=Path, help=f"where the JSON goes, else {RESULTS.name}")
    return parser.parse_args(arguments)


def _run(parts: set[str], *, quick: bool) -> Run:
    effort = QUICK if quick else WHOLE
    stores = parts & set(STORES)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demijohn-bench-")))
        server = stack.enter_context(RedisServer()) if "redis" in stores else None
        url = server.url() if server else None
        on = environment(_name(server) if server else None)
        atomic = stack.enter_context(atomic_cases(folder, stores))
        limits = limits_cases(url, stores)
        cases = {**request_cases(folder, url, stores), **limits, **atomic.cases}
        times = timing.measure(cases, rounds=effort.rounds, calls=effort.calls)
        scenes = stack.enter_context(wakeup.scenes_of(_waited_on(folder, url, stores), url))
        wakes = wakeup.measure(
            scenes, samples=effort.samples, crowd=effort.crowd, crowds=effort.crowds
        )
        counted = exact(server) if server else {}
        batches: dict[str, Times] = {}
        if BATCHES in parts:
            batches = batch.measure(effort.batches) | wire.measure(folder, effort.wire)
    return Run(times, wakes, on, atomic.statements, quick, counted, batches)


def _name(server: RedisServer) -> str:
    told = server.client().info("server")
    return f"{server.binary.name} {told.get('valkey_version', told['redis_version'])}"


def _waited_on(folder: Path, url: str | None, stores: set[str]) -> dict[str, str]:
    locations = {}
    if "memory" in stores:
        locations["memory"] = "memory://"
    if "sqlite" in stores:
        locations["SQLite"] = f"sqlite:///{folder}/wake.db"
    if url is not None:
        locations["Redis"] = f"{url}?timeout=5&connect_timeout=5&max_connections=200"
    return locations


if __name__ == "__main__":
    sys.exit(main())
