"""What may be set on a batching client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypedDict

Format: TypeAlias = Literal["multipart", "json"]

OWN_BATCHES: Final = "demijohn.batch"


class Options(TypedDict, total=False):
    """The keyword arguments that all batching clients have; see :class:`Settings`."""

    max_parts: int
    max_bytes: int
    max_part_bytes: int
    format: Format
    retry: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a client batches.

    Args:
        max_parts: the most requests in a batch.
        max_bytes: the largest body of a batch, in bytes.
        max_part_bytes: the largest request in a batch, in bytes; a larger one goes by itself.
        format: of the batches that are sent, ``"multipart"`` or ``"json"``; answers may be of
            either.
        retry: how often a request may be sent again: one that was not answered, if a second
            arrival changes nothing; one that was told to wait (429, and 503 with Retry-After), at
            most three times. With more than 0, POST and PATCH are given an idempotency key: one
            for all of a batch. 0 sends everything once.

    Raises:
        ValueError: a value is out of range.
    """

    max_parts: int = 100
    max_bytes: int = 10 << 20
    max_part_bytes: int = 1 << 20
    format: Format = "multipart"
    retry: int = 0

    def __post_init__(self) -> None:
        if self.max_parts < 1:
            raise ValueError(f"max_parts must be at least 1, got {self.max_parts!r}")
        if not 0 < self.max_part_bytes <= self.max_bytes:
            raise ValueError("max_part_bytes must be more than 0 and at most max_bytes")
        if self.format not in {"multipart", "json"}:
            raise ValueError(f'format must be "multipart" or "json", got {self.format!r}')
        if self.retry < 0:
            raise ValueError(f"retry must be 0 or more, got {self.retry!r}")
