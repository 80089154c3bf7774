"""The limits of a request on a cluster, whose servers cannot decide together.

The limits of one caller lie together; those of others, such as one for everybody, may lie on
another server. Then each server is asked in turn, all or nothing for itself, and what the first
ones gave is given back when a later one refuses. On any other store there is one group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..core import limits as core
from ..core.step import Outcome, Step
from .asking import Asked
from .settling import Acts, refunds

Which = Sequence[int]


def _groups(asked: Asked) -> list[list[int]]:
    by_tag: dict[str, list[int]] = {}
    for index, key in enumerate(asked.keys):
        by_tag.setdefault(key.partition("}")[0], []).append(index)
    return list(by_tag.values())


def are_several(asked: Asked) -> bool:
    """Whether the limits of a request lie apart."""
    return len({key.partition("}")[0] for key in asked.keys}) > 1


def take(asked: Asked) -> Any:
    """Take from each group; give back what was taken when one refuses. A flow."""
    values = [core.WHOLE, 0, 0, *[0] * 3 * len(asked.keys)]
    taken: list[int] = []
    for group in _groups(asked):
        keys = tuple(asked.keys[index] for index in group)
        outcome: Outcome = yield core.take(
            keys, [asked.rules[index] for index in group], token=asked.token
        )
        values[1], values[2] = outcome.integer(1), max(values[2], outcome.integer(2))
        for place, index in enumerate(group):
            new = outcome.values[core.FIRST + place * 3 : core.FIRST + place * 3 + 3]
            values[core.FIRST + index * 3 : core.FIRST + index * 3 + 3] = new  # type: ignore[assignment]
        if outcome.halts:
            asked.values = values
            yield from _give_back(asked, taken)
            return Outcome("refused", tuple(asked.values), halts=True)
        taken += group
    return Outcome("taken", tuple(values))


def _give_back(asked: Asked, taken: list[int]) -> Any:
    undo = refunds(asked)
    undo += [(0, core.NO_RULE, 0)] * (len(asked.keys) - len(undo))
    acts = [act if index in taken else (0, core.NO_RULE, 0) for index, act in enumerate(undo)]
    for step, which in settle(asked, acts, scattered=True):
        outcome: Outcome = yield step
        updated(asked, outcome, which, acts)


def settle(asked: Asked, acts: Acts, *, scattered: bool) -> Iterator[tuple[Step, Which]]:
    """Yield the steps that carry out ``acts``, and the numbers of the limits of each."""
    groups = _groups(asked) if scattered else [list(range(len(asked.keys)))]
    for group in groups:
        if not any(acts[index][0] for index in group):
            continue
        keys = tuple(asked.keys[index] for index in group)
        yield core.settle(keys, [acts[index] for index in group], token=asked.token), group


def updated(asked: Asked, outcome: Outcome, which: Which, acts: Acts) -> None:
    """Have the response say what is left after all."""
    values = list(asked.values)
    for place, index in enumerate(which):
        if acts[index][1][0] != core.SKIP:
            values[core.FIRST + index * 3] = outcome.integer(1 + place * 2)
            values[core.FIRST + index * 3 + 1] = outcome.integer(2 + place * 2)
    asked.values = values
