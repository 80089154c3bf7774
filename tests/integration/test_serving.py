"""The tests' own tools: what they promise about processes is what the fault tests rest on."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest

from tests.processes import wait_until
from tests.serving import Serve, Served

ECHO = "tests.apps.echo:create_app()"


def get(served: Served, path: str = "/", *, timeout_s: float = 10) -> dict[str, object]:
    with urllib.request.urlopen(served.url(path), timeout=timeout_s) as response:
        answer: dict[str, object] = json.load(response)
    return answer


def test_every_worker_serves_from_the_start(serve: Serve) -> None:
    served = serve(ECHO, workers=3)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: get(served, "/slow?seconds=0.5"), range(3)))
    assert sorted(str(answer["pid"]) for answer in answers) == sorted(map(str, served.pids()))


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])
def test_each_worker_class_serves_with_the_environment_given(
    serve: Serve, worker_class: Literal["sync", "gthread", "gevent"]
) -> None:
    if worker_class == "gevent":
        pytest.importorskip("gevent")
    served = serve(ECHO, workers=1, worker_class=worker_class, env={"DEMIJOHN_ECHO": "hi"})
    assert get(served) == {"pid": served.pids()[0], "word": "hi"}


def test_killed_worker_is_replaced(serve: Serve) -> None:
    served = serve(ECHO, workers=2)
    victim = served.pids()[0]
    served.kill(victim)
    served.wait_for_workers()
    assert victim not in served.pids()
    assert get(served)["pid"] in served.pids()


def test_paused_worker_holds_its_request_until_resumed(serve: Serve) -> None:
    served = serve(ECHO, workers=1)
    (pid,) = served.pids()
    served.pause(pid)
    with pytest.raises(TimeoutError):
        get(served, timeout_s=0.3)
    served.resume(pid)
    assert get(served)["pid"] == pid


def test_nothing_is_left_behind_even_of_a_paused_worker(serve: Serve) -> None:
    served = serve(ECHO, workers=2)
    pids = served.pids()
    served.pause(pids[0])
    served.stop()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all are gone")
    with pytest.raises(urllib.error.URLError):
        get(served)


def test_stopped_app_starts_again_on_the_same_port(serve: Serve) -> None:
    served = serve(ECHO, workers=1)
    address = served.url()
    served.stop()
    served.start()
    assert served.url() == address
    assert get(served)["pid"] in served.pids()


def test_broken_app_says_why_at_once(serve: Serve) -> None:
    with pytest.raises(RuntimeError, match=r"No module named 'tests\.apps\.missing'"):
        serve("tests.apps.missing:app")
