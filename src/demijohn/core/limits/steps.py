"""The steps of limits as faces and stores know them: their kinds, and how to make one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from ..step import Arg, Decide, Step, StepKind
from .decisions import (
    CALENDAR,
    GCRA,
    LEASES,
    LOG,
    SHADOW,
    SKIP,
    WINDOW,
    decide_renew,
    decide_reset,
    decide_settle,
    decide_take,
    decide_tally,
)
from .row import Rule

_LUA: Final = "demijohn.core.lua/limits_"
_INSTANTS: Final = f"{_LUA}instants.lua"
_ALGORITHMS: Final = {
    WINDOW: (f"{_LUA}window.lua",),
    GCRA: (f"{_LUA}gcra.lua",),
    CALENDAR: (f"{_LUA}calendar.lua",),
    LOG: (_INSTANTS, f"{_LUA}log.lua"),
    LEASES: (_INSTANTS, f"{_LUA}leases.lua"),
}

RENEW: Final = StepKind("limits.renew", decide_renew, f"{_LUA}renew.lua")
RESET: Final = StepKind("limits.reset", decide_reset, f"{_LUA}reset.lua")
TALLY: Final = StepKind("limits.tally", decide_tally, f"{_LUA}tally.lua")

_kinds: Final[dict[tuple[str, frozenset[int]], StepKind]] = {}


def _kind(name: str, decide: Decide, algorithms: frozenset[int]) -> StepKind:
    """Return a kind of step whose script has the algorithms that it needs, and no others."""
    kind = _kinds.get((name, algorithms))
    if kind is None:
        files = [path for each in sorted(algorithms - {SKIP}) for path in _ALGORITHMS[each]]
        kind = StepKind(f"limits.{name}", decide, f"{_LUA}{name}.lua", includes=tuple(files))
        # Of two threads that come at once, both get the same.
        kind = _kinds.setdefault((name, algorithms), kind)
    return kind


def _take_kind(rules: Iterable[Rule]) -> StepKind:
    return _kind("take", decide_take, frozenset([rule[0] % SHADOW for rule in rules]))


NO_RULE: Final[Rule] = (SKIP, 0, 0, 0, 0)

WHOLE, SPARED = 0, 1
"""Tags of a take: with its first arguments, or with those for a view that does not run."""

FIRST: Final = 3
"""Where the values of the first limit begin in the outcome of a take; three for each."""


def take(
    keys: tuple[str, ...],
    rules: Sequence[Rule],
    *,
    token: bytes = b"",
    inbox: str = "",
    some: bool = False,
    spared: Sequence[Rule] | None = None,
) -> Step:
    """Take from every limit, or from none.

    Args:
        keys: the row of each limit.
        rules: of each limit.
        token: eight random bytes that say who holds a place.
        inbox: where this process hears that a place is free; ``""`` to register nowhere.
        some: take what there is of what is asked, if it is at least one unit.
        spared: the rules that count instead when a later step of the same run halts.

    Returns:
        A step that answers ``taken(tag, now_ms, granted, (left, reset_ms, wait_ms) for each
        limit)``, or halts with ``refused(tag, now_ms, 0, (left, reset_ms, wait_ms) for each
        limit)``. A wait of 0 is that of a limit that admits, and ``NEVER`` that of one that never
        will. An algorithm plus ``SHADOW`` refuses nothing, and says its wait all the same.
    """
    args: list[Arg] = [WHOLE, int(some), token, inbox]
    for rule in rules:
        args += rule
    if spared is None:
        return Step(_take_kind(rules), keys, tuple(args))
    others: list[Arg] = [SPARED, 0, token, inbox]
    for rule in spared:
        others += rule
    return Step(_take_kind((*rules, *spared)), keys, tuple(args), tuple(others))


def settle(keys: tuple[str, ...], acts: Sequence[tuple[int, Rule, int]], *, token: bytes) -> Step:
    """Do after the view what is to be done: ``settled(now_ms, (left, reset_ms) for each limit)``.

    Args:
        keys: the row of each limit.
        acts: for each limit ``CHARGE``, ``REFUND``, ``LEAVE`` or 0; its rule, whose cost is what is
            charged or refunded; and the instant of its take, in milliseconds.
        token: of the take.
    """
    algorithms = frozenset([rule[0] for _, rule, _ in acts])
    args: list[Arg] = [token, *keys]
    for act, rule, at_ms in acts:
        args += (act, *rule, at_ms)
    return Step(_kind("settle", decide_settle, algorithms), keys, tuple(args))


def renew(key: str, *, token: bytes, lease_ms: int) -> Step:
    """Keep a place for ``lease_ms`` from now: ``renewed()``, or ``fenced()`` if it has lapsed."""
    return Step(RENEW, (key,), (token, lease_ms))


def reset(keys: tuple[str, ...]) -> Step:
    """Forget what was taken: ``reset(how many rows there were)``."""
    return Step(RESET, keys, ())


def tally(key: str, refused: int, *, keep_ms: int, label: str) -> Step:
    """Add to how many requests were refused: ``tallied(sum)``."""
    return Step(TALLY, (key,), (refused, keep_ms, label.encode()))
