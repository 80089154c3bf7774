"""Scripts are put together from files, also those of a third party."""

from __future__ import annotations

import hashlib

import pytest

from demijohn.core import idempotency
from demijohn.core.step import Decision, Outcome, StepKind
from demijohn.errors import UsageError
from demijohn.stores.redis.row import escape_glob, value_of
from demijohn.stores.redis.scripts import assemble, read_lua, script_for

KINDS = [
    idempotency.BEGIN,
    idempotency.RENEW,
    idempotency.COMPLETE,
    idempotency.RELEASE,
    idempotency.RESOLVE,
]


def test_script_is_the_same_whatever_the_order_of_kinds() -> None:
    script = assemble(KINDS)
    assert script == assemble(reversed(KINDS))
    assert script.sha == hashlib.sha1(script.source).hexdigest()
    assert sorted(script.numbers.values()) == [1, 2, 3, 4, 5]


def test_included_file_stands_there_once() -> None:
    assert assemble(KINDS).source.count(b"local function state_of") == 1


def test_script_is_kept_for_the_process() -> None:
    kinds = frozenset(KINDS)
    assert script_for(kinds) is script_for(frozenset(KINDS))


@pytest.mark.parametrize("path", ["demijohn.core.lua/nothing.lua", "no.such.package/x.lua"])
def test_missing_twin_is_told(path: str) -> None:
    kind = StepKind("third.party", lambda rows, now_ms: Decision(Outcome("done")), path)
    with pytest.raises(UsageError, match=r"package/file\.lua"):
        assemble([kind])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_twin_says_what_it_is_for(kind: StepKind) -> None:
    header = read_lua(kind.lua).split("\n\n", 1)[0]
    for heading in ("-- Purpose: ", "-- KEYS: ", "-- ARGV: ", "-- Return: "):
        assert heading in header


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"", b""),
        (b"0", 0),
        (b"-12", -12),
        (b"\x0112", b"12"),
        (b"\x01\x0112", b"\x0112"),
        (b"\x01", b"\x01"),
        (b"12\n", b"12\n"),
        (b"1.5", b"1.5"),
    ],
)
def test_values_read_back_as_what_they_were(raw: bytes, value: int | bytes) -> None:
    assert value_of(raw) == value


def test_glob_of_a_text_matches_that_text_alone() -> None:
    assert escape_glob("a*b?[c-d]^\\") == "a\\*b\\?\\[c\\-d\\]\\^\\\\"
