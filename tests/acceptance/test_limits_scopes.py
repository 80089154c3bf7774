"""Which limits hold for which requests, and what counts together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, request
from flask.views import MethodView

from demijohn import Demijohn, Idempotency, Limits
from demijohn.errors import ConfigError, UsageError
from tests.acceptance.limited import Make, Shop, clock, left, lone, make, shop, store

__all__ = ["clock", "lone", "make", "shop", "store"]


# --- what belongs together -----------------------------------------------------------------------


def test_endpoints_count_by_themselves_and_groups_together(shop: Shop) -> None:
    for path in ("/a", "/b"):
        shop.add(path, shop.dj.limit("1/minute"))
    for path in ("/c", "/d"):
        shop.add(path, shop.dj.limit("1/minute", group="writes"))
    assert shop.statuses("/a", 2) == [200, 429]
    assert shop.statuses("/b", 2) == [200, 429]
    assert shop.statuses("/c", 1) == [200]
    assert shop.statuses("/d", 1) == [429]


def test_group_does_not_meet_an_endpoint_of_its_name(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("1/minute"))
    shop.add("/b", shop.dj.limit("1/minute", group="a"))
    assert [shop.get(path).status_code for path in ("/a", "/b")] == [200, 200]


def test_defaults_hold_for_views_without_limits_of_their_own(make: Make) -> None:
    shop = make(limits={"default": "1/minute", "application": "4/hour"})
    shop.add("/a")
    shop.add("/b", shop.dj.limit("2/minute"))
    shop.add("/c", shop.dj.exempt, view=lambda: "free")
    assert shop.statuses("/a", 2) == [200, 429]
    assert shop.statuses("/b", 3) == [200, 200, 429]
    assert shop.statuses("/c", 5) == [200] * 5
    # One counter for the whole application, beside whatever the view has.
    assert left(shop.get("/b")) == {"4/hour": 1, "2/minute": 0}
    shop.pass_ms(70_000)
    assert [shop.get(path).status_code for path in ("/a", "/b")] == [200, 429]


def test_how_many_run_says_nothing_of_how_often(make: Make) -> None:
    """Only a rate of its own takes a view out of the default."""
    shop = make(limits={"default": "2/minute"})
    shop.add("/a", shop.dj.concurrent(5))
    shop.add("/b", shop.dj.shed(capacity=5))
    shop.add("/c", shop.dj.concurrent(5), shop.dj.limit("3/minute"))
    assert shop.statuses("/a", 3) == [200, 200, 429]
    assert shop.statuses("/b", 3) == [200, 200, 429]
    assert shop.statuses("/c", 4) == [200, 200, 200, 429]


def test_default_is_for_the_methods_of_a_class_that_say_nothing(make: Make) -> None:
    shop = make(limits={"default": "1/minute"})

    class Things(MethodView):
        decorators = [shop.dj.concurrent(5)]  # noqa: RUF012

        @shop.dj.limit("2/minute")
        def post(self) -> str:
            return "posted"

        def get(self) -> str:
            return "got"

    shop.app.add_url_rule("/things", view_func=Things.as_view("things"))
    posted = [shop.get("/things", method="POST").status_code for _ in range(3)]
    assert posted == [200, 200, 429]
    assert shop.statuses("/things", 2) == [200, 429]


def test_static_files_are_not_limited_by_default(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    app = Flask(
        "files", static_folder=str(tmp_path), static_url_path="/static", instance_path=str(tmp_path)
    )
    app.secret_key = "s"
    Limits(app, stores="memory://", default="1/minute")
    client = app.test_client()
    for _ in range(3):
        with client.get("/static/x.txt") as response:
            assert response.status_code == 200


def test_blueprint_is_limited_and_its_views_may_say_otherwise(shop: Shop) -> None:
    api = Blueprint("api", __name__)
    api.add_url_rule("/a", "a", shop.view)
    api.add_url_rule("/b", "b", shop.dj.limit("3/minute")(shop.view))
    api.add_url_rule("/c", "c", shop.dj.limits.exempt(lambda: "free"))
    shop.dj.limits.protect(api, "1/minute")
    shop.app.register_blueprint(api, url_prefix="/api")
    shop.add("/elsewhere")
    assert shop.statuses("/api/a", 2) == [200, 429]
    assert shop.statuses("/api/b", 4) == [200, 200, 200, 429]
    assert shop.statuses("/api/c", 3) == [200] * 3
    assert shop.statuses("/elsewhere", 3) == [200] * 3


def test_methods_of_a_class_are_limited_by_themselves(shop: Shop) -> None:
    class Things(MethodView):
        @shop.dj.limit("1/minute")
        def post(self) -> str:
            return "posted"

        def get(self) -> str:
            return "got"

    shop.app.add_url_rule("/things", view_func=Things.as_view("things"))
    assert [shop.get("/things", method="POST").status_code for _ in range(2)] == [200, 429]
    assert shop.statuses("/things", 3) == [200] * 3


def test_coroutines_are_limited(shop: Shop) -> None:
    pytest.importorskip("asgiref")

    async def view() -> dict[str, str]:
        return {"from": "a coroutine"}

    shop.add("/a", shop.dj.limit("1/minute"), view=view)
    assert shop.statuses("/a", 2) == [200, 429]


def test_limit_is_only_for_its_methods(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("1/minute", methods="POST"))
    assert shop.statuses("/a", 3) == [200] * 3
    assert shop.statuses("/a", 2, method="POST") == [200, 429]


def test_limit_does_not_hold_unless(shop: Shop) -> None:
    staff = shop.dj.limit("1/minute", unless=lambda: request.headers.get("X-User") == "staff")
    shop.add("/a", staff)
    assert shop.statuses("/a", 3, user="staff") == [200] * 3
    assert shop.statuses("/a", 2) == [200, 429]


def test_limit_by_plan_is_found_for_each_request(shop: Shop) -> None:
    plans = {"free": "1/minute", "paid": ["3/minute", "100/day"], "friend": None}
    by_plan = shop.dj.limit(lambda: plans[request.headers["X-User"]], by="principal")
    shop.add("/a", by_plan)
    assert shop.statuses("/a", 2, user="free") == [200, 429]
    assert shop.statuses("/a", 4, user="paid") == [200, 200, 200, 429]
    assert shop.statuses("/a", 3, user="friend") == [200] * 3


def test_nonsense_from_a_function_is_the_developers_error(lone: Make) -> None:
    shop = lone()
    shop.app.testing = True
    shop.add("/a", shop.dj.limit(lambda: "plenty"))
    shop.add("/b", shop.dj.limit("1/minute", cost=lambda: -1))
    shop.add("/c", shop.dj.limit("1/minute", by=lambda: 1.5))
    shop.add("/d", shop.dj.limit("9/minute", cost_after=lambda response: "much"))
    for path, message in {"/a": "plenty", "/b": "cost=", "/c": "by=", "/d": "cost_after="}.items():
        with pytest.raises(UsageError, match=message):
            shop.get(path)


# --- errors of the developer ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "options", "message"),
    [
        ("plenty", {}, "100/minute"),
        ("1/fortnight", {}, "units"),
        ("1/0 minute", {}, "a second at least"),
        ("1/minute", {"window": 60}, "either"),
        (None, {"requests": 1}, "window="),
        (None, {"requests": "1", "window": 60}, "requests="),
        (None, {"requests": 1, "window": 0.5}, "whole number"),
        ("1/minute", {"bi": "ip"}, "did you mean 'by'"),
        ("1/minute", {"by": "address"}, "must be ip"),
        ("1/minute", {"by": ()}, "at least one"),
        ("1/minute", {"burst": 2, "algorithm": "log"}, "gcra"),
        ("0/minute", {"burst": 2}, "no rate"),
        ("5000/minute", {"algorithm": "log"}, "at most 1000"),
        ("1/week", {"algorithm": "calendar"}, "calendar"),
        ("1/minute", {"burst": 10**15}, "too much"),
        ("1/minute", {"name": "Größe"}, "ASCII"),
        ("1/minute", {"charge": "later"}, "charge"),
        ("1/minute", {"cost": -1}, "cost"),
        ("1/minute", {"on_store_failure": "local:2"}, "share"),
        ("1/minute", {"missing": "guess"}, "missing"),
        (f"{10**13}/minute", {}, "at most"),
    ],
)
def test_mistake_is_told_where_it_is_written(
    lone: Make, limit: Any, options: dict[str, Any], message: str
) -> None:
    shop = lone()
    with pytest.raises(ConfigError, match=message):
        shop.dj.limit(limit, **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"default": "plenty"}, "default"),
        ({"headers": "newest"}, "headers"),
        ({"ipv6_prefix": 200}, "ipv6_prefix"),
        ({"on_store_failure": "hope"}, "on_store_failure"),
        ({"shed": {"reserve": 2}}, "reserve"),
        ({"shed": {}}, "capacity="),
        ({"shed": "now"}, "dict"),
        ({"default": "9/week", "algorithm": "calendar"}, "calendar"),
        ({"defaults": "1/minute"}, "did you mean 'default'"),
    ],
)
def test_mistake_in_the_settings_leaves_the_application_alone(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    app = Flask("wrong", instance_path=str(tmp_path))
    app.secret_key = "s"
    app.config["DEMIJOHN_LIMITS"] = settings
    app.config["DEMIJOHN_STORES"] = "memory://"

    with pytest.raises(ConfigError, match=message):
        Demijohn(app)
    assert "demijohn" not in app.extensions


def test_more_mistakes_are_told(tmp_path: Path, lone: Make) -> None:
    app = Flask("unbound", instance_path=str(tmp_path))
    app.secret_key = "s"
    app.testing = True

    Idempotency(app, stores="memory://")
    app.add_url_rule("/a", view_func=Limits().limit("1/minute")(lambda: "a"), endpoint="a")
    with pytest.raises(ConfigError, match="limits are not bound"):
        app.test_client().get("/a")
    with pytest.raises(ConfigError, match="already bound"):
        Limits(lone().app)
    with pytest.raises(ConfigError, match="@concurrent"):
        Limits().concurrent(-1)


def test_extension_works_alone(tmp_path: Path) -> None:
    app = Flask("alone", instance_path=str(tmp_path))
    app.secret_key = "s"
    limits = Limits(stores={"default": "memory://"})
    app.add_url_rule("/a", view_func=limits.limit("1/minute")(lambda: "a"), endpoint="a")
    limits.init_app(app)
    client = app.test_client()
    assert [client.get("/a").status_code for _ in range(2)] == [200, 429]
