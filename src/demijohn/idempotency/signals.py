"""What happens to keys, as blinker signals.

The sender is the application. Every signal carries ``key_name`` (the name of the stored row, which
reveals neither key nor caller) and ``endpoint``; ``begun`` and those of the same attempt carry
``attempt`` and ``fence``.
"""

from __future__ import annotations

from typing import Final

from blinker import Namespace

_signals: Final = Namespace()

begun = _signals.signal("idempotency-begun", "A request holds its key; the view is about to run.")
completed = _signals.signal("idempotency-completed", "The response was stored.")
replayed = _signals.signal("idempotency-replayed", "A stored response was given.")
waited = _signals.signal(
    "idempotency-waited", "A duplicate has waited for the first; carries waited_ms and status."
)
conflicted = _signals.signal("idempotency-conflicted", "A duplicate was told 409: in progress.")
mismatched = _signals.signal("idempotency-mismatched", "A key came with another request: 422.")
released = _signals.signal("idempotency-released", "The key was given back; a retry will run.")
lost = _signals.signal("idempotency-lost", "A running view was found to have lost its lease.")
taken_over = _signals.signal(
    "idempotency-taken-over", "A lapsed lease was taken over; the view runs again."
)
fenced = _signals.signal(
    "idempotency-fenced", "A view finished after its key had been taken over; refused."
)
unknown = _signals.signal("idempotency-unknown", "A lost request awaits an operator: 409.")
unprotected = _signals.signal(
    "idempotency-unprotected", "The store failed before the view, which runs unprotected."
)
store_failed = _signals.signal(
    "idempotency-store-failed", "The store failed; carries error and phase (before, after)."
)
corrupt = _signals.signal("idempotency-corrupt", "A stored response cannot be read.")
