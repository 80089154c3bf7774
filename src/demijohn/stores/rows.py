"""What stores that keep rows as bytes have in common: the bytes, and deciding over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import msgspec

from ..core.step import EXPIRES, Decision, Outcome, Row, Step, Wake, decide
from ..errors import CorruptRecord

VERSION: Final = b"\x01"

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[str, int | bytes])

Look: TypeAlias = Callable[[str], Row | None]
"""Returns the row of a key as it is stored."""


def encode(row: Row) -> bytes:
    """Return the bytes of a row."""
    return VERSION + _encoder.encode(row)


def decode(key: str, data: bytes) -> Row:
    """Return the row in ``data``.

    Raises:
        CorruptRecord: it is truncated, altered, or of another version.
    """
    if data[:1] != VERSION:
        raise CorruptRecord(f"row {key} has version {data[:1]!r}; this release reads {VERSION!r}")
    try:
        row = _decoder.decode(memoryview(data)[1:])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptRecord(f"row {key} cannot be read: {error}") from error
    if not isinstance(row.get(EXPIRES), int):
        raise CorruptRecord(f"row {key} has no expiry")
    return row


class Changes:
    """What the steps of one run have decided so far."""

    __slots__ = ("outcomes", "rows", "wakes")

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.rows: dict[str, Row | None] = {}
        self.wakes: tuple[Wake, ...] = ()

    def add(self, step: Step, decision: Decision) -> None:
        """Note what ``step`` has decided."""
        for index, row in decision.writes.items():
            self.rows[step.keys[index]] = row
        self.wakes += decision.wakes
        self.outcomes.append(decision.outcome)


def decide_all(steps: Sequence[Step], now_ms: int, look: Look) -> Changes:
    """Decide ``steps`` in order, up to the first that halts; each sees what those before it wrote.

    Raises:
        CorruptRecord: a row cannot be read.
    """
    changes = _decide_all(steps, now_ms, look)
    before = len(changes.outcomes) - 1
    if before > 0 and changes.outcomes[before].halts:
        spared = [_otherwise(step) for step in steps[:before]]
        if spared != list(steps[:before]):
            return _decide_all([*spared, steps[before]], now_ms, look)
    return changes


def _otherwise(step: Step) -> Step:
    return step if step.otherwise is None else Step(step.kind, step.keys, step.otherwise)


def _decide_all(steps: Sequence[Step], now_ms: int, look: Look) -> Changes:
    changes = Changes()
    for step in steps:
        rows = [changes.rows[key] if key in changes.rows else look(key) for key in step.keys]
        decision = decide(step, rows, now_ms)
        changes.add(step, decision)
        if decision.outcome.halts:
            break
    return changes
