"""The clients of this package with its own server, over sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")
requests = pytest.importorskip("requests")

from flask import Flask, request, session  # noqa: E402
from werkzeug.serving import make_server  # noqa: E402

from demijohn import Demijohn  # noqa: E402
from demijohn.client import (  # noqa: E402
    AsyncBatchTransport,
    AsyncHttpxBatching,
    BatchDependencyError,
    Batching,
    BatchTransport,
    HttpxBatching,
)
from demijohn.client.batching.flow import absences  # noqa: E402
from tests.serving import Serve  # noqa: E402

FORMATS = ("multipart", "json")


class Running:
    """An application and what reached it."""

    def __init__(self, folder: Path) -> None:
        self.app = Flask("clients", instance_path=str(folder))
        self.app.secret_key = "x"
        self.dj = Demijohn(self.app, stores="memory://", batch={"max_parts": 1000})
        self.runs: list[str] = []
        self.outer: list[str] = []
        self.app.before_request(self._note)
        self.app.add_url_rule("/echo", view_func=self._echo, methods=["GET", "POST", "PATCH"])
        self.app.add_url_rule("/login", view_func=self._login, methods=["POST"])
        pay = self.dj.idempotent(required=True)(self._pay)
        self.app.add_url_rule("/pay/<int:number>", "pay", pay, methods=["POST"])
        self.url = ""

    def _note(self) -> None:
        to = self.outer if "demijohn.batch" not in request.environ else self.runs
        to.append(f"{request.method} {request.path}")

    @staticmethod
    def _echo() -> Any:
        return {
            "body": request.get_data(as_text=True),
            "auth": request.headers.get("Authorization"),
            "user": session.get("user"),
        }

    @staticmethod
    def _login() -> Any:
        session["user"] = request.get_json()["user"]
        return {}

    @staticmethod
    def _pay(number: int) -> Any:
        return {"paid": number, "key": request.headers["Idempotency-Key"]}, 201


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    absences.forget()
    made = Running(tmp_path)
    server = make_server("127.0.0.1", 0, made.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("form", FORMATS)
def test_old_projects_example(running: Running, form: Any) -> None:
    with Batching(f"{running.url}/batch", format=form) as s:
        alice = s.patch(f"{running.url}/echo", headers={"X": "1"}, data="a", auth=None)
        bob = s.patch(f"{running.url}/echo", json={"b": 1})
        nobody = s.get(f"{running.url}/nowhere")
    assert (alice.status_code, bob.status_code, nobody.status_code) == (200, 200, 404)
    assert alice.json()["body"] == "a"
    assert bob.json()["body"] == '{"b": 1}'
    assert running.outer == ["POST /batch"]


@pytest.mark.parametrize("form", FORMATS)
def test_session_of_requests_keeps_its_credentials_and_cookies(running: Running, form: Any) -> None:
    own = requests.Session()
    own.auth = ("ann", "secret")
    with Batching(f"{running.url}/batch", own, format=form) as s:
        s.post("/login", json={"user": "ann"})
        first = s.get("/echo")
    with Batching(f"{running.url}/batch", own, format=form) as s:
        second, third = s.get("/echo"), s.get("/echo")
    assert first.json()["auth"] == second.json()["auth"] == "Basic YW5uOnNlY3JldA=="
    assert second.json()["user"] == third.json()["user"] == "ann"
    assert running.outer == ["POST /batch"] * 2


@pytest.mark.parametrize("form", FORMATS)
def test_hundred_gathered_requests_of_httpx_are_one(running: Running, form: Any) -> None:
    async def main() -> list[Any]:
        transport = AsyncBatchTransport(f"{running.url}/batch", format=form)
        async with httpx.AsyncClient(transport=transport, base_url=running.url) as client:
            calls = [client.post("/echo", json={"n": n}) for n in range(100)]
            return await asyncio.gather(*calls)

    found = asyncio.run(main())
    assert [answer.status_code for answer in found] == [200] * 100
    assert [json.loads(answer.json()["body"])["n"] for answer in found] == list(range(100))
    assert running.outer == ["POST /batch"]
    assert len(running.runs) == 100


@pytest.mark.parametrize("form", FORMATS)
def test_explicit_blocks_of_httpx(running: Running, form: Any) -> None:
    with (
        httpx.Client() as client,
        HttpxBatching(client, f"{running.url}/batch", format=form) as batch,
    ):
        found = [batch.get("/echo"), batch.get("/nowhere")]
    assert [answer.status_code for answer in found] == [200, 404]

    async def main() -> list[int]:
        async with httpx.AsyncClient() as own:
            async with AsyncHttpxBatching(own, f"{running.url}/batch", format=form) as batch:
                answers = [batch.get("/echo"), batch.get("/nowhere")]
            return [answer.status_code for answer in answers]

    assert asyncio.run(main()) == [200, 404]
    assert running.outer == ["POST /batch"] * 2


def test_threads_with_one_client_of_httpx(running: Running) -> None:
    transport = BatchTransport(f"{running.url}/batch", max_parts=8, max_delay=30)
    with httpx.Client(transport=transport, base_url=running.url) as client:
        found: list[int] = []

        def ask() -> None:
            found.append(client.get("/echo").status_code)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == [200] * 8
    assert running.outer == ["POST /batch"]


def test_parts_that_depend_on_one_that_failed(running: Running) -> None:
    with Batching(f"{running.url}/batch", format="json") as s:
        s.get("/nowhere", id="a")
        second = s.get("/echo", depends_on=["a"])
    assert second.status_code == 424
    with pytest.raises(BatchDependencyError, match="depends on"):
        second.result(raise_for=True)


@pytest.mark.parametrize("form", FORMATS)
def test_one_key_for_a_batch_that_may_be_sent_again(running: Running, form: Any) -> None:
    with Batching(f"{running.url}/batch", format=form, retry=2) as s:
        answers = [s.post(f"/pay/{number}", json={}) for number in range(3)]
    keys = {answer.json()["key"] for answer in answers}
    assert [answer.status_code for answer in answers] == [201] * 3
    assert len(keys) == 3
    assert len({key.strip('"').partition(":")[0] for key in keys}) == 1


@pytest.mark.parametrize("form", FORMATS)
def test_server_that_is_killed_is_sent_the_batch_again_and_pays_once(
    serve: Serve, tmp_path: Path, form: Any
) -> None:
    """The client's key for the batch makes the same keys of its parts each time."""
    pytest.importorskip("gunicorn")
    folder = tmp_path / "control"
    folder.mkdir()
    env = {"CONTROL": str(folder), "STORE": f"sqlite:///{tmp_path}/keys.db"}
    served = serve(
        "tests.apps.batches:create_app()", workers=1, threads=4, worker_class="gthread", env=env
    )
    (folder / "in-kill.hold").touch()
    answers: list[Any] = []

    def pay() -> None:
        with Batching(served.url("/batch"), format=form, retry=8) as s:
            answers.extend(s.post(f"/counted/{name}", json={}) for name in ("a", "kill", "c"))

    client = threading.Thread(target=pay)
    client.start()
    held = folder / "in-kill.held"
    for _ in range(3000):
        if held.exists() and held.read_text():
            break
        threading.Event().wait(0.01)
    os.kill(int(held.read_text()), signal.SIGKILL)
    (folder / "in-kill.hold").unlink()
    client.join(60)
    assert [answer.status_code for answer in answers] == [201] * 3
    counted = (folder / "counted").read_text().split()
    assert counted.count("a") == counted.count("c") == 1
    assert counted.count("kill") == 1, "the first run was killed before it did anything"
    assert answers[0].headers["Idempotent-Replayed"] == "true"
