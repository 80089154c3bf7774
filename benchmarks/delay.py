"""A network that takes its time: a TCP proxy that holds back what it passes on, and no more.

Each byte leaves half a round trip after it came, in either direction, in its order, however many
there are: the bandwidth has no limit. The proxy is a process of its own, so that it takes no turns
with who measures.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import selectors
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Final, cast

HOST: Final = "127.0.0.1"
_SPAWN: Final = multiprocessing.get_context("spawn")


@contextmanager
def delayed(ways: Sequence[tuple[int, float]]) -> Iterator[list[int]]:
    """Give ports that lead to others.

    Args:
        ways: for each the port that it leads to, and the time of a round trip in milliseconds.
    """
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_serve, args=(tuple(ways), theirs), daemon=True)
    process.start()
    theirs.close()  # so that the pipe breaks if that process ends
    try:
        yield ours.recv()
    finally:
        ours.close()
        process.join(5)


def _serve(ways: Sequence[tuple[int, float]], pipe: Connection) -> None:
    # epoll waits for whole milliseconds, select does not.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        loop.run_until_complete(_pass_on(ways, pipe))
    finally:
        loop.close()


async def _pass_on(ways: Sequence[tuple[int, float]], pipe: Connection) -> None:
    loop, ports, ended = asyncio.get_running_loop(), [], asyncio.Event()
    for port, rtt_ms in ways:
        server = await loop.create_server(partial(_Near, port, rtt_ms / 2000), HOST, 0)
        ports.append(server.sockets[0].getsockname()[1])
    pipe.send(ports)
    loop.add_reader(pipe.fileno(), ended.set)  # nothing is ever said: it is closed
    await ended.wait()
    loop.remove_reader(pipe.fileno())


class _Side(asyncio.Protocol):
    """One side of a connection: what comes here goes to the other, later.

    Who ends a connection ends both directions of it.

    Args:
        delay_s: how much later.
    """

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._loop = asyncio.get_running_loop()
        self._held: deque[tuple[float, bytes | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._to: asyncio.Transport | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the connection; asyncio has told its socket not to wait for more."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hold ``data`` back."""
        self._hold(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Hold back the end as well."""
        self._hold(None)

    def _hold(self, data: bytes | None) -> None:
        self._held.append((self._loop.time() + self._delay_s, data))
        self._wait()

    def lead(self, to: asyncio.Transport) -> None:
        """Pass on to the other side, now that it is there."""
        self._to = to
        self._wait()

    def _wait(self) -> None:
        # One timer at a time: of two that are due together the later could come first.
        if self._held and self._to is not None and self._timer is None:
            self._timer = self._loop.call_at(self._held[0][0], self._pass_on, self._to)

    def _pass_on(self, to: asyncio.Transport) -> None:
        self._timer = None
        now = self._loop.time()
        while self._held and self._held[0][0] <= now:
            data = self._held.popleft()[1]
            if data is None:
                to.close()
            elif not to.is_closing():
                to.write(data)
        self._wait()


class _Near(_Side):
    """The side of who connects; connects to the far one in turn."""

    def __init__(self, port: int, delay_s: float) -> None:
        super().__init__(delay_s)
        self._port = port
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect to the far side."""
        super().connection_made(transport)
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        near = cast("asyncio.Transport", self.transport)
        try:
            transport, far = await self._loop.create_connection(
                lambda: _Side(self._delay_s), HOST, self._port
            )
        except OSError:
            near.abort()
            return
        far.lead(near)
        self.lead(transport)
