"""What steps answer, and when a row counts."""

from __future__ import annotations

import pytest

from demijohn.core.step import EXPIRES, Outcome, live
from demijohn.errors import CorruptRecord


def test_values_are_of_the_type_that_is_asked_for() -> None:
    outcome = Outcome("word", (7, b"data"))
    assert outcome.integer(0) == 7
    assert outcome.data(1) == b"data"
    with pytest.raises(TypeError, match="value 1 of outcome 'word' is not an integer"):
        outcome.integer(1)
    with pytest.raises(TypeError, match="value 0 of outcome 'word' is not bytes"):
        outcome.data(0)


def test_row_ends_at_its_instant() -> None:
    row = {EXPIRES: 10}
    assert live(row, 9) is row
    assert live(row, 10) is None
    for broken in ({}, {EXPIRES: b"10"}):
        with pytest.raises(CorruptRecord):
            live(broken, 0)
