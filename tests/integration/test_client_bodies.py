"""Bodies, timeouts and what else lies between a client library and its retries."""

from __future__ import annotations

import asyncio
import gzip
import io
import pickle  # noqa: TID251 - a user may, with multiprocessing
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from tests.flaky_server import (
    IN_PROGRESS,
    FlakyServer,
    Seen,
    answer,
    break_off,
    hang_up,
    problem,
)

httpx = pytest.importorskip("httpx")
requests = pytest.importorskip("requests")

import urllib3  # noqa: E402
from requests.auth import HTTPDigestAuth  # noqa: E402

from demijohn.client import (  # noqa: E402
    AsyncRetryTransport,
    RetryAdapter,
    RetryPolicy,
    RetryTransport,
    retrying,
)

QUICK = RetryPolicy(base=0.001, cap=0.002, max_attempts=5)
LARGE = b"0123456789abcdef" * 131_072  # 2 MiB, more than is read into memory
CHALLENGE = 'Digest realm="r", nonce="n", qop="auth", algorithm=SHA-256'
BUSY = problem(409, IN_PROGRESS)


def session(policy: RetryPolicy = QUICK) -> Any:
    made = requests.Session()
    made.trust_env = False
    return retrying(made, policy)


def client(policy: RetryPolicy = QUICK, **options: Any) -> Any:
    return httpx.Client(transport=RetryTransport(policy, **options), timeout=5)


def bodies(server: FlakyServer) -> list[bytes]:
    return [request.body for request in server.requests]


# Bodies of requests.


@pytest.mark.parametrize("start", [0, 7])
def test_large_file_is_sent_again_from_where_it_stood(start: int, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(LARGE)
    with FlakyServer([answer(503), answer()]) as server, client() as http, path.open("rb") as file:
        file.seek(start)
        size = str(len(LARGE) - start)
        response = http.post(server.url(), content=file, headers={"Content-Length": size})
        assert response.status_code == 200
    assert bodies(server) == [LARGE[start:]] * 2


def test_large_form_is_sent_again() -> None:
    with FlakyServer([answer(503), answer()]) as server, client() as http:
        files = {"f": io.BytesIO(LARGE), "g": b"small"}
        assert http.post(server.url(), data={"a": "b"}, files=files).status_code == 200
    first, second = bodies(server)
    assert first == second
    assert LARGE in first


def test_large_form_is_sent_again_asynchronously() -> None:
    async def send(url: str) -> int:
        async with httpx.AsyncClient(transport=AsyncRetryTransport(QUICK), timeout=5) as http:
            response = await http.post(url, files={"f": io.BytesIO(LARGE)})
            return int(response.status_code)

    with FlakyServer([answer(503), answer()]) as server:
        assert asyncio.run(send(server.url())) == 200
    assert len(set(bodies(server))) == 1


class OnceOnly(io.RawIOBase):
    """A file that says where it stands, and cannot go back."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def __len__(self) -> int:
        return len(self._content.getvalue())

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._content.read(size)

    def tell(self) -> int:
        return self._content.tell()


def test_file_that_cannot_go_back_is_sent_once() -> None:
    with FlakyServer([answer(503), answer()]) as server:
        assert session().post(server.url(), data=OnceOnly(b"abc"), timeout=5).status_code == 503
    assert bodies(server) == [b"abc"]


def test_large_file_that_cannot_go_back_is_sent_once() -> None:
    with FlakyServer([answer(503), answer()]) as server, client() as http:
        response = http.post(server.url(), files={"f": OnceOnly(LARGE)})
        assert response.status_code == 503
    assert len(server.requests) == 1


def test_form_with_one_file_that_cannot_go_back_is_sent_once() -> None:
    with FlakyServer([answer(503), answer()]) as server, client() as http:
        files = {"f": io.BytesIO(LARGE), "g": OnceOnly(b"abc")}
        assert http.post(server.url(), files=files).status_code == 503
    assert len(server.requests) == 1


def test_small_body_that_can_be_made_only_once_is_kept() -> None:
    length = {"Content-Length": "4"}

    async def parts() -> AsyncIterator[bytes]:
        yield b"once"

    async def send(url: str) -> int:
        http = httpx.AsyncClient(transport=AsyncRetryTransport(QUICK), timeout=5)
        response = await http.post(url, content=parts(), headers=length)
        await http.aclose()
        return int(response.status_code)

    with FlakyServer([answer(503), answer()]) as server:
        assert asyncio.run(send(server.url())) == 200
    with FlakyServer([answer(503), answer()]) as other:
        http = client()
        assert http.post(other.url(), content=iter([b"once"]), headers=length).status_code == 200
        http.close()
    assert bodies(server) == bodies(other) == [b"once"] * 2


def test_unread_response_is_handed_over_asynchronously() -> None:
    async def send(url: str) -> list[str]:
        transport = AsyncRetryTransport(QUICK, buffer=False)
        async with (
            httpx.AsyncClient(transport=transport, timeout=5) as http,
            http.stream("GET", url) as response,
        ):
            return [line async for line in response.aiter_lines()]

    with FlakyServer([hang_up, answer(503), answer(200, b"a\nb\n")]) as server:
        assert asyncio.run(send(server.url())) == ["a", "b"]


def test_large_generator_is_sent_once_whatever_its_length() -> None:
    with FlakyServer([answer(503), answer()]) as server, client() as http:
        parts = (part for part in [LARGE])
        headers = {"Content-Length": str(len(LARGE))}
        assert http.post(server.url(), content=parts, headers=headers).status_code == 503
    assert bodies(server) == [LARGE]


def test_file_goes_with_a_redirect_whole() -> None:
    script = [answer(503), answer(307, b"", Location="/there"), hang_up, answer()]
    with FlakyServer(script) as server, client() as http:
        response = http.post(server.url(), content=io.BytesIO(LARGE), follow_redirects=True)
        assert response.status_code == 200
    assert bodies(server) == [LARGE] * 4
    assert len(set(server.keys())) == 1


# Bodies of responses.


def test_conflict_that_passes_is_retried_for_a_streamed_response() -> None:
    with FlakyServer([BUSY, answer(201, b"made")]) as server:
        response = session().post(server.url(), stream=True, timeout=5)
        assert (response.status_code, response.content) == (201, b"made")


def test_conflict_that_passes_is_retried_for_an_unbuffered_response() -> None:
    with FlakyServer([BUSY, answer(201)]) as server, client(buffer=False) as http:
        assert http.post(server.url()).status_code == 201


def test_conflict_that_passes_is_known_when_it_is_compressed() -> None:
    zipped = problem(409, gzip.compress(IN_PROGRESS), Content_Encoding="gzip")
    with FlakyServer([zipped, answer(201)]) as server, client() as http:
        assert http.post(server.url()).status_code == 201


def test_conflict_that_cannot_be_decoded_is_handed_over() -> None:
    broken = problem(409, b"no gzip", Content_Encoding="gzip")
    with (
        FlakyServer([broken, answer(201)]) as server,
        client() as http,
        pytest.raises(httpx.DecodingError),
    ):
        http.post(server.url())
    assert len(server.requests) == 1


def test_one_request_may_ask_for_its_response_unread() -> None:
    unread = {"demijohn.buffer": False}
    with (
        FlakyServer([answer(503), break_off]) as server,
        client() as http,
        http.stream("GET", server.url(), extensions=unread) as response,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        response.read()
    assert len(server.requests) == 2


def test_stream_of_events_is_never_waited_for() -> None:
    handed_over = threading.Event()

    def events(connection: socket.socket, seen: Seen | None) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; a=b\r\n\r\n")
        connection.sendall(b"data: 1\n\n" if handed_over.wait(4) else b"data: too late\n\n")

    with (
        FlakyServer([events]) as server,
        client() as http,
        http.stream("GET", server.url()) as response,
    ):
        handed_over.set()
        assert list(response.iter_lines()) == ["data: 1", ""]


# What belongs to a logical call, and what does not.


def test_request_that_is_sent_twice_keeps_its_key() -> None:
    with FlakyServer([answer()]) as server, client() as http:
        request = http.build_request("POST", server.url())
        http.send(request)
        http.send(request)
    first, second = server.keys()
    assert first == second


@pytest.mark.parametrize("ends", [answer(), hang_up])
def test_request_keeps_its_own_timeouts(ends: Any) -> None:
    policy = RetryPolicy(deadline=2, base=0.001, cap=0.002, max_attempts=2)
    with FlakyServer([ends]) as server, client(policy) as http:
        request = http.build_request("GET", server.url(), timeout=60)
        with suppress(httpx.TransportError):
            http.send(request)
    assert set(request.extensions["timeout"].values()) == {60}


class Recorder(httpx.BaseTransport):
    """Answers 503, and notes what it was given."""

    def __init__(self) -> None:
        self.timeouts: list[dict[str, float]] = []
        self.entered = 0

    def __enter__(self) -> Self:
        self.entered += 1
        return self

    def handle_request(self, request: Any) -> Any:
        self.timeouts.append(request.extensions["timeout"])
        return httpx.Response(503, headers={"Retry-After": "4"})


def test_no_attempt_waits_longer_than_is_left() -> None:
    now = [100.0]
    inner = Recorder()
    transport = RetryTransport(
        RetryPolicy(deadline=10),
        transport=inner,
        sleep=lambda pause: now.__setitem__(0, now[0] + pause),
        clock=lambda: now[0],
        draw=lambda: 0.0,
    )
    with httpx.Client(transport=transport, timeout=7) as http:
        response = http.get("http://x/")
    assert [timeout["read"] for timeout in inner.timeouts] == [7, 6, 2]
    assert response.extensions["demijohn.attempts"] == 3
    assert inner.entered == 1


def test_no_attempt_of_an_adapter_waits_longer_than_is_left() -> None:
    now = [100.0]
    given: list[Any] = []

    class Inner(requests.adapters.BaseAdapter):  # type: ignore[misc,name-defined]
        def send(self, request: Any, **options: Any) -> Any:
            given.append(options["timeout"])
            response = requests.Response()
            response.status_code = 503
            response.headers["Retry-After"] = "4"
            response.raw = io.BytesIO()
            return response

        def close(self) -> None:
            given.append("closed")

    adapter = RetryAdapter(
        RetryPolicy(deadline=10),
        adapter=Inner(),
        sleep=lambda pause: now.__setitem__(0, now[0] + pause),
        clock=lambda: now[0],
        draw=lambda: 0.0,
    )
    with requests.Session() as made:
        made.mount("http://", adapter)
        made.get("http://x/", timeout=(1, None))
    assert given == [(1, 10), (1, 6), (1, 2), "closed"]


@pytest.mark.parametrize(
    "timeout",
    [
        urllib3.Timeout(3),
        urllib3.Timeout(total=3),
        urllib3.Timeout(connect=1, read=3),
        urllib3.Timeout(connect=1),
        urllib3.Timeout(read=3),
        (1, 3),
        None,
    ],
)
def test_timeout_may_be_of_any_form_that_requests_knows(timeout: Any) -> None:
    with FlakyServer([hang_up, answer()]) as server:
        assert session().get(server.url(), timeout=timeout).status_code == 200


def test_second_leg_of_an_authentication_is_retried() -> None:
    script = [answer(401, WWW_Authenticate=CHALLENGE), hang_up, answer()]
    with FlakyServer(script) as server:
        response = session().post(server.url(), auth=HTTPDigestAuth("u", "p"), timeout=5)
        assert response.status_code == 200
    with FlakyServer(script) as other, client() as http:
        assert http.post(other.url(), auth=httpx.DigestAuth("u", "p")).status_code == 200
    for each in (server, other):
        assert len(each.requests) == 3
        assert len(set(each.keys())) == 1
        assert "authorization" in each.requests[-1].headers


# Installing it.


def test_session_that_is_made_retrying_twice_has_the_last_policy() -> None:
    with FlakyServer([answer(503)]) as server:
        again = retrying(session(), RetryPolicy(base=0.001, cap=0.001, max_attempts=3))
        assert again.get(server.url(), timeout=5).attempts == 3
    assert len(server.requests) == 3


def test_every_adapter_that_is_mounted_for_http_goes_on_behind_the_retries() -> None:
    made = requests.Session()
    made.trust_env = False
    mine = requests.adapters.HTTPAdapter(pool_maxsize=1)
    other = requests.adapters.HTTPAdapter()
    made.mount("http://127.0.0.1", mine)
    made.mount("file://", other)
    retrying(made, QUICK)
    assert made.adapters["http://127.0.0.1"].inner is mine
    assert made.adapters["file://"] is other
    with FlakyServer([answer(503), answer()]) as server:
        assert made.get(server.url(), timeout=5).status_code == 200


def test_retrying_session_can_be_pickled() -> None:
    copy = pickle.loads(pickle.dumps(session()))
    with FlakyServer([answer(503), answer()]) as server:
        assert copy.get(server.url(), timeout=5).attempts == 2


def test_hook_that_raises_leaves_no_response_open() -> None:
    def refuse(retry: object) -> None:
        raise RuntimeError("no more")

    policy = RetryPolicy(on_retry=refuse)
    closed: list[bool] = []

    class Stream(httpx.SyncByteStream):
        def __iter__(self) -> Any:
            yield b"body"

        def close(self) -> None:
            closed.append(True)

    inner = httpx.MockTransport(lambda request: httpx.Response(503, stream=Stream()))
    transport = RetryTransport(policy, transport=inner, buffer=False)
    with httpx.Client(transport=transport) as http, pytest.raises(RuntimeError, match="no more"):
        http.get("http://x/")
    assert closed == [True]
