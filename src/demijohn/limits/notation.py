"""Limits in words: ``"100/minute"``, ``"5 per 10 seconds; 2000/day"``.

The grammar is that of the library ``limits``, which users of Flask-Limiter know: an amount, ``/``
or ``per``, perhaps a number, and a unit; several are separated by ``;``, ``,`` or ``|``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Final, TypeAlias

import msgspec

UNITS: Final = {
    "second": 1,
    "minute": 60,
    "hour": 3600,
    "day": 86_400,
    "week": 7 * 86_400,
    "month": 30 * 86_400,
    "year": 12 * 30 * 86_400,
}
"""Seconds of a unit; a month has 30 days and a year 360, unless they are those of the calendar."""

MOST: Final = 10**12
LONGEST_S: Final = 10 * 366 * 86_400

_RATE: Final = re.compile(
    r"\s*([0-9]+)\s*(?:/|\bper\b)\s*([0-9]+)?\s*(second|minute|hour|day|week|month|year)s?\s*",
    re.IGNORECASE,
)
_SEPARATORS: Final = re.compile(r"[;,|]")


class Rate(msgspec.Struct, frozen=True):
    """So much per so long.

    Args:
        amount: units in a window; 0 admits nothing.
        multiple: how many units of time a window has.
        unit: of time, a key of :data:`UNITS`, or ``""`` where the window was given in seconds.
    """

    amount: int
    multiple: int
    unit: str = ""

    @property
    def seconds(self) -> int:
        """The length of a window."""
        return self.multiple * UNITS.get(self.unit, 1)

    def __str__(self) -> str:
        if not self.unit:
            return f"{self.amount}/{self.multiple}s"
        return f"{self.amount}/{self.multiple if self.multiple > 1 else ''}{self.unit}"


Rates: TypeAlias = tuple[Rate, ...]


def parse(text: object) -> Rates:
    """Return the rates in ``text``, or in several texts.

    Raises:
        ValueError: it is not in the notation; the message says what would be right.
    """
    if isinstance(text, str):
        parts: list[object] = list(_SEPARATORS.split(text))
    elif isinstance(text, Iterable) and not isinstance(text, bytes):
        return tuple(rate for part in text for rate in parse(part))
    else:
        parts = [text]
    return tuple(_parse(part) for part in parts)


def _parse(part: object) -> Rate:
    found = _RATE.fullmatch(part) if isinstance(part, str) else None
    if found is None:
        raise ValueError(
            'must be limits such as "100/minute" or "5 per 10 seconds; 2000/day", with the units '
            f"{', '.join(UNITS)}"
        )
    return _checked(Rate(int(found[1]), int(found[2] or 1), found[3].lower()))


def rate_of(requests: object, window: object) -> Rate:
    """Return the rate of the older form: so many requests per window, a duration in seconds.

    Raises:
        ValueError: one of them is not right.
    """
    if isinstance(window, timedelta):
        window = window.total_seconds()
    if isinstance(requests, bool) or not isinstance(requests, int) or requests < 0:
        raise ValueError("needs requests=, an integer of at least 0")
    whole = isinstance(window, int | float) and not isinstance(window, bool)
    if not whole or window != round(window):  # type: ignore[call-overload]
        raise ValueError("needs window=, a whole number of seconds or a timedelta")
    return _checked(Rate(requests, round(window)))  # type: ignore[call-overload]


def _checked(rate: Rate) -> Rate:
    if rate.amount > MOST:
        raise ValueError(f"may admit at most {MOST} per window")
    if not 1 <= rate.seconds <= LONGEST_S:
        raise ValueError("must have a window of a second at least and of ten years at most")
    return rate
