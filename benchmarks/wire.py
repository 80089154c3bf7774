"""A hundred requests over HTTP: one by one, by six connections, as streams of HTTP/2, as a batch.

Plain ``http.client`` sends them, so that no client library blurs what is compared; a batch is
written and read within what is measured. Where the way takes time a proxy of our own makes it so;
where it takes none there is no proxy. All connections are open before, and stay so.

HTTP/2 is there where hypercorn and h2 are installed. It is another server and another client, so
it says less than the others: what is left of the difference behind the waiting is theirs.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import httpx

from demijohn.core.batch import Part
from tests.processes import HOST, spawn, stop
from tests.serving import ROOT, Served

from . import timing
from .delay import delayed
from .echo import COUNT, FORMATS, batch_of, check, decoded, encoded, parts_of
from .requests import Case
from .timing import Times

APP: Final = "benchmarks.echo:app"
SEQUENCE: Final = f"{COUNT} one by one"
SIX: Final = f"{COUNT} by 6 connections"
STREAMS: Final = f"{COUNT} by HTTP/2"
KEEP_S: Final = 120
"""How long servers keep connections: one way rests while the others are measured."""


def over(way: str, rtt_ms: int) -> str:
    """Return the name of a case."""
    return f"{way}, {rtt_ms} ms away"


def measure(folder: Path, rounds: Mapping[int, int]) -> dict[str, Times]:
    """Measure every way.

    Args:
        folder: for what the servers write.
        rounds: how many, by the milliseconds of a round trip.
    """
    times: dict[str, Times] = {}
    with ExitStack() as stack:
        wsgi = stack.enter_context(_gunicorn(folder)).port
        h2 = stack.enter_context(_hypercorn(folder)) if has_h2() else None
        ports = [wsgi] if h2 is None else [wsgi, h2]
        far = [(port, rtt_ms) for rtt_ms in rounds for port in ports]
        led = dict(zip(far, stack.enter_context(delayed(far)), strict=True))
        for rtt_ms, number in rounds.items():
            near = [led[port, rtt_ms] if rtt_ms else port for port in ports]
            with ExitStack() as connections:
                cases = _cases(connections, *near)
                named = {over(way, rtt_ms): case for way, case in cases.items()}
                times |= timing.measure(named, rounds=number, calls=1, warm_up=0, settle=0)
    return times


def has_h2() -> bool:
    """Whether HTTP/2 can be measured."""
    return all(find_spec(name) is not None for name in ("hypercorn", "h2"))


def _gunicorn(folder: Path) -> Served:
    return Served(
        APP,
        folder / "gunicorn",
        workers=1,
        threads=8,
        worker_class="gthread",
        arguments=["--keep-alive", str(KEEP_S)],
    )


@contextmanager
def _hypercorn(folder: Path) -> Iterator[int]:
    with socket.create_server((HOST, 0), backlog=100) as listener:
        port: int = listener.getsockname()[1]
        process = spawn(
            [
                *(sys.executable, "-m", "hypercorn", "--bind", f"fd://{listener.fileno()}"),
                *("--workers", "1", "--keep-alive", str(KEEP_S), APP),
            ],
            log=folder / "hypercorn.log",
            cwd=ROOT,
            pass_fds=[listener.fileno()],
        )
    try:
        yield port
    finally:
        stop(process)


def _cases(stack: ExitStack, wsgi: int, h2: int | None = None) -> dict[str, Case]:
    parts = parts_of(COUNT)
    connections = [
        stack.enter_context(closing(HTTPConnection(HOST, wsgi, timeout=60))) for _ in range(6)
    ]
    pool = stack.enter_context(ThreadPoolExecutor(len(connections)))
    shares = [parts[number :: len(connections)] for number in range(len(connections))]

    def by_six() -> None:
        for _ in pool.map(_singly, connections, shares):
            pass

    cases: dict[str, Case] = {
        SEQUENCE: functools.partial(_singly, connections[0], parts),
        SIX: by_six,
    }
    if h2 is not None:
        cases[STREAMS] = _by_streams(stack, f"http://{HOST}:{h2}", parts)
    for connection in connections:  # opens it
        _singly(connection, parts[:1])
    for kind in FORMATS:
        cases[batch_of(COUNT, kind)] = functools.partial(_batched, connections[0], parts, kind)
        _batched(connections[0], parts[:1], kind)
    return cases


def _singly(connection: HTTPConnection, parts: Sequence[Part]) -> None:
    for part in parts:
        connection.request(part.method, part.target, part.body, dict(part.fields))
        with connection.getresponse() as response:
            response.read()
        check([response.status], 1)


def _batched(connection: HTTPConnection, parts: Sequence[Part], kind: str) -> None:
    content_type, body = encoded(parts, kind)
    connection.request("POST", "/batch", body, {"Content-Type": content_type})
    with connection.getresponse() as response:
        read = response.read()
    answers = decoded(response.headers["Content-Type"], read)
    check([answer.status for answer in answers], len(parts))


def _by_streams(stack: ExitStack, origin: str, parts: Sequence[Part]) -> Case:
    runner = stack.enter_context(asyncio.Runner())
    client = httpx.AsyncClient(
        base_url=origin,
        http1=False,
        http2=True,
        trust_env=False,
        timeout=60,
        limits=httpx.Limits(max_connections=1, keepalive_expiry=None),
    )
    stack.callback(lambda: runner.run(client.aclose()))

    async def ask(part: Part) -> int:
        response = await client.request(
            part.method, part.target, content=part.body, headers=dict(part.fields)
        )
        return response.status_code

    async def ask_all(wanted: Sequence[Part]) -> None:
        check(await asyncio.gather(*[ask(part) for part in wanted]), len(wanted))

    runner.run(ask_all(parts[:1]))  # opens the connection
    return lambda: runner.run(ask_all(parts))
