"""Recovery points: a retry resumes after the last step that was finished."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select

from demijohn import Demijohn, idempotency
from demijohn.errors import UsageError
from demijohn.records.tables import steps
from tests.acceptance.conftest import new_key
from tests.atomic.shop import Shop
from tests.atomic.test_atomic import replayed

Make = Callable[..., Shop]


class Journey:
    """A view of three steps, of which one may fail."""

    def __init__(self, shop: Shop, **options: Any) -> None:
        self.ran: list[str] = []
        self.keys: list[str] = []
        self.fails: set[str] = set()
        self.names = ["reserve", "charge", "send"]
        self.shop = shop
        shop.add("/journey", self.view, **options)

    def view(self) -> Any:
        return {name: self.take(name) for name in self.names}, 201

    def take(self, name: str) -> Any:
        with idempotency.step(name) as step:
            if not step.done:
                self.keys.append(step.key)
                if name in self.fails:
                    raise RuntimeError(f"{name} failed")
                self.ran.append(name)
                step.save({"number": len(self.ran)})
        return step.result

    def post(self, key: str | None) -> Any:
        return self.shop.post(key, "/journey")


def kept(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(steps)) or 0


@pytest.fixture(params=["leased", "atomic"])
def journey(request: pytest.FixtureRequest, make_shop: Make, engine: Engine) -> Journey:
    if request.param == "atomic" and engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer: see the test that it is refused")
    return Journey(make_shop(), atomic=request.param == "atomic")


def test_retry_resumes_after_the_last_finished_step(journey: Journey) -> None:
    key = new_key()
    journey.fails = {"send"}
    assert journey.post(key).status_code == 500
    assert journey.ran == ["reserve", "charge"]
    journey.fails = set()
    answer = journey.post(key)
    assert journey.ran == ["reserve", "charge", "send"]
    assert answer.json == {
        "reserve": {"number": 1},
        "charge": {"number": 2},
        "send": {"number": 3},
    }
    assert replayed(journey.post(key))
    assert journey.ran == ["reserve", "charge", "send"]


def test_step_has_the_same_key_in_every_run(journey: Journey) -> None:
    key = new_key()
    journey.fails = {"charge"}
    journey.post(key)
    journey.post(key)
    reserve, charge, again = journey.keys
    assert charge == again
    assert reserve != charge


def test_steps_of_other_keys_are_not_taken(journey: Journey) -> None:
    journey.fails = {"send"}
    journey.post(new_key())
    journey.post(new_key())
    assert journey.ran == ["reserve", "charge"] * 2


def test_changed_order_is_a_mistake(journey: Journey) -> None:
    key = new_key()
    journey.fails = {"send"}
    journey.post(key)
    journey.names.reverse()
    journey.shop.app.testing = True
    with pytest.raises(UsageError, match=r"'send' is where an earlier run .* had 'reserve'"):
        journey.post(key)


def test_without_a_key_every_step_runs_and_nothing_is_kept(
    journey: Journey, engine: Engine
) -> None:
    journey.post(None)
    journey.post(None)
    assert journey.ran == ["reserve", "charge", "send"] * 2
    assert kept(engine) == 0


def test_finished_atomic_request_leaves_no_steps(make_shop: Make, engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer")
    journey = Journey(make_shop())
    journey.post(new_key())
    assert kept(engine) == 0


def test_what_is_left_over_from_an_earlier_use_of_the_key_is_not_taken(
    make_shop: Make, engine: Engine
) -> None:
    journey = Journey(make_shop(), atomic=False)
    key = new_key()
    names: list[str] = []
    journey.shop.add(
        "/name", lambda: names.append(idempotency.current.key_name) or {}, atomic=False
    )
    journey.shop.post(key, "/name")
    store = journey.shop.app.extensions["demijohn"].stores["default"]
    store.close()  # as if the key had been used long ago
    with engine.begin() as connection:
        for position, name in enumerate(journey.names):
            row = {"key": names[0], "position": position, "name": name, "result": b'"old"'}
            connection.execute(insert(steps).values(**row, expires=1 << 50))
    assert journey.post(key).json["send"] == {"number": 3}
    assert kept(engine) == 3


def test_step_that_another_run_has_saved_meanwhile_stands(make_shop: Make, engine: Engine) -> None:
    journey = Journey(make_shop(), atomic=False)

    def view() -> Any:
        with idempotency.step("first"):
            pass
        with idempotency.step("charge") as step:
            with engine.begin() as connection:
                row = {"key": idempotency.current.key_name, "position": 1, "name": "charge"}
                row |= {"result": b'"theirs"', "expires": 1 << 50}
                connection.execute(insert(steps).values(**row))
            step.save("ours")
        return {"charge": step.result}

    journey.shop.add("/race", view, atomic=False)
    assert journey.shop.post(new_key(), "/race").json == {"charge": "theirs"}


@pytest.mark.parametrize(("expires", "had"), [(1 << 50, "another"), (1, "a step that is over")])
def test_other_step_that_another_run_has_saved_meanwhile_is_told(
    make_shop: Make, engine: Engine, expires: int, had: str
) -> None:
    journey = Journey(make_shop(), atomic=False)

    def view() -> Any:
        with idempotency.step("first"):
            pass
        with idempotency.step("second"), engine.begin() as connection:
            row = {"key": idempotency.current.key_name, "position": 1, "name": "another"}
            row |= {"result": b'"theirs"', "expires": expires}
            connection.execute(insert(steps).values(**row))

    journey.shop.app.testing = True
    journey.shop.add("/race", view, atomic=False)
    with pytest.raises(UsageError, match=f"'second' is where another run .* had '{had}'"):
        journey.shop.post(new_key(), "/race")


def test_decorated_function_is_a_step(make_shop: Make) -> None:
    shop = make_shop()
    calls: list[int] = []
    fail = [True]

    @idempotency.step("charge")
    def charge(amount: int, *, currency: str) -> dict[str, Any]:
        calls.append(amount)
        return {"charged": f"{amount} {currency}"}

    def view() -> Any:
        charged = charge(3, currency="EUR")
        if fail:
            fail.pop()
            return {}, 500
        return charged

    shop.add("/view", view, atomic=False)
    key = new_key()
    assert shop.post(key, "/view").status_code == 500
    assert shop.post(key, "/view").json == {"charged": "3 EUR"}
    assert calls == [3]


def test_result_is_seen_as_json_has_it_in_the_first_run_too(make_shop: Make) -> None:
    shop = make_shop()

    def view() -> Any:
        with idempotency.step("pair") as step:
            step.save((1, 2))
        return {"list": isinstance(step.result, list)}

    shop.add("/view", view, atomic=False)
    assert shop.post(new_key(), "/view").json == {"list": True}


def test_block_that_saves_nothing_is_done_at_its_end(make_shop: Make) -> None:
    shop = make_shop()
    ran: list[int] = []
    fail = [True]

    def view() -> Any:
        with idempotency.step("once") as step:
            if not step.done:
                ran.append(1)
        if fail:
            fail.pop()
            return {}, 500
        return {"result": step.result}

    shop.add("/view", view, atomic=False)
    key = new_key()
    shop.post(key, "/view")
    assert shop.post(key, "/view").json == {"result": None}
    assert ran == [1]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: idempotency.step(""), "1 to 80 ASCII"),
        (lambda: idempotency.step("x" * 81), "1 to 80 ASCII"),
        (lambda: idempotency.step("x").result, "has no result yet"),
        (lambda: idempotency.step("x").key, "within the block only"),
    ],
)
def test_mistakes_are_named(act: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        act()


def test_mistakes_within_a_view_are_named(make_shop: Make) -> None:
    shop = make_shop()
    shop.app.testing = True

    def twice() -> Any:
        with idempotency.step("x"):
            pass
        with idempotency.step("x"):
            pass
        return {}

    def saved_twice() -> Any:
        with idempotency.step("x") as step:
            step.save(1)
            step.save(2)
        return {}

    def not_json() -> Any:
        with idempotency.step("x") as step:
            step.save(object())
        return {}

    for view in (twice, saved_twice, not_json):
        shop.add(f"/{view.__name__}", view, atomic=False)
    with pytest.raises(UsageError, match="has had a step of this name"):
        shop.post(new_key(), "/twice")
    with pytest.raises(UsageError, match="is done already"):
        shop.post(new_key(), "/saved_twice")
    with pytest.raises(UsageError, match="is not JSON"):
        shop.post(new_key(), "/not_json")


def test_steps_need_a_database(tmp_path: Any) -> None:
    from flask import Flask

    app = Flask("app", instance_path=str(tmp_path))
    app.secret_key, app.testing = "s", True
    dj = Demijohn(app, stores="memory://")

    def view() -> Any:
        with idempotency.step("x"):
            return {}

    app.post("/")(dj.idempotent(view))
    with pytest.raises(UsageError, match=r"give Demijohn\(app, db=\.\.\.\)"):
        app.test_client().post("/", headers={"Idempotency-Key": new_key()})


def test_steps_of_an_atomic_view_are_refused_on_sqlite(make_shop: Make, engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("the others have more than one writer")
    journey = Journey(make_shop())
    journey.shop.app.testing = True
    with pytest.raises(UsageError, match="SQLite has one writer"):
        journey.post(new_key())
