"""Savepoints without the detour.

SQLAlchemy makes and compiles a statement for each savepoint, and for each release: four times what
it takes to send the same words to the driver. An atomic view has one of both for each of its
commits.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.engine.default import DefaultDialect

_NAMES: Final = ("do_savepoint", "do_rollback_to_savepoint", "do_release_savepoint")
_lock: Final = threading.Lock()


def shorten(engine: Engine) -> None:
    """Have savepoints of ``engine`` sent as they are; a dialect with its own ways keeps them."""
    dialect: Any = engine.dialect
    plain = all(getattr(type(dialect), name) is getattr(DefaultDialect, name) for name in _NAMES)
    with _lock:
        if not plain or _NAMES[0] in dialect.__dict__:
            return
        dialect.do_savepoint = _savepoint
        dialect.do_rollback_to_savepoint = _rollback_to_savepoint
        dialect.do_release_savepoint = _release_savepoint


# The names are SQLAlchemy's own, such as sa_savepoint_1.


def _savepoint(connection: Connection, name: str) -> None:
    connection.exec_driver_sql(f"SAVEPOINT {name}")


def _rollback_to_savepoint(connection: Connection, name: str) -> None:
    connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {name}")


def _release_savepoint(connection: Connection, name: str) -> None:
    connection.exec_driver_sql(f"RELEASE SAVEPOINT {name}")
