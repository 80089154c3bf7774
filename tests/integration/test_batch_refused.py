"""Bad batches over a raw socket: each is refused by its kind, and nothing of it runs."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.processes import HOST
from tests.serving import Serve, Served

GET = "GET /echo HTTP/1.1\n\n"
HEAD = "Content-Type: application/http\n\n"


def part(request: str = GET, head: str = HEAD) -> str:
    return f"--b\n{head}{request}\n"


def mixed(*parts: str, end: str = "--b--\n") -> bytes:
    return ("".join(parts) + end).replace("\n", "\r\n").encode("latin-1")


def requests(*each: Any, **more: Any) -> bytes:
    return json.dumps({"requests": list(each), **more}).encode()


def get(**more: Any) -> dict[str, Any]:
    return {"id": "1", "method": "GET", "url": "/echo", **more}


MIXED = "multipart/mixed; boundary=b"
JSON = "application/json"
GOOD = part()

# Behind each good first part comes the bad one: had anything run, it would have been that.
CORPUS: dict[str, tuple[str, bytes, int, str]] = {
    # the envelope
    "form": ("application/x-www-form-urlencoded", b"a=b", 415, "unsupported-media-type"),
    "form data": ("multipart/form-data; boundary=b", mixed(GOOD), 415, "unsupported-media-type"),
    "text": ("text/plain", b"GET /echo", 415, "unsupported-media-type"),
    "no type": ("", mixed(GOOD), 415, "unsupported-media-type"),
    "no boundary": ("multipart/mixed", mixed(GOOD), 400, "bad-boundary"),
    "empty boundary": ('multipart/mixed; boundary=""', mixed(GOOD), 400, "bad-boundary"),
    "long boundary": (f"multipart/mixed; boundary={'b' * 71}", mixed(GOOD), 400, "bad-boundary"),
    "illegal boundary": ('multipart/mixed; boundary="b*"', mixed(GOOD), 400, "bad-boundary"),
    "too large": (MIXED, mixed(*[part()] * 19, "\n" * 20_000), 413, "batch-too-large"),
    "too many parts": (MIXED, mixed(*[GOOD] * 21), 413, "too-many-parts"),
    "part too large": (MIXED, mixed(GOOD, part(GET + "x" * 2_001)), 413, "part-too-large"),
    "no parts": (MIXED, mixed(), 400, "malformed-batch"),
    "nothing": (MIXED, b"", 400, "malformed-batch"),
    "no end": (MIXED, mixed(GOOD, GOOD, end=""), 400, "malformed-batch"),
    "delimiter behind the end": (MIXED, mixed(GOOD) + mixed(GOOD), 400, "malformed-batch"),
    # parts
    "no header end": (
        MIXED,
        mixed(GOOD, "--b\nContent-Type: application/http\n"),
        400,
        "malformed-batch",
    ),
    "no request": (MIXED, mixed(GOOD, part("")), 400, "malformed-batch"),
    "no head end": (
        MIXED,
        mixed(GOOD, "--b\n" + HEAD + "GET /echo HTTP/1.1\nA: b\n"),
        400,
        "malformed-batch",
    ),
    "part type": (
        MIXED,
        mixed(GOOD, part(head="Content-Type: text/plain\n\n")),
        400,
        "bad-part-type",
    ),
    "no part type": (MIXED, mixed(GOOD, part(head="\n")), 400, "bad-part-type"),
    "base64": (
        MIXED,
        mixed(GOOD, part(head="Content-Transfer-Encoding: base64\n" + HEAD)),
        400,
        "malformed-batch",
    ),
    "chunked part": (
        MIXED,
        mixed(GOOD, part("PUT /echo HTTP/1.1\nTransfer-Encoding: chunked\n\n0\n\n")),
        400,
        "malformed-batch",
    ),
    "too little content": (
        MIXED,
        mixed(GOOD, part("PUT /echo HTTP/1.1\nContent-Length: 999\n\n1234567\n")),
        400,
        "malformed-batch",
    ),
    "too much content": (
        MIXED,
        mixed(GOOD, part("PUT /echo HTTP/1.1\nContent-Length: 3\n\n1234567\n")),
        400,
        "malformed-batch",
    ),
    "two lengths": (
        MIXED,
        mixed(GOOD, part("PUT /echo HTTP/1.1\nContent-Length: 1\nContent-Length: 1\n\n1\n")),
        400,
        "malformed-batch",
    ),
    "signed length": (
        MIXED,
        mixed(GOOD, part("PUT /echo HTTP/1.1\nContent-Length: +1\n\n1\n")),
        400,
        "malformed-batch",
    ),
    "request line": (MIXED, mixed(GOOD, part("GET\n\n")), 400, "malformed-part"),
    "method": (MIXED, mixed(GOOD, part("G(T /echo HTTP/1.1\n\n")), 400, "malformed-part"),
    "space in target": (MIXED, mixed(GOOD, part("GET /ec ho HTTP/1.1\n\n")), 400, "malformed-part"),
    "control in target": (
        MIXED,
        mixed(GOOD, part("GET /ec\x00ho HTTP/1.1\n\n")),
        400,
        "malformed-part",
    ),
    "tab in target": (MIXED, mixed(GOOD, part("GET /ec\tho HTTP/1.1\n\n")), 400, "malformed-part"),
    "fragment": (MIXED, mixed(GOOD, part("GET /echo#x HTTP/1.1\n\n")), 400, "malformed-part"),
    "asterisk": (MIXED, mixed(GOOD, part("OPTIONS * HTTP/1.1\n\n")), 400, "malformed-part"),
    "version": (MIXED, mixed(GOOD, part("GET /echo HTTP/3\n\n")), 400, "malformed-part"),
    "header name": (
        MIXED,
        mixed(GOOD, part("GET /echo HTTP/1.1\nA b: c\n\n")),
        400,
        "malformed-part",
    ),
    "space before colon": (
        MIXED,
        mixed(GOOD, part("GET /echo HTTP/1.1\nA : c\n\n")),
        400,
        "malformed-part",
    ),
    "control in header": (
        MIXED,
        mixed(GOOD, part("GET /echo HTTP/1.1\nA: \x00\n\n")),
        400,
        "malformed-part",
    ),
    "folded header": (
        MIXED,
        mixed(GOOD, part("GET /echo HTTP/1.1\nA: b\n c\n\n")),
        400,
        "malformed-part",
    ),
    "two hosts": (
        MIXED,
        mixed(GOOD, part("GET /echo HTTP/1.1\nHost: a\nHost: b\n\n")),
        400,
        "malformed-part",
    ),
    "large head": (
        MIXED,
        mixed(GOOD, part(f"GET /echo HTTP/1.1\nA: {'a' * 17_000}\n\n")),
        413,
        "part-too-large",
    ),
    "many headers": (
        MIXED,
        mixed(GOOD, part("GET /echo HTTP/1.1\n" + "A: b\n" * 101 + "\n")),
        431,
        "part-header-too-large",
    ),
    "connect": (MIXED, mixed(GOOD, part("CONNECT /echo HTTP/1.1\n\n")), 400, "forbidden-part"),
    "trace": (MIXED, mixed(GOOD, part("trace /echo HTTP/1.1\n\n")), 400, "forbidden-part"),
    "nested": (MIXED, mixed(GOOD, part("POST /batch HTTP/1.1\n\n")), 400, "nested-batch"),
    "nested, encoded": (
        MIXED,
        mixed(GOOD, part("POST /%62atch HTTP/1.1\n\n")),
        400,
        "nested-batch",
    ),
    "nested, dots": (
        MIXED,
        mixed(GOOD, part("POST /x/../batch HTTP/1.1\n\n")),
        400,
        "nested-batch",
    ),
    "nested, slashes": (
        MIXED,
        mixed(GOOD, part("POST /.//batch/ HTTP/1.1\n\n")),
        400,
        "nested-batch",
    ),
    "foreign origin": (
        MIXED,
        mixed(GOOD, part("GET http://evil.example/echo HTTP/1.1\n\n")),
        400,
        "foreign-origin",
    ),
    "foreign port": (
        MIXED,
        mixed(GOOD, part("GET http://localhost:1/echo HTTP/1.1\n\n")),
        400,
        "foreign-origin",
    ),
    "foreign scheme": (
        MIXED,
        mixed(GOOD, part("GET ftp://localhost/echo HTTP/1.1\n\n")),
        400,
        "foreign-origin",
    ),
    "two slashes": (
        MIXED,
        mixed(GOOD, part("GET //evil.example/echo HTTP/1.1\n\n")),
        400,
        "foreign-origin",
    ),
    "user": (
        MIXED,
        mixed(GOOD, part("GET http://me@localhost/echo HTTP/1.1\n\n")),
        400,
        "foreign-origin",
    ),
    "foreign host": (
        MIXED,
        mixed(GOOD, part("GET /echo HTTP/1.1\nHost: evil.example\n\n")),
        400,
        "foreign-origin",
    ),
    "same id": (MIXED, mixed(*[part(head="Content-ID: <1>\n" + HEAD)] * 2), 400, "bad-id"),
    "change set without a database": (
        MIXED,
        mixed(
            GOOD,
            "--b\nContent-Type: multipart/mixed; boundary=c\n\n",
            "--c\n",
            HEAD,
            GET,
            "\n--c--\n",
        ),
        501,
        "atomic-not-supported",
    ),
    # JSON
    "not JSON": (JSON, b"{", 400, "malformed-batch"),
    "not UTF-8": (JSON, b'{"requests":["\xff"]}', 400, "malformed-batch"),
    "UTF-16": (JSON, requests(get()).decode().encode("utf-16"), 400, "malformed-batch"),
    "list": (JSON, b"[]", 400, "malformed-batch"),
    "no requests": (JSON, b"{}", 400, "malformed-batch"),
    "empty requests": (JSON, requests(), 400, "malformed-batch"),
    "requests not a list": (JSON, b'{"requests":{}}', 400, "malformed-batch"),
    "unknown member": (JSON, requests(get(), more=1), 400, "malformed-batch"),
    "unknown member of a request": (JSON, requests(get(if_="x")), 400, "malformed-batch"),
    "name twice": (
        JSON,
        b'{"requests":[{"id":"1","id":"2","method":"GET","url":"/echo"}]}',
        400,
        "malformed-batch",
    ),
    "NaN": (
        JSON,
        b'{"requests":[{"id":"1","method":"PUT","url":"/echo","body":NaN}]}',
        400,
        "malformed-batch",
    ),
    "deep": (
        JSON,
        requests(get(method="PUT", body=1)).replace(b": 1}", b":" + b"[" * 70 + b"]" * 70 + b"}"),
        400,
        "malformed-batch",
    ),
    "very deep": (JSON, b"[" * 19_000, 400, "malformed-batch"),
    "GET with a body": (JSON, requests(get(body={})), 400, "malformed-batch"),
    "DELETE with a body": (JSON, requests(get(method="DELETE", body="x")), 400, "malformed-batch"),
    "no id": (JSON, requests({"method": "GET", "url": "/echo"}), 400, "bad-id"),
    "id twice": (JSON, requests(get(id="a"), get(id="A")), 400, "bad-id"),
    "id is a group": (JSON, requests(get(id="g"), get(id="a", atomicityGroup="g")), 400, "bad-id"),
    "unknown dependency": (JSON, requests(get(dependsOn=["9"])), 400, "bad-dependency"),
    "own dependency": (JSON, requests(get(dependsOn=["1"])), 400, "bad-dependency"),
    "group apart": (
        JSON,
        requests(get(id="1", atomicityGroup="g"), get(id="2"), get(id="3", atomicityGroup="g")),
        400,
        "bad-dependency",
    ),
    "group without a database": (
        JSON,
        requests(get(), get(id="2", atomicityGroup="g")),
        501,
        "atomic-not-supported",
    ),
    "too many requests": (
        JSON,
        requests(*[get(id=str(i)) for i in range(21)]),
        413,
        "too-many-parts",
    ),
    "large body": (
        JSON,
        requests(get(), get(id="2", method="PUT", body="x" * 3000)),
        413,
        "part-too-large",
    ),
    "line break in a header": (
        JSON,
        requests(get(headers={"A": "b\r\nC: d"})),
        400,
        "malformed-part",
    ),
    "header not a string": (JSON, requests(get(headers={"A": []})), 400, "malformed-part"),
    "header beyond latin-1": (JSON, requests(get(headers={"A": "€"})), 400, "malformed-part"),
    "url with a space": (JSON, requests(get(url="/ec ho")), 400, "malformed-part"),
    "no url": (JSON, requests({"id": "1", "method": "GET"}), 400, "malformed-part"),
    "foreign url": (
        JSON,
        requests(get(), get(id="2", url="https://evil.example/")),
        400,
        "foreign-origin",
    ),
    "nested url": (
        JSON,
        requests(get(), get(id="2", method="POST", url="batch")),
        400,
        "nested-batch",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    pytest.importorskip("gunicorn")
    env = {"CONTROL": str(folder)}
    with Served(
        "tests.apps.batches:create_app()",
        folder / "gunicorn",
        workers=1,
        threads=2,
        worker_class="gthread",
        env=env,
    ) as served:
        yield served


def exchange(served: Served, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, and read until the server closes."""
    with socket.create_connection((HOST, served.port), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), fields, body


def post(kind: str, body: bytes, *fields: str) -> bytes:
    head = ["POST /batch HTTP/1.1", "Host: localhost", "Connection: close", *fields]
    if kind:
        head.append(f"Content-Type: {kind}")
    if not any(field.startswith("Transfer-Encoding") for field in fields):
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


def ran(folder: Path) -> int:
    file = folder / "ran"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.parametrize("name", CORPUS)
def test_bad_batch_is_refused_and_nothing_runs(served: Served, folder: Path, name: str) -> None:
    kind, body, status, slug = CORPUS[name]
    before = ran(folder)
    found, fields, content = exchange(served, post(kind, body))
    assert fields["content-type"] == "application/problem+json", content
    problem = json.loads(content)
    assert (found, problem["type"].rpartition("#")[2]) == (status, slug), problem
    assert problem["status"] == status
    assert problem["detail"]
    assert fields["cache-control"] == "no-store"
    assert ran(folder) == before


def chunked(body: bytes, size: int = 1000) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def test_chunked_batch_is_counted_while_it_is_read(served: Served, folder: Path) -> None:
    before = ran(folder)
    body = mixed(GOOD, "\n" * 20_000)
    found, _, content = exchange(served, post(MIXED, chunked(body), "Transfer-Encoding: chunked"))
    assert (found, json.loads(content).get("limit")) == (413, 20_000), content
    assert ran(folder) == before
    good = post(MIXED, chunked(mixed(GOOD)), "Transfer-Encoding: chunked")
    assert exchange(served, good)[0] == 200
    assert ran(folder) == before + 1


def test_compressed_batch_is_not_inflated(served: Served, folder: Path) -> None:
    before = ran(folder)
    found, _, content = exchange(served, post(JSON, b"\x1f\x8b", "Content-Encoding: gzip"))
    assert (found, json.loads(content)["type"].rpartition("#")[2]) == (
        415,
        "unsupported-media-type",
    )
    assert ran(folder) == before


def test_body_that_breaks_off_runs_nothing(served: Served, folder: Path) -> None:
    before = ran(folder)
    whole = post(MIXED, mixed(GOOD, GOOD))
    with socket.create_connection((HOST, served.port), timeout=30) as connection:
        connection.sendall(whole[:-8])
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    assert answer == b"" or answer.split()[1] == b"400"
    assert ran(folder) == before


def test_the_number_and_the_id_of_the_part_are_told(served: Served) -> None:
    named = part("GET http://evil.example/ HTTP/1.1\n\n", head="Content-ID: <x>\n" + HEAD)
    _, _, content = exchange(served, post(MIXED, mixed(GOOD, named)))
    problem = json.loads(content)
    assert (problem["part"], problem["id"]) == (1, "<x>")


def test_good_batch_over_the_same_socket_code_runs(served: Served, folder: Path) -> None:
    before = ran(folder)
    assert exchange(served, post(MIXED, mixed(GOOD, GOOD)))[0] == 200
    assert exchange(served, post(JSON, requests(get())))[0] == 200
    assert ran(folder) == before + 3


@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
def test_every_kind_of_worker_takes_batches(
    serve: Serve, tmp_path: Path, worker: Literal["sync", "gthread", "gevent"]
) -> None:
    """Also with reads side by side, each in a thread, or a greenlet, of its own."""
    if worker == "gevent":
        pytest.importorskip("gevent")
    env = {"CONTROL": str(tmp_path), "WORKERS": "4"}
    served = serve("tests.apps.batches:create_app()", workers=1, worker_class=worker, env=env)
    status, _, content = exchange(served, post(JSON, requests(*[get(id=str(i)) for i in range(9)])))
    assert status == 200
    assert [part["status"] for part in json.loads(content)["responses"]] == [200] * 9
    assert ran(tmp_path) == 9
