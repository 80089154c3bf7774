"""Random operations on several stores at once, compared with the pure functions.

The reference is :class:`Oracle`: a dictionary, and the pure functions themselves. After each run
every store must have answered the same, hold the same rows field for field, and have woken the
same inboxes.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from demijohn.core import idempotency as idem
from demijohn.core.idempotency import OnLost
from demijohn.core.step import EXPIRES, Outcome, Row, Step, decide, live
from demijohn.stores.memory import MemoryStore
from demijohn.stores.protocol import Store
from demijohn.testing.contract import ManualClock

T = TypeVar("T")
Choose = Callable[[Sequence[T]], T]

KEYS = 3
# Digits, marks and nothing: what a store might take for something else.
TOKENS = (b"alice", b"alice", b"alice", b"bob", b"7", b"")
PRINTS = (b"print", b"print", b"print", b"\x012")
FRAMES = (b"frame", b"-3", b"", b"\x00\xff\r\n")
INBOXES = ("", "one", "two", "twofold")
LEASES = (0, 1, 10, 50, 100)
RETAINS = (0, 1, 40, 400, 400)
TTLS = (0, 1, 20, 60)
TOMBSTONES = (0, 0, 3, 70)
ADVANCES = (0, 1, 7, 50)


@dataclass(frozen=True)
class Advance:
    """Let time pass: by ``by_ms``, or until an instant that the row of key ``key`` names."""

    by_ms: int = 0
    key: int = -1
    name: str = EXPIRES


@dataclass(frozen=True)
class Move:
    """One step, before it is known where the keys are: what, on which keys, with what."""

    what: str
    keys: tuple[int, ...]
    token: bytes
    print_: bytes
    frame: bytes
    inbox: str
    lease_ms: int
    retain_ms: int
    ttl_ms: int
    tombstone_ms: int
    on_lost: OnLost

    def step(self, names: Sequence[str], space: str) -> Step:
        keys = tuple(names[key] for key in self.keys)
        token, retain_ms = self.token, self.retain_ms
        if self.what == "begin":
            return idem.begin(
                keys,
                fingerprint=self.print_,
                token=token,
                lease_ms=self.lease_ms,
                retain_ms=retain_ms,
                on_lost=self.on_lost,
                inbox=self.inbox and f"{space}:{self.inbox}",
            )
        if self.what == "renew":
            return idem.renew(keys[0], token=token, lease_ms=self.lease_ms)
        if self.what == "complete":
            return idem.complete(
                keys[0],
                token=token,
                frame=self.frame,
                ttl_ms=self.ttl_ms,
                retain_ms=retain_ms,
                tombstone_ms=self.tombstone_ms,
            )
        if self.what == "release":
            return idem.release(keys[0], token=token, retain_ms=retain_ms)
        return idem.resolve(keys[0], frame=self.frame, ttl_ms=self.ttl_ms, retain_ms=retain_ms)


class Planned(Protocol):
    """A step, before it is known where the keys are."""

    def step(self, names: Sequence[str], space: str) -> Step:
        """Return the step on ``names``; channels are below ``space``."""
        ...


Operation = Advance | tuple[Planned, ...]

WHATS = ("begin", "begin", "begin", "renew", "complete", "complete", "release", "resolve")


def operation(choose: Choose) -> Operation:  # type: ignore[type-arg]
    """Make one operation of what ``choose`` chooses."""
    kind = choose(("run", "run", "run", "run", "pipeline", "by", "to", "to"))
    if kind == "by":
        return Advance(by_ms=choose(ADVANCES))
    if kind == "to":
        key, name = choose(range(KEYS)), choose(("l", "l", "u", "u", "x"))
        return Advance(by_ms=choose((-1, 0, 0, 1)), key=key, name=name)
    return tuple(move(choose) for _ in range(choose((2, 3)) if kind == "pipeline" else 1))


def move(choose: Choose) -> Move:  # type: ignore[type-arg]
    """Make one step of what ``choose`` chooses."""
    what = choose(WHATS)
    first = choose(range(KEYS))
    count = choose((1, 1, 1, 2, 3)) if what == "begin" else 1
    return Move(
        what=what,
        keys=tuple((first + index) % KEYS for index in range(count)),
        token=choose(TOKENS),
        print_=choose(PRINTS),
        frame=choose(FRAMES),
        inbox=choose(INBOXES),
        lease_ms=choose(LEASES),
        retain_ms=choose(RETAINS),
        ttl_ms=choose(TTLS),
        tombstone_ms=choose(TOMBSTONES),
        on_lost=choose((OnLost.RUN, OnLost.REFUSE)),
    )


Woken = list[tuple[str, str]]
"""Inboxes and the keys that they were told."""


class Subject(Protocol):
    """A store that is compared."""

    name: str
    store: Store

    def rows(self, keys: Sequence[str]) -> dict[str, Row]:
        """Return the live rows of ``keys``."""
        ...

    def woken(self, wakes: Woken) -> object:
        """Return who was woken by the last run; equal to ``wakes`` if all is well."""
        ...


class Oracle:
    """The pure functions over a dictionary."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._rows: dict[str, Row] = {}

    def run(self, steps: Sequence[Step]) -> tuple[list[Outcome], Woken]:
        before = dict(self._rows)
        outcomes, woken = self._run(steps)
        *earlier, last = outcomes
        if last.halts and any(step.otherwise for step in steps[: len(earlier)]):
            self._rows = before
            spared = [
                Step(step.kind, step.keys, step.otherwise or step.args)
                for step in steps[: len(earlier)]
            ]
            return self._run([*spared, steps[len(earlier)]])
        return outcomes, woken

    def _run(self, steps: Sequence[Step]) -> tuple[list[Outcome], Woken]:
        outcomes: list[Outcome] = []
        woken: Woken = []
        for step in steps:
            decision = decide(step, [self._rows.get(key) for key in step.keys], self._clock())
            for index, row in decision.writes.items():
                if row is None:
                    self._rows.pop(step.keys[index], None)
                else:
                    self._rows[step.keys[index]] = row
            woken += [(inbox, wake.key) for wake in decision.wakes for inbox in wake.inboxes]
            outcomes.append(decision.outcome)
            if decision.outcome.halts:
                break
        return outcomes, woken

    def rows(self) -> dict[str, Row]:
        now_ms = self._clock()
        return {key: row for key, row in self._rows.items() if live(row, now_ms)}

    def has_expired(self) -> bool:
        return len(self.rows()) < len(self._rows)

    def instant(self, key: str, name: str) -> int | None:
        value = self._rows.get(key, {}).get(name)
        return value if isinstance(value, int) else None


class Scanned:
    """A store that is looked at through its own ``scan``; its wakes are not seen."""

    def __init__(self, name: str, store: Store) -> None:
        self.name = name
        self.store = store

    def rows(self, keys: Sequence[str]) -> dict[str, Row]:
        prefix = keys[0].partition("}")[0]
        return {key: dict(row) for key, row in self.store.scan(prefix)}

    def woken(self, wakes: Woken) -> object:
        return wakes


class InMemory(Scanned):
    """The memory store: a process of its own wakes by key alone."""

    def __init__(self, clock: ManualClock) -> None:
        self.memory = MemoryStore(clock=clock)
        super().__init__("memory", self.memory)
        self._mark = 0

    def woken(self, wakes: Woken) -> object:
        # One ring for each run that ended, whoever waits.
        rung, self._mark = self.memory.mark - self._mark, self.memory.mark
        return wakes if rung >= len({key for _, key in wakes}) else f"{rung} rings"


@dataclass
class Campaign:
    """Operations on all subjects at once.

    Keys are new in each history. Inboxes are below ``space``: a server's channels belong to
    everybody who uses the server.
    """

    clock: ManualClock
    subjects: Sequence[Subject]
    space: str
    count: int = KEYS
    steps: int = 0
    oracle: Oracle = field(init=False)
    keys: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin with nothing stored."""
        tag = uuid.uuid4().hex
        self.keys = [f"{{{tag}}}:{number}" for number in range(self.count)]
        self.oracle = Oracle(self.clock)

    def apply(self, what: Operation) -> None:
        """Do ``what`` everywhere; raise AssertionError where it came out differently."""
        if isinstance(what, Advance):
            self._advance(what)
            return
        steps = [each.step(self.keys, self.space) for each in what]
        self.steps += len(steps)
        outcomes, wakes = self.oracle.run(steps)
        rows = self.oracle.rows()
        for subject in self.subjects:
            answered = subject.store.run(steps)
            assert answered == outcomes, f"{subject.name} answers {answered}, not {outcomes}"
            held = subject.rows(self.keys)
            assert held == rows, f"{subject.name} holds {held}, not {rows}, after {outcomes}"
            woken = subject.woken(wakes)
            assert woken == wakes, f"{subject.name} wakes {woken}, not {wakes}"

    def _advance(self, advance: Advance) -> None:
        by_ms = advance.by_ms
        if advance.key >= 0:
            instant = self.oracle.instant(self.keys[advance.key], advance.name)
            by_ms += 0 if instant is None else instant - self.clock.now_ms
        if by_ms < 0 and (advance.key >= 0 or self.oracle.has_expired()):
            by_ms = 0  # a store may have removed what is over
        self.clock.advance(by_ms)
