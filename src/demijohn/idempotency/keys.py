"""Where a request's key is found, and what makes it a good one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from ..errors import UsageError
from ..fingerprint import form_of
from .refusals import KeyInvalid

if TYPE_CHECKING:
    from flask import Request

KeyFinder: TypeAlias = "Callable[[Request], str | None]"
"""Returns the key that a request carries in a place of the application's own, or ``None``."""

# RFC 9651: a String item, and the parameters that may follow it and are of no concern here. They
# are read all the same: a comma behind them would begin a second key.
_STRING = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
_BARE_ITEM = (
    rf"(?:-?[0-9]{{1,15}}(?:\.[0-9]{{1,3}})?|%?{_STRING}|[A-Za-z*][!#-'*+.^_`|~0-9A-Za-z:/-]*"
    r"|:[A-Za-z0-9+/=]*:|\?[01]|@-?[0-9]{1,15})"
)
_SF_STRING = re.compile(rf"({_STRING})[ ]*(?:;[ ]*[a-z*][a-z0-9_.*-]*(?:={_BARE_ITEM})?[ ]*)*")
# What most clients send instead. A comma would mean that several fields were joined.
_BARE = re.compile(r"[!#-+\--~]+")
_ESCAPED = re.compile(r"\\(.)")
_VISIBLE = re.compile(r"[!-~]+")
_UUID = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)

ENOUGH_CHARACTERS: Final = 20
"""A key of this many characters counts as hard to guess where anyone may send it."""


def parse(value: str) -> str:
    """Return the key in a field value: an sf-string or a bare token.

    ``"k"`` and ``k`` are the same key (draft-ietf-httpapi-idempotency-key-header, section 2.1,
    and what clients do).

    Raises:
        KeyInvalid: it is neither.
    """
    value = value.strip(" \t")
    if not value:
        raise KeyInvalid("The idempotency key is empty.")
    quoted = _SF_STRING.fullmatch(value)
    if quoted is not None:
        key = _ESCAPED.sub(r"\1", quoted[1][1:-1])
        if not key:
            raise KeyInvalid("The idempotency key is empty.")
        if not _VISIBLE.fullmatch(key):
            raise KeyInvalid("The idempotency key has a space; use visible ASCII characters.")
        return key
    if not _BARE.fullmatch(value):
        raise KeyInvalid(_what_is_wrong(value))
    return value


def _what_is_wrong(value: str) -> str:
    if not value.isascii():
        return "The idempotency key has a character outside of ASCII."
    if not value.isprintable():
        return "The idempotency key has a control character."
    if "," in value:
        return (
            "The idempotency key has a comma, as if several were sent: send one, or put one "
            "that contains a comma in double quotes."
        )
    if '"' in value:
        return (
            "The idempotency key has a double quote in the wrong place: it is either a bare "
            'token or a structured-field string such as "8e03978e-40d5-43e8-bc93-6894a57f9324".'
        )
    return "The idempotency key has a space; use visible ASCII characters."


def environ_name(header: str) -> str:
    """Return where WSGI puts a request header."""
    return f"HTTP_{header.upper().replace('-', '_')}"


class KeySources:
    """Finds the key of a request.

    Args:
        headers: names of request headers.
        field: the name of a form field and query argument, or ``None``.
        finders: functions of the application's own.
    """

    __slots__ = ("_environ_names", "_field", "_finders")

    def __init__(
        self, headers: Sequence[str], field: str | None, finders: Sequence[KeyFinder]
    ) -> None:
        self._environ_names = tuple(environ_name(header) for header in headers)
        self._field = field
        self._finders = tuple(finders)

    def find(self, request: Request) -> str | None:
        """Return the key of ``request``, ``None`` if it has none.

        Raises:
            KeyInvalid: a key is malformed, or two sources disagree.
        """
        # The common case is a request without any key: nothing is made for it.
        environ = request.environ
        found: str | None = None
        for name in self._environ_names:
            value = environ.get(name)
            if value is not None:
                found = _agreeing(found, parse(value))
        if self._field is None and not self._finders:
            return found
        for value in self._elsewhere(request):
            found = _agreeing(found, parse(value))
        return found

    def _elsewhere(self, request: Request) -> Iterator[str]:
        if self._field is not None:
            if self._field in request.environ.get("QUERY_STRING", ""):
                yield from request.args.getlist(self._field)
            if request.mimetype in {"application/x-www-form-urlencoded", "multipart/form-data"}:
                yield from form_of(request).getlist(self._field)
        for finder in self._finders:
            value = finder(request)
            if value is None:
                continue
            if not isinstance(value, str):
                raise UsageError(
                    f"the key finder {finder!r} returned {value!r}; it must return a string, or "
                    "None for a request without a key"
                )
            yield value


def _agreeing(found: str | None, key: str) -> str:
    if found is not None and found != key:
        raise KeyInvalid("The request carries two different idempotency keys; send one.")
    return key


def check(key: str, *, longest: int, pattern: re.Pattern[str] | None, anonymous: bool) -> None:
    """Refuse a key that is too long, of the wrong form, or too easily guessed.

    Args:
        key: the key, unquoted.
        longest: the most characters.
        pattern: what the whole key must match; ``None`` for anything.
        anonymous: whether the caller is unknown, so that anybody who guesses the key would be
            given the stored response.

    Raises:
        KeyInvalid: it is one of these.
    """
    if len(key) > longest:
        raise KeyInvalid(
            f"The idempotency key has {len(key)} characters; at most {longest} are allowed."
        )
    if pattern is not None and not pattern.fullmatch(key):
        raise KeyInvalid("The idempotency key does not have the form that this endpoint requires.")
    if anonymous and len(key) < ENOUGH_CHARACTERS and not _UUID.fullmatch(key):
        raise KeyInvalid(
            "Without credentials an idempotency key must be hard to guess: use a UUID, or at "
            f"least {ENOUGH_CHARACTERS} random characters."
        )


def compile_pattern(value: object) -> re.Pattern[str]:
    """Accept a regular expression, or ``"uuid"``."""
    if value == "uuid":
        return _UUID
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        return cast("re.Pattern[str]", value)
    if not isinstance(value, str):
        raise ValueError("must be a regular expression or 'uuid'")
    try:
        return re.compile(value)
    except re.error as error:
        raise ValueError(f"must be a regular expression ({error})") from None
