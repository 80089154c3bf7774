"""What became of a COMMIT whose answer was lost."""

from __future__ import annotations

import os
import time
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from .keys import Claimant, Keys, Moved

PAUSES_S: Final = (0.05, 0.2, 0.5, 1.0)
"""Between attempts to find out."""


def has_committed(engine: Engine, keys: Keys, who: Claimant, wait_ms: int) -> bool | None:
    """Find out, on a new connection, whether the transaction has committed in which ``who`` claims.

    The server may still be at it. So the key is claimed for another, which waits for the end of
    the old transaction, and finds its record or does not. ``None``: there is no telling.

    Args:
        engine: of the database.
        keys: of the database.
        who: has claimed the key in the transaction that is asked for.
        wait_ms: how long to wait for it each time, in milliseconds.
    """
    probe = who._replace(token=os.urandom(16))
    for pause_s in PAUSES_S:
        try:
            with engine.connect() as connection:
                found = keys.claim(connection, probe, wait_ms)
                connection.rollback()
        except (DBAPIError, Moved):
            time.sleep(pause_s)
        else:
            return found is not None and found.token == who.token
    return None
