"""Which keys are accepted, and which spellings are one key."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from demijohn.idempotency.claim import row_names
from demijohn.idempotency.keys import compile_pattern, environ_name, parse
from demijohn.idempotency.refusals import KeyInvalid
from demijohn.idempotency.settings import default_waiters
from demijohn.servers import server_threads
from tests import sf_item

visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)


def quoted(key: str) -> str:
    """Serialise a String by RFC 9651, 4.1.6."""
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(visible)
def test_every_visible_string_can_be_sent_quoted(key: str) -> None:
    assert parse(quoted(key)) == key
    assert parse(f"  {quoted(key)} ; a=1;b ") == key


alphabet = st.text('"\\\\;,= ab9*-.:?%_\x7f\t', max_size=12)
parameters = st.lists(
    st.sampled_from([";a", "; b=1", ';c="x, y"', ";*d=?1", ";e=:YQ==:", ";f=tok/en", ";g=-1.5"])
).map("".join)


@given(st.tuples(visible.map(quoted) | alphabet, parameters | alphabet).map("".join))
def test_quoted_field_is_read_as_the_standard_reads_it(field: str) -> None:
    try:
        # White space around a field's value, tabs too, is no part of it (RFC 9110, 5.5).
        expected = sf_item.Item(field.strip(" \t")).parse()
    except sf_item.Malformed:
        assume(" ;" not in field)  # some clients write a space there, and nothing is lost by it
        assume('"' in field)  # else it is taken for a bare token
        with pytest.raises(KeyInvalid):
            parse(field)
    else:
        if re.fullmatch(r"[!-~]+", expected):
            assert parse(field) == expected
        else:
            with pytest.raises(KeyInvalid):
                parse(field)


@pytest.mark.parametrize("value", ['"a";p=1, "b"', '"a";p, b', '"a", "b"', '"a" ; p="x" , "b"'])
def test_second_key_behind_a_parameter_is_seen(value: str) -> None:
    with pytest.raises(KeyInvalid, match="comma"):
        parse(value)


@given(visible)
def test_bare_token_is_the_key_unless_it_could_be_something_else(key: str) -> None:
    if '"' not in key and "," not in key:
        assert parse(key) == key
    elif not key.startswith('"'):
        with pytest.raises(KeyInvalid):
            parse(key)


@given(st.text())
def test_any_value_is_a_key_or_refused_in_words(value: str) -> None:
    refused: KeyInvalid | None = None
    key = ""
    try:
        key = parse(value)
    except KeyInvalid as refusal:
        refused = refusal
    words = "The idempotency key" if refused is None else refused.description or ""
    assert words.startswith("The idempotency key")
    assert refused is not None or re.fullmatch(r"[!-~]+", key)


@pytest.mark.parametrize("value", ['"a', 'a"', '"a"b', '"a\\x"', '"a" "b"', '"a\x7f"', '"é"'])
def test_what_only_looks_like_a_string_is_refused(value: str) -> None:
    with pytest.raises(KeyInvalid):
        parse(value)


def test_header_is_looked_up_where_wsgi_puts_it() -> None:
    assert environ_name("Idempotency-Key") == "HTTP_IDEMPOTENCY_KEY"


def test_pattern_may_be_compiled_already() -> None:
    pattern = re.compile("x")
    assert compile_pattern(pattern) is pattern
    assert compile_pattern("x").fullmatch("x")
    with pytest.raises(ValueError, match="regular expression"):
        compile_pattern(re.compile(b"x"))  # it could never match a key


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), unique=True, max_size=8))
def test_names_of_rows_are_their_own(parts: list[tuple[str, str, str]]) -> None:
    names = {row_names((b"s" * 32, b"t" * 32), *part) for part in parts}
    assert len(names) == len(parts)
    for now, earlier in names:
        assert now != earlier
        assert now.split(":")[1] == earlier.split(":")[1]  # one slot of a cluster
        assert re.fullmatch(r"idempotency:\{[0-9a-f]{4}\}:[0-9a-f]{40}", now)


@pytest.mark.parametrize(
    ("argv", "environment", "threads"),
    [
        (["gunicorn", "app"], "", None),
        (["gunicorn", "--threads", "8"], "", 8),
        (["gunicorn", "--threads=8"], "--threads 4", 8),
        (["gunicorn"], "--threads 4 -w 2", 4),
        (["gunicorn", "--threads"], "", None),
        (["gunicorn", "--threads", "many"], "", None),
    ],
)
def test_threads_of_the_server_are_read_where_they_stand(
    argv: list[str], environment: str, threads: int | None
) -> None:
    assert server_threads(argv, {"GUNICORN_CMD_ARGS": environment}) == threads


def test_quarter_of_the_threads_may_wait() -> None:
    assert [default_waiters(threads) for threads in (None, 1, 4, 16)] == [4, 1, 1, 4]
