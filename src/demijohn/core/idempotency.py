"""The decisions of idempotent requests.

Theory of operation. One row per idempotency key. The first request *begins*: the row says RUNNING,
with a random token (who), a fence (a number that only grows), a fingerprint (which request) and a
lease. It *completes* with the response, or is *released* so that a retry may run. While the view
runs its lease is *renewed*. A second request meets one of::

    completed, same request      -> replay       the stored response
    running, lease alive         -> busy         wait, and look again when woken
    running, lease lapsed        -> run          takes over: attempt + 1, fence + 1
                                 or unknown      with on_lost=refuse: kept for an operator
    any, another request         -> mismatch     wins over busy, so a client learns at once

Only the holder of the token may renew, complete or release; anyone else is *fenced*. A worker that
was paused past its lease is therefore refused when it wakes, and learns what the winner stored.

Repeating a step whose reply was lost is safe: begin, complete and release by the same token find
their own work done and answer as before.

The row outlives its content. A released or expired record keeps the fence (and the attempt) for
the retention, so that fences never go backwards while a zombie of an earlier attempt may live.

The rules are :data:`TABLE`, executed by :func:`transition`; the diagram in the documentation is
drawn from it by :func:`diagram`, and ``core/lua/idempotency_*.lua`` are its twins.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Final, cast

import msgspec

from demijohn.errors import CorruptRecord

from .step import EXPIRES, Decision, Outcome, Row, Rows, Step, StepKind, Wake

# Row fields. One letter each: they are stored with every record.
STATE: Final = "s"
FENCE: Final = "f"
ATTEMPT: Final = "a"
TOKEN: Final = "t"
FINGERPRINT: Final = "p"
LEASE_UNTIL: Final = "l"
UNTIL: Final = "u"  # the end of the retention of what was completed
TOMBSTONE: Final = "k"  # 1: after UNTIL the key answers "expired" instead of running anew
FRAME: Final = "r"
WAITERS: Final = "w"  # inboxes, separated by line feeds
SINCE: Final = "c"  # when the record entered its state


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


_STATES: Final = tuple(State)
_A, _R, _C, _U, _E = _STATES
_RUNNING, _COMPLETED = int(_R), int(_C)
_NO_FACTS: Final = Facts()
_OWNED: Final = Facts(own=True)
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


# Stores give back the types that were written, or raise CorruptRecord.
def _integer(row: Row, name: str) -> int:
    return cast("int", row.get(name, 0))


def _data(row: Row, name: str) -> bytes:
    return cast("bytes", row.get(name, b""))


def state_of(row: Row | None, now_ms: int) -> State:
    """Return the state of a key from its row: a completed record ends when its retention does.

    Raises:
        CorruptRecord: the row does not say, or names a state that there is not. To take it for
            absent would run a request twice.
    """
    if row is None:
        return State.ABSENT
    number = row.get(STATE)
    if not isinstance(number, int) or not 0 <= number < len(_STATES):
        raise CorruptRecord("the row has no valid state")
    state = _STATES[number]
    if state is _C and now_ms >= _integer(row, UNTIL):
        return _E if _integer(row, TOMBSTONE) else _A
    return state


def _wakes(key: str, row: Row) -> tuple[Wake, ...]:
    waiters = _data(row, WAITERS)
    return (Wake(key, tuple(waiters.decode().split("\n")) if waiters else ()),)


# --- begin -------------------------------------------------------------------------------------


def _decide_begin(
    rows: Rows,
    now_ms: int,
    fingerprint: bytes,
    token: bytes,
    lease_ms: int,
    retain_ms: int,
    on_lost: int,
    inbox: str,
) -> Decision:
    index, row, state = _found(rows, now_ms)
    facts = _NO_FACTS
    if state is not _A:
        facts = Facts(
            same_request=_data(row, FINGERPRINT) == fingerprint,
            own=_data(row, TOKEN) == token,
            alive=now_ms < _integer(row, LEASE_UNTIL),
            refuses=on_lost == OnLost.REFUSE,
        )
    change = transition(state, Event.BEGIN, facts)
    if change.status == "run":
        return _run(index, row, state, now_ms, facts, (fingerprint, token, lease_ms, retain_ms))
    if change.status == "busy":
        return _busy(index, row, now_ms, inbox)
    if change.status == "unknown":
        return _unknown(index, row, state, now_ms)
    if change.status == "replay":
        return Decision(Outcome("replay", (index, _data(row, FRAME)), halts=True))
    return Decision(Outcome(change.status, (index,), halts=True))


def _found(rows: Rows, now_ms: int) -> tuple[int, Row, State]:
    """Return the row to work on: the first that holds a record, else the first that ever did.

    There is more than one row only while the secret is being rotated: the record may lie under
    the name that an earlier secret gave it. The fence of a finished record counts wherever it is.
    """
    if len(rows) == 1:
        return 0, rows[0] or {}, state_of(rows[0], now_ms)
    remains: tuple[int, Row] | None = None
    for index, row in enumerate(rows):
        state = state_of(row, now_ms)
        if row is not None and state is not State.ABSENT:
            return index, row, state
        if row is not None and remains is None:
            remains = (index, row)
    index, row = remains or (0, {})
    return index, row, State.ABSENT


def _run(
    index: int,
    row: Row,
    state: State,
    now_ms: int,
    facts: Facts,
    claim: tuple[bytes, bytes, int, int],
) -> Decision:
    fingerprint, token, lease_ms, retain_ms = claim
    repeated = state is _R and facts.own
    fence, attempt, since = 1, 1, now_ms
    if repeated:
        fence, attempt = _integer(row, FENCE), _integer(row, ATTEMPT)
        since = _integer(row, SINCE)
    elif row:
        # An attempt goes on counting after a loss or a release; a completed record ended one.
        fence = _integer(row, FENCE) + 1
        attempt = 1 if row[STATE] == _C else _integer(row, ATTEMPT) + 1
    taken_over = state is _R and not repeated
    new: dict[str, int | bytes] = {
        STATE: _RUNNING,
        FENCE: fence,
        ATTEMPT: attempt,
        TOKEN: token,
        FINGERPRINT: fingerprint,
        LEASE_UNTIL: now_ms + lease_ms,
        SINCE: since,
        EXPIRES: now_ms + lease_ms + retain_ms,
    }
    if state is _R and WAITERS in row:
        new[WAITERS] = row[WAITERS]
    return Decision(Outcome("run", (index, fence, attempt, int(taken_over))), {index: new})


def _busy(index: int, row: Row, now_ms: int, inbox: str) -> Decision:
    left_ms = _integer(row, LEASE_UNTIL) - now_ms
    outcome = Outcome("busy", (index, left_ms), halts=True)
    waiters = _data(row, WAITERS)
    known = waiters.split(b"\n") if waiters else []
    if not inbox or inbox.encode() in known:
        return Decision(outcome)
    return Decision(outcome, {index: {**row, WAITERS: b"\n".join([*known, inbox.encode()])}})


def _unknown(index: int, row: Row, state: State, now_ms: int) -> Decision:
    if state is State.UNKNOWN:
        return Decision(Outcome("unknown", (index, _integer(row, SINCE)), halts=True))
    new = {name: value for name, value in row.items() if name != WAITERS}
    new |= {STATE: int(State.UNKNOWN), SINCE: now_ms}
    return Decision(Outcome("unknown", (index, now_ms), halts=True), {index: new})


# --- renew, complete, release, resolve ---------------------------------------------------------


def _owned(rows: Rows, now_ms: int, event: Event, token: bytes) -> tuple[Row, State, Transition]:
    row = rows[0] or {}
    state = state_of(rows[0], now_ms)
    facts = _OWNED if row.get(TOKEN) == token else _NO_FACTS
    return row, state, transition(state, event, facts)


def _fenced(row: Row, state: State) -> Decision:
    frame = _data(row, FRAME) if state is State.COMPLETED else b""
    return Decision(Outcome("fenced", (int(state), frame)))


def _decide_renew(rows: Rows, now_ms: int, token: bytes, lease_ms: int) -> Decision:
    row, state, change = _owned(rows, now_ms, Event.RENEW, token)
    if change.status == "fenced":
        return _fenced(row, state)
    # Retention counts from the end of the lease, so both move together.
    moved = now_ms + lease_ms - _integer(row, LEASE_UNTIL)
    new = {**row, STATE: int(change.to), LEASE_UNTIL: now_ms + lease_ms}
    new[EXPIRES] = _integer(row, EXPIRES) + moved
    return Decision(Outcome("renewed"), {0: new})


def _decide_complete(
    rows: Rows,
    now_ms: int,
    key: str,
    token: bytes,
    frame: bytes,
    ttl_ms: int,
    retain_ms: int,
    tombstone_ms: int,
) -> Decision:
    row, state, change = _owned(rows, now_ms, Event.COMPLETE, token)
    if change.status == "fenced":
        return _fenced(row, state)
    if state is State.COMPLETED:  # the reply to the first completion was lost
        return Decision(Outcome("completed"))
    new = _completed(row, now_ms, frame, ttl_ms, retain_ms, tombstone_ms)
    return Decision(Outcome("completed"), {0: new}, _wakes(key, row))


def _completed(
    row: Row, now_ms: int, frame: bytes, ttl_ms: int, retain_ms: int, tombstone_ms: int
) -> Row:
    return {
        STATE: _COMPLETED,
        FENCE: _integer(row, FENCE),
        ATTEMPT: _integer(row, ATTEMPT),
        TOKEN: _data(row, TOKEN),
        FINGERPRINT: _data(row, FINGERPRINT),
        FRAME: frame,
        UNTIL: now_ms + ttl_ms,
        TOMBSTONE: int(tombstone_ms > 0),
        SINCE: now_ms,
        EXPIRES: now_ms + ttl_ms + max(retain_ms, tombstone_ms),
    }


def _released(row: Row, now_ms: int, retain_ms: int) -> Row:
    return {
        STATE: int(State.ABSENT),
        FENCE: _integer(row, FENCE),
        ATTEMPT: _integer(row, ATTEMPT),
        TOKEN: _data(row, TOKEN),
        SINCE: now_ms,
        EXPIRES: now_ms + retain_ms,
    }


def _decide_release(rows: Rows, now_ms: int, key: str, token: bytes, retain_ms: int) -> Decision:
    row, state, change = _owned(rows, now_ms, Event.RELEASE, token)
    if change.status == "fenced":
        return _fenced(row, state)
    if state is State.ABSENT:  # the reply to the first release was lost
        return Decision(Outcome("released"))
    return Decision(Outcome("released"), {0: _released(row, now_ms, retain_ms)}, _wakes(key, row))


def _decide_resolve(
    rows: Rows, now_ms: int, key: str, frame: bytes, ttl_ms: int, retain_ms: int
) -> Decision:
    row = rows[0] or {}
    state = state_of(rows[0], now_ms)
    facts = Facts(alive=now_ms < _integer(row, LEASE_UNTIL), has_frame=bool(frame))
    change = transition(state, Event.RESOLVE, facts)
    if change.status == "refused":
        return Decision(Outcome("refused", (int(state),)))
    # Without a token the owner that may still live is fenced from here on.
    ended = {**row, TOKEN: b""}
    new = (
        _completed(ended, now_ms, frame, ttl_ms, retain_ms, 0)
        if change.to is State.COMPLETED
        else _released(ended, now_ms, retain_ms)
    )
    return Decision(Outcome("resolved"), {0: new}, _wakes(key, row))


BEGIN: Final = StepKind(
    "idempotency.begin", _decide_begin, "demijohn.core.lua/idempotency_begin.lua", True
)
RENEW: Final = StepKind(
    "idempotency.renew", _decide_renew, "demijohn.core.lua/idempotency_renew.lua"
)
COMPLETE: Final = StepKind(
    "idempotency.complete", _decide_complete, "demijohn.core.lua/idempotency_complete.lua"
)
RELEASE: Final = StepKind(
    "idempotency.release", _decide_release, "demijohn.core.lua/idempotency_release.lua"
)
RESOLVE: Final = StepKind(
    "idempotency.resolve", _decide_resolve, "demijohn.core.lua/idempotency_resolve.lua"
)


def begin(
    keys: tuple[str, ...],
    *,
    fingerprint: bytes,
    token: bytes,
    lease_ms: int,
    retain_ms: int,
    on_lost: OnLost = OnLost.RUN,
    inbox: str = "",
) -> Step:
    """Claim a key, or learn what stands in the way.

    Args:
        keys: the name of the row; during a rotation of the secret the earlier names behind it.
        fingerprint: digest of the request.
        token: random bytes that say who holds the claim.
        lease_ms: how long the claim stands without renewal, in milliseconds.
        retain_ms: how long a lost or released record keeps its fence, in milliseconds.
        on_lost: what to do about a lapsed lease.
        inbox: where this process hears of wake-ups; ``""`` to register nowhere.

    Returns:
        A step that answers ``run(index, fence, attempt, taken_over)``, or halts with
        ``replay(index, frame)``, ``busy(index, lease_left_ms)``, ``unknown(index, since_ms)``,
        ``mismatch(index)`` or ``expired(index)``, where ``index`` is that of the key.
    """
    return Step(BEGIN, keys, (fingerprint, token, lease_ms, retain_ms, int(on_lost), inbox))


def renew(key: str, *, token: bytes, lease_ms: int) -> Step:
    """Extend the lease to ``lease_ms`` from now: ``renewed()`` or ``fenced(state, frame)``."""
    return Step(RENEW, (key,), (token, lease_ms))


def complete(
    key: str, *, token: bytes, frame: bytes, ttl_ms: int, retain_ms: int, tombstone_ms: int = 0
) -> Step:
    """Store the response for ``ttl_ms``: ``completed()`` or ``fenced(state, frame)``.

    With ``tombstone_ms`` the key answers ``expired`` for that long after ``ttl_ms``.
    """
    return Step(COMPLETE, (key,), (key, token, frame, ttl_ms, retain_ms, tombstone_ms))


def release(key: str, *, token: bytes, retain_ms: int) -> Step:
    """Give the key back so that a retry runs: ``released()`` or ``fenced(state, frame)``."""
    return Step(RELEASE, (key,), (key, token, retain_ms))


def resolve(key: str, *, frame: bytes, ttl_ms: int, retain_ms: int) -> Step:
    """Decide a key whose outcome is unknown, as an operator: ``resolved()`` or ``refused(state)``.

    With a ``frame`` the key is completed by it; with ``b""`` a retry may run. A running key whose
    lease is alive is refused.
    """
    return Step(RESOLVE, (key,), (key, frame, ttl_ms, retain_ms))
