"""Rows of Demijohn's own in the user's database, written in the user's transaction.

:data:`metadata` holds the tables, for Alembic; ``flask demijohn init-db`` makes them. Nothing but
this package, and the store on SQL databases, imports SQLAlchemy.
"""

from .commits import after_commit, after_session_commit, watch
from .database import Database
from .dialects import real_transactions
from .purging import purge
from .schema import create, missing, verify
from .tables import metadata

__all__ = [
    "Database",
    "after_commit",
    "after_session_commit",
    "create",
    "metadata",
    "missing",
    "purge",
    "real_transactions",
    "verify",
    "watch",
]
