"""How one process hears the wake-ups of all its waiters over one connection.

Theory of operation. The process has an inbox, a channel with a random name, and one thread that
subscribes to it at the first wait. Who begins a key that is busy leaves the inbox in the row; who
ends the run publishes the key to each inbox; the thread rings the process's bell.

Nothing is missed: a first waiter looks again after the subscription was confirmed, and whenever
the subscription was down everybody looks again, when it goes down and when it is back. While it is
down waiters poll. A connection that is dead without saying so is found by a ping.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections.abc import Callable
from typing import Final

from demijohn.errors import StoreError
from demijohn.stores.bell import Bell
from demijohn.stores.redis.driver import Listener, Node

logger: Final = logging.getLogger("demijohn.stores")

POLL_MS: Final = 100
PING_EVERY_S: Final = 2.0
BACKOFF_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0
JOIN_S: Final = 2.0


class Subscriber:
    """The inbox of this process.

    Args:
        prefix: stands in front of the inbox's name.
        bell: is rung with the key of each message.
        node: returns a server to subscribe at; asked again at each connection.
        at_start: is called once, in the thread, with the first server.
    """

    def __init__(
        self,
        prefix: str,
        bell: Bell,
        node: Callable[[], Node],
        at_start: Callable[[Node], None],
    ) -> None:
        self._name = f"{prefix}inbox:{secrets.token_hex(8)}"
        self._bell = bell
        self._node = node
        self._at_start = at_start
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._listener: Listener | None = None
        self._subscribed = threading.Event()
        self._closed = threading.Event()
        self.inbox = ""
        """Where to publish for this process; ``""`` until it listens for the first time."""

    @property
    def listening(self) -> bool:
        """Whether messages arrive now."""
        return self._subscribed.is_set()

    def start(self, timeout_ms: int) -> None:
        """Begin to listen, and wait for that, but not longer than ``timeout_ms``."""
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(
                    target=self._serve, name="demijohn-subscriber", daemon=True
                )
                self._thread.start()
        self._subscribed.wait(timeout_ms / 1000)

    def close(self) -> None:
        """Stop listening, and stop the thread."""
        self._closed.set()
        with self._lock:
            thread, listener = self._thread, self._listener
        if listener is not None:
            listener.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_S)
        self._bell.ring_all()

    def _serve(self) -> None:
        failures = 0
        while not self._closed.is_set():
            started = time.monotonic()
            try:
                self._listen()
            except StoreError as error:
                if not self._closed.is_set():
                    self._complain(error, failures)
            finally:
                self._hang_up()
            # A connection that held for a while was a success: begin with short pauses again.
            failures = 0 if time.monotonic() - started > BACKOFF_MAX_S else failures + 1
            self._closed.wait(_pause(failures))

    def _complain(self, error: StoreError, failures: int) -> None:
        if self._subscribed.is_set() or not failures:
            logger.warning("wake-ups are not heard, waiters poll meanwhile: %s", error)

    def _listen(self) -> None:
        node = self._node()
        if not self.inbox:
            self._at_start(node)
        listener = node.listen()
        with self._lock:
            self._listener = listener
        if self._closed.is_set():  # close() came before it could see the listener
            return
        listener.subscribe(self._name)
        if self.inbox:
            logger.info("wake-ups are heard again")
        self.inbox = self._name
        self._subscribed.set()
        self._bell.ring_all()
        self._hear(listener)

    def _hear(self, listener: Listener) -> None:
        pinged = False
        while not self._closed.is_set():
            message = listener.receive(PING_EVERY_S)
            if message is None:
                if pinged:
                    raise StoreError("the connection that hears wake-ups is dead: no answer")
                listener.ping()
                pinged = True
                continue
            pinged = False
            kind, content = message
            if kind == b"message":
                self._bell.ring(content.decode(errors="surrogateescape"))

    def _hang_up(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self._subscribed.clear()
        self._bell.ring_all()


def _pause(failures: int) -> float:
    longest = min(BACKOFF_S * (1 << min(failures, 10)), BACKOFF_MAX_S)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
