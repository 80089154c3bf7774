"""What can go wrong with a batch, beside what can go wrong with any request."""

from __future__ import annotations

import copy


class BatchError(Exception):
    """Something that only a batch can raise."""


class BatchPending(BatchError):
    """A response was used before its batch was sent."""


class BatchProtocolError(BatchError):
    """The answer to a batch does not say what became of this request; it may have run.

    Of the transports and adapters it is also an error of the library's own, so that code which
    knows nothing of batches handles it as a connection that broke.
    """


class BatchDependencyError(BatchError):
    """A request was not run, or was undone, because of another one in its batch.

    Args:
        kind: the problem's type, such as ``"rolled-back"`` or ``"not-attempted"``.
        detail: what the server says of it.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


def own(error: Exception) -> Exception:
    """Return a copy for one of several callers: each raises it with a traceback of its own."""
    try:
        made = copy.copy(error)
    except Exception:  # noqa: BLE001 - an exception with a signature of its own is shared
        return error
    made.__cause__ = error
    return made
