"""The decisions of idempotent requests.

Theory of operation. One row per idempotency key. The first request *begins*: the row says RUNNING,
with a random token (who), a fence (a number that only grows), a fingerprint (which request) and a
lease. It *completes* with the response, or is *released* so that a retry may run. While the view
runs its lease is *renewed*. A second request meets one of::

    completed, same request      -> replay       the stored response
    running, lease alive         -> busy         wait, and look again when woken
    running, lease lapsed        -> run          takes over: attempt + 1, fence + 1
                                 or unknown      with on_lost=refuse: kept for an operator
    any, another request         -> mismatch     wins over busy, so a client learns at once

Only the holder of the token may renew, complete or release; anyone else is *fenced*. A worker that
was paused past its lease is therefore refused when it wakes, and learns what the winner stored.

Repeating a step whose reply was lost is safe: begin, complete and release by the same token find
their own work done and answer as before.

The row outlives its content. A released or expired record keeps the fence (and the attempt) for
the retention, so that fences never go backwards while a zombie of an earlier attempt may live.

The rules are :data:`TABLE`, executed by :func:`transition`; the diagram in the documentation is
drawn from it by :func:`diagram`, and ``core/lua/idempotency_*.lua`` are its twins.
"""

from __future__ import annotations

from .decisions import (
    ATTEMPT,
    FENCE,
    FINGERPRINT,
    FRAME,
    LEASE_UNTIL,
    SINCE,
    STATE,
    TOKEN,
    TOMBSTONE,
    UNTIL,
    WAITERS,
    state_of,
)
from .steps import (
    BEGIN,
    COMPLETE,
    RELEASE,
    RENEW,
    RESOLVE,
    begin,
    complete,
    release,
    renew,
    resolve,
)
from .table import (
    ALIVE,
    ALWAYS,
    HAS_FRAME,
    OTHER_REQUEST,
    OWN,
    REFUSES,
    TABLE,
    Condition,
    Event,
    Facts,
    OnLost,
    State,
    Transition,
    diagram,
    transition,
)

__all__ = [
    "ALIVE",
    "ALWAYS",
    "ATTEMPT",
    "BEGIN",
    "COMPLETE",
    "FENCE",
    "FINGERPRINT",
    "FRAME",
    "HAS_FRAME",
    "LEASE_UNTIL",
    "OTHER_REQUEST",
    "OWN",
    "REFUSES",
    "RELEASE",
    "RENEW",
    "RESOLVE",
    "SINCE",
    "STATE",
    "TABLE",
    "TOKEN",
    "TOMBSTONE",
    "UNTIL",
    "WAITERS",
    "Condition",
    "Event",
    "Facts",
    "OnLost",
    "State",
    "Transition",
    "begin",
    "complete",
    "diagram",
    "release",
    "renew",
    "resolve",
    "state_of",
    "transition",
]
