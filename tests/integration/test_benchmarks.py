"""The benchmark runs, and says what it has measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("redis")

from benchmarks.__main__ import main


def test_smoke_run_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.json"
    assert main(["--quick", "--only-memory", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    results = json.loads(output.read_text())
    for name in ("bare Flask", "first, memory", "replay, SQLite full"):
        assert name in printed
        assert results["microseconds"][name]["median"] > 0
    assert results["waking"]["memory, 100 waiters"]["p99_ms"] > 0
    assert {bar["name"] for bar in results["bars"]} == {
        "keyless over bare / bare",
        "first on memory / bare",
    }
