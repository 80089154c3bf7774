"""Every store decides about limits as the pure functions do, and planted mistakes are found."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

pytest.importorskip("redis")

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from demijohn.errors import StoreError
from demijohn.stores.redis import scripts
from demijohn.testing.contract import ManualClock
from tests.contract.differential import Campaign, InMemory, Subject
from tests.contract.limits_moves import KEYS, operation
from tests.contract.test_differential import (
    EXAMPLES,
    LENGTH,
    OnRedis,
    OnSql,
    clock,
    on_redis,
    plant,
    sqlite_subjects,
    unspoiled,
)

__all__ = ["clock", "on_redis", "unspoiled"]


def compare(campaign: Campaign, examples: int) -> None:
    """Run histories that hypothesis makes."""

    @settings(
        # To explain a failure takes minutes, with so many draws; to make it smaller does not.
        phases=[Phase.generate, Phase.shrink],
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        history(campaign, lambda options: data.draw(st.sampled_from(options)))

    run()


def history(campaign: Campaign, choose: Callable[[Sequence[object]], object]) -> None:
    """Run one history of what ``choose`` chooses."""
    campaign.start()
    for _ in range(LENGTH):
        campaign.apply(operation(choose, campaign.clock.now_ms))


def histories(campaign: Campaign, choose: Callable[[Sequence[object]], object]) -> None:
    """Run as many histories as it may take to find a mistake."""
    for _ in range(300):
        history(campaign, choose)


def test_every_store_limits_as_the_pure_functions_do(
    on_redis: OnRedis, clock: ManualClock, tmp_path: Path
) -> None:
    embedded = [InMemory(clock), *sqlite_subjects(tmp_path, clock)]
    campaign = Campaign(clock, [*embedded, on_redis], on_redis.space, KEYS)
    try:
        compare(campaign, EXAMPLES // 2)
    finally:
        for subject in embedded:
            subject.store.close()
    assert campaign.steps >= 2_500


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sql_stores_limit_as_the_pure_functions_do(
    postgres_url: str, mariadb_url: str, clock: ManualClock
) -> None:
    space = uuid.uuid4().hex
    subjects: list[Subject] = [OnSql(url, clock, space) for url in (postgres_url, mariadb_url)]
    try:
        campaign = Campaign(clock, subjects, space, KEYS)
        compare(campaign, EXAMPLES // 5)
    finally:
        for subject in subjects:
            subject.close()
    assert campaign.steps >= 1_000


# --- mutants -----------------------------------------------------------------------------------

ROWS = "demijohn.core.lua/limits_rows.lua"
WINDOW = "demijohn.core.lua/limits_window.lua"
GCRA = "demijohn.core.lua/limits_gcra.lua"
CALENDAR = "demijohn.core.lua/limits_calendar.lua"
LOG = "demijohn.core.lua/limits_log.lua"
LEASES = "demijohn.core.lua/limits_leases.lua"
TAKE = "demijohn.core.lua/limits_take.lua"
SETTLE = "demijohn.core.lua/limits_settle.lua"
RENEW = "demijohn.core.lua/limits_renew.lua"
RESET = "demijohn.core.lua/limits_reset.lua"
TALLY = "demijohn.core.lua/limits_tally.lua"
PRELUDE = "demijohn.stores.redis/prelude.lua"
RUNNER = "demijohn.stores.redis/runner.lua"

MUTANTS = [
    # window
    (WINDOW, "if newest - seen.index > RING then", "if newest - seen.index >= RING then"),
    (WINDOW, "    seen.index = newest\n", ""),
    (
        WINDOW,
        "for number = seen.index - PARTS, newest do",
        "for number = seen.index - RING, newest do",
    ),
    (
        WINDOW,
        "for number = seen.index - PARTS, newest do",
        "for number = seen.index - 9, newest do",
    ),
    (WINDOW, "if units <= 0 then return (seen", "if units < 0 then return (seen"),
    (WINDOW, "floor_zero(seen.used - amount) + 1, part)", "1, part)"),
    (WINDOW, "(seen.index + RING) * part\n  if seen", "(seen.index + PARTS) * part\n  if seen"),
    (WINDOW, "if seen.newest == seen.index then\n    local", "if false then\n    local"),
    (WINDOW, "if int(row, 'x') ~= expiry then counted.x = expiry end", ""),
    (
        WINDOW,
        "for number = seen.newest + 1, seen.index - 1 do",
        "for number = seen.newest + 2, seen.index - 1 do",
    ),
    (WINDOW, "freed(seen, seen.used + cost - amount, part)", "freed(seen, cost, part)"),
    (
        WINDOW,
        "if later == 0 then later = (seen.index",
        "if later == 0 then later = 1 + (seen.index",
    ),
    (WINDOW, "math.min(rule[5], floor_zero(2 * amount - seen.used))", "rule[5]"),
    (WINDOW, "if number == divided(at, part) then", "if number == seen.index then"),
    (
        WINDOW,
        "new[SLOTS[number % RING]], new.x = count, (number",
        "new[SLOTS[number % RING]], new.x = count, 1 + (number",
    ),
    (
        ROWS,
        "local function divided_up(a, b) return divided(a + b - 1, b) end",
        "local function divided_up(a, b) return divided(a, b) end",
    ),
    # gcra
    (GCRA, "int(row, 'c') > now + window_ms", "int(row, 'c') > now"),
    (GCRA, "if whole < now then return now, 0 end", ""),
    (GCRA, "if missing == 0 then return burst, 0 end", ""),
    (GCRA, "s = whole, f = sum % amount", "s = whole, f = 0"),
    (GCRA, "if cost > burst then", "if cost > amount then"),
    (
        GCRA,
        "local lacking = missing + needed - burst * window_ms",
        "local lacking = missing + needed - amount * window_ms",
    ),
    (
        GCRA,
        "local room = 2 * burst * window_ms - missing",
        "local room = burst * window_ms - missing",
    ),
    (
        GCRA,
        "write_arrival(key, now, 0, amount, missing)",
        "write_arrival(key, whole, 0, amount, missing)",
    ),
    # calendar
    (
        CALENDAR,
        "if month <= 2 then year, month = year - 1, month + 12 end",
        "if month < 2 then year, month = year - 1, month + 12 end",
    ),
    (CALENDAR, "+ divided(day, 36524)", ""),
    (CALENDAR, "if month == 12 then return start", "if month == 13 then return start"),
    (CALENDAR, "if counted == finish then", "if false then"),
    (CALENDAR, "if counted == start then return", "if counted then return"),
    (CALENDAR, "if used + cost > amount then", "if used + cost >= amount then"),
    (CALENDAR, "if start <= at and at < finish then used", "if at < finish then used"),
    # log
    (LOG, "<= instant then low = middle + 1", "< instant then low = middle + 1"),
    (LOG, "if newest > now + window_ms then return now, '' end", ""),
    (LOG, "return math.max(newest, now), sub", "return now, sub"),
    (LOG, "if more <= used then reset", "if more < used then reset"),
    (
        LOG,
        "local first = math.max(not_after(history, at - 1), finish - rule[5])",
        "local first = not_after(history, at - 1)",
    ),
    # leases
    (LEASES, "if finish > now and finish", "if finish >= now and finish"),
    (LEASES, "finish <= now + 2 * lease_ms then", "finish <= now + lease_ms then"),
    (LEASES, "if waiters ~= '' then new.w = waiters end", ""),
    (LEASES, "if not own and left == 0 then", "if left == 0 then"),
    (LEASES, "places[own or #places + 1]", "places[#places + 1]"),
    (LEASES, "    wake(name, data(row, 'w'))\n", ""),
    (LEASES, "last = math.max(last, place[2])", "last = place[2]"),
    # the steps
    (TAKE, "if rule[1] < SHADOW then", "if true then"),
    (
        TAKE,
        "if taken[i][1] ~= 0 then refused = true end",
        "if taken[i][1] > 0 then refused = true end",
    ),
    (TAKE, "if not least or taken[i][2] < least then", "if not least then"),
    (TAKE, "math.min(rules[i][5], granted)", "granted"),
    (TAKE, "'\\n' .. inbox .. '\\n', 1, true)", "inbox, 1, true)"),
    (TAKE, "and each[1] > 0 then", "then"),
    (
        TAKE,
        "    outcome[#outcome + 1] = each[1]\n    if each[6]",
        "    outcome[#outcome + 1] = 0\n    if each[6]",
    ),
    (SETTLE, "if act ~= CHARGE then rule[5] = 0 end", ""),
    (SETTLE, "if act == LEAVE and rule[1] == LEASES then", "if rule[1] == LEASES then"),
    (
        RENEW,
        "if not own then return {'fenced', 0} end",
        "own = own or 1; places[own] = places[own] or {args[1], 0}",
    ),
    (RENEW, "data(row, 'w'))", "'')"),
    (RESET, "if read(key) then", "if true then"),
    (TALLY, "int(read(keys[1], 'n'), 'n') +", ""),
    (PRELUDE, "if not row or not row.x or", "if not row or"),
    (RUNNER, "if step < halted and others > 0 then", "if others > 0 then"),
    (RUNNER, "order, noted, woken = {}, {}, {}", "order, noted = {}, {}"),
    (RUNNER, "order, noted, woken = {}, {}, {}", ""),
    (RUNNER, "arg = arg + 4 + args + others", "arg = arg + 4 + args"),
]


@pytest.mark.parametrize(("path", "original", "mutated"), MUTANTS)
def test_planted_mistake_is_found(
    redis_url: str,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    unspoiled: None,
    path: str,
    original: str,
    mutated: str,
) -> None:
    assert original in scripts.read_lua(path), "the mutant's original text is not there"
    plant(monkeypatch, path, original, mutated)
    subject = OnRedis(redis_url, clock)
    choose = random.Random(20261121).choice
    campaign = Campaign(clock, [subject], subject.space, KEYS)
    try:
        with pytest.raises((AssertionError, StoreError)):
            histories(campaign, choose)
    finally:
        subject.close()
