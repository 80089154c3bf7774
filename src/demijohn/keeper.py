"""One thread per process that keeps leases alive and delivers what a store was down for.

Theory of operation. While a view runs, its claim is *kept*: every sixth of the shortest lease the
thread renews, in one trip per store, all claims that were not renewed for that long, so that each
is renewed between a sixth and a third of its lease. When a store fails after a view has run, the
step that could not be written is *delivered* later, again and again with growing pauses, while the
claim is still kept. Nothing here is on a request's way: keeping and forgetting are one dictionary
operation each.

Both dictionaries belong to one process. A forked child starts empty: the claims are its parent's.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from .core.step import Outcome, Step
from .errors import CorruptRecord, StoreError
from .stores import Store

log = logging.getLogger("demijohn.keeper")

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
MOST_DELIVERIES: Final = 1000
"""Deliveries hold whole responses, so there is a bound; over it the oldest is given up."""


class Held(Protocol):
    """A claim that is kept."""

    def renewal(self) -> Step:
        """Return the step that renews it; it answers ``fenced`` when the claim is lost."""
        ...

    def lose(self) -> None:
        """Hear, in the keeper's thread and once, that the claim was found to be lost."""
        ...


class _Kept(msgspec.Struct):
    store: Store
    held: Held
    every_s: float
    renewed_at: float


@dataclass(slots=True)
class _Delivery:
    store: Store
    step: Step
    done: Callable[[Outcome | None], None]
    give_up_at: float
    due: float
    pause_s: float = FIRST_PAUSE_S


@dataclass(slots=True)
class _Process:
    """What belongs to one process."""

    pid: int = field(default_factory=os.getpid)
    kept: dict[Hashable, _Kept] = field(default_factory=dict)
    deliveries: dict[Hashable, _Delivery] = field(default_factory=dict)
    changed: threading.Event = field(default_factory=threading.Event)
    tick_s: float = 60.0
    thread: threading.Thread | None = None
    starting: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False


class Keeper:
    """Renews leases and delivers late steps, in the background."""

    def __init__(self) -> None:
        self._process = _Process()

    def keep(
        self,
        token: Hashable,
        store: Store,
        held: Held,
        *,
        lease_ms: int,
    ) -> None:
        """Renew until :meth:`forget`.

        Args:
            token: names the claim.
            store: where it lies.
            held: the claim.
            lease_ms: the lease in milliseconds; renewed at least every third of it.
        """
        process = self._here()
        every_s = lease_ms / 6000
        process.kept[token] = _Kept(store, held, every_s, time.monotonic())
        if every_s < process.tick_s:
            process.tick_s = every_s
            process.changed.set()
        if process.thread is None:
            self._start(process)

    def forget(self, token: Hashable) -> None:
        """Stop renewing the claim ``token``."""
        self._process.kept.pop(token, None)

    def deliver(
        self,
        token: Hashable,
        store: Store,
        step: Step,
        *,
        for_ms: int,
        done: Callable[[Outcome | None], None],
    ) -> None:
        """Run ``step`` as soon as ``store`` can again.

        Args:
            token: names the claim; one delivery for each.
            store: where to.
            step: safe to repeat.
            for_ms: give up after so many milliseconds.
            done: called once, in the keeper's thread, with the outcome, or ``None`` if given up.
        """
        process = self._here()
        now = time.monotonic()
        deliveries = process.deliveries
        deliveries[token] = _Delivery(store, step, done, now + for_ms / 1000, now + FIRST_PAUSE_S)
        if len(deliveries) > MOST_DELIVERIES:
            self._give_up(deliveries.pop(next(iter(deliveries))))
        process.changed.set()
        if process.thread is None:
            self._start(process)

    def stop(self) -> None:
        """Try the open deliveries once more, then end the thread."""
        process = self._process
        if process.pid != os.getpid() or process.stopped:
            return
        process.stopped = True
        process.changed.set()
        if process.thread is not None:
            process.thread.join(timeout=1.0)
        for delivery in process.deliveries.values():
            delivery.due = 0.0
        self._deliver_due(process)

    def _here(self) -> _Process:
        if self._process.pid != os.getpid():
            self._process = _Process()
        return self._process

    def _start(self, process: _Process) -> None:
        with process.starting:
            if process.thread is not None or process.stopped:
                return
            process.thread = threading.Thread(
                target=self._loop, args=(process,), name="demijohn-keeper", daemon=True
            )
            process.thread.start()

    def _loop(self, process: _Process) -> None:
        while not process.stopped:
            process.changed.wait(self._pause(process))
            process.changed.clear()
            try:
                self._renew_due(process)
                self._deliver_due(process)
            except Exception:
                # The thread must outlive whatever a callback or a third party's store raises:
                # without it every running claim would be lost.
                log.exception("keeping leases failed; trying again")

    def _pause(self, process: _Process) -> float:
        due = min((d.due for d in list(process.deliveries.values())), default=float("inf"))
        return max(0.01, min(process.tick_s, due - time.monotonic()))

    # --- renewing -------------------------------------------------------------------------------

    def _renew_due(self, process: _Process) -> None:
        now = time.monotonic()
        by_store: dict[int, list[tuple[Hashable, _Kept]]] = {}
        for token, kept in list(process.kept.items()):
            if now - kept.renewed_at >= kept.every_s:
                by_store.setdefault(id(kept.store), []).append((token, kept))
        for group in by_store.values():
            self._renew(process, group, now)

    def _renew(
        self, process: _Process, group: Sequence[tuple[Hashable, _Kept]], now: float
    ) -> None:
        try:
            outcomes = group[0][1].store.run([kept.held.renewal() for _, kept in group])
        except CorruptRecord as error:
            if len(group) > 1:  # one damaged row must not cost the others their leases
                for one in group:
                    self._renew(process, [one], now)
            else:
                log.warning("could not renew a claim, trying again: %s", error)
            return
        except StoreError as error:
            log.warning("could not renew %d lease(s), trying again: %s", len(group), error)
            return
        for (token, kept), outcome in zip(group, outcomes, strict=True):
            kept.renewed_at = now
            # Whoever finished in the meantime has forgotten the claim: it was not lost.
            if outcome.status == "fenced" and process.kept.pop(token, None) is not None:
                kept.held.lose()

    # --- delivering -----------------------------------------------------------------------------

    def _deliver_due(self, process: _Process) -> None:
        for token, delivery in list(process.deliveries.items()):
            if delivery.due <= time.monotonic():
                self._try(process, token, delivery)

    def _try(self, process: _Process, token: Hashable, delivery: _Delivery) -> None:
        try:
            outcome = delivery.store.run([delivery.step])[0]
        except StoreError:
            now = time.monotonic()
            if now >= delivery.give_up_at:
                process.deliveries.pop(token, None)
                self._give_up(delivery)
                return
            delivery.pause_s = min(delivery.pause_s * 2, LONGEST_PAUSE_S)
            delivery.due = now + delivery.pause_s
            return
        process.deliveries.pop(token, None)
        delivery.done(outcome)

    def _give_up(self, delivery: _Delivery) -> None:
        log.error("gave up writing %s to its store", delivery.step.kind.name)
        delivery.done(None)
