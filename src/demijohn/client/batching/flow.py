"""One exchange of a batch, as a generator: it says what to send, and is told what came of it."""

from __future__ import annotations

import random
import secrets
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from ...core.batch import Answer
from .admission import Endpoint
from .entries import Entry, Failed, Singly, Verdict
from .envelope import Outgoing, Reply, names_of, write
from .errors import BatchProtocolError
from .verdicts import Moment, judge, judge_single, not_here, too_large

# It is told a Reply each time; who wraps it may be told other things too.
Exchange: TypeAlias = Generator[Outgoing, Any, None]

MEMORY_S: Final = 60.0
_MOST_REMEMBERED: Final = 1000


@dataclass(frozen=True, slots=True)
class World:
    """Clocks and chance, for tests to set.

    Args:
        clock: monotonic seconds.
        wall_clock: for dates in Retry-After.
        draw: gives random numbers from 0 to 1.
        random: gives so many random bytes.
        new_key: gives the value of an Idempotency-Key.
    """

    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    draw: Callable[[], float] = random.random
    random: Callable[[int], bytes] = secrets.token_bytes
    new_key: Callable[[], str] = lambda: f'"{uuid.uuid4()}"'


class Absences:
    """At which URLs there is no batch, for a minute; shared by all clients of the process."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._lock = threading.Lock()

    def note(self, url: str, now_s: float) -> None:
        """Remember that ``url`` takes no batches."""
        with self._lock:
            if len(self._until) >= _MOST_REMEMBERED:
                self._until.clear()
            self._until[url] = now_s + MEMORY_S

    def has(self, url: str, now_s: float) -> bool:
        """Whether ``url`` took none, less than a minute ago."""
        until = self._until.get(url)
        return until is not None and now_s < until

    def forget(self) -> None:
        """Try them all again."""
        with self._lock:
            self._until.clear()


absences: Final = Absences()


class Engine:
    """Decides for the batches of one server.

    Args:
        endpoint: where they go.
        world: clocks and chance.
    """

    def __init__(self, endpoint: Endpoint, world: World | None = None) -> None:
        self.endpoint = endpoint
        self.settings = endpoint.settings
        self._world = world or World()

    @property
    def absent(self) -> bool:
        """Whether the server has said that it has no batches, less than a minute ago."""
        return absences.has(self.endpoint.url, self._world.clock())

    def goes_singly(self, entries: Sequence[Entry]) -> bool:
        """Whether there is nothing to gain, or to keep, by a batch."""
        if any(each.related for each in entries):
            return False
        return self.absent or (len(entries) == 1 and entries[0].batch_key is None)

    def exchange(self, entries: Sequence[Entry]) -> Exchange:
        """Carry ``entries`` through: each has a verdict as soon as it can be known."""
        outgoing = self._written(entries)
        reply: Reply = yield outgoing
        if too_large(reply, entries):
            for entry in entries:
                entry.sent -= 1  # it did not arrive, so it does not count
            middle = len(entries) // 2
            yield from self.exchange(entries[:middle])
            yield from self.exchange(entries[middle:])
            return
        if not_here(reply.status):
            absences.note(self.endpoint.url, self._world.clock())
        verdicts = judge(outgoing, reply, self._moment())
        for entry, verdict in zip(entries, verdicts, strict=True):
            entry.verdict = verdict
            if isinstance(verdict, Singly):
                entry.sent -= 1

    def _written(self, entries: Sequence[Entry]) -> Outgoing:
        key = entries[0].batch_key
        if key is None and self._needs_key(entries):
            key = self._world.new_key()
            for entry, name in zip(entries, names_of(entries), strict=True):
                entry.batch_key, entry.name = key, name
        for entry in entries:
            entry.sent += 1
            entry.verdict = None
        return write(entries, self.settings.format, key, self._world.random)

    def _needs_key(self, entries: Sequence[Entry]) -> bool:
        return self.settings.retry > 0 and not all(each.idempotent for each in entries)

    def single(self, entry: Entry) -> tuple[str, str] | None:
        """Count that ``entry`` is sent by itself; return the field with its key, if it needs one.

        Under the key of a batch, it is the one that the server derived for the part.
        """
        entry.sent += 1
        entry.verdict = None
        if entry.idempotent or self.settings.retry == 0:
            return None
        if entry.batch_key is not None:
            text = entry.batch_key.strip('"')
            key = f'"{text}:{entry.name}"'
        else:
            key = self._world.new_key()
        fields = (*entry.part.fields, ("Idempotency-Key", key))
        entry.part = msgspec.structs.replace(entry.part, fields=fields)
        return ("Idempotency-Key", key)

    def judge_single(self, entry: Entry, outcome: Answer | Exception) -> Verdict:
        """Give ``entry`` a verdict on what came of sending it by itself."""
        verdict = judge_single(entry, outcome, self._moment())
        entry.verdict = verdict
        return verdict

    def close(self, entries: Sequence[Entry]) -> None:
        """Give a verdict to those that have none, because the exchange was interrupted."""
        for entry in entries:
            if entry.verdict is None:
                entry.verdict = Failed(BatchProtocolError("The batch was interrupted."))

    def _moment(self) -> Moment:
        return Moment(self._world.wall_clock(), self._world.draw(), self.settings.retry)


def drive(exchange: Exchange, send: Callable[[Outgoing], Reply]) -> None:
    """Carry an exchange out."""
    reply: Reply | None = None
    while (outgoing := step(exchange, reply)) is not None:
        reply = send(outgoing)


async def drive_async(exchange: Exchange, send: Callable[[Outgoing], Awaitable[Reply]]) -> None:
    """Carry an exchange out."""
    reply: Reply | None = None
    while (outgoing := step(exchange, reply)) is not None:
        reply = await send(outgoing)


A = TypeVar("A")


def step(acts: Generator[A, Any, None], told: object) -> A | None:
    """Tell a generator what came of its last act; return its next one, if there is any."""
    try:
        return next(acts) if told is None else acts.send(told)
    except StopIteration:
        return None
