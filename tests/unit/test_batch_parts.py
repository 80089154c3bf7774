"""What batches are made of."""

from __future__ import annotations

import pytest

from demijohn.core.batch import Malformed, Unresolved, field, response_id, without_response


def test_mistake_keeps_the_place_that_is_known_more_exactly() -> None:
    error = Malformed("bad-id", "x")
    assert (error.at(1).part, error.id) == (1, None)
    assert (error.at(2, "a").part, error.id) == (1, "a")
    assert (error.at(3, "b").part, error.id) == (1, "a")


def test_mistake_quotes_a_little_of_what_was_sent() -> None:
    assert Malformed("bad-id", "x" * 300).detail == "x" * 300
    assert Malformed("bad-id", "x" * 301).detail == str(Malformed("", "x" * 301))
    assert Malformed("bad-id", "x" * 301).detail == "x" * 297 + "..."
    assert str(Unresolved("x" * 1_000_000)) == "x" * 297 + "..."


def test_first_field_of_a_name_counts_in_any_case() -> None:
    fields = (("A", "1"), ("a", "2"))
    assert field(fields, "a") == "1"
    assert field(fields, "b") is None


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("1", "response-1"),
        ("<a + 1>", "<response-a + 1>"),
        ("<a", "response-<a"),
        ("<>", "<response->"),
        ("response-1", "response-response-1"),
    ],
)
def test_answer_is_named_after_its_part(name: str, answer: str) -> None:
    assert response_id(name) == answer
    assert without_response(answer) == name


def test_name_that_is_no_answers_is_left_alone() -> None:
    assert without_response("<a>") == "<a>"
