"""Safe retries for requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.exceptions import (
    ChunkedEncodingError,
    ConnectionError,  # noqa: A004 - requests' own, and it is meant here
    InvalidProxyURL,
    InvalidURL,
    SSLError,
    Timeout,
)
from requests.utils import rewind_body

from .policy import Answer, LogicalCall, RetryPolicy

Timeouts: TypeAlias = "float | tuple[float | None, float | None] | None"
S = TypeVar("S", bound=requests.Session)


class RetryAdapter(BaseAdapter):
    """Sends through another adapter, and again where that is safe and may help.

    Mount it on a session of your own: authentication, cookies, proxies and redirects stay the
    session's. A request that requests would hand over unread (``stream=True``) is retried until its
    head has arrived; otherwise the body is read here, so that one that breaks off is retried too.
    The response's ``attempts`` says how many attempts there were.

    Args:
        policy: how to retry.
        adapter: what sends; an ``HTTPAdapter`` without retries of its own by default.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        adapter: BaseAdapter | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__()
        self._policy = policy or RetryPolicy()
        self._adapter = adapter or HTTPAdapter(max_retries=0)
        self._sleep = sleep

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Timeouts = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send ``request``; see ``requests.adapters.BaseAdapter.send`` for the arguments.

        Raises:
            requests.RequestException: the last attempt failed.
        """
        call = LogicalCall(self._policy, repeatable=self._prepare(request))
        rest = {"verify": verify, "cert": cert, "proxies": proxies}
        while True:
            try:
                limited = _limited(call, timeout)
                response = self._adapter.send(request, stream=stream, timeout=limited, **rest)
                if not stream:
                    _read(response)
            except (ConnectionError, Timeout, ChunkedEncodingError) as error:
                pause = None if _is_hopeless(error) else call.after_failure(error)
                if pause is None:
                    raise
            else:
                pause = call.after_answer(_answer(response, stream))
                if pause is None:
                    response.attempts = call.attempts  # type: ignore[attr-defined]
                    return response
                response.close()
            self._sleep(pause)
            if _is_file(request):
                rewind_body(request)

    def _prepare(self, request: requests.PreparedRequest) -> bool:
        """Give the request a key; return whether it can be sent again.

        A redirect is another hop of the same call: requests copies the prepared request, and so
        the key goes with it.
        """
        policy = self._policy
        method = (request.method or "GET").upper()
        if method in policy.keyed_methods and policy.key_header not in request.headers:
            request.headers[policy.key_header] = policy.new_key()
        keyed = policy.key_header in request.headers
        body = request.body
        replayable = body is None or isinstance(body, str | bytes) or _is_file(request)
        return replayable and policy.is_safe(method, keyed=keyed)

    def close(self) -> None:
        """Close the connections."""
        self._adapter.close()


def _is_file(request: requests.PreparedRequest) -> bool:
    """Whether requests has noted where a file body began, so that it can be rewound."""
    return isinstance(getattr(request, "_body_position", None), int)


def _is_hopeless(error: Exception) -> bool:
    """Whether the connection will fail in the same way again."""
    return isinstance(error, SSLError | InvalidURL | InvalidProxyURL)


def _read(response: requests.Response) -> None:
    """Read the body to its end; it stays there for the session to use."""
    _ = response.content


def _answer(response: requests.Response, stream: bool) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, b"" if stream else response.content)


def _limited(call: LogicalCall, timeout: Timeouts) -> tuple[float, float]:
    connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    return call.limited(connect), call.limited(read)


def retrying(session: S, policy: RetryPolicy | None = None) -> S:
    """Make ``session`` retry everything that it sends by HTTP; return it.

    The adapters that are mounted go on sending, so whatever was set on them still holds.
    """
    for prefix in ("https://", "http://"):
        session.mount(prefix, RetryAdapter(policy, adapter=session.get_adapter(prefix)))
    return session
