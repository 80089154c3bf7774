"""How waiters hear of what other processes have done: asking, where the server does not tell."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, TypeAlias

from demijohn.errors import StoreError
from demijohn.stores.bell import Bell
from demijohn.stores.sql.dialect import ABSENT

logger: Final = logging.getLogger("demijohn.stores")

REMEMBERED: Final = 4096
SHORTEST_PAUSE_S: Final = 0.005
LONGEST_PAUSE_S: Final = 0.1
PAUSE_AFTER_FAILURE_S: Final = 0.25
GROWTH: Final = 1.2
Ask: TypeAlias = Callable[[Sequence[str]], Mapping[str, int]]
"""Returns the versions of those of the rows that are there."""


class Ear(Protocol):
    """What hears for one process. Keys are the digests of rows in hexadecimal."""

    inbox: str
    """See :attr:`Store.inbox`."""

    def saw(self, key: str, version: int) -> None:
        """Note which version of a row somebody who may wait for it has seen."""
        ...

    def wait(self, key: str, since: int, timeout_ms: int) -> bool:
        """See :meth:`Store.wait`."""
        ...

    def close(self) -> None:
        """Stop hearing."""
        ...


class Poller:
    """Asks for the versions of the rows that are waited for, all of a process in one statement.

    A row's version is compared with the one that the *waiter* saw when it looked: a change between
    its look and its wait counts. The pauses grow while nothing happens, and are short again for
    every new waiter and behind every change.

    Args:
        ask: see :data:`Ask`.
        bell: what is rung.
    """

    def __init__(self, ask: Ask, bell: Bell) -> None:
        self.inbox = ""
        self._ask = ask
        self._bell = bell
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, int] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._look = threading.Event()
        self._closed = threading.Event()

    def saw(self, key: str, version: int) -> None:
        """See :meth:`Ear.saw`."""
        with self._lock:
            earlier = self._seen.get(key)
            self._seen[key] = version
            self._seen.move_to_end(key)
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        # Another thread may wait that has seen the row as it was before.
        if earlier is not None and earlier != version:
            self._bell.ring(key)

    def wait(self, key: str, since: int, timeout_ms: int) -> bool:
        """See :meth:`Store.wait`."""
        with self._lock:
            # What is forgotten counts as never seen: a row that is there will then be rung.
            self._seen.setdefault(key, ABSENT)
            self._look.set()
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(
                    target=self._poll, name="demijohn-sql-poller", daemon=True
                )
                self._thread.start()
        return self._bell.wait(key, since, timeout_ms)

    def close(self) -> None:
        """See :meth:`Ear.close`."""
        self._closed.set()
        self._look.set()

    def _stays(self) -> bool:
        """Whether somebody waits; otherwise this thread ends, and the next wait starts another."""
        with self._lock:
            if self._closed.is_set() or not (self._bell.waiting or self._look.is_set()):
                self._thread = None
                return False
            return True

    def _poll(self) -> None:
        pause_s = SHORTEST_PAUSE_S
        while self._stays():
            if self._look.is_set():
                pause_s = SHORTEST_PAUSE_S
                self._look.clear()
            try:
                if self._compare():
                    pause_s = SHORTEST_PAUSE_S
            except StoreError as error:
                logger.warning("cannot ask for rows that are waited for, trying again: %s", error)
                self._bell.ring_all()
                self._closed.wait(PAUSE_AFTER_FAILURE_S)
            # A new waiter ends the pause, but not the one between two questions.
            self._closed.wait(SHORTEST_PAUSE_S)
            self._look.wait(pause_s - SHORTEST_PAUSE_S)
            pause_s = min(pause_s * GROWTH, LONGEST_PAUSE_S)

    def _compare(self) -> bool:
        keys = self._bell.waited_for()
        found = self._ask(keys) if keys else {}
        rung = False
        for key in keys:
            version = found.get(key, ABSENT)
            with self._lock:
                changed = self._seen.get(key, ABSENT) != version
                self._seen[key] = version
            if changed:
                rung = True
                self._bell.ring(key)
        return rung
