"""What batches tell, as blinker signals. The sender is the application."""

from __future__ import annotations

import logging
from typing import Any, Final

from blinker import Namespace, Signal
from flask import Flask

log = logging.getLogger("demijohn.batch")

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


def tell(signal: Signal, app: Flask, **details: Any) -> None:
    """Send ``signal``. What a receiver raises is logged: what is told of has happened."""
    if not signal.receivers:
        return
    try:
        signal.send(app, **details)
    except Exception:
        log.exception("a receiver of %r failed", signal)
