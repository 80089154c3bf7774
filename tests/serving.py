"""A Flask app under gunicorn: real processes, for the tests to kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol, Self, TypedDict, Unpack

from tests.processes import HOST, spawn, stop, wait_until

ROOT: Final = Path(__file__).parent.parent

# A worker has a file of its number from when it is about to accept until its death was noticed.
SETTINGS = """
import pathlib
READY = pathlib.Path({ready!r})

def post_worker_init(worker):
    (READY / str(worker.pid)).touch()

def child_exit(server, worker):
    (READY / str(worker.pid)).unlink(missing_ok=True)
"""


class Options(TypedDict, total=False):
    """How an app is served."""

    workers: int
    threads: int
    worker_class: Literal["sync", "gthread", "gevent"]
    env: Mapping[str, str]
    timeout_s: int
    arguments: Sequence[str]


class Serve(Protocol):
    """The fixture ``serve``: start an app that is stopped when the test ends."""

    def __call__(self, app: str, **options: Unpack[Options]) -> Served: ...


class Served:
    """An app under gunicorn on a free port of the loopback.

    Args:
        app: ``"package.module:app"`` or ``"package.module:create_app()"``, seen from the root of
            the repository.
        folder: where its log and settings go; made if need be.
        options: ``workers`` (2), ``threads`` (1), ``worker_class`` (``"sync"``), ``env`` (added
            to that of the tests), ``timeout_s`` (0: gunicorn never kills a silent worker, so that
            a paused one is resumed by the test only), ``arguments`` (more of gunicorn's own).
    """

    def __init__(self, app: str, folder: Path, **options: Unpack[Options]) -> None:
        self._app = app
        self._folder = folder
        self._options = options
        self._ready = folder / "ready"
        self._master: subprocess.Popen[bytes] | None = None
        self.workers = options.get("workers", 2)
        self.port = 0

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until every worker serves; the port stays the same if started again."""
        self._ready.mkdir(parents=True, exist_ok=True)
        settings = self._folder / "gunicorn.conf.py"
        settings.write_text(SETTINGS.format(ready=str(self._ready)))
        # Handed over open, so that nobody else can get the port in between.
        with socket.create_server((HOST, self.port), backlog=1024) as listener:
            self.port = listener.getsockname()[1]
            self._master = spawn(
                self._command(settings, listener.fileno()),
                log=self._folder / "log",
                env=self._environment(),
                cwd=ROOT,
                pass_fds=[listener.fileno()],
                dies_by=signal.SIGTERM,
            )
        self.wait_for_workers()

    def stop(self) -> None:
        """End all workers, also paused ones; what runs in a view has two seconds to end."""
        for pid in self.pids():
            os.kill(pid, signal.SIGCONT)
        if self._master is not None:
            stop(self._master)
        for pid in self.pids():  # of a master that had to be killed
            os.kill(pid, signal.SIGKILL)
        for left in self._ready.glob("*"):
            left.unlink()

    def url(self, path: str = "/") -> str:
        """Return the address of ``path``."""
        return f"http://{HOST}:{self.port}{path}"

    def pids(self) -> list[int]:
        """Return the process ids of the workers that serve."""
        known = sorted(int(entry.name) for entry in self._ready.glob("*"))
        return [pid for pid in known if _lives(pid)]

    def wait_for_workers(self, *, timeout_s: float = 30) -> None:
        """Wait until every worker serves, for instance behind a :meth:`kill`."""
        master = self._master
        wait_until(
            lambda: (
                (master is not None and master.poll() is not None)
                or len(self.pids()) >= self.workers
            ),
            f"{self.workers} workers serve:\n{self.log()}",
            timeout_s=timeout_s,
        )
        if master is not None and master.poll() is not None:
            raise RuntimeError(f"gunicorn ended at once:\n{self.log()}")

    def kill(self, pid: int) -> None:
        """Kill a worker by SIGKILL; gunicorn starts another in its place."""
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not (self._ready / str(pid)).exists(), f"worker {pid} is gone")

    def pause(self, pid: int) -> None:
        """Stop a worker in its tracks by SIGSTOP."""
        os.kill(pid, signal.SIGSTOP)

    def resume(self, pid: int) -> None:
        """Let a paused worker go on."""
        os.kill(pid, signal.SIGCONT)

    def log(self) -> str:
        """Return all that gunicorn, its workers and the app have written."""
        log = self._folder / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def _command(self, settings: Path, listener: int) -> list[str]:
        options = self._options
        return [
            *(sys.executable, "-m", "gunicorn", "--config", str(settings)),
            *("--bind", f"fd://{listener}"),
            *("--workers", str(self.workers), "--threads", str(options.get("threads", 1))),
            *("--worker-class", options.get("worker_class", "sync")),
            *("--timeout", str(options.get("timeout_s", 0)), "--graceful-timeout", "2"),
            *("--worker-tmp-dir", str(self._folder), "--no-control-socket"),
            *options.get("arguments", ()),
            self._app,
        ]

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PYTHONPATH": path, **self._options.get("env", {})}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
