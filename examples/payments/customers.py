"""The customers, and what befalls their requests."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal

import httpx
from plan import Intent, Plan, Tally

from demijohn.client import Retry, RetryPolicy, RetryTransport

AT_ONCE: Final = 10
"""How many payments are under way at once."""
PATIENCE_S: Final = 60
"""How long a customer tries before giving a request up."""


class GivenUp(Exception):
    """The demo is over, so a customer does not try again."""


class _Call(threading.local):
    """What this thread's request has met with so far."""

    def __init__(self) -> None:
        self.troubles: set[str] = set()


class Customers:
    """Send every request several times, and break some of them off."""

    def __init__(
        self, plan: Plan, host: str, port: int, tally: Tally, over: threading.Event
    ) -> None:
        self._plan = plan
        self._address = (host, port)
        self._tally = tally
        self._over = over
        self._senders = ThreadPoolExecutor(AT_ONCE * (plan.duplicates + 3))
        self._settled: list[Intent] = []
        self._call = _Call()
        policy = RetryPolicy(
            deadline=PATIENCE_S, max_attempts=1000, cap=1.0, on_retry=self._not_yet
        )
        self._http = httpx.Client(
            base_url=f"http://{host}:{port}",
            transport=RetryTransport(policy, sleep=self._pause),
            timeout=20,
        )

    def close(self) -> None:
        """Give up what is under way."""
        self._over.set()
        self._senders.shutdown(cancel_futures=True)
        self._http.close()

    def settle(self, intent: Intent) -> None:
        """Make one payment, as badly as can be."""
        if self._over.is_set():
            return
        self._tally.add("begun")
        cuts = [self._senders.submit(self._cut, intent, where) for where in intent.cuts]
        copies = [
            self._senders.submit(self._send, intent, number * 0.01)
            for number in range(1 + self._plan.duplicates)
        ]
        for future in (*cuts, *copies):
            future.result()
        self._tally.add("settled")
        # Somebody comes back to an earlier payment and presses the button again.
        self._settled.append(intent)
        self._send(self._settled[len(self._settled) // 2], 0)

    def _pause(self, seconds: float) -> None:
        if self._over.wait(seconds):
            raise GivenUp

    def _send(self, intent: Intent, after_s: float) -> None:
        """Send a request until there is a final answer."""
        self._pause(after_s)
        self._call.troubles.clear()
        try:
            answer = self._http.post("/payments", content=intent.body, headers=intent.headers)
        except httpx.TransportError:
            self._tally.add("sent", "lost", "unanswered")
            return
        self._tally.add("sent")
        if answer.status_code != 201:
            self._tally.add("conflict" if answer.status_code == 409 else "refused", "unanswered")
            return
        self._tally.answered(intent, answer.content)
        if "Idempotent-Replayed" in answer.headers:
            self._tally.add("replayed", *(f"replayed after {it}" for it in self._call.troubles))
        else:
            self._tally.add("first")

    def _not_yet(self, retry: Retry) -> None:
        """Count an attempt that the client will repeat."""
        if isinstance(retry.reason, Exception):
            trouble = "lost"
        else:
            trouble = "conflict" if retry.reason.status == 409 else "refused"
        self._tally.add("sent", trouble)
        self._call.troubles.add(trouble)

    def _cut(self, intent: Intent, where: Literal["halfway", "unread"]) -> None:
        """Send a request and break the connection off: in mid-request, or before the answer."""
        fields = {
            **intent.headers,
            "Host": self._address[0],
            "Content-Length": str(len(intent.body)),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        request = f"POST /payments HTTP/1.1\r\n{head}\r\n".encode() + intent.body
        self._tally.add("sent", "cut")
        try:
            with socket.create_connection(self._address, timeout=5) as connection:
                connection.sendall(request[:-10] if where == "halfway" else request)
                self._pause(0.03)  # so that the server has begun to read it
        except OSError:
            pass  # a worker was killed meanwhile; it was to be cut anyway
