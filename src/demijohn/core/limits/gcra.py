"""A rate with a burst: the generic cell rate algorithm.

Theory of operation. ``amount`` units flow back per window, evenly; at most ``burst`` are there at
once. One instant says it all: the *theoretical arrival time*, at which everything would be there
again. Taking a unit moves it by window / amount; a unit is there as long as that instant is no
further away than the burst. In a window no more than ``amount + burst`` are admitted.

The interval is a fraction, and a rounded one would drift: the instant is kept as whole
milliseconds and a remainder in units of 1/amount of a millisecond, so all arithmetic is exact. All
products stay below 2**53, up to which Lua's numbers are integers; ``limits`` checks that.

Fields: ``s`` the instant in whole milliseconds, ``f`` the remainder, ``c`` when it was written.

Source: ITU-T I.371, annex A.
"""

from __future__ import annotations

from typing import Final

from ..step import EXPIRES, Row
from .row import NEVER, Left, Quota, Rule, Taken, integer

ARRIVAL: Final = "s"
FRACTION: Final = "f"
SINCE: Final = "c"


def _arrival(row: Row | None, now_ms: int, window_ms: int) -> tuple[int, int]:
    """Return the theoretical arrival time, now at the earliest."""
    # A row from more than a window ahead was written before the clock was put back.
    if row is None or integer(row, SINCE) > now_ms + window_ms:
        return now_ms, 0
    whole = integer(row, ARRIVAL)
    return (now_ms, 0) if whole < now_ms else (whole, integer(row, FRACTION))


def _missing(arrival: tuple[int, int], now_ms: int, amount: int) -> int:
    """Return what has not flowed back yet; a unit is as much as the window has milliseconds."""
    return (arrival[0] - now_ms) * amount + arrival[1]


def _quota(missing: int, amount: int, window_ms: int, burst: int) -> Quota:
    room = burst * window_ms - missing
    if not missing:
        return burst, 0
    left = room // window_ms if room > 0 else 0
    return left, -((room - (left + 1) * window_ms) // amount)


def _moved(arrival: tuple[int, int], amount: int, by: int) -> tuple[int, int]:
    whole, fraction = divmod(arrival[1] + by, amount)
    return arrival[0] + whole, fraction


def _row(arrival: tuple[int, int], now_ms: int) -> Row:
    return {EXPIRES: arrival[0] + 1, ARRIVAL: arrival[0], FRACTION: arrival[1], SINCE: now_ms}


def take(row: Row | None, now_ms: int, rule: Rule) -> Taken:
    """Take ``cost`` units if they are there."""
    _, amount, window_ms, burst, cost = rule
    arrival = _arrival(row, now_ms, window_ms)
    missing = _missing(arrival, now_ms, amount)
    before = _quota(missing, amount, window_ms, burst)
    if not cost:
        return 0, before, before, None
    if cost > burst:
        return NEVER, before, before, None
    needed = cost * window_ms
    lacking = missing + needed - burst * window_ms
    if lacking > 0:
        return -(-lacking // amount), before, before, None
    after = _quota(missing + needed, amount, window_ms, burst)
    return 0, before, after, _row(_moved(arrival, amount, needed), now_ms)


def charge(row: Row | None, now_ms: int, rule: Rule) -> Left:
    """Take ``cost`` units whether or not they are there, down to one burst below nothing."""
    _, amount, window_ms, burst, cost = rule
    arrival = _arrival(row, now_ms, window_ms)
    missing = _missing(arrival, now_ms, amount)
    room = 2 * burst * window_ms - missing
    cost = min(cost, room // window_ms if room > 0 else 0)
    if not cost:
        return _quota(missing, amount, window_ms, burst), None
    needed = cost * window_ms
    after = _quota(missing + needed, amount, window_ms, burst)
    return after, _row(_moved(arrival, amount, needed), now_ms)


def refund(row: Row | None, now_ms: int, rule: Rule) -> Left:
    """Give back ``cost`` units; what has flowed back since then is not given twice."""
    _, amount, window_ms, burst, cost = rule
    missing = _missing(_arrival(row, now_ms, window_ms), now_ms, amount)
    missing = max(missing - cost * window_ms, 0)
    quota = _quota(missing, amount, window_ms, burst)
    return quota, _row(_moved((now_ms, 0), amount, missing), now_ms) if missing else None
