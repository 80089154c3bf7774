"""What a store must be able to do, and nothing else.

A third party's store is one class with these methods; ``demijohn.testing.contract`` holds the
classes that prove it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from ..core.step import Outcome, Row, Step

Clock: TypeAlias = Callable[[], int]
"""Returns the time in milliseconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Health:
    """What a store says of itself: its kind, whether it answers, and how long that took."""

    kind: str
    ok: bool
    latency_ms: float
    detail: str = ""


@runtime_checkable
class Store(Protocol):
    """Rows by key, changed only by steps.

    Every method may be called from any thread, and from a process forked after the store was made.
    """

    @property
    def inbox(self) -> str:
        """The name under which this process hears wake-ups from others, ``""`` for none."""
        ...

    @property
    def mark(self) -> int:
        """A number that says which wake-ups have been heard so far; costs nothing to read."""
        ...

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        """Run ``steps`` in order, atomically, in one trip.

        Returns:
            The outcomes in order, up to and including the first that halts.

        Raises:
            StoreUnavailable: nothing is known to have been written.
            StoreTimeout: the steps may or may not have been run.
            CorruptRecord: a row cannot be read.
        """
        ...

    def wait(self, key: str, *, since: int, timeout_ms: int) -> bool:
        """Block until ``key`` is woken, or for ``timeout_ms``.

        Args:
            key: the first key of the step that will wake.
            since: the :attr:`mark` read *before* the step that answered "busy" was run, so that
                a wake-up between that step and this call is not missed.
            timeout_ms: the longest wait in milliseconds.

        Returns:
            Whether to look again at once. It may be true without cause; it is never false when a
            wake-up was heard.
        """
        ...

    def scan(self, prefix: str) -> Iterator[tuple[str, Row]]:
        """Yield the live rows whose key starts with ``prefix``, for operators; in no order."""
        ...

    def health(self) -> Health:
        """Ask the store whether it answers; never raises."""
        ...

    def close(self) -> None:
        """Give back connections and stop threads; idempotent."""
        ...


def scattered(store: Store) -> bool:
    """Whether the keys of one step must share a hash tag, because others lie on other servers."""
    return bool(getattr(store, "scattered", False))
