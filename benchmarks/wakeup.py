"""How long it takes until those who wait for a key hear that it is completed."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import threading
import time
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final

import redis

from demijohn.core import idempotency as core
from demijohn.core.step import Step
from demijohn.stores import Store, open_store

from .requests import BODY

SPAWN: Final = multiprocessing.get_context("spawn")
SETTLE_S: Final = 0.05
"""How long waiters are given to be waiting before they are woken."""


def percentiles(values: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile of milliseconds."""
    ordered = sorted(values)
    return {
        "p50_ms": statistics.median(ordered),
        "p99_ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
    }


# --- the floor: publish and subscribe by redis-py -----------------------------------------------


def _subscriber(url: str, pipe: Connection) -> None:
    subscription = redis.Redis.from_url(url).pubsub()
    subscription.subscribe("benchmark")
    subscription.get_message(timeout=5)
    pipe.send(None)
    while True:
        message = subscription.get_message(timeout=5)
        arrived = time.perf_counter_ns()
        if message is not None and message["data"] == b"end":
            return
        if message is not None:
            pipe.send(arrived)


def publish(url: str, samples: int) -> dict[str, float]:
    """From PUBLISH to the subscriber of another process."""
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_subscriber, args=(url, theirs), daemon=True)
    process.start()
    ours.recv()
    client = redis.Redis.from_url(url)
    taken = []
    for _ in range(samples):
        time.sleep(SETTLE_S)
        started = time.perf_counter_ns()
        client.publish("benchmark", b"now")
        taken.append((ours.recv() - started) / 1e6)
    client.publish("benchmark", b"end")
    process.join(5)
    return percentiles(taken)


# --- Demijohn: from the completion to the end of the wait ----------------------------------------


def _begin(key: str, token: bytes, inbox: str = "") -> Step:
    return core.begin(
        (key,),
        fingerprint=b"f" * 32,
        token=token,
        lease_ms=60_000,
        retain_ms=60_000,
        inbox=inbox,
    )


def _wait(store: Store, key: str) -> int:
    """Wait as a duplicate does; return the instant of the last wake-up."""
    token, woken = os.urandom(16), 0
    while True:
        mark = store.mark
        if store.run((_begin(key, token, store.inbox),))[0].status != "busy":
            return woken
        store.wait(key, since=mark, timeout_ms=1000)
        woken = time.perf_counter_ns()


def _waiting(store: Store, key: str, waiters: int) -> Callable[[], list[int]]:
    """Start waiters; the returned function gives the instants at which they were woken."""
    ends: list[int] = []
    threads = [
        threading.Thread(target=lambda: ends.append(_wait(store, key))) for _ in range(waiters)
    ]
    for thread in threads:
        thread.start()

    def join() -> list[int]:
        for thread in threads:
            thread.join(30)
        return ends

    return join


def _waiting_process(url: str, pipe: Connection) -> None:
    store = open_store(url)
    while (order := pipe.recv()) is not None:
        join = _waiting(store, *order)
        pipe.send(None)
        pipe.send(join())


def wake(url: str, samples: int, waiters: int) -> dict[str, float]:
    """From the call that completes a key to each waiter's wake-up, in another process.

    A memory store's waiters are in this process: there is no other that could wait.
    """
    store = open_store(url)
    if url.startswith("memory:"):

        def wait(key: str) -> Callable[[], list[int]]:
            return _waiting(store, key, waiters)

        return percentiles(_wake_all(store, wait, samples, waiters))
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_waiting_process, args=(url, theirs), daemon=True)
    process.start()

    def wait_there(key: str) -> Callable[[], list[int]]:
        ours.send((key, waiters))
        ours.recv()
        return ours.recv

    taken = _wake_all(store, wait_there, samples, waiters)
    ours.send(None)
    process.join(5)
    store.close()
    return percentiles(taken)


def _wake_all(
    store: Store, wait: Callable[[str], Callable[[], list[int]]], samples: int, waiters: int
) -> list[float]:
    taken: list[float] = []
    for sample in range(samples + 1):
        key, token = f"{{{uuid.uuid4().hex}}}", os.urandom(16)
        store.run((_begin(key, token),))
        join = wait(key)
        time.sleep(SETTLE_S + waiters * 0.005)
        started = time.perf_counter_ns()
        store.run((core.complete(key, token=token, frame=BODY, ttl_ms=60_000, retain_ms=0),))
        ends = join()
        if sample:  # the first one also subscribes
            taken += [(end - started) / 1e6 for end in ends]
    return taken
