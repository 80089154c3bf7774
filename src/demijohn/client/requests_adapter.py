"""Safe retries for requests."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.exceptions import (
    ChunkedEncodingError,
    ConnectionError,  # noqa: A004 - requests' own, and it is meant here
    Timeout,
)
from requests.utils import rewind_body
from urllib3.util import Timeout as Timeouts

from .policy import Answer, LogicalCall, RetryPolicy, is_problem_type

TimeoutOption: TypeAlias = "float | tuple[float | None, float | None] | Timeouts | None"
S = TypeVar("S", bound=requests.Session)


class RetryAdapter(BaseAdapter):
    """Sends through another adapter, and again where that is safe and may help.

    Mount it on a session of your own: authentication, cookies, proxies and redirects stay the
    session's. A request that requests would hand over unread (``stream=True``) is retried until its
    head has arrived; otherwise the body is read here, so that one that breaks off is retried too.
    The response's ``attempts`` says how many attempts there were; after a redirect, of its last
    hop.

    Args:
        policy: how to retry.
        adapter: what sends; an ``HTTPAdapter`` without retries of its own by default.
        sleep: waits for seconds.
        clock: monotonic seconds.
        draw: gives random numbers from 0 to 1.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        adapter: BaseAdapter | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        super().__init__()
        self._policy = policy or RetryPolicy()
        self.inner = adapter or HTTPAdapter(max_retries=0)
        """What sends."""
        self._sleep = sleep
        self._clock = clock
        self._draw = draw

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
            requests.RequestException: the last attempt failed.
        """
        call = self._begin(request)
        rest: dict[str, Any] = {"stream": stream, "verify": verify, "cert": cert}
        while True:
            try:
                limited = _limited(call, timeout)
                response = self.inner.send(request, timeout=limited, proxies=proxies, **rest)
                answer = _answer(response, stream=stream)
            except (ConnectionError, Timeout, ChunkedEncodingError) as error:
                retry = call.after(error)
                if retry is None:
                    raise
            else:
                retry = call.after(answer)
                if retry is None:
                    return self._finished(response, call)
                response.close()
            self._sleep(call.announce(retry))
            if _is_file(request):
                rewind_body(request)

    def _begin(self, request: requests.PreparedRequest) -> LogicalCall:
        """Give the request a key, and begin its logical call.

        A redirect is another hop of the same call: requests copies the prepared request, and so
        the key goes with it.
        """
        policy = self._policy
        method = (request.method or "GET").upper()
        if method in policy.keyed_methods and policy.key_header not in request.headers:
            request.headers[policy.key_header] = policy.new_key()
        safe = policy.is_safe(method, key=request.headers.get(policy.key_header))
        replayable = request.body is None or isinstance(request.body, str | bytes)
        return LogicalCall(
            policy,
            repeatable=safe and (replayable or _is_file(request)),
            clock=self._clock,
            draw=self._draw,
        )

    def _finished(self, response: requests.Response, call: LogicalCall) -> requests.Response:
        response.attempts = call.attempts  # type: ignore[attr-defined]
        # An authentication that answers a 401 sends by this attribute, and must be retried as well.
        response.connection = self  # type: ignore[assignment]
        return response

    def close(self) -> None:
        """Close the connections."""
        self.inner.close()


def _is_file(request: requests.PreparedRequest) -> bool:
    """Whether the body can be rewound to where requests has noted that it began."""
    noted = isinstance(getattr(request, "_body_position", None), int)
    seekable = getattr(request.body, "seekable", None)
    if seekable is None:
        return noted and callable(getattr(request.body, "seek", None))
    return noted and bool(seekable())


def _answer(response: requests.Response, *, stream: bool) -> Answer:
    """Return what matters, and read the body unless it is to be handed over unread.

    What is read stays with the response. A conflict's problem is read always, because it says
    whether the conflict will pass.
    """
    headers = {name.lower(): value for name, value in response.headers.items()}
    conflict = response.status_code == 409 and is_problem_type(headers.get("content-type", ""))
    body = response.content if conflict or not stream else b""
    return Answer(response.status_code, headers, body)


def _limited(call: LogicalCall, timeout: TimeoutOption) -> tuple[float, float]:
    if isinstance(timeout, Timeouts):
        started = timeout.clone()
        started.start_connect()  # what it says of reading is counted from here
        connect, read = _seconds(started.connect_timeout), _seconds(started.read_timeout)
    elif isinstance(timeout, tuple):
        connect, read = timeout
    else:
        connect = read = timeout
    return call.limited(connect), call.limited(read)


def _seconds(value: object) -> float | None:
    """Return the seconds of one of urllib3's timeouts, which may also be "the default"."""
    return float(value) if isinstance(value, int | float) else None


def retrying(session: S, policy: RetryPolicy | None = None) -> S:
    """Make ``session`` retry everything that it sends by HTTP; return it.

    The adapters that are mounted go on sending, so whatever was set on them still holds. On a
    session that retries already, the policy is replaced.
    """
    for prefix, adapter in list(session.adapters.items()):
        if prefix.lower().startswith("http"):
            inner = adapter.inner if isinstance(adapter, RetryAdapter) else adapter
            session.adapters[prefix] = RetryAdapter(policy, adapter=inner)
    return session
