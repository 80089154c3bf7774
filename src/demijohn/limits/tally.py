"""How many requests were refused, for the operators of all processes.

Counting is a dictionary's matter on the way of a request. Every few seconds, and only if there was
something to count, a thread adds the sums to the store, where ``flask limits top`` finds them.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import Final

from ..core import limits as core
from ..errors import StoreError
from ..stores import Store
from ..stores.forks import renew_in_children

log = logging.getLogger("demijohn.limits")

PREFIX: Final = "refused:"
EVERY_S: Final = 2.0
KEEP_MS: Final = 3_600_000
MOST_KEYS: Final = 1000
MOST_WRITTEN: Final = 100


class Tally:
    """Counts refusals by the row that refused.

    Args:
        store: where the sums go.
        every_s: how long to gather before they do, in seconds.
    """

    def __init__(self, store: Store, every_s: float = EVERY_S) -> None:
        self._store = store
        self._every_s = every_s
        self.renew_after_fork()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Leave what was counted, and the thread, to the parent."""
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._timer: threading.Timer | None = None

    def note(self, key: str, label: str) -> None:
        """Count one refusal by ``key``; ``label`` says what it limits."""
        with self._lock:
            if (key, label) in self._counts or len(self._counts) < MOST_KEYS:
                self._counts[key, label] += 1
            if self._timer is None:
                self._timer = threading.Timer(self._every_s, self.flush)
                self._timer.daemon = True
                self._timer.name = "demijohn-tally"
                self._timer.start()

    def flush(self) -> None:
        """Add what was counted to the store now; what it does not take is lost."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        for (key, label), refused in counts.most_common(MOST_WRITTEN):
            step = core.tally(PREFIX + key, refused, keep_ms=KEEP_MS, label=label)
            try:
                self._store.run([step])
            except StoreError as error:
                log.debug("the refusals of the last seconds are not counted: %s", error)
                return
