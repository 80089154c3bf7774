"""Carries out the parts of a batch, one behind the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
from flask import Flask

from ..core.batch import (
    Answer,
    Malformed,
    Part,
    Place,
    Plan,
    Unit,
    Unresolved,
    locate,
    own_path,
    resolve,
)
from ..membership import KEY, Membership
from .dispatch import Prepare, dispatch, too_large
from .environs import Environs
from .keys import part_key
from .pricing import NOTHING, Pricing
from .refusals import instead
from .settings import Settings

if TYPE_CHECKING:
    from .groups import Groups

FAILED: Final = 400
_SAFE: Final = frozenset({"GET", "HEAD"})
RETRY_AFTER_S: Final = 1

Located: TypeAlias = "Mapping[int, tuple[str, str]]"
"""Path and query of parts, by their numbers."""


class Run:
    """One batch on its way.

    Args:
        app: the application.
        settings: of batches.
        plan: the parts, checked.
        place: where the batch was sent to.
        located: path and query of the parts for which they are known beforehand.
        environs: makes the environments of parts.
        name: the id of the batch.
        key: the idempotency key of the batch.
        key_headers: in which parts have theirs.
        caller: who sends the batch.
        goes_on: whether parts run behind one that has failed.
        groups: carries out atomicity groups.
        pool: for reads in parallel; ``None`` where all runs in order.
    """

    def __init__(
        self,
        app: Flask,
        settings: Settings,
        plan: Plan,
        place: Place,
        located: Located,
        environs: Environs,
        *,
        name: str,
        key: str | None,
        key_headers: tuple[str, ...],
        caller: str,
        goes_on: bool,
        groups: Groups | None,
        pool: ThreadPoolExecutor | None,
    ) -> None:
        self.app = app
        self.settings = settings
        self.plan = plan
        self.name = name
        self.key = key
        self.caller = caller
        self._place = place
        self._located = located
        self._environs = environs
        self._key_headers = key_headers
        self._goes_on = goes_on
        self._groups = groups
        self._pool = pool
        self._ends = time.monotonic() + settings.deadline_ms / 1000
        self._room = settings.max_response_bytes
        self._lock = Lock()
        self._bounds = settings.bounds
        self._failed = False
        self._names = {number: name for name, number in plan.ids.items()}
        self._by_name: dict[str, Answer] = {}
        self._made: dict[int, dict[str, Any]] = {}
        self.answers: dict[int, Answer] = {}
        self.prepaid: dict[int, object] = {}
        """What was taken for parts beforehand, by their numbers."""
        self.pricing: Pricing = NOTHING

    def units(self) -> Iterator[tuple[Unit, Sequence[Answer]]]:
        """Carry out one unit after the other, and give the answers of its parts."""
        units = list(self.plan.units)
        at = 0
        while at < len(units):
            together = self._reads(units, at)
            if self._pool is not None and together:
                yield from self._in_parallel(self._pool, together)
                at += len(together)
            else:
                yield units[at], self._carry_out(units[at])
                at += 1

    def _carry_out(self, unit: Unit) -> list[Answer]:
        found = self._why_not(unit)
        if found is not None:
            return [self.note(index, found) for index in unit.parts]
        if unit.group is not None and self._groups is not None:
            room = self._room
            answers = self._groups.carry_out(self, unit)
            # Not what its parts have said, if it was rolled back, or replayed.
            self._room = room - sum([len(answer.body) for answer in answers])
        else:
            answers = [self.attempt(unit.parts[0])]
        return [self.note(i, answer) for i, answer in zip(unit.parts, answers, strict=True)]

    def note(self, index: int, answer: Answer) -> Answer:
        """Remember what part ``index`` was answered, in the end."""
        answer = msgspec.structs.replace(answer, id=self.plan.parts[index].id)
        self.answers[index] = answer
        self._failed |= answer.status >= FAILED
        self.show(index, answer)
        return answer

    def show(self, index: int, answer: Answer) -> None:
        """Let parts behind ``index`` refer to its answer."""
        name = self._names.get(index)
        if name is not None:
            self._by_name[name] = answer

    # --- what is not to run ---------------------------------------------------------------------

    def _why_not(self, unit: Unit) -> Answer | None:
        if self._failed and not self._goes_on:
            return instead(self.app, "not-attempted", "A part before this one has failed.")
        missing = self._failed_needs(unit)
        if missing:
            return instead(
                self.app,
                "dependency-failed",
                f"What this part depends on has failed: part {missing[0]}.",
                **{"depends-on": missing[0]},
            )
        return self.why_not_now()

    def why_not_now(self) -> Answer | None:
        """Return what a part is answered for which there is no time, or no room, any more."""
        if time.monotonic() >= self._ends:
            return instead(
                self.app,
                "deadline",
                "The batch ran out of time before this part, which was not carried out.",
                retry_after=RETRY_AFTER_S,
            )
        if self._room <= 0:
            return instead(
                self.app,
                "out-of-room",
                "The answers of the parts before this one are as much as a batch can hold; it was "
                "not carried out.",
                retry_after=RETRY_AFTER_S,
            )
        return None

    def _failed_needs(self, unit: Unit) -> list[int]:
        needs = set().union(*[self.plan.needs[index] for index in unit.parts])
        if not needs:
            return []
        needs.difference_update(unit.parts)
        return sorted(index for index in needs if not 200 <= self.answers[index].status < 300)

    # --- running --------------------------------------------------------------------------------

    def attempt(
        self, index: int, membership: Membership | None = None, prepare: Prepare | None = None
    ) -> Answer:
        """Carry out part ``index``, and return what is answered."""
        part = self.plan.parts[index]
        try:
            if self.plan.references:
                part = resolve(part, self._by_name, self._own, self._bounds)
            path, query = self._where(index, part)
        except Unresolved as error:
            return instead(self.app, "unresolved-reference", str(error))
        except Malformed as error:
            return instead(self.app, "unresolved-reference", error.detail)
        environ = self._made.pop(index, None) if part is self.plan.parts[index] else None
        environ = environ or self._make(index, part, path, query)
        membership = membership or Membership(self.name, index, part.id, None)
        membership.prepaid = self.prepaid.get(index)
        environ[KEY] = membership
        most = max(self._room, 0)
        return self._hold(dispatch(self.app, environ, most, prepare), most)

    def _hold(self, answer: Answer, most: int) -> Answer:
        """Take the room for ``answer``, as soon as it is there; another may have taken it."""
        with self._lock:
            size = len(answer.body)
            if self._room < size <= most:
                answer = too_large(self.app)
                size = len(answer.body)
            self._room -= size
        return answer

    def _where(self, index: int, part: Part) -> tuple[str, str]:
        known = self._located.get(index) if part is self.plan.parts[index] else None
        return known or locate(part.target, self._place)

    def _own(self, url: str) -> str:
        path, query = own_path(url, self._place)
        return f"{path}?{query}" if query else path

    def environs(self) -> dict[int, dict[str, Any]]:
        """Return the environments of the parts that are known beforehand, by their numbers."""
        for index, (path, query) in self._located.items():
            self._made[index] = self._make(index, self.plan.parts[index], path, query)
        return self._made.copy()

    def _make(self, index: int, part: Part, path: str, query: str) -> dict[str, Any]:
        key = part_key(self.key, part, index, self._key_headers) if self.key else None
        return self._environs.make(part, index, path, query, key)

    # --- reads in parallel ----------------------------------------------------------------------

    def _reads(self, units: Sequence[Unit], at: int) -> list[Unit]:
        """Return the reads from ``at`` on that may run side by side: nothing is changed by them.

        A read behind a write runs behind it, and so does a write behind a read.
        """
        if self._pool is None or not self._goes_on:
            return []
        found: list[Unit] = []
        for unit in units[at:]:
            index = unit.parts[0]
            is_read = self.plan.parts[index].method.upper() in _SAFE
            if unit.group is not None or not is_read or self.plan.needs[index]:
                break
            found.append(unit)
        return found if len(found) > 1 else []

    def _in_parallel(
        self, pool: ThreadPoolExecutor, units: Sequence[Unit]
    ) -> Iterator[tuple[Unit, Sequence[Answer]]]:
        def carry_out(unit: Unit) -> Answer:
            return self._why_not(unit) or self.attempt(unit.parts[0])

        futures: list[Future[Answer]] = [pool.submit(carry_out, unit) for unit in units]
        try:
            for unit, future in zip(units, futures, strict=True):
                # What no thread has begun is run here: it may wait behind other batches, or behind
                # the very part whose view has sent this one.
                answer = carry_out(unit) if future.cancel() else future.result()
                yield unit, [self.note(unit.parts[0], answer)]
        finally:
            for future in futures:
                future.cancel()
