"""The classes that prove a store, for pytest.

A store of your own is proved by a subclass that says how to make it::

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self, clock):
            store = MyStore(clock=clock)
            yield store
            store.close()

        def corrupt(self, store, key):
            ...  # make the row of ``key`` unreadable, behind the store's back

The store must take its time from ``clock``. Keys are new in each test, so that tests may share
one server.
"""

from __future__ import annotations

from .decisions import Decisions
from .lifecycle import Lifecycle
from .limiting import Limiting
from .runs import Runs
from .tools import (
    ALICE,
    BOB,
    FRAME,
    LEASE_MS,
    OTHER_PRINT,
    PRINT,
    PROMPTLY_S,
    RETAIN_MS,
    TTL_MS,
    ManualClock,
    begin,
    complete,
    follow,
    forked,
    listening,
    one,
    outcome_key,
    release,
    renew,
    resolve,
    stored,
    wait_until_woken,
)
from .waking import Waking


class StoreContract(Decisions, Runs, Waking, Lifecycle, Limiting):
    """Everything that Demijohn relies on in a store."""


__all__ = [
    "ALICE",
    "BOB",
    "FRAME",
    "LEASE_MS",
    "OTHER_PRINT",
    "PRINT",
    "PROMPTLY_S",
    "RETAIN_MS",
    "TTL_MS",
    "ManualClock",
    "StoreContract",
    "begin",
    "complete",
    "follow",
    "forked",
    "listening",
    "one",
    "outcome_key",
    "release",
    "renew",
    "resolve",
    "stored",
    "wait_until_woken",
]
