"""Limits that real worker processes share, one of which is killed."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest

from tests.serving import Serve, Served

APP = "tests.apps.limited:create_app()"


@pytest.fixture(params=["sqlite", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/limits.db?synchronous=normal&busy_timeout=20"
    url: str = request.getfixturevalue("redis_url")
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}prefix={uuid.uuid4().hex}:&timeout=5&connect_timeout=5"


def status(served: Served, path: str, timeout_s: float = 30) -> int:
    try:
        with urllib.request.urlopen(served.url(path), timeout=timeout_s) as response:
            found: int = response.status
            return found
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])
def test_workers_admit_exactly_the_limit(
    serve: Serve, store_url: str, worker_class: Literal["sync", "gthread", "gevent"]
) -> None:
    if worker_class == "gevent":
        pytest.importorskip("gevent")
    env = {"DEMIJOHN_TEST_STORE": store_url}
    served = serve(APP, workers=4, worker_class=worker_class, env=env)
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: status(served, "/"), range(120)))
    assert sorted(set(statuses)) == [200, 429]
    assert statuses.count(200) == 50


def test_workers_share_their_places(serve: Serve, store_url: str) -> None:
    served = serve(APP, workers=4, env={"DEMIJOHN_TEST_STORE": store_url})
    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(lambda _: status(served, "/slow"), range(4)))
    assert statuses == [200, 200, 429, 429]


def test_place_of_a_killed_worker_comes_back(serve: Serve, store_url: str) -> None:
    served = serve(APP, workers=2, env={"DEMIJOHN_TEST_STORE": store_url})
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(status, served, "/hang")
        time.sleep(0.3)
        assert status(served, "/hang") == 429  # by the other worker: the place is taken
        for pid in served.pids():
            served.kill(pid)
        with pytest.raises(OSError, match=r".*"):
            hanging.result(30)
    served.wait_for_workers()
    with ThreadPoolExecutor(1) as pool:
        # It is the killed worker's until its lease has lapsed; then a request gets in, and hangs.
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if status(served, "/hang", timeout_s=2.0) == 429:
                    time.sleep(0.1)
            except OSError:
                return
    raise AssertionError("the place of the killed worker did not come back")
