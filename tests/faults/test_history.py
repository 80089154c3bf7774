"""Whole histories: what clients saw, held against what the ledger says."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from urllib.parse import urlsplit

import pytest

from tests.faults.conftest import Payments, new_key, together
from tests.faults.proxy import LosingProxy

requests = pytest.importorskip("requests")

from demijohn.client import RetryPolicy, retrying  # noqa: E402

POLICY = RetryPolicy(deadline=120, max_attempts=200, base=0.02, cap=0.5)


def history(
    payments: Payments, url: str, operations: int, *, clients: int, seconds: float = 0
) -> dict[str, set[bytes]]:
    """Send each payment by two clients with the same key; return the responses seen of each."""
    seen: dict[str, set[bytes]] = defaultdict(set)
    keys = {f"p{number}": new_key() for number in range(operations // 2)}
    work = [payment for payment in keys for _ in range(2)]
    random.Random(1).shuffle(work)
    lock = threading.Lock()

    def client() -> None:
        with retrying(requests.Session(), POLICY) as session:
            session.trust_env = False
            while True:
                with lock:
                    if not work:
                        return
                    payment = work.pop()
                headers = {"Idempotency-Key": keys[payment], "Connection": "close"}
                body = {"id": payment, "seconds": seconds}
                answer = session.post(url, json=body, headers=headers, timeout=30)
                assert answer.status_code == 201, answer.text
                with lock:
                    seen[payment].add(answer.content)

    with together(clients) as start:
        for future in [start(client) for _ in range(clients)]:
            future.result(3600)
    return seen


@pytest.mark.parametrize("operations", [400, pytest.param(10_000, marks=pytest.mark.campaign)])
def test_one_effect_per_key_over_a_connection_that_loses_responses(
    payments: Payments, operations: int
) -> None:
    payments.start(workers=2, threads=8, lease=30)
    port = urlsplit(payments.served.url()).port
    assert port is not None
    with LosingProxy(port, share=0.3, seed=7) as proxy:
        seen = history(payments, proxy.url("/pay"), operations, clients=8)
        assert proxy.lost > operations / 10
    assert len(seen) == operations // 2
    for payment, responses in seen.items():
        assert len(responses) == 1
        assert [row[0] for row in payments.ledger(payment)] == [1]


@pytest.mark.parametrize(
    ("operations", "kills"), [(200, 5), pytest.param(4000, 100, marks=pytest.mark.campaign)]
)
def test_one_effect_per_reference_while_workers_are_killed_at_random(
    payments: Payments, operations: int, kills: int
) -> None:
    payments.start(workers=4, threads=4, lease=1)
    stop = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        chance = random.Random(3)
        while len(killed) < kills and not stop.wait(chance.uniform(0.2, 0.6)):
            pids = payments.served.pids()
            if pids:
                killed.append(chance.choice(pids))
                payments.served.kill(killed[-1])

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        url = payments.served.url("/pay")
        seen = history(payments, url, operations, clients=8, seconds=0.2)
    finally:
        stop.set()
        killer.join(60)
    assert killed
    for payment, responses in seen.items():
        assert len(responses) == 1
        runs = payments.ledger(payment)
        # A kill between effect and completion makes a second run, under the same reference: the
        # unique column of a real ledger keeps one. A run that nobody killed is never repeated.
        assert len({reference for _, _, reference in runs}) == 1
        assert all(pid in killed for _, pid, _ in runs[:-1])
