"""Responses that are handed out before they are there."""

from __future__ import annotations

import json
from typing import ClassVar, Final, Self

from ...core.batch import media_type
from ..policy import is_problem_type
from .errors import BatchDependencyError, BatchPending, own

_ALLOWED: Final = frozenset({"_failure", "_settled"})


class Settled:
    """What a response of a batch has besides what the library's own have."""

    def result(self, *, raise_for: bool = False) -> Self:
        """Return this response.

        Args:
            raise_for: also look whether it was not run, or undone, because of another one.

        Raises:
            BatchPending: its batch was not sent yet.
            BatchDependencyError: with ``raise_for``, where the server says so with 424.
        """
        if raise_for:
            check_dependency(self)
        return self


class Waiting:
    """A response whose batch was not sent yet: to use it is an error.

    When it is settled it takes another class, ``_settled``, and costs nothing more.
    """

    _failure: Exception | None
    _settled: ClassVar[type]

    def __init__(self) -> None:
        self._failure = None

    def __getattribute__(self, name: str) -> object:
        if name in _ALLOWED or (name.startswith("__") and name.endswith("__")):
            return object.__getattribute__(self, name)
        failure: Exception | None = object.__getattribute__(self, "_failure")
        if failure is not None:
            raise own(failure)
        raise BatchPending(
            f"{name!r} is not known yet: the batch is sent at the end of its block, or by flush()."
        )

    def __repr__(self) -> str:
        failure: Exception | None = object.__getattribute__(self, "_failure")
        return f"<Response [{'pending' if failure is None else repr(failure)}]>"


def resolve(waiting: Waiting, response: object) -> None:
    """Make ``waiting`` the response."""
    object.__setattr__(waiting, "__class__", waiting._settled)  # noqa: SLF001
    waiting.__dict__.clear()
    waiting.__dict__.update(response.__dict__)


def reject(waiting: Waiting, error: Exception) -> None:
    """Let ``waiting`` raise ``error`` when it is used."""
    waiting._failure = error  # noqa: SLF001


def is_pending(waiting: Waiting) -> bool:
    """Whether it is neither resolved nor rejected."""
    return isinstance(waiting, Waiting) and waiting._failure is None  # noqa: SLF001


def check_dependency(response: object) -> None:
    """Look whether a response says that its request was not run, or undone.

    Raises:
        BatchDependencyError: it says so.
    """
    status: int = getattr(response, "status_code", 0)
    if status != 424:
        return
    kind, detail = "failed-dependency", ""
    headers: dict[str, str] = getattr(response, "headers", {})
    content: bytes = getattr(response, "content", b"")
    if is_problem_type(media_type(headers.get("content-type", ""))[0]):
        kind, detail = _problem(content, kind)
    raise BatchDependencyError(kind, detail)


def _problem(content: bytes, default: str) -> tuple[str, str]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return default, ""
    if not isinstance(document, dict):
        return default, ""
    name = str(document.get("type", default)).replace("#", "/").rpartition("/")[2]
    return name or default, str(document.get("detail") or document.get("title") or "")
