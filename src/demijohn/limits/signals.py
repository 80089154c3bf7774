"""What limits decide, as blinker signals. The sender is the application."""

from __future__ import annotations

from typing import Final

from blinker import Namespace

_signals: Final = Namespace()

refused = _signals.signal(
    "limits-refused",
    "A request was refused, 429; carries endpoint, policies (the names of those it violated), "
    "keys (of their rows, which tell nobody's name) and cached (whether the store was not asked).",
)
shadowed = _signals.signal(
    "limits-shadowed",
    "A request would have been refused by limits in shadow; carries endpoint and policies.",
)
shed = _signals.signal(
    "limits-shed", "A request was shed, 503; carries endpoint, running and capacity."
)
store_failed = _signals.signal(
    "limits-store-failed",
    "The store failed; carries endpoint, error and decided (local, open, closed).",
)
place_lost = _signals.signal(
    "limits-place-lost",
    "A running request has lost its place: its lease lapsed; carries endpoint and key.",
)
