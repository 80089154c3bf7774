"""Explicit batches over a session of requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self, TypedDict, Unpack
from urllib.parse import urljoin

import requests
from requests.cookies import extract_cookies_to_jar
from requests.hooks import dispatch_hook
from requests.utils import get_netrc_auth

from ...core.batch import Answer
from .admission import Endpoint
from .deferred import Settled, Waiting, is_pending, reject, resolve
from .entries import Entry
from .envelope import Outgoing, Reply
from .flow import Engine, World, step
from .queue import Act, Alone, Pause, Queue, Told
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

_AUTHORIZATION: Final = "Authorization"


class BatchedResponse(Settled, requests.Response):
    """A response of requests that came in a batch."""


class _Waiting(Waiting, BatchedResponse):
    """The same, before it is there."""

    _settled = BatchedResponse


class PartOptions(TypedDict, total=False):
    """What ``requests.Session.request`` takes, and what a part of a JSON batch says of others.

    Args:
        id: by which others in the batch refer to this request.
        group: the atomicity group: all requests in it succeed, or none.
        depends_on: ids and groups that must have succeeded, else this one is not run.
    """

    params: Any
    headers: Mapping[str, str | bytes | None] | None
    cookies: Any
    files: Any
    auth: Any
    timeout: Any
    allow_redirects: bool
    proxies: dict[str, str] | None
    hooks: Any
    stream: bool | None
    verify: bool | str | None
    cert: Any
    id: str
    group: str
    depends_on: tuple[str, ...] | list[str]


class RequestOptions(PartOptions, total=False):
    """The same, with a body."""

    data: Any
    json: Any


@dataclass(slots=True, eq=False)
class _Item:
    """A request that is queued."""

    session: requests.Session
    request: requests.PreparedRequest
    response: _Waiting
    settings: dict[str, Any]
    entry: Entry | None = None
    failure: Exception | None = None
    elapsed: timedelta = timedelta()
    outcome: requests.Response | Exception | None = None

    def settle(self, answer: Answer) -> None:
        """See to what a session does with a response: hooks, cookies, redirects."""
        try:
            resolve(self.response, self._finished(answer))
        except Exception as error:  # noqa: BLE001 - of a hook, say; the caller is told
            self.fail(error)

    def _finished(self, answer: Answer) -> requests.Response:
        session, request = self.session, self.request
        connection = session.get_adapter(url=request.url or "")
        response = response_of(answer, request, connection)
        response.elapsed = self.elapsed
        sending = {**self.settings}
        follows = sending.pop("allow_redirects")
        response = dispatch_hook(  # type: ignore[no-untyped-call]
            "response", request.hooks, response, **sending
        )
        for each in (*response.history, response):
            extract_cookies_to_jar(  # type: ignore[no-untyped-call]
                session.cookies, each.request, each.raw
            )
        response.content  # noqa: B018 - read, as requests does it
        if follows:
            response = _followed(session, request, response, sending)
        return response

    def settle_singly(self) -> None:
        """Hand over what a session has answered, or raised."""
        if isinstance(self.outcome, requests.Response):
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


def _followed(
    session: requests.Session,
    request: requests.PreparedRequest,
    response: requests.Response,
    sending: dict[str, Any],
) -> requests.Response:
    hops = list(session.resolve_redirects(response, request, **sending))
    if not hops:
        return response
    last: requests.Response = hops.pop()
    last.history = [response, *hops]
    return last


class Batching:
    """Queues requests, and sends them as one at the end of the block.

    ::

        with Batching("http://localhost:5000/batch") as s:
            alice = s.patch("http://localhost:5000/people/alice", json={"age": 30})
            bob = s.patch("http://localhost:5000/people/bob", json={"age": 31})
        alice.json()

    What a method returns is a ``requests.Response``. To use it before it was sent raises
    :class:`BatchPending`; after that it is as if the request had been sent by itself: redirects,
    hooks and cookies are the session's. A batch is also sent when ``max_parts`` requests are
    queued, or so many that the next one would exceed ``max_bytes``.

    Requests of a batch run in their order. Those to other origins, with streamed or large bodies,
    ``stream=True``, ``Range`` or ``Upgrade`` are sent by themselves, at the same time. A block that
    is left by an exception sends nothing. What was sent is never sent again by using the object
    once more. It is for one thread.

    Args:
        url: of the batch resource; URLs of requests may be relative to it.
        session: sends the batches with its authentication, cookies, proxies, certificates and
            hooks. Without one, a session is made, and closed at the end of the block.
        timeout: for those requests that have none, in seconds, as requests takes it. A batch waits
            as long as the most patient of its parts.
        sleep: waits for seconds, before something is sent again.
        world: clocks and chance.
        options: see :class:`~demijohn.client.batching.settings.Settings`.

    Raises:
        ValueError: the URL is not absolute, or an option is out of range.
    """

    def __init__(
        self,
        url: str,
        session: requests.Session | None = None,
        *,
        timeout: Any = None,
        sleep: Callable[[float], None] = time.sleep,
        world: World | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._engine = Engine(Endpoint(url, Settings(**options)), world)
        self._owns_session = session is None
        self._inside = False
        self.session = session or requests.Session()
        """What sends."""
        self._timeout = timeout
        self._queue: Queue[_Item] = Queue(self._engine)
        self._sleep = sleep

    # --- queueing -------------------------------------------------------------------------------

    def get(self, url: str, **options: Unpack[RequestOptions]) -> BatchedResponse:
        """Queue a GET; see :meth:`request`."""
        return self.request("GET", url, **options)

    def options(self, url: str, **options: Unpack[RequestOptions]) -> BatchedResponse:
        """Queue an OPTIONS; see :meth:`request`."""
        return self.request("OPTIONS", url, **options)

    def head(self, url: str, **options: Unpack[RequestOptions]) -> BatchedResponse:
        """Queue a HEAD, which follows no redirects; see :meth:`request`."""
        options.setdefault("allow_redirects", False)
        return self.request("HEAD", url, **options)

    def post(
        self, url: str, data: Any = None, json: Any = None, **options: Unpack[PartOptions]
    ) -> BatchedResponse:
        """Queue a POST; see :meth:`request`."""
        return self.request("POST", url, data=data, json=json, **options)

    def put(
        self, url: str, data: Any = None, json: Any = None, **options: Unpack[PartOptions]
    ) -> BatchedResponse:
        """Queue a PUT; see :meth:`request`."""
        return self.request("PUT", url, data=data, json=json, **options)

    def patch(
        self, url: str, data: Any = None, json: Any = None, **options: Unpack[PartOptions]
    ) -> BatchedResponse:
        """Queue a PATCH; see :meth:`request`."""
        return self.request("PATCH", url, data=data, json=json, **options)

    def delete(self, url: str, **options: Unpack[RequestOptions]) -> BatchedResponse:
        """Queue a DELETE; see :meth:`request`."""
        return self.request("DELETE", url, **options)

    def request(self, method: str, url: str, **options: Unpack[RequestOptions]) -> BatchedResponse:
        """Queue a request.

        Args:
            method: of the request.
            url: absolute, or relative to that of the batch.
            options: those of ``requests.Session.request``; in JSON batches also ``id``, ``group``
                and ``depends_on``.

        Returns:
            Its response, to be used when it was sent.

        Raises:
            ValueError: it depends on something that is not in the queue.
            requests.RequestException: the queue was full, and sending it failed; see
                :meth:`flush`.
        """
        given: dict[str, Any] = dict(options)
        name, group = given.pop("id", None), given.pop("group", None)
        depends_on = given.pop("depends_on", ())
        item = self._prepared(method, url, given)
        if self._queue.is_full(item.entry):
            self.flush()
        self._queue.relate(item.entry, id=name, group=group, depends_on=depends_on)
        self._queue.add(item)
        if self._queue.is_full():
            self.flush()
        return item.response

    def _prepared(self, method: str, url: str, given: dict[str, Any]) -> _Item:
        names = ("params", "data", "json", "headers", "cookies", "files", "auth", "hooks")
        content = {name: given[name] for name in names if given.get(name) is not None}
        request = self.session.prepare_request(
            requests.Request(method.upper(), urljoin(self._engine.endpoint.url, url), **content)
        )
        settings = self.session.merge_environment_settings(
            request.url or "",
            given.get("proxies") or {},
            given.get("stream"),
            given.get("verify"),
            given.get("cert"),
        )
        timeout = given.get("timeout", self._timeout)
        sending = {"timeout": timeout, "allow_redirects": given.get("allow_redirects", True)}
        item = _Item(self.session, request, _Waiting(), {**settings, **sending})
        item.entry = self._admitted(item, own_auth="auth" in content)
        return item

    def _admitted(self, item: _Item, *, own_auth: bool) -> Entry | None:
        request = item.request
        body = body_of(request)
        if body is None or item.settings["stream"]:
            return None
        fields = fields_of(request)
        if not own_auth and self._authenticates(request.url or ""):
            # The session does it for the batch, and better: some schemes sign what they send.
            fields = tuple([pair for pair in fields if pair[0].lower() != "authorization"])
        kept = ("verify", "cert", "proxies")
        lane: Hashable = repr([(name, item.settings.get(name)) for name in kept])
        entry = self._engine.endpoint.admit(
            request.method or "GET", request.url or "", fields, body, lane=lane
        )
        if entry is not None:
            entry.owner = item
        return entry

    def _authenticates(self, url: str) -> bool:
        session = self.session
        return bool(session.auth or (session.trust_env and get_netrc_auth(url)))

    # --- sending --------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what is queued.

        Raises:
            requests.RequestException: all of it failed. Where only some did, their responses raise
                it when they are used.
        """
        try:
            with closing(self._queue.flush()) as flush:
                told: Told = None
                while (act := step(flush, told)) is not None:
                    told = self._do(act)
        finally:
            self._close()

    def _close(self) -> None:
        """Leave no connection behind, where nobody else would close it."""
        if self._owns_session and not self._inside:
            self.session.close()

    def _do(self, act: Act[_Item]) -> Told:
        if isinstance(act, Pause):
            self._sleep(act.seconds)
            return None
        return self._send(act) if isinstance(act, Outgoing) else self._send_alone(act)

    def _send(self, outgoing: Outgoing) -> Reply:
        items = [each.owner for each in outgoing.entries if isinstance(each.owner, _Item)]
        headers = dict(outgoing.fields)
        # Authorization is there where the requests brought their own, which the session's must not
        # replace.
        auth = _as_it_is if "Authorization" in headers else None
        settings = {**items[0].settings, "allow_redirects": False, "stream": True}
        settings["timeout"] = longest([item.settings["timeout"] for item in items])
        request = requests.Request(
            "POST", self._engine.endpoint.url, headers=headers, data=outgoing.body, auth=auth
        )
        try:
            response = self.session.send(self.session.prepare_request(request), **settings)
        except Exception as error:  # noqa: BLE001 - the caller of each request is told
            return _refused(error)
        for item in items:
            item.elapsed = response.elapsed
        return reply_of(response)

    def _send_alone(self, act: Alone[_Item]) -> Answer | Exception:
        item = act.item
        if act.field is not None:
            item.request.headers[act.field[0]] = act.field[1]
        try:
            response = self.session.send(item.request, **item.settings)
        except Exception as error:  # noqa: BLE001 - the caller of the request is told
            item.outcome = error
            return error
        item.outcome = response
        return answer_of(response)

    def __enter__(self) -> Self:
        self._inside = True
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
            self._inside = False
            self._queue.discard()
            self._close()


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _refused(error: Exception) -> Reply:
    """Return what a hook that raises for a status has seen."""
    response = getattr(error, "response", None)
    if isinstance(error, requests.HTTPError) and isinstance(response, requests.Response):
        return reply_of(response)
    return Reply(0, error=error)
