"""The unit of work that a store runs atomically.

Theory of operation. A capability decides by *steps*. A step names its rows by key and carries
plain arguments; its :class:`StepKind` names the pure function that decides::

    decide(rows, now_ms, *args) -> Decision(outcome, writes, wakes)

``rows`` are the current rows, ``None`` where there is none; ``now_ms`` is the store's clock.
The function returns what to answer (:class:`Outcome`), which rows to replace or delete, and which
waiters to wake. It never reads a clock or touches a socket, so one store may run it under a lock,
another inside ``BEGIN IMMEDIATE``, and a third may run its Lua twin on the server, and all agree.

A store runs a sequence of steps in one atomic trip and stops behind the first outcome that
*halts*: the steps after it are not run, and write nothing. Where steps before it have other
arguments for that case, the run is decided anew with these, and nothing of the first try is kept.

Rows are flat: short field names to integers or bytes. Every row carries :data:`EXPIRES`, the
instant (milliseconds on the store's clock) from which the row counts as absent, whether or not the
store has got round to removing it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from demijohn.errors import CorruptRecord

# The values below are made several times in every request. A Struct is a frozen, slotted value
# as a dataclass is, and costs a quarter of one to make.

Row: TypeAlias = Mapping[str, int | bytes]
Rows: TypeAlias = Sequence[Row | None]
Arg: TypeAlias = int | bytes | str
Value: TypeAlias = int | bytes

EXPIRES: Final = "x"
"""The row field that holds the instant of expiry, in milliseconds on the store's clock."""


class Outcome(msgspec.Struct, frozen=True):
    """What a step answered: a status word, its values, and whether later steps are skipped."""

    status: str
    values: tuple[Value, ...] = ()
    halts: bool = False

    def integer(self, index: int) -> int:
        """Return value ``index``, which this status defines as an integer."""
        value = self.values[index]
        if not isinstance(value, int):
            raise TypeError(f"value {index} of outcome {self.status!r} is not an integer")
        return value

    def data(self, index: int) -> bytes:
        """Return value ``index``, which this status defines as bytes."""
        value = self.values[index]
        if not isinstance(value, bytes):
            raise TypeError(f"value {index} of outcome {self.status!r} is not bytes")
        return value


class Wake(msgspec.Struct, frozen=True):
    """Those who wait on ``key`` must look again; ``inboxes`` are the processes they wait in."""

    key: str
    inboxes: tuple[str, ...] = ()


class Decision(msgspec.Struct, frozen=True):
    """The whole effect of one step.

    ``writes`` maps the index of a key to its new row, or to ``None`` to delete it; rows that are
    not named stay as they are.
    """

    outcome: Outcome
    writes: Mapping[int, Row | None] = {}
    wakes: tuple[Wake, ...] = ()


Decide: TypeAlias = Callable[..., Decision]


class StepKind(msgspec.Struct, frozen=True, eq=False):
    """One kind of decision.

    Args:
        name: dotted name, unique in the process, such as ``"idempotency.begin"``.
        decide: the pure function ``(rows, now_ms, *args) -> Decision``.
        lua: the Lua twin as ``"package/file.lua"``, a resource of an importable package.
        may_only_read: whether the step can end without a write, so that a store with cheap
            reads may try it on a snapshot before it takes a write lock.
        includes: further Lua files, in front of the twin and behind what that includes itself.
    """

    name: str
    decide: Decide
    lua: str
    may_only_read: bool = False
    includes: tuple[str, ...] = ()


class Step(msgspec.Struct, frozen=True):
    """A decision to be made: its kind, the keys of its rows, and its arguments.

    With ``otherwise``, these are its arguments if a later step of the same run halts: so a limit
    can charge another price when it turns out, in the same trip, that the view will not run.
    """

    kind: StepKind
    keys: tuple[str, ...]
    args: tuple[Arg, ...]
    otherwise: tuple[Arg, ...] | None = None


def live(row: Row, now_ms: int) -> Row | None:
    """Return ``row``, or ``None`` from the instant of its expiry on.

    Raises:
        CorruptRecord: the row does not say when it expires.
    """
    expires = row.get(EXPIRES)
    if not isinstance(expires, int):
        raise CorruptRecord("the row has no expiry")
    return row if now_ms < expires else None


def decide(step: Step, rows: Rows, now_ms: int) -> Decision:
    """Run the pure function of ``step`` over ``rows`` as they stand at ``now_ms``."""
    return step.kind.decide(
        [None if row is None else live(row, now_ms) for row in rows], now_ms, *step.args
    )
