"""What the finished steps of a key's view have given, each committed on its own."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, Engine, delete, insert, select
from sqlalchemy.exc import IntegrityError

from ..errors import UsageError
from .dialects import Dialect
from .tables import steps


class Saved(NamedTuple):
    """A finished step. ``result`` is JSON."""

    name: str
    result: bytes


class Steps:
    """The steps of one key.

    Args:
        engine: of the database.
        dialect: what is said to it.
        key: the name of the key's row.
    """

    def __init__(self, engine: Engine, dialect: Dialect, key: str) -> None:
        self._engine = engine
        self._key = key
        self._now = dialect.clock

    def load(self) -> list[Saved]:
        """Return the finished steps, in order."""
        wanted = (
            select(steps.c.name, steps.c.result)
            .where(steps.c.key == self._key, steps.c.expires > self._now)
            .order_by(steps.c.position)
        )
        with self._engine.connect() as connection:
            return [Saved(*row) for row in connection.execute(wanted)]

    def save(self, position: int, step: Saved, *, ttl_ms: int, first: bool) -> Saved:
        """Commit what a step has given.

        Args:
            position: of the step in its view, from 0.
            step: its name and result.
            ttl_ms: how long it is kept, in milliseconds.
            first: whether nothing of this key has been finished, so that what is found of it is
                left over from an earlier use.

        Returns:
            The step as it is kept: what another run has saved meanwhile stays.

        Raises:
            UsageError: another step is kept at this position.
        """
        values = {"key": self._key, "position": position, **step._asdict()}
        try:
            with self._engine.begin() as connection:
                if first:
                    self.forget(connection)
                connection.execute(insert(steps).values(**values, expires=self._now + ttl_ms))
        except IntegrityError:
            return self._kept(position, step)
        return step

    def _kept(self, position: int, step: Saved) -> Saved:
        kept = self.load()[position : position + 1]
        if not kept or kept[0].name != step.name:
            raise UsageError(
                f"step {step.name!r} is where another run of the view had "
                f"{kept[0].name if kept else 'a step that is over'!r}: steps have a fixed order"
            )
        return kept[0]

    def forget(self, connection: Connection) -> None:
        """Remove them, in the transaction of ``connection``."""
        connection.execute(delete(steps).where(steps.c.key == self._key))

    @staticmethod
    def purge(dialect: Dialect, connection: Connection, most: int) -> int:
        """Remove up to ``most`` steps that are over, of any key; return how many there were."""
        now = dialect.clock
        over = select(steps.c.key, steps.c.position).where(steps.c.expires <= now).limit(most)
        rows = connection.execute(over).all()
        for key, position in rows:
            connection.execute(
                delete(steps).where(steps.c.key == key, steps.c.position == position)
            )
        return len(rows)
