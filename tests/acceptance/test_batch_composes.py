"""Parts of a batch pass limits, idempotency and problem details as if each had come alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import g, request

from demijohn import idempotency
from demijohn.core.step import Outcome
from demijohn.errors import StoreUnavailable
from demijohn.stores import Store, open_store
from demijohn.stores.memory import MemoryStore
from tests.acceptance.batched import Api, multipart, parts, problem, slugs, statuses
from tests.acceptance.conftest import new_key


class Counting(MemoryStore):
    """Counts trips; can fail."""

    def __init__(self) -> None:
        super().__init__()
        self.trips = 0
        self.down = False

    def run(self, steps: Any) -> list[Outcome]:
        self.trips += 1
        if self.down:
            raise StoreUnavailable("down")
        return super().run(steps)


@pytest.fixture
def store(store_url: str) -> Any:
    made = open_store(store_url)
    yield made
    made.close()


@pytest.fixture
def counting() -> Counting:
    return Counting()


def make(tmp_path: Path, store: Store, **options: Any) -> Api:
    options.setdefault("principal", lambda: request.headers.get("X-User"))
    options.setdefault("batch", {"inherit": ["X-User"]})
    return Api(tmp_path, store, **options)


def empty() -> Any:
    return {}


def left(response: Any, index: int = 0) -> str:
    field: str = parts(response)[index]["headers"]["ratelimit"]
    return field.split(";")[1]


# --- limits -------------------------------------------------------------------------------------


def test_every_part_is_charged_and_the_batch_is_not(tmp_path: Path, store: Store) -> None:
    api = make(tmp_path, store, limits={"default": "3/hour"})
    response = api.post([{"url": "/status/200"}] * 5)
    assert statuses(response) == [200, 200, 200, 429, 429]
    assert slugs(response)[3] == "quota-exceeded"
    assert parts(response)[3]["headers"]["retry-after"]
    assert statuses(api.post([{"url": "/status/200"}])) == [429]
    assert api.app.test_client().get("/status/200").status_code == 429
    assert len(api.runs) == 3 + 2 + 1 + 1, "hooks run, views do not"


def test_limits_of_all_parts_are_one_trip(tmp_path: Path, counting: Counting) -> None:
    api = make(tmp_path, counting)
    api.add("/a", empty, api.dj.limit("100/hour; 1000/day"))
    api.add("/b", empty, api.dj.limit("100/hour", by="principal"))
    response = api.post([{"url": "/a"}] * 20 + [{"url": "/b"}] * 20, X_User="ann")
    assert statuses(response) == [200] * 40
    assert counting.trips == 1
    assert left(response) == "r=80"
    assert left(response, 39) == "r=80"


def test_parts_that_are_over_are_the_last_ones_and_cost_no_trips(
    tmp_path: Path, counting: Counting
) -> None:
    api = make(tmp_path, counting)
    api.add("/a", empty, api.dj.limit("10/hour"))
    api.add("/b", empty, api.dj.limit("10/hour"))
    response = api.post([{"url": "/a"}] * 30 + [{"url": "/b"}] * 10)
    assert statuses(response) == [200] * 10 + [429] * 20 + [200] * 10
    # One for all, and one more for the first that is over; the others are remembered.
    assert counting.trips == 2
    counting.trips = 0
    assert statuses(api.post([{"url": "/a"}] * 5)) == [429] * 5
    assert counting.trips <= 2


def test_batch_that_is_over_can_be_refused_whole(tmp_path: Path, store: Store) -> None:
    api = make(tmp_path, store, batch={"on_excess": "reject"})
    api.add("/a", empty, api.dj.limit("10/hour"))
    api.add("/b", empty, api.dj.limit("3/hour"))
    requests = [{"url": "/a"}, {"url": "/b"}, {"url": "/a"}, {"url": "/b"}]
    assert statuses(api.post(requests)) == [200] * 4
    runs = len(api.runs)
    response = api.post(requests)
    assert (response.status_code, problem(response)) == (429, "quota-exceeded")
    assert response.get_json()["violated-policies"] == ["3/hour"]
    assert response.headers["Retry-After"]
    assert len(api.runs) == runs, "nothing ran"
    assert left(api.post([{"url": "/a"}])) == "r=7", "what was taken is given back"


def test_each_part_pays_for_itself_if_that_is_wanted(tmp_path: Path, counting: Counting) -> None:
    api = make(tmp_path, counting, batch={"on_excess": "each"})
    api.add("/a", empty, api.dj.limit("10/hour"))
    assert statuses(api.post([{"url": "/a"}] * 4)) == [200] * 4
    assert counting.trips == 4


def test_parts_that_did_not_run_are_given_back(tmp_path: Path, store: Store) -> None:
    api = make(tmp_path, store)
    api.add("/a", empty, api.dj.limit("10/hour"))
    requests = [{"url": "/status/500"}, *[{"url": "/a"}] * 5]
    assert statuses(api.post(requests, Prefer="continue-on-error=false")) == [500, *[424] * 5]
    assert left(api.post([{"url": "/a"}])) == "r=9"


def test_stream_that_nobody_reads_gives_back_what_did_not_run(tmp_path: Path, store: Store) -> None:
    api = make(tmp_path, store, batch={"stream": True})
    api.add("/a", empty, api.dj.limit("10/hour"))
    body = multipart(*["GET /a HTTP/1.1\n\n"] * 5)
    response = api.app.test_client().post(
        "/batch", data=body, content_type="multipart/mixed; boundary=b"
    )
    next(iter(response.iter_encoded()))
    response.close()
    assert api.app.test_client().get("/a").headers["RateLimit"].split(";")[1] == "r=8"


def test_caller_that_only_the_application_can_tell_is_charged_rightly(
    tmp_path: Path, store: Store
) -> None:
    """Here the part is by another caller than the batch: nothing is taken from the wrong one."""
    api = make(tmp_path, store)
    api.add("/a", empty, api.dj.limit("10/hour", by="principal"))
    requests = [{"url": "/a", "headers": {"X-User": "bob"}}] * 3
    assert left(api.post(requests, X_User="ann"), 2) == "r=7"
    assert left(api.post([{"url": "/a"}], X_User="ann")) == "r=9"
    assert left(api.post([{"url": "/a"}], X_User="bob")) == "r=6"


def test_hook_that_needs_what_happens_before_a_request(tmp_path: Path, store: Store) -> None:
    api = Api(tmp_path, store, principal=lambda: g.get("user"), batch={"inherit": "X-User"})

    @api.app.before_request
    def load() -> None:
        g.user = request.headers.get("X-User")

    api.add("/a", empty, api.dj.limit("10/hour", by="principal"))
    assert left(api.post([{"url": "/a"}] * 3, X_User="ann"), 2) == "r=7"


@pytest.mark.parametrize(
    "options",
    [
        {"by": lambda: "all"},
        {"by": "session", "missing": "ip"},
        {"cost": 2},
        {"cost": lambda: 2},
        {"methods": ["GET"]},
        {"burst": 10},
        {"charge": "on_success"},
        {"cost_after": lambda _: 2},
        {"algorithm": "log"},
        {"algorithm": "calendar"},
    ],
    ids="-".join,
)
def test_every_kind_of_limit_charges_as_it_does_alone(
    tmp_path: Path, store: Store, options: Any
) -> None:
    taken = []
    for count, index in (3, 2), (1, 0):
        api = make(tmp_path, store)
        api.add("/a", empty, api.dj.limit("10/hour", group=new_key(), **options))
        if count > 1:
            taken.append(left(api.post([{"url": "/a"}] * count), index))
        else:
            client = api.app.test_client()
            alone = [client.get("/a").headers["RateLimit"].split(";")[1] for _ in range(3)]
            taken.append(alone[-1])
    assert taken[0] == taken[1]


def test_limit_in_shadow_and_exempt_views(tmp_path: Path, store: Store) -> None:
    api = make(tmp_path, store, limits={"default": "1/hour"})
    api.add("/shadow", empty, api.dj.limit("1/hour", shadow=True))
    api.add("/free", api.dj.limits.exempt(empty))
    requests = [{"url": "/shadow"}] * 3 + [{"url": "/free"}] * 3 + [{"url": "/nowhere"}]
    assert statuses(api.post(requests)) == [200] * 6 + [404]


def test_places_are_held_one_after_the_other(tmp_path: Path, store: Store) -> None:
    api = make(tmp_path, store)
    api.add("/one", empty, api.dj.concurrent(1, by="all"))
    assert statuses(api.post([{"url": "/one"}] * 4)) == [200] * 4


def test_shed_parts_are_refused_alone(tmp_path: Path, store: Store) -> None:
    api = make(tmp_path, store)
    api.add("/full", empty, api.dj.shed(capacity=1, reserve=0.0, group=new_key()))
    assert statuses(api.post([{"url": "/full"}] * 3)) == [200] * 3


def test_store_that_is_down_is_each_limits_own_business(
    tmp_path: Path, counting: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    api = make(tmp_path, counting)
    api.add("/open", empty, api.dj.limit("10/hour", on_store_failure="open"))
    api.add("/closed", empty, api.dj.limit("10/hour", on_store_failure="closed"))
    counting.down = True
    assert statuses(api.post([{"url": "/open"}, {"url": "/closed"}])) == [200, 503]
    assert "limits of a batch could not be taken at once" in caplog.text


def test_what_was_taken_before_the_store_went_down_is_not_taken_twice(
    tmp_path: Path, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = make(tmp_path, counting)
    for name in "abc":
        api.add(f"/{name}", empty, api.dj.limit("2/hour", on_store_failure="open"))
    assert statuses(api.post([{"url": "/b"}] * 2)) == [200] * 2
    run, trips = counting.run, list[int]()

    def once(steps: Any) -> list[Outcome]:
        trips.append(len(steps))
        if len(trips) == 2:
            raise StoreUnavailable("down")
        return run(steps)

    monkeypatch.setattr(counting, "run", once)
    response = api.post([{"url": "/a"}, {"url": "/a"}, {"url": "/b"}, {"url": "/c"}])
    assert trips[:2] == [3, 1], "what has nothing left ends a trip"
    assert statuses(response) == [200, 200, 429, 200]


def test_refusal_of_a_whole_batch_does_not_need_the_store_to_give_back(
    tmp_path: Path, counting: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    api = make(tmp_path, counting, batch={"on_excess": "reject"})
    api.add("/a", empty, api.dj.limit("10/hour"))
    api.add("/b", empty, api.dj.limit("1/hour"))
    run = counting.run

    def down_after_one(steps: Any) -> list[Outcome]:
        outcomes = run(steps)
        counting.down = True
        return outcomes

    counting.run = down_after_one  # type: ignore[method-assign]
    response = api.post([{"url": "/a"}, {"url": "/b"}, {"url": "/b"}])
    assert (response.status_code, problem(response)) == (429, "quota-exceeded")
    assert "could not be given back" in caplog.text


def test_limits_that_cannot_be_given_back_err_on_the_safe_side(
    tmp_path: Path, counting: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    api = make(tmp_path, counting)
    api.add("/a", empty, api.dj.limit("10/hour"))

    def down() -> Any:
        counting.down = True
        return {}, 500

    api.add("/down", down)
    requests = [{"url": "/down"}, {"url": "/a"}, {"url": "/a"}]
    assert statuses(api.post(requests, Prefer="continue-on-error=false")) == [500, 424, 424]
    assert "could not be given back" in caplog.text
    counting.down = False
    assert left(api.post([{"url": "/a"}])) == "r=7"


def test_refusal_of_a_limit_that_nobody_can_be_counted_by(tmp_path: Path, store: Store) -> None:
    api = make(tmp_path, store)
    api.add("/a", empty, api.dj.limit("10/hour", by="principal"))
    assert slugs(api.post([{"url": "/a"}] * 2)) == ["limits-identity-missing"] * 2


def test_limits_behind_a_foreign_decorator_and_on_methods(tmp_path: Path, store: Store) -> None:
    from flask.views import MethodView

    api = make(tmp_path, store)

    class Things(MethodView):
        decorators = ()

        @api.dj.limit("2/hour")
        def get(self) -> Any:
            return {}

    def foreign(view: Callable[[], Any]) -> Callable[[], Any]:
        def outer() -> Any:
            return view()

        return outer

    api.app.add_url_rule("/things", view_func=Things.as_view("things"))
    api.add("/a", foreign(api.dj.limit("2/hour")(empty)))
    requests = [{"url": "/things"}] * 3 + [{"url": "/a"}] * 3
    assert statuses(api.post(requests)) == [200, 200, 429] * 2


# --- idempotency --------------------------------------------------------------------------------


def keyed(tmp_path: Path, store: Store, **options: Any) -> Api:
    api = make(tmp_path, store, **options)

    def pay() -> Any:
        api.paid.append(request.get_data())  # type: ignore[attr-defined]
        return {"key": idempotency.current.key}, 201

    api.paid = []  # type: ignore[attr-defined]
    api.add("/pay", pay, api.dj.idempotent(required=True))
    return api


def pay(amount: int, **more: Any) -> dict[str, Any]:
    return {"method": "POST", "url": "/pay", "body": {"amount": amount}, **more}


def test_own_key_of_a_part_wins(tmp_path: Path, store: Store) -> None:
    api = keyed(tmp_path, store)
    own = new_key()
    response = api.post(
        [pay(1, headers={"Idempotency-Key": own}), pay(2, id="x y")],
        Idempotency_Key="k" * 20,
        X_User="ann",
    )
    assert [part["body"]["key"] for part in parts(response)] == [own, "k" * 20 + ":x%20y"]


def test_batch_that_is_sent_again_runs_each_part_once(tmp_path: Path, store: Store) -> None:
    api = keyed(tmp_path, store)
    key = new_key()
    first = api.post([pay(1), pay(2)], Idempotency_Key=key, X_User="ann")
    again = api.post([pay(1), pay(2), pay(3)], Idempotency_Key=f'"{key}"', X_User="ann")
    assert statuses(again) == [201] * 3
    replayed = [part["headers"].get("idempotent-replayed") for part in parts(again)]
    assert replayed == ["true", "true", None]
    assert [p["body"] for p in parts(first)] == [p["body"] for p in parts(again)[:2]]
    assert len(api.paid) == 3  # type: ignore[attr-defined]


def test_other_content_under_a_derived_key_is_refused_alone(tmp_path: Path, store: Store) -> None:
    api = keyed(tmp_path, store)
    key = new_key()
    api.post([pay(1), pay(2)], Idempotency_Key=key, X_User="ann")
    response = api.post([pay(1), pay(9)], Idempotency_Key=key, X_User="ann")
    assert slugs(response) == ["", "idempotency-key-reused"]


def test_reads_are_given_no_key_and_the_batch_keeps_none(tmp_path: Path, store: Store) -> None:
    api = keyed(tmp_path, store)
    response = api.post([{"url": "/echo"}], Idempotency_Key=new_key(), X_User="ann")
    assert "idempotency-key" not in parts(response)[0]["body"]["headers"]
    assert "Idempotent-Replayed" not in response.headers


def test_part_without_any_key_is_told(tmp_path: Path, store: Store) -> None:
    response = keyed(tmp_path, store).post([pay(1)], X_User="ann")
    assert slugs(response) == ["idempotency-key-missing"]


def test_applications_own_name_of_the_header(tmp_path: Path, store: Store) -> None:
    api = keyed(tmp_path, store, idempotency={"headers": ["X-Key"]})
    response = api.post([pay(1)], X_Key="k" * 20, X_User="ann")
    assert parts(response)[0]["body"]["key"] == "k" * 20 + ":0"


@pytest.mark.parametrize("name", ["X-Key", "X-Other"])
def test_key_counts_by_each_of_its_names(tmp_path: Path, store: Store, name: str) -> None:
    api = keyed(tmp_path, store, idempotency={"headers": ["X-Key", "X-Other"]})
    key, own = new_key(), new_key()
    response = api.post(
        [pay(1), pay(2, headers={"X-Other": own})], X_User="ann", **{name.replace("-", "_"): key}
    )
    assert [part["body"].get("key") for part in parts(response)] == [f"{key}:0", own]


def test_two_keys_for_one_batch_are_refused(tmp_path: Path, store: Store) -> None:
    api = keyed(tmp_path, store, idempotency={"headers": ["X-Key", "X-Other"]})
    response = api.post([pay(1)], X_Key=new_key(), X_Other=new_key())
    assert (response.status_code, problem(response)) == (400, "bad-batch-key")
    key = new_key()
    same = api.post([pay(1)], X_Key=key, X_Other=f'"{key}"', X_User="ann")
    assert statuses(same) == [201]


@pytest.mark.parametrize("name", ["1", "#1", "%231"])
def test_part_without_an_id_never_has_the_key_of_one_that_has(
    tmp_path: Path, store: Store, name: str
) -> None:
    """They are both new payments, and alike: were their keys the same, one would be lost."""
    api = keyed(tmp_path, store)
    message = "POST /pay HTTP/1.1\n\nsame\n"
    body = multipart(message, message, ids=False).replace("http", f"http\r\nContent-ID: {name}", 1)
    response = api.send(body, Idempotency_Key=new_key(), X_User="ann")
    assert statuses(response) == [201, 201]
    assert len(api.paid) == 2  # type: ignore[attr-defined]


def test_long_ids_make_keys_of_bounded_length(tmp_path: Path, store: Store) -> None:
    api = keyed(tmp_path, store)
    requests = [pay(1, id="a" * 250), pay(1, id="a" * 249 + "b")]
    response = api.post(requests, Idempotency_Key=new_key(), X_User="ann")
    first, second = (part["body"]["key"] for part in parts(response))
    assert first != second
    assert max(len(first), len(second)) <= 200


@pytest.mark.parametrize("key", ["", "a b", 'a"b', "a,b", "a\\b", "é" * 20, "k" * 201])
def test_key_that_cannot_be_given_to_parts_refuses_the_batch(
    tmp_path: Path, store: Store, key: str
) -> None:
    api = keyed(tmp_path, store)
    response = api.post([pay(1)], Idempotency_Key=key)
    assert (response.status_code, problem(response)) == (400, "bad-batch-key")
    assert api.runs == []


def test_default_idempotency_does_not_keep_the_batch(tmp_path: Path, store: Store) -> None:
    api = make(tmp_path, store, idempotency={"default": True})
    key = new_key()
    requests = [{"method": "POST", "url": "/status/201"}]
    api.post(requests, Idempotency_Key=key, X_User="ann")
    again = api.post(requests, Idempotency_Key=key, X_User="ann")
    assert "Idempotent-Replayed" not in again.headers
    assert parts(again)[0]["headers"]["idempotent-replayed"] == "true"


def test_replayed_parts_are_not_charged(tmp_path: Path, store: Store) -> None:
    api = make(tmp_path, store)
    api.add("/both", lambda: ({}, 201), api.dj.limit("4/hour"), api.dj.idempotent)
    requests = [{"method": "POST", "url": "/both"}] * 3
    key = new_key()
    for _ in range(3):
        response = api.post(requests, Idempotency_Key=key, X_User="ann")
        assert statuses(response) == [201] * 3
        assert left(response, 2) == "r=1"


def test_limit_and_key_of_a_part_are_one_trip(tmp_path: Path, counting: Counting) -> None:
    api = make(tmp_path, counting)
    api.add("/both", api.dj.limit("30/hour")(api.dj.idempotent(lambda: ({}, 201))))
    requests = [{"method": "POST", "url": "/both"}] * 3
    assert statuses(api.post(requests, Idempotency_Key=new_key(), X_User="ann")) == [201] * 3
    assert counting.trips == 3 * 2


def test_problem_details_for_every_error_of_a_part(tmp_path: Path, store: Store) -> None:
    api = make(tmp_path, store, problems=True)
    (part,) = parts(api.post([{"url": "/nowhere"}]))
    assert part["headers"]["content-type"] == "application/problem+json"
    assert part["body"]["type"] == "about:blank"
