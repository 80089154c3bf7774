"""Places: keeping one while the view runs, and waiting for one."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final

from ..core import limits as core
from ..core.step import Outcome, Step
from ..errors import StoreError
from ..flow import Call, Wait
from ..keeper import Keeper
from ..stores import Store
from ..stores.forks import renew_in_children
from . import signals
from .asking import Asked

log = logging.getLogger("demijohn.limits")

LOOK_MS: Final = 1000
"""How often who waits looks for a place whose holder was killed: that wakes nobody."""


class _Place:
    """One place, as the keeper holds it."""

    __slots__ = ("_call", "_key", "_lease_ms", "_token")

    def __init__(self, call: Call, key: str, token: bytes, lease_ms: int) -> None:
        self._call = call
        self._key = key
        self._token = token
        self._lease_ms = lease_ms

    def renewal(self) -> Step:
        """See :meth:`Held.renewal`."""
        return core.renew(self._key, token=self._token, lease_ms=self._lease_ms)

    def lose(self) -> None:
        """See :meth:`Held.lose`."""
        endpoint = self._call.request.endpoint
        log.warning("a running request of %s has lost its place: its lease lapsed", endpoint)
        if signals.place_lost.receivers:
            signals.place_lost.send(self._call.app, endpoint=endpoint, key=self._key)


class Places:
    """The places of one request.

    Args:
        call: the request.
        store: where they are.
        asked: what it asked of its limits.
        keeper: renews their leases.
    """

    __slots__ = ("_asked", "_call", "_keeper", "_store")

    def __init__(self, call: Call, store: Store, asked: Asked, keeper: Keeper) -> None:
        self._call = call
        self._store = asked.elsewhere or store
        self._asked = asked
        self._keeper = keeper

    def keep(self) -> None:
        """Have the leases be renewed until :meth:`forget`."""
        asked = self._asked
        if not asked.token or asked.values[0] == core.SPARED:
            return
        for index, entry in enumerate(asked.entries[: asked.count]):
            if entry.places and asked.values[core.FIRST + index * 3 + 2] == 0:
                key, lease_ms = asked.keys[index], entry.rule[2]
                held = _Place(self._call, key, asked.token, lease_ms)
                self._keeper.keep((asked.token, key), self._store, held, lease_ms=lease_ms)

    def forget(self) -> None:
        """Stop renewing; the places are given back by a step, or lapse."""
        if self._asked.token:
            for key in self._asked.keys:
                self._keeper.forget((self._asked.token, key))


class Waiting:
    """Lets requests wait for a place, a bounded number of them: each holds up a thread.

    Args:
        most: how many may wait in this process.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.renew_after_fork()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Leave who waits to the parent."""
        self._lock = threading.Lock()
        self.count = 0
        """How many wait now."""

    def applies(self, asked: Asked) -> bool:
        """Whether a request would wait."""
        return any(entry.limit.options.wait_ms for entry in asked.entries)

    def wait(self, store: Store, asked: Asked, since: int) -> Any:
        """Wait until there are places, as long as they are all that lacks. A flow.

        Args:
            store: where they are.
            asked: what was refused.
            since: the store's mark before that.

        Returns:
            The last outcome.
        """
        refused = Outcome("refused", tuple(asked.values), halts=True)
        with self._lock:
            if self.count >= self._most:
                return refused
            self.count += 1
        try:
            return (yield from self._wait(store, asked, since, refused))
        finally:
            with self._lock:
                self.count -= 1

    def _wait(self, store: Store, asked: Asked, since: int, refused: Outcome) -> Any:
        began, outcome = time.monotonic(), refused
        while True:
            lacking = asked.violated()
            left_ms = _patience_ms(asked, lacking) - (time.monotonic() - began) * 1000
            if left_ms <= 0:
                return outcome
            try:
                yield Wait(asked.keys[lacking[0]], since, min(round(left_ms) + 1, LOOK_MS))
                since = store.mark
                outcome = yield asked.step(store.inbox)
            except StoreError:
                return refused  # what is known is that there was no place
            asked.heard(outcome)
            if not outcome.halts:
                return outcome


def _patience_ms(asked: Asked, lacking: list[int]) -> int:
    """Return how long to wait for what is lacking; 0 if waiting does not help."""
    waits = [
        asked.entries[index].limit.options.wait_ms if asked.entries[index].places else 0
        for index in lacking
    ]
    return min(waits)
