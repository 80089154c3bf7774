"""The settings of idempotency, their defaults, and where they may stand."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypedDict, cast

from flask import Flask, Request, Response

from .. import config
from ..config import Duration, setting
from ..core.idempotency import OnLost
from ..errors import ConfigError
from ..fingerprint import Fingerprint, parse_pointers
from ..frame import NEVER_STORED
from .keys import compile_pattern

CAPABILITY: Final = "idempotency"
WHERE: Final = "DEMIJOHN_IDEMPOTENCY"
LEGACY_FIELD: Final = "__idempotent_key"

NOT_FINAL: Final = frozenset({401, 403, 407, 408, 409, 421, 423, 425, 429})
"""4xx that say nothing of the request itself: a later retry deserves another answer."""

Storable: TypeAlias = Literal["final", "all"] | Collection[int] | Callable[[Response], bool]
Stores: TypeAlias = Callable[[Response], bool]


def is_final(response: Response) -> bool:
    """Whether a retry would be answered the same: the default rule of what is stored."""
    status = response.status_code
    return 200 <= status < 500 and status not in NOT_FINAL


def _store_rule(value: object) -> Stores:
    if value == "final":
        return is_final
    if value == "all":
        return lambda response: True
    if callable(value):
        return cast("Stores", value)
    listed = isinstance(value, Collection) and not isinstance(value, str)
    statuses = list(cast("Collection[object]", value)) if listed else [None]
    if all(isinstance(status, int) and 200 <= status <= 599 for status in statuses):
        kept = frozenset(statuses)
        return lambda response: response.status_code in kept
    raise ValueError("must be 'final', 'all', a list of statuses, or a function of the response")


def _fingerprint(value: object) -> Fingerprint:
    if callable(value):
        return cast("Fingerprint", value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return parse_pointers(cast("Sequence[str]", value))
    raise ValueError("must be a function of the request or a list of JSON Pointers")


def _on_lost(value: object) -> OnLost:
    word = config.choice("run", "refuse")(value)
    return OnLost.RUN if word == "run" else OnLost.REFUSE


def _dropped(value: object) -> frozenset[str]:
    return frozenset(cast("tuple[str, ...]", config.words(str.lower)(value))) | NEVER_STORED


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one view's idempotency does. Times are in milliseconds, sizes in bytes."""

    default: bool = setting("default", config.boolean, False, of_application=True)
    methods: tuple[str, ...] = setting("methods", config.words(str.upper), ("POST", "PATCH"))
    atomic: bool = setting("atomic", config.boolean, False)
    retry: int = setting("retry", config.integer(0), 0)
    required: bool = setting("required", config.boolean, False)
    headers: tuple[str, ...] = setting("headers", config.words(), ("Idempotency-Key",))
    forms: bool = setting("forms", config.boolean, False)
    form_field: str = setting("form_field", config.text, LEGACY_FIELD)
    legacy: bool = setting("legacy", config.boolean, False)
    max_key_length: int = setting("max_key_length", config.integer(1), 255)
    key_pattern: re.Pattern[str] | None = setting(
        "key_pattern", config.optional(compile_pattern), None
    )
    anonymous: str = setting("anonymous", config.choice("share", "refuse"), "share")
    scope: Callable[[Request], str] | None = setting(
        "scope", config.optional(config.function), None
    )
    fingerprint: Fingerprint | None = setting("fingerprint", config.optional(_fingerprint), None)
    wait_ms: int = setting("wait", config.milliseconds(), 10)
    max_waiters: int | None = setting(
        "max_waiters", config.optional(config.integer(0)), None, of_application=True
    )
    max_waiters_per_key: int | None = setting(
        "max_waiters_per_key", config.optional(config.integer(0)), None, of_application=True
    )
    lease_ms: int = setting("lease", config.milliseconds(100), 60)
    ttl_ms: int = setting("ttl", config.milliseconds(1000), 24 * 3600)
    tombstone_ms: int = setting("tombstone", config.milliseconds(), 0)
    on_lost: OnLost = setting("on_lost", _on_lost, "run")
    store: Stores = setting("store", _store_rule, "final")
    drop_headers: frozenset[str] = setting("drop_headers", _dropped, ())
    max_body: int = setting("max_body", config.integer(0), 1024 * 1024)
    on_disconnect: str = setting("on_disconnect", config.choice("finish", "release"), "finish")
    on_store_failure: str = setting("on_store_failure", config.choice("closed", "open"), "closed")

    @property
    def key_headers(self) -> tuple[str, ...]:
        """The request headers that are looked at."""
        old = ("X-Idempotent-Key",) if self.legacy else ()
        return tuple(dict.fromkeys((*self.headers, *old)))

    @property
    def key_field(self) -> str | None:
        """The form field and query argument that is looked at."""
        return self.form_field if self.forms or self.legacy else None

    @property
    def retain_ms(self) -> int:
        """How long a lost or released record is remembered."""
        return max(self.ttl_ms, 10 * self.lease_ms)


class RouteOptions(TypedDict, total=False):
    """What may be given to the decorator, and wherever :class:`Options` may.

    Durations are ``timedelta`` or seconds, sizes bytes. Each is described in the reference of
    settings.
    """

    methods: Collection[str]
    atomic: bool
    retry: int
    required: bool
    headers: Collection[str]
    forms: bool
    form_field: str
    legacy: bool
    max_key_length: int
    key_pattern: str | re.Pattern[str] | None
    anonymous: Literal["share", "refuse"]
    scope: Callable[[Request], str] | None
    fingerprint: Fingerprint | None
    wait: Duration
    lease: Duration
    ttl: Duration
    tombstone: Duration
    on_lost: Literal["run", "refuse"]
    store: Storable
    drop_headers: Collection[str]
    max_body: int
    on_disconnect: Literal["finish", "release"]
    on_store_failure: Literal["closed", "open"]


class Options(RouteOptions, total=False):
    """What may be given to the constructor, and in ``DEMIJOHN_IDEMPOTENCY``."""

    default: bool
    max_waiters: int | None
    max_waiters_per_key: int | None


Layer: TypeAlias = Mapping[str, object]


_OF_LEASES: Final = {
    "lease_ms": "lease",
    "on_lost": "on_lost",
    "on_disconnect": "on_disconnect",
    "on_store_failure": "on_store_failure",
}


def refuse_without_meaning(route: Layer) -> None:
    """Refuse options of one route that have no effect together.

    Raises:
        ConfigError: names the option that has none.
    """
    if route.get("atomic"):
        for field, name in _OF_LEASES.items():
            if field in route:
                raise ConfigError(
                    f"@idempotent has {name!r}, which has no meaning with atomic=True: there is "
                    "no lease, and the database is the view's own"
                )


def from_config(app: Flask) -> Layer:
    """Read the application's settings; the old names of Flask-Idempotent stand in for absent ones.

    Raises:
        ConfigError: a setting is unknown or wrong.
    """
    old = {"IDEMPOTENT_TIMEOUT": "wait", "IDEMPOTENT_EXPIRE": "ttl"}
    layer: dict[str, object] = {}
    for name, new in old.items():
        if name in app.config:
            layer |= config.parse_layer(Settings, name, {new: app.config[name]})
    return layer | config.parse_layer(Settings, WHERE, app.config.get(WHERE, {}))


def default_waiters(threads: int | None) -> int:
    """Return how many duplicates may wait in one process: a quarter of its threads, else four."""
    return 4 if threads is None else max(1, threads // 4)
