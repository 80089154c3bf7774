"""Both libraries against a server that misbehaves over real sockets."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from tests.flaky_server import (
    IN_PROGRESS,
    OTHER_CONFLICT,
    Behaviour,
    FlakyServer,
    answer,
    break_off,
    break_off_chunked,
    hang_up,
    hang_up_unread,
    problem,
)

httpx = pytest.importorskip("httpx")
requests = pytest.importorskip("requests")

from demijohn.client import (  # noqa: E402
    AsyncRetryTransport,
    Retry,
    RetryAdapter,
    RetryPolicy,
    RetryTransport,
    retrying,
)

QUICK = RetryPolicy(base=0.001, cap=0.002, max_attempts=5)
Send: TypeAlias = Callable[..., tuple[int, bytes, int]]


def by_requests(policy: RetryPolicy, method: str, url: str, **options: Any) -> Any:
    with requests.Session() as session:
        session.trust_env = False
        retrying(session, policy)
        response = session.request(method, url, timeout=5, **options)
        return response.status_code, response.content, response.attempts


def by_httpx(policy: RetryPolicy, method: str, url: str, **options: Any) -> Any:
    with httpx.Client(transport=RetryTransport(policy), timeout=5) as client:
        response = client.request(method, url, follow_redirects=True, **options)
        return response.status_code, response.content, response.extensions["demijohn.attempts"]


def by_async_httpx(policy: RetryPolicy, method: str, url: str, **options: Any) -> Any:
    async def send() -> Any:
        transport = AsyncRetryTransport(policy)
        async with httpx.AsyncClient(transport=transport, timeout=5) as client:
            response = await client.request(method, url, follow_redirects=True, **options)
            attempts = response.extensions["demijohn.attempts"]
            return response.status_code, response.content, attempts

    return asyncio.run(send())


@pytest.fixture(params=[by_requests, by_httpx, by_async_httpx])
def send(request: pytest.FixtureRequest) -> Send:
    function: Send = request.param
    return function


def failure() -> tuple[type[Exception], ...]:
    return (requests.RequestException, httpx.TransportError)


@pytest.mark.parametrize(
    "trouble",
    [
        hang_up,
        hang_up_unread,
        break_off,
        break_off_chunked,
        answer(503, Retry_After="0"),
        answer(429),
        answer(502),
        problem(409, IN_PROGRESS, Retry_After="0"),
    ],
)
def test_trouble_that_passes_is_not_seen(send: Send, trouble: Behaviour) -> None:
    with FlakyServer([trouble, trouble, answer(201, b"made")]) as server:
        assert send(QUICK, "POST", server.url(), json={"a": 1}) == (201, b"made", 3)
    # Redirects and resets aside, every arrival carries the same key and the same body.
    assert len(set(server.keys())) == 1
    assert {request.body for request in server.requests} in ({b'{"a": 1}'}, {b'{"a":1}'})


def test_each_logical_call_has_a_key_of_its_own(send: Send) -> None:
    with FlakyServer([answer()]) as server:
        send(QUICK, "POST", server.url())
        send(QUICK, "POST", server.url())
    first, second = server.keys()
    assert first != second
    assert first is not None
    assert first.startswith('"')


def test_key_of_the_caller_is_kept(send: Send) -> None:
    with FlakyServer([answer(503), answer()]) as server:
        send(QUICK, "POST", server.url(), headers={"Idempotency-Key": "mine"})
    assert server.keys() == ["mine", "mine"]


def test_methods_that_need_no_key_get_none(send: Send) -> None:
    with FlakyServer([answer(503), answer()]) as server:
        assert send(QUICK, "PUT", server.url(), json={})[0] == 200
    assert server.keys() == [None, None]


def test_unsafe_method_without_a_key_is_sent_once(send: Send) -> None:
    with FlakyServer([answer(503), answer()]) as server:
        assert send(QUICK, "PURGE", server.url())[0] == 503
    assert len(server.requests) == 1


def test_body_that_can_be_made_only_once_is_sent_once(send: Send) -> None:
    def parts() -> Iterator[bytes]:
        yield b"once"

    async def async_parts() -> Any:
        yield b"once"

    name = "data" if send is by_requests else "content"
    body = async_parts() if send is by_async_httpx else parts()
    with FlakyServer([answer(503), answer()]) as server:
        assert send(QUICK, "POST", server.url(), **{name: body})[0] == 503
    assert [request.body for request in server.requests] == [b"once"]


def test_file_is_sent_again_from_its_start() -> None:
    with FlakyServer([hang_up, answer(503), answer()]) as server:
        file = io.BytesIO(b"the file")
        assert by_requests(QUICK, "POST", server.url(), data=file)[2] == 3
    assert [request.body for request in server.requests] == [b"the file"] * 3


def test_small_upload_is_sent_again() -> None:
    with FlakyServer([hang_up, answer()]) as server:
        assert by_httpx(QUICK, "POST", server.url(), files={"f": b"content"})[2] == 2
    assert server.requests[0].body == server.requests[1].body
    assert b"content" in server.requests[0].body


def test_conflict_that_will_not_pass_is_handed_over(send: Send) -> None:
    with FlakyServer([problem(409, OTHER_CONFLICT, Retry_After="1"), answer()]) as server:
        assert send(QUICK, "POST", server.url())[0] == 409
    assert len(server.requests) == 1


def test_last_answer_is_handed_over_at_the_end(send: Send) -> None:
    with FlakyServer([answer(503, b"never")]) as server:
        assert send(QUICK, "POST", server.url()) == (503, b"never", 5)


def test_last_failure_is_raised_at_the_end(send: Send) -> None:
    with FlakyServer([hang_up]) as server, pytest.raises(failure()):
        send(QUICK, "POST", server.url())
    assert len(server.requests) == 5


def test_refused_connection_is_retried_and_then_raised(send: Send) -> None:
    told: list[Retry] = []
    policy = RetryPolicy(base=0.001, cap=0.002, max_attempts=3, on_retry=told.append)
    with FlakyServer([answer()]) as server:
        url = server.url()
    with pytest.raises(failure()):
        send(policy, "POST", url)
    assert len(told) == 2


def test_server_that_asks_for_too_much_patience_is_not_waited_for(send: Send) -> None:
    with FlakyServer([answer(503, Retry_After="3600")]) as server:
        assert send(QUICK, "POST", server.url())[0] == 503
    assert len(server.requests) == 1


def test_key_goes_with_a_redirect_that_keeps_the_method(send: Send) -> None:
    with FlakyServer([answer(307, b"", Location="/there"), hang_up, answer()]) as server:
        assert send(QUICK, "POST", server.url("/here"), json={"a": 1})[0] == 200
    assert [request.target for request in server.requests] == ["/here", "/there", "/there"]
    assert len(set(server.keys())) == 1


def test_streamed_response_is_handed_over_unread() -> None:
    with FlakyServer([answer(503), break_off]) as server, requests.Session() as session:
        session.trust_env = False
        session.mount("http://", RetryAdapter(QUICK))
        response = session.get(server.url(), stream=True, timeout=5)
        assert response.status_code == 200
        with pytest.raises(requests.RequestException):
            _ = response.content
    assert len(server.requests) == 2


def test_unbuffered_response_is_handed_over_unread() -> None:
    transport = RetryTransport(QUICK, buffer=False)
    with (
        FlakyServer([answer(503), break_off]) as server,
        httpx.Client(transport=transport) as client,
        client.stream("GET", server.url()) as response,
        pytest.raises(httpx.TransportError),
    ):
        response.read()
    assert len(server.requests) == 2


def test_encoded_body_is_decoded_once() -> None:
    import gzip

    zipped = answer(200, gzip.compress(b"plain"), Content_Encoding="gzip")
    with FlakyServer([zipped]) as server:
        assert by_httpx(QUICK, "GET", server.url())[1] == b"plain"
        assert by_async_httpx(QUICK, "GET", server.url())[1] == b"plain"
        assert by_requests(QUICK, "GET", server.url())[1] == b"plain"


def test_client_brings_no_flask() -> None:
    code = (
        "import sys, demijohn.client as c; c.RetryAdapter, c.RetryTransport; "
        "print('flask' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_missing_library_is_named_with_its_extra() -> None:
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "import demijohn.client as c\n"
        "try: c.RetryTransport\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "demijohn[client]" in done.stdout


def test_unknown_name_is_an_attribute_error() -> None:
    import demijohn.client

    with pytest.raises(AttributeError, match="nonsense"):
        _ = demijohn.client.nonsense  # type: ignore[attr-defined]
