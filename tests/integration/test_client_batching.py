"""Batching clients against a server that misbehaves over real sockets."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.batch_server import (
    BatchServer,
    Behaviour,
    dropped,
    duplicated,
    hang_up,
    in_json,
    in_lines_of_lf,
    nameless,
    nameless_but_one,
    page,
    refuse,
    reordered,
    run_and_hang_up,
    truncate,
    with_extra,
)

httpx = pytest.importorskip("httpx")
requests = pytest.importorskip("requests")

from demijohn.client import (  # noqa: E402
    AsyncBatchTransport,
    AsyncHttpxBatching,
    AsyncRetryTransport,
    BatchAdapter,
    BatchDependencyError,
    Batching,
    BatchPending,
    BatchProtocolError,
    BatchTransport,
    HttpxBatching,
    RetryAdapter,
    RetryPolicy,
    RetryTransport,
    singly,
)
from demijohn.client.batching.flow import absences  # noqa: E402

QUICK = RetryPolicy(base=0.001, cap=0.002, max_attempts=4)
NEVER = 60.0  # a delay that only a full batch, or closing, ends

Outcome: TypeAlias = "Any"
Run: TypeAlias = Callable[..., list[Outcome]]
"""``run(server, calls, **options)``: the response to each call, or what it raised."""


@pytest.fixture(autouse=True)
def _remember_nothing() -> Iterator[None]:
    absences.forget()
    yield
    absences.forget()


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer() as made:
        yield made


def outcome(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except Exception as error:  # noqa: BLE001
        return error


def touched(response: Any) -> Any:
    assert response.status_code
    return response


def plain_session() -> Any:
    session = requests.Session()
    session.trust_env = False
    return session


def no_pause(seconds: float) -> None:
    """Wait for nothing."""


async def no_async_pause(seconds: float) -> None:
    await asyncio.sleep(0)


# --- the five clients, behind one face ----------------------------------------------------------


def by_batching(server: BatchServer, calls: list[Any], **options: Any) -> list[Any]:
    with plain_session() as session:
        batch = Batching(server.url(), session, sleep=no_pause, timeout=5, **options)
        made = [batch.request(method, url, **given) for method, url, given in calls]
        outcome(batch.flush)
        return [outcome(partial(touched, each)) for each in made]


def by_httpx_batching(server: BatchServer, calls: list[Any], **options: Any) -> list[Any]:
    with httpx.Client(trust_env=False) as client:
        batch = HttpxBatching(client, server.url(), sleep=no_pause, **options)
        made = [batch.request(method, url, **given) for method, url, given in calls]
        outcome(batch.flush)
        return [outcome(partial(touched, each)) for each in made]


def by_async_httpx_batching(server: BatchServer, calls: list[Any], **options: Any) -> list[Any]:
    async def run() -> list[Any]:
        async with httpx.AsyncClient(trust_env=False) as client:
            batch = AsyncHttpxBatching(client, server.url(), sleep=no_async_pause, **options)
            made = [batch.request(method, url, **given) for method, url, given in calls]
            with suppress(httpx.RequestError):
                await batch.flush()
            return [outcome(partial(touched, each)) for each in made]

    return asyncio.run(run())


def by_async_transport(server: BatchServer, calls: list[Any], **options: Any) -> list[Any]:
    async def run() -> list[Any]:
        transport = AsyncBatchTransport(server.url(), sleep=no_async_pause, **options)
        async with httpx.AsyncClient(transport=transport, base_url=server.url("/")) as client:
            made = [client.request(method, url, **given) for method, url, given in calls]
            return await asyncio.gather(*made, return_exceptions=True)

    return asyncio.run(run())


def in_threads(calls: list[Any], send: Callable[..., Any]) -> list[Any]:
    found: list[Any] = [None] * len(calls)

    def work(number: int) -> None:
        method, url, given = calls[number]
        found[number] = outcome(lambda: send(method, url, **given))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return found


def by_transport(server: BatchServer, calls: list[Any], **options: Any) -> list[Any]:
    options.setdefault("max_parts", len(calls))
    transport = BatchTransport(server.url(), sleep=no_pause, max_delay=1, **options)
    with httpx.Client(transport=transport, base_url=server.url("/")) as client:
        return in_threads(calls, client.request)


def by_adapter(server: BatchServer, calls: list[Any], **options: Any) -> list[Any]:
    options.setdefault("max_parts", len(calls))
    adapter = BatchAdapter(server.url(), sleep=no_pause, max_delay=1, **options)
    with plain_session() as session:
        session.mount("http://", adapter)
        absolute = [(method, server.url(url), given) for method, url, given in calls]
        return in_threads(absolute, session.request)


EXPLICIT = [by_batching, by_httpx_batching, by_async_httpx_batching]
BELOW = [by_async_transport, by_transport, by_adapter]


@pytest.fixture(params=[*EXPLICIT, *BELOW])
def run(request: pytest.FixtureRequest) -> Run:
    function: Run = request.param
    return function


@pytest.fixture(params=EXPLICIT)
def explicit(request: pytest.FixtureRequest) -> Run:
    function: Run = request.param
    return function


def puts(count: int) -> list[Any]:
    return [("PUT", f"/items/{number}", {"json": {"n": number}}) for number in range(count)]


def posts(count: int) -> list[Any]:
    return [("POST", f"/items/{number}", {"json": {"n": number}}) for number in range(count)]


def targets(found: list[Any]) -> list[Any]:
    return [each.json()["target"] for each in found]


def shown(found: list[Any]) -> list[str]:
    """The number of each response, or the name of each error."""
    return [
        each.json()["target"].rpartition("/")[2]
        if not isinstance(each, Exception)
        else "protocol"
        if isinstance(each, BatchProtocolError)
        else type(each).__name__
        for each in found
    ]


# --- what goes well -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["multipart", "json"])
def test_many_requests_are_one(run: Run, server: BatchServer, form: str) -> None:
    found = run(server, puts(20), format=form)
    assert targets(found) == [f"/items/{number}" for number in range(20)]
    assert server.sent == ["POST /batch"]


def test_hundred_gathered_requests_are_one_batch(server: BatchServer) -> None:
    found = by_async_transport(server, puts(100), max_delay=NEVER)
    assert len(set(targets(found))) == 100
    assert server.sent == ["POST /batch"]


def test_more_than_fit_are_several_batches(run: Run, server: BatchServer) -> None:
    found = run(server, puts(12), max_parts=4)
    assert targets(found) == [f"/items/{number}" for number in range(12)]
    assert server.sent == ["POST /batch"] * 3


def test_batches_keep_to_their_bytes(explicit: Run, server: BatchServer) -> None:
    calls = [("PUT", f"/items/{n}", {"data": {"a": "x" * 3000}}) for n in range(6)]
    found = explicit(server, calls, max_bytes=8000, max_part_bytes=8000)
    assert [each.status_code for each in found] == [200] * 6
    assert server.sent == ["POST /batch"] * 3
    assert all(len(body) <= 8000 for body in server.bodies)


def test_single_request_is_sent_plainly(run: Run, server: BatchServer) -> None:
    [found] = run(server, puts(1))
    assert found.json()["body"] in {'{"n": 0}', '{"n":0}'}
    assert server.sent == ["PUT /items/0"]


def test_answers_are_ordinary_responses(run: Run, server: BatchServer) -> None:
    calls = [
        ("GET", "/status/404", {}),
        ("GET", "/status/500", {}),
        ("GET", "/binary", {}),
        ("HEAD", "/items/1", {}),
        ("DELETE", "/cookie", {}),
        ("GET", "/items/2", {"params": {"a": "b c"}}),
    ]
    found = run(server, calls)
    assert [each.status_code for each in found] == [404, 500, 200, 200, 204, 200]
    assert [found[0].text, found[2].content, found[3].content] == [
        "as asked",
        bytes(range(256)),
        b"",
    ]
    assert found[5].json()["target"] in {"/items/2?a=b+c", "/items/2?a=b%20c"}
    assert [each.request.method for each in found] == [method for method, _, _ in calls]
    assert str(found[0].url).endswith("/status/404")
    assert found[0].elapsed.total_seconds() >= 0
    assert found[4].cookies["taste"] == "sweet"
    with pytest.raises((requests.HTTPError, httpx.HTTPStatusError)):
        found[1].raise_for_status()
    assert server.sent == ["POST /batch"]


def test_identity_goes_on_the_batch_and_not_in_the_parts(run: Run, server: BatchServer) -> None:
    headers = {"Authorization": "Bearer a", "X-Test": "equal", "Idempotency-Key": '"k"'}
    found = run(server, [("GET", f"/items/{n}", {"headers": headers}) for n in range(3)])
    assert {each.json()["authorization"] for each in found} == {"Bearer a"}
    assert {each.json()["x-test"] for each in found} == {"equal"}
    assert server.headers[0]["authorization"] == "Bearer a"
    assert server.headers[0]["x-test"] == "equal"
    assert "idempotency-key" not in server.headers[0]
    assert b"Bearer" not in server.bodies[0]


def test_identities_do_not_share_a_batch(run: Run, server: BatchServer) -> None:
    calls = [
        ("GET", f"/items/{n}", {"headers": {"Authorization": f"Bearer {n % 2}"}}) for n in range(8)
    ]
    found = run(server, calls, max_parts=100 if run in EXPLICIT else 4)
    assert [each.json()["authorization"] for each in found] == ["Bearer 0", "Bearer 1"] * 4
    assert server.sent == ["POST /batch"] * 2


@pytest.mark.parametrize(
    "given",
    [
        {"headers": {"Range": "bytes=0-1"}},
        {"headers": {"Upgrade": "h2c"}},
        {"headers": {"Accept": "text/event-stream"}},
        {"headers": {"X_Test": "1"}},
        {"headers": {"Content-Type": "text/plain"}, "data": b"x" * 3000},
    ],
)
def test_what_can_be_no_part_goes_by_itself(run: Run, server: BatchServer, given: Any) -> None:
    if "data" in given and run not in {by_batching, by_adapter}:
        given = {"content": given["data"]}
    calls = [*puts(2), ("PUT", "/items/2", given)]
    found = run(server, calls, max_part_bytes=2000, max_parts=2)
    assert targets(found) == ["/items/0", "/items/1", "/items/2"]
    assert sorted(server.sent) == ["POST /batch", "PUT /items/2"]


# --- answers that are not as they should be -----------------------------------------------------


@pytest.mark.parametrize(
    "behaviour",
    [reordered, nameless, with_extra, in_lines_of_lf, in_json],
    ids=["reordered", "nameless", "with_extra", "in_lines_of_lf", "in_json"],
)
def test_answers_are_found_in_any_form(run: Run, behaviour: Behaviour) -> None:
    with BatchServer([behaviour]) as server:
        assert sorted(targets(run(server, puts(5)))) == [f"/items/{n}" for n in range(5)]
        if run not in {by_transport, by_adapter}:
            assert server.sent == ["POST /batch"]


def test_each_answer_finds_its_request(explicit: Run) -> None:
    with BatchServer([reordered]) as server:
        assert shown(explicit(server, puts(5))) == list("01234")


@pytest.mark.parametrize("behaviour", [dropped(1), duplicated(1)])
def test_only_who_has_no_clear_answer_fails(explicit: Run, behaviour: Behaviour) -> None:
    with BatchServer([behaviour]) as server:
        assert shown(explicit(server, puts(3))) == ["0", "protocol", "2"]
        assert server.sent == ["POST /batch"]


@pytest.mark.parametrize("behaviour", [nameless_but_one, page])
def test_nobody_hangs_on_an_answer_that_says_nothing(run: Run, behaviour: Behaviour) -> None:
    with BatchServer([behaviour]) as server:
        assert shown(run(server, puts(3))) == ["protocol"] * 3
        assert server.sent == ["POST /batch"]


def test_protocol_errors_are_errors_of_the_library(run: Run) -> None:
    with BatchServer([page]) as server:
        for error in run(server, puts(2)):
            assert isinstance(error, httpx.RequestError | requests.RequestException)
            assert error.request is not None


# --- batches that are refused -------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 422])
def test_refusal_of_the_batch_is_the_answer_to_each(run: Run, status: int) -> None:
    with BatchServer([refuse(status, WWW_Authenticate="Bearer")]) as server:
        found = run(server, puts(3))
        assert [each.status_code for each in found] == [status] * 3
        assert {each.headers["WWW-Authenticate"] for each in found} == {"Bearer"}
        assert (server.sent, server.ran) == (["POST /batch"], [])


@pytest.mark.parametrize("status", [404, 405, 415, 308])
def test_server_without_batches_is_remembered(run: Run, status: int) -> None:
    with BatchServer([refuse(status, Location="/elsewhere")]) as server:
        assert [each.status_code for each in run(server, puts(3))] == [200] * 3
        assert [each.status_code for each in run(server, puts(2))] == [200] * 2
        assert server.sent[0] == "POST /batch"
        assert sorted(server.sent[1:]) == sorted(
            ["PUT /items/0", "PUT /items/1", "PUT /items/2", "PUT /items/0", "PUT /items/1"]
        )


def test_batch_that_is_too_large_is_halved(run: Run) -> None:
    with BatchServer(most=2) as server:
        assert targets(run(server, puts(8))) == [f"/items/{number}" for number in range(8)]
        assert server.sent == ["POST /batch"] * 7
        assert len(server.ran) == 8


def test_part_that_is_always_too_large_goes_by_itself(run: Run) -> None:
    with BatchServer(most=0) as server:
        assert len(run(server, puts(2))) == 2
        assert sorted(server.sent) == ["POST /batch"] * 3 + ["PUT /items/0", "PUT /items/1"]


# --- exchanges that break off -------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502])
def test_failure_of_the_batch_is_the_answer_to_each(run: Run, status: int) -> None:
    with BatchServer([refuse(status)]) as server:
        assert [each.status_code for each in run(server, puts(3))] == [status] * 3
        assert server.sent == ["POST /batch"]


@pytest.mark.parametrize("honest", [True, False])
def test_answers_before_the_break_are_kept(explicit: Run, *, honest: bool) -> None:
    with BatchServer([truncate(2, honest=honest)]) as server:
        found = explicit(server, puts(4))
        assert shown(found[:2]) == ["0", "1"]
        assert all(isinstance(each, Exception) for each in found[2:])
        assert server.sent == ["POST /batch"]


def test_lost_connection_fails_everyone(run: Run) -> None:
    with BatchServer([hang_up]) as server:
        found = run(server, posts(3))
        kinds = httpx.TransportError | requests.ConnectionError
        assert all(isinstance(each, kinds) for each in found)
        assert len({id(each) for each in found}) == 3
        assert server.sent == ["POST /batch"]


@pytest.mark.parametrize("honest", [True, False])
def test_rest_of_a_broken_batch_is_sent_again(run: Run, *, honest: bool) -> None:
    with BatchServer([truncate(2, honest=honest)]) as server:
        assert shown(run(server, puts(5), retry=1, max_parts=5)) == list("01234")
        assert server.sent[0] == "POST /batch"
        assert len(server.ran) == 8


def test_unsafe_requests_run_once_under_the_key_of_their_batch(explicit: Run) -> None:
    with BatchServer([run_and_hang_up, truncate(1)]) as server:
        assert shown(explicit(server, posts(4), retry=2)) == list("0123")
        assert server.sent == ["POST /batch"] * 3
        assert len(server.ran) == 4
        assert len({headers["idempotency-key"] for headers in server.headers}) == 1


def test_unsafe_requests_run_once_from_below_too() -> None:
    with BatchServer([run_and_hang_up]) as server:
        assert shown(by_async_transport(server, posts(4), retry=1)) == list("0123")
        assert server.sent == ["POST /batch"] * 2
        assert len(server.ran) == 4


def test_safe_requests_need_no_key(run: Run, server: BatchServer) -> None:
    run(server, puts(3), retry=1)
    assert "idempotency-key" not in server.headers[0]


def test_without_retry_nothing_is_sent_twice(run: Run) -> None:
    with BatchServer([run_and_hang_up]) as server:
        assert all(isinstance(each, Exception) for each in run(server, puts(3)))
        assert server.sent == ["POST /batch"]


# --- requests that are told to wait -------------------------------------------------------------


def test_request_that_is_told_to_wait_comes_again(explicit: Run) -> None:
    with BatchServer(waits=2) as server:
        found = explicit(server, [*puts(2), ("PUT", "/limited", {})], retry=3)
        assert [each.status_code for each in found] == [200] * 3
        assert server.sent == ["POST /batch", "PUT /limited", "PUT /limited"]
        assert server.ran == ["PUT /items/0", "PUT /items/1", "PUT /limited"]


def test_nobody_is_told_to_wait_more_than_three_times(explicit: Run) -> None:
    with BatchServer(waits=9) as server:
        found = explicit(server, [*puts(2), ("PUT", "/limited", {})], retry=9)
        assert [each.status_code for each in found] == [200, 200, 429]
        assert len(server.sent) == 4


def test_without_retry_429_is_the_answer(run: Run) -> None:
    with BatchServer(waits=9) as server:
        found = run(server, [*puts(2), ("PUT", "/limited", {})])
        assert [each.status_code for each in found] == [200, 200, 429]
        assert server.sent == ["POST /batch"]


def test_batch_that_is_told_to_wait_comes_again_whatever_is_in_it(explicit: Run) -> None:
    with BatchServer([refuse(429, Retry_After="0")]) as server:
        assert shown(explicit(server, posts(3), retry=1)) == list("012")
        assert server.sent == ["POST /batch"] * 2


def test_single_request_is_retried_as_those_in_a_batch_are(run: Run) -> None:
    with BatchServer(waits=1) as server:
        [found] = run(server, [("POST", "/limited", {})], retry=1)
        assert found.status_code == 200
        assert server.sent == ["POST /limited"] * 2
        first, second = (headers["idempotency-key"] for headers in server.headers)
        assert first == second


def test_single_request_that_is_never_answered_fails(run: Run) -> None:
    server = BatchServer()
    with server:
        pass
    [found] = run(server, puts(1), retry=1)
    assert isinstance(found, httpx.ConnectError | requests.ConnectionError)


# --- Batching, for requests ---------------------------------------------------------------------


def test_example_of_the_old_project_runs(server: BatchServer) -> None:
    headers = {"Content-Type": "application/json"}
    with Batching(server.url()) as s:
        alice = s.patch(server.url("/people/alice/"), headers=headers, data='{"a": 1}')
        bob = s.patch(server.url("/people/bob/"), headers=headers, data='{"b": 1}')
    assert repr(alice) == "<Response [200]>"
    assert alice.json()["body"] == '{"a": 1}'
    assert bob.json()["target"] == "/people/bob/"
    assert isinstance(bob, requests.Response)
    assert server.sent == ["POST /batch"]


def test_response_is_pending_until_it_is_sent(server: BatchServer) -> None:
    with Batching(server.url()) as batch:
        response = batch.get("/items/1")
        assert isinstance(response, requests.Response)
        assert repr(response) == "<Response [pending]>"
        for use in (bool, list, outcome_of("json"), outcome_of("result"), outcome_of("ok")):
            with pytest.raises(BatchPending):
                use(response)
        batch.flush()
        assert response.ok
        assert response.result().json()["target"] == "/items/1"


def outcome_of(name: str) -> Callable[[Any], Any]:
    return lambda response: getattr(response, name)


def leave(batch: Any, made: list[Any]) -> None:
    with batch:
        made.append(batch.get("/items/1"))
        raise ZeroDivisionError


def test_block_that_is_left_by_an_exception_sends_nothing(server: BatchServer) -> None:
    made: list[Any] = []
    batch = Batching(server.url())
    with pytest.raises(ZeroDivisionError):
        leave(batch, made)
    with pytest.raises(BatchPending, match="nothing was sent"):
        made[0].json()
    with batch:
        pass
    assert server.sent == []


def test_using_it_again_sends_only_what_is_new(server: BatchServer) -> None:
    batch = Batching(server.url())
    with batch:
        batch.post("/items/1", json={})
        batch.post("/items/2", json={})
    batch.flush()
    with batch:
        batch.post("/items/3", json={})
    assert server.sent == ["POST /batch", "POST /items/3"]
    assert len(server.ran) == 3


def test_session_gives_the_batch_what_it_gives_requests(server: BatchServer) -> None:
    hooked = []
    with plain_session() as session:
        session.auth = ("u", "p")
        session.headers["X-Test"] = "of the session"
        session.cookies.set("c", "1")
        session.hooks["response"].append(lambda response, **_: hooked.append(response.url))
        with Batching(server.url(), session) as batch:
            first, second = batch.get("/items/1"), batch.get("/cookie")
        assert first.json()["authorization"].startswith("Basic ")
        assert first.json()["x-test"] == "of the session"
        assert first.json()["cookie"] == "c=1"
        assert second.cookies["taste"] == "sweet"
        assert (session.cookies["taste"], session.cookies["b"]) == ("sweet", "2")
    assert hooked == [server.url(), server.url("/items/1"), server.url("/cookie")]


def test_requests_own_authentication_is_not_replaced_by_the_sessions(server: BatchServer) -> None:
    with plain_session() as session:
        session.auth = ("session", "s")
        with Batching(server.url(), session) as batch:
            calls = [batch.get("/items/1", auth=("own", "o")) for _ in range(2)]
            others = [batch.get("/items/1") for _ in range(2)]
    own, ours = ({each.json()["authorization"] for each in group} for group in (calls, others))
    assert len(own) == len(ours) == 1
    assert own != ours
    assert server.sent == ["POST /batch"] * 2


def test_redirects_are_followed_as_always(server: BatchServer) -> None:
    with Batching(server.url()) as batch:
        followed = batch.get("/redirect")
        kept = batch.get("/redirect", allow_redirects=False)
    assert followed.json()["target"] == "/items/1"
    assert [each.status_code for each in followed.history] == [302]
    assert kept.status_code == 302
    assert server.sent == ["POST /batch", "GET /items/1"]


def test_streams_and_other_origins_go_by_themselves(server: BatchServer) -> None:
    with BatchServer() as other, Batching(server.url()) as batch:
        made = [batch.put("/items/1", data=iter([b"a", b"b"])), batch.get("/a", stream=True)]
        made += [batch.get(other.url("/b")), batch.get("/c"), batch.get("/d")]
        batch.flush()
        assert [each.status_code for each in made] == [200] * 5
        made[1].close()
        assert other.sent == ["GET /b"]
    assert server.sent == ["PUT /items/1", "GET /a", "POST /batch"]


def test_full_queue_is_sent_at_once(server: BatchServer) -> None:
    batch = Batching(server.url(), max_parts=2)
    first, second, third = (batch.get(f"/items/{n}") for n in range(3))
    assert (first.status_code, second.status_code) == (200, 200)
    with pytest.raises(BatchPending):
        third.json()


def test_flush_raises_what_befell_all_of_it() -> None:
    with BatchServer([hang_up]) as server:
        batch = Batching(server.url())
        made = [batch.get("/items/1"), batch.get("/items/2")]
        with pytest.raises(requests.ConnectionError):
            batch.flush()
        with pytest.raises(requests.ConnectionError):
            made[1].json()
        assert server.sent == ["POST /batch"]


def test_hook_that_raises_for_a_status_changes_nothing_for_the_batch() -> None:
    with BatchServer([refuse(404)]) as server, plain_session() as session:
        session.hooks["response"].append(lambda response, **_: response.raise_for_status())
        with Batching(server.url(), session) as batch:
            good, other, bad = (batch.get(f"/{n}") for n in ("items/1", "items/2", "status/500"))
        assert good.ok
        assert other.ok
        with pytest.raises(requests.HTTPError) as raised:
            bad.json()
        raised.value.response.close()  # requests leaves it unread when a hook raises
        assert len(server.sent) == 4


def test_relations_are_said_in_json(server: BatchServer) -> None:
    with Batching(server.url(), format="json") as batch:
        batch.post("/items", json={}, id="a", group="g")
        batch.post("/items", json={}, group="g", id="b")
        last = batch.post("/rolled-back", json={}, depends_on=["a", "g"])
    assert b'"dependsOn":["a","g"]' in server.bodies[0]
    assert server.bodies[0].count(b'"atomicityGroup":"g"') == 2
    assert last.result().status_code == 424
    with pytest.raises(BatchDependencyError, match="another one failed") as raised:
        last.result(raise_for=True)
    assert raised.value.kind == "rolled-back"


@pytest.mark.parametrize(
    ("form", "given", "message"),
    [
        ("multipart", {"id": "a"}, "format"),
        ("json", {"depends_on": ["z"]}, "'z' is not in this batch"),
        ("json", {"id": "TAKEN"}, "taken"),
        ("json", {"id": "b", "stream": True}, "no part of a batch"),
    ],
)
def test_relations_that_cannot_be_are_refused(
    server: BatchServer, form: Any, given: Any, message: str
) -> None:
    batch = Batching(server.url(), format=form)
    if form == "json":
        batch.get("/items", id="taken")
    with pytest.raises(ValueError, match=message):
        batch.get("/items", **given)


def test_httpx_explicit_batch_is_pending_and_left_like_that_of_requests(
    server: BatchServer,
) -> None:
    with httpx.Client(base_url=server.url("/"), auth=("u", "p")) as client:
        with HttpxBatching(client, "/batch") as batch:
            first, second = batch.get("items/1"), batch.delete("cookie")
            with pytest.raises(BatchPending):
                first.json()
        assert isinstance(first, httpx.Response)
        assert first.json()["authorization"].startswith("Basic ")
        assert client.cookies["taste"] == "sweet"
        assert second.status_code == 204
        with pytest.raises(ZeroDivisionError):
            leave(batch, [])
    assert server.sent == ["POST /batch"]


async def leave_async(batch: Any, made: list[Any]) -> None:
    async with batch:
        made.append(batch.delete("items/2"))
        raise ZeroDivisionError


def test_asynchronous_block_sends_at_its_end_unless_left_by_an_exception(
    server: BatchServer,
) -> None:
    async def main() -> None:
        async with httpx.AsyncClient(base_url=server.url("/")) as client:
            async with AsyncHttpxBatching(client, "/batch") as batch:
                made = [getattr(batch, verb)("items/1") for verb in ("get", "put", "post")]
                made += [getattr(batch, verb)("items/1") for verb in ("patch", "head", "options")]
            assert [each.status_code for each in made] == [200] * 6
            with pytest.raises(ZeroDivisionError):
                await leave_async(batch, made)
            with pytest.raises(BatchPending, match="nothing was sent"):
                made[-1].json()

    asyncio.run(main())
    assert server.sent == ["POST /batch"]


# --- below the libraries ------------------------------------------------------------------------


def test_cancelled_caller_leaves_the_others_alone(server: BatchServer) -> None:
    async def main() -> None:
        transport = AsyncBatchTransport(server.url(), max_delay=NEVER, max_parts=3)
        async with httpx.AsyncClient(transport=transport, base_url=server.url("/")) as client:
            first, gone = (asyncio.ensure_future(client.get(f"/items/{n}")) for n in range(2))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.sleep(0)
            others = await asyncio.gather(*(client.get(f"/items/{n}") for n in range(2, 4)))
            assert targets([await first, *others]) == ["/items/0", "/items/2", "/items/3"]

    asyncio.run(main())
    assert server.sent == ["POST /batch"]
    assert len(server.ran) == 3


def test_batch_that_nobody_waits_for_is_given_up() -> None:
    async def main() -> tuple[bool, list[Any]]:
        from httpx import AsyncBaseTransport

        given_up = asyncio.Event()

        class Stuck(AsyncBaseTransport):
            async def handle_async_request(self, request: Any) -> Any:
                arrived.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    given_up.set()

        arrived = asyncio.Event()
        transport = AsyncBatchTransport("http://x/batch", transport=Stuck(), max_parts=2)
        async with httpx.AsyncClient(transport=transport) as client:
            made = [asyncio.ensure_future(client.get(f"http://x/{n}")) for n in range(2)]
            await arrived.wait()
            for each in made:
                each.cancel()
            found = await asyncio.gather(*made, return_exceptions=True)
            await asyncio.wait_for(given_up.wait(), 10)
            return given_up.is_set(), found

    done, found = asyncio.run(main())
    assert done
    assert all(isinstance(each, asyncio.CancelledError) for each in found)


def test_closing_sends_what_waits(server: BatchServer) -> None:
    async def main() -> list[Any]:
        transport = AsyncBatchTransport(server.url(), max_delay=NEVER)
        client = httpx.AsyncClient(transport=transport, base_url=server.url("/"))
        made = [asyncio.ensure_future(client.get(f"/items/{n}")) for n in range(2)]
        await asyncio.sleep(0)
        await client.aclose()
        return await asyncio.gather(*made)

    assert targets(asyncio.run(main())) == ["/items/0", "/items/1"]
    assert server.sent == ["POST /batch"]


def test_closing_sends_what_waits_in_threads(server: BatchServer) -> None:
    adapter = BatchAdapter(server.url(), max_delay=NEVER)
    with plain_session() as session:
        session.mount("http://", adapter)
        found: list[Any] = []

        def get(url: str) -> None:
            found.append(session.get(url))

        threads = [
            threading.Thread(
                target=lambda n=n: found.append(session.get(server.url(f"/items/{n}")))
            )
            for n in range(2)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: sum(len(room.entries) for room in adapter._meeting._open.values()) == 2)
        session.close()
        for thread in threads:
            thread.join(10)
    assert sorted(targets(found)) == ["/items/0", "/items/1"]
    assert server.sent == ["POST /batch"]


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it never came to it")


def test_who_opts_out_goes_alone(server: BatchServer) -> None:
    async def main() -> None:
        transport = AsyncBatchTransport(server.url(), max_delay=NEVER)
        async with httpx.AsyncClient(transport=transport, base_url=server.url("/")) as client:
            await client.get("/items/1", extensions={"batch": False})

    asyncio.run(main())
    with plain_session() as session:
        session.mount("http://", BatchAdapter(server.url(), max_delay=NEVER))
        with singly():
            session.get(server.url("/items/2"))
        session.get(server.url("/items/3"), stream=True).close()
    assert server.sent == ["GET /items/1", "GET /items/2", "GET /items/3"]


def test_retries_around_the_batches(server: BatchServer) -> None:
    async def main(inner: Any) -> list[Any]:
        async with httpx.AsyncClient(transport=inner, base_url=server.url("/")) as client:
            return await asyncio.gather(*(client.post(f"/items/{n}", json={}) for n in range(3)))

    server.script = [run_and_hang_up]
    found = asyncio.run(
        main(AsyncRetryTransport(QUICK, transport=AsyncBatchTransport(server.url())))
    )
    assert [each.status_code for each in found] == [200] * 3
    assert len(server.ran) == 3


def test_retries_within_the_batches(server: BatchServer) -> None:
    server.script = [run_and_hang_up, refuse(503)]
    transport = BatchTransport(
        server.url(), transport=RetryTransport(QUICK), max_parts=3, max_delay=1
    )
    with httpx.Client(transport=transport, base_url=server.url("/")) as client:
        found = in_threads(posts(3), client.request)
    assert [each.status_code for each in found] == [200] * 3
    assert server.sent == ["POST /batch"] * 3
    assert len(server.ran) == 3


def test_retry_adapter_works_on_either_side(server: BatchServer) -> None:
    for adapter in (
        RetryAdapter(QUICK, adapter=BatchAdapter(server.url(), max_parts=3, max_delay=0.3)),
        BatchAdapter(server.url(), adapter=RetryAdapter(QUICK), max_parts=3, max_delay=0.3),
    ):
        server.script, server.ran, server.done = [run_and_hang_up], [], {}
        with plain_session() as session:
            session.mount("http://", adapter)
            calls = [(method, server.url(url), given) for method, url, given in posts(3)]
            found = in_threads(calls, session.request)
        assert [each.status_code for each in found] == [200] * 3
        assert len(server.ran) == 3


def test_each_library_is_enough_alone() -> None:
    program = """
import sys
sys.modules[{missing!r}] = None
import demijohn.client
demijohn.client.{name}("http://x/batch")
assert "flask" not in sys.modules and "werkzeug" not in sys.modules
"""
    for missing, name in (("requests", "BatchTransport"), ("httpx", "Batching")):
        code = program.format(missing=missing, name=name)
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_nothing_of_the_libraries_private_parts_is_needed_by_the_pure_modules() -> None:
    folder = Path(sys.modules["demijohn.client"].__file__ or "").parent / "batching"
    for name in ("admission", "entries", "envelope", "flow", "queue", "settings", "verdicts"):
        text = (folder / f"{name}.py").read_text(encoding="utf-8")
        assert not re.search(r"^(import|from) (requests|httpx|urllib3)", text, re.MULTILINE)
