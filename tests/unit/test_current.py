"""What a view may ask of its own run."""

from __future__ import annotations

import uuid

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from demijohn.errors import UsageError
from demijohn.flow import state
from demijohn.idempotency import Attempt, InProgress, checkpoint, current, effects_done

app = Flask(__name__)


@given(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
def test_derived_key_is_stable_and_its_own(
    key_name: str, name: str, other_key_name: str, other: str
) -> None:
    first = Attempt("k", f"row:{key_name}".replace("\n", ""), attempt=1)
    again = Attempt("k", first.key_name, attempt=2)
    assert first.derive(name) == again.derive(name)
    assert uuid.UUID(first.derive(name)).version == 8
    another = Attempt("k", f"row:{other_key_name}".replace("\n", ""))
    same = (first.key_name, name) == (another.key_name, other)
    assert (first.derive(name) == another.derive(other)) == same


def test_derived_key_without_a_key_is_random() -> None:
    assert Attempt().derive("charge") != Attempt().derive("charge")


def test_run_knows_whether_it_is_a_retry_and_whether_it_was_lost() -> None:
    attempt = Attempt("k", "row", attempt=2)
    assert attempt.is_retry
    assert not attempt.lease_lost
    with app.test_request_context():
        state().idempotency = attempt
        checkpoint()
        attempt.lose()
        with pytest.raises(InProgress):
            checkpoint()
        effects_done()
        assert attempt.effects_are_done


def test_unprotected_requests_share_nothing_by_what_they_say() -> None:
    with app.test_request_context():
        effects_done()
        assert not current.effects_are_done
    with app.test_request_context():
        assert not current.effects_are_done
        assert (current.key, current.attempt, current.fence) == (None, 1, 0)


@pytest.mark.parametrize("ask", [effects_done, checkpoint, lambda: current.key])
def test_asking_outside_of_a_request_is_a_mistake(ask: object) -> None:
    with pytest.raises(UsageError, match="inside a request"):
        ask()  # type: ignore[operator]
    with app.app_context(), pytest.raises(UsageError, match="inside a request"):
        ask()  # type: ignore[operator]
