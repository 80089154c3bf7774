"""A quota per rolling window, exactly: the instant of every unit is kept.

Theory of operation. The row holds instants in order, six bytes each, so what is older than the
window is found by bisection and the wait for room is read off at one place. It grows with the
quota, which is why it is for small ones.

Fields: ``h`` the instants, the oldest first.
"""

from __future__ import annotations

from typing import Final

from ..step import EXPIRES, Row
from .row import INSTANT, NEVER, Left, Quota, Rule, Taken, data, instant, pack

HISTORY: Final = "h"


def _after(history: bytes, instant_ms: int) -> int:
    """Return how many instants are not after ``instant_ms``."""
    low, high = 0, len(history) // INSTANT
    while low < high:
        middle = (low + high) // 2
        if instant(history, middle * INSTANT) <= instant_ms:
            low = middle + 1
        else:
            high = middle
    return low


def _live(row: Row | None, now_ms: int, window_ms: int) -> tuple[int, bytes]:
    """Return the instant at which units are taken now, and those that still count."""
    history = b"" if row is None else data(row, HISTORY)
    if not history:
        return now_ms, b""
    newest = instant(history, len(history) - INSTANT)
    if newest > now_ms + window_ms:  # the clock went back by more than a window
        return now_ms, b""
    return max(newest, now_ms), history[_after(history, now_ms - window_ms) * INSTANT :]


def _leaves_ms(history: bytes, units: int, now_ms: int, window_ms: int) -> int:
    """Return how long it takes until ``units`` of what is counted have left."""
    return instant(history, (units - 1) * INSTANT) + window_ms - now_ms


def _quota(history: bytes, amount: int, now_ms: int, window_ms: int) -> Quota:
    used = len(history) // INSTANT
    if not used:
        return amount, 0
    more = max(used - amount, 0) + 1
    # A quota of nothing never has more.
    reset_ms = _leaves_ms(history, more, now_ms, window_ms) if more <= used else 0
    return max(amount - used, 0), reset_ms


def _row(history: bytes, window_ms: int) -> Row:
    newest = instant(history, len(history) - INSTANT)
    return {EXPIRES: newest + window_ms, HISTORY: history}


def take(row: Row | None, now_ms: int, rule: Rule) -> Taken:
    """Take ``cost`` units if they are there."""
    _, amount, window_ms, _, cost = rule
    at_ms, history = _live(row, now_ms, window_ms)
    before = _quota(history, amount, now_ms, window_ms)
    if not cost:
        return 0, before, before, None
    if cost > amount:
        return NEVER, before, before, None
    lacking = len(history) // INSTANT + cost - amount
    if lacking > 0:
        return _leaves_ms(history, lacking, now_ms, window_ms), before, before, None
    history += pack(at_ms) * cost
    return 0, before, _quota(history, amount, now_ms, window_ms), _row(history, window_ms)


def charge(row: Row | None, now_ms: int, rule: Rule) -> Left:
    """Take ``cost`` units whether or not they are there, down to one quota below nothing."""
    _, amount, window_ms, _, cost = rule
    at_ms, history = _live(row, now_ms, window_ms)
    cost = min(cost, max(2 * amount - len(history) // INSTANT, 0))
    if not cost:
        return _quota(history, amount, now_ms, window_ms), None
    history += pack(at_ms) * cost
    return _quota(history, amount, now_ms, window_ms), _row(history, window_ms)


def refund(row: Row | None, now_ms: int, rule: Rule, at_ms: int) -> Left:
    """Give back ``cost`` units that were taken at ``at_ms``."""
    _, amount, window_ms, _, cost = rule
    _, history = _live(row, now_ms, window_ms)
    first, end = _after(history, at_ms - 1), _after(history, at_ms)
    first = max(first, end - cost)
    history = history[: first * INSTANT] + history[end * INSTANT :]
    return _quota(history, amount, now_ms, window_ms), _row(history, window_ms) if history else None
