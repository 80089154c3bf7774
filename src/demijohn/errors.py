"""Every exception that Demijohn raises outside HTTP.

Refusals that a client sees are werkzeug exceptions and live in :mod:`demijohn.problem`.
"""

from __future__ import annotations


class DemijohnError(Exception):
    """Base of all of Demijohn's own exceptions."""


class ConfigError(DemijohnError):
    """A setting is missing, unknown or out of range; the message names it and the cure."""


class MissingExtra(ConfigError):
    """A feature needs a library that is not installed; the message names the extra."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an extra: pip install 'demijohn[{extra}]'")
        self.feature = feature
        self.extra = extra


class UsageError(DemijohnError):
    """The developer's call makes no sense where it stands; the message says why."""


class StoreError(DemijohnError):
    """A store could not do what was asked of it."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, refuses to write, or its circuit breaker is open."""

    retry_after_ms: int | None = None
    """In how many milliseconds a call may succeed, where that is known."""


class StoreTimeout(StoreUnavailable):
    """The store did not answer within its deadline: the outcome is unknown."""


class StoreBusy(StoreUnavailable):
    """No connection to spare, or another holds the row; the store itself is not at fault."""


class CorruptRecord(StoreError):
    """A stored record is truncated, altered, or from a version that this one cannot read."""
