"""A payments API under gunicorn, on every store, with a remote control."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

requests = pytest.importorskip("requests")

from tests.servers import RedisServer  # noqa: E402
from tests.serving import Serve, Served  # noqa: E402

PATIENCE_S = 60


class Payments:
    """The served API, seen from outside."""

    def __init__(self, serve: Serve, folder: Path, store: str) -> None:
        self._serve = serve
        self.folder = folder
        self.store = store
        self.served: Served

    def start(self, *, workers: int = 2, threads: int = 8, **options: Any) -> Payments:
        more = options.pop("serve", {})
        env = {
            "CONTROL": str(self.folder),
            "STORE": self.store,
            "OPTIONS": json.dumps({"lease": 1.5, "wait": 30, "max_waiters": 1000, **options}),
        }
        env |= more.pop("env", {})
        self.served = self._serve(
            more.pop("app", "tests.apps.payments:create_app()"),
            workers=workers,
            threads=threads,
            worker_class=more.pop("worker_class", "gthread"),
            env=env,
            **more,
        )
        return self

    # --- asking ---------------------------------------------------------------------------------

    def post(self, key: str, payment: str = "p", **body: Any) -> Any:
        headers = {"Idempotency-Key": key, "Connection": "close"}
        return requests.post(
            self.served.url("/pay"),
            json={"id": payment, **body},
            headers=headers,
            timeout=PATIENCE_S,
        )

    def post_until_answered(self, key: str, payment: str = "p", **body: Any) -> Any:
        """Retry as a client would whose connection breaks, or who is told to come back."""
        for _ in range(200):
            try:
                answer = self.post(key, payment, **body)
            except requests.RequestException:
                threading.Event().wait(0.1)
                continue
            if answer.status_code not in {409, 503}:
                return answer
            threading.Event().wait(0.1)
        raise AssertionError("never answered")

    # --- the remote control ---------------------------------------------------------------------

    def hold(self, point: str) -> None:
        (self.folder / f"{point}.held").unlink(missing_ok=True)
        (self.folder / f"{point}.hold").touch()

    def held(self, point: str) -> int:
        """Wait until a process is held at ``point``; return its number."""
        file = self.folder / f"{point}.held"
        until(lambda: file.exists() and file.read_text())
        return int(file.read_text())

    def release(self, point: str) -> None:
        (self.folder / f"{point}.hold").unlink()

    def kill_at(self, point: str) -> None:
        (self.folder / f"{point}.kill").touch()

    # --- what happened --------------------------------------------------------------------------

    def ledger(self, payment: str = "p") -> list[tuple[int, int, str]]:
        """Return (attempt, pid, reference) of each run for ``payment``."""
        rows = [line.split() for line in self._lines("ledger")]
        return [(int(row[1]), int(row[2]), row[3]) for row in rows if row[0] == payment]

    def signals(self) -> list[str]:
        return [line.split()[0] for line in self._lines("signals")]

    def waiters(self) -> set[tuple[int, int]]:
        """Return (pid, thread) of all that have waited for another request."""
        rows = [line.split() for line in self._lines("waits")]
        return {(int(pid), int(thread)) for _, pid, thread in rows}

    def waits(self, pid: int) -> list[str]:
        """Return how the waits of a process went: ``waits``, then ``woken`` or ``slept``."""
        rows = [line.split() for line in self._lines("waits")]
        return [what for what, by, _ in rows if int(by) == pid]

    def _lines(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []


def until(condition: Callable[[], Any], seconds: float = PATIENCE_S) -> None:
    for _ in range(int(seconds * 100)):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never became so")


@contextmanager
def together(count: int) -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor(count) as pool:
        yield pool.submit


def new_key() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def redis(own_redis: RedisServer) -> RedisServer:
    return own_redis


# Nothing here is about deadlines but where a test says so, and two cores may be busy.
PATIENT = "timeout=2&connect_timeout=2"


@pytest.fixture(params=["sqlite", "redis"])
def payments(request: pytest.FixtureRequest, serve: Serve, tmp_path: Path) -> Payments:
    """The API on each store; to be started by the test."""
    folder = tmp_path / "control"
    folder.mkdir()
    if request.param == "sqlite":
        return Payments(serve, folder, f"sqlite:///{tmp_path}/rows.db")
    server: RedisServer = request.getfixturevalue("own_redis")
    return Payments(serve, folder, f"{server.url()}?{PATIENT}")


@pytest.fixture
def payments_on(serve: Serve, tmp_path: Path) -> Callable[[str], Payments]:
    """The API on a store that the test names."""
    folder = tmp_path / "control"
    folder.mkdir()
    return lambda store: Payments(serve, folder, store)
