"""Work that is done after the true commit of a transaction, and only then.

Theory of operation. SQLAlchemy's own ``after_commit`` events also come when a savepoint is
released, and when a session has joined a transaction that is rolled back later; the engine's
``commit`` event comes before the driver has committed. The one place through which every true
commit passes is the dialect's ``do_commit`` (and ``do_commit_twophase``), so these are wrapped,
with those of rollbacks and savepoints. What is pending lies with the database connection, in a
stack with one level for each savepoint: a level that is released falls to the one below, one that
is rolled back is dropped.

An act runs in the thread that commits, while that still holds the connection. It should hand work
over, not do it: ring a doorbell, send a message, drop a cache entry. It may take another
connection, which a pool of size one does not have, and must not use the session or connection that
commits. What it raises is logged, and never reaches the caller, for whom it would look as if the
commit had failed. Where the answer to a COMMIT is lost nobody knows, and nothing runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

from demijohn.errors import UsageError

from .savepoints import shorten

log: Final = logging.getLogger("demijohn.records")

Act: TypeAlias = Callable[[], object]

_PENDING: Final = "demijohn pending acts"
_WATCHED: Final = "__demijohn_watched__"
_lock: Final = threading.Lock()


def after_commit(connection: Connection, act: Act) -> None:
    """Call ``act`` after the true commit of the transaction that ``connection`` is in.

    It is not called if that is rolled back, nor if the savepoint is in which it was registered.
    Acts are called in the order in which they were registered. Outside of a transaction it belongs
    to the one that begins next; with AUTOCOMMIT it is called at once.

    Args:
        connection: of an engine that is watched.
        act: takes nothing; see the module.

    Raises:
        UsageError: nobody watches the engine.
    """
    if _WATCHED not in connection.dialect.__dict__:
        raise UsageError("after_commit needs demijohn.records.watch(engine), once at start-up")
    if _commits_each_statement(connection):
        _call([act])
        return
    pending = connection.info.get(_PENDING)
    if pending is None:
        pending = connection.info[_PENDING] = _Pending()
    pending.add(act)


def after_session_commit(
    session: Session, act: Act, *, bind_arguments: Mapping[str, Any] | None = None
) -> None:
    """Call ``act`` after the true commit of the transaction that ``session`` is in, or begins now.

    Args:
        session: may have joined another transaction: then it is that one's commit that counts.
        act: see :func:`after_commit`.
        bind_arguments: which of several databases is meant, as for ``Session.connection``.
    """
    after_commit(session.connection(bind_arguments=dict(bind_arguments or {})), act)


def watch(engine: Engine) -> None:
    """Prepare ``engine``; those that ``execution_options`` makes of it are prepared as well."""
    dialect: Any = engine.dialect
    shorten(engine)  # what it replaces must not be wrapped, nor replace what wraps
    with _lock:
        if _WATCHED in dialect.__dict__:
            return
        _wrap_commits(dialect)
        _wrap_savepoints(dialect)
        setattr(dialect, _WATCHED, True)
    # What a transaction has left behind of which the driver was told nothing.
    event.listen(engine.pool, "checkin", _forget)


def _commits_each_statement(connection: Connection) -> bool:
    engine_wide = getattr(connection.dialect, "_on_connect_isolation_level", None)
    level = connection.get_execution_options().get("isolation_level", engine_wide)
    return level == "AUTOCOMMIT"


class _Pending:
    """The acts of one transaction, by savepoint."""

    __slots__ = ("_levels",)

    def __init__(self) -> None:
        self._levels: list[tuple[str, list[Act]]] = [("", [])]

    def add(self, act: Act) -> None:
        self._levels[-1][1].append(act)

    def open(self, savepoint: str) -> None:
        self._levels.append((savepoint, []))

    def release(self, savepoint: str) -> None:
        """Give what was registered since ``savepoint`` to the level below."""
        acts = self._cut(savepoint)
        self._levels[-1][1].extend(acts)

    def undo(self, savepoint: str) -> None:
        """Drop what was registered since ``savepoint``."""
        self._cut(savepoint)

    def _cut(self, savepoint: str) -> list[Act]:
        names = [name for name, _ in self._levels]
        if savepoint not in names:
            return []  # it was set before anything was registered
        at = len(names) - 1 - names[::-1].index(savepoint)
        cut, self._levels = self._levels[at:], self._levels[:at]
        return [act for _, acts in cut for act in acts]

    def all(self) -> list[Act]:
        return [act for _, acts in self._levels for act in acts]


def _call(acts: list[Act]) -> None:
    for act in acts:
        try:
            act()
        except Exception:
            log.exception("what was to be done after a commit failed; the commit stands")


def _take(connection: Any) -> list[Act]:
    """Return what is pending on a database connection, which then has nothing pending."""
    try:
        pending: _Pending | None = connection.info.pop(_PENDING, None)
    except NotImplementedError:
        return []  # SQLAlchemy looks at the database for the first time, outside of the pool
    return [] if pending is None else pending.all()


def _forget(_connection: object, record: Any) -> None:
    record.info.pop(_PENDING, None)


def _wrap_commits(dialect: Any) -> None:
    do_commit, do_rollback = dialect.do_commit, dialect.do_rollback
    commit_twophase = dialect.do_commit_twophase
    rollback_twophase = dialect.do_rollback_twophase

    # Taken before: a commit that fails has nothing to run, and leaves nothing to the next one.
    def commit(connection: Any) -> None:
        acts = _take(connection)
        do_commit(connection)
        _call(acts)

    def rollback(connection: Any) -> None:
        _take(connection)
        do_rollback(connection)

    # Dialects make these of the plain ones, by which nothing is pending any more.
    def commit_both(connection: Connection, *args: Any, **kwargs: Any) -> None:
        acts = _take(connection)
        commit_twophase(connection, *args, **kwargs)
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
        do_rollback_to(connection, name)
        if pending := connection.info.get(_PENDING):
            pending.undo(name)

    dialect.do_savepoint = savepoint
    dialect.do_release_savepoint = release
    dialect.do_rollback_to_savepoint = rollback_to
