"""A proxy that loses responses: what it lets through has happened all the same."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import suppress
from typing import Self


class LosingProxy:
    """Passes each connection to a server, and loses the answer of some.

    Args:
        port: of the server, on the loopback.
        share: of answers that are lost, from 0 to 1; half of them before their end.
        seed: makes the losses the same each time.
    """

    def __init__(self, port: int, share: float, seed: int) -> None:
        self._port = port
        self._share = share
        self._random = random.Random(seed)
        self.lost = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}{path}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(connection,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            threading.Thread(target=_copy, args=(client, server), daemon=True).start()
            answer = b""
            while part := server.recv(65536):
                answer += part
            fate = self._random.random()
            if fate < self._share:
                self.lost += 1
                # In the body: http.client takes a head that breaks off for a whole one.
                answer = b"" if fate < self._share / 2 else answer[:-5]
            with suppress(OSError):
                client.sendall(answer)
                # Closing alone would leave it open for as long as the other thread reads from it.
                client.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(65536):
            target.sendall(part)
