"""The user's database, whichever way it is given: engine, sessions, and how they join."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any, Final, TypeAlias, cast

from flask import Flask, g
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from demijohn.errors import ConfigError, StoreUnavailable

from . import schema, transaction
from .dialects import CURE, Dialect, dialect_of
from .grouping import Grouping
from .purging import purge
from .savepoints import shorten
from .steps import Steps

Source: TypeAlias = object
"""An ``Engine``, ``sessionmaker``, ``scoped_session``, or the extension object of
Flask-SQLAlchemy or Flask-SQLAlchemy-Lite."""

_WHAT: Final = (
    "db must be an Engine, a sessionmaker, a scoped_session, or the extension object of"
    " Flask-SQLAlchemy or Flask-SQLAlchemy-Lite"
)


class Database:
    """The database of one application.

    Nothing is connected to before it is used. What it needs is checked at the first use and not
    when it is bound, because application factories make their tables after that.

    Args:
        source: see :data:`Source`. An extension must have been bound to ``app`` before.
        app: the application.

    Raises:
        ConfigError: ``source`` is something else, or its database is not supported.
    """

    def __init__(self, source: Source, app: Flask) -> None:
        self._source = source
        self._maker, self.engine = _resolve(source, app)
        self.dialect: Dialect = dialect_of(self.engine)
        self._ready = False
        self._checked = False
        self._lock = Lock()
        if self._maker is not None:
            _have_sessions_join(self._maker)
            shorten(self.engine)

    @property
    def has_sessions(self) -> bool:
        """Whether sessions are made that can join a transaction; an engine makes none."""
        return self._maker is not None

    def create(self) -> None:
        """Make the tables; see :func:`demijohn.records.create`."""
        schema.create(self.engine)

    def steps(self, key: str) -> Steps:
        """Return the steps of the key whose row is named ``key``."""
        return Steps(self.engine, self.dialect, key)

    def purge(self, batch: int) -> dict[str, int]:
        """Remove what is over; see :func:`demijohn.records.purge`."""
        return purge(self.engine, batch)

    def prepare(self) -> None:
        """Check, once, that the database has what is needed.

        Raises:
            ConfigError: tables are missing, or SQLite's driver does not keep transactions.
        """
        if self._ready:
            return
        with self._lock:
            if not self._ready:
                schema.verify(self.engine)
                self.check_transactions()
                self._ready = True

    def check(self, *, keyed: bool) -> None:
        """Check, once, that the database can keep transactions, and records if ``keyed``.

        Raises:
            ConfigError: it cannot.
            StoreUnavailable: it cannot be reached.
        """
        try:
            if keyed:
                self.prepare()
            else:
                self.check_transactions()
        except SQLAlchemyError as error:
            raise StoreUnavailable(f"the database cannot be reached: {error}") from error

    def check_transactions(self) -> None:
        """Find out, once, whether what is rolled back is gone.

        Raises:
            ConfigError: it is not.
        """
        if not self._checked:
            _refuse_false_transactions(self.engine)
            self._checked = True

    def grouping(self, applies: Callable[[], bool]) -> Grouping:
        """Begin a transaction that the sessions of several requests join.

        Args:
            applies: whether what runs now belongs to it.

        Raises:
            StoreUnavailable: the database cannot be reached.
        """
        try:
            return Grouping(self, applies)
        except SQLAlchemyError as error:
            raise StoreUnavailable(f"the database cannot be reached: {error}") from error

    def settle(self) -> None:
        """Commit what the sessions of this request have begun before its view.

        A hook may have loaded the user, or noted a visit: its transaction is on a connection of its
        own, and the view's work must be on another.
        """
        for session in self._sessions_of_this_request():
            if session.in_transaction():
                session.commit()

    def _sessions_of_this_request(self) -> Iterator[Session]:
        if _is_lite(self._source):
            # Its own place for them; there is no public way to ask without making one.
            yield from g.get("_sqlalchemy_sessions", {}).values()
            return
        registry = getattr(self._source, "session", self._source)
        if isinstance(registry, scoped_session) and registry.registry.has():
            yield registry()


def _is_flask_sqlalchemy(source: Source) -> bool:
    return not _is_lite(source) and isinstance(source.__dict__.get("session"), scoped_session)


def _is_lite(source: Source) -> bool:
    return isinstance(getattr(type(source), "sessionmaker", None), property)


def _resolve(source: Source, app: Flask) -> tuple[sessionmaker[Session] | None, Engine]:
    if isinstance(source, Engine):
        return None, source
    if isinstance(source, sessionmaker | scoped_session):
        maker = source if isinstance(source, sessionmaker) else source.session_factory
        bind = maker.kw.get("bind") if isinstance(maker, sessionmaker) else None
        if not isinstance(bind, Engine):
            raise ConfigError("db: the sessionmaker has no Engine as its bind")
        return cast("sessionmaker[Session]", maker), bind
    extension = cast("Any", source)
    if not _is_lite(source) and not (hasattr(source, "__dict__") and _is_flask_sqlalchemy(source)):
        raise ConfigError(f"{_WHAT}, not {type(source).__name__}")
    try:
        with app.app_context():
            maker = (
                extension.sessionmaker if _is_lite(source) else extension.session.session_factory
            )
            return maker, extension.engine
    except (RuntimeError, KeyError) as error:
        raise ConfigError(
            f"db: {type(source).__name__} has no engine for this application yet; call its"
            f" init_app(app) before Demijohn's ({error})"
        ) from error


def _have_sessions_join(maker: sessionmaker[Session]) -> None:
    """Have the sessions of ``maker`` ask for the transaction that they are to join.

    Every sessionmaker has a class of its own, so nobody else's sessions change.
    """
    own: Any = maker.class_
    if "__demijohn_joins__" in own.__dict__:
        return
    plain = own.get_bind

    def get_bind(session: Session, *args: Any, **kwargs: Any) -> Engine | Connection:
        bind = cast("Engine | Connection", plain(session, *args, **kwargs))
        current = transaction.current()
        return bind if current is None else current.bind_for(session, bind)

    own.get_bind = get_bind
    own.__demijohn_joins__ = True


def _refuse_false_transactions(engine: Engine) -> None:
    """Find out, by doing it, whether a rolled-back row is gone after its savepoint was released."""
    if engine.dialect.name != "sqlite":
        return
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TEMP TABLE IF NOT EXISTS demijohn_probe (x INTEGER)")
        connection.commit()
        with connection.begin() as outer:
            with connection.begin_nested():
                connection.exec_driver_sql("INSERT INTO demijohn_probe VALUES (1)")
            outer.rollback()
        kept = connection.exec_driver_sql("SELECT count(*) FROM demijohn_probe").scalar()
        connection.exec_driver_sql("DROP TABLE demijohn_probe")
        connection.commit()
    if kept:
        raise ConfigError(f"SQLite keeps rows that are rolled back (sqlite3's own default). {CURE}")
