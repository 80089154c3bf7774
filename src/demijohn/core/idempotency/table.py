"""Which events lead from which state to which: the rules, and nothing else."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Final

import msgspec


class State(enum.IntEnum):
    """The states of a key."""

    ABSENT = 0
    RUNNING = 1
    COMPLETED = 2
    UNKNOWN = 3
    EXPIRED = 4


class Event(enum.IntEnum):
    """What can happen to a key."""

    BEGIN = 0
    RENEW = 1
    COMPLETE = 2
    RELEASE = 3
    RESOLVE = 4


class OnLost(enum.IntEnum):
    """What a duplicate does when the lease of the first request ended without a completion."""

    RUN = 0
    REFUSE = 1


class Facts(msgspec.Struct, frozen=True):
    """What a transition may depend on, besides state and event."""

    same_request: bool = True
    own: bool = False
    alive: bool = False
    refuses: bool = False
    has_frame: bool = False


class Condition(msgspec.Struct, frozen=True):
    """A named test of the facts; the name stands in the diagram."""

    name: str
    holds: Callable[[Facts], bool]


ALWAYS: Final = Condition("", lambda facts: True)
OTHER_REQUEST: Final = Condition("other request", lambda facts: not facts.same_request)
OWN: Final = Condition("own token", lambda facts: facts.own)
ALIVE: Final = Condition("lease alive", lambda facts: facts.alive)
REFUSES: Final = Condition("on_lost=refuse", lambda facts: facts.refuses)
HAS_FRAME: Final = Condition("with a response", lambda facts: facts.has_frame)


class Transition(msgspec.Struct, frozen=True):
    """Where a state goes, and the status word that is answered."""

    to: State
    status: str


_A, _R, _C, _U, _E = State
_BEGIN, _RENEW, _COMPLETE, _RELEASE, _RESOLVE = Event


def _always(to: State, status: str) -> tuple[tuple[Condition, Transition], ...]:
    return ((ALWAYS, Transition(to, status)),)


def _if_own(stays: State, to: State, status: str) -> tuple[tuple[Condition, Transition], ...]:
    return ((OWN, Transition(to, status)), (ALWAYS, Transition(stays, "fenced")))


TABLE: Final[dict[tuple[State, Event], tuple[tuple[Condition, Transition], ...]]] = {
    (_A, _BEGIN): _always(_R, "run"),
    (_A, _RENEW): _always(_A, "fenced"),
    (_A, _COMPLETE): _always(_A, "fenced"),
    (_A, _RELEASE): _if_own(_A, _A, "released"),
    (_A, _RESOLVE): _always(_A, "refused"),
    (_R, _BEGIN): (
        (OTHER_REQUEST, Transition(_R, "mismatch")),
        (OWN, Transition(_R, "run")),
        (ALIVE, Transition(_R, "busy")),
        (REFUSES, Transition(_U, "unknown")),
        (ALWAYS, Transition(_R, "run")),
    ),
    (_R, _RENEW): _if_own(_R, _R, "renewed"),
    (_R, _COMPLETE): _if_own(_R, _C, "completed"),
    (_R, _RELEASE): _if_own(_R, _A, "released"),
    (_R, _RESOLVE): (
        (ALIVE, Transition(_R, "refused")),
        (HAS_FRAME, Transition(_C, "resolved")),
        (ALWAYS, Transition(_A, "resolved")),
    ),
    (_C, _BEGIN): (
        (OTHER_REQUEST, Transition(_C, "mismatch")),
        (ALWAYS, Transition(_C, "replay")),
    ),
    (_C, _RENEW): _always(_C, "fenced"),
    (_C, _COMPLETE): _if_own(_C, _C, "completed"),
    (_C, _RELEASE): _always(_C, "fenced"),
    (_C, _RESOLVE): _always(_C, "refused"),
    (_U, _BEGIN): (
        (OTHER_REQUEST, Transition(_U, "mismatch")),
        (ALWAYS, Transition(_U, "unknown")),
    ),
    # The owner that was believed lost lives after all. Nobody ran in its place, so what it
    # says is the truth.
    (_U, _RENEW): _if_own(_U, _R, "renewed"),
    (_U, _COMPLETE): _if_own(_U, _C, "completed"),
    (_U, _RELEASE): _if_own(_U, _A, "released"),
    (_U, _RESOLVE): (
        (HAS_FRAME, Transition(_C, "resolved")),
        (ALWAYS, Transition(_A, "resolved")),
    ),
    (_E, _BEGIN): _always(_E, "expired"),
    (_E, _RENEW): _always(_E, "fenced"),
    (_E, _COMPLETE): _always(_E, "fenced"),
    (_E, _RELEASE): _always(_E, "fenced"),
    (_E, _RESOLVE): _always(_E, "refused"),
}
"""What each event does in each state, which is the first transition whose condition holds."""


# Looking up by position takes no hash, which enumerations compute in Python.
_CELLS: Final = tuple(tuple(TABLE[state, event] for event in Event) for state in State)


def transition(state: State, event: Event, facts: Facts) -> Transition:
    """Return the first transition of ``(state, event)`` whose condition holds."""
    for condition, candidate in _CELLS[state][event]:
        if condition.holds(facts):
            return candidate
    raise AssertionError("every cell of the table ends with ALWAYS")  # pragma: no cover


def diagram() -> str:
    """Draw :data:`TABLE` as a Mermaid state diagram; transitions that change nothing are left out.

    A status that refuses (``fenced``, ``refused``) never changes a state, and is not drawn.
    """
    return "\n".join(["stateDiagram-v2", *_edges()])


def _edges() -> Iterator[str]:
    for (state, event), cell in TABLE.items():
        for condition, change in cell:
            if change.status in {"fenced", "refused"}:
                continue
            test = f" [{condition.name}]" if condition.name else ""
            act = f"{event.name.lower()}{test} / {change.status}"
            yield f"    {state.name} --> {change.to.name}: {act}"
