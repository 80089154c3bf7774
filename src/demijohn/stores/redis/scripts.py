"""From kinds of steps to one Lua script.

A script is assembled from files: the prelude, what the steps include, one function per kind, and
the runner. A file says ``-- include: other.lua`` to get another file of its own package in front,
once. There is one script for each distinct set of kinds that is ever run together, kept for the
life of the process; the server keeps it under its SHA-1.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Final

from demijohn.core.step import StepKind
from demijohn.errors import UsageError

_HERE: Final = "demijohn.stores.redis"
_INCLUDE: Final = re.compile(r"^-- include: (\S+)$", re.MULTILINE)
_cache: Final[dict[frozenset[StepKind], Script]] = {}


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the name under which the server knows it.

    Args:
        source: the whole script.
        sha: SHA-1 of the source, in hexadecimal digits.
        numbers: how the script numbers its kinds of steps.
    """

    source: bytes
    sha: str
    numbers: Mapping[StepKind, int]


def script_for(kinds: frozenset[StepKind]) -> Script:
    """Return the script that runs steps of these kinds."""
    script = _cache.get(kinds)
    if script is None:
        # Two threads may assemble the same script; it comes out the same.
        script = _cache[kinds] = assemble(kinds)
    return script


def forget_scripts() -> None:
    """Read the Lua files again at the next use; for tests that alter them."""
    _cache.clear()


def assemble(kinds: Iterable[StepKind]) -> Script:
    """Read the files of ``kinds`` and put them together."""
    ordered = sorted(kinds, key=lambda kind: kind.name)
    included: dict[str, str] = {}
    functions: list[str] = []
    for kind in ordered:
        text = read_lua(kind.lua)
        package = kind.lua.partition("/")[0]
        own = [f"{package}/{name}" for name in _INCLUDE.findall(text)]
        for path in (*own, *kind.includes):
            if path not in included:
                included[path] = read_lua(path)
        functions.append(f"kinds[{len(functions) + 1}] = (function()\n{text}\nend)()")
    parts = [
        read_lua(f"{_HERE}/prelude.lua"),
        *included.values(),
        "local kinds = {}",
        *functions,
        read_lua(f"{_HERE}/runner.lua"),
    ]
    source = "\n".join(parts).encode()
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()
    numbers = {kind: number for number, kind in enumerate(ordered, start=1)}
    return Script(source, sha, MappingProxyType(numbers))


def read_lua(path: str) -> str:
    """Return the text of ``"package/file.lua"``.

    Raises:
        UsageError: there is no such file.
    """
    package, _, name = path.partition("/")
    try:
        return resources.files(package).joinpath(name).read_text("utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise UsageError(
            f"there is no Lua twin at {path!r}; a StepKind names it as 'package/file.lua'"
        ) from error
