"""Who calls: the one identity that limits, idempotency, caching, jobs and batch share.

The application says it by one hook. Without a hook, the credentials themselves are the identity:
two requests are by the same caller when they carry the same ``Authorization``, or the same
Flask-Login user in the session. Anything else is anonymous. An address is never an identity: it
changes between retries, and neighbours behind one NAT share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from flask import session

from .errors import UsageError

if TYPE_CHECKING:
    from flask import Request


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller.

    Args:
        id: what identifies the caller among its kind, such as a user's primary key.
        kind: ``"user"``, ``"token"``, ``"service"``, ... ; ids of different kinds never meet.
        tenant: the customer or account that the caller acts for, if the application has such.
    """

    id: str
    kind: str = "user"
    tenant: str = ""

    @property
    def anonymous(self) -> bool:
        """Whether nothing is known of the caller."""
        return self is ANONYMOUS

    @property
    def key(self) -> str:
        """One string that no other principal has."""
        return f"{len(self.kind)}:{self.kind}{len(self.tenant)}:{self.tenant}{self.id}"


ANONYMOUS: Final = Principal("", kind="anonymous")

PrincipalHook: TypeAlias = Callable[[], "Principal | str | int | None"]
"""Called inside the request; returns the caller, or ``None`` for an anonymous one."""


def resolve(hook: PrincipalHook | None, request: Request) -> Principal:
    """Return who makes ``request``.

    Raises:
        UsageError: the hook returned something that identifies nobody.
    """
    found = from_credentials(request) if hook is None else hook()
    if found is None or found is ANONYMOUS:
        return ANONYMOUS
    caller = found if isinstance(found, Principal) else Principal(cast("str", found))
    # An id of None would make one caller of all whom the application does not know.
    names = isinstance(caller.kind, str) and isinstance(caller.tenant, str)
    if not names or not _identifies(caller.id):
        raise UsageError(
            f"the principal hook returned {found!r}; it must return a Principal, "
            "a user id that is not empty (str or int), or None for an anonymous caller"
        )
    return caller


def _identifies(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def from_credentials(request: Request) -> Principal | None:
    """Identify the caller by the credentials of the request, without judging them.

    The whole of ``Authorization`` counts, hashed: who lacks the secret cannot be taken for the
    owner, even where the view alone judges it.
    """
    credentials = request.environ.get("HTTP_AUTHORIZATION")
    if credentials:
        digest = hashlib.sha256(credentials.encode("latin-1", "replace")).hexdigest()
        return Principal(digest, kind="credentials")
    if "HTTP_COOKIE" in request.environ:
        user = session.get("_user_id")  # where Flask-Login keeps it
        if user is not None:
            return Principal(str(user), kind="session")
    return None
