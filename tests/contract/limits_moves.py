"""Random operations on limits, for :mod:`tests.contract.differential`.

Each of the first five keys is a limit's by one algorithm, mostly; the sixth is an idempotency key,
so that runs of a take and a begin are among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from demijohn.core import limits
from demijohn.core.idempotency import OnLost
from demijohn.core.limits import Rule
from demijohn.core.step import Step
from tests.contract.differential import Advance, Choose, Move, Operation

KEYS = 6
TOKENS = (b"12345678", b"abcdefgh", b"\xff\x00\x01\r\n-12", b"87654321")
INBOXES = ("", "one", "two", "twofold")
# A year that leaps and the turn of years among them.
SHORT, LONG = 1000, 1003
DAY_MS = 86_400_000
CALENDAR = ((60_000, 0), (DAY_MS, 0), (0, limits.MONTH), (0, limits.YEAR))
ADVANCES = (0, 1, 7, 99, 100, 101, 333, 1003, 1100, 1101, 5000, DAY_MS, 29 * DAY_MS)
BACK = (-5, -250, -1500)


@dataclass(frozen=True)
class LimitsMove:
    """One step of limits, before it is known where the keys are."""

    what: str
    keys: tuple[int, ...]
    rules: tuple[Rule, ...]
    spared: tuple[Rule, ...] | None
    acts: tuple[int, ...]
    ago_ms: tuple[int, ...]
    token: bytes
    inbox: str
    some: bool
    now_ms: int = 0

    def step(self, names: Sequence[str], space: str) -> Step:
        keys = tuple(names[key] for key in self.keys)
        if self.what == "take":
            return limits.take(
                keys,
                self.rules,
                token=self.token,
                inbox=self.inbox and f"{space}:{self.inbox}",
                some=self.some,
                spared=self.spared,
            )
        if self.what == "settle":
            acts = [
                (act, rule, max(self.now_ms - ago, 0))
                for act, rule, ago in zip(self.acts, self.rules, self.ago_ms, strict=True)
            ]
            return limits.settle(keys, acts, token=self.token)
        if self.what == "renew":
            return limits.renew(names[4], token=self.token, lease_ms=100)
        if self.what == "tally":
            return limits.tally(names[2], 3, keep_ms=500, label="name")
        return limits.reset(keys)


WHATS = ("take", "take", "take", "take", "settle", "settle", "renew", "renew", "reset", "tally")


def rule(choose: Choose, key: int, what: str) -> Rule:  # type: ignore[type-arg]
    """Make a rule by the algorithm of a key, or now and then by another."""
    algorithm = choose((key + 1,) * 30 + (limits.SKIP, limits.WINDOW, limits.LOG, limits.LEASES))
    algorithm += limits.SHADOW if what == "take" and choose((False,) * 5 + (True,)) else 0
    amount, cost = choose((0, 1, 3, 4, 7, 7)), choose((0, 1, 1, 1, 2, 5))
    if algorithm % limits.SHADOW == limits.CALENDAR:
        window_ms, unit = choose(CALENDAR)
        return algorithm, amount, window_ms, unit, cost
    if algorithm % limits.SHADOW == limits.LEASES:
        return algorithm, choose((0, 1, 2, 2, 3)), 100, 0, choose((0, 1, 1, 1))
    if algorithm % limits.SHADOW == limits.GCRA:
        return algorithm, choose((1, 3, 7)), SHORT, choose((1, 2, 5)), cost
    return algorithm, amount, choose((SHORT, SHORT, LONG)), 0, cost


def move(choose: Choose, now_ms: int) -> LimitsMove:  # type: ignore[type-arg]
    """Make one step of what ``choose`` chooses."""
    what = choose(WHATS)
    first, count = choose(range(5)), choose((1, 1, 2, 3, 5))
    keys = tuple((first + index) % 5 for index in range(count))
    spares = what == "take" and choose((True, False, False))
    return LimitsMove(
        what=what,
        keys=keys,
        rules=tuple(rule(choose, key, what) for key in keys),
        spared=tuple(rule(choose, key, what) for key in keys) if spares else None,
        acts=tuple(choose((0, 1, 2, 2, 3, 3)) for _ in keys),
        ago_ms=tuple(choose((0, 0, 1, 50, 100, 101, 500)) for _ in keys),
        token=choose(TOKENS),
        inbox=choose(INBOXES),
        some=choose((True, False, False, False)),
        now_ms=now_ms,
    )


def begin(choose: Choose) -> Move:  # type: ignore[type-arg]
    """Make a step of idempotency on the sixth key, which is held more often than not."""
    return Move(
        what=choose(("begin", "begin", "begin", "complete", "release")),
        keys=(5,),
        token=choose((b"alice", b"bob")),
        print_=b"print",
        frame=b"frame",
        inbox=choose(INBOXES),
        lease_ms=10_000,
        retain_ms=400,
        ttl_ms=3000,
        tombstone_ms=0,
        on_lost=OnLost.RUN,
    )


def operation(choose: Choose, now_ms: int) -> Operation:  # type: ignore[type-arg]
    """Make one operation of what ``choose`` chooses."""
    kind = choose(("run", "run", "run", "run", "stack", "pipeline", "by", "by", "to"))
    if kind == "by":
        return Advance(by_ms=choose(ADVANCES + BACK))
    if kind == "to":
        return Advance(by_ms=choose((-1, 0, 0, 1)), key=choose(range(5)))
    if kind == "stack":
        return move(choose, now_ms), begin(choose)
    return tuple(move(choose, now_ms) for _ in range(choose((2, 3)) if kind == "pipeline" else 1))
