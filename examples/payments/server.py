"""The app under gunicorn, and the killer of its workers."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from plan import Plan, Tally

HERE: Final = Path(__file__).parent
HOST: Final = "127.0.0.1"
WORKERS: Final = 4
THREADS: Final = 16
LEASE_S: Final = 2
FOUND: Final = "had been made by a run that died"
"""What the app logs when a run that has taken over finds the payment made."""


class CannotRun(Exception):
    """The scenario cannot be played; the message says why."""


class Server:
    """The app under gunicorn, in a process group and a temporary folder of its own.

    Args:
        plan: what to serve.
        check: raises if the wait for the workers is to be given up.
    """

    def __init__(self, plan: Plan, check: Callable[[], None]) -> None:
        self._plan = plan
        self._check = check
        self._folder = Path(tempfile.mkdtemp(prefix="demijohn-demo-"))
        self._workers = self._folder / "workers"
        self._process: subprocess.Popen[bytes] | None = None
        self.ledger = self._folder / "ledger.db"
        self.port = 0

    def __enter__(self) -> Self:
        try:
            self._start()
            self._wait_until_it_serves()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def group(self) -> int:
        """The number of the process group."""
        return self._process.pid if self._process else 0

    def pids(self) -> list[int]:
        """Return the numbers of the workers that serve."""
        return sorted(int(entry.name) for entry in self._workers.iterdir())

    def log(self) -> str:
        """Return all that gunicorn and the app have written."""
        return (self._folder / "log").read_text(errors="replace")

    def notes(self) -> Counter[str]:
        """Count what the workers have noted."""
        notes = Counter((self._folder / "notes").read_text().splitlines())
        notes["found"] = self.log().count(FOUND)
        return notes

    def stop(self, *, at_once: bool = False) -> None:
        """End every process of the group; then the ledger does not change any more.

        Args:
            at_once: do not wait for the requests that are under way.
        """
        if self._process is None:
            return
        if not at_once:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        with suppress(ProcessLookupError):  # nobody is left, as it should be
            os.killpg(self.group, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def _start(self) -> None:
        self._workers.mkdir()
        # Handed over open: nobody else can get the port in between.
        with (
            socket.create_server((HOST, 0), backlog=1024) as listener,
            (self._folder / "log").open("wb") as log,
        ):
            self.port = listener.getsockname()[1]
            self._process = subprocess.Popen(
                self._command(listener.fileno()),
                stdin=subprocess.PIPE,  # nothing comes; it breaks with this process, see hooks.py
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C reaches this process only, which ends the group
            )

    def _command(self, listener: int) -> list[str]:
        return [
            *(sys.executable, "-m", "gunicorn", "--config", str(HERE / "hooks.py")),
            *("--chdir", str(HERE), "--bind", f"fd://{listener}"),
            *("--workers", str(WORKERS), "--worker-class", "gthread", "--threads", str(THREADS)),
            *("--graceful-timeout", "2", "--worker-tmp-dir", str(self._folder)),
            "app:create_app()",
        ]

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PAYMENTS_INSTANCE": str(self._folder),
            "PAYMENTS_LEDGER": str(self.ledger),
            "DEMIJOHN_DEMO_STORE": self._plan.store,
            "GUARD": "on" if self._plan.guarded else "off",
            # A server that is shared with others must not tell their keys from these by chance,
            # and forgets what the demo leaves there.
            "FLASK_SECRET_KEY": f"demo {secrets.token_urlsafe(32)}",
            "FLASK_DEMIJOHN_IDEMPOTENCY__ttl": "600",
            "FLASK_DEMIJOHN_IDEMPOTENCY__lease": str(LEASE_S),
        }

    def _wait_until_it_serves(self) -> None:
        give_up_at = time.monotonic() + 30
        while len(self.pids()) < WORKERS:
            self._check()
            if self._process is None or self._process.poll() is not None:
                raise CannotRun(f"gunicorn ended at once:\n{self.log()}")
            if time.monotonic() > give_up_at:
                raise CannotRun(f"gunicorn does not serve:\n{self.log()}")
            time.sleep(0.02)


def kill_workers(plan: Plan, server: Server, tally: Tally, over: threading.Event) -> None:
    """Kill workers by SIGKILL, spread over the payments, each time while some are being made."""
    draw = random.Random(f"kills of {plan.seed}")
    for number in range(plan.kills):
        begun = max(1, number * plan.payments // plan.kills)
        while tally["begun"] < begun or len(server.pids()) < WORKERS - 1:
            if over.wait(0.01):
                return
        if over.wait(draw.uniform(0.05, 0.4)):
            return
        try:
            os.kill(draw.choice(server.pids()), signal.SIGKILL)
        except ProcessLookupError:
            continue
        tally.add("killed")
