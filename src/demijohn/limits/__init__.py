"""Limits: rates and quotas, how many run at once, and what is shed under load.

:mod:`demijohn.limits.signals` has the signals, and :mod:`demijohn.limits.refusals` the HTTP errors.
"""

from __future__ import annotations

from .face import Limits, Taken
from .refusals import CapacityReduced, IdentityMissing, LimitsUnavailable, QuotaExceeded
from .settings import ConcurrentOptions, LimitOptions, LimitsOptions, ShedOptions
from .signals import place_lost, refused, shadowed, shed, store_failed

__all__ = [
    "CapacityReduced",
    "ConcurrentOptions",
    "IdentityMissing",
    "LimitOptions",
    "Limits",
    "LimitsOptions",
    "LimitsUnavailable",
    "QuotaExceeded",
    "ShedOptions",
    "Taken",
    "place_lost",
    "refused",
    "shadowed",
    "shed",
    "store_failed",
]
