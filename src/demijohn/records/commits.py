"""Work that is done after the true commit of a transaction, and only then.

Theory of operation. SQLAlchemy's own ``after_commit`` events also come when a savepoint is
released, and when a session has joined a transaction that is rolled back later; the engine's
``commit`` event comes before the driver has committed. The one place through which every true
commit passes is the dialect's ``do_commit`` (and ``do_commit_twophase``), so these are wrapped,
with those of rollbacks and savepoints. What is pending lies with the database connection, in a
stack with one level for each savepoint: a level that is released falls to the one below, one that
is rolled back is dropped.

A commit that succeeds is not always true. After an error PostgreSQL answers COMMIT by rolling back,
without an error; MariaDB undoes the whole transaction of who loses a deadlock, SQLite that of ``OR
ROLLBACK`` or of a full disk. Who catches such an error and commits has lost what came before, and
so have its acts.

An act runs in the thread that commits, while that still holds the connection. It should hand work
over, not do it: ring a doorbell, send a message, drop a cache entry. It may take another
connection, which a pool of size one does not have, and must not use the session or connection that
commits. An ``Exception`` that it raises is logged, and never reaches the caller, for whom it would
look as if the commit had failed; what ends a thread (``SystemExit``, a timeout of gevent) passes
when the other acts have run.

What nobody can tell runs nothing: a COMMIT that failed, even if it is tried again, or whose answer
was lost. Nor is seen what is not done through SQLAlchemy's transactions: a COMMIT, a ROLLBACK or a
SAVEPOINT that is sent as text, and the commits that MariaDB makes of its own accord, as before a
CREATE TABLE. With ``innodb_rollback_on_timeout`` a lock that times out undoes more than is known
here. SQLite needs :func:`~demijohn.records.real_transactions` for its savepoints to be true. What
is prepared in two phases and committed by another connection runs nothing there, and of several
databases each runs its own acts when it has committed. Asynchronous engines are not supported.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.orm import Session, scoped_session

from demijohn.errors import UsageError

from .savepoints import shorten

log: Final = logging.getLogger("demijohn.records")

Act: TypeAlias = Callable[[], object]

_PENDING: Final = "demijohn pending acts"
_WATCHED: Final = "__demijohn_watched__"

# Of libpq, so of psycopg and psycopg2: an error has aborted the transaction.
_IN_ERROR: Final = 3
# Of InnoDB, where it undoes the whole transaction: too many locks, a deadlock, and both by XA.
_UNDOING: Final = frozenset({1206, 1213, 1613, 1614})

_lock: Final = threading.Lock()


def after_commit(connection: Connection, act: Act) -> None:
    """Call ``act`` once, after the true commit of the transaction that ``connection`` is in.

    It is not called if that is rolled back, nor if the savepoint is in which it was registered, or
    one around that. Acts are called in the order in which they were registered. Outside of a
    transaction one begins, as it does with any statement; with AUTOCOMMIT ``act`` is called at
    once.

    Args:
        connection: of an engine that is watched.
        act: takes nothing; see the module.

    Raises:
        UsageError: nobody watches the engine.
        sqlalchemy.exc.InvalidRequestError: the transaction has ended, or must be rolled back.
    """
    if _WATCHED not in connection.dialect.__dict__:
        raise UsageError("after_commit needs demijohn.records.watch(engine), once at start-up")
    if _commits_each_statement(connection):
        _call([act])
        return
    if not connection.in_transaction():
        connection.begin()
    pending = connection.info.get(_PENDING)
    if pending is None:
        pending = connection.info[_PENDING] = _Pending()
    pending.add(act, begun=_has_begun(connection))


def after_session_commit(
    session: Session | scoped_session[Any],
    act: Act,
    *,
    bind_arguments: Mapping[str, Any] | None = None,
) -> None:
    """Call ``act`` after the true commit of the transaction that ``session`` is in, or begins now.

    Args:
        session: may have joined another transaction: then it is that one's commit that counts.
        act: see :func:`after_commit`.
        bind_arguments: which of several databases is meant, as for ``Session.connection``:
            ``{"mapper": Order}``.

    Raises:
        UsageError: nobody watches the engine.
        sqlalchemy.exc.InvalidRequestError: the session must be rolled back first.
        sqlalchemy.exc.UnboundExecutionError: the session has several databases, and none by itself.
    """
    after_commit(session.connection(bind_arguments=dict(bind_arguments or {})), act)


def watch(engine: Engine) -> None:
    """Prepare ``engine``; those that ``execution_options`` makes of it are prepared as well.

    To do it again is harmless. It belongs into the set-up: before it no act can be registered.
    """
    dialect: Any = engine.dialect
    shorten(engine)  # what it replaces must not be wrapped, nor replace what wraps
    with _lock:
        # Two engines may share a dialect, each with a pool of its own.
        if not event.contains(engine.pool, "checkin", _forget):
            # What a transaction has left behind of which the driver was told nothing.
            event.listen(engine.pool, "checkin", _forget)
        if _WATCHED in dialect.__dict__:
            return
        event.listen(engine, "handle_error", _drop_what_is_undone)
        _wrap_commits(dialect)
        _wrap_savepoints(dialect)
        setattr(dialect, _WATCHED, True)


def _commits_each_statement(connection: Connection) -> bool:
    engine_wide = getattr(connection.dialect, "_on_connect_isolation_level", None)
    level = connection.get_execution_options().get("isolation_level", engine_wide)
    return level == "AUTOCOMMIT"


class _Pending:
    """The acts of one transaction, by savepoint."""

    __slots__ = ("_levels", "begun")

    def __init__(self) -> None:
        self._levels: list[tuple[str, list[Act]]] = [("", [])]
        self.begun = False

    def add(self, act: Act, *, begun: bool) -> None:
        """Add ``act``; ``begun`` if SQLite is in a transaction, of which it can then be thrown."""
        self._levels[-1][1].append(act)
        self.begun |= begun

    def open(self, savepoint: str) -> None:
        self._levels.append((savepoint, []))

    def release(self, savepoint: str) -> None:
        """Give what was registered since ``savepoint`` to the level below."""
        at = self._find(savepoint)
        if at:
            acts = self._cut(at)
            self._levels[-1][1].extend(acts)

    def undo(self, savepoint: str) -> None:
        """Drop what was registered since ``savepoint``."""
        at = self._find(savepoint)
        if at:
            self._cut(at)
        else:  # it is older than all that is here
            self._levels = [("", [])]

    def _find(self, savepoint: str) -> int:
        """Return the level of ``savepoint``, the newest of that name; 0 if it has none."""
        names = [name for name, _ in self._levels]
        return next((at for at in range(len(names) - 1, 0, -1) if names[at] == savepoint), 0)

    def _cut(self, at: int) -> list[Act]:
        cut, self._levels = self._levels[at:], self._levels[:at]
        return [act for _, acts in cut for act in acts]

    def all(self) -> list[Act]:
        return [act for _, acts in self._levels for act in acts]


def _call(acts: list[Act]) -> None:
    for number, act in enumerate(acts, 1):
        try:
            act()
        except Exception:
            with suppress(Exception):  # a handler of the log's may fail too
                log.exception("what was to be done after a commit failed; the commit stands")
        except BaseException:
            # The thread is to end, which is not ours to prevent; the commit stands for the others.
            _call(acts[number:])
            raise


def _take(connection: Any) -> list[Act]:
    """Return what is pending on a database connection, which then has nothing pending."""
    try:
        pending: _Pending | None = connection.info.pop(_PENDING, None)
    except (AttributeError, NotImplementedError):
        return []  # not of a pool: SQLAlchemy looks at the database for the first time
    return [] if pending is None else pending.all()


def _take_for_commit(connection: Any) -> list[Act]:
    """Return what is to be called if the COMMIT that comes now succeeds.

    It is taken before: a COMMIT that fails has nothing to run, and leaves nothing to the next one.
    """
    acts = _take(connection)
    if not acts:
        return acts
    state = getattr(getattr(connection.dbapi_connection, "info", None), "transaction_status", None)
    return [] if state == _IN_ERROR else acts


def _drop_what_is_undone(context: ExceptionContext) -> None:
    """Forget the acts of a transaction that the database has undone because of an error."""
    connection = context.connection
    if connection is None or connection.closed or connection.invalidated:
        return
    pending: _Pending | None = connection.info.get(_PENDING)
    if pending is not None and _has_undone(connection, pending, context.original_exception):
        _take(connection)


def _has_undone(connection: Connection, pending: _Pending, error: BaseException) -> bool:
    if connection.dialect.name == "sqlite":
        return pending.begun and not _has_begun(connection)
    if connection.dialect.name in {"mysql", "mariadb"}:
        return next(iter(error.args), None) in _UNDOING
    return False  # PostgreSQL is asked when it is to commit


def _has_begun(connection: Connection) -> bool:
    """Whether SQLite is in a transaction; others do not say."""
    return bool(getattr(connection.connection.dbapi_connection, "in_transaction", False))


def _forget(_connection: object, record: Any) -> None:
    record.info.pop(_PENDING, None)


def _wrap_commits(dialect: Any) -> None:
    do_commit, do_rollback = dialect.do_commit, dialect.do_rollback
    commit_twophase = dialect.do_commit_twophase
    rollback_twophase = dialect.do_rollback_twophase

    def commit(connection: Any) -> None:
        acts = _take_for_commit(connection)
        do_commit(connection)
        _call(acts)

    def rollback(connection: Any) -> None:
        _take(connection)
        do_rollback(connection)

    # Dialects make these of the plain ones, by which nothing is pending any more.
    def commit_both(connection: Connection, xid: Any, *args: Any, **kwargs: Any) -> None:
        own = getattr(connection.get_transaction(), "xid", None) == xid
        acts = _take_for_commit(connection.connection)
        commit_twophase(connection, xid, *args, **kwargs)
        # Who commits what another has prepared is first thrown out of a transaction of its own.
        if own:
            _call(acts)

    def rollback_both(connection: Connection, *args: Any, **kwargs: Any) -> None:
        _take(connection)
        rollback_twophase(connection, *args, **kwargs)

    dialect.do_commit, dialect.do_rollback = commit, rollback
    dialect.do_commit_twophase, dialect.do_rollback_twophase = commit_both, rollback_both


def _wrap_savepoints(dialect: Any) -> None:
    do_savepoint = dialect.do_savepoint
    do_release = dialect.do_release_savepoint
    do_rollback_to = dialect.do_rollback_to_savepoint

    def savepoint(connection: Connection, name: str) -> None:
        do_savepoint(connection, name)
        # Also where nothing is pending yet: what comes next belongs to this level.
        connection.info.setdefault(_PENDING, _Pending()).open(name)

    def release(connection: Connection, name: str) -> None:
        do_release(connection, name)
        if pending := connection.info.get(_PENDING):
            pending.release(name)

    def rollback_to(connection: Connection, name: str) -> None:
        if pending := connection.info.get(_PENDING):
            pending.undo(
                name
            )  # before: also where it fails, as there is nothing left to go back to
        do_rollback_to(connection, name)

    dialect.do_savepoint = savepoint
    dialect.do_release_savepoint = release
    dialect.do_rollback_to_savepoint = rollback_to
