"""What an explicit batch has queued, and how it is sent: a generator that says what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

import msgspec

from ...core.batch import Answer
from .entries import Again, Answered, Entry, Failed, Singly, batches
from .envelope import Outgoing, Reply
from .errors import BatchPending, BatchProtocolError
from .flow import Engine


class Queued(Protocol):
    """A request that is queued, as a library has it."""

    entry: Entry | None
    """As part of a batch; ``None`` if it must go by itself."""
    failure: Exception | None
    """Why it has no response."""

    def settle(self, answer: Answer) -> None:
        """Give the caller the answer that came in a batch."""

    def settle_singly(self) -> None:
        """Give the caller what came of sending it by itself."""

    def fail(self, error: Exception) -> None:
        """Give the caller an error."""

    def is_open(self) -> bool:
        """Whether the caller has been given nothing yet."""
        ...


I = TypeVar("I", bound=Queued)  # noqa: E741 - an item


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait, for seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Alone(Generic[I]):
    """Send ``item`` by itself, with a further header field if there is one, and keep the response.

    The generator is to be told status and fields, or the error.
    """

    item: I
    field: tuple[str, str] | None = None


Act: TypeAlias = "Outgoing | Pause | Alone[I]"
Told: TypeAlias = "Reply | Answer | Exception | None"
Flush: TypeAlias = "Generator[Act[I], Told, None]"


class Queue(Generic[I]):
    """The requests that wait for the next batch, in their order.

    Args:
        engine: decides for them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._items: list[I] = []
        self._counts: Counter[Hashable] = Counter()
        self._sizes: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: I) -> None:
        """Queue one more."""
        self._items.append(item)
        meets = None if item.entry is None else item.entry.meets
        self._counts[meets] += 1
        self._sizes[meets] += 0 if item.entry is None else item.entry.size

    def is_full(self, entry: Entry | None = None) -> bool:
        """Whether it must be flushed, before ``entry`` is added if that is given."""
        settings = self._engine.settings
        if any(count >= settings.max_parts for count in self._counts.values()):
            return True
        return entry is not None and self._sizes[entry.meets] + entry.size > settings.max_bytes

    def _taken(self) -> list[I]:
        items, self._items = self._items, []
        self._counts.clear()
        self._sizes.clear()
        return items

    def relate(
        self,
        entry: Entry | None,
        *,
        id: str | None,  # noqa: A002 - so it is called in JSON batches
        group: str | None,
        depends_on: Sequence[str],
    ) -> Entry | None:
        """Return ``entry`` with what it says of others in the batch.

        Raises:
            ValueError: the format has no word for it, it can be no part of a batch, its id is
                taken, or what it depends on is not in the queue.
        """
        if id is None and group is None and not depends_on:
            return entry
        if self._engine.settings.format != "json":
            raise ValueError('id, group and depends_on need Batching(..., format="json").')
        if entry is None:
            raise ValueError("A request that can be no part of a batch can not depend on others.")
        self._check(entry, id, group, depends_on)
        part = msgspec.structs.replace(entry.part, id=id, group=group, depends_on=tuple(depends_on))
        entry.part, entry.related = part, True
        return entry

    def _check(
        self, entry: Entry, name: str | None, group: str | None, depends_on: Sequence[str]
    ) -> None:
        parts = [
            item.entry.part
            for item in self._items
            if item.entry is not None and item.entry.meets == entry.meets
        ]
        ids = {part.id.casefold() for part in parts if part.id is not None}
        groups = {part.group for part in parts if part.group is not None}
        if name is not None and name.casefold() in ids:
            raise ValueError(f"The id {name!r} is taken by another request in this batch.")
        for each in depends_on:
            if each.casefold() not in ids and each not in groups:
                raise ValueError(
                    f"{each!r} is not in this batch: it was not asked for before, with the same "
                    "identity, or has been sent already because max_parts were queued."
                )
        if group in groups and parts[-1].group != group:
            raise ValueError(f"The requests of the group {group!r} must follow each other.")

    def discard(self) -> None:
        """Forget what is queued, which was never sent."""
        for item in self._taken():
            item.fail(BatchPending("The block was left by an exception: nothing was sent."))

    def flush(self) -> Flush[I]:
        """Send all of it; each item is settled as soon as it can be.

        Raises:
            Exception: the first error, if all of it failed.
        """
        items = self._taken()
        try:
            yield from self._rounds(items)
        finally:
            for item in items:
                if item.is_open():
                    item.fail(BatchProtocolError("The batch was interrupted."))
        failures = [item.failure for item in items if item.failure is not None]
        if failures and len(failures) == len(items):
            raise failures[0]

    def _rounds(self, items: list[I]) -> Flush[I]:
        while items:
            later: list[I] = []
            pauses: list[float] = []
            for group in self._groups(items):
                yield from self._group(group, later, pauses)
            items = later
            if later:
                yield Pause(max(pauses))

    def _groups(self, items: Sequence[I]) -> Iterator[list[I]]:
        """Yield what is sent together, in the order of what was asked for first."""
        settings = self._engine.settings
        owners: dict[Entry, int] = {}
        groups: list[list[int]] = []
        for number, item in enumerate(items):
            if item.entry is None:
                groups.append([number])
            else:
                owners[item.entry] = number
        for batch in batches(owners, settings.max_parts, settings.max_bytes):
            groups.append([owners[entry] for entry in batch])  # noqa: PERF401
        for group in sorted(groups):
            yield [items[number] for number in group]

    def _group(self, group: list[I], later: list[I], pauses: list[float]) -> Flush[I]:
        entries = [item.entry for item in group if item.entry is not None]
        if not entries:
            yield Alone(group[0])
            group[0].settle_singly()
            return
        if self._engine.goes_singly(entries):
            for entry in entries:
                entry.verdict = Singly()
        else:
            yield from self._engine.exchange(entries)
        for item, entry in zip(group, entries, strict=True):
            if isinstance(entry.verdict, Singly):
                yield from self._alone(item, entry)
            elif isinstance(entry.verdict, Answered):
                item.settle(entry.verdict.answer)
            elif isinstance(entry.verdict, Failed):
                item.fail(entry.verdict.error)
            if isinstance(entry.verdict, Again):
                later.append(item)
                pauses.append(entry.verdict.delay_s)

    def _alone(self, item: I, entry: Entry) -> Flush[I]:
        told = yield Alone(item, self._engine.single(entry))
        if not isinstance(told, Answer | Exception):
            raise TypeError("what came of a request must be told")
        if not isinstance(self._engine.judge_single(entry, told), Again):
            item.settle_singly()
