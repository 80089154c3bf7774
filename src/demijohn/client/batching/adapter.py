"""Batches under requests: the requests of several threads, from ordinary code."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Unpack

import requests
from requests.adapters import BaseAdapter, HTTPAdapter

from ..requests_adapter import TimeoutOption
from .admission import Endpoint
from .entries import Again, Answered, Entry, Singly
from .envelope import Outgoing, Reply
from .flow import Engine, World, drive
from .meeting import Meeting
from .requests_messages import (
    answer_of,
    body_of,
    error_of,
    fields_of,
    longest,
    reply_of,
    response_of,
)
from .settings import Options, Settings

MAX_DELAY_S: Final = 0.002
_singly: ContextVar[bool] = ContextVar("demijohn.singly", default=False)


@contextmanager
def singly() -> Iterator[None]:
    """Let requests that are made in this block, in this thread, go by themselves."""
    token = _singly.set(True)
    try:
        yield
    finally:
        _singly.reset(token)


@dataclass(frozen=True, slots=True)
class _Sending:
    """How a request is sent by the adapter within."""

    request: requests.PreparedRequest
    timeout: TimeoutOption
    verify: bool | str
    cert: Any
    proxies: Mapping[str, str] | None

    @property
    def lane(self) -> Hashable:
        return repr((self.verify, self.cert, sorted((self.proxies or {}).items())))

    def options(self) -> dict[str, Any]:
        return {"verify": self.verify, "cert": self.cert, "proxies": self.proxies}


class BatchAdapter(BaseAdapter):
    """Sends the requests that several threads make at the same time as one.

    Mount it on a session that they share: ``session.mount("https://api.example.com/",
    BatchAdapter("https://api.example.com/batch"))``. The first of them waits ``max_delay`` for
    others; one thread alone gains nothing by it, so use ``Batching`` there. What can be no part of
    a batch goes through at once: requests to another origin, ``stream=True``, bodies that are
    files or large, ``Range``, ``Upgrade``, and what is made within
    :func:`~demijohn.client.batching.adapter.singly`.

    ``RetryAdapter`` may be around it, or inside of it, as with ``BatchTransport``.

    Args:
        url: of the batch resource.
        adapter: what sends; an ``HTTPAdapter`` without retries of its own by default.
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
        adapter: BaseAdapter | None = None,
        max_delay: float = MAX_DELAY_S,
        sleep: Callable[[float], None] = time.sleep,
        world: World | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        self._engine = Engine(Endpoint(url, Settings(**options)), world)
        self.inner = adapter or HTTPAdapter(max_retries=0)
        """What sends."""
        self._meeting = Meeting(self._engine.settings, max_delay)
        self._sleep = sleep

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: TimeoutOption = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send ``request``; see ``requests.adapters.BaseAdapter.send`` for the arguments.

        Raises:
            BatchProtocolError: the answer to the batch has none, or two, of this request.
            requests.RequestException: the exchange failed.
        """
        sending = _Sending(request, timeout, verify, cert, proxies)
        entry = None if stream or _singly.get() else self._admit(sending)
        if entry is None:
            return self._pass(sending, stream=stream)
        while True:
            entry.verdict = None
            if not self._engine.absent:
                self._meeting.attend(entry, self._carry)
            found = self._outcome(entry, sending)
            if not isinstance(found, Again):
                return found
            self._sleep(found.delay_s)

    def _admit(self, sending: _Sending) -> Entry | None:
        request = sending.request
        body = body_of(request)
        if body is None:
            return None
        entry = self._engine.endpoint.admit(
            request.method or "GET",
            request.url or "",
            fields_of(request),
            body,
            lane=sending.lane,
        )
        if entry is not None:
            entry.owner = sending
        return entry

    def _outcome(self, entry: Entry, sending: _Sending) -> requests.Response | Again:
        verdict = entry.verdict
        if verdict is None or isinstance(verdict, Singly):
            return self._one(entry, sending)
        if isinstance(verdict, Again):
            return verdict
        if isinstance(verdict, Answered):
            return response_of(verdict.answer, sending.request, self)
        raise error_of(verdict.error, sending.request)

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
        sendings = [each.owner for each in outgoing.entries if isinstance(each.owner, _Sending)]
        headers = {"Accept-Encoding": "gzip, deflate", **dict(outgoing.fields)}
        request = requests.Request(
            "POST", self._engine.endpoint.url, headers=headers, data=outgoing.body
        ).prepare()
        timeout = longest([each.timeout for each in sendings])
        options = sendings[0].options()
        try:
            response = self.inner.send(request, stream=True, timeout=timeout, **options)
        except Exception as error:  # noqa: BLE001 - every caller of the batch is told
            return Reply(0, error=error)
        return reply_of(response)

    def _pass(self, sending: _Sending, *, stream: bool) -> requests.Response:
        timeout: Any = sending.timeout
        response = self.inner.send(
            sending.request, stream=stream, timeout=timeout, **sending.options()
        )
        # An authentication that answers a 401 sends by this attribute.
        response.connection = self  # type: ignore[assignment]
        return response

    def _one(self, entry: Entry, sending: _Sending) -> requests.Response | Again:
        key = self._engine.single(entry)
        if key is not None:
            sending.request.headers[key[0]] = key[1]
        try:
            response = self._pass(sending, stream=False)
        except requests.RequestException as error:
            verdict = self._engine.judge_single(entry, error)
            if isinstance(verdict, Again):
                return verdict
            raise
        verdict = self._engine.judge_single(entry, answer_of(response))
        if not isinstance(verdict, Again):
            return response
        response.close()
        return verdict

    def close(self) -> None:
        """Send what waits for others, and close the connections."""
        self._meeting.close()
        self.inner.close()
