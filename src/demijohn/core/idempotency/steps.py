"""The steps as capabilities and stores know them: their kinds, and how to make one."""

from __future__ import annotations

from typing import Final

from ..step import Step, StepKind
from .decisions import (
    decide_begin,
    decide_complete,
    decide_release,
    decide_renew,
    decide_resolve,
)
from .table import OnLost

BEGIN: Final = StepKind(
    "idempotency.begin", decide_begin, "demijohn.core.lua/idempotency_begin.lua", True
)
RENEW: Final = StepKind(
    "idempotency.renew", decide_renew, "demijohn.core.lua/idempotency_renew.lua"
)
COMPLETE: Final = StepKind(
    "idempotency.complete", decide_complete, "demijohn.core.lua/idempotency_complete.lua"
)
RELEASE: Final = StepKind(
    "idempotency.release", decide_release, "demijohn.core.lua/idempotency_release.lua"
)
RESOLVE: Final = StepKind(
    "idempotency.resolve", decide_resolve, "demijohn.core.lua/idempotency_resolve.lua"
)


def begin(
    keys: tuple[str, ...],
    *,
    fingerprint: bytes,
    token: bytes,
    lease_ms: int,
    retain_ms: int,
    on_lost: OnLost = OnLost.RUN,
    inbox: str = "",
) -> Step:
    """Claim a key, or learn what stands in the way.

    Args:
        keys: the name of the row; during a rotation of the secret the earlier names behind it.
        fingerprint: digest of the request.
        token: random bytes that say who holds the claim.
        lease_ms: how long the claim stands without renewal, in milliseconds.
        retain_ms: how long a lost or released record keeps its fence, in milliseconds.
        on_lost: what to do about a lapsed lease.
        inbox: where this process hears of wake-ups; ``""`` to register nowhere.

    Returns:
        A step that answers ``run(index, fence, attempt, taken_over)``, or halts with
        ``replay(index, frame)``, ``busy(index, lease_left_ms)``, ``unknown(index, since_ms)``,
        ``mismatch(index)`` or ``expired(index)``, where ``index`` is that of the key.
    """
    return Step(BEGIN, keys, (fingerprint, token, lease_ms, retain_ms, int(on_lost), inbox))


def renew(key: str, *, token: bytes, lease_ms: int) -> Step:
    """Extend the lease to ``lease_ms`` from now: ``renewed()`` or ``fenced(state, frame)``."""
    return Step(RENEW, (key,), (token, lease_ms))


def complete(
    key: str, *, token: bytes, frame: bytes, ttl_ms: int, retain_ms: int, tombstone_ms: int = 0
) -> Step:
    """Store the response for ``ttl_ms``: ``completed()`` or ``fenced(state, frame)``.

    With ``tombstone_ms`` the key answers ``expired`` for that long after ``ttl_ms``.
    """
    return Step(COMPLETE, (key,), (key, token, frame, ttl_ms, retain_ms, tombstone_ms))


def release(key: str, *, token: bytes, retain_ms: int) -> Step:
    """Give the key back so that a retry runs: ``released()`` or ``fenced(state, frame)``."""
    return Step(RELEASE, (key,), (key, token, retain_ms))


def resolve(key: str, *, frame: bytes, ttl_ms: int, retain_ms: int) -> Step:
    """Decide a key whose outcome is unknown, as an operator: ``resolved()`` or ``refused(state)``.

    With a ``frame`` the key is completed by it; with ``b""`` a retry may run. A running key whose
    lease is alive is refused.
    """
    return Step(RESOLVE, (key,), (key, frame, ttl_ms, retain_ms))
