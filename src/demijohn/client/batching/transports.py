"""Batches under httpx: the requests of several threads, from ordinary code."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, Unpack

import httpx

from .admission import Endpoint
from .entries import Again, Answered, Entry, Failed, Singly
from .envelope import Outgoing, Reply
from .flow import Engine, World, drive
from .httpx_messages import (
    admit,
    answer_of,
    error_of,
    outer,
    reply_of,
    response_of,
)
from .meeting import Meeting
from .settings import Options, Settings

MAX_DELAY_S: Final = 0.002


def finished(verdict: Answered | Failed, request: httpx.Request) -> httpx.Response:
    """Return the response to ``request``, or raise its error."""
    if isinstance(verdict, Answered):
        return response_of(verdict.answer, whole=verdict.whole)
    raise error_of(verdict.error, request)


class BatchTransport(httpx.BaseTransport):
    """Sends the requests that several threads make at the same time as one.

    Give it to a client that they share: ``httpx.Client(transport=BatchTransport(url))``. The first
    of them waits ``max_delay`` for others; a client that is used by one thread alone gains nothing
    and pays that delay, so use ``HttpxBatching`` there. What can be no part of a batch goes
    through at once: requests to another origin, streamed and large bodies, ``Range``, ``Upgrade``,
    event streams, and those with ``extensions={"batch": False}``.

    ``RetryTransport`` may be around it, and then tries each request again in a later batch, or
    inside of it, and then tries the batch as a whole again.

    Args:
        url: of the batch resource.
        transport: what sends; an ``HTTPTransport`` by default.
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
        transport: httpx.BaseTransport | None = None,
        max_delay: float = MAX_DELAY_S,
        sleep: Callable[[float], None] = time.sleep,
        world: World | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._engine = Engine(Endpoint(url, Settings(**options)), world)
        self._transport = transport or httpx.HTTPTransport()
        self._meeting = Meeting(self._engine.settings, max_delay)
        self._sleep = sleep

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request``, in a batch if it can be part of one.

        Raises:
            BatchProtocolError: the answer to the batch has none, or two, of this request.
            httpx.TransportError: the exchange failed.
        """
        entry = admit(self._engine.endpoint, request)
        if entry is None:
            return self._transport.handle_request(request)
        while True:
            entry.verdict = None
            if not self._engine.absent:
                self._meeting.attend(entry, self._carry)
            found = self._outcome(entry, request)
            if not isinstance(found, Again):
                return found
            self._sleep(found.delay_s)

    def _outcome(self, entry: Entry, request: httpx.Request) -> httpx.Response | Again:
        verdict = entry.verdict
        if verdict is None or isinstance(verdict, Singly):
            return self._singly(entry, request)
        if isinstance(verdict, Again):
            return verdict
        return finished(verdict, request)

    def _carry(self, entries: list[Entry]) -> None:
        if self._engine.goes_singly(entries):
            for entry in entries:
                entry.verdict = Singly()
            return
        try:
            drive(self._engine.exchange(entries), self._send)
        finally:
            self._engine.close(entries)

    def _send(self, outgoing: Outgoing) -> Reply:
        request = outer(self._engine.endpoint.url, outgoing)
        pieces: list[bytes] = []
        failure: Exception | None = None
        try:
            response = self._transport.handle_request(request)
        except Exception as error:  # noqa: BLE001 - every caller of the batch is told
            return Reply(0, error=error)
        try:
            response.request = request
            pieces.extend(response.iter_bytes())  # what comes before an error stays in it
        except Exception as error:  # noqa: BLE001 - likewise; what has arrived is good
            failure = error
        finally:
            response.close()
        return reply_of(response, pieces, failure)

    def _singly(self, entry: Entry, request: httpx.Request) -> httpx.Response | Again:
        key = self._engine.single(entry)
        if key is not None:
            request.headers[key[0]] = key[1]
        try:
            response = self._transport.handle_request(request)
        except httpx.TransportError as error:
            verdict = self._engine.judge_single(entry, error)
            if isinstance(verdict, Again):
                return verdict
            raise
        verdict = self._engine.judge_single(entry, answer_of(response))
        if not isinstance(verdict, Again):
            return response
        response.close()
        return verdict

    def __enter__(self) -> Self:
        self._transport.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._meeting.close()
        self._transport.__exit__(kind, error, trace)

    def close(self) -> None:
        """Send what waits for others, and close the connections."""
        self._meeting.close()
        self._transport.close()
