"""The limits of several requests at once: those of a batch, before any of its parts runs.

Theory of operation. What a request will ask of its limits is known beforehand where they are plain:
one unit each, of a caller whom the request itself names. Requests that ask the same are one step,
which takes as many units as there are requests, or as many as there are left. All steps are one
trip. What each request is given lies with it, and its own flow uses it in place of a take, if what
it asks is then found to be the same; what was not used is given back at the end.

What is not plain takes for itself when it runs: places, costs by a function, shadow, and views that
have idempotency beside their limits, whose take costs no trip of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from werkzeug.exceptions import HTTPException

from ..core import limits as core
from ..core.step import Outcome, Step
from ..defaults import guard_by_default
from ..errors import StoreError
from ..flow import Call
from ..guard import Guard
from ..stores import Store
from .asking import Asked
from .policy import BoundLimits, Prepaid

if TYPE_CHECKING:
    from werkzeug.routing import MapAdapter, Rule

    from ..extension import Binding
    from .answers import Answers

log = logging.getLogger("demijohn.limits")


class _Batch(msgspec.Struct):
    """Requests that ask the same, by their numbers.

    Args:
        asked: by each of them.
        policy: of the first.
        indexes: their numbers.
        values: of the outcome.
    """

    asked: Asked
    policy: BoundLimits
    indexes: list[int]
    values: Sequence[int] = ()

    def rules(self, count: int) -> list[core.Rule]:
        return [(*rule[:4], rule[4] * count) for rule in self.asked.rules]

    def take(self, *, some: bool) -> Step:
        return core.take(self.asked.keys, self.rules(len(self.indexes)), some=some)

    def refund(self, count: int) -> Step:
        at_ms = self.values[1]
        acts = [(core.REFUND, rule, at_ms) for rule in self.rules(count)]
        return core.settle(self.asked.keys, acts, token=b"")


class Prices:
    """What was taken for several requests.

    Args:
        batches: what asks the same.
        prepaid: what was taken, by the numbers of the requests.
    """

    def __init__(self, batches: Sequence[_Batch], prepaid: Mapping[int, Prepaid]) -> None:
        self.prepaid = prepaid
        self._batches = batches

    def give_back(self) -> None:
        """Return what was taken for requests that have not used it."""
        steps = []
        for batch in self._batches:
            given = [self.prepaid[index] for index in batch.indexes if index in self.prepaid]
            unused = sum([each.use() for each in given])
            if unused:
                steps.append((batch.policy.store, batch.refund(unused)))
        for store, step in steps:
            _give_back(store, step)


def price(
    binding: Binding,
    answers: Answers,
    call: Call,
    environs: Mapping[int, dict[str, Any]],
    *,
    whole: bool,
) -> Prices:
    """Take for the requests in ``environs``.

    Args:
        binding: what is known of the application.
        answers: what a client is told that is over a limit.
        call: the request in which they came.
        environs: by their numbers.
        whole: whether none is to run unless all may.

    Raises:
        QuotaExceeded: ``whole``, and they may not.
    """
    batches = _batches(binding, call, environs)
    prepaid: dict[int, Prepaid] = {}
    refused: _Batch | None = None
    try:
        if whole:
            refused = _take_whole(batches)
        else:
            _take_some(batches)
    except StoreError as error:
        # What an earlier trip has taken is paid for; the others take for themselves.
        log.warning("limits of a batch could not be taken at once: %s", error)
    if refused is not None:
        taken = [batch for batch in batches if batch.values and batch is not refused]
        _undo(taken)
        refused.asked.values = refused.values
        raise answers.refused(call, refused.asked, cached=False)
    for batch in batches:
        granted = batch.values[2] if batch.values else 0
        for index in batch.indexes[:granted]:
            prepaid[index] = Prepaid(batch.asked.keys, batch.values)
    return Prices(batches, prepaid)


def _undo(batches: Sequence[_Batch]) -> None:
    for batch in batches:
        _give_back(batch.policy.store, batch.refund(batch.values[2]))


def _give_back(store: Store, step: Step) -> None:
    try:
        store.run([step])
    except StoreError as error:
        log.warning("limits of parts that did not run could not be given back: %s", error)


# --- what is asked ------------------------------------------------------------------------------


def _batches(binding: Binding, call: Call, environs: Mapping[int, dict[str, Any]]) -> list[_Batch]:
    found: dict[tuple[str, ...], _Batch] = {}
    app = call.app
    hook = None if binding.principal is None else lambda: call.principal
    # The parts of a batch have its host: they are all found by one adapter.
    adapter = app.create_url_adapter(call.request)
    for index, environ in environs.items():
        try:
            rule = _rule_of(adapter, environ)
        except HTTPException:
            continue  # such as 404: no view, no limits
        policy = None if rule is None else _limits_of(binding, call, rule.endpoint)
        if policy is None:
            continue
        request = app.request_class(environ)
        request.url_rule = rule
        # The application can only say who sends the batch. Of a part that says something else that
        # is wrong: then it takes for itself, and what was taken for it is given back.
        own = Call(call.app, request, hook)
        asked = policy.ask_beforehand(own)
        if asked is None:
            continue
        known = found.get(asked.keys)
        if known is None:
            found[asked.keys] = _Batch(asked, policy, [index])
        else:
            known.indexes.append(index)
    return list(found.values())


def _rule_of(adapter: MapAdapter | None, environ: dict[str, Any]) -> Rule | None:
    if adapter is None:
        return None
    path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
    rule, _ = adapter.match(path, environ["REQUEST_METHOD"], return_rule=True)
    return rule


def has_limits(view: object) -> bool:
    """Whether a view has limits of its own; those of the methods of a class take for themselves."""
    guard = getattr(view, "__demijohn_guard__", None)
    return isinstance(guard, Guard) and any(
        policy.capability == "limits" for policy in guard.policies
    )


def _limits_of(binding: Binding, call: Call, endpoint: str) -> BoundLimits | None:
    guard_by_default(call.app, binding, endpoint)
    view = call.app.view_functions[endpoint]
    guard = getattr(view, "__demijohn_guard__", None)
    if not isinstance(guard, Guard) or guard.wrapper is not view:
        return None
    found = [policy for policy in guard.bound(binding) if isinstance(policy, BoundLimits)]
    return found[0] if len(found) == 1 else None


# --- taking -------------------------------------------------------------------------------------


def _take_some(batches: Sequence[_Batch]) -> None:
    """Take as much as there is for each. What has nothing left ends a trip, and begins another."""
    waiting = list(batches)
    while waiting:
        store = waiting[0].policy.store
        outcomes: list[Outcome] = store.run([batch.take(some=True) for batch in waiting])
        for batch, outcome in zip(waiting, outcomes, strict=False):
            if not outcome.halts:
                batch.values = outcome.values  # type: ignore[assignment]
        waiting = waiting[len(outcomes) :]


def _take_whole(batches: Sequence[_Batch]) -> _Batch | None:
    """Take for all; return what is refused. Limits that several ask for are taken from in turn."""
    if not batches:
        return None
    outcomes = batches[0].policy.store.run([batch.take(some=False) for batch in batches])
    for batch, outcome in zip(batches, outcomes, strict=False):
        batch.values = outcome.values  # type: ignore[assignment]
        if outcome.halts:
            return batch
    return None
