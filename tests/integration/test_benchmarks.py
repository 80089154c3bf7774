"""The benchmark runs, says what it has measured, and judges as the issue demands."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("redis")
pytest.importorskip("flask_limiter")
pytest.importorskip("httpx")
pytest.importorskip("h11")

from benchmarks import bars as bars_of
from benchmarks import batch, cases, echo, limits, wire
from benchmarks.__main__ import RESULTS, verdict
from benchmarks.delay import delayed
from benchmarks.report import Run, document, table
from benchmarks.timing import Times, rotations
from benchmarks.wakeup import Ends, Percentiles, Wakes
from demijohn.core import batch as core

ROOT = Path(__file__).parents[2]


def benchmark(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_smoke_run_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    printed = benchmark("--quick", "--only", "memory", "--output", str(output))
    results = json.loads(output.read_text())
    for name in ("bare Flask", "keyless, memory", "first, memory", "replay, memory"):
        assert name in printed
        assert results["microseconds"][name]["median"] > 0
    assert results["waking_ms"]["memory, 100 waiters"]["answered"]["p99"] > 0
    assert {bar["name"] for bar in results["bars"]} == {
        "keyless over bare / bare, worst store",
        "first on memory / bare",
        "waiters that were not answered",
        *[
            f"{count} limits, memory / Flask-Limiter fixed-window, {count}, memory, added"
            for count in (1, 2, 5)
        ],
    }


def test_quick_run_leaves_the_kept_results_alone() -> None:
    before = RESULTS.read_bytes() if RESULTS.exists() else None
    benchmark("--quick", "--only", "memory")
    assert (RESULTS.read_bytes() if RESULTS.exists() else None) == before


# --- bars ---------------------------------------------------------------------------------------

# In microseconds, with every bar just held.
HELD = {
    cases.BARE: 100.0,
    cases.BARE_AGAIN: 100.0,
    "keyless, memory": 109.0,
    "first, memory": 159.0,
    "keyless, Redis": 109.0,
    cases.GET: 50.0,
    cases.TWO_SCRIPTS: 100.0,
    cases.GET_IN_VIEW: 160.0,
    cases.TWO_SCRIPTS_IN_VIEW: 220.0,
    "first, Redis": 255.0,
    "replay, Redis": 183.0,
    f"first, {cases.PEER}": 320.0,
    f"replay, {cases.PEER}": 350.0,
}


def run_of(wakes: dict[str, Wakes] | None = None, **changed: float) -> Run:
    medians = HELD | {name.replace("__", ", "): value for name, value in changed.items()}
    times = {name: Times([median], [median]) for name, median in medians.items()}
    return Run(times, WAKES if wakes is None else wakes, {})


def wakes_of(answered_ms: float, failed: int = 0) -> Wakes:
    return Wakes([answered_ms], [answered_ms], failed)


WAKES = {
    "raw pub/sub, 1 waiter": wakes_of(1.0),
    "Redis, 1 waiter": wakes_of(1.4),
    "Redis, 100 waiters": wakes_of(19.0),
}


def broken(run: Run) -> list[str]:
    return [bar.name for bar in run.bars if not bar.holds]


def test_run_that_keeps_every_bar_passes_the_check() -> None:
    run = run_of()
    assert len(run.bars) == 7
    assert broken(run) == []
    assert verdict(run) == 0


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"keyless__Redis": 111.0}, "keyless over bare / bare, worst store"),
        ({"first__memory": 161.0}, "first on memory / bare"),
        ({"first__Redis": 257.0}, "first on Redis / raw: two EVALSHA in a view, over bare"),
        ({"replay__Redis": 185.0}, "replay on Redis / raw: one GET in a view, over bare"),
    ],
)
def test_case_that_costs_too_much_breaks_its_bar(changed: dict[str, float], name: str) -> None:
    run = run_of(**changed)
    assert broken(run) == [name]
    assert verdict(run) == 1
    assert "BROKEN" in table(run)


def test_what_helps_to_judge_is_printed_beside_the_bars() -> None:
    printed = table(run_of())
    assert "first on Redis over bare / raw: two EVALSHA" in printed
    assert "first on Redis / flask-idempotent's, over bare" in printed
    assert "answered on Redis p50 / raw pub/sub" in printed


@pytest.mark.parametrize(
    ("name", "wake"),
    [
        ("Redis, 1 waiter", wakes_of(1.6)),
        ("Redis, 100 waiters", wakes_of(21.0)),
        ("Redis, 100 waiters", wakes_of(1.0, failed=1)),
    ],
)
def test_waiter_that_is_late_or_not_answered_breaks_a_bar(name: str, wake: Wakes) -> None:
    assert len(broken(run_of(WAKES | {name: wake}))) == 1


def test_unsteady_run_is_no_basis_for_a_verdict() -> None:
    run = run_of(**{cases.BARE_AGAIN: 111.0, "first__memory": 500.0})
    assert broken(run)
    assert verdict(run) == 0
    assert "too busy" in table(run)


def test_document_can_be_written_when_nobody_was_answered() -> None:
    nobody = Wakes(failed=3)
    written = json.dumps(document(run_of(WAKES | {"memory, 1 waiter": nobody})), allow_nan=False)
    assert json.loads(written)["waking_ms"]["memory, 1 waiter"]["answered"]["p50"] is None


def test_who_is_not_answered_counts_as_failed() -> None:
    wakes = Wakes()
    wakes.add(1_000_000, [Ends(2_000_000, 3_000_000)], 2)
    assert wakes == Wakes([1.0], [2.0], 1)


def test_percentiles_are_those_of_the_nearest_rank() -> None:
    assert Percentiles.of([float(n) for n in range(1, 101)]) == (50.5, 99.0)


def test_every_case_comes_first_in_turn() -> None:
    assert "".join(rotations("abc", 4)) == "abcbcacababc"


# --- limits -------------------------------------------------------------------------------------


def test_limits_are_judged_by_what_they_add() -> None:
    """By a bare request of 100 us, ours adds 20 and the peer 100; moving windows have no bar."""
    times = {name: Times([value], [value]) for name, value in HELD.items()}
    for count in limits.COUNTS:
        times[limits.ours("memory", count)] = Times([120.0], [1.0])
        for strategy in limits.STRATEGIES:
            times[limits.peers(strategy, "memory", count)] = Times([200.0], [1.0])
    bars = list(bars_of.limits_bars(times, {}))
    assert [(round(bar.ratio, 6), bar.at_most, bar.holds) for bar in bars] == [(0.2, 0.2, True)] * 3
    assert len(list(bars_of.beside_limits(times, {}))) == 3


def test_what_is_counted_is_judged_exactly() -> None:
    counted = {
        "trips of 2 limits, Redis": 1,
        f"trips of {limits.STACKED}": 3,
        "bytes of a row, window, limit 10": 401,
        "bytes of Flask-Limiter's moving window, limit 10": 9000,
        "trips of Flask-Limiter fixed-window, 2, Redis": 4,
    }
    bars = {bar.name: bar.holds for bar in bars_of.limits_bars({}, counted)}
    assert list(bars.values()) == [True, False, False]
    assert [value for _, value in bars_of.beside_limits({}, counted)] == [9000, 4]


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smoke_run_of_batches_alone(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    printed = benchmark("--quick", "--only", "batches", "--output", str(output))
    results = json.loads(output.read_text())
    assert "keyless" not in printed
    measured = results["batches_microseconds"]
    assert measured["100 one by one, 20 ms away"]["median"] > 100 * 20_000
    assert 20_000 < measured["batch of 100, multipart, 20 ms away"]["median"] < 1_000_000
    assert ("100 by HTTP/2, 0 ms away" in measured) == wire.has_h2()
    assert {bar["name"] for bar in results["bars"]} == {
        *{bar.name for bar in bars_of.batch_bars(batch_times())},
        "waiters that were not answered",
    }


def batch_times(**changed: float) -> dict[str, Times]:
    """Every case with its bars just held; in microseconds."""
    medians = {batch.direct(100): 10_000.0}
    for end in batch.LINE_ENDS:
        medians[batch.ours_reads(f"multipart {end}")] = 1_000.0
        medians[batch.email_reads(end)] = medians[batch.h11_reads(end)] = 2_000.0
    medians[batch.ours_reads("JSON")] = 500.0
    for rtt_ms, singly in ((0, 60_000.0), (20, 2_000_000.0)):
        medians[wire.over(wire.SEQUENCE, rtt_ms)] = singly
    for kind in echo.FORMATS:
        medians[batch.in_process(100, kind)] = 14_900.0
        medians[batch.in_process(200, kind)] = 34_000.0
        medians[batch.in_process(1000, kind)] = 178_000.0
        medians[wire.over(echo.batch_of(100, kind), 0)] = 14_900.0
        medians[wire.over(echo.batch_of(100, kind), 20)] = 39_900.0
    assert changed.keys() <= medians.keys()
    return {name: Times([value], [value]) for name, value in (medians | changed).items()}


def test_batches_that_keep_every_bar() -> None:
    bars = list(bars_of.batch_bars(batch_times()))
    assert len(bars) == 10
    assert [bar.name for bar in bars if not bar.holds] == []
    beside = dict(bars_of.beside_batches(batch_times()))
    assert beside["read 100 parts, multipart LF / email and h11"] == 0.25
    assert round(beside["100 one by one, 0 ms away / batch of 100, JSON"], 2) == 4.03
    assert list(bars_of.batch_bars({})) == list(bars_of.beside_batches({})) == []


@pytest.mark.parametrize(
    ("name", "median"),
    [
        ("batch of 100, JSON, 0 ms away", 15_100.0),
        ("batch of 100, multipart, 20 ms away", 40_100.0),
        ("batch of 200, multipart, in process", 34_500.0),
        ("batch of 1000, JSON, in process", 179_000.0),
    ],
)
def test_batch_that_takes_too_long_breaks_its_bar(name: str, median: float) -> None:
    bars = bars_of.batch_bars(batch_times(**{name: median}))
    assert len([bar for bar in bars if not bar.holds]) == 1


def test_all_read_the_same_parts() -> None:
    for end in batch.LINE_ENDS.values():
        body = batch.google_like(100, end)
        assert 420 <= len(body) / 100 <= 445
        parts = core.read_multipart_parts(body, batch.BOUNDARY, core.Bounds())
        assert [part.target for part in parts] == [f"/items/{n:03}?alt=json" for n in range(100)]
        assert [json.loads(part.body)["price"] for part in parts[:2]] == [10099, 10199]
    for case in batch.reading_cases().values():
        case()


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server of one connection after the other that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        while data := connection.recv(1 << 16):
                            connection.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = connection.recv(1 << 16)
        assert chunk, "the connection ended early"
        data += chunk
    return data


def test_delay_passes_all_bytes_on_in_their_order_and_takes_a_round_trip_once(
    echo_port: int,
) -> None:
    sent = random.Random(7).randbytes(3 << 20)
    with delayed([(echo_port, 100.0)]) as (port,):
        connection = socket.create_connection(("127.0.0.1", port))
        with connection:
            connection.sendall(b"the connection is open now")
            received(connection, 26)
            started = time.perf_counter()
            sender = threading.Thread(target=connection.sendall, args=(sent,))
            sender.start()
            assert received(connection, len(sent)) == sent
            took_s = time.perf_counter() - started
            sender.join()
    assert 0.1 <= took_s < 1.0  # a delay for each 64 kB would be 4.8 s


def test_delay_holds_each_message_for_a_round_trip_and_not_much_more(echo_port: int) -> None:
    took_s = {}
    with delayed([(echo_port, 0.0), (echo_port, 20.0)]) as ports:
        for rtt_ms, port in zip((0, 20), ports, strict=True):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"open")
                received(connection, 4)
                samples = []
                for number in range(11):
                    started = time.perf_counter()
                    connection.sendall(b"%4d" % number)
                    assert received(connection, 4) == b"%4d" % number
                    samples.append(time.perf_counter() - started)
            took_s[rtt_ms] = min(samples)
    assert took_s[0] < 0.01
    assert 0.02 <= took_s[20] < 0.03


def test_delay_hands_on_the_end_of_a_connection_behind_what_was_sent() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        delayed([(listener.getsockname()[1], 20.0)]) as (port,),
        socket.create_connection(("127.0.0.1", port)) as near,
    ):
        far, _ = listener.accept()
        with far:
            far.sendall(b"the last words")
        assert received(near, 14) == b"the last words"
        assert near.recv(1) == b""


def test_delay_breaks_a_connection_to_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    with delayed([(free, 1.0)]) as (port,), socket.create_connection(("127.0.0.1", port)) as near:
        near.settimeout(10)
        with suppress(ConnectionResetError):
            assert near.recv(1) == b""
