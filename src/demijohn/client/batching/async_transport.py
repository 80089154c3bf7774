"""Batches under httpx: the requests of several tasks, from ordinary code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, Unpack

import httpx

from .admission import Endpoint
from .entries import Again, Entry, Singly
from .envelope import Outgoing, Reply
from .flow import Engine, World, drive_async
from .httpx_messages import admit, answer_of, outer, reply_of
from .settings import Options, Settings
from .transports import MAX_DELAY_S, finished


@dataclass(slots=True, eq=False)
class _Gathering:
    """A batch that is being gathered, or sent, in one event loop."""

    entries: dict[Entry, asyncio.Future[None]] = field(default_factory=dict)
    size: int = 0
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None

    def leave(self, entry: Entry) -> None:
        """Forget a caller who was cancelled; with the last one the sending ends too."""
        if self.task is None:
            del self.entries[entry]
        elif all(future.done() for future in self.entries.values()):
            self.task.cancel()


class AsyncBatchTransport(httpx.AsyncBaseTransport):
    """Sends the requests that several tasks make at the same time as one.

    ``httpx.AsyncClient(transport=AsyncBatchTransport(url))``: a hundred requests under
    ``asyncio.gather`` are one. It is for asyncio; under Trio every request goes by itself. A task
    that is cancelled takes nothing from the others, and with the last one the batch is given up.
    See :class:`BatchTransport` for what is no part of a batch, and for retries.

    Args:
        url: of the batch resource.
        transport: what sends; an ``AsyncHTTPTransport`` by default.
        max_delay: how long to wait for others, in seconds.
        sleep: waits for seconds, before a request is sent again.
        world: clocks and chance.
        options: see :class:`~demijohn.client.batching.settings.Settings`.

    Raises:
        ValueError: the URL is not absolute, or an option is out of range.
    """

    def __init__(
        self,
        url: str,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        max_delay: float = MAX_DELAY_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        world: World | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._engine = Engine(Endpoint(url, Settings(**options)), world)
        self._transport = transport or httpx.AsyncHTTPTransport()
        self._max_delay = max_delay
        self._sleep = sleep
        self._open: dict[Hashable, _Gathering] = {}
        self._sending: set[asyncio.Task[None]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request``, in a batch if it can be part of one.

        Raises:
            BatchProtocolError: the answer to the batch has none, or two, of this request.
            httpx.TransportError: the exchange failed.
        """
        entry = admit(self._engine.endpoint, request) if _in_asyncio() else None
        if entry is None:
            return await self._transport.handle_async_request(request)
        while True:
            entry.verdict = None
            if not self._engine.absent:
                await self._attend(entry)
            found = await self._outcome(entry, request)
            if not isinstance(found, Again):
                return found
            await self._sleep(found.delay_s)

    async def _attend(self, entry: Entry) -> None:
        """Return when a batch with ``entry`` was carried."""
        loop = asyncio.get_running_loop()
        meets = (loop, entry.meets)
        gathering = self._join(entry, meets, loop)
        future = gathering.entries[entry]
        try:
            await future
        except asyncio.CancelledError:
            gathering.leave(entry)
            raise

    def _join(self, entry: Entry, meets: Hashable, loop: asyncio.AbstractEventLoop) -> _Gathering:
        settings = self._engine.settings
        found = self._open.get(meets)
        if found is not None and found.size + entry.size > settings.max_bytes:
            self._depart(meets, found, loop)
            found = None
        if found is None:
            found = self._open[meets] = _Gathering()
            found.timer = loop.call_later(self._max_delay, self._depart, meets, found, loop)
        found.entries[entry] = loop.create_future()
        found.size += entry.size
        if len(found.entries) >= settings.max_parts:
            self._depart(meets, found, loop)
        return found

    def _depart(
        self, meets: Hashable, gathering: _Gathering, loop: asyncio.AbstractEventLoop
    ) -> None:
        if self._open.get(meets) is gathering:
            del self._open[meets]
        if gathering.timer is not None:
            gathering.timer.cancel()
        if gathering.entries and gathering.task is None:
            gathering.task = loop.create_task(self._carry(gathering))
            self._sending.add(gathering.task)
            gathering.task.add_done_callback(self._sending.discard)

    async def _carry(self, gathering: _Gathering) -> None:
        entries = list(gathering.entries)
        try:
            if self._engine.goes_singly(entries):
                for entry in entries:
                    entry.verdict = Singly()
            else:
                await drive_async(self._engine.exchange(entries), self._send)
        finally:
            self._engine.close(entries)
            for future in gathering.entries.values():
                if not future.done():
                    future.set_result(None)

    async def _outcome(self, entry: Entry, request: httpx.Request) -> httpx.Response | Again:
        verdict = entry.verdict
        if verdict is None or isinstance(verdict, Singly):
            return await self._singly(entry, request)
        if isinstance(verdict, Again):
            return verdict
        return finished(verdict, request)

    async def _send(self, outgoing: Outgoing) -> Reply:
        request = outer(self._engine.endpoint.url, outgoing)
        pieces: list[bytes] = []
        failure: Exception | None = None
        try:
            response = await self._transport.handle_async_request(request)
        except Exception as error:  # noqa: BLE001 - every caller of the batch is told
            return Reply(0, error=error)
        try:
            response.request = request
            async for piece in response.aiter_bytes():
                pieces.append(piece)  # noqa: PERF401 - what comes before an error must stay
        except Exception as error:  # noqa: BLE001 - likewise; what has arrived is good
            failure = error
        finally:
            await response.aclose()
        return reply_of(response, pieces, failure)

    async def _singly(self, entry: Entry, request: httpx.Request) -> httpx.Response | Again:
        key = self._engine.single(entry)
        if key is not None:
            request.headers[key[0]] = key[1]
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.TransportError as error:
            verdict = self._engine.judge_single(entry, error)
            if isinstance(verdict, Again):
                return verdict
            raise
        verdict = self._engine.judge_single(entry, answer_of(response))
        if not isinstance(verdict, Again):
            return response
        await response.aclose()
        return verdict

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self._finish()
        await self._transport.__aexit__(kind, error, trace)

    async def aclose(self) -> None:
        """Send what waits for others, and close the connections."""
        await self._finish()
        await self._transport.aclose()

    async def _finish(self) -> None:
        if not _in_asyncio():
            return
        loop = asyncio.get_running_loop()
        for meets, gathering in list(self._open.items()):
            self._depart(meets, gathering, loop)
        await asyncio.gather(*self._sending, return_exceptions=True)


def _in_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
