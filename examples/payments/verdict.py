"""What the ledger says in the end, and the table of what happened."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from plan import Intent, Plan, Tally

WIDTH: Final = 78


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The ledger, compared with what was meant."""

    meant: dict[str, int]
    made: dict[str, list[int]]

    @classmethod
    def of(cls, intents: Sequence[Intent], ledger: Path) -> Self:
        """Read the ledger."""
        made: dict[str, list[int]] = {}
        with closing(sqlite3.connect(ledger)) as database:
            for recipient, cents in database.execute("SELECT recipient, amount FROM payments"):
                made.setdefault(recipient, []).append(cents)
        meant = {intent.recipient: intent.cents for intent in intents}
        return cls(meant=meant, made=made)

    @property
    def extra(self) -> int:
        """How many payments were made more often than once, counting each time too many."""
        return sum(len(amounts) - 1 for amounts in self.made.values())

    @property
    def exact(self) -> bool:
        """Whether every payment was made once, over its amount, and no other."""
        return self.made == {recipient: [cents] for recipient, cents in self.meant.items()}

    def lines(self) -> Iterator[str]:
        """Say what was found."""
        entries = [cents for amounts in self.made.values() for cents in amounts]
        yield _row("payments in the ledger", len(entries), f"{len(self.meant)} were meant")
        yield _row("  made exactly once", sum(len(found) == 1 for found in self.made.values()))
        yield _row("  made more than once", sum(len(found) > 1 for found in self.made.values()))
        yield _row("  never made", len(self.meant.keys() - self.made.keys()))
        yield _row("EUR in the ledger", _euros(sum(entries)))
        yield _row("EUR meant", _euros(sum(self.meant.values())))


def _row(what: str, value: int | str, note: str = "") -> str:
    return f"{what:<32}{value:>12}   {note}".rstrip()


def _euros(cents: int) -> str:
    return f"{cents / 100:,.2f}"


def report(plan: Plan, tally: Tally, verdict: Verdict, notes: Counter[str]) -> Iterator[str]:
    """Say what happened, in a table.

    Args:
        plan: what was meant.
        tally: what the customers have seen.
        verdict: on the ledger.
        notes: what the workers have seen.
    """
    yield "-" * WIDTH
    yield _row("payments", plan.payments, f"each sent {plan.duplicates + 2} times or more")
    yield _row("requests sent", tally["sent"])
    yield _row("  answered first-hand", tally["first"], "by a run of the view")
    if plan.guarded:
        yield _row("  replayed", tally["replayed"], "got that run's stored answer")
        yield _row("    after a 409", tally["replayed after conflict"])
        yield _row("    after a broken connection", tally["replayed after lost"])
        yield _row("  told 409, tried again", tally["conflict"], "the first was still running")
    yield _row("  told 503 or other", tally["refused"])
    yield _row("  connection cut by the client", tally["cut"], "half sent, or answer not read")
    yield _row("  connection broken by a kill", tally["lost"], "tried again")
    yield _row("  never answered", tally["unanswered"])
    yield _row("workers killed (kill -9)", tally["killed"])
    if plan.guarded:
        taken, found = notes["taken over"], notes["found"]
        yield _row("duplicates that waited", notes["waited"], "in the server, for the first one")
        yield _row("runs taken over from the dead", taken, f"{found} found their payment made")
        yield _row("answers that contradict", tally.contradictions)
    yield "-" * WIDTH
    yield from verdict.lines()
    yield "-" * WIDTH


def conclude(plan: Plan, tally: Tally, verdict: Verdict) -> tuple[bool, str]:
    """Return whether the run showed what it should, and the last line."""
    if not plan.guarded:
        if verdict.extra:
            return True, f"Without Demijohn: {verdict.extra} double charges."
        return False, "Without Demijohn, and no double charge: try more duplicates."
    if not verdict.exact:
        return False, "FAILED: the ledger is not what was meant."
    if tally["unanswered"] or tally.contradictions:
        return False, "FAILED: the ledger is right, but not every client was told so."
    return True, "Every payment was made exactly once."
