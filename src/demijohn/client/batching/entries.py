"""One request on its way through a batch, and what becomes of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from ...core.batch import Answer, Part, field
from ..policy import IDEMPOTENT_METHODS

KEY_FIELD: Final = "idempotency-key"


@dataclass(frozen=True, slots=True)
class Answered:
    """The server has answered it.

    Args:
        answer: its status, fields and body.
        whole: whether the batch as a whole was answered so, and nothing of it ran.
    """

    answer: Answer
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """Nobody knows what became of it, or it cannot be sent.

    Args:
        error: why.
    """

    error: Exception


@dataclass(frozen=True, slots=True)
class Again:
    """It should be sent again, in another batch.

    Args:
        delay_s: seconds to wait before.
        otherwise: what becomes of it if that is not possible.
    """

    delay_s: float
    otherwise: Answered | Failed


@dataclass(frozen=True, slots=True)
class Singly:
    """Nothing of it has run, and it should be sent by itself."""


Verdict: TypeAlias = Answered | Failed | Again | Singly


@dataclass(slots=True, eq=False)
class Entry:
    """A request that may go in a batch.

    Args:
        part: the request, with all its fields.
        lane: what those have in common that may share a batch with it.
        size: how many bytes it takes at most in a batch.
        related: whether others depend on it, or it on them: by an id, a group or ``depends_on``.
        sent: how often it was sent.
        waited: how often it was told to wait.
        batch_key: the idempotency key of the batch in which it was sent first, if that had one.
        name: its id in that batch, from which the server derives the key of the part.
        verdict: what became of it the last time.
        owner: the library's own request, for the module that made the entry.
    """

    part: Part
    lane: Hashable
    size: int
    related: bool = False
    sent: int = 0
    waited: int = 0
    batch_key: str | None = None
    name: str | None = None
    verdict: Verdict | None = None
    owner: object = None

    @property
    def meets(self) -> Hashable:
        """With whom it may share a batch: under a key only those that shared it before."""
        return (self.lane, self.batch_key)

    @property
    def idempotent(self) -> bool:
        """Whether a second arrival changes nothing, by its method or by its own key."""
        return self.part.method.upper() in IDEMPOTENT_METHODS or self.has_own_key

    @property
    def has_own_key(self) -> bool:
        """Whether the caller has given it an idempotency key."""
        return bool((field(self.part.fields, KEY_FIELD) or "").strip(' \t"'))

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again although it may have run."""
        return self.idempotent or self.batch_key is not None


def batches(entries: Iterable[Entry], max_parts: int, max_bytes: int) -> Iterator[list[Entry]]:
    """Yield those that share a batch, in their order.

    Args:
        entries: in the order in which they were asked for.
        max_parts: the most of a batch.
        max_bytes: the most bytes of a batch.
    """
    lanes: dict[Hashable, list[Entry]] = {}
    for entry in entries:
        lanes.setdefault(entry.meets, []).append(entry)
    for lane in lanes.values():
        yield from _within(lane, max_parts, max_bytes)


def _within(lane: list[Entry], max_parts: int, max_bytes: int) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    size = 0
    for entry in lane:
        if batch and (len(batch) == max_parts or size + entry.size > max_bytes):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry.size
    yield batch
