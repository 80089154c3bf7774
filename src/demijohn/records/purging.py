"""Removing what is over, a few rows in each transaction, so that nobody waits for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from sqlalchemy import Connection, Engine

from .dialects import dialect_of
from .keys import Keys
from .steps import Steps

BATCH: Final = 500
"""How many rows are removed in one transaction."""


def purge(engine: Engine, batch: int = BATCH) -> dict[str, int]:
    """Remove the records and steps that are over.

    Args:
        engine: of the database.
        batch: how many rows are removed in one transaction.

    Returns:
        The number of rows removed, by ``keys`` and ``steps``.
    """
    dialect = dialect_of(engine)
    kinds: dict[str, Callable[[Connection], int]] = {
        "keys": partial(Keys(dialect).purge, most=batch),
        "steps": partial(Steps.purge, dialect, most=batch),
    }
    return {kind: _all(engine, remove, batch) for kind, remove in kinds.items()}


def _all(engine: Engine, remove: Callable[[Connection], int], batch: int) -> int:
    removed = 0
    while True:
        with engine.begin() as connection:
            count = remove(connection)
        removed += count
        if count < batch:
            return removed
