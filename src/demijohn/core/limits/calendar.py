"""A quota per calendar period, which begins anew for everybody at the same instant.

Theory of operation. A period is a minute, an hour, a day, a month or a year in UTC, and the row
counts what was taken in it. Twice the quota may pass around the turn of a period; that is what
"1000 a month" means on a bill, and the reason not to use it against floods.

Fields: ``p`` when the period began, in milliseconds; ``n`` how much was taken in it.
"""

from __future__ import annotations

from typing import Final

from ..step import EXPIRES, Row
from .row import NEVER, Left, Quota, Rule, Taken, integer

MONTH: Final = 1
YEAR: Final = 2
DAY_MS: Final = 86_400_000

START: Final = "p"
COUNT: Final = "n"


def _days(year: int, month: int) -> int:
    """Return the days from the epoch to the first of a month.

    Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil.
    """
    if month <= 2:  # the year of the algorithm begins in March, so that a leap day is its last
        year, month = year - 1, month + 12
    era, of_era = divmod(year, 400)
    of_year = (153 * (month - 3) + 2) // 5
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def _civil(days: int) -> tuple[int, int]:
    """Return year and month of a day since the epoch; source as above, civil_from_days."""
    era, day = divmod(days + 719_468, 146_097)
    of_era = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    of_year = day - (365 * of_era + of_era // 4 - of_era // 100)
    month = (5 * of_year + 2) // 153 + 3
    year = era * 400 + of_era
    return (year + 1, month - 12) if month > 12 else (year, month)


def period(now_ms: int, window_ms: int, unit: int) -> tuple[int, int]:
    """Return the beginning and the end of the period in which ``now_ms`` lies.

    Args:
        now_ms: milliseconds since the epoch.
        window_ms: the length of a period, where ``unit`` is 0.
        unit: 0, :data:`MONTH` or :data:`YEAR`.
    """
    if not unit:
        start = now_ms - now_ms % window_ms
        return start, start + window_ms
    year, month = _civil(now_ms // DAY_MS)
    if unit == YEAR:
        return _days(year, 1) * DAY_MS, _days(year + 1, 1) * DAY_MS
    following = (year + 1, 1) if month == 12 else (year, month + 1)
    return _days(year, month) * DAY_MS, _days(*following) * DAY_MS


def _used(row: Row | None, now_ms: int, window_ms: int, unit: int) -> tuple[int, int, int]:
    """Return the beginning and the end of the period, and what was taken in it."""
    start, end = period(now_ms, window_ms, unit)
    if row is None:
        return start, end, 0
    counted = integer(row, START)
    if counted == end:  # the clock went back over the turn of the period, by less than one
        start, end = period(end, window_ms, unit)
    return start, end, integer(row, COUNT) if counted == start else 0


def _row(start: int, end: int, used: int) -> Row:
    return {EXPIRES: end, START: start, COUNT: used}


def _quota(end: int, used: int, amount: int, now_ms: int) -> Quota:
    return max(amount - used, 0), end - now_ms if used else 0


def take(row: Row | None, now_ms: int, rule: Rule) -> Taken:
    """Take ``cost`` units if they are there; its burst is the unit of the period."""
    _, amount, window_ms, unit, cost = rule
    start, end, used = _used(row, now_ms, window_ms, unit)
    before = _quota(end, used, amount, now_ms)
    if not cost:
        return 0, before, before, None
    if cost > amount:
        return NEVER, before, before, None
    if used + cost > amount:
        return end - now_ms, before, before, None
    used += cost
    return 0, before, _quota(end, used, amount, now_ms), _row(start, end, used)


def charge(row: Row | None, now_ms: int, rule: Rule) -> Left:
    """Take ``cost`` units whether or not they are there, down to one quota below nothing."""
    _, amount, window_ms, unit, cost = rule
    start, end, used = _used(row, now_ms, window_ms, unit)
    cost = min(cost, max(2 * amount - used, 0))
    used += cost
    return _quota(end, used, amount, now_ms), _row(start, end, used) if cost else None


def refund(row: Row | None, now_ms: int, rule: Rule, at_ms: int) -> Left:
    """Give back ``cost`` units if they were taken in the period that still runs."""
    _, amount, window_ms, unit, cost = rule
    start, end, used = _used(row, now_ms, window_ms, unit)
    if start <= at_ms < end:
        used = max(used - cost, 0)
    return _quota(end, used, amount, now_ms), _row(start, end, used) if used else None
