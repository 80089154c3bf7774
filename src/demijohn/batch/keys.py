"""The idempotency keys of parts, made of one key for the batch.

A batch that is sent again runs again, part by part: those that were carried out are replayed by
their views, the others run. For that each part has a key of its own, which is the same each time.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final
from urllib.parse import quote

from ..core.batch import Malformed, Part, field, named

HEADER: Final = "Idempotency-Key"
_KEYED: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_KEY: Final = re.compile(r'"?([!#-+\--\[\]-~]{1,200})"?')
LONGEST: Final = 200


def batch_key(value: str | None) -> str | None:
    """Return the key in the field of a batch; ``None`` without one.

    Raises:
        Malformed: it is none that can be given to parts.
    """
    if value is None:
        return None
    found = _KEY.fullmatch(value.strip(" \t"))
    if found is None:
        raise Malformed(
            "bad-batch-key",
            "The idempotency key of a batch must have 1 to 200 visible ASCII characters, and no "
            "double quote, backslash or comma.",
        )
    return found[1]


def part_key(key: str, part: Part, index: int, header: str) -> tuple[str, str] | None:
    """Return header and value of the key of ``part``; ``None`` if it has its own, or needs none.

    A client that sends a part again by itself makes the same one: the key of the batch, a colon,
    and the id, without the brackets of a Content-ID.
    """
    if part.method.upper() not in _KEYED or field(part.fields, header.lower()) is not None:
        return None
    return header, f'"{derived(key, str(index) if part.id is None else named(part.id))}"'


def derived(key: str, name: str) -> str:
    """Return the key of what is called ``name`` in the batch ``key``."""
    whole = f"{key}:{quote(name, safe='')}"
    if len(whole) <= LONGEST:
        return whole
    return hashlib.sha256(whole.encode()).hexdigest()
