"""What is owed after the view: what it did not use up, what it used beyond, its places."""

from __future__ import annotations

from typing import Final, TypeAlias

from flask import Response

from ..core import limits as core
from ..flow import Result
from .asking import Asked, whole
from .plan import Entry

Acts: TypeAlias = "list[tuple[int, core.Rule, int]]"
"""For each limit: charge, refund, leave or 0; its rule with what that costs; when it was taken."""

FAILED: Final = 400


def acts_after(asked: Asked, result: Result) -> Acts | None:
    """Return what is to be done about the limits of a request; ``None`` for nothing."""
    spared = asked.values[0] == core.SPARED
    if result.by_view and not spared and not asked.settles:
        return None  # nearly always
    at_ms = asked.values[1]
    if spared:
        if not result.by_view:
            return None
        # The first request with this key gave it back while this one waited: the view ran.
        acts = [(core.CHARGE, _costing(asked, index), at_ms) for index in range(asked.count)]
    elif not result.by_view and asked.spared is not None:
        acts = refunds(asked)
    else:
        acts = [_act(asked, index, result) for index in range(asked.count)]
    if not any(act for act, _, _ in acts):
        return None
    acts += [(0, core.NO_RULE, 0)] * (len(asked.keys) - asked.count)
    if not result.by_view and asked.spared is not None:
        # It was answered in the view's place, and the store could not know: charged for the look.
        for index in range(asked.count, len(asked.keys)):
            acts[index] = (core.CHARGE, asked.spared[index], at_ms)
    return acts


def refunds(asked: Asked) -> Acts:
    """Return what undoes the take of a request."""
    taken = _taken(asked)
    return [
        (core.LEAVE if entry.places else core.REFUND, _costing(asked, index), asked.values[1])
        if taken[index]
        else (0, core.NO_RULE, 0)
        for index, entry in enumerate(asked.entries[: asked.count])
    ]


def _taken(asked: Asked) -> list[bool]:
    """Tell of each limit whether something was taken: of one in shadow perhaps not."""
    return [
        rule[0] != core.SKIP and wait == 0
        for rule, wait in zip(asked.rules, asked.values[core.FIRST + 2 :: 3], strict=True)
    ]


def _costing(asked: Asked, index: int, cost: int | None = None) -> core.Rule:
    algorithm, amount, window_ms, burst, taken = asked.rules[index]
    return algorithm % core.SHADOW, amount, window_ms, burst, taken if cost is None else cost


def _act(asked: Asked, index: int, result: Result) -> tuple[int, core.Rule, int]:
    entry, at_ms = asked.entries[index], asked.values[1]
    if not _taken(asked)[index]:
        return 0, core.NO_RULE, 0
    if entry.places:
        return core.LEAVE, _costing(asked, index), at_ms
    cost = asked.rules[index][4]
    owed = _owed(entry, cost, result.response)
    if owed > cost:
        return core.CHARGE, _costing(asked, index, owed - cost), at_ms
    if owed < cost:
        return core.REFUND, _costing(asked, index, cost - owed), at_ms
    return 0, _costing(asked, index, 0), at_ms


def _owed(entry: Entry, cost: int, response: Response | None) -> int:
    """Return what the view has cost, in the end; all that was taken if nobody can say."""
    options = entry.limit.options
    charge = options.charge
    if response is None or (charge == "before" and options.cost_after is None):
        return 0 if response is None and charge == "on_success" else cost
    failed = response.status_code >= FAILED
    if callable(charge):
        charged = charge(response)
    else:
        charged = charge == "before" or failed == (charge == "on_failure")
    if not charged:
        return 0
    if options.cost_after is None:
        return cost
    return whole(entry.limit, "cost_after", options.cost_after(response))
