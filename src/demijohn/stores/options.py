"""The options that a store's URL may carry: read by the types of a dataclass's fields."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any, Final, TypeAlias, TypeVar, cast

from demijohn.errors import ConfigError

T = TypeVar("T")
Reader: TypeAlias = Callable[[str, str], float | int | str]

LONGEST_S: Final = 1e6


def seconds(name: str, text: str) -> float:
    """Read a duration above 0.

    Raises:
        ConfigError: it is none.
    """
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < LONGEST_S:
        raise ConfigError(f"{name}={text!r} is not a duration in seconds above 0, such as 0.5")
    return found


def whole_number(name: str, text: str) -> int:
    """Read an integer of at least 0.

    Raises:
        ConfigError: it is none.
    """
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{name}={text!r} is not a whole number")
    return int(text)


_BY_TYPE: Final[dict[object, Reader]] = {
    "float": seconds,
    "int": whole_number,
    "str": lambda _, text: text,
}


def readers_of(cls: type) -> Mapping[str, Reader]:
    """Return how each option is read: a float is a duration, an integer a count."""
    return {option.name: _BY_TYPE[option.type] for option in fields(cast("Any", cls))}


def read(cls: type[T], given: Mapping[str, str]) -> T:
    """Return the options in ``given``, whose names are known.

    Raises:
        ConfigError: a value is none of its kind, or a count that must not be is 0.
    """
    readers = readers_of(cls)
    options = cls(**{name: readers[name](name, text) for name, text in given.items()})
    for name in ("breaker_failures", "max_connections"):
        if not getattr(options, name, 1):
            raise ConfigError(f"{name} is at least 1")
    return options


def unknown(store: str, name: str, known: Collection[str], listed: Collection[str]) -> ConfigError:
    """Word the complaint about an option that does not exist.

    Args:
        store: how the message calls the store, such as ``"a Redis store"``.
        name: of the option.
        known: among which the nearest is looked for.
        listed: which are named if none is near.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(listed)}"
    return ConfigError(f"{store} has no option {name!r}{hint}")
