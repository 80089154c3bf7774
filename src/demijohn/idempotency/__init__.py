"""Idempotent requests: a retried or concurrent duplicate runs once.

In a view, ``from demijohn import idempotency`` gives :data:`current`, :func:`effects_done` and
:func:`checkpoint`; :mod:`demijohn.idempotency.signals` has the signals, and
:mod:`demijohn.idempotency.refusals` the HTTP errors.
"""

from __future__ import annotations

from .current import Attempt, checkpoint, current, effects_done
from .face import Idempotency, IdempotentDecorator
from .refusals import (
    CallerUnknown,
    InProgress,
    KeyExpired,
    KeyInvalid,
    KeyMissing,
    KeyReused,
    OutcomeUnknown,
    RecordUnreadable,
    ResponseNotKept,
    StoreUnavailableError,
)
from .settings import Options, RouteOptions, is_final
from .signals import (
    begun,
    completed,
    conflicted,
    corrupt,
    fenced,
    lost,
    mismatched,
    released,
    replayed,
    store_failed,
    taken_over,
    unknown,
    unprotected,
    waited,
)
from .step import step

__all__ = [
    "Attempt",
    "CallerUnknown",
    "Idempotency",
    "IdempotentDecorator",
    "InProgress",
    "KeyExpired",
    "KeyInvalid",
    "KeyMissing",
    "KeyReused",
    "Options",
    "OutcomeUnknown",
    "RecordUnreadable",
    "ResponseNotKept",
    "RouteOptions",
    "StoreUnavailableError",
    "begun",
    "checkpoint",
    "completed",
    "conflicted",
    "corrupt",
    "current",
    "effects_done",
    "fenced",
    "is_final",
    "lost",
    "mismatched",
    "released",
    "replayed",
    "step",
    "store_failed",
    "taken_over",
    "unknown",
    "unprotected",
    "waited",
]
