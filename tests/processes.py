"""Child processes that never outlive the tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import SystemRandom

HOST = "127.0.0.1"

# Below the range from which the kernel takes the ports of outgoing connections, so that a server
# that is stopped and started again finds its port free; a Redis cluster uses port + 10000 as well.
LOWEST_PORT, HIGHEST_PORT, BUS = 11_000, 21_999, 10_000

# The kernel sends `argv[1]` to the child when the tests die, even by SIGKILL. A shim rather than
# `preexec_fn`, which is not safe where there are threads.
SHIM = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(sys.argv[1]))
os.execvp(sys.argv[2], sys.argv[2:])
"""


def free_port() -> int:
    """Return a port on which nothing listens, and nothing on the cluster bus port beside it."""
    random = SystemRandom()
    while True:
        port = random.randint(LOWEST_PORT, HIGHEST_PORT)
        if _is_free(port) and _is_free(port + BUS):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    dies_by: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start ``argv`` with its output in ``log``; call it from the main thread only.

    Args:
        dies_by: what the process gets when the tests die before they could stop it. The kernel
            ties this to the thread that starts the process.
    """
    command = [sys.executable, "-S", "-E", "-c", SHIM, str(int(dies_by)), *argv]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=cwd,
            pass_fds=pass_fds,
        )


def stop(process: subprocess.Popen[bytes], *, timeout_s: float = 10) -> None:
    """End ``process`` by SIGTERM, and by SIGKILL if that does not end it in time."""
    if process.poll() is None:
        process.terminate()
        os.kill(process.pid, signal.SIGCONT)  # a stopped process cannot obey
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(
    met: Callable[[], bool],
    what: str,
    *,
    timeout_s: float = 20,
    every_s: float = 0.01,
) -> None:
    """Poll until ``met()``.

    Raises:
        TimeoutError: it was not met in time; the message says ``what`` was waited for.
    """
    deadline = time.monotonic() + timeout_s
    while not met():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s in vain until {what}")
        time.sleep(every_s)
