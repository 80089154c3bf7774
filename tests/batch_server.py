"""A small server of batches over real sockets, which misbehaves as a test asks it to."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from werkzeug import Request, Response
from werkzeug.serving import WSGIRequestHandler, make_server

from demijohn.core.batch import (
    Answer,
    Bounds,
    Part,
    boundary_of,
    read_json_parts,
    read_multipart_parts,
    response_id,
    write_json_answer,
    write_multipart,
    write_response,
)
from demijohn.core.batch import field as field_of

Behaviour: TypeAlias = Callable[["BatchServer", Request], Any]
Answers: TypeAlias = list[tuple[str | None, Answer]]


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


def refuse(status: int, **headers: str) -> Behaviour:
    """Answer the batch as a whole."""

    def behave(server: BatchServer, request: Request) -> Response:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return Response(f"refused {status}", status, fields)

    return behave


def hang_up(server: BatchServer, request: Request) -> Response:
    """Close the connection, having run nothing."""
    _shut(request)
    return Response()


def run_and_hang_up(server: BatchServer, request: Request) -> Response:
    """Close the connection, having run everything."""
    server.run(request)
    _shut(request)
    return Response()


def _shut(request: Request) -> None:
    connection: socket.socket = request.environ["werkzeug.socket"]
    connection.shutdown(socket.SHUT_RDWR)


def truncate(after: int, *, honest: bool = False) -> Behaviour:
    """Send so many parts and a piece of the next; ``honest`` about the length of that."""

    def behave(server: BatchServer, request: Request) -> Response:
        body, kind = server.multipart(server.run(request))
        cut = [found.start() for found in re.finditer(rb"(?m)^--batch_", body)][after] + 70
        response = Response(body[:cut], 200, {"Content-Type": kind})
        if not honest:
            response.headers["Content-Length"] = str(len(body))
            response.headers["Connection"] = "close"
        return response

    return behave


def changed(change: Callable[[Answers], Answers]) -> Behaviour:
    """Send other answers than there are."""

    def behave(server: BatchServer, request: Request) -> Response:
        body, kind = server.multipart(change(server.run(request)))
        return Response(body, 200, {"Content-Type": kind})

    return behave


def dropped(number: int) -> Behaviour:
    return changed(lambda answers: answers[:number] + answers[number + 1 :])


def duplicated(number: int) -> Behaviour:
    return changed(lambda answers: [*answers, answers[number]])


def _nameless(answers: Answers) -> Answers:
    return [(None, answer) for _, answer in answers]


reordered = changed(lambda answers: answers[::-1])
nameless = changed(_nameless)
nameless_but_one = changed(lambda answers: _nameless(answers)[1:])
with_extra = changed(lambda answers: [*answers, ("<response-strange>", Answer(200))])


def in_lines_of_lf(server: BatchServer, request: Request) -> Response:
    body, kind = server.multipart(server.run(request))
    return Response(body.replace(b"\r\n", b"\n"), 200, {"Content-Type": kind})


def in_json(server: BatchServer, request: Request) -> Response:
    return server.json(server.run(request))


def page(server: BatchServer, request: Request) -> Response:
    """Answer as a portal does that knows nothing of it."""
    return Response("<p>Welcome", 200, {"Content-Type": "text/html"})


@dataclass
class BatchServer:
    """Serves ``/batch`` and the resources in it.

    Args:
        script: how each batch is treated, one after the other; well when it is used up.
        most: how many parts a batch may have; else 413.
        waits: how often ``/limited`` answers 429.
    """

    script: list[Behaviour] = field(default_factory=list)
    most: int = 1000
    waits: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    done: dict[str, Answer] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._server = make_server(
            "127.0.0.1", 0, self._serve, threaded=True, request_handler=_Handler
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def url(self, path: str = "/batch") -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    @property
    def sent(self) -> list[str]:
        """The requests in HTTP, as "METHOD path"."""
        return [f"{method} {path}" for method, path in self.requests]

    def _serve(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        request = Request(environ)
        body = request.get_data()
        with self._lock:
            self.requests.append((request.method, request.path))
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
            self.bodies.append(body)
            if request.path == "/batch":
                behave = self.script.pop(0) if self.script else well
                response = behave(self, request)
            else:
                fields = tuple(request.headers.items())
                part = Part(request.method, request.full_path.rstrip("?"), fields, body)
                response = _whole(self.answer(part, None))
        return response(environ, start)

    def parts(self, request: Request) -> list[Part]:
        kind = request.headers["Content-Type"]
        if request.mimetype == "application/json":
            return read_json_parts(request.get_data(), Bounds())
        return read_multipart_parts(request.get_data(), boundary_of(kind), Bounds())

    def run(self, request: Request) -> Answers:
        key = request.headers.get("Idempotency-Key")
        answers: Answers = []
        for part in self.parts(request):
            inherited = [
                (name, value)
                for name in ("Authorization", "Cookie", "User-Agent")
                if (value := request.headers.get(name))
                and field_of(part.fields, name.lower()) is None
            ]
            full = Part(part.method, part.target, (*part.fields, *inherited), part.body)
            derived = None if key is None else f"{key}:{part.id}"
            name = part.id
            if name is not None and request.mimetype != "application/json":
                name = response_id(name)
            answers.append((name, self.answer(full, derived)))
        return answers

    def answer(self, part: Part, derived: str | None) -> Answer:
        key = field_of(part.fields, "idempotency-key") or derived
        if part.method in {"POST", "PATCH"} and key is not None and key in self.done:
            return self.done[key]
        path = part.target.partition("?")[0]
        if path == "/limited" and self.waits:
            self.waits -= 1
            return Answer(429, (("Retry-After", "0"),))
        self.ran.append(f"{part.method} {part.target}")
        answer = _answered(part, path)
        if key is not None:
            self.done[key] = answer
        return answer

    def multipart(self, answers: Answers) -> tuple[bytes, str]:
        boundary = "batch_0123456789"
        messages = [(name, write_response(answer)) for name, answer in answers]
        return write_multipart(messages, boundary), f"multipart/mixed; boundary={boundary}"

    def json(self, answers: Answers) -> Response:
        items = [
            write_json_answer(
                Answer(
                    answer.status,
                    answer.fields,
                    answer.body,
                    (name or "").replace("response-", "").strip("<>"),
                ),
                standard=False,
                minimal=False,
            )
            for name, answer in answers
        ]
        body = b'{"responses": [%b]}' % b",".join(items)
        return Response(body, 200, {"Content-Type": "application/json"})


def well(server: BatchServer, request: Request) -> Response:
    """Do what is asked for, in the format in which it is asked for."""
    if len(server.parts(request)) > server.most:
        return Response("too many", 413)
    answers = server.run(request)
    if "json" in request.headers.get("Accept", ""):
        return server.json(answers)
    body, kind = server.multipart(answers)
    return Response(body, 200, {"Content-Type": kind})


def _answered(part: Part, path: str) -> Answer:
    if path.startswith("/status/"):
        return Answer(int(path[8:]), (("Content-Type", "text/plain"),), b"as asked")
    if path == "/cookie":
        return Answer(204, (("Set-Cookie", "taste=sweet; Path=/"), ("Set-Cookie", "b=2; Path=/")))
    if path == "/redirect":
        return Answer(302, (("Location", "/items/1"),))
    if path == "/binary":
        return Answer(200, (("Content-Type", "application/octet-stream"),), bytes(range(256)))
    if path == "/rolled-back":
        problem = {"type": "https://x/problems#rolled-back", "detail": "another one failed"}
        kind = (("Content-Type", "application/problem+json"),)
        return Answer(424, kind, json.dumps(problem).encode())
    seen = {
        "method": part.method,
        "target": part.target,
        "body": part.body.decode("utf-8", "replace"),
        "authorization": field_of(part.fields, "authorization"),
        "cookie": field_of(part.fields, "cookie"),
        "x-test": field_of(part.fields, "x-test"),
    }
    body = b"" if part.method == "HEAD" else json.dumps(seen).encode()
    return Answer(200, (("Content-Type", "application/json"),), body)


def _whole(answer: Answer) -> Response:
    response = Response(answer.body, answer.status)
    for name in {name for name, _ in answer.fields}:
        response.headers.remove(name)
    response.headers.extend(answer.fields)
    return response
