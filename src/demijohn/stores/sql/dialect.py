"""What a kind of database must be told: statements, connections, what its errors mean."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol, TypeAlias

from sqlalchemy.exc import DBAPIError

from demijohn.stores.bell import Bell
from demijohn.stores.sql.address import Address, Options

if TYPE_CHECKING:
    from demijohn.stores.sql.database import Database
    from demijohn.stores.sql.waking import Ear

Parameters: TypeAlias = Sequence[object]
Statement: TypeAlias = tuple[str, Parameters]

GONE: Final = b""
"""The data of a row that is there only to be locked, or that was deleted; the purger removes it."""


ABSENT: Final = 0
"""The version of a row that is not there, or that is :data:`GONE`."""


class Trouble(enum.Enum):
    """What an error of the database means for who may try again."""

    LOCKED = "another transaction has held a row's lock for too long"
    CONFLICT = "the database undid the transaction for another one's sake: it may be run again"
    LOST = "the connection broke, or there was no answer in time"
    REFUSED = "the database is there and refuses for now"
    NO_TABLE = "the table is not there"
    FORBIDDEN = "the user may not do this"
    MISTAKE = "anything else"


class Key(NamedTuple):
    """A key as it is stored: its digest, by which rows are found, locked and sorted, and itself."""

    digest: bytes
    name: bytes


class Write(NamedTuple):
    """What a row becomes; without ``data`` (:data:`GONE`) it counts as absent."""

    key: Key
    version: int
    expires_ms: int
    data: bytes


class Notice(NamedTuple):
    """What is to be said where: the inbox of a process, and the digest of a key in hexadecimal."""

    inbox: str
    content: str


class Bounded(Protocol):
    """A driver's connection on which no call takes longer than it was told."""

    def limit(self, seconds: float) -> None:
        """Let the calls from here on end within ``seconds``, or break the connection."""
        ...


class Dialect(ABC):
    """The statements for one kind of database, over one table.

    Every statement that gives rows gives ``(now_ms, digest, version, data)``; with ``now_ms`` from
    the server's clock, and ``None`` for the rest where no row was found.

    Args:
        options: the store's.
    """

    now: ClassVar[str]
    """An SQL expression of the clock, in milliseconds since the epoch."""
    begin: ClassVar[str]
    notifies: ClassVar[bool] = False
    """Whether the server can tell other processes of wake-ups."""
    parameters: ClassVar[frozenset[str]]
    """What a URL may carry for the driver."""
    engine_arguments: ClassVar[Mapping[str, Any]] = {}
    """What SQLAlchemy's ``create_engine`` is told besides."""
    codes: ClassVar[Mapping[object, Trouble]]

    def __init__(self, options: Options) -> None:
        self.table = options.table
        self.timeout_s = options.timeout
        self.most_bytes = 1 << 28
        """How many bytes of data one statement may write; known when a connection was made."""

    @abstractmethod
    def connect(self, arguments: Sequence[Any], parameters: Mapping[str, Any]) -> Bounded:
        """Make a connection, with what SQLAlchemy has made of the URL."""

    @abstractmethod
    def connect_arguments(self, address: Address) -> dict[str, object]:
        """Return what the driver is told besides the URL."""

    @abstractmethod
    def code(self, error: BaseException) -> object:
        """Return the code of a driver's error, ``None`` if no server has said it."""

    def trouble(self, error: DBAPIError) -> Trouble:
        """Say what ``error`` means."""
        code = None if error.orig is None else self.code(error.orig)
        found = self.codes.get(code)
        if found is not None:
            return found
        lost = error.connection_invalidated or code is None
        return Trouble.LOST if lost else self.other_trouble(code)

    def other_trouble(self, code: object) -> Trouble:
        """Say what a code means that is not in :attr:`codes`."""
        return Trouble.MISTAKE

    def listener(self, database: Database, bell: Bell) -> Ear | None:
        """Return what hears wake-ups, or ``None`` where the server does not tell of them."""
        return None

    # --- statements ------------------------------------------------------------------------------

    @abstractmethod
    def read(self, keys: Sequence[Key]) -> Statement:
        """Read rows in one snapshot, without a lock; at least one result row."""

    @abstractmethod
    def lock(self, keys: Sequence[Key]) -> Statement:
        """Lock and read those of ``keys`` that have a row, in order."""

    @abstractmethod
    def lock_all(self, keys: Sequence[Key]) -> Statement:
        """Lock and read ``keys`` in order; make a row that is :data:`GONE` where there is none."""

    @abstractmethod
    def swap(self, write: Write, seen: int | None, notices: Sequence[Notice]) -> Statement:
        """Write a row if it is as it was seen: of version ``seen``, or not there."""

    @abstractmethod
    def write(self, writes: Sequence[Write]) -> Statement:
        """Write rows that are locked; one at least."""

    def notify(self, notices: Sequence[Notice]) -> Statement:
        """Say ``notices`` when the transaction is committed."""
        raise NotImplementedError

    @abstractmethod
    def purge(self, now_ms: int, limit: int) -> Statement:
        """Delete some rows that have expired; waits for no lock where that can be had."""

    @abstractmethod
    def scan(self, prefix: bytes, after: bytes, limit: int) -> Statement:
        """Read ``limit`` rows in the order of their digests.

        Each as (now_ms, digest, name, data), with ``None`` for data where the name begins
        differently.
        """

    @abstractmethod
    def describe(self) -> Statement:
        """Return the comment of the table, in one row; no row if there is no table."""

    @abstractmethod
    def create(self, comment: str) -> Sequence[Statement]:
        """Make the table, if it is not there; safe when others do the same."""

    def time(self) -> Statement:
        """Read the clock, in one row of one column."""
        return f"SELECT {self.now}", ()

    def read_versions(self, digests: Sequence[bytes]) -> Statement:
        """Read (digest, version) of those rows that are there."""
        marks = ", ".join(["%s"] * len(digests))
        return f"SELECT id, version FROM {self.table} WHERE id IN ({marks})", tuple(digests)
