"""The table: made at the first use, and known again by its comment."""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy.exc import DBAPIError

from demijohn.errors import StoreError
from demijohn.stores.sql.database import Session
from demijohn.stores.sql.dialect import Trouble

VERSION: Final = 1
COMMENT: Final = "Rows of Demijohn, version {}"


def prepare(session: Session) -> None:
    """Make the table if it is not there, else check that it is ours; safe at the same time.

    Raises:
        StoreError: it belongs to somebody else or to a newer release, or cannot be made.
    """
    found = session.rows(session.dialect.describe())
    if found:
        _check(session.dialect.table, str(found[0][0]))
    else:
        _create(session)


def _check(table: str, comment: str) -> None:
    match = re.fullmatch(COMMENT.format(r"(\d+)"), comment)
    if match is None:
        raise StoreError(
            f"the table {table} is not Demijohn's (its comment does not say so): name another in"
            " the store's URL, by ?table=..."
        )
    version = int(match[1])
    if version > VERSION:
        raise StoreError(
            f"the table {table} has version {version}, made by a newer release of Demijohn; this"
            f" one knows version {VERSION}"
        )


def _create(session: Session) -> None:
    statements = session.dialect.create(COMMENT.format(VERSION))
    try:
        for statement in statements:
            session.define(statement)
    except DBAPIError as error:
        if session.dialect.trouble(error) is not Trouble.FORBIDDEN:
            raise
        wanted = ";\n".join(
            text.replace("%s", f"'{COMMENT.format(VERSION)}'") for text, _ in statements
        )
        raise StoreError(
            f"the table {session.dialect.table} is not there, and this user may not make it"
            f" ({error.orig}). Have its owner execute:\n{wanted};"
        ) from error
