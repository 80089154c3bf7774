"""The record of a key: claimed, completed and read, each in one statement."""

from __future__ import annotations

from typing import NamedTuple, cast

from sqlalchemy import BigInteger, Connection, bindparam, delete, select, update
from sqlalchemy.engine import CursorResult

from .dialects import Dialect
from .tables import keys


class Record(NamedTuple):
    """What a key's row says; instants in milliseconds by the database's clock.

    ``frame`` is ``None`` only in the transaction in which the view still runs. From ``until`` on it
    is not replayed any more, and from ``expires`` on the key is free.
    """

    fingerprint: bytes
    token: bytes
    frame: bytes | None
    until: int
    expires: int
    now: int

    @property
    def is_over(self) -> bool:
        """Whether the key is free again."""
        return self.frame is not None and self.now >= self.expires


class Moved(Exception):
    """A record was removed or taken over between two statements."""


class Claimant(NamedTuple):
    """Who claims: the name of the row, the request's fingerprint, and a token that nobody has."""

    key: str
    fingerprint: bytes
    token: bytes


class Keys:
    """The records of one database.

    Args:
        dialect: what is said to it.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._now = dialect.clock
        columns = (keys.c[name] for name in Record._fields if name != "now")
        # Made once: to build a statement costs as much as to send it.
        mine = keys.c.key == bindparam("of_key")
        self._read = select(*columns, self._now.label("now")).where(mine)
        until = self._now + bindparam("ttl_ms", type_=BigInteger)
        self._complete = dialect.prepare(
            update(keys)
            .where(mine, keys.c.token == bindparam("of_token"))
            .values(
                frame=bindparam("of_frame"),
                until=until,
                expires=until + bindparam("tombstone_ms", type_=BigInteger),
            )
        )

    def claim(self, connection: Connection, who: Claimant, wait_ms: int) -> Record | None:
        """Insert the record of a key, or return the one that is there.

        One statement, which waits for another transaction that has inserted the key. One more where
        that has committed meanwhile (PostgreSQL), or where the record that is there is over.

        Args:
            connection: in the transaction in which the view will work.
            who: who claims.
            wait_ms: how long to wait for another transaction, in milliseconds.

        Returns:
            ``None`` when the key is claimed.

        Raises:
            DBAPIError: see :meth:`Dialect.trouble`.
            Moved: the record changed while we looked; claim anew, in another transaction.
        """
        values = {**who._asdict(), "wait": self._dialect.wait(wait_ms)}
        row = self._dialect.claim.execute(connection, values).first()
        record = (
            self.read(connection, who.key)
            if row is None
            else Record._make(row[: len(Record._fields)])
        )
        if record is None or (record.is_over and not self._take_over(connection, who)):
            raise Moved(who.key)
        return None if record.is_over or record.token == who.token else record

    def _take_over(self, connection: Connection, who: Claimant) -> bool:
        renewed = {"frame": None, "created": self._now, "until": 0, "expires": 0}
        result = connection.execute(
            update(keys)
            .where(keys.c.key == who.key, keys.c.expires <= self._now, keys.c.frame.is_not(None))
            .values(fingerprint=who.fingerprint, token=who.token, **renewed)
        )
        return _rows(result) == 1

    def read(self, connection: Connection, key: str) -> Record | None:
        """Return the record of ``key``."""
        row = connection.execute(self._read, {"of_key": key}).first()
        return None if row is None else Record._make(row)

    def complete(
        self, connection: Connection, who: Claimant, frame: bytes, *, ttl_ms: int, tombstone_ms: int
    ) -> bool:
        """Write the response to the record, in the transaction that has claimed it.

        Args:
            connection: in that transaction.
            who: who has claimed.
            frame: the response.
            ttl_ms: how long it is replayed, in milliseconds from now.
            tombstone_ms: how long after that the key is refused.

        Returns:
            False when the record is not there: the database has undone the transaction.
        """
        values = {"of_key": who.key, "of_token": who.token, "of_frame": frame}
        times = {"ttl_ms": ttl_ms, "tombstone_ms": tombstone_ms}
        return self._complete.execute(connection, {**values, **times}).rowcount == 1

    def purge(self, connection: Connection, most: int) -> int:
        """Remove up to ``most`` records that are over; return how many there were."""
        over = select(keys.c.key).where(keys.c.expires <= self._now, keys.c.frame.is_not(None))
        names = connection.scalars(over.limit(most)).all()
        if not names:
            return 0
        # Looked at again: a record may have been taken over in between.
        result = connection.execute(
            delete(keys).where(keys.c.key.in_(names), keys.c.expires <= self._now)
        )
        return _rows(result)


def _rows(result: object) -> int:
    return cast("CursorResult[object]", result).rowcount
