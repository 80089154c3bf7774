"""One run of steps, over one session.

Theory of operation. Which way a run takes depends on how many rows it is about, and on what it
decides; all ways run the same pure functions.

- *One row* (nearly every run): it is read without a lock and decided upon. A decision that writes
  nothing, such as a replay, is the answer: one statement. Otherwise one more statement, which is a
  transaction of its own, locks the row, compares its version with the one that was seen, and writes
  only if they agree; wake-ups are notified in it. Every write gives a row a new random version, so
  a row that was deleted and made again is not mistaken for what it was. Who loses the comparison
  looks again; who loses twice takes the lock first.
- *Several rows* are locked in one transaction, in the order of their digests, so that two runs
  never wait for one another in a ring; a row that does not exist is made, as a placeholder without
  data, because what is not there cannot be locked. Then everything is decided on what the locks
  protect. If all steps can end without a write, that is tried on a snapshot before.

Placeholders and deleted rows count as absent and are removed by the purger. That is the reason not
to use advisory locks or GET_LOCK: they are few on a server, and shared with the application's own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from demijohn.core.step import EXPIRES, Row, Step
from demijohn.errors import StoreError
from demijohn.stores.protocol import Clock
from demijohn.stores.rows import Changes, decide_all, decode, encode
from demijohn.stores.sql.database import Session
from demijohn.stores.sql.dialect import ABSENT, GONE, Key, Notice, Write

ROW_BYTES: Final = 1000
"""What a row has besides its data, generously."""
SWAPS: Final = 2
"""How often a run over one row tries without a lock."""


class Found(NamedTuple):
    """Rows as they were read: the server's clock, and (version, data) by digest."""

    now_ms: int
    rows: Mapping[bytes, tuple[int, bytes]]


def key_of(name: str) -> Key:
    """Return the key of ``name``, any text: its digest has one length and knows no collation."""
    encoded = name.encode("utf-8", "surrogatepass")
    return Key(hashlib.blake2b(encoded, digest_size=32).digest(), encoded)


def heard_as(name: str) -> str:
    """Return what is notified, and rung, for a key: short, and without a NUL."""
    return key_of(name).digest.hex()


class Run:
    """Steps that are run over one session; see the theory of operation.

    Args:
        session: where.
        steps: what.
        inbox: of this process, which needs no notice of what it does itself.
        clock: instead of the server's, or ``None``.
        saw: is told the digest in hexadecimal and the version of every row that was looked at.
    """

    def __init__(
        self,
        session: Session,
        steps: Sequence[Step],
        inbox: str,
        clock: Clock | None,
        saw: Callable[[str, int], None],
    ) -> None:
        self._session = session
        self._dialect = session.dialect
        self._steps = steps
        self._inbox = inbox
        self._clock = clock
        self._saw = saw
        self._keys = {name: key_of(name) for step in steps for name in step.keys}
        self._sorted = sorted(self._keys.values())

    def result(self) -> Changes:
        """Run the steps; return what was decided, which has taken effect."""
        if len(self._sorted) == 1:
            return self._run_single()
        if not all(step.kind.may_only_read for step in self._steps):
            # Without a look before, rows are hoped to be there: who ends a run has begun it.
            return self._run_locked(there=True)
        found = self._read()
        changes = self._decide(found)
        if _is_void(changes):
            return changes
        return self._run_locked(there=len(found.rows) == len(self._sorted))

    def _run_single(self) -> Changes:
        for _ in range(SWAPS):
            found = self._read()
            changes = self._decide(found)
            if _is_void(changes) or (changes.rows and self._swap(changes, found)):
                return changes
        return self._run_locked(there=True)

    def _read(self) -> Found:
        return self._find(self._session.rows(self._dialect.read(self._sorted)))

    def _swap(self, changes: Changes, found: Found) -> bool:
        (write,) = self._writes(changes)
        seen = found.rows.get(write.key.digest)
        version = None if seen is None else seen[0]
        return self._session.swap(self._dialect.swap(write, version, self._notices(changes)))

    def _run_locked(self, there: bool) -> Changes:
        session, dialect = self._session, self._dialect
        session.begin()
        rows = session.rows(dialect.lock(self._sorted)) if there else []
        if len(rows) < len(self._sorted):
            if there:
                # To lock the others now could break the order.
                session.rollback()
                session.begin()
            rows = session.rows(dialect.lock_all(self._sorted))
        changes = self._decide(self._find(rows))
        if _is_void(changes):
            session.rollback()
            return changes
        notices = self._notices(changes)
        for batch in _batches(self._writes(changes), dialect.most_bytes):
            if batch:
                session.change(dialect.write(batch))
        if notices:
            session.change(dialect.notify(notices))
        session.commit()
        return changes

    def _find(self, rows: Sequence[Sequence[Any]]) -> Found:
        # The last clock is behind all locks.
        now_ms = max(int(row[0]) for row in rows) if self._clock is None else self._clock()
        found = {bytes(row[1]): (int(row[2]), bytes(row[3])) for row in rows if row[1] is not None}
        return Found(now_ms, found)

    def _decide(self, found: Found) -> Changes:
        def look(name: str) -> Row | None:
            digest = self._keys[name].digest
            version, data = found.rows.get(digest, (ABSENT, GONE))
            self._saw(digest.hex(), version)
            return decode(name, data) if data else None

        return decide_all(self._steps, found.now_ms, look)

    def _writes(self, changes: Changes) -> list[Write]:
        writes = sorted(
            Write(self._keys[name], ABSENT, 0, GONE)
            if row is None
            else Write(self._keys[name], _new_version(), int(row[EXPIRES]), encode(row))
            for name, row in changes.rows.items()
        )
        longest, most = (
            max((len(write.data) for write in writes), default=0),
            self._dialect.most_bytes,
        )
        if longest > most:
            raise StoreError(
                f"a row of {longest} bytes is too large: the server takes {most}; raise its"
                " max_allowed_packet"
            )
        return writes

    def _notices(self, changes: Changes) -> list[Notice]:
        if not self._dialect.notifies:
            return []
        return [
            Notice(inbox, heard_as(wake.key))
            for wake in changes.wakes
            for inbox in wake.inboxes
            if inbox != self._inbox
        ]


def _is_void(changes: Changes) -> bool:
    return not changes.rows and not changes.wakes


def _batches(writes: Sequence[Write], most_bytes: int) -> Iterator[list[Write]]:
    """Part ``writes`` into such as one statement may write; one batch at least, it may be empty."""
    batch: list[Write] = []
    size = 0
    for write in writes:
        size += len(write.data) + ROW_BYTES
        if batch and size > most_bytes:
            yield batch
            batch, size = [], len(write.data) + ROW_BYTES
        batch.append(write)
    yield batch


def _new_version() -> int:
    return int.from_bytes(os.urandom(8), "big") >> 1 | 1
