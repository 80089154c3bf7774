"""Atomic views whose process is killed at every point, and anywhere: both or neither is there."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")
requests = pytest.importorskip("requests")

from sqlalchemy import Engine, func, select  # noqa: E402

from demijohn.records.tables import keys  # noqa: E402
from tests.faults.conftest import Payments, new_key, together  # noqa: E402
from tests.faults.ledger import emptied, rows_of_payments  # noqa: E402
from tests.serving import Serve  # noqa: E402


class Bank(Payments):
    """The served API and its database, seen from outside."""

    def __init__(self, serve: Serve, folder: Path, engine: Engine) -> None:
        super().__init__(serve, folder, "memory://")
        self.engine = engine

    def open(self, *, workers: int = 2, threads: int = 4, **options: Any) -> Bank:
        url = self.engine.url.render_as_string(hide_password=False)
        serve = {"app": "tests.apps.ledger:create_app()", "env": {"DATABASE": url}}
        self.start(workers=workers, threads=threads, serve=serve, **options)
        return self

    def payments(self) -> Counter[str]:
        return rows_of_payments(self.engine)

    def recorded(self) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(keys)) or 0


@pytest.fixture
def bank(serve: Serve, tmp_path: Path, database_url: str) -> Iterator[Bank]:
    folder = tmp_path / "control"
    folder.mkdir()
    with emptied(database_url) as engine:
        bank = Bank(serve, folder, engine)
        yield bank
        bank.served.stop()


BEFORE = (
    "before-claim",
    "after-claim",
    "in-view",
    "between-commits",
    "after-view",
    "before-complete",
    "after-complete",
    "before-commit",
)
AFTER = ("after-commit", "before-response")


@pytest.mark.parametrize("point", BEFORE + AFTER)
def test_killed_at_any_point_both_rows_and_record_are_there_or_neither(
    bank: Bank, point: str
) -> None:
    bank.open()
    key = new_key()
    bank.kill_at(point)
    with pytest.raises(requests.RequestException):
        bank.post(key)
    done = point in AFTER
    if bank.engine.dialect.name == "sqlite":  # servers notice a little later that a client died
        assert (bank.payments()["p"], bank.recorded()) == ((2, 1) if done else (0, 0))
    answer = bank.post_until_answered(key)
    assert answer.status_code == 201
    assert ("Idempotent-Replayed" in answer.headers) == done
    assert bank.post(key).content == answer.content
    assert (bank.payments(), bank.recorded()) == ({"p": 2}, 1)


def test_waiting_duplicate_runs_when_the_first_worker_is_killed(bank: Bank) -> None:
    bank.open(wait=30)
    key = new_key()
    bank.hold("between-commits")
    with together(2) as start:
        first = start(bank.post, key)
        pid = bank.held("between-commits")
        second = start(bank.post_until_answered, key)
        threading.Event().wait(0.3)
        bank.served.kill(pid)
        bank.release("between-commits")
        with pytest.raises(requests.RequestException):
            first.result(60)
        assert second.result(60).status_code == 201
    assert (bank.payments(), bank.recorded()) == ({"p": 2}, 1)


def test_paused_worker_keeps_its_key_and_goes_on(bank: Bank) -> None:
    """There is no lease to lose: who is paused is waited for, and finishes."""
    bank.open(wait=1)
    key = new_key()
    bank.hold("between-commits")
    with together(1) as start:
        first = start(bank.post, key)
        pid = bank.held("between-commits")
        bank.served.pause(pid)
        bank.release("between-commits")
        assert bank.post(key).status_code in {409, 503}
        bank.served.resume(pid)
        assert first.result(60).status_code == 201
    assert "Idempotent-Replayed" in bank.post_until_answered(key).headers
    assert bank.payments() == {"p": 2}


def test_200_duplicates_over_4_workers_pay_once(bank: Bank) -> None:
    bank.open(workers=4, threads=8, wait=30)
    key = new_key()
    with together(50) as start:
        futures = [start(bank.post_until_answered, key) for _ in range(200)]
        answers = [future.result(120) for future in futures]
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) <= 1
    assert (bank.payments(), bank.recorded()) == ({"p": 2}, 1)


class Campaign:
    """Clients that pay and retry, and somebody who kills workers."""

    def __init__(self, bank: Bank, kills: int, seed: int) -> None:
        self.bank = bank
        self.kills = kills
        self.random = random.Random(seed)
        self.over = threading.Event()
        self.seen: dict[str, set[bytes]] = {}

    def run(self, clients: int) -> None:
        with together(clients) as start:
            futures = [start(self.pay, number) for number in range(clients)]
            try:
                self.torment()
            finally:
                self.over.set()
            for future in futures:
                future.result(300)

    def torment(self) -> None:
        killed = 0
        while killed < self.kills:
            self.over.wait(self.random.uniform(0.0, 0.15))
            pids = self.bank.served.pids()
            if not pids:
                continue
            try:
                os.kill(self.random.choice(pids), signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed += 1

    def pay(self, client: int) -> None:
        number = 0
        while not self.over.is_set() or not number:
            number += 1
            key, payment = new_key(), f"{client}-{number}"
            answers = {self.bank.post_until_answered(key, payment).content for _ in range(2)}
            self.seen[payment] = answers


@pytest.mark.parametrize("kills", [15, pytest.param(350, marks=pytest.mark.campaign)])
def test_workers_that_are_killed_anywhere(bank: Bank, kills: int) -> None:
    bank.open(workers=4, threads=4, wait=10)
    campaign = Campaign(bank, kills, seed=20261121)
    campaign.run(clients=6)
    seen = campaign.seen
    assert len(seen) >= kills / 5
    assert {len(answers) for answers in seen.values()} == {1}  # one answer of each, whoever asked
    assert bank.payments() == dict.fromkeys(seen, 2)  # none twice, none lost, none half
    assert bank.recorded() == len(seen)  # none stuck
