"""What each step writes, wakes and answers, row by row."""

from __future__ import annotations

from typing import Any

import pytest

from demijohn.core import idempotency as core
from demijohn.core.idempotency import OnLost, State
from demijohn.core.step import EXPIRES, Decision, Outcome, Row, Step, decide
from demijohn.errors import CorruptRecord

NOW = 1_000_000
LEASE, RETAIN, TTL = 60_000, 600_000, 86_400_000


def begin(*names: str, **options: Any) -> Step:
    given: dict[str, Any] = {
        "fingerprint": b"f",
        "token": b"t",
        "lease_ms": LEASE,
        "retain_ms": RETAIN,
        **options,
    }
    return core.begin(names or ("k",), **given)


def complete(token: bytes = b"t", frame: bytes = b"frame", tombstone_ms: int = 0) -> Step:
    return core.complete(
        "k", token=token, frame=frame, ttl_ms=TTL, retain_ms=RETAIN, tombstone_ms=tombstone_ms
    )


def release(token: bytes = b"t") -> Step:
    return core.release("k", token=token, retain_ms=RETAIN)


def resolve(frame: bytes = b"") -> Step:
    return core.resolve("k", frame=frame, ttl_ms=TTL, retain_ms=RETAIN)


class Rows:
    """Rows on which steps are run one after the other, at instants of the test's choice."""

    def __init__(self) -> None:
        self.rows: dict[str, Row | None] = {}
        self.now_ms = NOW

    def run(self, step: Step, after_ms: int = 0) -> Decision:
        self.now_ms += after_ms
        made = decide(step, [self.rows.get(key) for key in step.keys], self.now_ms)
        for index, row in made.writes.items():
            self.rows[step.keys[index]] = row
        return made

    def outcome(self, step: Step, after_ms: int = 0) -> Outcome:
        return self.run(step, after_ms).outcome

    @property
    def row(self) -> Row:
        row = self.rows["k"]
        assert row is not None
        return row


@pytest.fixture
def rows() -> Rows:
    return Rows()


# --- begin --------------------------------------------------------------------------------------


def test_first_begin_runs_and_claims(rows: Rows) -> None:
    assert rows.outcome(begin()) == Outcome("run", (0, 1, 1, 0))
    assert rows.row[EXPIRES] == NOW + LEASE + RETAIN


def test_begin_whose_reply_was_lost_is_answered_as_before(rows: Rows) -> None:
    first = rows.outcome(begin())
    assert rows.outcome(begin(), after_ms=10) == first
    assert rows.row[core.SINCE] == NOW
    assert rows.row[core.LEASE_UNTIL] == NOW + 10 + LEASE


def test_every_process_that_waits_is_registered_once_and_woken(rows: Rows) -> None:
    rows.run(begin())
    for inbox in ("a", "b", "a", ""):
        busy = rows.outcome(begin(token=b"o", inbox=inbox), after_ms=1)
        assert busy.status == "busy"
        assert busy.halts
    assert busy.integer(1) == LEASE - 4
    (wake,) = rows.run(complete()).wakes
    assert (wake.key, wake.inboxes) == ("k", ("a", "b"))
    assert core.WAITERS not in rows.row


def test_takeover_counts_on_and_keeps_who_waits(rows: Rows) -> None:
    rows.run(begin())
    rows.run(begin(token=b"o", inbox="a"))
    assert rows.outcome(begin(token=b"o"), after_ms=LEASE) == Outcome("run", (0, 2, 2, 1))
    (wake,) = rows.run(release(b"o")).wakes
    assert wake.inboxes == ("a",)


def test_released_key_runs_as_the_next_attempt_and_is_no_takeover(rows: Rows) -> None:
    rows.run(begin())
    assert rows.outcome(release()) == Outcome("released")
    assert rows.outcome(begin(token=b"o", fingerprint=b"other")) == Outcome("run", (0, 2, 2, 0))


def test_expired_key_runs_as_a_first_attempt_with_a_higher_fence(rows: Rows) -> None:
    rows.run(begin())
    rows.run(complete())
    assert rows.outcome(begin(token=b"o"), after_ms=TTL - 1).status == "replay"
    assert rows.outcome(begin(token=b"o"), after_ms=1) == Outcome("run", (0, 2, 1, 0))


def test_tombstone_refuses_any_request(rows: Rows) -> None:
    rows.run(begin())
    rows.run(complete(tombstone_ms=2 * RETAIN))
    for fingerprint in (b"f", b"other"):
        outcome = rows.outcome(begin(token=b"o", fingerprint=fingerprint), after_ms=TTL)
        assert outcome == Outcome("expired", (0,), halts=True)
        rows.now_ms = NOW
    assert rows.row[EXPIRES] == NOW + TTL + 2 * RETAIN


def test_lost_key_that_is_refused_stays_so(rows: Rows) -> None:
    rows.run(begin())
    rows.run(begin(token=b"o", inbox="a"))
    refuse = begin(token=b"o", on_lost=OnLost.REFUSE)
    lost = rows.outcome(refuse, after_ms=LEASE)
    assert lost == Outcome("unknown", (0, NOW + LEASE), halts=True)
    assert core.WAITERS not in rows.row
    assert rows.outcome(refuse, after_ms=5) == lost
    assert rows.outcome(begin(token=b"o")) == lost  # whatever this route would do
    assert rows.outcome(begin(token=b"o", fingerprint=b"x")).status == "mismatch"


# --- while the secret is rotated ----------------------------------------------------------------


def test_record_is_found_under_an_earlier_name(rows: Rows) -> None:
    rows.run(begin())
    rows.run(complete())
    assert rows.outcome(begin("new", "k", token=b"o")) == Outcome(
        "replay", (1, b"frame"), halts=True
    )
    assert "new" not in rows.rows


def test_new_key_is_claimed_under_the_current_name(rows: Rows) -> None:
    assert rows.outcome(begin("new", "k")) == Outcome("run", (0, 1, 1, 0))
    assert set(rows.rows) == {"new"}


def test_fence_counts_on_where_it_lies(rows: Rows) -> None:
    rows.run(begin())
    rows.run(release())
    assert rows.outcome(begin("new", "k", token=b"o")) == Outcome("run", (1, 2, 2, 0))
    assert set(rows.rows) == {"k"}


def test_first_remains_count_where_there_are_several(rows: Rows) -> None:
    for name in ("new", "k"):
        rows.run(begin(name))
        rows.run(core.release(name, token=b"t", retain_ms=RETAIN))
    assert rows.outcome(begin("new", "k", token=b"o")).integer(0) == 0


# --- renew, complete, release -------------------------------------------------------------------


def test_renewal_moves_lease_and_retention(rows: Rows) -> None:
    rows.run(begin())
    renew = core.renew("k", token=b"t", lease_ms=LEASE)
    assert rows.outcome(renew, after_ms=10) == Outcome("renewed")
    assert rows.row[core.LEASE_UNTIL] == NOW + 10 + LEASE
    assert rows.row[EXPIRES] == NOW + 10 + LEASE + RETAIN


def test_owner_that_was_believed_lost_lives_on(rows: Rows) -> None:
    rows.run(begin())
    rows.run(begin(token=b"o", on_lost=OnLost.REFUSE), after_ms=LEASE)
    assert rows.outcome(core.renew("k", token=b"t", lease_ms=LEASE)) == Outcome("renewed")
    assert rows.row[core.STATE] == State.RUNNING
    assert rows.outcome(complete()) == Outcome("completed")


@pytest.mark.parametrize("step", [complete(), release()], ids=["complete", "release"])
def test_repeated_end_is_answered_as_before_and_writes_nothing(rows: Rows, step: Step) -> None:
    rows.run(begin())
    first = rows.outcome(step)
    again = rows.run(step)
    assert (again.outcome, again.writes, again.wakes) == (first, {}, ())


@pytest.mark.parametrize(
    "step",
    [complete(), release(), core.renew("k", token=b"t", lease_ms=LEASE)],
    ids=["complete", "release", "renew"],
)
def test_late_step_is_fenced_and_told_what_the_winner_has(rows: Rows, step: Step) -> None:
    assert rows.outcome(step) == Outcome("fenced", (State.ABSENT, b""))
    rows.run(begin())
    rows.run(begin(token=b"o"), after_ms=LEASE)
    late = rows.run(step)
    assert (late.outcome, late.writes) == (Outcome("fenced", (State.RUNNING, b"")), {})
    rows.run(complete(b"o", b"winner's"))
    assert rows.outcome(step) == Outcome("fenced", (State.COMPLETED, b"winner's"))


def test_owner_cannot_release_what_it_has_completed(rows: Rows) -> None:
    rows.run(begin())
    rows.run(complete())
    assert rows.outcome(release()) == Outcome("fenced", (State.COMPLETED, b"frame"))


# --- resolve ------------------------------------------------------------------------------------


def test_operator_decides_a_lost_key_and_its_owner_is_fenced(rows: Rows) -> None:
    rows.run(begin())
    assert rows.outcome(resolve()) == Outcome("refused", (State.RUNNING,))
    rows.run(begin(token=b"o", on_lost=OnLost.REFUSE), after_ms=LEASE)
    assert rows.outcome(resolve(b"decided")) == Outcome("resolved")
    assert rows.outcome(complete()).status == "fenced"
    assert rows.outcome(begin(token=b"o")) == Outcome("replay", (0, b"decided"), halts=True)
    assert rows.outcome(resolve()) == Outcome("refused", (State.COMPLETED,))


def test_operator_lets_a_lost_key_run_again(rows: Rows) -> None:
    rows.run(begin())
    rows.now_ms += LEASE  # nobody has come since
    assert rows.outcome(resolve()) == Outcome("resolved")
    for late in (complete(), release()):
        assert rows.outcome(late).status == "fenced"
    assert rows.outcome(begin(token=b"o")) == Outcome("run", (0, 2, 2, 0))


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [None, -1, 5, b"1"])
@pytest.mark.parametrize("step", [begin(), begin("new", "k"), complete(), release(), resolve()])
def test_row_without_a_valid_state_is_never_taken_for_absent(state: Any, step: Step) -> None:
    row = {EXPIRES: NOW + 1}
    if state is not None:
        row[core.STATE] = state
    rows = [row if key == "k" else None for key in step.keys]
    with pytest.raises(CorruptRecord):
        decide(step, rows, NOW)
