"""A quota per rolling window, by eleven counters.

Theory of operation. Time is cut into parts of a tenth of the window. A row counts what was taken in
the present part and in the ten before it, in a ring of eleven slots. A unit is counted until its
part has left the ring: for longer than the window, by at most one part. So no window of that
length, wherever it begins, sees more than the quota, and what was taken comes back at most a
tenth of the window late. A fixed window, GCRA and the usual weighted pair of counters all let
nearly twice the quota pass at the worst moment; an exact log does not, and grows with the quota.

Fields: ``i`` the number of the newest part that was counted in; ``0`` to ``10`` the slots, the
number of a part modulo eleven; a slot that is not there counts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias, cast

from ..step import EXPIRES, Row
from .row import NEVER, Left, Quota, Rule, Taken, integer

PARTS: Final = 10
RING: Final = PARTS + 1
SLOTS: Final = tuple(str(slot) for slot in range(RING))
INDEX: Final = "i"

Counts: TypeAlias = "list[tuple[int, int]]"
"""Number and count of the parts in which something was taken, the oldest first."""


def part_ms(window_ms: int) -> int:
    """Return the length of a part; ten of them are no shorter than the window."""
    return -(-window_ms // PARTS)


def _counts(row: Row | None, now_ms: int, part: int) -> tuple[int, Counts]:
    """Return the number of the present part, and what is counted."""
    index = now_ms // part
    if row is None:
        return index, []
    newest = integer(row, INDEX)
    if newest > index:
        # The clock went back. By a little: what is new joins the newest part. By more than the
        # ring holds: what is there was counted at times that will not come for long.
        if newest - index > RING:
            return index, []
        index = newest
    at = row.get
    counts = []
    for number in range(index - PARTS, newest + 1):
        count = at(SLOTS[number % RING])
        if count:
            counts.append((number, cast("int", count)))
    return index, counts


def _freed_ms(counts: Counts, units: int, part: int, now_ms: int) -> int:
    """Return how long it takes until ``units`` of what is counted have left."""
    for number, count in counts:
        units -= count
        if units <= 0:
            return (number + RING) * part - now_ms
    return 0


def _quota(counts: Counts, amount: int, part: int, now_ms: int) -> Quota:
    used = sum([count for _, count in counts])
    more = max(used - amount, 0) + 1
    return max(amount - used, 0), _freed_ms(counts, more, part, now_ms)


def _row(index: int, counts: Counts, part: int) -> Row:
    row: dict[str, int | bytes] = {EXPIRES: (counts[-1][0] + RING) * part, INDEX: index}
    for number, count in counts:
        row[SLOTS[number % RING]] = count
    return row


def _added(index: int, counts: Counts, cost: int) -> Counts:
    if counts and counts[-1][0] == index:
        return [*counts[:-1], (index, counts[-1][1] + cost)]
    return [*counts, (index, cost)]


def _taken_again(row: Row, now_ms: int, amount: int, cost: int, part: int) -> Taken | None:
    """Take in the part that was counted in last, by a shorter way; ``None`` if it is too much.

    All slots of such a row are in the ring, so that their sum is what is counted.
    """
    index = now_ms // part
    values = cast("Iterable[int]", row.values())
    used = sum(values) - cast("int", row[EXPIRES]) - index
    left = amount - used - cost
    if left < 0 or not cost:
        return None
    expires = (index + RING) * part
    number = index - PARTS
    while number < index and not row.get(SLOTS[number % RING]):
        number += 1
    reset_ms = (number + RING) * part - now_ms
    slot = SLOTS[index % RING]
    new = {**row, EXPIRES: expires, slot: cast("int", row.get(slot, 0)) + cost}
    return 0, (amount - used, reset_ms if used else 0), (left, reset_ms), new


def take(row: Row | None, now_ms: int, rule: Rule) -> Taken:
    """Take ``cost`` units if they are there."""
    _, amount, window_ms, _, cost = rule
    part = part_ms(window_ms)
    if row is not None and row.get(INDEX) == now_ms // part:
        taken = _taken_again(row, now_ms, amount, cost, part)
        if taken is not None:
            return taken
    index, counts = _counts(row, now_ms, part)
    before = _quota(counts, amount, part, now_ms)
    if not cost:
        return 0, before, before, None
    lacking = cost - before[0]
    if cost > amount:
        return NEVER, before, before, None
    if lacking > 0:
        used = sum([count for _, count in counts])
        return _freed_ms(counts, used + cost - amount, part, now_ms), before, before, None
    reset_ms = before[1] or (index + RING) * part - now_ms
    after = -lacking, reset_ms
    return 0, before, after, _row(index, _added(index, counts, cost), part)


def charge(row: Row | None, now_ms: int, rule: Rule) -> Left:
    """Take ``cost`` units whether or not they are there, down to one quota below nothing."""
    _, amount, window_ms, _, cost = rule
    part = part_ms(window_ms)
    index, counts = _counts(row, now_ms, part)
    used = sum([count for _, count in counts])
    cost = min(cost, max(2 * amount - used, 0))
    if not cost:
        return _quota(counts, amount, part, now_ms), None
    counts = _added(index, counts, cost)
    return _quota(counts, amount, part, now_ms), _row(index, counts, part)


def refund(row: Row | None, now_ms: int, rule: Rule, at_ms: int) -> Left:
    """Give back ``cost`` units that were taken at ``at_ms``; an empty row is to be deleted."""
    _, amount, window_ms, _, cost = rule
    part = part_ms(window_ms)
    index, counts = _counts(row, now_ms, part)
    left = [
        (number, count - cost if number == at_ms // part else count) for number, count in counts
    ]
    left = [(number, count) for number, count in left if count > 0]
    return _quota(left, amount, part, now_ms), _row(index, left, part) if left else None
