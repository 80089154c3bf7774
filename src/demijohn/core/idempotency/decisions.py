"""What each event does to a row: the pure functions that stores run."""

from __future__ import annotations

from typing import Final, cast

from ...errors import CorruptRecord
from ..step import EXPIRES, Decision, Outcome, Row, Rows, Wake
from .table import Event, Facts, OnLost, State, Transition, transition

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

_STATES: Final = tuple(State)
_A, _R, _C, _U, _E = _STATES
_RUNNING, _COMPLETED = int(_R), int(_C)
_NO_FACTS: Final = Facts()
_OWNED: Final = Facts(own=True)


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


def decide_begin(
    rows: Rows,
    now_ms: int,
    fingerprint: bytes,
    token: bytes,
    lease_ms: int,
    retain_ms: int,
    on_lost: int,
    inbox: str,
) -> Decision:
    """Claim a key, or say what stands in the way; see :func:`steps.begin`."""
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


def decide_renew(rows: Rows, now_ms: int, token: bytes, lease_ms: int) -> Decision:
    """Extend a lease; see :func:`steps.renew`."""
    row, state, change = _owned(rows, now_ms, Event.RENEW, token)
    if change.status == "fenced":
        return _fenced(row, state)
    # Retention counts from the end of the lease, so both move together.
    moved = now_ms + lease_ms - _integer(row, LEASE_UNTIL)
    new = {**row, STATE: int(change.to), LEASE_UNTIL: now_ms + lease_ms}
    new[EXPIRES] = _integer(row, EXPIRES) + moved
    return Decision(Outcome("renewed"), {0: new})


def decide_complete(
    rows: Rows,
    now_ms: int,
    key: str,
    token: bytes,
    frame: bytes,
    ttl_ms: int,
    retain_ms: int,
    tombstone_ms: int,
) -> Decision:
    """Store a response; see :func:`steps.complete`."""
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


def decide_release(rows: Rows, now_ms: int, key: str, token: bytes, retain_ms: int) -> Decision:
    """Give a key back; see :func:`steps.release`."""
    row, state, change = _owned(rows, now_ms, Event.RELEASE, token)
    if change.status == "fenced":
        return _fenced(row, state)
    if state is State.ABSENT:  # the reply to the first release was lost
        return Decision(Outcome("released"))
    return Decision(Outcome("released"), {0: _released(row, now_ms, retain_ms)}, _wakes(key, row))


def decide_resolve(
    rows: Rows, now_ms: int, key: str, frame: bytes, ttl_ms: int, retain_ms: int
) -> Decision:
    """Decide as an operator; see :func:`steps.resolve`."""
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
