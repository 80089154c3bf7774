"""The decisions of limits: rates, quotas, and how many may run at once.

Theory of operation. Every limit that a request must pass has one row, found by who calls and by
which policy. One step reads all of them and takes from all or from none: a refused request leaves
no trace, and the answer says of every limit what is left. After the view another step charges
what only then was known, gives back what was not used up, and leaves places.

Five algorithms keep a row each in their own way; see their modules. Whatever the quota, a row of
a window, a burst or a calendar stays below 400 bytes on a server::

    window     never more than the quota in any window of that length      (the default)
    gcra       an even rate, and a burst above it
    calendar   the periods of a bill: day, month, year, in UTC
    log        exact to the millisecond, for small quotas
    leases     how many run at the same time

Time is the store's. A clock that is put back by less than a window changes nothing to the client's
advantage; by more, what was counted in times to come is forgotten.
"""

from __future__ import annotations

from .calendar import MONTH, YEAR
from .decisions import CALENDAR, CHARGE, GCRA, LEASES, LEAVE, LOG, REFUND, SHADOW, SKIP, WINDOW
from .leases import TOKEN
from .row import NEVER, Quota, Rule
from .steps import (
    FIRST,
    NO_RULE,
    RENEW,
    RESET,
    SPARED,
    TALLY,
    WHOLE,
    renew,
    reset,
    settle,
    take,
    tally,
)

__all__ = [
    "CALENDAR",
    "CHARGE",
    "FIRST",
    "GCRA",
    "LEASES",
    "LEAVE",
    "LOG",
    "MONTH",
    "NEVER",
    "NO_RULE",
    "REFUND",
    "RENEW",
    "RESET",
    "SHADOW",
    "SKIP",
    "SPARED",
    "TALLY",
    "TOKEN",
    "WHOLE",
    "WINDOW",
    "YEAR",
    "Quota",
    "Rule",
    "renew",
    "reset",
    "settle",
    "take",
    "tally",
]
