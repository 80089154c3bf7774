"""A payments API with named points at which a test can hold or kill the process.

The folder ``CONTROL`` is the remote control: at the point ``NAME`` the process dies if there is a
file ``NAME.kill`` (which it removes first), and while there is a file ``NAME.hold`` it waits, after
leaving ``NAME.held``.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flask import Flask, request

from demijohn import Demijohn, idempotency
from demijohn.core.step import Outcome, Row, Step
from demijohn.stores import Health, Store, open_store

CONTROL = Path(os.environ.get("CONTROL", "."))


def point(name: str) -> None:
    """Die or wait here, if the test says so."""
    kill, hold, held = (CONTROL / f"{name}.{what}" for what in ("kill", "hold", "held"))
    if kill.exists():
        kill.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if hold.exists():
        held.write_text(str(os.getpid()))
        while hold.exists():
            time.sleep(0.005)


class PointedStore:
    """A store with a point before and after each run of steps."""

    def __init__(self, url: str) -> None:
        self._store: Store = open_store(url)

    @property
    def inbox(self) -> str:
        return self._store.inbox

    @property
    def mark(self) -> int:
        return self._store.mark

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        name = steps[0].kind.name.partition(".")[2]
        point(f"before-{name}")
        outcomes = self._store.run(steps)
        point(f"after-{name}")
        return outcomes

    def wait(self, key: str, *, since: int, timeout_ms: int) -> bool:
        point("before-wait")
        who = f"{os.getpid()} {threading.get_ident()}"
        note(f"waits {who}", "waits")
        woken = self._store.wait(key, since=since, timeout_ms=timeout_ms)
        note(f"{'woken' if woken else 'slept'} {who}", "waits")
        return woken

    def scan(self, prefix: str) -> Iterator[tuple[str, Row]]:
        return self._store.scan(prefix)

    def health(self) -> Health:
        return self._store.health()

    def close(self) -> None:
        self._store.close()


def note(line: str, file: str = "ledger") -> None:
    """Append a line, in one write, as a business transaction would commit."""
    descriptor = os.open(CONTROL / file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def create_app() -> Flask:
    """Make the application that the environment describes."""
    app = Flask(__name__, instance_path=str(CONTROL))
    app.secret_key = "a test's"
    options = json.loads(os.environ.get("OPTIONS", "{}"))
    stores: dict[str, Any] = {"default": PointedStore(os.environ["STORE"])}
    dj = Demijohn(app, stores=stores, idempotency=options)

    def heard(name: str) -> Any:
        def receive(sender: Flask, attempt: int, **details: object) -> None:
            note(f"{name} {attempt} {os.getpid()}", "signals")
            point(name)

        return receive

    receivers = []
    for name in ("begun", "completed", "taken_over", "fenced", "lost", "released"):
        receivers.append(heard(name))
        getattr(idempotency, name).connect(receivers[-1], app)
    app.extensions["test receivers"] = receivers  # signals hold them weakly

    @app.post("/pay")
    @dj.idempotent
    def pay() -> tuple[dict[str, Any], int]:
        payment = request.get_json()["id"]
        point("in-view")
        point(f"in-view-of-{payment}")
        run = idempotency.current
        note(f"{payment} {run.attempt} {os.getpid()} {run.derive('payment')}")
        point("after-effect")
        time.sleep(float(request.get_json().get("seconds", 0)))
        seen = {"attempt": run.attempt, "is_retry": run.is_retry}
        return {"payment": payment, "by": os.getpid(), **seen}, 201

    @app.get("/alive")
    def alive() -> dict[str, int]:
        return {"pid": os.getpid()}

    return app


app = create_app() if os.environ.get("PRELOAD") else None
