"""The engine under the batching clients, which does no I/O."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demijohn.client import BatchDependencyError, BatchProtocolError
from demijohn.client.batching.admission import Endpoint
from demijohn.client.batching.deferred import check_dependency
from demijohn.client.batching.entries import Again, Answered, Entry, Failed, Singly, batches
from demijohn.client.batching.envelope import Outgoing, Reply, read, write
from demijohn.client.batching.errors import own
from demijohn.client.batching.flow import MEMORY_S, Absences, Engine, World, absences, drive
from demijohn.client.batching.meeting import Meeting
from demijohn.client.batching.settings import Settings
from demijohn.core.batch import (
    Answer,
    Bounds,
    Fields,
    boundary_of,
    read_json_parts,
    read_multipart_parts,
    write_json_answer,
    write_multipart,
    write_response,
)

URL = "http://api.test/batch"
NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)
MULTIPART = (("Content-Type", "multipart/mixed; boundary=b"),)
JSON = (("Content-Type", "application/json"),)


class Clock:
    """A world in which nothing happens by itself."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.keys = 0

    def key(self) -> str:
        self.keys += 1
        return f'"k{self.keys}"'

    def world(self) -> World:
        return World(lambda: self.seconds, lambda: NOON, lambda: 0.5, bytes, self.key)


def endpoint(**options: Any) -> Endpoint:
    return Endpoint(URL, Settings(**options))


def entry(method: str = "PUT", path: str = "/a", *fields: tuple[str, str], **more: Any) -> Entry:
    made = endpoint().admit(method, f"http://api.test{path}", fields, more.get("body", b""))
    assert made is not None
    return made


def entries(count: int, method: str = "PUT") -> list[Entry]:
    return [entry(method, f"/{number}") for number in range(count)]


def multipart(answers: list[tuple[str | None, Answer]], *, cut: int = 0) -> Reply:
    body = write_multipart([(name, write_response(each)) for name, each in answers], "b")
    return Reply(200, MULTIPART, body[: len(body) - cut])


def well(outgoing: Outgoing) -> Reply:
    return multipart([(f"<response-{name}>", Answer(200)) for name in outgoing.names])


@pytest.fixture(autouse=True)
def _remember_nothing() -> None:
    absences.forget()


# --- what can be a part -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "url", "fields"),
    [
        ("GET", "https://api.test/a", ()),
        ("GET", "http://api.test:81/a", ()),
        ("GET", "http://other.test/a", ()),
        ("POST", URL, ()),
        ("POST", "http://api.test/x/../%62atch", ()),
        ("GET", "http://api.test//other.test/a", ()),
        ("TRACE", "http://api.test/a", ()),
        ("GET", "http://api.test/a", (("Host", "other.test"),)),
        ("GET", "http://api.test/a", (("Transfer-Encoding", "chunked"),)),
        ("GET", "http://api.test/a", (("X-Forwarded-For", "1.2.3.4"),)),
        ("GET", "http://api.test/a", (("Expect", "100-continue"),)),
        ("GET", "http://api.test/a", (("A", "line\nbreak"),)),
        ("GET", "http://api.test/a", (("A", "x" * 20_000),)),
        ("GET", "http://api.test/a", (("Content-Type", "a/b"), ("content-type", "a/c"))),
    ],
)
def test_what_cannot_be_a_part(method: str, url: str, fields: Fields) -> None:
    assert endpoint().admit(method, url, fields, b"") is None


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://api.test", "/"),
        ("HTTP://API.test:80/a?x=1&y=%20", "/a?x=1&y=%20"),
        ("http://u:p@api.test/a#f", "/a"),
    ],
)
def test_target_is_path_and_query(url: str, target: str) -> None:
    made = endpoint().admit("get", url, (("Host", "api.test"), ("Content-Length", "0")), b"")
    assert made is not None
    assert (made.part.method, made.part.target, made.part.fields) == ("GET", target, ())


@pytest.mark.parametrize(
    ("method", "kind", "body", "taken"),
    [
        ("PUT", "application/json", b'{"a": 1.00}', True),
        ("PUT", "application/json", b'{"a": 1, "a": 2}', False),
        ("PUT", "application/json", b'{"a": NaN}', False),
        ("PUT", "application/json", b"no", False),
        ("PUT", "text/plain", b"text", True),
        ("PUT", "text/plain; charset=latin-1", b"\xe9", False),
        ("PUT", "image/png", b"\x89PNG", True),
        ("GET", "application/json", b"{}", False),
    ],
)
def test_json_takes_what_it_can_say(method: str, kind: str, body: bytes, *, taken: bool) -> None:
    made = endpoint(format="json").admit(
        method, "http://api.test/a", (("Content-Type", kind),), body
    )
    assert (made is not None) == taken


@pytest.mark.parametrize(
    "options",
    [{"max_parts": 0}, {"max_bytes": 5}, {"max_part_bytes": 0}, {"format": "xml"}, {"retry": -1}],
)
def test_settings_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Settings(**options)


@pytest.mark.parametrize("url", ["/batch", "ftp://x/batch", "http:///batch"])
def test_batch_must_have_an_absolute_url(url: str) -> None:
    with pytest.raises(ValueError, match="must begin with"):
        Endpoint(url, Settings())


# --- the envelope -------------------------------------------------------------------------------

_names = st.sampled_from(
    ["Authorization", "Cookie", "X-A", "X-B", "Accept", "If-Match", "User-Agent"]
)
_requests = st.tuples(
    st.sampled_from(["GET", "PUT", "POST", "DELETE"]),
    st.from_regex(r"/[a-z0-9/?&=%20]{0,20}", fullmatch=True).filter(
        lambda p: not p.startswith("//")
    ),
    st.dictionaries(_names, st.sampled_from(["1", "2"]), max_size=4),
    st.binary(max_size=60),
)


@given(st.lists(_requests, min_size=1, max_size=8), st.sampled_from(["multipart", "json"]))
def test_server_reads_what_was_asked_for(asked: list[Any], form: Any) -> None:
    made = [
        endpoint(format=form).admit(method, f"http://api.test{path}", tuple(fields.items()), body)
        for method, path, fields, body in asked
    ]
    kept = [each for each in made if each is not None]
    if form == "multipart":
        assert all(
            each is not None or path.startswith("/batch")
            for each, (_, path, _, _) in zip(made, asked, strict=True)
        )
    for batch in batches(kept, 100, 10 << 20):
        outgoing = write(batch, form, None, bytes)
        if form == "json":
            parts = read_json_parts(outgoing.body, Bounds())
        else:
            kind = dict(outgoing.fields)["Content-Type"]
            parts = read_multipart_parts(outgoing.body, boundary_of(kind), Bounds())
        assert len(outgoing.body) <= sum(each.size for each in batch) + 200
        outer = {name.lower(): value for name, value in outgoing.fields}
        for part, each in zip(parts, batch, strict=True):
            assert (part.method, part.target, part.body) == (
                each.part.method,
                each.part.target,
                each.part.body,
            )
            inherited = {
                name: outer[name]
                for name in ("authorization", "cookie", "user-agent")
                if name in outer
            }
            seen = inherited | {name.lower(): value for name, value in part.fields}
            wanted = {name.lower(): value for name, value in each.part.fields}
            added = {"content-length", "content-type"}
            assert {k: v for k, v in seen.items() if k not in added} == wanted
        assert "if-match" not in outer


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 7), st.integers(100, 300))
def test_batches_keep_order_and_bounds(sizes: list[int], most: int, most_bytes: int) -> None:
    made = [Entry(entry().part, number % 3, size) for number, size in enumerate(sizes)]
    found = list(batches(made, most, most_bytes))
    assert {id(each) for batch in found for each in batch} == {id(each) for each in made}
    for batch in found:
        assert len(batch) <= most
        assert sum(each.size for each in batch) <= most_bytes
        assert len({each.lane for each in batch}) == 1
        assert [made.index(each) for each in batch] == sorted(made.index(each) for each in batch)


def test_boundary_is_drawn_again_where_it_is_in_a_body() -> None:
    drawn = iter([bytes(22), bytes([1] * 22)])
    taken = entry("PUT", "/a", body=b"--batch_" + b"0" * 22)
    outgoing = write([taken, entry()], "multipart", None, lambda _: next(drawn))
    assert dict(outgoing.fields)["Content-Type"].endswith("1" * 22)


# --- reading ------------------------------------------------------------------------------------


@given(st.data())
def test_nobody_is_without_an_answer_or_an_error(data: st.DataObject) -> None:
    """Whatever arrives: each has an answer of its own, an error, or the reply is not whole."""
    outgoing = write(entries(4), "multipart", None, bytes)
    name = st.sampled_from([*(f"<response-{n}>" for n in range(5)), None])
    sent = data.draw(st.lists(st.tuples(name, st.just(Answer(200, (), b"x"))), max_size=6))
    reply = multipart(sent, cut=data.draw(st.integers(0, 40)))
    reading = read(outgoing, reply)
    for number in range(4):
        if number in reading.answers:
            assert number not in reading.errors
    engine = Engine(endpoint(), Clock().world())
    mine = entries(4)
    drive(engine.exchange(mine), lambda _: reply)
    assert all(isinstance(each.verdict, Answered | Failed) for each in mine)


@given(st.binary(max_size=80), st.sampled_from([MULTIPART, JSON, ()]))
def test_any_bytes_are_an_error_at_worst(body: bytes, fields: Fields) -> None:
    mine = entries(2)
    drive(Engine(endpoint(), Clock().world()).exchange(mine), lambda _: Reply(200, fields, body))
    for each in mine:
        assert isinstance(each.verdict, Failed)
        assert isinstance(each.verdict.error, BatchProtocolError)


def test_answers_in_json_are_matched_by_id() -> None:
    mine = entries(2)
    items = [
        write_json_answer(Answer(200 + int(n), id=n), standard=False, minimal=False) for n in "10"
    ]
    body = b'{"responses": [%b]}' % b",".join(items)
    drive(Engine(endpoint(), Clock().world()).exchange(mine), lambda _: Reply(200, JSON, body))
    assert [statuses(each) for each in mine] == [200, 201]


def statuses(each: Entry) -> int:
    assert isinstance(each.verdict, Answered)
    return each.verdict.answer.status


# --- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "fields", "status", "kind"),
    [
        ("PUT", (), 0, Again),
        ("PUT", (), 503, Again),
        ("PUT", (), 501, Answered),
        ("POST", (), 500, Again),  # the batch has a key
        ("POST", (), 429, Again),
        ("POST", (), 401, Answered),
        ("POST", (), 404, Singly),
        ("POST", (), 307, Singly),
    ],
)
def test_replies_are_judged(method: str, fields: Fields, status: int, kind: type) -> None:
    mine = entries(2, method)
    drive(Engine(endpoint(retry=1), Clock().world()).exchange(mine), lambda _: Reply(status))
    assert [type(each.verdict) for each in mine] == [kind] * 2


def test_what_may_have_run_is_not_sent_again_without_a_key() -> None:
    mine = [entry("POST"), entry("PUT"), entry("POST", "/k", ("Idempotency-Key", '"own"'))]
    drive(Engine(endpoint(), Clock().world()).exchange(mine), lambda _: Reply(0))
    assert [each.repeatable for each in mine] == [False, True, True]
    assert [type(each.verdict) for each in mine] == [Failed] * 3


def test_key_of_a_batch_stays_with_its_requests() -> None:
    clock, keys = Clock(), []
    engine = Engine(endpoint(retry=2), clock.world())
    mine = entries(3, "POST")

    def lost(outgoing: Outgoing) -> Reply:
        keys.append((dict(outgoing.fields)["Idempotency-Key"], outgoing.names))
        return multipart([("<response-0>", Answer(201))], cut=4)

    drive(engine.exchange(mine), lost)
    assert [type(each.verdict) for each in mine] == [Answered, Again, Again]
    assert not engine.goes_singly(mine[2:])
    first = next(batches([*mine[1:], *entries(1)], 100, 1 << 20))
    assert first == mine[1:]
    drive(engine.exchange(mine[2:]), lost)
    assert keys == [('"k1"', ("0", "1", "2")), ('"k1"', ("2",))]


def test_pause_is_what_is_asked_for_and_some_jitter() -> None:
    mine = entries(2)
    reply = Reply(429, (("Retry-After", "7"),))
    drive(Engine(endpoint(retry=1), Clock().world()).exchange(mine), lambda _: reply)
    assert isinstance(mine[0].verdict, Again)
    assert 7 < mine[0].verdict.delay_s < 8


def test_halves_do_not_count_as_attempts() -> None:
    mine = entries(4)
    sizes = []

    def small(outgoing: Outgoing) -> Reply:
        sizes.append(len(outgoing.names))
        return Reply(413) if len(outgoing.names) > 1 else well(outgoing)

    drive(Engine(endpoint(), Clock().world()).exchange(mine), small)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    assert {each.sent for each in mine} == {1}


def always(reply: Reply, outgoing: Outgoing) -> Reply:
    return reply


def test_requests_that_depend_on_each_other_stay_together() -> None:
    for status in (404, 413):
        mine = entries(2)
        mine[0].related = True
        reply = Reply(status)
        drive(Engine(endpoint(), Clock().world()).exchange(mine), partial(always, reply))
        assert [type(each.verdict) for each in mine] == [Answered, Singly]


def test_absence_is_remembered_for_a_minute() -> None:
    clock = Clock()
    engine = Engine(endpoint(), clock.world())
    drive(engine.exchange(entries(2)), lambda _: Reply(404))
    assert engine.goes_singly(entries(5))
    clock.seconds += MEMORY_S
    assert not engine.goes_singly(entries(5))


def test_memory_of_absences_is_bounded() -> None:
    memory = Absences()
    for number in range(5000):
        memory.note(f"http://x/{number}", 0.0)
    assert len(memory._until) <= 1000
    assert memory.has("http://x/4999", 1.0)


def test_single_request_of_a_batch_takes_the_key_that_the_server_derived() -> None:
    engine = Engine(endpoint(retry=1), Clock().world())
    mine = entries(2, "POST")
    drive(engine.exchange(mine), lambda _: Reply(404))
    assert engine.single(mine[1]) == ("Idempotency-Key", '"k1:1"')
    assert engine.single(mine[1]) is None  # it has it now


# --- what the faces share -----------------------------------------------------------------------


class Problem:
    status_code = 424
    content = json.dumps({"type": "about:x#not-attempted", "title": "T"}).encode()
    headers: ClassVar[dict[str, str]] = {"content-type": "application/problem+json; charset=utf-8"}


def test_dependency_errors_name_the_problem() -> None:
    with pytest.raises(BatchDependencyError, match="not-attempted: T"):
        check_dependency(Problem())
    for content in (b"[]", b"no"):
        broken = Problem()
        broken.content = content
        with pytest.raises(BatchDependencyError, match="failed-dependency"):
            check_dependency(broken)


def test_errors_that_cannot_be_copied_are_shared() -> None:
    class Odd(Exception):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(one)

    odd, plain = Odd("a", "b"), ValueError("a")
    assert own(odd) is odd
    assert own(plain) is not plain
    assert str(own(plain)) == "a"


def test_thread_that_is_interrupted_before_sending_leaves_the_others_a_new_first() -> None:
    meeting = Meeting(Settings(max_parts=9), 60.0)
    first, second = entries(2)
    carried: list[list[Entry]] = []
    threads = [threading.Thread(target=meeting.attend, args=(second, carried.append), daemon=True)]

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            threads[0].start()
            while second not in room.entries:
                threading.Event().wait(0.001)
            raise KeyboardInterrupt

    with meeting._changed:
        room, leads = meeting._join(first)
        assert leads
    room.full = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        meeting._lead(room, first.meets, carried.append)
    while not meeting._open:
        threading.Event().wait(0.001)
    meeting.close()
    threads[0].join(10)
    assert carried == [[second]]


def test_child_process_begins_anew() -> None:
    meeting = Meeting(Settings(), 60.0)
    with meeting._changed:
        meeting._join(entry())
        meeting._forget()
    assert not meeting._open


@pytest.mark.parametrize("named", [True, False])
def test_answer_that_cannot_be_read_fails_its_own_request_alone(named: bool) -> None:
    ids = [f"Content-ID: <response-{n}>\r\n" if named else "" for n in range(2)]
    body = f"--b\r\n{ids[0]}\r\nnonsense\r\n--b\r\n{ids[1]}\r\nHTTP/1.1 204 No Content\r\n\r\n--b--"
    reply = Reply(200, (("Content-Type", "multipart/mixed; boundary=b"),), body.encode())
    reading = read(Outgoing((), b"", ("0", "1"), ()), reply)
    assert [answer.status for answer in reading.answers.values()] == [204]
    assert list(reading.answers) == [1]
    assert "can not be read" in str(reading.errors[0])
