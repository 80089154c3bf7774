"""Batches whose process is killed between and within their parts, and that are sent again."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")
requests = pytest.importorskip("requests")

from sqlalchemy import Engine  # noqa: E402

from tests.faults.conftest import PATIENCE_S, Payments, new_key  # noqa: E402
from tests.faults.ledger import emptied, rows_of_payments  # noqa: E402
from tests.serving import Serve  # noqa: E402


class Bank(Payments):
    """The served API to which batches are sent, and its database, seen from outside."""

    def __init__(self, serve: Serve, folder: Path, engine: Engine) -> None:
        super().__init__(serve, folder, "memory://")
        self.engine = engine

    def open(self, store: str) -> Bank:
        url = self.engine.url.render_as_string(hide_password=False)
        serve = {
            "app": "tests.apps.batches:create_app()",
            "env": {"DATABASE": url, "STORE": store},
        }
        self.start(workers=2, threads=2, serve=serve)
        return self

    def send(self, key: str, *urls: str, group: str | None = None) -> Any:
        parts = [
            {"id": str(number), "method": "POST", "url": url, "body": {}}
            | ({"atomicityGroup": group} if group else {})
            for number, url in enumerate(urls)
        ]
        return requests.post(
            self.served.url("/batch"),
            json={"requests": parts},
            headers={"Idempotency-Key": key, "Connection": "close"},
            timeout=PATIENCE_S,
        )

    def send_until_done(self, key: str, *urls: str, group: str | None = None) -> list[Any]:
        """Send again, as a client does whose connection breaks, until all parts are done."""
        for _ in range(200):
            try:
                answer = self.send(key, *urls, group=group)
            except requests.RequestException:
                threading.Event().wait(0.1)
                continue
            assert answer.status_code == 200, answer.text
            parts: list[Any] = answer.json()["responses"]
            if {part["status"] for part in parts} == {201}:
                return parts
            assert {part["status"] for part in parts} <= {201, 409, 424, 503}, parts
            threading.Event().wait(0.1)
        raise AssertionError("never done")

    def payments(self) -> Counter[str]:
        return rows_of_payments(self.engine)


@pytest.fixture
def bank(serve: Serve, tmp_path: Path, database_url: str) -> Iterator[Bank]:
    folder = tmp_path / "control"
    folder.mkdir()
    with emptied(database_url) as engine:
        bank = Bank(serve, folder, engine)
        yield bank
        bank.served.stop()


ATOMIC = ("/atomic/a", "/atomic/b", "/atomic/c")


@pytest.mark.parametrize("point", ["in-b", "after-b", "in-c"])
def test_killed_between_parts_and_sent_again_every_part_is_applied_once(
    bank: Bank, tmp_path: Path, point: str
) -> None:
    bank.open("memory://")
    bank.kill_at(point)
    key = new_key()
    with pytest.raises(requests.RequestException):
        bank.send(key, *ATOMIC)
    parts = bank.send_until_done(key, *ATOMIC)
    replayed = ["idempotent-replayed" in part["headers"] for part in parts]
    assert replayed == [True, point == "in-c", False]
    assert bank.payments() == {"a": 2, "b": 2, "c": 2}
    again = bank.send_until_done(key, *ATOMIC)
    assert all("idempotent-replayed" in part["headers"] for part in again)
    assert bank.payments() == {"a": 2, "b": 2, "c": 2}


POINTS = ("in-b", "after-b", "before-commit", "after-commit")
KINDS = ("plain", "leased", "atomic")
SHORT = {("in-b", "plain"), ("after-b", "leased"), ("before-commit", "atomic")}


@pytest.mark.parametrize(
    ("point", "kind"),
    [
        pytest.param(
            point,
            kind,
            marks=[] if (point, kind) in SHORT or point == "after-commit" else pytest.mark.campaign,
        )
        for point in POINTS
        for kind in KINDS
    ],
)
def test_group_that_is_killed_and_sent_again_is_applied_once(
    bank: Bank, tmp_path: Path, point: str, kind: str
) -> None:
    bank.open(f"sqlite:///{tmp_path}/keys.db")
    urls = (f"/{kind}/a", f"/{kind}/b")
    bank.send_until_done(new_key(), "/plain/warm", group="w")  # what is looked at once
    key = new_key()
    bank.kill_at(point)
    with pytest.raises(requests.RequestException):
        bank.send(key, *urls, group="g")
    if bank.engine.dialect.name == "sqlite":  # servers notice a little later that a client died
        done = {"a": 2, "b": 2} if point == "after-commit" else {}
        assert bank.payments() == {"warm": 2, **done}
    parts = bank.send_until_done(key, *urls, group="g")
    assert bank.payments() == {"warm": 2, "a": 2, "b": 2}
    replayed = {"idempotent-replayed" in part["headers"] for part in parts}
    assert replayed == {point == "after-commit"}
