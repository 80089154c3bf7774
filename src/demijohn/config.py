"""Settings: where they come from, how they are checked, and errors that name the right one.

A capability describes its settings as a frozen dataclass whose fields are made by :func:`setting`.
The values come in layers, the later wins: the application's configuration (deployment), the
constructor (application), the decorator (route). Each layer is checked on its own, where it was
written, so that a mistake is reported with the place that holds it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import Any, Final, TypeAlias, TypeVar, cast

from .errors import ConfigError

Duration: TypeAlias = timedelta | int | float
"""A length of time: a ``timedelta``, or a number of seconds."""

Parser: TypeAlias = Callable[[object], object]
T = TypeVar("T")


def setting(name: str, parse: Parser, default: object, *, of_application: bool = False) -> Any:
    """Declare a dataclass field that is set under ``name``.

    Args:
        name: the name that the user writes; the field's own name may add the unit.
        parse: turns the user's value into the field's, or raises ``ValueError`` saying what
            would be right ("must be ...").
        default: the user's value that applies where none is given.
        of_application: whether it makes no sense for a single route.
    """
    metadata = {"name": name, "parse": parse, "of_application": of_application}
    return dataclasses.field(default=parse(default), metadata=metadata)


def parse_layer(
    cls: type[object], where: str, given: Mapping[str, object], *, of_route: bool = False
) -> dict[str, object]:
    """Check the values of one layer.

    Args:
        cls: the dataclass of settings.
        where: the place that holds them, for messages, such as ``"DEMIJOHN_IDEMPOTENCY"``.
        given: values by the names that the user writes; case does not matter, because some
            systems' environment variables are all upper case.
        of_route: whether they are for one route, where settings of the application are refused.

    Returns:
        Field names of ``cls`` to parsed values.

    Raises:
        ConfigError: a name is unknown (the nearest right one is named) or a value is wrong.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} must be a dict of settings, not {type(given).__name__}")
    fields = {
        field.metadata["name"]: field
        for field in dataclasses.fields(cast("Any", cls))
        if "name" in field.metadata
    }
    parsed: dict[str, object] = {}
    for name, value in given.items():
        field = fields.get(name) or fields.get(str(name).lower())
        if field is None:
            raise ConfigError(unknown_name(f"{where} has", str(name), fields))
        if of_route and field.metadata["of_application"]:
            raise ConfigError(
                f"{where} cannot set {name!r}: it is for the whole application; set it in the "
                "configuration or the constructor"
            )
        try:
            parsed[field.name] = field.metadata["parse"](value)
        except ValueError as error:
            raise ConfigError(f"{where}[{name!r}] {error}, got {value!r}") from None
    return parsed


def unknown_name(what: str, name: str, known: Collection[str]) -> str:
    """Word the complaint about a name that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    cure = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
    return f"{what} the unknown setting {name!r}; {cure}"


def combine(cls: type[T], *layers: Mapping[str, object]) -> T:
    """Make the settings from parsed layers, the later winning."""
    merged: dict[str, object] = {}
    for layer in layers:
        merged.update(layer)
    return cls(**merged)


# --- parsers ------------------------------------------------------------------------------------


LONGEST_MS: Final = 100 * 365 * 24 * 3600 * 1000
"""A hundred years: instants beyond the integers of some store would be the mistake of another."""


def milliseconds(minimum_ms: int = 0) -> Parser:
    """Accept a :data:`Duration` of at least ``minimum_ms``; give milliseconds."""

    def parse(value: object) -> int:
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("must be a timedelta or a number of seconds")
        if not -LONGEST_MS <= value * 1000 <= LONGEST_MS:  # neither is NaN
            raise ValueError("must be at most a hundred years")
        result = round(value * 1000)
        if result < minimum_ms:
            raise ValueError(f"must be at least {minimum_ms / 1000:g} s")
        return result

    return parse


def integer(minimum: int) -> Parser:
    """Accept an integer of at least ``minimum``."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"must be an integer of at least {minimum}")
        return value

    return parse


def optional(parse: Parser) -> Parser:
    """Accept ``None`` too."""
    return lambda value: None if value is None else parse(value)


def boolean(value: object) -> bool:
    """Accept ``True`` and ``False``."""
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def text(value: object) -> str:
    """Accept a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("must be a string that is not empty")
    return value


def choice(*words: str) -> Parser:
    """Accept one of ``words``."""

    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value

    return parse


def words(transform: Callable[[str], str] = str) -> Parser:
    """Accept strings, in any collection or as one comma-separated string; give a tuple."""

    def parse(value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        if not isinstance(value, Collection):
            raise ValueError("must be a list of strings")
        items = [item for item in cast("Collection[object]", value) if isinstance(item, str)]
        if len(items) != len(cast("Collection[object]", value)) or not all(items):
            raise ValueError("must be a list of strings that are not empty")
        return tuple(transform(item) for item in items)

    return parse


def function(value: object) -> Callable[..., Any]:
    """Accept anything that can be called."""
    if not callable(value):
        raise ValueError("must be callable")
    return value
