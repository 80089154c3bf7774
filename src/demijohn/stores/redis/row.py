"""Rows as the server keeps them, and other texts that it answers with.

The rule for types stands in ``prelude.lua``: an integer is kept as its digits, bytes as they are,
and bytes that look like an integer have a mark in front.
"""

from __future__ import annotations

import re
from typing import Final, cast

from demijohn.core.step import Row, Value

_INTEGER: Final = re.compile(rb"-?[0-9]+")
_MARKED: Final = re.compile(rb"\x01+-?[0-9]+")
_SPECIAL: Final = re.compile(r"([*?\[\]^\\-])")


def decode(reply: object) -> Row:
    """Return the row of an HGETALL; a reply that is not a hash is an empty row."""
    if not isinstance(reply, list):
        return {}
    pairs = iter(cast("list[bytes]", reply))
    return {
        name.decode(errors="replace"): value_of(raw)
        for name, raw in zip(pairs, pairs, strict=False)
    }


def value_of(raw: bytes) -> Value:
    """Return the value of a field."""
    if _INTEGER.fullmatch(raw):
        return int(raw)
    return raw[1:] if _MARKED.fullmatch(raw) else raw


def escape_glob(text: str) -> str:
    """Return the pattern of SCAN that matches exactly ``text``."""
    return _SPECIAL.sub(r"\\\1", text)


def info(reply: object) -> dict[str, str]:
    """Return the fields of an INFO."""
    lines = cast("bytes", reply).decode(errors="replace").splitlines()
    return {name: value for name, found, value in (line.partition(":") for line in lines) if found}
