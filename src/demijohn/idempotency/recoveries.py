"""Where the steps of runs are kept: in the application's database."""

from __future__ import annotations

from ..errors import UsageError
from ..records import Database
from ..records.steps import Saved
from .current import Attempt
from .recovery import Recovery


class Recoveries:
    """Makes the :class:`Recovery` of a run.

    Args:
        database: where the steps are kept.
        ttl_ms: how long a finished step is kept, in milliseconds.
        atomic: whether the key's record is written with the rows of the view. A run that dies then
            leaves no trace but its steps, so that they are looked for in any case.
    """

    def __init__(self, database: Database, ttl_ms: int, *, atomic: bool) -> None:
        self._database = database
        self._ttl_ms = ttl_ms
        self._atomic = atomic

    def __call__(self, attempt: Attempt) -> Recovery:
        """Return the steps of a run.

        Raises:
            UsageError: the database cannot commit them beside the view's own transaction.
            ConfigError: it has no table for them.
        """
        self._database.prepare()
        if self._atomic and self._database.engine.dialect.name == "sqlite":
            raise UsageError(
                "idempotency.step() in an atomic view would wait for the view's own transaction:"
                " SQLite has one writer. Use steps without atomic=True there"
            )
        steps = self._database.steps(attempt.key_name)
        may_resume = self._atomic or attempt.attempt > 1

        def load() -> list[tuple[str, bytes]]:
            return [(saved.name, saved.result) for saved in steps.load()]

        def save(position: int, name: str, result: bytes) -> bytes:
            first = position == 0 and not may_resume
            kept = steps.save(position, Saved(name, result), ttl_ms=self._ttl_ms, first=first)
            return kept.result

        return Recovery(load, save, may_resume=may_resume)
