"""Many calls over connections that break: one effect for each, and nothing that is not seen."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.flaky_server import FlakyServer, Seen, answer, break_off, hang_up_unread

httpx = pytest.importorskip("httpx")
requests = pytest.importorskip("requests")

from demijohn.client import (  # noqa: E402
    AsyncRetryTransport,
    Retry,
    RetryPolicy,
    RetryTransport,
    retrying,
)

OPERATIONS = 150
Post: TypeAlias = Callable[[RetryPolicy, str, int], list[bytes]]


def by_requests(policy: RetryPolicy, url: str, calls: int) -> list[bytes]:
    with requests.Session() as session:
        session.trust_env = False
        retrying(session, policy)
        return [session.post(url, data=str(n), timeout=5).content for n in range(calls)]


def by_httpx(policy: RetryPolicy, url: str, calls: int) -> list[bytes]:
    with httpx.Client(transport=RetryTransport(policy), timeout=5) as client:
        return [client.post(url, content=str(n)).content for n in range(calls)]


def by_async_httpx(policy: RetryPolicy, url: str, calls: int) -> list[bytes]:
    async def send() -> list[bytes]:
        transport = AsyncRetryTransport(policy)
        async with httpx.AsyncClient(transport=transport, timeout=5) as client:
            return [(await client.post(url, content=str(n))).content for n in range(calls)]

    return asyncio.run(send())


@pytest.fixture(params=[by_requests, by_httpx, by_async_httpx])
def post(request: pytest.FixtureRequest) -> Post:
    function: Post = request.param
    return function


class Ledger:
    """Does what is asked once for each key, and tells of it as often as it is asked."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.effects: Counter[bytes] = Counter()

    def book(self, seen: Seen) -> bytes:
        key = seen.headers["idempotency-key"]
        if key not in self.answers:
            self.effects[seen.body] += 1
            self.answers[key] = b"booked %s" % seen.body
        return self.answers[key]

    def answers_in_full(self, connection: socket.socket, seen: Seen | None) -> None:
        assert seen is not None
        answer(201, self.book(seen))(connection, seen)

    def books_and_hangs_up(self, connection: socket.socket, seen: Seen | None) -> None:
        assert seen is not None
        self.book(seen)

    def books_and_breaks_off(self, connection: socket.socket, seen: Seen | None) -> None:
        assert seen is not None
        self.book(seen)
        break_off(connection, seen)


def test_each_call_has_one_effect_though_connections_break(post: Post) -> None:
    ledger = Ledger()
    troubles = [ledger.books_and_hangs_up, ledger.books_and_breaks_off, hang_up_unread, answer(503)]
    chance = random.Random(26)
    script = [
        chance.choice(troubles) if chance.random() < 0.4 else ledger.answers_in_full
        for _ in range(OPERATIONS * 10)
    ]
    policy = RetryPolicy(base=0.0001, cap=0.0002, max_attempts=40)
    with FlakyServer(script) as server:
        seen = post(policy, server.url(), OPERATIONS)
    assert seen == [b"booked %d" % number for number in range(OPERATIONS)]
    assert ledger.effects == Counter({b"%d" % number: 1 for number in range(OPERATIONS)})
    assert server.connections > OPERATIONS * 5 / 4  # there was trouble


@pytest.fixture
def unknown(tmp_path: Path) -> ssl.SSLContext:
    """Return a server's side of TLS, with a certificate that no client knows."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is needed to make a certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    files = ("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert))
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


def test_refused_certificate_is_not_tried_again(post: Post, unknown: ssl.SSLContext) -> None:
    told: list[Retry] = []
    policy = RetryPolicy(base=0.001, cap=0.002, max_attempts=5, on_retry=told.append)
    failures: Any = (requests.exceptions.SSLError, httpx.ConnectError)
    with FlakyServer([answer()], tls=unknown) as server, pytest.raises(failures):
        post(policy, server.url(), 1)
    assert told == []
    assert server.connections == 1
