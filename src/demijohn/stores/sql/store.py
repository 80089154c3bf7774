"""Rows in a table of PostgreSQL or MariaDB; :mod:`.run` says how steps are run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from sqlalchemy.exc import DBAPIError

from demijohn.core.step import Outcome, Row, Step, live
from demijohn.errors import StoreError
from demijohn.stores.bell import Bell
from demijohn.stores.forks import renew_in_children
from demijohn.stores.protocol import Clock, Health
from demijohn.stores.purger import Purger
from demijohn.stores.rows import decode
from demijohn.stores.sql import schema
from demijohn.stores.sql.address import Address
from demijohn.stores.sql.database import Database, Session
from demijohn.stores.sql.dialect import Dialect, Trouble
from demijohn.stores.sql.run import Run, heard_as, key_of
from demijohn.stores.sql.waking import Ear, Poller

T = TypeVar("T")

SCAN_PAGE: Final = 100


class SqlStore:
    """Rows in a table of PostgreSQL or MariaDB, for any number of machines.

    Time is the server's. Expired rows are removed in the background.

    Args:
        address: of the database.
        dialect: what it must be told.
        clock: for tests only: milliseconds since the epoch, instead of the server's clock.
    """

    def __init__(self, address: Address, dialect: Dialect, *, clock: Clock | None = None) -> None:
        self.address = address
        self.database = Database(address, dialect)
        self._dialect = dialect
        self._clock = clock
        self._ready = False
        self._begin_process()
        renew_in_children(self)

    def _begin_process(self) -> None:
        self._bell = Bell()
        self._ear: Ear = self._dialect.listener(self.database, self._bell) or Poller(
            self._versions, self._bell
        )
        self._purger = Purger("sql", self._remove, self.address.options.purge_every)

    def renew_after_fork(self) -> None:
        """Leave connections, threads and inbox to the parent, and begin anew."""
        self.database.renew_after_fork()
        self._begin_process()

    # --- running -------------------------------------------------------------------------------

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        """See :meth:`Store.run`."""
        if not steps:
            return []
        inbox, saw = self._ear.inbox, self._ear.saw
        changes = self._within(
            lambda session: Run(session, steps, inbox, self._clock, saw).result()
        )
        for wake in changes.wakes:
            self._bell.ring(heard_as(wake.key))
        if changes.rows:
            self._purger.start()
        return changes.outcomes

    def _within(self, act: Callable[[Session], T]) -> T:
        """Do ``act`` where the table is there; one that got lost is made anew by the next call."""

        def prepared(session: Session) -> T:
            if not self._ready:
                schema.prepare(session)
                self._ready = True
            try:
                return act(session)
            except DBAPIError as error:
                self._ready = self._dialect.trouble(error) is not Trouble.NO_TABLE
                raise

        return self.database.run(prepared)

    # --- waiting -------------------------------------------------------------------------------

    @property
    def inbox(self) -> str:
        """See :attr:`Store.inbox`; ``""`` until the first wait, and where waiters poll."""
        return self._ear.inbox

    @property
    def mark(self) -> int:
        """See :attr:`Store.mark`."""
        return self._bell.mark

    def wait(self, key: str, *, since: int, timeout_ms: int) -> bool:
        """See :meth:`Store.wait`."""
        return self._ear.wait(heard_as(key), since, timeout_ms)

    def _versions(self, keys: Sequence[str]) -> Mapping[str, int]:
        digests = [bytes.fromhex(key) for key in keys]
        rows = self._within(lambda session: session.rows(self._dialect.read_versions(digests)))
        return {bytes(digest).hex(): int(version) for digest, version in rows}

    # --- for operators -------------------------------------------------------------------------

    def scan(self, prefix: str) -> Iterator[tuple[str, Row]]:
        """See :meth:`Store.scan`; page by page, and no lock is held."""
        name = key_of(prefix).name
        after = b""
        while True:
            statement = self._dialect.scan(name, after, SCAN_PAGE)
            page = self._within(partial(Session.rows, statement=statement))
            for server_ms, digest, found, data in page:
                after = bytes(digest)
                if not data:
                    continue  # begins differently, or is not there any more
                key = bytes(found).decode("utf-8", "surrogatepass")
                row = live(decode(key, bytes(data)), self._clock() if self._clock else server_ms)
                if row is not None:
                    yield key, row
            if len(page) < SCAN_PAGE:
                return

    def purge(self) -> int:
        """Remove all expired rows now, in small transactions; return how many there were."""
        return self._purger.purge()

    def _remove(self, limit: int) -> int:
        def remove(session: Session) -> int:
            now_ms = self._clock() if self._clock else int(session.rows(self._dialect.time())[0][0])
            return session.change(self._dialect.purge(now_ms, limit))

        return self._within(remove)

    def health(self) -> Health:
        """See :meth:`Store.health`; the server's clock is asked for."""
        started = time.perf_counter()
        try:
            self._within(lambda session: session.rows(self._dialect.time()))
            ok, detail = True, self.address.name
        except StoreError as error:
            ok, detail = False, str(error)
        latency_ms = (time.perf_counter() - started) * 1000
        return Health(self.address.server, ok, latency_ms, detail)

    def close(self) -> None:
        """See :meth:`Store.close`."""
        self._ear.close()
        self._purger.close()
        self._bell.ring_all()
        self.database.close()
