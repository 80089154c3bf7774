"""Making the tables, and finding out what is missing of them."""

from __future__ import annotations

import time
from typing import Final

from sqlalchemy import Engine, Inspector, Table, func, insert, inspect, select
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from demijohn.errors import ConfigError

from .tables import VERSION, metadata, schema

PAUSES_S: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def create(engine: Engine) -> None:
    """Make what is missing of the tables; what is there is left as it is.

    Safe to repeat, and to run in several processes at once.

    Raises:
        ConfigError: the tables are those of another version.
    """
    _refuse_other_version(engine)
    for pause_s in (*PAUSES_S, None):
        try:
            metadata.create_all(engine)
            break
        except (OperationalError, ProgrammingError, IntegrityError):
            # Another process has made a table between our look and our making, or holds the lock.
            if pause_s is None:
                raise
            time.sleep(pause_s)
    _note_version(engine)


def _note_version(engine: Engine) -> None:
    with engine.connect() as connection:
        noted = connection.scalar(select(func.count()).select_from(schema))
    if noted:
        return
    try:
        with engine.begin() as connection:
            connection.execute(insert(schema).values(version=VERSION))
    except IntegrityError:
        pass  # another process has just noted it


def missing(engine: Engine) -> list[str]:
    """Return tables and columns that are not there, such as ``"demijohn_idempotency.frame"``."""
    found = inspect(engine)
    return [name for table in metadata.sorted_tables for name in _missing_of(found, table)]


def _missing_of(found: Inspector, table: Table) -> list[str]:
    if not found.has_table(table.name):
        return [table.name]
    columns = {column["name"] for column in found.get_columns(table.name)}
    return [f"{table.name}.{column.name}" for column in table.columns if column.name not in columns]


def verify(engine: Engine) -> None:
    """Refuse to start on a database that has not what is needed.

    Raises:
        ConfigError: tables or columns are missing, or of another version; names them and the cure.
    """
    absent = missing(engine)
    if absent:
        raise ConfigError(
            f"the database {engine.url!r} has no {', '.join(absent)}: run `flask demijohn init-db`,"
            " or add Demijohn's tables to your migrations"
        )
    _refuse_other_version(engine)


def _refuse_other_version(engine: Engine) -> None:
    if not inspect(engine).has_table(schema.name):
        return
    with engine.connect() as connection:
        version = connection.scalar(select(func.max(schema.c.version)))
    if version is not None and version != VERSION:
        raise ConfigError(
            f"the tables of Demijohn in {engine.url!r} have version {version}, and this release"
            f" needs {VERSION}: migrate them, or install the release that they are for"
        )
