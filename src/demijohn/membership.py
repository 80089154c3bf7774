"""What a request knows of the batch that it is a part of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from flask import has_request_context, request

KEY: Final = "demijohn.batch"
"""Where it lies in the WSGI environment of a part. A client cannot put anything there."""


class Group(Protocol):
    """The atomicity group that a part belongs to."""

    def postpone(self, conclude: Conclusion) -> None:
        """Keep what is to be concluded when the group has ended."""
        ...


class Conclusion(Protocol):
    """What a guard has left to do for one part."""

    def __call__(self, *, committed: bool | None) -> None:
        """Do it, knowing what became of the group; ``None`` where nobody can tell."""
        ...


class Membership:
    """One part of one batch.

    Args:
        batch: the id of the batch, new for each.
        index: the number of the part, from 0.
        id: the id that the client has given it, ``None`` if it has none.
        group: its atomicity group, ``None`` if it is in none.
    """

    __slots__ = ("batch", "group", "id", "index", "prepaid")

    def __init__(self, batch: str, index: int, name: str | None, group: Group | None) -> None:
        self.batch = batch
        self.index = index
        self.id = name
        self.group = group
        self.prepaid: object = None
        """What was taken for it beforehand, for who has taken it."""


def membership_of(environ: Mapping[str, Any]) -> Membership | None:
    """Return of which batch the request in ``environ`` is a part; ``None`` if of none."""
    found: Membership | None = environ.get(KEY)
    return found


def current_part() -> Membership | None:
    """Return of which batch the current request is a part; ``None`` if of none."""
    return membership_of(request.environ) if has_request_context() else None
