"""What the contract, and tests of stores, are written with: a clock, steps, short ways."""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Callable
from typing import Final

from demijohn.core import idempotency as idem
from demijohn.core.idempotency import OnLost
from demijohn.core.step import Outcome, Row, Step
from demijohn.stores.protocol import Store

LEASE_MS: Final = 60_000
RETAIN_MS: Final = 600_000
TTL_MS: Final = 86_400_000
PRINT: Final = b"fingerprint"
OTHER_PRINT: Final = b"other fingerprint"
ALICE: Final = b"alice's token"
BOB: Final = b"bob's token"
FRAME: Final = b"\x01the stored response"
PROMPTLY_S: Final = 5.0


class ManualClock:
    """Milliseconds since the epoch; starts at the real time, and moves only when told."""

    def __init__(self) -> None:
        self.now_ms = time.time_ns() // 1_000_000

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, milliseconds: int) -> None:
        """Let ``milliseconds`` pass; below 0 the clock is put back."""
        self.now_ms += milliseconds


def begin(
    *keys: str,
    token: bytes = ALICE,
    fingerprint: bytes = PRINT,
    on_lost: OnLost = OnLost.RUN,
    inbox: str = "",
) -> Step:
    """Return a step that begins ``keys``, with a lease of :data:`LEASE_MS`."""
    return idem.begin(
        keys,
        fingerprint=fingerprint,
        token=token,
        lease_ms=LEASE_MS,
        retain_ms=RETAIN_MS,
        on_lost=on_lost,
        inbox=inbox,
    )


def renew(key: str, *, token: bytes = ALICE) -> Step:
    """Return a step that renews the lease of ``key`` by :data:`LEASE_MS`."""
    return idem.renew(key, token=token, lease_ms=LEASE_MS)


def complete(
    key: str, *, token: bytes = ALICE, frame: bytes = FRAME, tombstone_ms: int = 0
) -> Step:
    """Return a step that completes ``key`` for :data:`TTL_MS`."""
    return idem.complete(
        key,
        token=token,
        frame=frame,
        ttl_ms=TTL_MS,
        retain_ms=RETAIN_MS,
        tombstone_ms=tombstone_ms,
    )


def release(key: str, *, token: bytes = ALICE) -> Step:
    """Return a step that gives ``key`` back."""
    return idem.release(key, token=token, retain_ms=RETAIN_MS)


def resolve(key: str, *, frame: bytes = b"") -> Step:
    """Return a step that decides ``key`` as an operator does."""
    return idem.resolve(key, frame=frame, ttl_ms=TTL_MS, retain_ms=RETAIN_MS)


def one(store: Store, step: Step) -> Outcome:
    """Run ``step`` alone."""
    outcomes = store.run([step])
    assert len(outcomes) == 1
    return outcomes[0]


def stored(store: Store, key: str) -> Row | None:
    """Return the live row of ``key``, or ``None``."""
    return dict(store.scan(key)).get(key)


def listening(store: Store) -> str:
    """Wait until the store hears wake-ups, which some learn to do at the first wait only."""
    unused = f"{{{uuid.uuid4().hex}}}:unused"
    for _ in range(100):
        if not store.wait(unused, since=store.mark, timeout_ms=50):
            return store.inbox
    raise AssertionError("wait() never says that nothing happened")


def wait_until_woken(store: Store, key: str, since: int, seconds: float = PROMPTLY_S) -> bool:
    """Wait once, for at most ``seconds``, and say whether a wake-up was heard."""
    return store.wait(key, since=since, timeout_ms=int(seconds * 1000))


def follow(store: Store, step: Callable[[], Step], *, seconds: float = 10.0) -> Outcome:
    """Do what a duplicate does: begin, and while that says "busy", wait and look again."""
    deadline = time.monotonic() + seconds
    while True:
        mark = store.mark
        outcome = one(store, step())
        if outcome.status != "busy" or time.monotonic() > deadline:
            return outcome
        store.wait(outcome_key(step()), since=mark, timeout_ms=1000)


def outcome_key(step: Step) -> str:
    """Return the key that those who wait for ``step`` wait on."""
    return step.keys[0]


def forked(act: Callable[[], None]) -> int:
    """Run ``act`` in a child made by ``fork``; return its process id. It exits 0 if all went well.

    The child leaves by ``_exit``: what pytest would do at its end is the parent's to do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: that is what is tested
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        act()
        status = 0
    finally:
        os._exit(status)
