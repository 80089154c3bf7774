"""Every (state, event) pair of the table, the illegal ones too."""

from __future__ import annotations

import pytest

from demijohn.core.idempotency import TABLE, Event, Facts, State, diagram, transition

A, R, C, U, E = State
ALIVE, LAPSED = Facts(alive=True), Facts()
OWN = Facts(own=True)
OTHER = Facts(same_request=False)
REFUSES = Facts(refuses=True)
FRAME = Facts(has_frame=True)

CASES = [
    (A, Event.BEGIN, LAPSED, R, "run"),
    (A, Event.RENEW, LAPSED, A, "fenced"),
    (A, Event.COMPLETE, LAPSED, A, "fenced"),
    (A, Event.RELEASE, OWN, A, "released"),
    (A, Event.RELEASE, LAPSED, A, "fenced"),
    (A, Event.RESOLVE, LAPSED, A, "refused"),
    (R, Event.BEGIN, OTHER, R, "mismatch"),
    (R, Event.BEGIN, Facts(same_request=False, own=True, alive=True), R, "mismatch"),
    (R, Event.BEGIN, OWN, R, "run"),
    (R, Event.BEGIN, ALIVE, R, "busy"),
    (R, Event.BEGIN, Facts(alive=True, refuses=True), R, "busy"),
    (R, Event.BEGIN, REFUSES, U, "unknown"),
    (R, Event.BEGIN, LAPSED, R, "run"),
    (R, Event.RENEW, OWN, R, "renewed"),
    (R, Event.RENEW, ALIVE, R, "fenced"),
    (R, Event.COMPLETE, OWN, C, "completed"),
    (R, Event.COMPLETE, ALIVE, R, "fenced"),
    (R, Event.RELEASE, OWN, A, "released"),
    (R, Event.RELEASE, ALIVE, R, "fenced"),
    (R, Event.RESOLVE, ALIVE, R, "refused"),
    (R, Event.RESOLVE, FRAME, C, "resolved"),
    (R, Event.RESOLVE, LAPSED, A, "resolved"),
    (C, Event.BEGIN, OTHER, C, "mismatch"),
    (C, Event.BEGIN, LAPSED, C, "replay"),
    (C, Event.RENEW, OWN, C, "fenced"),
    (C, Event.COMPLETE, OWN, C, "completed"),
    (C, Event.COMPLETE, LAPSED, C, "fenced"),
    (C, Event.RELEASE, OWN, C, "fenced"),
    (C, Event.RESOLVE, FRAME, C, "refused"),
    (U, Event.BEGIN, OTHER, U, "mismatch"),
    (U, Event.BEGIN, LAPSED, U, "unknown"),
    (U, Event.RENEW, OWN, R, "renewed"),
    (U, Event.RENEW, LAPSED, U, "fenced"),
    (U, Event.COMPLETE, OWN, C, "completed"),
    (U, Event.COMPLETE, LAPSED, U, "fenced"),
    (U, Event.RELEASE, OWN, A, "released"),
    (U, Event.RELEASE, LAPSED, U, "fenced"),
    (U, Event.RESOLVE, FRAME, C, "resolved"),
    (U, Event.RESOLVE, LAPSED, A, "resolved"),
    (E, Event.BEGIN, LAPSED, E, "expired"),
    (E, Event.RENEW, OWN, E, "fenced"),
    (E, Event.COMPLETE, OWN, E, "fenced"),
    (E, Event.RELEASE, OWN, E, "fenced"),
    (E, Event.RESOLVE, FRAME, E, "refused"),
]


@pytest.mark.parametrize(("state", "event", "facts", "to", "status"), CASES)
def test_transition(state: State, event: Event, facts: Facts, to: State, status: str) -> None:
    change = transition(state, event, facts)
    assert (change.to, change.status) == (to, status)


def test_every_pair_is_in_the_table_and_every_cell_is_tested() -> None:
    assert set(TABLE) == {(state, event) for state in State for event in Event}
    cells = {(*pair, index) for pair, cell in TABLE.items() for index in range(len(cell))}
    tested = set()
    for state, event, facts, _, _ in CASES:
        cell = TABLE[state, event]
        holding = next(i for i, (condition, _) in enumerate(cell) if condition.holds(facts))
        tested.add((state, event, holding))
    assert tested == cells


def test_every_cell_ends_with_a_condition_that_always_holds() -> None:
    assert all(cell[-1][0].name == "" for cell in TABLE.values())


def test_refused_events_change_no_state() -> None:
    for (state, _), cell in TABLE.items():
        for _, change in cell:
            if change.status in {"fenced", "refused", "mismatch", "busy", "replay", "expired"}:
                assert change.to is state


def test_diagram_shows_each_change_of_state() -> None:
    drawn = diagram()
    assert drawn.startswith("stateDiagram-v2\n")
    assert "    RUNNING --> UNKNOWN: begin [on_lost=refuse] / unknown" in drawn
    assert "fenced" not in drawn
    for (state, event), cell in TABLE.items():
        for _, change in cell:
            if change.to is not state:
                assert f"    {state.name} --> {change.to.name}: {event.name.lower()}" in drawn
