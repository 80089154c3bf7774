"""Reading takes time that is linear in what arrives: eight times as much, not 64 times as long."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable

import pytest

from demijohn.core.batch import (
    Answer,
    Bounds,
    Malformed,
    Part,
    Unresolved,
    boundary_of,
    plan,
    read_json_answers,
    read_json_parts,
    read_multipart_answers,
    read_multipart_parts,
    resolve,
)
from demijohn.core.batch.references import mentioned
from demijohn.core.batch.targets import normal

MANY = Bounds(parts=1 << 30, part=1 << 30, head=1 << 30, fields=1 << 30)
HEAD = b"--b\nContent-Type: application/http\n\n"
JSON = (("Content-Type", "application/json"),)
# What doubles with every doubling is 8; what is quadratic is 64.
MOST = 40
# Less than this says nothing.
SHORT_S = 0.02


def multipart(body: bytes) -> Callable[[], object]:
    return lambda: read_multipart_parts(body, "b", MANY)


def answers(body: bytes) -> Callable[[], object]:
    return lambda: read_multipart_answers(body, "b", MANY)


def in_json(body: bytes) -> Callable[[], object]:
    return lambda: read_json_parts(body, MANY)


def requests(*items: object) -> bytes:
    return json.dumps({"requests": items}).encode()


def planned(parts: list[Part]) -> Callable[[], object]:
    return lambda: plan(parts, ignore_case=True, references=True, atomic=False)


def resolved(text: str, value: object = "x", **fields: str) -> Callable[[], object]:
    part = Part("POST", "/", (*JSON, *fields.items()), text.encode(), "2", None, ("1",))
    answer = {"1": Answer(200, (), json.dumps(value).encode())}
    return lambda: resolve(part, answer, str, MANY)


def named(text: str) -> Callable[[], object]:
    part = Part("GET", text, (("X", text),))
    return lambda: mentioned(part, {})


SHAPES: dict[str, Callable[[int], Callable[[], object]]] = {
    "parts": lambda n: multipart((HEAD + b"GET /\n\n") * n + b"--b--"),
    "fields of a part": lambda n: multipart(b"--b\n" + b"a:b\n" * n + b"\n--b--"),
    "fields of a request": lambda n: multipart(HEAD + b"GET /\n" + b"a:b\n" * n + b"\n--b--"),
    "one long name": lambda n: multipart(HEAD + b"GET /\n" + b"a" * n * 10 + b"\n\n--b--"),
    "one long value": lambda n: multipart(HEAD + b"GET /\na:" + b" " * n * 10 + b"\0\n\n--b--"),
    "one long target": lambda n: multipart(HEAD + b"GET " + b"/" * n * 10 + b"\0\n\n--b--"),
    "spaces behind a request line": lambda n: multipart(
        HEAD + b"GET /" + b" " * n * 10 + b"x\n\n--b--"
    ),
    "line breaks before a request": lambda n: multipart(HEAD + b"\n" * n + b"GET /\n\n--b--"),
    "line breaks behind a body": lambda n: multipart(
        HEAD + b"POST /\nContent-Length: 1\n\nx" + b"\r\n" * n + b"--b--"
    ),
    "lookalikes of delimiters": lambda n: multipart(
        HEAD + b"POST /\n\n" + b"--bb\n" * n + b"--b--"
    ),
    "lookalikes in one line": lambda n: multipart(HEAD + b"POST /\n\n" + b"--b" * n + b"\n--b--"),
    "spaces behind a delimiter": lambda n: multipart(b"--b" + b" " * n * 10 + b"x\n--b--"),
    "spaces behind delimiters": lambda n: multipart((b"--b" + b" \t" * 50 + b"x\n") * n),
    "empty parts": lambda n: answers(b"--b\n" * n),
    "nested change sets": lambda n: multipart(
        b"--b\nContent-Type: multipart/mixed; boundary=b\n\n" * n + b"--b--"
    ),
    "answers": lambda n: answers(b"--b\n\nHTTP/1.1 200 OK\n\nx\n" * n + b"--b--"),
    "parameters": lambda n: lambda: boundary_of("a/b" + ";a=b" * n),
    "semicolons": lambda n: lambda: boundary_of("a/b" + " ; " * n),
    "one open quote": lambda n: lambda: boundary_of('a/b;a="' + "\\a" * n),
    "open quotes": lambda n: lambda: boundary_of("a/b" + ';a="' * n),
    "requests": lambda n: in_json(
        requests(*[{"id": str(i), "method": "GET", "url": "/"} for i in range(n)])
    ),
    "headers": lambda n: in_json(
        requests(
            {"id": "1", "method": "GET", "url": "/", "headers": {f"a{i}": "" for i in range(n)}}
        )
    ),
    "names": lambda n: in_json(b"{" + b",".join(b'"%d":1' % i for i in range(n)) + b"}"),
    "names, the last one twice": lambda n: in_json(
        b"{" + b",".join(b'"%d":1' % i for i in range(n)) + b',"x":1,"x":1}'
    ),
    "wide": lambda n: in_json(b"[" + b"[[]]," * n + b"1]"),
    "deep": lambda n: in_json(b"[" * n),
    "digits": lambda n: in_json(b'{"requests":[{"body":' + b"9" * n * 10 + b"}]}"),
    "responses": lambda n: (
        lambda: read_json_answers(
            json.dumps({"responses": [{"status": 200, "body": 1}] * n}).encode()
        )
    ),
    "ids": lambda n: planned([Part("GET", "/", id=str(i)) for i in range(n)]),
    "one group": lambda n: planned([Part("GET", "/", group="g")] * n),
    "groups": lambda n: planned([Part("GET", "/", group=str(i)) for i in range(n)]),
    "one long list of dependencies": lambda n: planned(
        [
            *[Part("GET", "/", id=str(i)) for i in range(n)],
            Part("GET", "/", depends_on=tuple(map(str, range(n)))),
        ]
    ),
    "a group in a list, often": lambda n: planned(
        [*[Part("GET", "/", group="g")] * (n // 8), Part("GET", "/", depends_on=("g",) * n)]
    ),
    "references in a head": lambda n: named("/@{1.body.x}" * n),
    "open references": lambda n: named("@{" * n),
    "places in a reference": lambda n: named("@{x" + ".body.body." * n),
    "places in a reference that ends badly": lambda n: named("@{x" + ".body" * n + ".}"),
    "escaped references": lambda n: named("@@{" * n),
    "ids in a reference": lambda n: named("@{" + "a" * n * 10 + "}"),
    "references in a field": lambda n: resolved("", X="@{1.body}" * n),
    "references in a body": lambda n: resolved(json.dumps(["@{1.body}"] * n)),
    "references into a large answer": lambda n: resolved(
        json.dumps([f"@{{1.body.{i}}}" for i in range(n)]), list(range(n))
    ),
    "signs in a body": lambda n: resolved(json.dumps(["@{", *["@"] * n * 4])),
    "names in a body": lambda n: resolved(json.dumps({f"@{{{i}": 1 for i in range(n * 4)})),
    "spaces behind a string": lambda n: resolved('["@{"' + " " * n * 10 + "]"),
    "quotes that are escaped": lambda n: resolved('["@{1.body}' + '\\"' * n + '"]'),
    "quotes in what is no JSON": lambda n: resolved('["@{1.body}' + '\\"' * n),
    "dots in a path": lambda n: lambda: normal("/.." * n),
    "percent signs in a path": lambda n: lambda: normal("/%25" * n),
}


def seconds(run: Callable[[], object]) -> float:
    """Return the least of three."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        with contextlib.suppress(Malformed, Unresolved):
            run()
        found.append(time.perf_counter() - start)
    return min(found)


@pytest.mark.parametrize("shape", SHAPES)
def test_eight_times_as_much_does_not_take_64_times_as_long(shape: str) -> None:
    make = SHAPES[shape]

    def is_linear() -> bool:
        less, more = seconds(make(2_000)), seconds(make(16_000))
        return more < SHORT_S or more / less < MOST

    # A machine that is busy with something else is slow at times, quadratic work is so always.
    assert any(is_linear() for _ in range(6))
