"""Safe retries for httpx."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import httpx

from .httpx_bodies import Rewind, hands_over_unread, in_memory, rewinding, with_body
from .policy import Answer, LogicalCall, RetryPolicy, is_problem_type

BUFFER: Final = "demijohn.buffer"
ATTEMPTS: Final = "demijohn.attempts"

_FAILURES: Final = (
    httpx.NetworkError,
    httpx.TimeoutException,
    httpx.RemoteProtocolError,
    httpx.ProxyError,
)
# After these the client sends the same body once more, to another address or with credentials.
_SENT_AGAIN: Final = frozenset({307, 308, 401})


@dataclass(slots=True)
class _Exchange:
    """One logical call: the request, its attempts, and how its body is sent again."""

    request: httpx.Request
    call: LogicalCall
    rewind: Rewind | None
    extensions: dict[str, Any]
    buffer: bool

    def limit(self) -> None:
        """Give no part of the next attempt more time than the logical call has left."""
        wanted: dict[str, Any] = self.extensions.get("timeout", {})
        names = ("connect", "read", "write", "pool")
        limited = {name: self.call.limited(wanted.get(name)) for name in names}
        self.request.extensions = {**self.extensions, "timeout": limited}

    def restore(self) -> None:
        """Give the request its own timeouts back, for a redirect or for sending it once more."""
        self.request.extensions = self.extensions

    def again(self) -> None:
        if self.rewind is not None:
            self.rewind()

    def reads(self, response: httpx.Response) -> bool:
        """Whether the body is read here.

        A conflict's problem is read always, because it says whether the conflict will pass.
        """
        if response.status_code == 409 and is_problem_type(_content_type(response)):
            return True
        return self.buffer and not hands_over_unread(response)

    def finished(self, response: httpx.Response) -> httpx.Response:
        if response.status_code in _SENT_AGAIN:
            self.again()
        response.extensions = {**response.extensions, ATTEMPTS: self.call.attempts}
        return response


class _Retrying:
    """What both transports share: everything but the sending and the reading."""

    def __init__(
        self,
        policy: RetryPolicy | None,
        buffer: bool,
        clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self._policy = policy or RetryPolicy()
        self._buffer = buffer
        self._clock = clock
        self._draw = draw

    def _begin(self, request: httpx.Request) -> _Exchange:
        """Give the request a key, and begin its logical call.

        A redirect, or a second attempt of an authentication, is made of this request or of a copy
        of its headers, so the key goes with it.
        """
        policy = self._policy
        if request.method in policy.keyed_methods and policy.key_header not in request.headers:
            request.headers[policy.key_header] = policy.new_key()
        safe = policy.is_safe(request.method, key=request.headers.get(policy.key_header))
        rewind = rewinding(request)
        call = LogicalCall(
            policy, repeatable=safe and rewind is not None, clock=self._clock, draw=self._draw
        )
        extensions = request.extensions
        buffer = bool(extensions.get(BUFFER, self._buffer))
        return _Exchange(request, call, rewind, extensions, buffer)

    def _must_be_kept(self, request: httpx.Request) -> bool:
        """Whether the body can be made only once, and is small enough to be kept in memory."""
        length = request.headers.get("Content-Length", "")
        fits = length.isdigit() and int(length) <= self._policy.max_replay
        return fits and not in_memory(request) and rewinding(request) is None


def _content_type(response: httpx.Response) -> str:
    kind: str = response.headers.get("Content-Type", "")
    return kind


def _answer(response: httpx.Response, body: bytes) -> Answer:
    """Return what matters, with the body decoded where it says something."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    if body and response.status_code >= 400 and "content-encoding" in headers:
        try:
            body = with_body(response, body).read()
        except httpx.DecodingError:
            body = b""
    return Answer(response.status_code, headers, body)


class RetryTransport(_Retrying, httpx.BaseTransport):
    """Sends through another transport, and again where that is safe and may help.

    Give it to a client of your own: ``httpx.Client(transport=RetryTransport())``. The response's
    ``extensions["demijohn.attempts"]`` says how many attempts there were; after a redirect, of its
    last hop. A client that is given a transport leaves ``verify``, ``cert``, ``http2``, ``limits``
    and the proxies of the environment to it, so give those to an ``HTTPTransport``.

    Args:
        policy: how to retry.
        transport: what sends; an ``HTTPTransport`` by default.
        buffer: read each body here, so that one that breaks off is retried too. ``False`` for
            bodies that must be handed over while they arrive; their heads are retried all the same.
            A request's ``extensions={"demijohn.buffer": False}`` says so for that request alone.
            Event streams and switched protocols are never read here.
        sleep: waits for seconds.
        clock: monotonic seconds.
        draw: gives random numbers from 0 to 1.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        buffer: bool = True,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(policy, buffer, clock, draw)
        self._transport = transport or httpx.HTTPTransport()
        self._sleep = sleep

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request``.

        Raises:
            httpx.TransportError: the last attempt failed.
        """
        if self._must_be_kept(request):
            request.read()
        exchange = self._begin(request)
        try:
            return self._exchange(exchange)
        finally:
            exchange.restore()

    def _exchange(self, exchange: _Exchange) -> httpx.Response:
        call = exchange.call
        while True:
            exchange.limit()
            try:
                response, answer = self._attempt(exchange)
            except _FAILURES as error:
                retry = call.after(error)
                if retry is None:
                    raise
            else:
                retry = call.after(answer)
                if retry is None:
                    return exchange.finished(response)
                response.close()
            self._sleep(call.announce(retry))
            exchange.again()

    def _attempt(self, exchange: _Exchange) -> tuple[httpx.Response, Answer]:
        response = self._transport.handle_request(exchange.request)
        if not exchange.reads(response):
            return response, _answer(response, b"")
        try:
            stream: Any = response.stream
            body = b"".join(stream)
        finally:
            response.close()
        return with_body(response, body), _answer(response, body)

    def __enter__(self) -> Self:
        self._transport.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._transport.__exit__(kind, error, trace)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


class AsyncRetryTransport(_Retrying, httpx.AsyncBaseTransport):
    """As :class:`RetryTransport`, for ``httpx.AsyncClient``.

    Args:
        policy: how to retry.
        transport: what sends; an ``AsyncHTTPTransport`` by default.
        buffer: see :class:`RetryTransport`.
        sleep: waits for seconds; asyncio's by default, so give ``trio.sleep`` under Trio.
        clock: monotonic seconds.
        draw: gives random numbers from 0 to 1.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        buffer: bool = True,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(policy, buffer, clock, draw)
        self._transport = transport or httpx.AsyncHTTPTransport()
        self._sleep = sleep

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request``.

        Raises:
            httpx.TransportError: the last attempt failed.
        """
        if self._must_be_kept(request):
            await request.aread()
        exchange = self._begin(request)
        try:
            return await self._exchange(exchange)
        finally:
            exchange.restore()

    async def _exchange(self, exchange: _Exchange) -> httpx.Response:
        call = exchange.call
        while True:
            exchange.limit()
            try:
                response, answer = await self._attempt(exchange)
            except _FAILURES as error:
                retry = call.after(error)
                if retry is None:
                    raise
            else:
                retry = call.after(answer)
                if retry is None:
                    return exchange.finished(response)
                await response.aclose()
            await self._sleep(call.announce(retry))
            exchange.again()

    async def _attempt(self, exchange: _Exchange) -> tuple[httpx.Response, Answer]:
        response = await self._transport.handle_async_request(exchange.request)
        if not exchange.reads(response):
            return response, _answer(response, b"")
        try:
            stream: Any = response.stream
            body = b"".join([part async for part in stream])
        finally:
            await response.aclose()
        return with_body(response, body), _answer(response, body)

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()
