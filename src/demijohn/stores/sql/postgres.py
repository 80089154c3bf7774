"""PostgreSQL 12 or later, by psycopg 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, cast

from psycopg import pq

from demijohn.stores.bell import Bell
from demijohn.stores.sql.address import Address
from demijohn.stores.sql.database import Database
from demijohn.stores.sql.dialect import Dialect, Key, Notice, Statement, Trouble, Write
from demijohn.stores.sql.listener import Listener
from demijohn.stores.sql.waking import Ear
from demijohn.stores.sql.wire import BoundedConnection, Line

LOCK_SHARE: Final = 0.7
STATEMENT_SHARE: Final = 0.85
PREPARE_AFTER: Final = 2
LONGEST_INBOX: Final = 63  # bytes of a channel's name
_NOTIFY: Final = (
    "pg_notify(inbox, content) FROM unnest(%s::text[], %s::text[]) AS n(inbox, content)"
)
_SCHEMA_LOCK: Final = 0x44656D69_6A6F686E  # "Demijohn"


class Postgres(Dialect):
    """PostgreSQL.

    With ``pgbouncer=yes`` no statement is prepared and no state is kept in a session, so that
    PgBouncer may stand in between in its transaction mode.
    """

    now = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    notifies = True
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED"
    parameters = frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults())
    engine_arguments: ClassVar[Mapping[str, Any]] = {"use_native_hstore": False}
    codes: ClassVar[Mapping[object, Trouble]] = {
        "55P03": Trouble.LOCKED,
        "40001": Trouble.CONFLICT,
        "40P01": Trouble.CONFLICT,
        "42P01": Trouble.NO_TABLE,
        "42501": Trouble.FORBIDDEN,
        "25006": Trouble.REFUSED,  # read-only: a standby, or set so
        "57014": Trouble.REFUSED,  # statement_timeout
        "25P03": Trouble.LOST,  # idle_in_transaction_session_timeout
    }

    def other_trouble(self, code: object) -> Trouble:
        """Go by the class of the code: 08 connection, 53 resources, 57P shutdown, 58 system."""
        text = str(code)
        if text.startswith(("08", "57P")):
            return Trouble.LOST
        # 28 is authentication, 3D000 a database that is not there: both come from connecting.
        return Trouble.REFUSED if text.startswith(("28", "3D", "53", "58")) else Trouble.MISTAKE

    def code(self, error: BaseException) -> object:
        """Return the SQLSTATE."""
        return getattr(error, "sqlstate", None)

    def connect_arguments(self, address: Address) -> dict[str, object]:
        """Bound statements and locks on the server, and dead peers in the kernel."""
        options = address.options
        timeout_ms = max(round(options.timeout * 1000), 10)
        chosen: dict[str, object] = {
            "connect_timeout": max(round(options.connect_timeout), 2),
            "tcp_user_timeout": timeout_ms,
            "application_name": "demijohn",
        }
        if options.pgbouncer == "no":
            chosen["options"] = (
                f"-c statement_timeout={round(timeout_ms * STATEMENT_SHARE)}"
                f" -c lock_timeout={round(timeout_ms * LOCK_SHARE)}"
                f" -c idle_in_transaction_session_timeout={timeout_ms}"
            )
        named = {name: value for name, value in chosen.items() if name not in address.url.query}
        # The same few statements each time: planning them is half of what they cost.
        prepared = PREPARE_AFTER if options.pgbouncer == "no" else None
        return {**named, "prepare_threshold": prepared}

    def connect(self, arguments: Sequence[Any], parameters: Mapping[str, Any]) -> BoundedConnection:
        """Make a connection; what is said at once is bounded as everything else."""
        connection = BoundedConnection.connect(*arguments, **parameters)
        connection.limit(float(parameters.get("connect_timeout", 2)))
        return connection

    def listener(self, database: Database, bell: Bell) -> Ear | None:
        """Listen, if the URL does not say otherwise."""
        options = database.address.options
        if (options.waking or ("poll" if options.pgbouncer == "yes" else "notify")) == "poll":
            return None

        def dial() -> Line:
            connection = database.connect_apart(autocommit=True)
            return Line(cast("BoundedConnection", connection), options.timeout)

        return Listener(dial, bell, round((options.connect_timeout + options.timeout) * 1000))

    # --- statements ------------------------------------------------------------------------------

    def read(self, keys: Sequence[Key]) -> Statement:
        """See :meth:`Dialect.read`; of a single row without an array, in a third less time."""
        digests = [key.digest for key in keys]
        single = len(keys) == 1
        return (
            f"SELECT {self.now}, id, version, data FROM (SELECT 1) AS one"
            f" LEFT JOIN {self.table} ON id = {'%s' if single else 'ANY(%s)'}"
        ), (digests[0] if single else digests,)

    def lock(self, keys: Sequence[Key]) -> Statement:
        """See :meth:`Dialect.lock`; the clock is read behind the locks."""
        return (
            f"WITH locked AS MATERIALIZED (SELECT id, version, data FROM {self.table}"
            " WHERE id = ANY(%s) ORDER BY id FOR UPDATE)"
            f" SELECT {self.now}, id, version, data FROM locked"
        ), ([key.digest for key in keys],)

    def lock_all(self, keys: Sequence[Key]) -> Statement:
        """See :meth:`Dialect.lock_all`.

        An upsert sees, and locks, what others have committed since the statement began.
        """
        return (
            f"INSERT INTO {self.table} AS r (id, name, version, expires, data)"
            f" SELECT id, name, 0, 0, '' FROM unnest(%s::bytea[], %s::bytea[]) AS n(id, name)"
            " ON CONFLICT (id) DO UPDATE SET id = excluded.id"
            f" RETURNING {self.now}, r.id, r.version, r.data"
        ), ([key.digest for key in keys], [key.name for key in keys])

    def swap(self, write: Write, seen: int | None, notices: Sequence[Notice]) -> Statement:
        """See :meth:`Dialect.swap`."""
        (digest, name), version, expires_ms, data = write
        if seen is None:
            statement = (
                f"INSERT INTO {self.table} (id, name, version, expires, data)"
                " VALUES (%s, %s, %s, %s, %b) ON CONFLICT (id) DO NOTHING"
            )
            parameters: tuple[object, ...] = (digest, name, version, expires_ms, data)
        else:
            statement = (
                f"UPDATE {self.table} SET version = %s, expires = %s, data = %b"
                " WHERE id = %s AND version = %s"
            )
            parameters = (version, expires_ms, data, digest, seen)
        if not notices:
            return statement, parameters
        # Gives a row if it wrote: with notices to nobody, too.
        return (
            f"WITH written AS ({statement} RETURNING id), noted AS MATERIALIZED (SELECT {_NOTIFY})"
            " SELECT (SELECT count(*) FROM noted) FROM written"
        ), (*parameters, *_columns(notices))

    def write(self, writes: Sequence[Write]) -> Statement:
        """See :meth:`Dialect.write`."""
        return (
            f"UPDATE {self.table} AS r"
            " SET version = n.version, expires = n.expires, data = n.data"
            " FROM unnest(%s::bytea[], %s::bigint[], %s::bigint[], %s::bytea[])"
            " AS n(id, version, expires, data) WHERE r.id = n.id"
        ), (
            [write.key.digest for write in writes],
            [write.version for write in writes],
            [write.expires_ms for write in writes],
            [write.data for write in writes],
        )

    def notify(self, notices: Sequence[Notice]) -> Statement:
        """See :meth:`Dialect.notify`."""
        return f"SELECT {_NOTIFY}", _columns(notices)

    def purge(self, now_ms: int, limit: int) -> Statement:
        """See :meth:`Dialect.purge`."""
        return (
            f"DELETE FROM {self.table} WHERE id = ANY(ARRAY(SELECT id FROM {self.table}"
            " WHERE expires <= %s LIMIT %s FOR UPDATE SKIP LOCKED))"
        ), (now_ms, limit)

    def scan(self, prefix: bytes, after: bytes, limit: int) -> Statement:
        """See :meth:`Dialect.scan`."""
        return (
            f"SELECT {self.now}, id, name, CASE WHEN substring(name FROM 1 FOR %s) = %s"
            f" THEN data END FROM {self.table} WHERE id > %s ORDER BY id LIMIT %s"
        ), (len(prefix), prefix, after, limit)

    def describe(self) -> Statement:
        """See :meth:`Dialect.describe`."""
        return (
            "SELECT coalesce(obj_description(oid, 'pg_class'), '')"
            " FROM pg_class WHERE oid = to_regclass(%s)"
        ), (self.table,)

    def create(self, comment: str) -> Sequence[Statement]:
        """See :meth:`Dialect.create`; IF NOT EXISTS alone fails where two sessions meet."""
        return [
            (self.begin, ()),
            (f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})", ()),
            (
                (
                    f"CREATE TABLE IF NOT EXISTS {self.table} (id bytea PRIMARY KEY,"
                    " name bytea NOT NULL, version bigint NOT NULL, expires bigint NOT NULL,"
                    " data bytea NOT NULL)"
                ),
                (),
            ),
            (f"CREATE INDEX IF NOT EXISTS {self.table}_expires ON {self.table} (expires)", ()),
            (f"COMMENT ON TABLE {self.table} IS '{comment}'", ()),
            ("COMMIT", ()),
        ]


def _columns(notices: Sequence[Notice]) -> tuple[list[str], list[str]]:
    """Return the parameters of :data:`_NOTIFY`, without what the server takes for no channel."""
    heard = [notice for notice in notices if 0 < len(notice.inbox.encode()) <= LONGEST_INBOX]
    return [notice.inbox for notice in heard], [notice.content for notice in heard]
