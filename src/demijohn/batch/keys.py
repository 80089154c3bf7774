"""The idempotency keys of parts, made of one key for the batch.

A batch that is sent again runs again, part by part: those that were carried out are replayed by
their views, the others run. For that each part has a key of its own, which is the same each time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote

from ..core.batch import Malformed, Part, field, named

HEADER: Final = "Idempotency-Key"
_KEYED: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_KEY: Final = re.compile(r'"?([!#-+\--\[\]-~]{1,200})"?')
LONGEST: Final = 200


def batch_key(values: Iterable[str]) -> str | None:
    """Return the key in the fields of a batch, by whichever name; ``None`` without one.

    Raises:
        Malformed: it is none that can be given to parts, or there are several.
    """
    keys = {_parsed(value) for value in values}
    if len(keys) > 1:
        raise Malformed("bad-batch-key", "The batch has two idempotency keys.")
    return keys.pop() if keys else None


def _parsed(value: str) -> str:
    found = _KEY.fullmatch(value.strip(" \t"))
    if found is None:
        raise Malformed(
            "bad-batch-key",
            "The idempotency key of a batch must have 1 to 200 visible ASCII characters, and no "
            "double quote, backslash or comma.",
        )
    return found[1]


def part_key(key: str, part: Part, index: int, headers: Sequence[str]) -> tuple[str, str] | None:
    """Return header and value of the key of ``part``; ``None`` if it has its own, or needs none.

    A client that sends a part again by itself makes the same one: the key of the batch, a colon,
    and the id, without the brackets of a Content-ID.

    Args:
        key: of the batch.
        part: of the batch.
        index: its number.
        headers: in which keys are looked for; the first is the one that is given.
    """
    own = any(field(part.fields, header.lower()) is not None for header in headers)
    if own or part.method.upper() not in _KEYED:
        return None
    name = numbered(key, index) if part.id is None else derived(key, named(part.id))
    return headers[0], f'"{name}"'


def numbered(key: str, index: int) -> str:
    """Return the key of a part that has no name, which no name can give."""
    return _bounded(f"{key}:#{index}")


def derived(key: str, name: str) -> str:
    """Return the key of what is called ``name`` in the batch ``key``."""
    return _bounded(f"{key}:{quote(name, safe='')}")


def _bounded(whole: str) -> str:
    return whole if len(whole) <= LONGEST else hashlib.sha256(whole.encode()).hexdigest()
