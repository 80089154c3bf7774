"""How one process hears the wake-ups of all its waiters over one connection to PostgreSQL.

Theory of operation. The process has an inbox, a channel with a random name, and one thread that
listens on it from the first wait on. Who begins a key that is busy leaves the inbox in the row; who
ends the run notifies each inbox in the same transaction; the thread rings the process's bell.

Nothing is missed: a first waiter looks again after LISTEN was confirmed, and whenever the
connection was down everybody looks again, when it goes down and when it is back. While it is down
waiters poll. A connection that is dead without saying so is found by a ping.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from demijohn.errors import StoreError
from demijohn.stores.bell import Bell

logger: Final = logging.getLogger("demijohn.stores")

POLL_MS: Final = 100
PING_EVERY_S: Final = 2.0
BACKOFF_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0
JOIN_S: Final = 2.0


class Line(Protocol):
    """A connection that hears."""

    def listen(self, inbox: str) -> None:
        """Begin to listen, and have that confirmed."""
        ...

    def receive(self, seconds: float) -> Sequence[str]:
        """Wait for messages; return none if there were none in time, or after :meth:`wake`."""
        ...

    def ping(self) -> None:
        """Find out whether the server answers."""
        ...

    def wake(self) -> None:
        """End :meth:`receive`; any thread may call it."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Listener:
    """The inbox of this process.

    Args:
        dial: makes a connection; raises StoreError.
        bell: is rung with each message.
        patience_ms: how long the first waiter waits for the connection, in milliseconds.
    """

    def __init__(self, dial: Callable[[], Line], bell: Bell, patience_ms: int) -> None:
        self._name = f"demijohn_{secrets.token_hex(8)}"
        self._dial = dial
        self._bell = bell
        self._patience_ms = patience_ms
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._line: Line | None = None
        self._listening = threading.Event()
        self._closed = threading.Event()
        self.inbox = ""
        """Where to notify this process; ``""`` until it listens for the first time."""

    def saw(self, key: str, version: int) -> None:
        """See :meth:`Ear.saw`; who listens is told."""

    def wait(self, key: str, since: int, timeout_ms: int) -> bool:
        """See :meth:`Store.wait`.

        The first wait of a process only learns to hear, and says "look again": what it looked at
        has not been told where to call. While wake-ups cannot be heard a wait is short, and says
        the same.
        """
        if not self.inbox:
            self._start(min(timeout_ms, self._patience_ms))
            return True
        if not self._listening.is_set():
            self._bell.wait(key, since, min(timeout_ms, POLL_MS))
            return True
        return self._bell.wait(key, since, timeout_ms)

    def _start(self, timeout_ms: int) -> None:
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(
                    target=self._serve, name="demijohn-sql-listener", daemon=True
                )
                self._thread.start()
        self._listening.wait(timeout_ms / 1000)

    def close(self) -> None:
        """See :meth:`Ear.close`; the thread closes its connection."""
        self._closed.set()
        with self._lock:
            thread, line = self._thread, self._line
            if line is not None:
                line.wake()
        if thread is not None:
            thread.join(JOIN_S)
        self._bell.ring_all()

    def _serve(self) -> None:
        failures = 0
        while not self._closed.is_set():
            started = time.monotonic()
            try:
                self._listen()
            except StoreError as error:
                if self._listening.is_set() or not failures:
                    logger.warning("wake-ups are not heard, waiters poll meanwhile: %s", error)
            finally:
                self._hang_up()
            # A connection that held for a while was a success: begin with short pauses again.
            failures = 0 if time.monotonic() - started > BACKOFF_MAX_S else failures + 1
            self._closed.wait(_pause(failures))

    def _listen(self) -> None:
        line = self._dial()
        with self._lock:
            self._line = line
        line.listen(self._name)
        if self.inbox:
            logger.info("wake-ups are heard again")
        self.inbox = self._name
        self._listening.set()
        self._bell.ring_all()
        while not self._closed.is_set():
            messages = line.receive(PING_EVERY_S)
            for message in messages:
                self._bell.ring(message)
            if not messages and not self._closed.is_set():
                line.ping()

    def _hang_up(self) -> None:
        with self._lock:
            line, self._line = self._line, None
            if line is not None:
                line.close()
        self._listening.clear()
        self._bell.ring_all()


def _pause(failures: int) -> float:
    longest = min(BACKOFF_S * (1 << min(failures, 10)), BACKOFF_MAX_S)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
