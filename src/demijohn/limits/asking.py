"""From a request to what it asks of its limits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import msgspec
from werkzeug.exceptions import HTTPException

from ..core import limits as core
from ..core.step import Outcome, Step
from ..errors import UsageError
from ..flow import Call
from ..stores import Store
from .identity import Identities
from .plan import Declared, Entry, Plan, Planner
from .settings import LimitSettings, Settings

PREFIX: Final = "limits:"
REPLAYS: Final = "replays"


class Asked(msgspec.Struct):
    """What one request asks of its limits, and what became of it.

    Args:
        entries: the limits; behind them those of replays.
        count: how many of them are its own.
        keys: the names of their rows.
        rules: by which is taken; those of replays are left out.
        spared: the rules for a request that the view does not answer, if there may be such.
        token: of its places; ``b""`` without any.
        plain: whether it asks for one unit of each and for no place, so that a refusal will be
            the same until something comes back.
        settles: whether something is owed after a view that ran.
        policy: the field ``RateLimit-Policy``; ``""`` for none.
        made: the step that takes, but for the names of its rows, where that is known before.
        elsewhere: the store in which it was decided, if not in the policy's own.
        values: of the outcome; see :func:`demijohn.core.limits.take`.
        prepaid: whether it was taken before the request came.
    """

    entries: tuple[Entry, ...]
    count: int
    keys: tuple[str, ...]
    rules: Sequence[core.Rule]
    spared: Sequence[core.Rule] | None
    token: bytes
    plain: bool
    settles: bool
    policy: str
    made: Step | None = None
    elsewhere: Store | None = None
    values: Sequence[int] = ()
    prepaid: bool = False

    def step(self, inbox: str = "") -> Step:
        """Return the step that takes."""
        made = self.made
        if made is not None:
            return Step(made.kind, self.keys, made.args, made.otherwise)
        return core.take(self.keys, self.rules, token=self.token, inbox=inbox, spared=self.spared)

    def violated(self) -> list[int]:
        """Return the numbers of the limits that refuse."""
        waits = self.values[core.FIRST + 2 :: 3]
        return [
            index
            for index, wait in enumerate(waits)
            if wait and self.rules_of_outcome()[index][0] < core.SHADOW
        ]

    def shadowed(self) -> list[int]:
        """Return the numbers of the limits in shadow that would refuse."""
        waits = self.values[core.FIRST + 2 :: 3]
        return [
            index
            for index, wait in enumerate(waits)
            if wait and self.rules_of_outcome()[index][0] >= core.SHADOW
        ]

    def rules_of_outcome(self) -> Sequence[core.Rule]:
        """Return the rules by which was decided."""
        if self.spared is not None and self.values[0] == core.SPARED:
            return self.spared
        return self.rules

    def heard(self, outcome: Outcome) -> None:
        """Keep the values of an outcome."""
        self.values = outcome.values  # type: ignore[assignment]


class _Template(msgspec.Struct, frozen=True):
    """What all requests of an endpoint ask alike, but for who calls.

    Args:
        asked: by a request without a name.
        who: whom the limits count, each once.
        rows: for each row, by which of them it is named, and the end of its name.
    """

    asked: Asked
    who: tuple[tuple[tuple[object, ...], str | None], ...]
    rows: tuple[tuple[int, str], ...]


class Asking:
    """Finds out what requests ask, for one policy.

    Args:
        settings: of the application.
        planner: makes entries.
        identities: name who calls.
        spares: whether the view has something beside its limits that may answer in its place.
    """

    def __init__(
        self, settings: Settings, planner: Planner, identities: Identities, *, spares: bool
    ) -> None:
        self._identities = identities
        self._replays: tuple[Entry, ...] = ()
        self._spares = spares
        self._templates: dict[Plan, _Template | None] = {}
        if spares:
            options = LimitSettings(group=REPLAYS)
            declared = Declared("DEMIJOHN_LIMITS['replays']", settings.replays, options)
            self._replays = tuple(
                msgspec.structs.replace(entry, name=f"{REPLAYS} {entry.name}")
                for entry in planner.entries(declared, REPLAYS)
            )

    def ask(self, call: Call, plan: Plan) -> Asked | None:
        """Return what the current request asks; ``None`` if no limit is of concern to it.

        Raises:
            IdentityMissing: a limit does not know whom to count.
            UsageError: a function of the application returned what makes no sense.
        """
        try:
            template = self._templates[plan]
        except KeyError:
            template = self._templates[plan] = self._template(plan)
        if template is not None:
            asked = self._alike(call, template)
            if asked is not None:
                return asked
        return self._ask(call, plan.entries(call.request.method))

    def beforehand(self, call: Call, plan: Plan) -> Asked | None:
        """Return what a request will ask that is plain, without calling the application.

        What has something beside its limits that may answer in its view's place is left out: its
        step goes with the other's in any case.
        """
        entries = plan.always or ()
        if self._spares or any(callable(part) for entry in entries for part in entry.by):
            return None
        if any("session" in entry.by for entry in entries):
            return None
        try:
            template = self._templates.get(plan) or self._template(plan)
            asked = None if template is None else self._alike(call, template)
        except HTTPException:
            return None
        return asked if asked is not None and asked.plain else None

    def _template(self, plan: Plan) -> _Template | None:
        """Return what requests ask alike; ``None`` if it depends on them."""
        entries = plan.always
        if not entries or any(e.places or callable(e.limit.options.cost) for e in entries):
            return None
        who = tuple(dict.fromkeys((entry.by, entry.missing) for entry in entries))
        rows = [(who.index((entry.by, entry.missing)), entry.suffix) for entry in entries]
        rules = [entry.taking(entry.rule[4]) for entry in entries]
        plain = all(entry.rule[4] == 1 and not entry.shadow for entry in entries)
        names = [f"{number}}}" for number, _ in rows]
        asked = self._asked(list(entries), names, rules, b"", plain=plain)
        rows += [(rows[0][0], entry.suffix) for entry in self._replays]
        asked.made = asked.step()
        return _Template(asked, who, tuple(rows))

    def _alike(self, call: Call, template: _Template) -> Asked | None:
        """Return what the template says, asked by the caller; ``None`` if a limit is skipped."""
        tags = [self._identities.tag(call, by, missing) for by, missing in template.who]
        if None in tags:
            return None
        like = template.asked
        keys = tuple([f"{PREFIX}{{{tags[who]}}}:{suffix}" for who, suffix in template.rows])
        return Asked(
            like.entries,
            like.count,
            keys,
            like.rules,
            like.spared,
            b"",
            like.plain,
            like.settles,
            like.policy,
            like.made,
        )

    def _ask(self, call: Call, found: Sequence[Entry]) -> Asked | None:
        tags: dict[object, str | None] = {}
        keys: list[str] = []
        entries: list[Entry] = []
        rules: list[core.Rule] = []
        costs: dict[int, int] = {}
        token, plain = b"", True
        for entry in found:
            who = (entry.by, entry.missing)
            tag = tags[who] if who in tags else self._identities.tag(call, *who)
            tags[who] = tag
            if tag is None:
                continue
            cost = _cost_of(entry.limit, costs)
            if entry.places:
                token = token or os.urandom(core.TOKEN)
            plain = plain and cost == 1 and not entry.places and not entry.shadow
            keys.append(f"{PREFIX}{{{tag}}}:{entry.suffix}")
            entries.append(entry)
            rules.append(entry.taking(cost))
        if not entries:
            return None
        return self._asked(entries, keys, rules, token, plain=plain)

    def _asked(
        self,
        entries: list[Entry],
        keys: list[str],
        rules: list[core.Rule],
        token: bytes,
        *,
        plain: bool,
    ) -> Asked:
        count, spared = len(entries), None
        if self._spares:
            # Whose answer is known already is looked at, and charged for the look alone.
            spared = [core.NO_RULE if e.places else e.taking(0) for e in entries]
            spared += [entry.rule for entry in self._replays]
            tag = keys[0].partition("}")[0]
            keys += [f"{tag}}}:{entry.suffix}" for entry in self._replays]
            entries += self._replays
            rules += [core.NO_RULE] * len(self._replays)
        own = entries[:count]
        return Asked(
            tuple(entries),
            count,
            tuple(keys),
            rules,
            spared,
            token,
            plain,
            settles=any(entry.settles for entry in own),
            policy=", ".join(entry.policy for entry in own if not entry.shadow),
        )


def _cost_of(limit: Declared, costs: dict[int, int]) -> int:
    cost = limit.options.cost
    if not callable(cost):
        return cost
    known = costs.get(id(limit))
    if known is None:
        known = costs[id(limit)] = whole(limit, "cost", cost())
    return known


def whole(limit: Declared, what: str, value: object) -> int:
    """Return a cost that a function has returned.

    Raises:
        UsageError: it is no cost.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(
            f"{limit.where}: {what}= returned {value!r}; it must return an integer of at least 0"
        )
    return value
