"""What parts say of one another: ids, dependencies, groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

import msgspec

from .part import Malformed, Part
from .references import mentioned

_NOTHING: Final[frozenset[int]] = frozenset()


class Unit(msgspec.Struct, frozen=True, gc=False):
    """What runs as one: a part, or all parts of an atomicity group.

    Args:
        parts: their numbers, in their order.
        group: the group's name; ``None`` for a part by itself.
    """

    parts: tuple[int, ...]
    group: str | None = None


class Plan(msgspec.Struct, frozen=True):
    """A batch that may run.

    Args:
        parts: as they came.
        units: in the order in which they run.
        needs: for each part the numbers of those that must have succeeded.
        ids: the numbers of the parts by their names in references.
        references: whether parts may refer to the answers of earlier ones.
    """

    parts: Sequence[Part]
    units: Sequence[Unit]
    needs: Sequence[frozenset[int]]
    ids: dict[str, int]
    references: bool


def plan(parts: Sequence[Part], *, ignore_case: bool, references: bool, atomic: bool) -> Plan:
    """Check what parts say of one another, and put them into units.

    Args:
        parts: of a batch.
        ignore_case: whether ids that differ in case only are the same, as in Microsoft Graph.
        references: whether parts may refer to the answers of earlier ones.
        atomic: whether all of them are one group.

    Raises:
        Malformed: an id is not unique, a group is not together, or a dependency is not earlier.
    """
    ids = _ids(parts, ignore_case=ignore_case)
    units = in_units(parts)
    _check_groups(units, ids, ignore_case=ignore_case)
    needs = _needs(parts, ids, units, references=references)
    if atomic:
        units = [Unit(tuple(range(len(parts))), "batch")]
    return Plan(parts, units, needs, ids, references)


def named(name: str) -> str:
    """Return an id without the brackets that it has as a Content-ID."""
    return name[1:-1] if name.startswith("<") and name.endswith(">") else name


def _ids(parts: Sequence[Part], *, ignore_case: bool) -> dict[str, int]:
    ids: dict[str, int] = {}
    seen: set[str] = set()
    for number, part in enumerate(parts):
        if part.id is None:
            continue
        # <a> and a would be one name in references.
        name = named(part.id)
        same = name.casefold() if ignore_case else name
        if same in seen:
            raise Malformed("bad-id", f"The id {part.id!r} is there twice.", number, part.id)
        seen.add(same)
        ids[name] = number
    return ids


def in_units(parts: Sequence[Part]) -> list[Unit]:
    """Put parts that follow each other and name the same group into one unit."""
    units: list[Unit] = []
    for group, run in groupby(enumerate(parts), key=lambda numbered: numbered[1].group):
        numbers = tuple([number for number, _ in run])
        if group is None:
            units += [Unit((number,)) for number in numbers]
        else:
            units.append(Unit(numbers, group))
    return units


def _check_groups(units: Iterable[Unit], ids: dict[str, int], *, ignore_case: bool) -> None:
    def same(name: str) -> str:
        return name.casefold() if ignore_case else name

    names = {same(name) for name in ids}
    seen: set[str] = set()
    for unit in units:
        if unit.group is None:
            continue
        number = unit.parts[0]
        if same(unit.group) in names:
            raise Malformed(
                "bad-id", f"{unit.group!r} is the name of a group and of a part.", number
            )
        if same(unit.group) in seen:
            raise Malformed(
                "bad-dependency", f"The parts of the group {unit.group!r} are not together.", number
            )
        seen.add(same(unit.group))


def _needs(
    parts: Sequence[Part], ids: dict[str, int], units: Sequence[Unit], *, references: bool
) -> list[frozenset[int]]:
    groups = {unit.group: unit.parts for unit in units if unit.group is not None}
    needs: list[frozenset[int]] = []
    for number, part in enumerate(parts):
        names = dict.fromkeys(part.depends_on)
        if references:
            names |= dict.fromkeys(sorted(mentioned(part, ids)))
        if not names:
            needs.append(_NOTHING)
            continue
        found: set[int] = set()
        for name in names:
            found.update(_before(part, number, name, ids, groups))
        needs.append(frozenset(found))
    return needs


def _before(
    part: Part, number: int, name: str, ids: dict[str, int], groups: dict[str, tuple[int, ...]]
) -> Sequence[int]:
    numbers = (ids[name],) if name in ids else groups.get(name)
    if numbers is None:
        raise Malformed(
            "bad-dependency", f"A part depends on {name!r}, which is not there.", number, part.id
        )
    if numbers[-1] >= number:
        raise Malformed(
            "bad-dependency",
            f"A part depends on {name!r}, which does not come before it.",
            number,
            part.id,
        )
    return numbers
