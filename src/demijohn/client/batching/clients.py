"""Explicit batches over a client of httpx."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Generic, Self, TypedDict, TypeVar, Unpack
from urllib.parse import urljoin

import httpx

from ...core.batch import Answer
from .admission import Endpoint
from .deferred import Settled, Waiting, is_pending, reject, resolve
from .entries import Entry
from .envelope import Outgoing, Reply
from .flow import Engine, World, step
from .httpx_messages import (
    admit,
    answer_of,
    error_of,
    extensions_of,
    reply_of,
    response_of,
)
from .queue import Act, Alone, Pause, Queue, Told
from .settings import Options, Settings

C = TypeVar("C", httpx.Client, httpx.AsyncClient)


class BatchedHttpxResponse(Settled, httpx.Response):
    """A response of httpx that came in a batch."""


class _Waiting(Waiting, BatchedHttpxResponse):
    """The same, before it is there."""

    _settled = BatchedHttpxResponse


class HttpxOptions(TypedDict, total=False):
    """What ``httpx.Client.build_request`` takes, and what a part of a JSON batch says of others.

    Args:
        id: by which others in the batch refer to this request.
        group: the atomicity group: all requests in it succeed, or none.
        depends_on: ids and groups that must have succeeded, else this one is not run.
    """

    content: Any
    data: Any
    files: Any
    json: Any
    params: Any
    headers: Any
    cookies: Any
    timeout: Any
    extensions: Any
    id: str
    group: str
    depends_on: tuple[str, ...] | list[str]


@dataclass(slots=True, eq=False)
class _Item:
    """A request that is queued."""

    client: httpx.Client | httpx.AsyncClient
    request: httpx.Request
    response: _Waiting
    entry: Entry | None = None
    failure: Exception | None = None
    began: float = 0.0
    outcome: httpx.Response | Exception | None = None

    def settle(self, answer: Answer) -> None:
        """See to what a client does with a response: cookies and the time that it took."""
        response = response_of(answer)
        response.request = self.request
        response.elapsed = timedelta(seconds=time.perf_counter() - self.began)
        try:
            response.read()
        except httpx.DecodingError as error:
            self.fail(error)
            return
        self.client.cookies.extract_cookies(response)
        resolve(self.response, response)

    def settle_singly(self) -> None:
        """Hand over what a client has answered, or raised."""
        if isinstance(self.outcome, httpx.Response):
            resolve(self.response, self.outcome)
        elif self.outcome is not None:
            self.fail(self.outcome)

    def fail(self, error: Exception) -> None:
        """Let the response raise ``error``."""
        self.failure = error_of(error, self.request)
        reject(self.response, self.failure)

    def is_open(self) -> bool:
        """Whether the response is neither there nor failed."""
        return is_pending(self.response)


class _Batching(Generic[C]):
    """What both have in common: everything but the sending."""

    def __init__(self, client: C, url: str, settings: Settings, world: World | None) -> None:
        self.client: C = client
        """What sends."""
        # The client knows to what a relative URL is relative.
        absolute = str(client.build_request("POST", url).url)
        self._engine = Engine(Endpoint(absolute, settings), world)
        self._queue: Queue[_Item] = Queue(self._engine)

    def get(self, url: str, **options: Unpack[HttpxOptions]) -> BatchedHttpxResponse:
        """Queue a GET; see :meth:`request`."""
        return self.request("GET", url, **options)

    def options(self, url: str, **options: Unpack[HttpxOptions]) -> BatchedHttpxResponse:
        """Queue an OPTIONS; see :meth:`request`."""
        return self.request("OPTIONS", url, **options)

    def head(self, url: str, **options: Unpack[HttpxOptions]) -> BatchedHttpxResponse:
        """Queue a HEAD; see :meth:`request`."""
        return self.request("HEAD", url, **options)

    def post(self, url: str, **options: Unpack[HttpxOptions]) -> BatchedHttpxResponse:
        """Queue a POST; see :meth:`request`."""
        return self.request("POST", url, **options)

    def put(self, url: str, **options: Unpack[HttpxOptions]) -> BatchedHttpxResponse:
        """Queue a PUT; see :meth:`request`."""
        return self.request("PUT", url, **options)

    def patch(self, url: str, **options: Unpack[HttpxOptions]) -> BatchedHttpxResponse:
        """Queue a PATCH; see :meth:`request`."""
        return self.request("PATCH", url, **options)

    def delete(self, url: str, **options: Unpack[HttpxOptions]) -> BatchedHttpxResponse:
        """Queue a DELETE; see :meth:`request`."""
        return self.request("DELETE", url, **options)

    def request(
        self, method: str, url: str, **options: Unpack[HttpxOptions]
    ) -> BatchedHttpxResponse:
        """Queue a request.

        Args:
            method: of the request.
            url: absolute, or relative to the client's ``base_url``, or else to the batch.
            options: those of ``httpx.Client.build_request``; in JSON batches also ``id``,
                ``group`` and ``depends_on``.

        Returns:
            Its response, to be used when it was sent.

        Raises:
            ValueError: it depends on something that is not in the queue.
        """
        given: dict[str, Any] = dict(options)
        name, group = given.pop("id", None), given.pop("group", None)
        depends_on = given.pop("depends_on", ())
        if not str(self.client.base_url):
            url = urljoin(self._engine.endpoint.url, url)
        request = self.client.build_request(method.upper(), url, **given)
        item = _Item(self.client, request, _Waiting())
        item.entry = admit(self._engine.endpoint, request)
        if item.entry is not None:
            item.entry.owner = item
        self._make_room(item.entry)
        self._queue.relate(item.entry, id=name, group=group, depends_on=depends_on)
        self._queue.add(item)
        self._make_room(None)
        return item.response

    def _make_room(self, entry: Entry | None) -> None:
        """Send, if that can be done here, what leaves no room for ``entry``."""

    def _outer(self, outgoing: Outgoing) -> httpx.Request:
        began = time.perf_counter()
        items = [each.owner for each in outgoing.entries if isinstance(each.owner, _Item)]
        for item in items:
            item.began = began
        request: httpx.Request = self.client.build_request(
            "POST",
            self._engine.endpoint.url,
            headers=outgoing.fields,
            content=outgoing.body,
            extensions=extensions_of([item.request for item in items]),
        )
        return request


def _keyed(act: Alone[_Item]) -> httpx.Request:
    request = act.item.request
    act.item.began = time.perf_counter()
    if act.field is not None:
        request.headers[act.field[0]] = act.field[1]
    return request


class HttpxBatching(_Batching[httpx.Client]):
    """Queues requests, and sends them as one at the end of the block.

    ::

        with HttpxBatching(client, "/batch") as b:
            alice = b.patch("/people/alice", json={"age": 30})
            bob = b.patch("/people/bob", json={"age": 31})
        alice.json()

    What a method returns is an ``httpx.Response``; to use it before it was sent raises
    :class:`BatchPending`. A batch is also sent when ``max_parts`` requests are queued, or so many
    that the next one would exceed ``max_bytes``. Authentication and event hooks of the client see
    the batch, cookies are taken from each response, redirects of a part are not followed. A block
    that is left by an exception sends nothing, and what was sent is never sent again. It is for
    one thread.

    Args:
        client: sends the batches.
        url: of the batch resource.
        sleep: waits for seconds, before something is sent again.
        world: clocks and chance.
        options: see :class:`~demijohn.client.batching.settings.Settings`.

    Raises:
        ValueError: the URL is not absolute, or an option is out of range.
    """

    def __init__(
        self,
        client: httpx.Client,
        url: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
        world: World | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(client, url, Settings(**options), world)
        self._sleep = sleep

    def _make_room(self, entry: Entry | None) -> None:
        if self._queue.is_full(entry):
            self.flush()

    def flush(self) -> None:
        """Send what is queued.

        Raises:
            httpx.RequestError: all of it failed. Where only some did, their responses raise it
                when they are used.
        """
        with closing(self._queue.flush()) as flush:
            told: Told = None
            while (act := step(flush, told)) is not None:
                told = self._do(act)

    def _do(self, act: Act[_Item]) -> Told:
        if isinstance(act, Pause):
            self._sleep(act.seconds)
            return None
        return self._send(act) if isinstance(act, Outgoing) else self._send_alone(act)

    def _send(self, outgoing: Outgoing) -> Reply:
        pieces: list[bytes] = []
        failure: Exception | None = None
        try:
            response = self.client.send(self._outer(outgoing), stream=True, follow_redirects=False)
        except Exception as error:  # noqa: BLE001 - the caller of each request is told
            return Reply(0, error=error)
        try:
            pieces.extend(response.iter_bytes())  # what comes before an error stays in it
        except Exception as error:  # noqa: BLE001 - likewise; what has arrived is good
            failure = error
        finally:
            response.close()
        return reply_of(response, pieces, failure)

    def _send_alone(self, act: Alone[_Item]) -> Answer | Exception:
        try:
            response = self.client.send(_keyed(act))
        except Exception as error:  # noqa: BLE001 - the caller of the request is told
            act.item.outcome = error
            return error
        act.item.outcome = response
        return answer_of(response)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._queue.discard()


class AsyncHttpxBatching(_Batching[httpx.AsyncClient]):
    """As :class:`HttpxBatching`, with ``async with`` and ``await b.flush()``.

    The methods that queue are ordinary ones, so they send nothing by themselves: at the end of the
    block, or by ``flush()``, there are as many batches as it takes.

    Args:
        client: sends the batches.
        url: of the batch resource.
        sleep: waits for seconds; asyncio's by default, so give ``trio.sleep`` under Trio.
        world: clocks and chance.
        options: see :class:`~demijohn.client.batching.settings.Settings`.

    Raises:
        ValueError: the URL is not absolute, or an option is out of range.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        world: World | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(client, url, Settings(**options), world)
        self._sleep = sleep

    async def flush(self) -> None:
        """Send what is queued.

        Raises:
            httpx.RequestError: all of it failed; see :meth:`HttpxBatching.flush`.
        """
        with closing(self._queue.flush()) as flush:
            told: Told = None
            while (act := step(flush, told)) is not None:
                told = await self._do(act)

    async def _do(self, act: Act[_Item]) -> Told:
        if isinstance(act, Pause):
            await self._sleep(act.seconds)
            return None
        if isinstance(act, Outgoing):
            return await self._send(act)
        return await self._send_alone(act)

    async def _send(self, outgoing: Outgoing) -> Reply:
        pieces: list[bytes] = []
        failure: Exception | None = None
        request = self._outer(outgoing)
        try:
            response = await self.client.send(request, stream=True, follow_redirects=False)
        except Exception as error:  # noqa: BLE001 - the caller of each request is told
            return Reply(0, error=error)
        try:
            async for piece in response.aiter_bytes():
                pieces.append(piece)  # noqa: PERF401 - what comes before an error must stay
        except Exception as error:  # noqa: BLE001 - likewise; what has arrived is good
            failure = error
        finally:
            await response.aclose()
        return reply_of(response, pieces, failure)

    async def _send_alone(self, act: Alone[_Item]) -> Answer | Exception:
        try:
            response = await self.client.send(_keyed(act))
        except Exception as error:  # noqa: BLE001 - the caller of the request is told
            act.item.outcome = error
            return error
        act.item.outcome = response
        return answer_of(response)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                await self.flush()
        finally:
            self._queue.discard()
