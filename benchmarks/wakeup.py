"""How long those who wait for a key take to hear that it is completed.

A request of this process is in its view; duplicates of it wait in another process, or, where the
store is in memory, in other threads. The clock starts where the floor's does, which is PUBLISH,
heard by redis-py in another process: when the completion is given to the store. A duplicate is
*woken* when its store says so, and *answered* when it has looked at the key again and its response
has been read to the end.
"""

from __future__ import annotations

import math
import multiprocessing
import random
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import redis

from demijohn.core.idempotency import COMPLETE
from demijohn.core.step import Outcome, Row, Step
from demijohn.idempotency import Options
from demijohn.stores import Health, Store, open_store

from .requests import UnexpectedAnswer, ask, guarded_app, pay
from .timing import rotations

SPAWN: Final = multiprocessing.get_context("spawn")
SETTLE_S: Final = (0.02, 0.06)
"""How long all have waited before they are woken: at random, so as to be in step with nothing."""
PATIENCE_S: Final = 30.0
PATIENT: Final[Options] = {"wait": PATIENCE_S, "max_waiters": 200, "max_waiters_per_key": 200}


class Ends(NamedTuple):
    """When one waiter was woken and answered, by the machine's monotonic clock."""

    woken_ns: int
    answered_ns: int


class Percentiles(NamedTuple):
    """Milliseconds; infinite where there is nothing to take them of."""

    p50: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        """Return those of ``values``."""
        if not values:
            return cls(math.inf, math.inf)
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[math.ceil(0.99 * len(ordered)) - 1])


@dataclass(slots=True)
class Wakes:
    """What was measured of one case, in milliseconds."""

    woken_ms: list[float] = field(default_factory=list)
    answered_ms: list[float] = field(default_factory=list)
    failed: int = 0
    """How many waiters were refused, or got no answer: they are in no percentile."""

    def add(self, started_ns: int, ends: Sequence[Ends], waiters: int) -> None:
        """Note one sample."""
        self.failed += waiters - len(ends)
        self.woken_ms += [(end.woken_ns - started_ns) / 1e6 for end in ends]
        self.answered_ms += [(end.answered_ns - started_ns) / 1e6 for end in ends]


Sample: TypeAlias = tuple[int, list[Ends]]
"""When the completion began, and the ends of those who were answered."""
Scene: TypeAlias = Callable[[int], Sample]
"""Has so many wait, completes what they wait for, and returns the sample."""


def measure(
    scenes: Mapping[str, Scene], *, samples: int, crowd: int, crowds: int
) -> dict[str, Wakes]:
    """Take ``samples`` with one waiter of each scene, and ``crowds`` with ``crowd`` waiters.

    The first of all, in which connections and threads are made, are not counted.
    """
    wakes: dict[str, Wakes] = {}
    for waiters, times in ((1, samples), (crowd, crowds)):
        for scene in scenes.values():
            scene(waiters)
        for name in rotations(list(scenes), times):
            several = "" if waiters == 1 else "s"
            case = wakes.setdefault(f"{name}, {waiters} waiter{several}", Wakes())
            case.add(*scenes[name](waiters), waiters)
    return wakes


@contextmanager
def scenes_of(stores: Mapping[str, str], redis_url: str | None) -> Iterator[dict[str, Scene]]:
    """Open a scene for each store, which is given by name and URL, and one for the floor."""
    with ExitStack() as stack:
        scenes: dict[str, Scene] = {}
        if redis_url is not None:
            subscribers = stack.enter_context(_elsewhere("subscribers", redis_url))
            scenes["raw pub/sub"] = _publishing(redis_url, subscribers)
        for name, url in stores.items():
            if url == "memory://":
                # No other process could wait.
                store = Clocked(open_store(url))
                scenes[name] = _completing(store, Duplicates(store))
            else:
                duplicates = stack.enter_context(_elsewhere("duplicates", url))
                scenes[name] = _completing(Clocked(open_store(url)), duplicates)
        yield scenes


def _settle() -> None:
    time.sleep(random.uniform(*SETTLE_S))


def _publishing(url: str, waiters: Waiters) -> Scene:
    client = redis.Redis.from_url(url)

    def sample(number: int) -> Sample:
        channel = uuid.uuid4().hex
        waiters.start(channel, number)
        _settle()
        started_ns = time.perf_counter_ns()
        client.publish(channel, b"now")
        return started_ns, waiters.join()

    return sample


def _completing(store: Clocked, waiters: Waiters) -> Scene:
    key, number = "", 0

    def view() -> tuple[dict[str, Any], int]:
        waiters.start(key, number)
        _settle()
        store.completed_ns = 0
        return pay()

    app = guarded_app(store, view, PATIENT)

    def sample(wanted: int) -> Sample:
        nonlocal key, number
        key, number = str(uuid.uuid4()), wanted
        ask(app, key)
        return store.completed_ns, waiters.join()

    return sample


# --- who waits -----------------------------------------------------------------------------------


class Waiters(Protocol):
    """Those who wait, here or elsewhere."""

    def start(self, key: str, number: int) -> None:
        """Have so many wait for ``key``; return when they do."""
        ...

    def join(self) -> list[Ends]:
        """Return the ends of those who were answered."""
        ...


class _Threads:
    """Threads of this process that wait, each in its own way."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._ends: list[Ends] = []

    def start(self, key: str, number: int) -> None:
        """See :meth:`Waiters.start`."""
        self._ends = []
        self._threads = [
            threading.Thread(target=self._wait, args=(key,), daemon=True) for _ in range(number)
        ]
        for thread in self._threads:
            thread.start()
        until = time.monotonic() + PATIENCE_S
        while self.waiting < sum(thread.is_alive() for thread in self._threads):
            if time.monotonic() > until:
                raise UnexpectedAnswer(f"of {number} only {self.waiting} wait")
            time.sleep(0.001)

    def join(self) -> list[Ends]:
        """See :meth:`Waiters.join`."""
        for thread in self._threads:
            thread.join(PATIENCE_S)
        return self._ends

    def _wait(self, key: str) -> None:
        with suppress(UnexpectedAnswer):  # then there is one end less, which is counted
            self._ends.append(self.until_answered(key))

    @property
    def waiting(self) -> int:
        """How many of the threads wait now."""
        raise NotImplementedError

    def until_answered(self, key: str) -> Ends:
        """Wait for ``key``."""
        raise NotImplementedError


class Duplicates(_Threads):
    """Requests under Demijohn."""

    def __init__(self, store: Clocked) -> None:
        super().__init__()
        self._store = store
        self._app = guarded_app(store, options=PATIENT)

    @property
    def waiting(self) -> int:
        return len(self._store.waiting)

    def until_answered(self, key: str) -> Ends:
        ask(self._app, key)
        answered_ns = time.perf_counter_ns()
        return Ends(self._store.woken_ns.pop(threading.get_ident()), answered_ns)


class Subscribers(_Threads):
    """Subscriptions by redis-py, each on a connection of its own."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._client = redis.Redis.from_url(url)
        self._subscribed: set[int] = set()

    @property
    def waiting(self) -> int:
        return len(self._subscribed)

    def until_answered(self, key: str) -> Ends:
        thread = threading.get_ident()
        subscription = self._client.pubsub(ignore_subscribe_messages=True)
        subscription.subscribe(key)
        subscription.get_message(timeout=PATIENCE_S)  # the acknowledgement
        self._subscribed.add(thread)
        message = subscription.get_message(timeout=PATIENCE_S)
        heard_ns = time.perf_counter_ns()
        self._subscribed.discard(thread)
        subscription.close()
        if message is None:
            raise UnexpectedAnswer("nothing was heard")
        return Ends(heard_ns, heard_ns)


class Clocked:
    """A store that notes when it is told of a completion, who waits, and when each was woken."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.waiting: set[int] = set()
        self.woken_ns: dict[int, int] = {}
        self.completed_ns = 0

    @property
    def inbox(self) -> str:
        return self._store.inbox

    @property
    def mark(self) -> int:
        return self._store.mark

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        if not self.completed_ns and steps[0].kind is COMPLETE:
            self.completed_ns = time.perf_counter_ns()
        return self._store.run(steps)

    def wait(self, key: str, *, since: int, timeout_ms: int) -> bool:
        thread = threading.get_ident()
        self.waiting.add(thread)
        woken = self._store.wait(key, since=since, timeout_ms=timeout_ms)
        self.woken_ns[thread] = time.perf_counter_ns()
        self.waiting.discard(thread)
        return woken

    def scan(self, prefix: str) -> Iterator[tuple[str, Row]]:
        return self._store.scan(prefix)

    def health(self) -> Health:
        return self._store.health()

    def close(self) -> None:
        self._store.close()


# --- in another process --------------------------------------------------------------------------


class _Remote:
    """Waiters of another process, ordered through a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def start(self, key: str, number: int) -> None:
        """See :meth:`Waiters.start`."""
        self._pipe.send((key, number))
        self._pipe.recv()

    def join(self) -> list[Ends]:
        """See :meth:`Waiters.join`."""
        return [Ends(*end) for end in self._pipe.recv()]


@contextmanager
def _elsewhere(kind: str, url: str) -> Iterator[Waiters]:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_serve, args=(kind, url, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the pipe breaks if that process ends
    try:
        yield _Remote(ours)
    finally:
        ours.close()
        process.join(5)


def _serve(kind: str, url: str, pipe: Connection) -> None:
    waiters: Waiters = Subscribers(url) if kind == "subscribers" else _duplicates(url)
    with suppress(EOFError):
        while True:
            waiters.start(*pipe.recv())
            pipe.send(None)
            pipe.send([tuple(end) for end in waiters.join()])


def _duplicates(url: str) -> Duplicates:
    return Duplicates(Clocked(open_store(url)))
