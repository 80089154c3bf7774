"""How many duplicates may wait, and how those of one process look together.

Duplicates must not occupy every thread of a server, so there are bounds. And when a key is
completed all who wait for it wake at once: were each to ask the store, a crowd would stand in its
own way. One of a process asks, and the others take what it has been told.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..core.step import Outcome
from ..stores.forks import renew_in_children


class Room:
    """Those of this process who wait for one key."""

    __slots__ = ("seen", "turn", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.turn = threading.Lock()
        """Held by the one who looks."""
        self.seen: tuple[bytes, Outcome] | None = None
        """The fingerprint with which somebody looked last, and the replay that it was given."""


class Place:
    """One request's place in a room."""

    __slots__ = ("_before", "room")

    def __init__(self, room: Room) -> None:
        self.room = room
        self._before = room.seen

    def overheard(self, fingerprint: bytes) -> Outcome | None:
        """Return the replay that another has been given for the same request.

        Only what was seen since this one came in: what was seen earlier may have expired before.
        """
        seen = self.room.seen
        if seen is None or seen is self._before or seen[0] != fingerprint:
            return None
        return seen[1]


class Running:
    """The keys whose views run in this process."""

    def __init__(self) -> None:
        self.renew_after_fork()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Begin with nothing running: threads stay with the parent."""
        self._lock = threading.Lock()
        self._keys: dict[str, int] = {}

    def add(self, key: str) -> bool:
        """Note that a request begins; return whether another one with ``key`` has not ended."""
        with self._lock:
            others = self._keys.get(key, 0)
            self._keys[key] = others + 1
        return others > 0

    def remove(self, key: str) -> None:
        """Note that a request has ended; one that began before a fork is not known any more."""
        with self._lock:
            left = self._keys.pop(key, 1) - 1
            if left:
                self._keys[key] = left


class Waiters:
    """How many duplicates wait in this process, and how many may.

    Args:
        most: at once, for all keys.
        most_per_key: at once, for one key.
    """

    def __init__(self, most: int, most_per_key: int) -> None:
        self._most = most
        self._most_per_key = most_per_key
        self.renew_after_fork()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Begin with nobody waiting: threads stay with the parent."""
        self._lock = threading.Lock()
        self._rooms: dict[str, Room] = {}
        self._all = 0

    @contextmanager
    def place(self, key: str) -> Iterator[Place | None]:
        """Take a place for the time of the block; ``None`` if there is none."""
        place = self._enter(key)
        try:
            yield place
        finally:
            if place is not None:
                self._leave(key, place.room)

    def _enter(self, key: str) -> Place | None:
        with self._lock:
            room = self._rooms.get(key)
            if self._all >= self._most or (room.waiting if room else 0) >= self._most_per_key:
                return None
            if room is None:
                room = self._rooms[key] = Room()
            room.waiting += 1
            self._all += 1
            return Place(room)

    def _leave(self, key: str, room: Room) -> None:
        with self._lock:
            if self._rooms.get(key) is not room:
                return  # the process was forked in between
            self._all -= 1
            room.waiting -= 1
            if not room.waiting:
                del self._rooms[key]
