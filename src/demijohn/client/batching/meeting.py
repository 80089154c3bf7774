"""Where threads meet to share a batch.

The first that comes with something to send opens a room, waits for others, and sends for all of
them; those who come later wait for it. No thread is started, so nothing is left behind by a fork
or at the end of the process, and the sending happens in a thread that wants the answer.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final

from .entries import Entry
from .settings import Settings

_CLOSING_S: Final = 5.0


@dataclass(slots=True, eq=False)
class _Room:
    """A batch that is being gathered."""

    entries: list[Entry] = field(default_factory=list)
    size: int = 0
    full: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    departed: bool = False


class Meeting:
    """Gathers the entries of several threads.

    Args:
        settings: how large a batch may be.
        max_delay: how long the first waits for others, in seconds.
    """

    def __init__(self, settings: Settings, max_delay: float) -> None:
        self._settings = settings
        self._max_delay = max_delay
        self._forget()
        _everywhere.add(self)

    def _forget(self) -> None:
        """Begin anew; in a child process, where those who would send for the others are not."""
        self._changed = threading.Condition()
        self._open: dict[Hashable, _Room] = {}
        self._closed = False
        self._busy = 0

    def attend(self, entry: Entry, carry: Callable[[list[Entry]], None]) -> None:
        """Return when a batch with ``entry`` was carried.

        Args:
            entry: which is given its verdict by ``carry``.
            carry: sends a batch; called in the thread that came first.
        """
        while True:
            with self._changed:
                room, first = self._join(entry)
            if first:
                self._lead(room, entry.meets, carry)
                return
            room.done.wait()
            if room.departed:
                return
            # Who came first was interrupted before it sent anything, so another one must.

    def _join(self, entry: Entry) -> tuple[_Room, bool]:
        room = self._open.get(entry.meets)
        if room is not None and room.size + entry.size > self._settings.max_bytes:
            self._shut(entry.meets, room)
            room = None
        first = room is None
        if room is None:
            room = self._open[entry.meets] = _Room()
            self._busy += 1
        room.entries.append(entry)
        room.size += entry.size
        if self._closed or len(room.entries) >= self._settings.max_parts:
            self._shut(entry.meets, room)
        return room, first

    def _shut(self, meets: Hashable, room: _Room) -> None:
        if self._open.get(meets) is room:
            del self._open[meets]
        room.full.set()

    def _lead(self, room: _Room, meets: Hashable, carry: Callable[[list[Entry]], None]) -> None:
        try:
            room.full.wait(self._max_delay)
            with self._changed:
                self._shut(meets, room)
                room.departed = True
            carry(room.entries)
        finally:
            with self._changed:
                self._shut(meets, room)
                self._busy -= 1
                self._changed.notify_all()
            room.done.set()

    def close(self) -> None:
        """Have everything sent that waits, and wait for it, but not for more than five seconds."""
        with self._changed:
            self._closed = True
            for meets, room in list(self._open.items()):
                self._shut(meets, room)
            self._changed.wait_for(lambda: self._busy == 0, _CLOSING_S)
            self._closed = False


_everywhere: weakref.WeakSet[Meeting] = weakref.WeakSet()


def _begin_anew() -> None:
    for each in list(_everywhere):
        each._forget()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
