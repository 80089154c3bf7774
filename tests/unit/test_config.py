"""Settings are checked where they were written, and the nearest right name is told."""

from __future__ import annotations

import string
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from demijohn import config
from demijohn.config import LONGEST_MS, Parser, setting
from demijohn.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Sample:
    wait_ms: int = setting("wait", config.milliseconds(), 10)
    lease_ms: int = setting("lease", config.milliseconds(100), 60)
    required: bool = setting("required", config.boolean, False)
    store: str = setting("store", config.choice("final", "all"), "final")
    most: int | None = setting("most", config.optional(config.integer(0)), None)


NAMES = ("wait", "lease", "required", "store", "most")


def parse(**given: object) -> dict[str, object]:
    return config.parse_layer(Sample, "SAMPLE", given)


def test_layer_gives_fields_by_their_own_names() -> None:
    given: dict[str, Any] = {"wait": 1.5, "LEASE": timedelta(minutes=1), "most": None}
    assert parse(**given) == {"wait_ms": 1500, "lease_ms": 60_000, "most": None}


def test_later_layer_wins_and_defaults_fill_the_rest() -> None:
    made = config.combine(Sample, {"wait_ms": 1, "most": 1}, {"wait_ms": 2})
    assert made == Sample(wait_ms=2, lease_ms=60_000, required=False, store="final", most=1)


@given(st.sampled_from(NAMES), st.data())
def test_misspelt_name_is_told_the_nearest(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(name)))
    letter = data.draw(st.sampled_from(string.ascii_lowercase))
    misspelt = name[:place] + letter + name[place:]
    assume(misspelt not in NAMES)
    with pytest.raises(ConfigError) as caught:
        parse(**{misspelt: 1})
    words = str(caught.value)
    assert f"SAMPLE has the unknown setting {misspelt!r}" in words
    assert f"did you mean {name!r}?" in words


@given(st.text().filter(lambda name: name.lower() not in NAMES))
def test_any_unknown_name_is_refused_with_a_cure(name: str) -> None:
    with pytest.raises(ConfigError, match=r"did you mean '[a-z]+'\?|known are lease, most"):
        parse(**{name: 1})


def test_name_that_is_near_to_none_is_told_all() -> None:
    with pytest.raises(ConfigError, match="known are lease, most, required, store, wait"):
        parse(zzzzzzz=1)


def test_name_that_is_no_string_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="unknown setting '7'"):
        config.parse_layer(Sample, "SAMPLE", {7: 1})  # type: ignore[dict-item]


anything = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.timedeltas()
    | st.lists(st.integers() | st.lists(st.integers()) | st.text())
    | st.dictionaries(st.text(), st.integers())
    | st.builds(object)
)


@given(st.sampled_from(NAMES), anything)
def test_any_value_is_taken_or_refused_with_its_place(name: str, value: object) -> None:
    refused = ""
    try:
        parse(**{name: value})
    except ConfigError as error:
        refused = str(error)
    assert not refused or refused.startswith(f"SAMPLE[{name!r}] must be ")


@given(st.integers(0, LONGEST_MS))
def test_duration_is_the_same_however_it_is_written(milliseconds: int) -> None:
    parse_duration = config.milliseconds()
    assert parse_duration(timedelta(milliseconds=milliseconds)) == milliseconds
    assert parse_duration(milliseconds / 1000) == milliseconds


@pytest.mark.parametrize(
    ("parser", "good", "bad"),
    [
        (
            config.milliseconds(100),
            [(0.1, 100), (timedelta(seconds=1), 1000), (3, 3000)],
            [0.09, -1, True, "1", None, float("nan"), float("inf"), 1e300, timedelta.max],
        ),
        (config.integer(1), [(1, 1)], [0, True, 1.0, "1", None]),
        (config.boolean, [(True, True), (False, False)], [0, 1, "true", None]),
        (config.text, [("x", "x")], ["", 1, None, b"x"]),
        (config.choice("a", "b"), [("a", "a")], ["c", "", None, ["a"]]),
        (
            config.words(str.upper),
            [("a, b", ("A", "B")), (["a"], ("A",)), (("a", "b"), ("A", "B")), ([], ())],
            ["", "a,", [""], [1], 1, None],
        ),
        (config.function, [(len, len)], [None, "len"]),
        (config.optional(config.integer(0)), [(None, None), (0, 0)], [-1, "0"]),
    ],
    ids=["duration", "integer", "boolean", "text", "choice", "words", "function", "optional"],
)
def test_parser(parser: Parser, good: list[tuple[object, object]], bad: list[object]) -> None:
    for value, expected in good:
        assert parser(value) == expected
    for value in bad:
        with pytest.raises(ValueError, match="must be"):
            parser(value)
