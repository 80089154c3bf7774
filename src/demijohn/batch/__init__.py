"""Many HTTP requests in one: a route that takes them, runs each and returns all answers."""

from __future__ import annotations

from ..membership import Membership, current_part
from . import signals
from .face import Batch, add_batch_route
from .refusals import BatchRefused
from .settings import BatchOptions

__all__ = [
    "Batch",
    "BatchOptions",
    "BatchRefused",
    "Membership",
    "add_batch_route",
    "current_part",
    "signals",
]
