"""What parts say of one another: ids, dependencies, groups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demijohn.core.batch import Malformed, Part, Plan, Unit, plan


def part(name: str | None = None, *needs: str, group: str | None = None, target: str = "/") -> Part:
    return Part("GET", target, (), b"", name, group, needs)


def planned(*parts: Part, ignore_case: bool = True, atomic: bool = False) -> Plan:
    return plan(parts, ignore_case=ignore_case, references=True, atomic=atomic)


def refusal(*parts: Part, ignore_case: bool = True, atomic: bool = False) -> tuple[str, int | None]:
    with pytest.raises(Malformed) as caught:
        planned(*parts, ignore_case=ignore_case, atomic=atomic)
    return caught.value.kind, caught.value.part


def test_parts_without_groups_run_one_by_one() -> None:
    found = planned(part("a"), part(), part("<b>", "a"))
    assert found.units == [Unit((0,)), Unit((1,)), Unit((2,))]
    assert found.ids == {"a": 0, "b": 2}
    assert found.needs == [frozenset(), frozenset(), frozenset({0})]


def test_parts_of_a_group_run_as_one() -> None:
    found = planned(
        part("a", group="g"), part("b", "a", group="g"), part("c", group="h"), part("d", "g", "h")
    )
    assert found.units == [Unit((0, 1), "g"), Unit((2,), "h"), Unit((3,))]
    assert found.needs == [frozenset(), frozenset({0}), frozenset(), frozenset({0, 1, 2})]


def test_references_are_dependencies() -> None:
    parts = [part("a"), part("b"), part("c", "a", target="$b/x"), part("d", target="/@{a.body}")]
    assert planned(*parts).needs[2:] == [frozenset({0, 1}), frozenset({0})]
    without = plan(parts, ignore_case=True, references=False, atomic=False)
    assert without.needs[2:] == [frozenset({0}), frozenset()]


def test_atomic_batch_is_one_unit_whose_parts_may_name_their_groups() -> None:
    found = planned(part("a", group="g"), part("b", "g"), atomic=True)
    assert found.units == [Unit((0, 1), "batch")]
    assert found.needs == [frozenset(), frozenset({0})]


def test_atomic_batch_may_have_a_part_of_its_own_name() -> None:
    assert planned(part("batch"), part("b", "batch"), atomic=True).needs[1] == frozenset({0})


@pytest.mark.parametrize(
    ("parts", "kind", "number"),
    [
        ([part("a"), part("a")], "bad-id", 1),
        ([part("a"), part("b"), part("A")], "bad-id", 2),
        ([part("stra\xdfe"), part("STRASSE")], "bad-id", 1),
        ([part("<a>"), part("a")], "bad-id", 1),
        ([part("a", group="a")], "bad-id", 0),
        ([part("a"), part("b", group="A")], "bad-id", 1),
        ([part("<g>"), part(group="g")], "bad-id", 1),
        ([part(group="g"), part(), part(group="g")], "bad-dependency", 2),
        ([part(group="g"), part(group="h"), part(group="G")], "bad-dependency", 2),
        ([part("a", "x")], "bad-dependency", 0),
        ([part("a", "a")], "bad-dependency", 0),
        ([part("a", "b"), part("b", "a")], "bad-dependency", 0),
        ([part("a"), part("b", "A")], "bad-dependency", 1),
        ([part("a", "g", group="g")], "bad-dependency", 0),
        ([part("a", group="g"), part("b", "g", group="g")], "bad-dependency", 1),
        ([part("a"), part("b", "a", "g"), part(group="g")], "bad-dependency", 1),
        ([part("a", target="/@{x.body.y}")], "bad-dependency", 0),
        ([part("a", target="/@{b.body.y}"), part("b")], "bad-dependency", 0),
        ([part("a", target="/@{a.body.y}")], "bad-dependency", 0),
        ([part("a", target="$b/x"), part("b")], "bad-dependency", 0),
    ],
)
def test_bad_relation_is_refused_with_its_kind_and_part(
    parts: list[Part], kind: str, number: int
) -> None:
    assert refusal(*parts) == (kind, number)


@pytest.mark.parametrize("atomic", [False, True])
def test_case_matters_where_the_format_says_so(atomic: bool) -> None:
    parts = (part("a"), part("A"), part("b", "A", group="B"))
    assert planned(*parts, ignore_case=False, atomic=atomic).needs[2] == frozenset({1})


def test_ids_that_only_look_the_same_are_two() -> None:
    assert planned(part("\xe9"), part("e\u0301")).ids == {"\xe9": 0, "e\u0301": 1}


NAMES = st.sampled_from(["a", "b", "c", "<a>", "A", "g"])


@given(
    st.lists(
        st.builds(
            Part,
            st.just("GET"),
            st.sampled_from(["/", "$a", "/@{b.body.x}"]),
            id=st.none() | NAMES,
            group=st.none() | st.sampled_from(["g", "h", "a"]),
            depends_on=st.lists(NAMES, max_size=2).map(tuple),
        ),
        min_size=1, max_size=6,
    ),
    st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_plan_runs_every_part_once_behind_what_it_needs(
    parts: list[Part], ignore_case: bool, atomic: bool
) -> None:
    try:
        found = planned(*parts, ignore_case=ignore_case, atomic=atomic)
    except Malformed as error:
        number = error.part
        assert number is not None
        assert 0 <= number < len(parts)
        return
    assert [number for unit in found.units for number in unit.parts] == list(range(len(parts)))
    assert all(max(needs, default=-1) < number for number, needs in enumerate(found.needs))
