"""What limits ask of a store: many rows at once, all or nothing, another price on a halt."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from demijohn.core import limits
from demijohn.core.limits import Rule
from demijohn.stores.protocol import Store

from .fixtures import Fixtures
from .tools import BOB, ManualClock, begin, complete, one, stored

WINDOW: Rule = (limits.WINDOW, 3, 1000, 0, 1)
MANY: Rule = (limits.GCRA, 100, 1000, 100, 1)
PLACE: Rule = (limits.LEASES, 1, 1000, 0, 1)


class Limiting(Fixtures):
    """Takes over several rows."""

    def test_refused_take_writes_nothing(self, store: Store, clock: ManualClock, key: str) -> None:
        keys = (key, key + "2")
        for number in range(3):
            outcome = one(store, limits.take(keys, [WINDOW, MANY]))
            assert outcome.status == "taken"
            assert outcome.integer(1) == clock.now_ms
            assert outcome.values[limits.FIRST :: 3] == (2 - number, 99 - number)
        before = [stored(store, each) for each in keys]
        refused = one(store, limits.take(keys, [WINDOW, MANY]))
        assert (refused.status, refused.halts) == ("refused", True)
        assert [stored(store, each) for each in keys] == before
        clock.advance(1100)
        assert one(store, limits.take(keys, [WINDOW, MANY])).status == "taken"

    def test_crowd_takes_exactly_what_there_is(self, store: Store, key: str) -> None:
        keys = (key, key + "2")
        rules = [(limits.WINDOW, 20, 600_000, 0, 1), (limits.LOG, 100, 600_000, 0, 1)]
        with ThreadPoolExecutor(8) as pool:
            step = limits.take(keys, rules)
            outcomes = list(pool.map(lambda _: one(store, step), range(40)))
        assert [outcome.status for outcome in outcomes].count("taken") == 20
        looked = one(store, limits.take(keys, [(*rule[:4], 0) for rule in rules]))
        assert looked.values[limits.FIRST :: 3] == (0, 80)

    def test_halt_has_the_steps_before_it_decided_by_their_other_arguments(
        self, store: Store, key: str
    ) -> None:
        limit, replays, idempotent = key, key + ":replays", key + ":begin"
        take = limits.take(
            (limit, replays), [WINDOW, limits.NO_RULE], spared=[(*WINDOW[:4], 0), WINDOW]
        )
        first = store.run([take, begin(idempotent)])
        assert [outcome.status for outcome in first] == ["taken", "run"]
        one(store, complete(idempotent))
        before = stored(store, limit)
        for number in range(3):
            again = store.run([take, begin(idempotent, token=BOB)])
            assert [outcome.status for outcome in again] == ["taken", "replay"]
            assert again[0].integer(0) == limits.SPARED
            assert again[0].values[limits.FIRST :: 3] == (2, 2 - number)
        assert stored(store, limit) == before
        # What the other arguments refuse is refused, and nothing behind it is run.
        (refused,) = store.run([take, begin(idempotent, token=BOB)])
        assert (refused.status, refused.integer(0)) == ("refused", limits.SPARED)

    def test_other_arguments_are_for_a_later_halt_only(self, store: Store, key: str) -> None:
        take = limits.take((key,), [WINDOW], spared=[limits.NO_RULE])
        for _ in range(3):
            assert store.run([take])[0].integer(0) == limits.WHOLE
        (refused,) = store.run([take, begin(key + ":begin")])
        assert (refused.status, refused.integer(0)) == ("refused", limits.WHOLE)
        assert stored(store, key + ":begin") is None

    def test_place_that_is_left_wakes_who_waits(self, store: Store, key: str) -> None:
        holder, other = b"holder 1", b"other  2"
        assert one(store, limits.take((key,), [PLACE], token=holder)).status == "taken"
        if store.inbox:
            step = limits.take((key,), [PLACE], token=other, inbox=store.inbox)
            assert one(store, step).status == "refused"
            row = stored(store, key)
            assert row is not None
            assert row["w"] == store.inbox.encode()
        one(store, limits.settle((key,), [(limits.LEAVE, PLACE, 0)], token=holder))
        assert stored(store, key) is None
        assert one(store, limits.take((key,), [PLACE], token=other)).status == "taken"

    def test_reset_removes_rows(self, store: Store, key: str) -> None:
        keys = (key, key + "2")
        one(store, limits.take(keys, [WINDOW, MANY]))
        assert one(store, limits.reset((*keys, key + "3"))).values == (2,)
        assert [stored(store, each) for each in keys] == [None, None]
        assert one(store, limits.tally(key, 2, keep_ms=1000, label="name")).values == (2,)
