"""Payments that are rows of a database, seen from outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine, func, select

from demijohn import records
from tests.apps.ledger import Base, Payment


@contextmanager
def emptied(database_url: str) -> Iterator[Engine]:
    """Give an engine on a database with empty tables, which are gone afterwards."""
    engine = records.real_transactions(create_engine(database_url))
    tables = (Base.metadata, records.metadata)
    for metadata in tables:
        metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    records.create(engine)
    yield engine
    for metadata in tables:
        metadata.drop_all(engine)
    engine.dispose()


def rows_of_payments(engine: Engine) -> Counter[str]:
    """Return how many rows each payment has: two, if it was made once."""
    with engine.connect() as connection:
        rows = connection.execute(select(Payment.payment, func.count()).group_by("payment"))
        return Counter({row[0]: row[1] for row in rows})
