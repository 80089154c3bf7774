"""What a response says of its limits.

Source: draft-ietf-httpapi-ratelimit-headers-10 (``RateLimit-Policy``, ``RateLimit``), RFC 9651 for
the syntax, RFC 9110 10.2.3 for ``Retry-After``; ``X-RateLimit-*`` as GitHub and Flask-Limiter have
them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

MOST: Final = 999_999_999_999_999
"""The largest integer of a structured field: fifteen digits."""


class Standing(NamedTuple):
    """How one limit stands after a request: what is left, and in how many ms there is more."""

    name: str
    amount: int
    left: int
    reset_ms: int


def quoted(name: str) -> str:
    """Return a name as an sf-string.

    Raises:
        ValueError: it has characters outside of printable ASCII.
    """
    if not name.isascii() or not name.isprintable():
        raise ValueError("must be printable ASCII")
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def policy(name: str, amount: int, window_s: int, *, concurrent: bool) -> str:
    """Return an item of ``RateLimit-Policy``."""
    item = f"{quoted(name)};q={min(amount, MOST)}"
    if concurrent:
        return f'{item};qu="concurrent-requests"'
    return f"{item};w={window_s}" if window_s else item


def seconds(milliseconds: int) -> int:
    """Return whole seconds, rounded up: nobody is told to come back too early."""
    return -(-milliseconds // 1000)


def tightest(standings: Sequence[Standing]) -> Standing:
    """Return the limit of which the least is left, in proportion; then the one that lasts."""
    return min(standings, key=lambda s: (s.left / s.amount if s.amount else -1.0, -s.reset_ms))


def legacy(standings: Sequence[Standing], now_ms: int) -> list[tuple[str, str]]:
    """Return ``X-RateLimit-*``, which know one limit only; the reset is an instant in seconds."""
    found = tightest(standings)
    reset = math.ceil((now_ms + found.reset_ms) / 1000)
    return [
        ("X-RateLimit-Limit", str(found.amount)),
        ("X-RateLimit-Remaining", str(found.left)),
        ("X-RateLimit-Reset", str(reset)),
    ]
