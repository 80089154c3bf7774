"""What gunicorn runs for the demo: its configuration file. The app knows nothing of it."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Protocol

from demijohn import idempotency

FOLDER = Path(os.environ["PAYMENTS_INSTANCE"])
WORKERS = FOLDER / "workers"
NOTES = os.open(FOLDER / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

control_socket_disable = True  # gunicorn would leave its socket in the user's home


class Worker(Protocol):
    """A process that serves."""

    pid: int


def on_starting(_master: object) -> None:
    threading.Thread(target=_end_with_the_demo, daemon=True).start()


# A worker has a file of its number from when it is about to accept until its death was noticed.


def post_worker_init(worker: Worker) -> None:
    (WORKERS / str(worker.pid)).touch()


def child_exit(_master: object, worker: Worker) -> None:
    (WORKERS / str(worker.pid)).unlink(missing_ok=True)


# What Demijohn signals is counted in the end. The kernel keeps what a dead worker has written.


def note(what: str) -> None:
    os.write(NOTES, f"{what}\n".encode())


def note_takeover(_app: object, **_: object) -> None:
    note("taken over")


def note_wait(_app: object, **_: object) -> None:
    note("waited")


idempotency.taken_over.connect(note_takeover, weak=False)
idempotency.waited.connect(note_wait, weak=False)


def _end_with_the_demo() -> None:
    """End everything when the demo could not do so itself, as after its own ``kill -9``."""
    os.read(0, 1)  # from a pipe into which nothing is written: it ends with the demo
    group = os.getpgrp()
    if os.fork() == 0:
        os.setsid()  # so as not to be of the group
        os.killpg(group, signal.SIGKILL)
        time.sleep(0.1)  # until nobody writes there any more
        shutil.rmtree(FOLDER, ignore_errors=True)
        os._exit(0)
