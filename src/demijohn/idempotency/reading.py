"""From a request to the claim that it makes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ..errors import UsageError
from ..fingerprint import of_request
from ..flow import Call
from . import refusals
from .claim import Claim, row_names
from .keys import KeyFinder, KeySources, check
from .settings import Settings

if TYPE_CHECKING:
    from flask import Request

_PREFER_WAIT: Final = re.compile(r"(?:^|,)\s*wait\s*=\s*(\d{1,9})\s*(?:$|[,;])", re.IGNORECASE)


class Reader:
    """Tells whether a call is idempotent, and under which key.

    Args:
        settings: of the view.
        row_secrets: under which row names are hidden; the first is the current one.
        finders: the application's own ways to find a key.
    """

    def __init__(
        self,
        settings: Settings,
        row_secrets: tuple[bytes, ...],
        finders: tuple[KeyFinder, ...],
    ) -> None:
        self._settings = settings
        self._key_field = settings.key_field
        self._methods = frozenset(settings.methods)
        self._sources = KeySources(settings.key_headers, settings.key_field, finders)
        self._secrets = row_secrets

    def claim(self, call: Call) -> Claim | None:
        """Return the claim that ``call`` makes, ``None`` if it makes none.

        Raises:
            HTTPException: there is no key, or one that is not accepted.
        """
        if call.request.method not in self._methods:
            return None
        key = self._sources.find(call.request)
        if key is None:
            if self._settings.required:
                raise refusals.KeyMissing(
                    "Send an Idempotency-Key header with a value that is new for each operation "
                    "and the same for each retry of it, such as a UUID."
                )
            return None
        if call.state.idempotency is not None:
            return None  # a guard within a guard: the outer one has the key
        return self._claim(call, key)

    def _claim(self, call: Call, key: str) -> Claim:
        settings = self._settings
        principal = call.principal
        anonymous = principal.anonymous
        check(
            key,
            longest=settings.max_key_length,
            pattern=settings.key_pattern,
            anonymous=anonymous,
        )
        if anonymous and settings.anonymous == "refuse":
            raise refusals.CallerUnknown(
                "Responses of this endpoint are stored for known callers only: send credentials."
            )
        scope = settings.scope(call.request) if settings.scope else ""
        if not isinstance(scope, str):
            raise UsageError(f"scope= returned {scope!r}; it must return a string")
        digest = of_request(call.request, how=settings.fingerprint, key_field=self._key_field)
        names = row_names(self._secrets, principal.key, scope, key)
        return Claim(call, key, names, digest, settings.lease_ms)


def patience_ms(request: Request, most_ms: int) -> int:
    """Return how long a duplicate waits: ``Prefer: wait=N`` (RFC 7240) may shorten it."""
    prefer = request.environ.get("HTTP_PREFER")
    asked = _PREFER_WAIT.search(prefer) if prefer else None
    return most_ms if asked is None else min(most_ms, int(asked[1]) * 1000)
