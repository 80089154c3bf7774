"""Atomicity groups: all parts, or none, in one transaction of the application's database.

Theory of operation. One transaction is opened for the group; the sessions of its parts join it, so
that a view which calls ``session.commit()`` releases a savepoint and no more. The first part that
fails ends the group: it keeps its answer, everything is rolled back, and the other parts are
answered 424, because what they said is not true any more. If none fails all is committed at once.

A savepoint is around everything: where the database has thrown the transaction away under the
parts (MariaDB, at a deadlock) it is gone, and its release, which comes before the commit, fails.

With an idempotency key the group has a record of its own, which is committed with its rows: a
batch that is sent again after a crash finds it and replays the group, or does not, and runs it.
What parts would do after their views elsewhere, such as storing a result under their own keys, is
done when it is known how the group has ended.
"""

from __future__ import annotations

import contextvars
import functools
import hashlib
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec
from blinker import Signal
from flask import has_request_context, request

from .. import frame
from ..core.batch import Answer, Malformed, Unit, write_request
from ..errors import CorruptRecord, StoreError
from ..membership import Conclusion, Membership, membership_of
from . import signals
from .keys import derived
from .refusals import instead
from .running import FAILED, Run

if TYPE_CHECKING:
    from ..extension import Binding
    from ..records import Database
    from ..records.grouping import Grouping, State

log = logging.getLogger("demijohn.batch")

WAIT_MS: Final = 5000
"""How long a group waits for another one with its key."""
ENOUGH_CHARACTERS: Final = 20
# They are new each time that a request is sent, and say nothing of what is asked.
_OF_AN_ATTEMPT: Final = frozenset(
    {
        "baggage",
        "date",
        "request-id",
        "traceparent",
        "tracestate",
        "user-agent",
        "x-correlation-id",
        "x-request-id",
    }
)
_answers: Final = msgspec.msgpack.Decoder(list[Answer])


class Groups:
    """Carries out the groups of one application.

    Args:
        binding: what is known of the application.
        database: of its rows.
        ttl_ms: how long a group is replayed, in milliseconds.
    """

    def __init__(self, binding: Binding, database: Database, ttl_ms: int) -> None:
        self.database = database
        self.ttl_ms = ttl_ms
        self._secrets = binding.secrets

    def carry_out(self, run: Run, unit: Unit) -> Sequence[Answer]:
        """Carry out all parts of ``unit``, or none."""
        group = _Group(self, run, unit)
        try:
            return group.carry_out()
        except StoreError as error:
            log.warning("the group %r could not be begun: %s", unit.group, error)
            return group.all("group-unavailable", _UNAVAILABLE, 1)
        except Exception:
            log.exception("the group %r failed", unit.group)
            return group.all("part-failed", "The server could not carry out the group.")

    def check(self, *, keyed: bool) -> None:
        """Check, once, that the database keeps what it promises.

        Args:
            keyed: whether groups are to have records, for which there must be a table.

        Raises:
            ConfigError: it does not, or there is none.
            StoreUnavailable: it cannot be reached.
        """
        self.database.check(keyed=keyed)

    def names(self, run: Run, unit: Unit, caller: str) -> list[str]:
        """Return under which names the record of a group may lie; the first is the current one."""
        key = derived(run.key or "", f"g:{unit.group}")
        message = f"{len(caller)}:{caller}{key}".encode("utf-8", "surrogatepass")
        return [
            "batch:" + hashlib.blake2b(message, key=secret, digest_size=20).hexdigest()
            for secret in self._secrets
        ]


class _Group:
    """One group on its way."""

    def __init__(self, groups: Groups, run: Run, unit: Unit) -> None:
        self._groups = groups
        self._run = run
        self._unit = unit
        self._conclusions: list[tuple[contextvars.Context, Conclusion]] = []

    def postpone(self, conclude: Conclusion) -> None:
        """See :meth:`membership.Group.postpone`."""
        # What is concluded may ask for the request: that is the part's, and never the batch's.
        self._conclusions.append((contextvars.copy_context(), conclude))

    def carry_out(self) -> Sequence[Answer]:
        committed: bool | None = False
        try:
            with self._groups.database.grouping(self._is_mine) as grouping:
                found = self._claim(grouping)
                if found is not None:
                    return found
                answers, offender = self._attempt_all(grouping)
                state: State = "rolled back"
                if offender is None:
                    stored = self._encoded(answers)
                    committed = None  # whatever ends it from here on
                    state = grouping.commit(stored, self._groups.ttl_ms, WAIT_MS)
            committed = None if state == "unknown" else state == "committed"
        finally:
            # Behind the transaction: what is done now may take its connection from the same pool.
            self._conclude(committed=committed)
        if state == "committed":
            self._tell(signals.group_committed)
            return answers
        if state == "unknown":
            return self.all("group-outcome-unknown", _UNKNOWN)
        self._tell(signals.group_rolled_back, offender=offender)
        if offender is None:
            return self.all("group-unavailable", _NOT_COMMITTED, 1)
        return self._rolled_back(answers, offender)

    def _is_mine(self) -> bool:
        """Whether what runs now is a part of this group, and not a request of its own making.

        What is asked in a part's context when its request has ended makes its body, or tears down.
        """
        if not has_request_context():
            return True
        found = membership_of(request.environ)
        return found is not None and found.group is self

    def _attempt_all(self, grouping: Grouping) -> tuple[list[Answer], int | None]:
        run = self._run
        answers: list[Answer] = []
        for index in self._unit.parts:
            part = run.plan.parts[index]
            membership = Membership(run.name, index, part.id, self)
            answer = run.why_not_now() or run.attempt(index, membership, grouping.admit)
            grouping.leave()
            run.show(index, answer)
            answers.append(answer)
            if answer.status >= FAILED:
                return answers, index
        return answers, None

    def _rolled_back(self, answers: Sequence[Answer], offender: int) -> list[Answer]:
        detail = f"What this batch did for the group was undone, because part {offender} failed."
        result = [self._instead("rolled-back", detail)] * len(self._unit.parts)
        result[self._unit.parts.index(offender)] = answers[-1]
        return result

    def _conclude(self, *, committed: bool | None) -> None:
        for context, conclude in self._conclusions:
            try:
                context.run(functools.partial(conclude, committed=committed))
            except Exception:
                log.exception("a part of the group %r could not be concluded", self._unit.group)

    def all(self, slug: str, detail: str, retry_after: int | None = None) -> list[Answer]:
        """Return the same answer to every part."""
        return [self._instead(slug, detail, retry_after)] * len(self._unit.parts)

    def _instead(self, slug: str, detail: str, retry_after: int | None = None) -> Answer:
        group = self._unit.group or ""
        return instead(self._run.app, slug, detail, retry_after=retry_after, group=group)

    def _tell(self, signal: Signal, **details: object) -> None:
        run = self._run
        signals.tell(signal, run.app, batch=run.name, group=self._unit.group, **details)

    # --- the record -----------------------------------------------------------------------------

    def _claim(self, grouping: Grouping) -> Sequence[Answer] | None:
        """Claim the key of the group, if there is one; return what it was answered before."""
        if self._run.key is None:
            return None
        names = self._groups.names(self._run, self._unit, self._run.caller)
        found = grouping.claim(names, self._fingerprint(), os.urandom(16), WAIT_MS)
        if found is None:
            return None
        if found == "busy":
            return self.all("group-in-progress", _BUSY, 1)
        if found == "reused":
            return self.all("group-key-reused", _REUSED)
        return self._decoded(found)

    def _fingerprint(self) -> bytes:
        digest = hashlib.sha256()
        for index in self._unit.parts:
            part = self._run.plan.parts[index]
            fields = tuple([pair for pair in part.fields if pair[0].lower() not in _OF_AN_ATTEMPT])
            message = write_request(msgspec.structs.replace(part, fields=fields))
            digest.update(b"%d:" % len(message) + message)
        return digest.digest()

    def _encoded(self, answers: Sequence[Answer]) -> bytes:
        kept = [
            msgspec.structs.replace(answer, fields=frame.storable_fields(answer.fields))
            for answer in answers
        ]
        return frame.encode(frame.Frame(200, [], msgspec.msgpack.encode(kept)))

    def _decoded(self, data: bytes) -> Sequence[Answer]:
        try:
            answers = _answers.decode(frame.decode(data).body or b"")
        except (CorruptRecord, msgspec.DecodeError):
            log.exception("the record of a group is unreadable")
            return self.all("group-outcome-unknown", _UNKNOWN)
        replayed = ("Idempotent-Replayed", "true")
        return [
            msgspec.structs.replace(answer, fields=(*answer.fields, replayed)) for answer in answers
        ]


_BUSY: Final = "A batch with this key is carrying the group out. Try again with the same key."
_REUSED: Final = (
    "The key of this batch was sent before with other parts in this group. Use a new key for a "
    "new batch, and the same batch for a retry."
)
_UNAVAILABLE: Final = "The database cannot be reached. Nothing of the group was done; try again."
_NOT_COMMITTED: Final = "The database did not commit the group. Nothing of it was kept; try again."
_UNKNOWN: Final = (
    "The database broke off while the group was being committed. Send the batch again with its "
    "idempotency key: if the group was committed, its answers are there."
)


def check_caller(key: str | None, *, anonymous: bool) -> None:
    """Refuse a key by which anybody could guess the answers of an unknown caller.

    Raises:
        Malformed: it is one.
    """
    if key is not None and anonymous and len(key) < ENOUGH_CHARACTERS:
        raise Malformed(
            "bad-batch-key",
            "Without credentials the idempotency key of a batch with groups must be hard to guess: "
            f"use at least {ENOUGH_CHARACTERS} random characters.",
        )
