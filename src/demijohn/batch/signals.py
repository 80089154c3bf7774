"""What batches tell, as blinker signals. The sender is the application."""

from __future__ import annotations

from typing import Final

from blinker import Namespace

_signals: Final = Namespace()

refused = _signals.signal(
    "batch-refused", "A batch was refused, and nothing of it ran; carries kind and detail."
)
executed = _signals.signal(
    "batch-executed",
    "A batch was carried out; carries batch (its id), statuses (of its parts, in their order) and "
    "milliseconds.",
)
group_committed = _signals.signal(
    "batch-group-committed", "An atomicity group was committed; carries batch and group."
)
group_rolled_back = _signals.signal(
    "batch-group-rolled-back",
    "An atomicity group was rolled back; carries batch, group and offender (the number of the part "
    "that failed, None where it was the commit).",
)
