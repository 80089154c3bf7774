"""What clients are told: the fields of every response, and the refusals."""

from __future__ import annotations

import logging
import random
from typing import Final

from flask import Response, after_this_request

from ..core import limits as core
from ..flow import Call
from . import headers, signals
from .asking import Asked
from .headers import Standing
from .refusals import CapacityReduced, QuotaExceeded
from .settings import Settings
from .shedding import Shedder
from .tally import Tally

log = logging.getLogger("demijohn.limits")

SHED_RETRY_S: Final = 1


class Answers:
    """Tells clients, for one application.

    Args:
        settings: of the application.
        tally: counts refusals.
    """

    def __init__(self, settings: Settings, tally: Tally) -> None:
        self._draft = "draft" in settings.headers
        self._legacy = "legacy" in settings.headers
        self._speaks = self._draft or self._legacy
        self._jitter_s = settings.jitter_ms / 1000
        self._tally = tally
        self._warned: set[str] = set()

    def admitted(self, call: Call, asked: Asked) -> None:
        """Note that a request passes its limits."""
        if asked.settles:
            self._say(asked)  # a stream is on its way before what is owed is settled
        if any(asked.values[core.FIRST + 2 :: 3]) and signals.shadowed.receivers:
            names = [asked.entries[index].name for index in asked.shadowed()]
            signals.shadowed.send(call.app, endpoint=call.request.endpoint, policies=names)

    def concluded(self, asked: Asked, response: Response | None) -> None:
        """Have the response say how the limits stand."""
        if asked.settles or not asked.policy:
            return
        if response is None:
            self._say(asked)  # it is still to be rendered
        elif self._speaks:
            self._write(asked, response)

    def refused(self, call: Call, asked: Asked, *, cached: bool) -> QuotaExceeded:
        """Return the refusal of a request that is over its limits."""
        self._say(asked)
        violated = asked.violated()
        names = [asked.entries[index].name for index in violated]
        for index in violated:
            label = f"{call.request.endpoint} {asked.entries[index].name}"
            self._tally.note(asked.keys[index], label)
        if signals.refused.receivers:
            signals.refused.send(
                call.app,
                endpoint=call.request.endpoint,
                policies=names,
                keys=[asked.keys[index] for index in violated],
                cached=cached,
            )
        waits = [asked.values[core.FIRST + index * 3 + 2] for index in violated]
        if core.NEVER in waits:
            return self._never(asked, violated, names)
        seconds = max(headers.seconds(max(waits)), 1) + self._jitter()
        listed = ", ".join(names)
        detail = f"Over the limit of {listed}. Try again in {seconds} s."
        return QuotaExceeded(
            detail, retry_after=seconds, extensions={"violated-policies": list(names)}
        )

    def _never(self, asked: Asked, violated: list[int], names: list[str]) -> QuotaExceeded:
        for index in violated:
            entry, cost = asked.entries[index], asked.rules[index][4]
            if entry.rule[1] and entry.suffix not in self._warned:
                self._warned.add(entry.suffix)
                log.warning(
                    "a request costs %d, more than the limit %s ever admits", cost, entry.name
                )
        return QuotaExceeded(
            f"This request is more than the limit of {', '.join(names)} ever admits.",
            extensions={"violated-policies": list(names)},
        )

    def shed(self, call: Call, shedder: Shedder) -> CapacityReduced:
        """Return the refusal of a request for which there is no room."""
        if signals.shed.receivers:
            signals.shed.send(
                call.app,
                endpoint=call.request.endpoint,
                running=shedder.running,
                capacity=shedder.capacity,
            )
        return CapacityReduced(
            "The server has as much to do as it can. Nothing was done; try again.",
            retry_after=SHED_RETRY_S + self._jitter(),
        )

    def _jitter(self) -> int:
        return round(random.uniform(0, self._jitter_s)) if self._jitter_s else 0  # noqa: S311

    def _say(self, asked: Asked) -> None:
        if not self._speaks:
            return

        def say(response: Response) -> Response:
            self._write(asked, response)
            return response

        after_this_request(say)

    def _write(self, asked: Asked, response: Response) -> None:
        # What is redirected is asked for anew elsewhere; a limit of nothing left would stop it.
        if not asked.policy or 300 <= response.status_code < 400:
            return
        at, values, fields = core.FIRST, asked.values, response.headers
        if self._draft:
            states = []
            for entry in asked.entries[: asked.count]:
                if not entry.shadow:
                    state, reset_ms = f"{entry.quoted};r={values[at]}", values[at + 1]
                    states.append(f"{state};t={-(-reset_ms // 1000)}" if reset_ms > 0 else state)
                at += 3
            # Added, not set: a view within this view may have limits of its own.
            fields.add("RateLimit-Policy", asked.policy)
            fields.add("RateLimit", ", ".join(states))
        if self._legacy:
            for name, value in headers.legacy(_standings(asked), values[1]):
                fields[name] = value


def _standings(asked: Asked) -> list[Standing]:
    return [
        Standing(entry.name, entry.rule[1], *asked.values[at : at + 2])
        for entry, at in zip(
            asked.entries[: asked.count], range(core.FIRST, len(asked.values), 3), strict=False
        )
        if not entry.shadow
    ]
