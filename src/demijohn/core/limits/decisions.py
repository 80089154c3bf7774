"""The decisions of limits: all of a request's limits at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, cast

from ..step import EXPIRES, Arg, Decision, Outcome, Row, Rows, Wake
from . import calendar, gcra, leases, log, window
from .row import NEVER, Left, Quota, Rule, Taken, integer

SKIP, WINDOW, GCRA, CALENDAR, LOG, LEASES = range(6)
"""Algorithms as steps name them; 0 leaves a row out."""

CHARGE, REFUND, LEAVE = 1, 2, 3
"""What is done about a row after the view; 0 leaves it as it is."""

RULE: Final = 5
"""Arguments that a limit has in a take: algorithm, amount, window, burst, cost."""
ACT: Final = 7
"""Arguments that a limit has after the view: an act, the rule, and the instant of the take."""

SHADOW: Final = 16
"""Added to an algorithm in a take: it is counted, and refuses nothing."""

NOTHING: Final[Quota] = (0, 0)


class Algorithm(NamedTuple):
    """How one algorithm takes, charges what was taken already, and gives back."""

    take: Callable[[Row | None, int, Rule], Taken]
    charge: Callable[[Row | None, int, Rule], Left]
    refund: Callable[[Row | None, int, Rule, int], Left]


_ALGORITHMS: Final = {
    WINDOW: Algorithm(window.take, window.charge, window.refund),
    # What flows back evenly does so whenever it was taken.
    GCRA: Algorithm(gcra.take, gcra.charge, lambda row, now, rule, _: gcra.refund(row, now, rule)),
    CALENDAR: Algorithm(calendar.take, calendar.charge, calendar.refund),
    LOG: Algorithm(log.take, log.charge, log.refund),
}


def decide_take(
    rows: Rows, now_ms: int, tag: int, some: int, token: bytes, inbox: str, *rules: int
) -> Decision:
    """Take from all limits or from none."""
    taken = _take_each(rows, now_ms, token, rules)
    if not _refused(taken, rules):
        return _admitted(taken, now_ms, tag, max(rules[4::RULE], default=0))
    granted = _most(taken, rules) if some else 0
    if granted:
        taken = _take_each(rows, now_ms, token, _costing(rules, granted))
        return _admitted(taken, now_ms, tag, granted)
    values = [tag, now_ms, 0]
    for each in taken:
        values += (0, 0, 0) if each is None else (*each[1], each[0])
    refused = Outcome("refused", tuple(values), halts=True)
    return Decision(refused, _waiting(rows, taken, inbox, rules))


def _refused(taken: Sequence[Taken | None], rules: Sequence[int]) -> bool:
    for index, each in enumerate(taken):
        if each is not None and each[0] and rules[index * RULE] < SHADOW:
            return True
    return False


def _take_each(rows: Rows, now_ms: int, token: bytes, args: Sequence[int]) -> list[Taken | None]:
    taken: list[Taken | None] = []
    at = 0
    for row in rows:
        rule = cast("Rule", args[at : at + RULE])
        at += RULE
        algorithm = rule[0] % SHADOW
        if algorithm == LEASES:
            taken.append(leases.take(row, now_ms, rule, token))
        elif algorithm == SKIP:
            taken.append(None)
        else:
            taken.append(_ALGORITHMS[algorithm].take(row, now_ms, rule))
    return taken


def _admitted(taken: Sequence[Taken | None], now_ms: int, tag: int, granted: int) -> Decision:
    values = [tag, now_ms, granted]
    writes: dict[int, Row | None] = {}
    for index, each in enumerate(taken):
        if each is None:
            values += (0, 0, 0)
            continue
        values += (*each[2], each[0])
        if each[3] is not None:
            writes[index] = each[3]
    return Decision(Outcome("taken", tuple(values)), writes)


def _most(taken: Sequence[Taken | None], rules: Sequence[int]) -> int:
    """Return how much of what is asked each limit can give."""
    left = [
        each[1][0]
        for index, each in enumerate(taken)
        if each is not None and rules[index * RULE] < SHADOW
    ]
    return min(max(rules[4::RULE]), *left)


def _costing(rules: Sequence[int], cost: int) -> list[int]:
    changed = list(rules)
    for at in range(4, len(changed), RULE):
        changed[at] = min(changed[at], cost)
    return changed


def _waiting(
    rows: Rows, taken: Sequence[Taken | None], inbox: str, rules: Sequence[int]
) -> dict[int, Row | None]:
    """Have the caller be woken by the limits whose places it lacks."""
    writes: dict[int, Row | None] = {}
    for index, (row, each) in enumerate(zip(rows, taken, strict=True)):
        if not inbox or row is None or each is None or each[0] in {0, NEVER}:
            continue
        if rules[index * RULE] == LEASES:
            waiting = leases.wait(row, inbox.encode())
            if waiting is not None:
                writes[index] = waiting
    return writes


def decide_settle(rows: Rows, now_ms: int, token: bytes, *args: Arg) -> Decision:
    """Charge, refund and leave, each limit as its act says; nothing is ever refused."""
    values = [now_ms]
    writes: dict[int, Row | None] = {}
    wakes: tuple[Wake, ...] = ()
    acts = cast("Sequence[int]", args[len(rows) :])
    for index, row in enumerate(rows):
        act, *rule, at_ms = acts[index * ACT : index * ACT + ACT]
        quota, new, inboxes = _settled(row, now_ms, token, act, cast("Rule", tuple(rule)), at_ms)
        values += quota
        if new != row:
            writes[index] = new
        if inboxes:
            wakes += (Wake(str(args[index]), tuple(inboxes.decode().split("\n"))),)
    return Decision(Outcome("settled", tuple(values)), writes, wakes)


def _settled(
    row: Row | None, now_ms: int, token: bytes, act: int, rule: Rule, at_ms: int
) -> tuple[Quota, Row | None, bytes]:
    if rule[0] == LEASES:
        if act == LEAVE:
            return leases.leave(row, now_ms, rule, token)
        return leases.look(row, now_ms, rule), row, b""
    if rule[0] == SKIP:
        return NOTHING, row, b""
    algorithm = _ALGORITHMS[rule[0]]
    if act == REFUND:
        return (*algorithm.refund(row, now_ms, rule, at_ms), b"")
    quota, new = algorithm.charge(row, now_ms, rule if act == CHARGE else (*rule[:4], 0))
    return quota, row if new is None else new, b""


def decide_renew(rows: Rows, now_ms: int, token: bytes, lease_ms: int) -> Decision:
    """Keep a place for another lease."""
    renewed = leases.renew(rows[0], now_ms, lease_ms, token)
    if renewed is None:
        return Decision(Outcome("fenced"))
    return Decision(Outcome("renewed"), {0: renewed})


def decide_reset(rows: Rows, _now_ms: int) -> Decision:
    """Forget what was taken."""
    there = [index for index, row in enumerate(rows) if row is not None]
    return Decision(Outcome("reset", (len(there),)), dict.fromkeys(there))


def decide_tally(rows: Rows, now_ms: int, refused: int, keep_ms: int, label: bytes) -> Decision:
    """Add to how many requests were refused, for the operator's list."""
    row = rows[0] or {}
    total = integer(row, "n") + refused
    new: Row = {EXPIRES: now_ms + keep_ms, "n": total, "c": now_ms, "d": label}
    return Decision(Outcome("tallied", (total,)), {0: new})
