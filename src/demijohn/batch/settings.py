"""The settings of batches, their defaults, and where they may stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict, cast

from flask import Flask

from .. import config
from ..config import Duration, setting
from ..core import batch as core

CAPABILITY: Final = "batch"
WHERE: Final = "DEMIJOHN_BATCH"


def _urls(value: object) -> tuple[str, ...]:
    urls = cast("tuple[str, ...]", config.words()(value))
    if not urls or any(not url.startswith("/") or "<" in url for url in urls):
        raise ValueError("must be paths that begin with / and have no variables")
    return urls


def _decorators(value: object) -> tuple[Callable[..., Any], ...]:
    found = tuple(cast("Sequence[Callable[..., Any]]", value))
    if not all(callable(each) for each in found):
        raise ValueError("must be a list of decorators")
    return found


def _origins(value: object) -> tuple[str, ...]:
    origins = cast("tuple[str, ...]", config.words()(value)) if value else ()
    if any("://" not in each or each.count("/") != 2 for each in origins):
        raise ValueError("must be origins such as https://api.example.com")
    return tuple(core.origin(*each.split("://", 1)) for each in origins)


def _success(value: object) -> int:
    status = cast("int", config.integer(200)(value))
    if status not in {200, 202}:
        raise ValueError("must be 200 or 202")
    return status


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What batches do in one application. Sizes are in bytes, times in milliseconds."""

    url: tuple[str, ...] = setting("url", _urls, "/batch")
    max_parts: int = setting("max_parts", config.integer(1), 100)
    max_bytes: int = setting("max_bytes", config.integer(1), 10 << 20)
    max_part_bytes: int = setting("max_part_bytes", config.integer(1), 1 << 20)
    max_header_bytes: int = setting("max_header_bytes", config.integer(1), 16 << 10)
    max_headers: int = setting("max_headers", config.integer(1), 100)
    max_response_bytes: int = setting("max_response_bytes", config.integer(1), 32 << 20)
    max_depth: int = setting("max_depth", config.integer(1), 64)
    deadline_ms: int = setting("deadline", config.milliseconds(1), 30)
    workers: int = setting("workers", config.integer(0), 0)
    stream: bool = setting("stream", config.boolean, False)
    compress: bool = setting("compress", config.boolean, True)
    references: bool = setting("references", config.boolean, False)
    inherit: tuple[str, ...] = setting("inherit", config.words(str.lower), ())
    inherit_environ: tuple[str, ...] = setting("inherit_environ", config.words(), ())
    drop_headers: tuple[str, ...] = setting("drop_headers", config.words(str.lower), ())
    origins: tuple[str, ...] = setting("origins", _origins, ())
    cookies: str = setting("cookies", config.choice("keep", "forward"), "keep")
    json_binary: str = setting("json_binary", config.choice("base64url", "base64"), "base64url")
    success_status: int = setting("success_status", _success, 200)
    on_excess: str = setting("on_excess", config.choice("partial", "reject", "each"), "partial")
    ttl_ms: int = setting("ttl", config.milliseconds(1000), 24 * 3600)
    decorators: tuple[Callable[..., Any], ...] = setting("decorators", _decorators, ())

    @property
    def bounds(self) -> core.Bounds:
        """How large a batch may be."""
        return core.Bounds(
            parts=self.max_parts,
            part=self.max_part_bytes,
            head=self.max_header_bytes,
            fields=self.max_headers,
            depth=self.max_depth,
        )


class BatchOptions(TypedDict, total=False):
    """The settings of ``DEMIJOHN_BATCH``; see the reference of settings."""

    url: str | Sequence[str]
    max_parts: int
    max_bytes: int
    max_part_bytes: int
    max_header_bytes: int
    max_headers: int
    max_response_bytes: int
    max_depth: int
    deadline: Duration
    workers: int
    stream: bool
    compress: bool
    references: bool
    inherit: str | Sequence[str]
    inherit_environ: str | Sequence[str]
    drop_headers: str | Sequence[str]
    origins: str | Sequence[str]
    cookies: Literal["keep", "forward"]
    json_binary: Literal["base64url", "base64"]
    success_status: Literal[200, 202]
    on_excess: Literal["partial", "reject", "each"]
    ttl: Duration
    decorators: Sequence[Callable[..., Any]]


def from_config(app: Flask) -> dict[str, object]:
    """Return the layer of the application's configuration."""
    given = app.config.get(WHERE, {})
    return config.parse_layer(Settings, WHERE, cast("Mapping[str, Any]", given))
