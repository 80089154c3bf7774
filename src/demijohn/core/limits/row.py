"""What the algorithms have in common: their results, and how they read a row."""

from __future__ import annotations

from typing import Final, TypeAlias

from ..step import Row

NEVER: Final = -1
"""Instead of a wait: what was asked for is more than there can ever be."""

INSTANT: Final = 6
"""Bytes of an instant: milliseconds since the epoch, big-endian, until the year 10889."""

Quota: TypeAlias = tuple[int, int]
"""Units that are left, and in how many milliseconds there will be more (0: there are all)."""

Rule: TypeAlias = tuple[int, int, int, int, int]
"""Algorithm, amount, window in milliseconds, burst, cost."""

Left: TypeAlias = "tuple[Quota, Row | None]"
"""The quota, and the row to write; for a charge ``None`` if it stays, for a refund if it goes."""

Taken: TypeAlias = "tuple[int, Quota, Quota, Row | None]"
"""0 or the wait in milliseconds, the quota before, the quota after, and the row to write."""


def integer(row: Row, name: str) -> int:
    """Return an integer field; 0 where there is none."""
    value = row.get(name)
    return value if isinstance(value, int) else 0


def data(row: Row, name: str) -> bytes:
    """Return a field of bytes; ``b""`` where there is none."""
    value = row.get(name)
    return value if isinstance(value, bytes) else b""


def instant(packed: bytes, at: int) -> int:
    """Return the instant that begins at byte ``at``."""
    return int.from_bytes(packed[at : at + INSTANT], "big")


def pack(instant_ms: int) -> bytes:
    """Return the bytes of an instant."""
    return instant_ms.to_bytes(INSTANT, "big")
