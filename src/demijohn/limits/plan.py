"""What limits a view has: declared by decorators, worked out once for each endpoint.

A *declared* limit is what one decorator says. Each of its rates becomes an :class:`Entry`: the
rule for the store, the name for the client. Entries of a limit that depends on nothing but the
endpoint are made once; those of a limit by callable are remembered for each text that it returns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final, cast

import msgspec

from ..core import limits as core
from ..errors import ConfigError, UsageError
from . import headers
from .notation import Rate, Rates, parse
from .settings import LimitSettings, Settings, check_rate

VERSION: Final = 1
SUFFIX_BYTES: Final = 6
REMEMBERED: Final = 256

CODES: Final = {
    "window": core.WINDOW,
    "gcra": core.GCRA,
    "calendar": core.CALENDAR,
    "log": core.LOG,
}
CALENDAR_UNITS: Final = {"month": core.MONTH, "year": core.YEAR}


class Declared(msgspec.Struct, frozen=True, eq=False):
    """What one decorator says.

    Args:
        where: how errors call it, such as ``"@limit"``.
        rates: the limits, or a function that returns them in the notation; empty for places.
        options: the rest.
        places: how many may run at once, ``None`` where it is a rate.
    """

    where: str
    rates: Rates | Callable[[], object]
    options: LimitSettings
    places: int | None = None


class Entry(msgspec.Struct, frozen=True, eq=False):
    """One limit of an endpoint, ready for use.

    Args:
        limit: of which it is.
        name: what clients call it.
        rule: for the store, with the declared cost; of 1 where a function says it.
        suffix: the end of the names of its rows.
        policy: its item of ``RateLimit-Policy``.
        quoted: its name in the fields.
        by: who is counted.
        missing: what to do about a request that does not say who calls.
        shadow: whether it only counts.
        share: of it that is counted in the process when the store is down.
        settles: whether something is owed after a view that ran.
    """

    limit: Declared
    name: str
    rule: core.Rule
    suffix: str
    policy: str
    quoted: str
    by: tuple[object, ...]
    missing: str | None
    shadow: bool
    share: float
    settles: bool

    @property
    def places(self) -> bool:
        """Whether it counts what runs at the same time."""
        return self.rule[0] == core.LEASES

    def taking(self, cost: int) -> core.Rule:
        """Return the rule by which ``cost`` is taken."""
        algorithm, amount, window_ms, burst, _ = self.rule
        return algorithm + core.SHADOW * self.shadow, amount, window_ms, burst, cost


class Planner:
    """Makes the entries of declared limits, for one application."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def entries(self, limit: Declared, scope: str, rates: Rates | None = None) -> list[Entry]:
        """Return the entries of ``limit`` where it stands.

        Args:
            limit: what was declared.
            scope: what shares its counters: an endpoint, unless the limit has a group.
            rates: those that a callable has returned.
        """
        if limit.places is not None:
            return [self._places(limit, scope)]
        found = cast("Rates", limit.rates) if rates is None else rates
        return [self._rate(limit, scope, rate) for rate in found]

    def _places(self, limit: Declared, scope: str) -> Entry:
        options, places = limit.options, cast("int", limit.places)
        rule = (core.LEASES, places, options.lease_ms, 0, 1)
        name = options.name or f"{places} at once"
        policy = headers.policy(name, places, 0, concurrent=True)
        return self._entry(limit, scope, name, rule, policy)

    def _rate(self, limit: Declared, scope: str, rate: Rate) -> Entry:
        options = limit.options
        name = options.name or str(rate)
        algorithm = options.algorithm or ("gcra" if options.burst else self._settings.algorithm)
        burst = options.burst
        if algorithm == "gcra" and burst is None:
            burst = rate.amount
        check_rate(limit.where, rate, algorithm, burst)
        extra, window_s = burst or 0, rate.seconds
        if algorithm == "calendar":
            extra = CALENDAR_UNITS.get(rate.unit, 0)
            window_s = 0 if extra else window_s
        rule = (CODES[algorithm], rate.amount, rate.seconds * 1000, extra, _cost(options))
        policy = headers.policy(name, rate.amount, window_s, concurrent=False)
        return self._entry(limit, scope, name, rule, policy)

    def _entry(self, limit: Declared, scope: str, name: str, rule: core.Rule, policy: str) -> Entry:
        options, settings = limit.options, self._settings
        shadow = settings.shadow if options.shadow is None else options.shadow
        share = options.on_store_failure
        # Another amount or algorithm is another row: a row is never read by rules not its own.
        what = f"{VERSION}|{rule[:4]}|{options.group or scope}|{options.group is None}"
        digest = hashlib.blake2b(what.encode(), digest_size=SUFFIX_BYTES).hexdigest()
        return Entry(
            limit=limit,
            name=name,
            rule=rule,
            suffix=digest,
            policy=policy,
            quoted=headers.quoted(name),
            by=options.by or settings.by,
            missing=options.missing or settings.missing,
            shadow=shadow,
            share=settings.on_store_failure if share is None else share,
            settles=limit.places is not None
            or options.charge != "before"
            or options.cost_after is not None,
        )


def _cost(options: LimitSettings) -> int:
    return 1 if callable(options.cost) else options.cost


class Plan:
    """The limits of one endpoint.

    Args:
        planner: makes entries.
        limits: in the order in which they are named.
        endpoint: the endpoint.
    """

    def __init__(self, planner: Planner, limits: Sequence[Declared], endpoint: str) -> None:
        self._planner = planner
        self._endpoint = endpoint
        self._by_text: dict[tuple[int, object], list[Entry]] = {}
        self._limits = limits
        self.always: tuple[Entry, ...] | None = None
        if not any(_depends(limit) for limit in limits):
            self.always = _distinct(
                entry for limit in limits for entry in planner.entries(limit, endpoint)
            )

    def entries(self, method: str) -> tuple[Entry, ...]:
        """Return the entries that hold for the current request."""
        if self.always is not None:
            return self.always
        found: list[Entry] = []
        for limit in self._limits:
            if holds(limit, method):
                found += self._entries(limit)
        return _distinct(found)

    def declared(self) -> Iterable[tuple[Declared, list[Entry]]]:
        """Return every limit, with its entries as far as they are known without a request."""
        for limit in self._limits:
            known = [] if callable(limit.rates) else self._entries(limit)
            yield limit, known

    def _entries(self, limit: Declared) -> list[Entry]:
        text: object = limit.rates() if callable(limit.rates) else None
        text = tuple(text) if isinstance(text, list) else text
        if callable(limit.rates) and not text:
            return []
        known = self._by_text.get((id(limit), text))
        if known is None:
            known = self._made(limit, text)
            if len(self._by_text) >= REMEMBERED:
                self._by_text.clear()
            self._by_text[id(limit), text] = known
        return known

    def _made(self, limit: Declared, text: object) -> list[Entry]:
        if text is None:
            return self._planner.entries(limit, self._endpoint)
        try:
            return self._planner.entries(limit, self._endpoint, parse(text))
        except (ValueError, ConfigError) as error:
            raise UsageError(f"{limit.where}: {limit.rates!r} returned {text!r}: {error}") from None


def _depends(limit: Declared) -> bool:
    """Whether the request decides on which limits hold."""
    options = limit.options
    return bool(callable(limit.rates) or options.methods or options.unless)


def holds(limit: Declared, method: str) -> bool:
    """Whether ``limit`` is of concern to the current request."""
    options = limit.options
    if options.methods is not None and method not in options.methods:
        return False
    return options.unless is None or not options.unless()


def _distinct(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Give every entry a name of its own: the fields of a response are lists by name."""
    result: list[Entry] = []
    names: set[str] = set()
    for entry in entries:
        name, number = entry.name, 1
        while name in names:
            number += 1
            name = f"{entry.name} ({number})"
        names.add(name)
        result.append(entry if name == entry.name else _renamed(entry, name))
    return tuple(result)


def _renamed(entry: Entry, name: str) -> Entry:
    quoted = headers.quoted(name)
    policy = quoted + entry.policy.removeprefix(entry.quoted)
    return msgspec.structs.replace(entry, name=name, quoted=quoted, policy=policy)
