"""One request's hold on its key, and the name under which the key is stored."""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from typing import Any

from blinker import Signal

from ..core import idempotency as core
from ..core.step import Step
from ..flow import Call
from . import signals
from .current import Attempt

log = logging.getLogger("demijohn.idempotency")


class Claim:
    """A request's hold, or attempted hold, on its key.

    Args:
        call: the request.
        key: as the client sent it, unquoted.
        names: of the row; see :func:`row_names`.
        fingerprint: of the request.
        lease_ms: how long the hold stands without renewal, in milliseconds.
    """

    __slots__ = ("attempt", "call", "fingerprint", "lease_ms", "names", "token")

    def __init__(
        self, call: Call, key: str, names: tuple[str, ...], fingerprint: bytes, lease_ms: int
    ) -> None:
        self.call = call
        self.names = names
        self.fingerprint = fingerprint
        self.lease_ms = lease_ms
        self.token = os.urandom(16)
        self.attempt = Attempt(key, names[0])

    @property
    def name(self) -> str:
        """The name of the row on which the hold is."""
        return self.attempt.key_name

    @property
    def endpoint(self) -> str | None:
        """What was called, for messages and signals."""
        return self.call.request.endpoint

    def tell(self, signal: Signal, **details: Any) -> None:
        """Send ``signal``; nothing is made for one to which nobody listens."""
        if signal.receivers:
            signal.send(
                self.call.app,
                key_name=self.name,
                endpoint=self.endpoint,
                attempt=self.attempt.attempt,
                fence=self.attempt.fence,
                **details,
            )

    def renewal(self) -> Step:
        """See :meth:`Held.renewal`."""
        return core.renew(self.name, token=self.token, lease_ms=self.lease_ms)

    def lose(self) -> None:
        """See :meth:`Held.lose`."""
        self.attempt.lose()
        log.error("a running request of %s has lost its lease", self.endpoint)
        self.tell(signals.lost)


def row_names(row_secrets: tuple[bytes, ...], caller: str, scope: str, key: str) -> tuple[str, ...]:
    """Return the names of the row of a key, under the current secret and the earlier ones.

    The names, which are keyed BLAKE2b (RFC 7693), tell neither caller nor key to who reads the
    store. The part in braces is the same under every secret, so that a Redis Cluster keeps them
    together; 16 bits of a checksum give nothing away.

    Args:
        row_secrets: of 32 bytes each.
        caller: the principal's key.
        scope: further separation, by the application.
        key: the client's key.
    """
    message = f"{len(caller)}:{caller}{len(scope)}:{scope}{key}".encode("utf-8", "surrogatepass")
    tag = zlib.crc32(message) & 0xFFFF
    head = f"idempotency:{{{tag:04x}}}:"
    if len(row_secrets) == 1:  # but while a secret is being rotated
        return (head + _mac(message, row_secrets[0]),)
    return tuple([head + _mac(message, secret) for secret in row_secrets])


def _mac(message: bytes, secret: bytes) -> str:
    return hashlib.blake2b(message, key=secret, digest_size=20).hexdigest()
