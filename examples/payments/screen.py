"""The progress, as it is shown while the demo runs."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence

from plan import Plan, Tally
from server import WORKERS, Server


class Screen:
    """Progress: a few lines that change on a terminal, else a line now and then."""

    def __init__(self, plan: Plan, server: Server, tally: Tally) -> None:
        self._plan = plan
        self._server = server
        self._tally = tally
        self._live = not plan.plain and _can_redraw()
        self._began = time.monotonic()
        self._said = 0.0
        self._drawn = 0

    @property
    def seconds(self) -> float:
        """How long it has gone on."""
        return time.monotonic() - self._began

    def draw(self) -> None:
        """Show where we are."""
        if self._live:
            self._redraw(self._lines())
        elif self.seconds - self._said >= 2:
            self._said = self.seconds
            print(self._line(), flush=True)

    def clear(self) -> None:
        """Remove the lines that change."""
        if self._live:
            self._redraw([])

    def _line(self) -> str:
        tally = self._tally
        return (
            f"{self.seconds:5.1f} s  settled {tally['settled']}/{self._plan.payments}, "
            f"sent {tally['sent']}, replayed {tally['replayed']}, 409 {tally['conflict']}, "
            f"killed {tally['killed']}"
        )

    def _lines(self) -> list[str]:
        tally, total = self._tally, self._plan.payments
        done = 40 * tally["settled"] // max(1, total)
        bar = "█" * done + "░" * (40 - done)
        up = len(self._server.pids())
        return [
            f"{bar}  {tally['settled']}/{total} payments  {self.seconds:.1f} s",
            f"  sent {tally['sent']}, replayed {tally['replayed']}, told 409 {tally['conflict']}",
            f"  cut by the client {tally['cut']}, broken by a kill {tally['lost']}",
            f"  workers {'●' * up}{'○' * (WORKERS - up)}   kill -9: {tally['killed']}",
        ]

    def _redraw(self, lines: Sequence[str]) -> None:
        width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be redrawn
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        shown = "".join(f"{line[:width]}\x1b[K\n" for line in lines)
        print(f"{up}\r{shown}\x1b[J", end="", flush=True)
        self._drawn = len(lines)


def _can_redraw() -> bool:
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return False
    return sys.stdout.encoding.lower().startswith("utf")
