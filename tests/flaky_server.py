"""An HTTP server over plain sockets that misbehaves exactly as a test asks it to."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self, TypeAlias

IN_PROGRESS = b'{"type": "https://example.org/problems#idempotency-key-in-progress"}'
OTHER_CONFLICT = b'{"type": "https://example.org/problems#idempotency-outcome-unknown"}'


@dataclass(slots=True)
class Seen:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Behaviour: TypeAlias = Callable[[socket.socket, "Seen | None"], None]


def answer(status: int = 200, body: bytes = b"ok", **headers: str) -> Behaviour:
    """Answer in full; underscores in names stand for hyphens."""

    def behave(connection: socket.socket, seen: Seen | None) -> None:
        fields = {"Content-Length": str(len(body)), "Connection": "close"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        connection.sendall(f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + body)

    return behave


def problem(status: int, body: bytes, **headers: str) -> Behaviour:
    """Answer with a problem document."""
    return answer(status, body, Content_Type="application/problem+json", **headers)


def hang_up(connection: socket.socket, seen: Seen | None) -> None:
    """Close without a word, after the request has been read."""


def break_off(connection: socket.socket, seen: Seen | None) -> None:
    """Promise ten bytes and send three."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")


def break_off_chunked(connection: socket.socket, seen: Seen | None) -> None:
    """End in the middle of a chunk."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc")


def hang_up_unread(connection: socket.socket, seen: Seen | None) -> None:
    """Reset the connection before the request is read; the server looks for this function."""


@dataclass
class FlakyServer:
    """Behaves as the next of ``script`` for each connection, and as the last from there on.

    Connections are served one after another, so that tests know which behaviour meets which.
    """

    script: Sequence[Behaviour]
    tls: ssl.SSLContext | None = None
    connections: int = 0
    requests: list[Seen] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def url(self, path: str = "/") -> str:
        host, port = self._listener.getsockname()
        return f"{'http' if self.tls is None else 'https'}://{host}:{port}{path}"

    def keys(self) -> list[str | None]:
        return [request.headers.get("idempotency-key") for request in self.requests]

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            behave = self.script[min(self.connections, len(self.script) - 1)]
            self.connections += 1
            with connection, suppress(ssl.SSLError, ConnectionError):
                if self.tls is None:
                    self._handle(connection, behave)
                    continue
                with self.tls.wrap_socket(connection, server_side=True) as encrypted:
                    self._handle(encrypted, behave)

    def _handle(self, connection: socket.socket, behave: Behaviour) -> None:
        if behave is hang_up_unread:
            linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return
        seen = _read_request(connection)
        if seen is not None:
            self.requests.append(seen)
            behave(connection, seen)


def _read_request(connection: socket.socket) -> Seen | None:
    file = connection.makefile("rb")
    first = file.readline().decode()
    if not first:
        return None  # connected, and gone
    method, target, _ = first.split(" ", 2)
    headers: dict[str, str] = {}
    while (line := file.readline().strip()) != b"":
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(file.readline(), 16):
            body += file.read(size)
            file.readline()
        file.readline()
    else:
        body = file.read(int(headers.get("content-length", 0)))
    return Seen(method, target, headers, body)
