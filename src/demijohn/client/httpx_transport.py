"""Safe retries for httpx."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from .policy import Answer, LogicalCall, RetryPolicy

_FAILURES = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)


class _Retrying:
    """What both transports share: everything but the sending and the reading."""

    def __init__(self, policy: RetryPolicy | None, buffer: bool) -> None:
        self._policy = policy or RetryPolicy()
        self._buffer = buffer

    def _call(self, request: httpx.Request) -> LogicalCall:
        """Give the request a key, and begin its logical call.

        A redirect, or a second attempt of an authentication, is made of this request or of a copy
        of its headers, so the key goes with it.
        """
        policy = self._policy
        if request.method in policy.keyed_methods and policy.key_header not in request.headers:
            request.headers[policy.key_header] = policy.new_key()
        keyed = policy.key_header in request.headers
        safe = policy.is_safe(request.method, keyed=keyed)
        return LogicalCall(policy, repeatable=safe and _in_memory(request))

    def _fits(self, request: httpx.Request) -> bool:
        """Whether a body that does not come from memory is small enough to be kept there."""
        length = request.headers.get("Content-Length", "")
        known = length.isdigit() and int(length) <= self._policy.max_replay
        return known and not _in_memory(request)


def _in_memory(request: httpx.Request) -> bool:
    return isinstance(request.stream, httpx.ByteStream)


def _limit(call: LogicalCall, request: httpx.Request) -> None:
    """Give no part of the next attempt more time than the logical call has left."""
    wanted: dict[str, Any] = request.extensions.get("timeout", {})
    names = ("connect", "read", "write", "pool")
    limited = {name: call.limited(wanted.get(name)) for name in names}
    request.extensions = {**request.extensions, "timeout": limited}


def _answer(response: httpx.Response, body: bytes) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, body)


def _with_body(response: httpx.Response, body: bytes) -> httpx.Response:
    """Return the response with a body as it was sent, which the client will decode."""
    return httpx.Response(
        response.status_code,
        headers=response.headers,
        stream=httpx.ByteStream(body),
        extensions=response.extensions,
    )


def _finished(response: httpx.Response, call: LogicalCall) -> httpx.Response:
    response.extensions = {**response.extensions, "demijohn.attempts": call.attempts}
    return response


class RetryTransport(_Retrying, httpx.BaseTransport):
    """Sends through another transport, and again where that is safe and may help.

    Give it to a client of your own: ``httpx.Client(transport=RetryTransport())``. The response's
    ``extensions["demijohn.attempts"]`` says how many attempts there were.

    Args:
        policy: how to retry.
        transport: what sends; an ``HTTPTransport`` by default.
        buffer: read each body here, so that one that breaks off is retried too. ``False`` for
            bodies that must be handed over while they arrive; their heads are retried all the same.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        buffer: bool = True,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(policy, buffer)
        self._transport = transport or httpx.HTTPTransport()
        self._sleep = sleep

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request``.

        Raises:
            httpx.TransportError: the last attempt failed.
        """
        if self._fits(request):
            request.read()
        call = self._call(request)
        while True:
            _limit(call, request)
            try:
                response, body = self._read(self._transport.handle_request(request))
            except _FAILURES as error:
                pause = call.after_failure(error)
                if pause is None:
                    raise
            else:
                pause = call.after_answer(_answer(response, body))
                if pause is None:
                    return _finished(response, call)
                response.close()
            self._sleep(pause)

    def _read(self, response: httpx.Response) -> tuple[httpx.Response, bytes]:
        if not self._buffer:
            return response, b""
        try:
            body = b"".join(response.stream)  # type: ignore[arg-type]
        finally:
            response.close()
        return _with_body(response, body), body

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


class AsyncRetryTransport(_Retrying, httpx.AsyncBaseTransport):
    """As :class:`RetryTransport`, for ``httpx.AsyncClient``; under asyncio unless ``sleep`` says
    otherwise.

    Args:
        policy: how to retry.
        transport: what sends; an ``AsyncHTTPTransport`` by default.
        buffer: see :class:`RetryTransport`.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        buffer: bool = True,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(policy, buffer)
        self._transport = transport or httpx.AsyncHTTPTransport()
        self._sleep = sleep

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request``.

        Raises:
            httpx.TransportError: the last attempt failed.
        """
        if self._fits(request):
            await request.aread()
        call = self._call(request)
        while True:
            _limit(call, request)
            try:
                response, body = await self._read(
                    await self._transport.handle_async_request(request)
                )
            except _FAILURES as error:
                pause = call.after_failure(error)
                if pause is None:
                    raise
            else:
                pause = call.after_answer(_answer(response, body))
                if pause is None:
                    return _finished(response, call)
                await response.aclose()
            await self._sleep(pause)

    async def _read(self, response: httpx.Response) -> tuple[httpx.Response, bytes]:
        if not self._buffer:
            return response, b""
        try:
            stream: Any = response.stream
            body = b"".join([part async for part in stream])
        finally:
            await response.aclose()
        return _with_body(response, body), body

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()
