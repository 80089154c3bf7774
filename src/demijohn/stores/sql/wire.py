"""Connections to PostgreSQL whose calls end in time, and one that hears."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from typing import Any, Final

import psycopg

from demijohn.errors import StoreUnavailable

_DEAF: Final = "the connection that hears wake-ups is dead"
_READABLE: Final = select.POLLIN | select.POLLHUP | select.POLLERR
_WRITABLE: Final = select.POLLOUT | select.POLLHUP | select.POLLERR


class BoundedConnection(psycopg.Connection[Any]):
    """A connection whose calls end in time, also if the server hangs.

    The server's own timeouts do not help against a server that was stopped, and the kernel's
    (``tcp_user_timeout``) not against one whose kernel still answers.
    """

    _deadline = 0.0

    def limit(self, seconds: float) -> None:
        """See :meth:`Bounded.limit`."""
        self._deadline = time.monotonic() + seconds

    def wait(self, gen: Any, *_: object, **__: object) -> Any:
        """Do what a call needs, until the deadline; then, or if interrupted, close the connection.

        An answer that comes later must not be taken for that of the next call.
        """
        try:
            return _drive(gen, self.pgconn.socket, self._deadline)
        except psycopg.Error:
            raise
        except BaseException as error:
            self.pgconn.finish()
            if isinstance(error, TimeoutError):
                raise psycopg.OperationalError("no answer within the deadline") from error
            raise


def _drive(gen: Any, descriptor: int, deadline: float) -> Any:
    poll = select.poll()
    try:
        wanted = next(gen)
        while True:
            events = (_READABLE if wanted & 1 else 0) | (_WRITABLE if wanted & 2 else 0)
            poll.register(descriptor, events)
            ready = poll.poll(max(deadline - time.monotonic(), 0) * 1000)
            if not ready:
                raise TimeoutError
            happened = ready[0][1]
            can = (1 if happened & _READABLE else 0) | (2 if happened & _WRITABLE else 0)
            wanted = gen.send(can & wanted)
    except StopIteration as end:
        return end.value


class Line:
    """A connection of its own that hears what is notified.

    Args:
        connection: in autocommit mode.
        timeout_s: how long the server has for an answer, in seconds.
    """

    def __init__(self, connection: BoundedConnection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._heard: list[str] = []
        self._woken, self._waker = socket.socketpair()

    def listen(self, inbox: str) -> None:
        """See :meth:`listener.Line.listen`."""
        self._connection.add_notify_handler(lambda notice: self._heard.append(notice.payload))
        self._ask(f'LISTEN "{inbox}"')

    def ping(self) -> None:
        """See :meth:`listener.Line.ping`."""
        self._ask("SELECT 1")

    def _ask(self, statement: str) -> None:
        self._connection.limit(self._timeout_s)
        try:
            self._connection.execute(statement.encode())
        except psycopg.Error as error:
            raise StoreUnavailable(f"{_DEAF}: {error}") from error

    def receive(self, seconds: float) -> Sequence[str]:
        """See :meth:`listener.Line.receive`."""
        if not self._heard:
            poll = select.poll()
            poll.register(self._connection.fileno(), select.POLLIN)
            poll.register(self._woken.fileno(), select.POLLIN)
            ready = [descriptor for descriptor, _ in poll.poll(seconds * 1000)]
            if self._connection.fileno() in ready:
                self._take_in()
        heard, self._heard = self._heard, []
        return heard

    def _take_in(self) -> None:
        server = self._connection.pgconn
        try:
            server.consume_input()
        except psycopg.Error as error:
            raise StoreUnavailable(f"{_DEAF}: {error}") from error
        while (notice := server.notifies()) is not None:
            self._heard.append(notice.extra.decode())

    def wake(self) -> None:
        """See :meth:`listener.Line.wake`."""
        self._waker.send(b"!")

    def close(self) -> None:
        """See :meth:`listener.Line.close`."""
        self._connection.close()
        self._woken.close()
        self._waker.close()
