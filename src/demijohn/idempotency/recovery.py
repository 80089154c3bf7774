"""The steps of one run, in their order."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import UsageError


class Recovery:
    """The steps of one run.

    Args:
        load: returns names and results of the steps that are finished, in order.
        save: commits one: position, name, result; returns the result that stands.
        may_resume: whether an earlier run may have finished any.
    """

    def __init__(
        self,
        load: Callable[[], list[tuple[str, bytes]]],
        save: Callable[[int, str, bytes], bytes],
        *,
        may_resume: bool,
    ) -> None:
        self._load = load
        self._save = save
        self._finished: list[tuple[str, bytes]] | None = None if may_resume else []
        self._next = 0
        self._names: set[str] = set()

    @property
    def used(self) -> bool:
        """Whether the view has steps."""
        return self._next > 0

    def enter(self, name: str) -> tuple[int, bytes | None]:
        """Return the position of the next step, and its result if it is finished."""
        if name in self._names:
            raise UsageError(f"step {name!r}: the view has had a step of this name")
        self._names.add(name)
        if self._finished is None:
            self._finished = self._load()
        position, self._next = self._next, self._next + 1
        if position >= len(self._finished):
            return position, None
        earlier, result = self._finished[position]
        if earlier != name:
            raise UsageError(
                f"step {name!r} is where an earlier run of this request had {earlier!r}: the order"
                " of a view's steps must not depend on anything that changes"
            )
        return position, result

    def save(self, position: int, name: str, result: bytes) -> bytes:
        """Commit a step; return the result that stands."""
        return self._save(position, name, result)
