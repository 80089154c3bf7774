"""What a view may ask and say of its own idempotency."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from typing import TypeAlias, cast

from flask import has_request_context
from werkzeug.local import LocalProxy

from ..errors import UsageError
from ..flow import state
from .recovery import Recovery
from .refusals import InProgress

Recovers: TypeAlias = "Callable[[Attempt], Recovery]"
"""Makes what keeps the steps of a run."""


class Attempt:
    """One run of a view under a key.

    Args:
        key: the client's key; ``None`` where the request has none or is not protected.
        key_name: the name of the stored row.
        attempt: 1 for the first run under the key; one more after each loss or release.
        fence: a number that grows with every run; give it to whatever can refuse an older one.
    """

    __slots__ = (
        "_lost",
        "_recovery",
        "attempt",
        "effects_are_done",
        "fence",
        "key",
        "key_name",
        "recovers",
    )

    def __init__(
        self, key: str | None = None, key_name: str = "", attempt: int = 1, fence: int = 0
    ) -> None:
        self.key = key
        self.key_name = key_name
        self.attempt = attempt
        self.fence = fence
        self.effects_are_done = False
        self._lost = False
        self.recovers: Recovers | None = None
        self._recovery: Recovery | None = None

    @property
    def recovery(self) -> Recovery | None:
        """The steps of this run; ``None`` where nothing is repeated.

        Raises:
            UsageError: there is nowhere to keep them.
        """
        if self._recovery is None and self.key is not None:
            if self.recovers is None:
                raise UsageError(
                    "idempotency.step() keeps results in the database: give Demijohn(app, db=...)"
                )
            self._recovery = self.recovers(self)
        return self._recovery

    @property
    def has_steps(self) -> bool:
        """Whether the view has had any."""
        return self._recovery is not None and self._recovery.used

    @property
    def is_retry(self) -> bool:
        """Whether an earlier run under this key may have had effects."""
        return self.attempt > 1

    @property
    def lease_lost(self) -> bool:
        """Whether another request is known to have taken over."""
        return self._lost

    def lose(self) -> None:
        """Note that the lease is lost; called by the thread that renews it."""
        self._lost = True

    def derive(self, name: str) -> str:
        """Return a key for a call to another service: the same for every run under this key.

        Args:
            name: tells the calls of one view apart, such as ``"charge"``.

        Returns:
            A UUID (version 8, RFC 9562). Without a key it is random, as nothing is repeated.
        """
        if self.key is None:
            return str(uuid.uuid4())
        digest = bytearray(hashlib.sha256(f"{self.key_name}\n{name}".encode()).digest()[:16])
        digest[6] = digest[6] & 0x0F | 0x80
        digest[8] = digest[8] & 0x3F | 0x80
        return str(uuid.UUID(bytes=bytes(digest)))


_UNPROTECTED = Attempt()


def find_attempt() -> Attempt:
    """Return the run that the current request is; one of its own where it has no key.

    Raises:
        UsageError: there is no request.
    """
    if not has_request_context():
        raise UsageError("idempotency.current is only known inside a request")
    found = state().idempotency
    return found if isinstance(found, Attempt) else _UNPROTECTED


current: Attempt = cast("Attempt", LocalProxy(find_attempt))
"""The run that the current request is."""


def effects_done() -> None:
    """Say that the effects have happened: from here on any response is final, an error too.

    Without this a 5xx or an exception gives the key back, and a retry runs the view again.
    """
    found = find_attempt()
    if found is not _UNPROTECTED:
        found.effects_are_done = True


def checkpoint() -> None:
    """Stop here if another request has taken over; call it before an effect in a long view.

    Raises:
        InProgress: the lease was lost. It answers 409; the client gets the other's result when it
            tries again.
    """
    if find_attempt().lease_lost:
        raise InProgress(
            "This request took too long and another one has taken over its idempotency key.",
            retry_after=1,
        )
