"""What limits do about one request, as a flow.

Theory of operation. All limits that hold for a request are one step, taken before the view in the
trip that idempotency begins in. What is over a limit is refused there, and has taken nothing. What
the view did not use up is given back after it, in the trip that stores its result.

A request whose idempotency key is known is not charged what its view costs: the store decides it
in the same trip, by the other arguments of the step. Where it cannot (another store, or a key that
is looked up in the application's database) the charge is given back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ..core import limits as core
from ..core.step import Outcome
from ..errors import StoreError
from ..flow import PROCEED, Call, Flow, Result
from ..keeper import Keeper
from ..membership import membership_of
from ..stores import Store, scattered
from ..streams import Collect, is_streamed
from . import groups
from .answers import Answers
from .asking import Asked, Asking
from .fallback import Fallback
from .plan import Plan
from .rejections import Rejections
from .settling import acts_after
from .shedding import Shedder
from .waiting import Places, Waiting

log = logging.getLogger("demijohn.limits")


class Shed(msgspec.Struct, frozen=True, eq=False):
    """A shedder, and what is critical to it."""

    shedder: Shedder
    critical: Callable[[], bool] | None


class Prepaid:
    """What was taken for one request before it came.

    Args:
        keys: of the limits.
        values: of the outcome; see :func:`demijohn.core.limits.take`.
    """

    __slots__ = ("_unused", "keys", "values")

    def __init__(self, keys: tuple[str, ...], values: Sequence[int]) -> None:
        self.keys = keys
        self.values = values
        self._unused = [True]

    def use(self) -> bool:
        """Use it; whether that is not done yet. One of two threads that come at once has it."""
        try:
            return self._unused.pop()
        except IndexError:
            return False


class BoundLimits:
    """The limits of a view in one application.

    Args:
        plan: returns the limits of an endpoint, ``None`` if there are none.
        asking: says what a request asks of them.
        store: where they are counted.
        keeper: renews leases.
        answers: what clients are told.
        rejections: remembers refusals.
        fallback: decides when the store does not.
        waiting: bounds who waits for a place.
        sheds: what the view is shed by, the outermost first.
        enabled: whether anything is done at all.
    """

    def __init__(
        self,
        plan: Callable[[str], Plan | None],
        asking: Asking,
        *,
        store: Store,
        keeper: Keeper,
        answers: Answers,
        rejections: Rejections,
        fallback: Fallback,
        waiting: Waiting,
        sheds: tuple[Shed, ...],
        enabled: bool,
    ) -> None:
        self.store = store
        self.postpones = False
        self._plan = plan
        self._plans: dict[str, Plan | None] = {}
        self._asking = asking
        self._keeper = keeper
        self._answers = answers
        self._rejections = rejections
        self._fallback = fallback
        self._waiting = waiting
        self._sheds = sheds
        self._enabled = enabled
        self._scattered = scattered(store)

    def plan(self, endpoint: str) -> Plan | None:
        """Return the limits of an endpoint, ``None`` if there are none."""
        if endpoint not in self._plans:
            self._plans[endpoint] = self._plan(endpoint)
        return self._plans[endpoint]

    def flow(self, call: Call) -> Flow | None:
        """See :meth:`BoundPolicy.flow`."""
        if not self._enabled:
            return None
        if self._sheds:
            return self._shedding(call)
        asked = self._ask(call)
        return None if asked is None else self._limited(call, asked)

    def _ask(self, call: Call) -> Asked | None:
        plan = self.plan(call.request.endpoint or "")
        if plan is None:
            return None
        asked = self._asking.ask(call, plan)
        if asked is not None and asked.plain and not _is_prepaid(call, asked):
            values = self._rejections.recall(asked.keys)
            if values is not None:
                asked.values = values
                raise self._answers.refused(call, asked, cached=True)
        return asked

    def ask_beforehand(self, call: Call) -> Asked | None:
        """Return what a request will ask that is not the current one.

        Nothing of the application is called for it; ``None`` where that would be needed.
        """
        plan = self.plan(call.request.endpoint or "")
        if plan is None or not self._enabled or self._sheds or self._scattered:
            return None
        return self._asking.beforehand(call, plan)

    # --- shedding -------------------------------------------------------------------------------

    def _shedding(self, call: Call) -> Flow:
        """Turn away what there is no room for, before anything is asked."""
        entered: list[tuple[Shedder, float]] = []
        try:
            for shed in self._sheds:
                shedder = shed.shedder
                began = shedder.now()
                if not shedder.enter(critical=bool(shed.critical and shed.critical())):
                    raise self._answers.shed(call, shedder)
                entered.append((shedder, began))
            asked = self._ask(call)
            if asked is None:
                yield from _sent((yield PROCEED))
                return None
            return (yield from self._limited(call, asked, until_sent=True))
        finally:
            for shedder, began in entered:
                shedder.leave(began)

    # --- around the view ------------------------------------------------------------------------

    def _limited(self, call: Call, asked: Asked, *, until_sent: bool = False) -> Flow:
        if not asked.prepaid and not (yield from self._take(call, asked)):
            result: Result = yield PROCEED
            if until_sent:
                yield from _sent(result)
            return None
        self._answers.admitted(call, asked)
        if asked.token:
            result = yield from self._in_places(call, asked)
        else:
            result = yield PROCEED
            if until_sent:
                yield from _sent(result)
        acts = acts_after(asked, result)
        if acts is not None:
            yield from self._settle(asked, acts)
        self._answers.concluded(asked, result.response)
        return None

    def _in_places(self, call: Call, asked: Asked) -> Any:
        places = Places(call, self.store, asked, self._keeper)
        try:
            places.keep()
            result: Result = yield PROCEED
            yield from _sent(result)
        finally:
            places.forget()
        return result

    def _take(self, call: Call, asked: Asked) -> Any:
        """Take, waiting for a place if that was asked for; whether anything was counted. A flow.

        Raises:
            QuotaExceeded: a limit is reached.
            LimitsUnavailable: the store is down, and a limit fails closed.
        """
        apart = self._scattered and groups.are_several(asked)
        # What lies on several servers cannot be waited for: what some give must be given back.
        waits = asked.token and not apart and self._waiting.applies(asked)
        since = self.store.mark if waits else 0
        try:
            if apart:
                outcome: Outcome = yield from groups.take(asked)
            else:
                outcome = yield asked.step(self.store.inbox if waits else "")
        except StoreError as error:
            found = self._fallback.decide(call, asked, error)
            if found is None:
                return False
            outcome = found
        else:
            if self._fallback.failing:
                self._fallback.answered()
        asked.heard(outcome)
        if not outcome.halts:
            return True
        if waits and asked.elsewhere is None:
            outcome = yield from self._waiting.wait(self.store, asked, since)
            if not outcome.halts:
                return True
        if asked.plain and asked.elsewhere is None and asked.values[0] == core.WHOLE:
            self._rejections.note(asked.keys, asked.values)
        raise self._answers.refused(call, asked, cached=False)

    def _settle(self, asked: Asked, acts: list[tuple[int, core.Rule, int]]) -> Any:
        """Do what is to be done after the view; a store that fails is left alone.

        A place is free when its lease lapses, and a refund that is lost errs on the safe side.
        """
        try:
            for step, which in groups.settle(asked, acts, scattered=self._scattered):
                store = asked.elsewhere
                outcome: Outcome = (yield step) if store is None else store.run([step])[0]
                groups.updated(asked, outcome, which, acts)
        except StoreError as error:
            log.warning("limits could not be settled after a view: %s", error)


def _is_prepaid(call: Call, asked: Asked) -> bool:
    """Use what was taken for the request as part of a batch, if that is what it asks."""
    part = membership_of(call.request.environ)
    prepaid = None if part is None else part.prepaid
    if not isinstance(prepaid, Prepaid) or prepaid.keys != asked.keys or not prepaid.use():
        return False
    asked.prepaid = True
    asked.values = prepaid.values
    return True


def _sent(result: Result) -> Any:
    """Wait until the response is sent, if it is streamed: until then its view runs. A flow."""
    if is_streamed(result.response):
        yield Collect(0, finish=False)
