"""The settings of limits, their defaults, and where they may stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias, TypedDict, cast

from flask import Flask, Response

from .. import config
from ..config import Duration, setting
from ..errors import ConfigError
from ..principal import Principal
from .notation import Rate, Rates, parse

CAPABILITY: Final = "limits"
WHERE: Final = "DEMIJOHN_LIMITS"

Kind: TypeAlias = Literal["ip", "principal", "user", "api_key", "session", "all"]
Finder: TypeAlias = "Callable[[], str | int | Principal | None]"
By: TypeAlias = "Kind | Finder | Sequence[Kind | Finder]"
"""Who is counted: a kind of caller, a function of the current request, or several together."""

Missing: TypeAlias = Literal["deny", "ip", "skip"]
Charge: TypeAlias = "Literal['before', 'on_failure', 'on_success'] | Callable[[Response], bool]"
Cost: TypeAlias = "int | Callable[[], int]"
Algorithm: TypeAlias = Literal["window", "gcra", "calendar", "log"]
Limit: TypeAlias = "str | Sequence[str] | Callable[[], str | Sequence[str] | None]"
"""Limits in the notation, or a function of the current request; ``None`` from it is no limit."""

KINDS: Final = ("ip", "principal", "user", "api_key", "session", "all")
ALGORITHMS: Final = ("window", "gcra", "calendar", "log")
LOG_MOST: Final = 1000


def _by(value: object) -> tuple[object, ...]:
    parts = value if isinstance(value, list | tuple) else (value,)
    for part in parts:
        if not callable(part) and part not in KINDS:
            raise ValueError(f"must be {', '.join(KINDS)}, a function, or several of these")
    if not parts:
        raise ValueError("must name at least one")
    return tuple("principal" if part == "user" else part for part in parts)


def _on_store_failure(value: object) -> float:
    """Give the share of a limit that is counted in the process; 0 closed, infinity open."""
    if value == "open":
        return float("inf")
    if value == "closed":
        return 0.0
    if value == "local":
        return 1.0
    share = value.removeprefix("local:") if isinstance(value, str) else ""
    try:
        result = float(share)
    except ValueError:
        result = 0.0
    if not 0 < result <= 1:
        raise ValueError("must be open, closed, local, or local:share with a share up to 1")
    return result


def _headers(value: object) -> tuple[str, ...]:
    found = cast("tuple[str, ...]", config.words(str.lower)(value)) if value else ()
    if not set(found) <= {"draft", "legacy"}:
        raise ValueError("must be draft, legacy, both or none of them")
    return found


def _charge(value: object) -> object:
    if callable(value):
        return value
    return config.choice("before", "on_failure", "on_success")(value)


def _cost(value: object) -> object:
    return value if callable(value) else config.integer(0)(value)


def _shed(value: object) -> object:
    if not isinstance(value, Mapping):
        raise ValueError("must be a dict of options of shed()")
    return dict(value)


def _rates(value: object) -> Rates:
    return parse(value) if value else ()


def _fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError("must be a number of at least 0 and below 1")
    return float(value)


def _prefix(value: object) -> int:
    length = cast("int", config.integer(32)(value))
    if length > 128:
        raise ValueError("must be an integer from 32 to 128")
    return length


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What limits do in one application. Times are in milliseconds."""

    enabled: bool = setting("enabled", config.boolean, True)
    default: Rates = setting("default", _rates, None)
    application: Rates = setting("application", _rates, None)
    replays: Rates = setting("replays", _rates, "600/minute")
    by: tuple[object, ...] = setting("by", _by, "ip")
    missing: str | None = setting(
        "missing", config.optional(config.choice("deny", "ip", "skip")), None
    )
    algorithm: str = setting("algorithm", config.choice(*ALGORITHMS), "window")
    headers: tuple[str, ...] = setting("headers", _headers, "draft")
    on_store_failure: float = setting("on_store_failure", _on_store_failure, "local")
    shadow: bool = setting("shadow", config.boolean, False)
    ipv6_prefix: int = setting("ipv6_prefix", _prefix, 56)
    api_key_header: str = setting("api_key_header", config.text, "X-API-Key")
    rejection_cache: int = setting("rejection_cache", config.integer(0), 10_000)
    rejection_ms: int = setting("rejection", config.milliseconds(), 1)
    jitter_ms: int = setting("jitter", config.milliseconds(), 0)
    max_waiters: int = setting("max_waiters", config.integer(0), 4)
    shed: dict[str, object] | None = setting("shed", config.optional(_shed), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """What one decorator says; ``None`` is what the application says."""

    by: tuple[object, ...] | None = setting("by", config.optional(_by), None)
    group: str | None = setting("group", config.optional(config.text), None)
    name: str | None = setting("name", config.optional(config.text), None)
    algorithm: str | None = setting("algorithm", config.optional(config.choice(*ALGORITHMS)), None)
    burst: int | None = setting("burst", config.optional(config.integer(1)), None)
    cost: Cost = setting("cost", _cost, 1)
    cost_after: Callable[[Response], int] | None = setting(
        "cost_after", config.optional(config.function), None
    )
    charge: Charge = setting("charge", _charge, "before")
    methods: tuple[str, ...] | None = setting(
        "methods", config.optional(config.words(str.upper)), None
    )
    unless: Callable[[], bool] | None = setting("unless", config.optional(config.function), None)
    shadow: bool | None = setting("shadow", config.optional(config.boolean), None)
    missing: str | None = setting(
        "missing", config.optional(config.choice("deny", "ip", "skip")), None
    )
    on_store_failure: float | None = setting(
        "on_store_failure", config.optional(_on_store_failure), None
    )
    lease_ms: int = setting("lease", config.milliseconds(100), 30)
    wait_ms: int = setting("wait", config.milliseconds(), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShedSettings:
    """What one ``shed`` says. Times are in milliseconds."""

    capacity: int | None = setting("capacity", config.optional(config.integer(1)), None)
    reserve: float = setting("reserve", _fraction, 0.2)
    critical: Callable[[], bool] | None = setting(
        "critical", config.optional(config.function), None
    )
    adaptive: bool = setting("adaptive", config.boolean, False)
    target_ms: int = setting("target", config.milliseconds(1), 1)
    group: str | None = setting("group", config.optional(config.text), None)


class ShedOptions(TypedDict, total=False):
    """How requests are shed; see the reference of settings."""

    capacity: int | None
    reserve: float
    critical: Callable[[], bool] | None
    adaptive: bool
    target: Duration
    group: str | None


class LimitsOptions(TypedDict, total=False):
    """The settings of ``DEMIJOHN_LIMITS``; see the reference of settings."""

    enabled: bool
    default: str | Sequence[str] | None
    application: str | Sequence[str] | None
    replays: str | Sequence[str] | None
    by: By
    missing: Missing | None
    algorithm: Algorithm
    headers: str | Sequence[str] | None
    on_store_failure: str
    shadow: bool
    ipv6_prefix: int
    api_key_header: str
    rejection_cache: int
    rejection: Duration
    jitter: Duration
    max_waiters: int
    shed: ShedOptions | None


class ScopeOptions(TypedDict, total=False):
    """What every limit may have; see the reference of settings."""

    by: By | None
    group: str | None
    name: str | None
    methods: str | Sequence[str] | None
    unless: Callable[[], bool] | None
    shadow: bool | None
    missing: Missing | None
    on_store_failure: str | None


class LimitOptions(ScopeOptions, total=False):
    """The options of ``limit``."""

    requests: int
    window: int | timedelta
    algorithm: Algorithm | None
    burst: int | None
    cost: Cost
    cost_after: Callable[[Response], int] | None
    charge: Charge


class ConcurrentOptions(ScopeOptions, total=False):
    """The options of ``concurrent``."""

    lease: Duration
    wait: Duration


def from_config(app: Flask) -> dict[str, object]:
    """Return the layer of the application's configuration."""
    given = app.config.get(WHERE, {})
    return config.parse_layer(Settings, WHERE, cast("Mapping[str, Any]", given))


def check_rate(where: str, rate: Rate, algorithm: str, burst: int | None) -> None:
    """Refuse a rate that an algorithm cannot keep.

    Raises:
        ConfigError: it cannot.
    """
    if algorithm == "log" and rate.amount > LOG_MOST:
        raise ConfigError(f"{where}: the exact log is for at most {LOG_MOST}, not {rate}")
    if algorithm == "calendar" and (rate.multiple != 1 or rate.unit in {"", "week"}):
        raise ConfigError(f"{where}: the calendar has no periods such as that of {rate}")
    if algorithm == "gcra" and not rate.amount:
        raise ConfigError(f"{where}: {rate} has no rate; leave burst= away to block")
    if burst is not None and burst * rate.seconds * 1000 >= 2**50:
        raise ConfigError(f"{where}: burst={burst} is too much for a window of {rate.seconds} s")
