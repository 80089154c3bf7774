"""A limit of how many run at the same time.

Theory of operation. Who enters is given a place for the length of a lease, under a token of its
own; it renews the lease while it runs and gives the place back when it ends. The place of a
process that was killed is free when its lease lapses. Who finds no place may leave an inbox, and
is woken when a place is given back.

Fields: ``l`` the places, an instant (the end of the lease) and a token each; ``w`` the inboxes of
those who wait, separated by line feeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..step import EXPIRES, Row
from .row import INSTANT, NEVER, Quota, Rule, Taken, data, instant, pack

PLACES: Final = "l"
WAITERS: Final = "w"
TOKEN: Final = 8
"""Bytes of a token."""
SOON_MS: Final = 1000
"""A lease is renewed, so its end says little of when a place is free; this is a fair guess."""


def _places(row: Row | None, now_ms: int, lease_ms: int) -> dict[bytes, int]:
    """Return the leases that hold: their ends by their tokens, in the order of entering."""
    places: dict[bytes, int] = {}
    packed = b"" if row is None else data(row, PLACES)
    for at in range(0, len(packed), INSTANT + TOKEN):
        end = instant(packed, at)
        # One that ends later than any lease can was made before the clock went back.
        if now_ms < end <= now_ms + 2 * lease_ms:
            places[packed[at + INSTANT : at + INSTANT + TOKEN]] = end
    return places


def _row(places: Mapping[bytes, int], waiters: bytes) -> Row:
    packed = b"".join([pack(end) + token for token, end in places.items()])
    row: dict[str, int | bytes] = {EXPIRES: max(places.values()), PLACES: packed}
    if waiters:
        row[WAITERS] = waiters
    return row


def take(row: Row | None, now_ms: int, rule: Rule, token: bytes) -> Taken:
    """Take a place for ``window_ms`` if there is one; who has one keeps it."""
    _, amount, window_ms, _, cost = rule
    places = _places(row, now_ms, window_ms)
    before: Quota = max(amount - len(places), 0), 0
    if not cost:
        return 0, before, before, None
    if not amount:
        return NEVER, before, before, None
    if token not in places and not before[0]:
        return SOON_MS, before, before, None
    places[token] = now_ms + window_ms
    after: Quota = max(amount - len(places), 0), 0
    return 0, before, after, _row(places, b"" if row is None else data(row, WAITERS))


def look(row: Row | None, now_ms: int, rule: Rule) -> Quota:
    """Return how many places there are."""
    _, amount, window_ms, _, _ = rule
    return max(amount - len(_places(row, now_ms, window_ms)), 0), 0


def leave(
    row: Row | None, now_ms: int, rule: Rule, token: bytes
) -> tuple[Quota, Row | None, bytes]:
    """Give the place of ``token`` back; return the inboxes of those who wait, too."""
    _, amount, window_ms, _, _ = rule
    places = _places(row, now_ms, window_ms)
    held = places.pop(token, None)
    waiters = b"" if row is None else data(row, WAITERS)
    quota: Quota = max(amount - len(places), 0), 0
    if held is None:
        return quota, row, b""
    return quota, _row(places, b"") if places else None, waiters


def renew(row: Row | None, now_ms: int, window_ms: int, token: bytes) -> Row | None:
    """Have the lease of ``token`` end ``window_ms`` from now; ``None`` if it has lapsed."""
    places = _places(row, now_ms, window_ms)
    if row is None or token not in places:
        return None
    places[token] = now_ms + window_ms
    return _row(places, data(row, WAITERS))


def wait(row: Row, inbox: bytes) -> Row | None:
    """Have ``inbox`` be woken when a place is free; ``None`` if it will be already."""
    waiters = data(row, WAITERS)
    if inbox in waiters.split(b"\n"):
        return None
    return {**row, WAITERS: waiters + b"\n" + inbox if waiters else inbox}
