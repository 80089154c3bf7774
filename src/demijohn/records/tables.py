"""The tables. A change to one of them is a new :data:`VERSION`, and a migration in the how-to."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, String, Table
from sqlalchemy.dialects import mysql

VERSION: Final = 1

metadata: Final = MetaData()

# MariaDB compares text without regard to case, and cuts a BLOB at 64 kB: it is told otherwise.
_Key = String(80).with_variant(
    mysql.VARCHAR(80, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
)
_Name = String(80).with_variant(
    mysql.VARCHAR(80, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
)
_Large = LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
_Digest = LargeBinary(32).with_variant(mysql.VARBINARY(32), "mysql", "mariadb")

schema: Final = Table(
    "demijohn_schema",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    comment="Which version of Demijohn's tables this database has.",
)

keys: Final = Table(
    "demijohn_idempotency",
    metadata,
    Column("key", _Key, primary_key=True),
    Column("fingerprint", _Digest, nullable=False),
    # Who holds the key: tells our own record from another's when a COMMIT's answer was lost.
    Column("token", _Digest, nullable=False),
    # The stored response; null only inside of the transaction in which the view runs.
    Column("frame", _Large),
    # Instants in milliseconds since the epoch, by the database's clock.
    Column("created", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False, comment="end of the replays"),
    Column("expires", BigInteger, nullable=False, comment="end of the record"),
    Index("demijohn_idempotency_expires", "expires"),
    comment="One row for each idempotency key, written with the rows of its view.",
)

steps: Final = Table(
    "demijohn_steps",
    metadata,
    Column("key", _Key, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", _Name, nullable=False),
    Column("result", _Large, nullable=False, comment="JSON"),
    Column("expires", BigInteger, nullable=False),
    Index("demijohn_steps_expires", "expires"),
    comment="What the finished steps of a key's view have given.",
)
