"""The demo shows what it promises, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TextIO

import pytest

pytest.importorskip("gunicorn")
pytest.importorskip("httpx")

from tests.processes import HOST, wait_until
from tests.serving import ROOT

DEMO = ROOT / "examples" / "payments" / "demo.py"
PATIENCE_S = 90


class Demo:
    """The demo in a process of its own, with its own folder for temporary files."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.folder.mkdir()
        short = ("--plain", "--payments", "14", "--duplicates", "4", "--kills", "4", "--seed", "7")
        self.process = subprocess.Popen(
            [sys.executable, str(DEMO), *short, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
        )
        self.output = ""
        self.errors = ""

    def run(self) -> int:
        """Wait for its end; return its exit status."""
        output, self.errors = self.process.communicate(timeout=PATIENCE_S)
        self.output += output
        return self.process.returncode

    def read_until(self, word: str) -> None:
        """Read what it prints up to a line with ``word``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if word in line:
                return
        raise AssertionError(f"never said {word!r}:\n{self.output}\n{self.process.communicate()}")

    def number(self, row: str) -> int:
        """Return the number in a row of the table."""
        found = re.search(rf"^ *{re.escape(row)} +(\d+)", self.output, re.MULTILINE)
        assert found, self.output
        return int(found[1])

    def assert_nothing_is_left(self) -> None:
        found = re.search(r"port (\d+), process group (\d+)", self.output)
        assert found, self.output
        wait_until(lambda: is_gone(int(found[2])), "its processes are gone")
        wait_until(lambda: is_refused(int(found[1])), "its port is free")
        wait_until(lambda: not list(self.folder.iterdir()), "its folder is gone")


def is_refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == errno.ECONNREFUSED


def is_gone(group: int) -> bool:
    """Tell whether all that is left of ``group`` are zombies, which only PID 1 could remove."""
    if not Path("/proc/self/stat").exists():
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ends meanwhile
            state, _, its_group, *_ = status.read_text().rpartition(")")[2].split()
            if int(its_group) == group and state != "Z":
                return False
    return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """``start("--guard", "off")``: the short demo; stopped with the test."""
    with ExitStack() as stack:

        def start(*arguments: str) -> Demo:
            demo = Demo(tmp_path / "temporary", *arguments)
            stack.enter_context(demo.process)
            stack.callback(demo.process.terminate)  # it ends its own children
            return demo

        yield start


def assert_exactly_once(demo: Demo) -> None:
    assert demo.run() == 0, demo.output + demo.errors
    assert demo.errors == ""
    assert demo.output.endswith("Every payment was made exactly once.\n")
    assert demo.number("made exactly once") == demo.number("payments in the ledger") == 14
    assert demo.number("never answered") == demo.number("answers that contradict") == 0
    assert "\x1b" not in demo.output
    # Every request has met with one of these, and is counted there.
    ends = ("answered first-hand", "replayed", "told 409, tried again", "told 503 or other")
    broken = ("connection cut by the client", "connection broken by a kill")
    assert demo.number("requests sent") == sum(map(demo.number, ends + broken))
    assert demo.number("after a 409") <= demo.number("replayed")
    # All the misfortunes have happened, or the run proves nothing.
    assert demo.number("workers killed (kill -9)") >= 1
    assert demo.number("connection cut by the client") >= 1
    assert demo.number("replayed") >= 14
    assert demo.number("duplicates that waited") >= 1
    assert max(map(len, demo.output.splitlines())) <= 80
    demo.assert_nothing_is_left()


@pytest.mark.slow
def test_guarded_by_the_default_store_every_payment_is_made_once(
    start: Callable[..., Demo],
) -> None:
    demo = start("--store", "", "--guard", "")  # as make gives its defaults
    assert_exactly_once(demo)
    assert demo.number("told 503 or other") == 0  # a file is there, whoever is killed beside it


@pytest.mark.slow
def test_guarded_by_redis_every_payment_is_made_once(
    start: Callable[..., Demo], empty_redis_url: str
) -> None:
    assert_exactly_once(start("--store", empty_redis_url, "--guard", "on"))


@pytest.mark.slow
def test_unguarded_it_shows_double_charges(start: Callable[..., Demo]) -> None:
    demo = start("--guard", "off")
    assert demo.run() == 0, demo.output + demo.errors
    extra = demo.number("payments in the ledger") - 14
    assert extra > 0
    assert demo.output.endswith(f"Without Demijohn: {extra} double charges.\n")
    assert demo.number("made more than once") > 0
    demo.assert_nothing_is_left()


@pytest.mark.slow
def test_on_a_terminal_the_progress_is_drawn_and_removed(tmp_path: Path) -> None:
    ours, its = os.openpty()
    with subprocess.Popen(
        [sys.executable, str(DEMO), "--payments", "3", "--kills", "0"],
        stdin=subprocess.DEVNULL,
        stdout=its,
        env={**os.environ, "TMPDIR": str(tmp_path), "TERM": "xterm", "PYTHONUTF8": "1"},
    ):
        os.close(its)
        with os.fdopen(ours, encoding="utf-8", newline="") as terminal:
            shown = "".join(read_to_the_end(terminal))
    assert "/3 payments" in shown
    # What is last drawn is removed: the table stands where it stood.
    assert "\r\x1b[J" + "-" * 78 in shown
    assert shown.endswith("Every payment was made exactly once.\r\n")


def read_to_the_end(terminal: TextIO) -> Iterator[str]:
    with suppress(OSError):  # EIO: nobody has it open any more
        while line := terminal.readline():
            yield line


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_running(start: Callable[..., Demo], number: int) -> None:
    demo = start("--payments", "1000")
    demo.read_until("settled")
    demo.process.send_signal(number)
    asked_at = time.monotonic()
    assert demo.run() == 130
    assert time.monotonic() - asked_at < 3
    assert "everything was stopped" in demo.errors
    assert "Traceback" not in demo.errors
    demo.assert_nothing_is_left()


@pytest.mark.slow
def test_killed_it_leaves_nothing_running(start: Callable[..., Demo]) -> None:
    demo = start("--payments", "1000")
    demo.read_until("settled")
    demo.process.kill()
    assert demo.run() == -signal.SIGKILL
    demo.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--store", "redis://127.0.0.1:1"], "the store does not answer"),
        (["--store", "nosuch://"], "The demo cannot run"),
        (["--store", "memory://"], "need a store that they share"),
        (["--payments", "0"], "--payments must be at least 1"),
        (["--kills", "many"], "--kills must be a number"),
    ],
)
def test_what_cannot_be_run_is_said_at_once(
    start: Callable[..., Demo], arguments: list[str], complaint: str
) -> None:
    demo = start(*arguments)
    assert demo.run() == 2
    assert complaint in demo.errors
    assert "Traceback" not in demo.errors
