"""Responses that are made while they are sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeGuard, TypeVar

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

R = TypeVar("R", bound="Response")


@dataclass(frozen=True, slots=True)
class Collect:
    """Command: hand over the body when it has been sent; the result is a :class:`Collected`.

    Args:
        limit: the most bytes that are kept.
        finish: whether the body is made to its end when the client goes away.
    """

    limit: int
    finish: bool = True


@dataclass(frozen=True, slots=True)
class Collected:
    """What became of a streamed body.

    Args:
        body: all of it; ``None`` if it was larger than the limit.
        complete: whether it was made to its end.
    """

    body: bytes | None
    complete: bool


class Tee:
    """Passes a body on while collecting it, and reports once, when it is closed.

    The server calls :meth:`close` in every case, also when the client goes away (PEP 3333).
    """

    def __init__(
        self,
        body: Iterator[bytes],
        source: object,
        command: Collect,
        report: Callable[[Collected], None],
    ) -> None:
        self._body = body
        self._source = source
        self._command = command
        self._report: Callable[[Collected], None] | None = report
        self._parts: list[bytes] = []
        self._size = 0
        self._exhausted = False
        self._failed = False

    def __iter__(self) -> Tee:
        return self

    def __next__(self) -> bytes:
        try:
            part = next(self._body)
        except StopIteration:
            self._exhausted = True
            raise
        except BaseException:
            self._failed = True
            raise
        self._keep(part)
        return part

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= self._command.limit:
            self._parts.append(part)
        else:
            self._parts.clear()

    def close(self) -> None:
        """Report, after making the rest of the body if that was asked for."""
        report, self._report = self._report, None
        if report is None:
            return
        try:
            if self._command.finish and not self._exhausted and not self._failed:
                for _ in self:
                    pass
        finally:
            _close(self._source)
            body = b"".join(self._parts) if self._size <= self._command.limit else None
            report(Collected(body, self._exhausted))


class Resumed:
    """A body of which the beginning has been made."""

    def __init__(self, parts: list[bytes], rest: Iterator[bytes], source: object) -> None:
        self._body = chain(parts, rest)
        self._source = source

    def __iter__(self) -> Iterator[bytes]:
        return self._body

    def close(self) -> None:
        """Close what makes the body."""
        _close(self._source)


def gather(response: Response, limit: int) -> bytes | None:
    """Make a streamed body now, as long as it is no larger than ``limit`` bytes.

    Returns:
        The body; ``None`` if it is larger: then the rest is made while it is sent.
    """
    source = response.response
    body = iter(response.iter_encoded())
    parts, size = [], 0
    response.direct_passthrough = False
    for part in body:
        parts.append(part)
        size += len(part)
        if size > limit:
            response.response = Resumed(parts, body, source)
            return None
    _close(source)
    whole = b"".join(parts)
    response.set_data(whole)
    return whole


def _close(source: object) -> None:
    close = getattr(source, "close", None)
    if close is not None:
        close()


def collecting(response: Response, command: Collect, report: Callable[[Collected], None]) -> None:
    """Collect the body of ``response`` while it is sent, and report when it is closed."""
    body = iter(response.iter_encoded())
    response.response = Tee(body, response.response, command, report)
    response.direct_passthrough = False


def is_streamed(response: R | None) -> TypeGuard[R]:
    """Whether the body is made while it is sent."""
    return response is not None and (response.is_streamed or response.direct_passthrough)
