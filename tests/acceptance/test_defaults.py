"""Views that are idempotent by default, and applications with settings of their own."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, session
from flask.views import MethodView, View

from demijohn import Demijohn, Idempotency, idempotency
from demijohn.core import idempotency as core
from demijohn.frame import Frame, encode
from demijohn.idempotency.reading import patience_ms
from demijohn.stores.memory import MemoryStore
from demijohn.testing.contract import begin
from tests.acceptance.conftest import Bank, FailingStore, new_key

Make = Callable[..., Bank]


def replayed(response: Any) -> bool:
    return bool(response.headers.get("Idempotent-Replayed") == "true")


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    app = Flask("app", instance_path=str(tmp_path))
    app.secret_key = "s"
    app.config["DEMIJOHN_STORES"] = "memory://"
    return app


def second_is_replayed(app: Flask, path: str = "/", method: str = "POST") -> bool:
    client, headers = app.test_client(), {"Idempotency-Key": new_key()}
    client.open(path, method=method, headers=headers)
    return replayed(client.open(path, method=method, headers=headers))


def foreign(view: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs)

    return wrapper


# --- by default ---------------------------------------------------------------------------------


def test_every_kind_of_view_can_be_guarded_by_default(app: Flask) -> None:
    pytest.importorskip("asgiref")
    Idempotency(app, default=True)

    async def later() -> str:
        return "async"

    class Whole(View):
        methods = ["POST"]  # noqa: RUF012 - as Flask has it

        def dispatch_request(self) -> str:
            return "class"

    class Method(MethodView):
        init_every_request = False

        async def post(self) -> str:
            return "method"

    app.add_url_rule("/async", view_func=later, methods=["POST"])
    app.add_url_rule("/class", view_func=Whole.as_view("class"))
    app.add_url_rule("/method", view_func=Method.as_view("method"))
    partial = functools.partial(lambda text: text, "partial")
    app.add_url_rule("/partial", "partial", partial, methods=["POST"])
    app.add_url_rule("/foreign", "foreign", foreign(lambda: "x"), methods=["POST"])
    for path in ("/async", "/class", "/method", "/partial", "/foreign"):
        assert second_is_replayed(app, path), path


@pytest.mark.parametrize("how", ["exempt", "wrapped", "both levels"])
def test_view_can_stay_out_of_the_default(app: Flask, how: str) -> None:
    dj = Demijohn(app, idempotency={"default": True})
    view: Callable[..., Any] = dj.exempt(lambda: "x")
    if how != "exempt":
        view = foreign(view)
    if how == "both levels":
        blueprint = Blueprint("b", "b")
        blueprint.add_url_rule("/", "x", view, methods=["POST"])
        app.register_blueprint(blueprint)
        dj.idempotency.protect(blueprint)
    else:
        app.add_url_rule("/", "x", view, methods=["POST"])
    assert not second_is_replayed(app)


def test_decorated_view_below_a_foreign_decorator_keeps_its_own_options(app: Flask) -> None:
    dj = Demijohn(app, idempotency={"default": True})
    view = foreign(dj.idempotent(required=True)(lambda: "x"))
    app.add_url_rule("/", "x", view, methods=["POST"])
    assert app.test_client().post("/").status_code == 400
    assert second_is_replayed(app)


def test_default_costs_nothing_where_there_is_nothing_to_guard(app: Flask) -> None:
    Idempotency(app, default=True)
    app.get("/", endpoint="x")(lambda: "x")
    client = app.test_client()
    assert client.get("/", headers={"Idempotency-Key": "x"}).text == "x"
    assert client.options("/").status_code == 200
    assert client.post("/").status_code == 405
    assert client.get("/static/none.css").status_code == 404


def test_one_blueprint_under_two_names_is_protected_under_both(app: Flask) -> None:
    idem = Idempotency(app)
    blueprint = Blueprint("v", "v")
    blueprint.post("/x")(lambda: "x")
    app.register_blueprint(blueprint, url_prefix="/v1", name="v1")
    app.register_blueprint(blueprint, url_prefix="/v2", name="v2")
    idem.protect(blueprint)
    assert second_is_replayed(app, "/v1/x")
    assert second_is_replayed(app, "/v2/x")


def test_applications_of_one_factory_have_settings_of_their_own(tmp_path: Path) -> None:
    idem = Idempotency(stores="memory://", wait=1)
    view = idem.idempotent(lambda: "x")

    def create(name: str, **options: Any) -> Flask:
        app = Flask(name, instance_path=str(tmp_path / name))
        app.config["DEMIJOHN_IDEMPOTENCY"] = options
        idem.init_app(app)
        app.add_url_rule("/", "x", view, methods=["POST", "PUT"])
        return app

    required, puts = create("a", required=True), create("b", methods=["PUT"])
    assert required.test_client().post("/").status_code == 400
    assert puts.test_client().post("/").status_code == 200
    assert second_is_replayed(puts, method="PUT")
    assert not second_is_replayed(puts)
    assert second_is_replayed(required)


def test_application_that_is_gone_is_not_kept_alive(tmp_path: Path) -> None:
    idem = Idempotency(stores="memory://")
    view = idem.idempotent(lambda: "x")
    app = Flask("short", instance_path=str(tmp_path))
    idem.init_app(app)
    app.add_url_rule("/", "x", view, methods=["POST"])
    assert second_is_replayed(app)
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None


def test_store_of_the_applications_own_outlives_the_application(tmp_path: Path) -> None:
    """Another application may use it: it is for who has made it to close it."""
    store = MemoryStore()
    app = Flask("first", instance_path=str(tmp_path))
    app.secret_key = "x"
    Demijohn(app, stores={"default": store, "limits": "memory://"})
    opened = app.extensions["demijohn"].stores["limits"]
    for kept in store, opened:
        kept.run([begin("key")])
    collected = weakref.ref(app)
    del app
    gc.collect()
    assert collected() is None
    assert [key for key, _ in store.scan("")] == ["key"]
    assert list(opened.scan("")) == []


# --- how exceptions leave Flask -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "passes"),
    [
        ({}, False),
        ({"PROPAGATE_EXCEPTIONS": True}, True),
        ({"PROPAGATE_EXCEPTIONS": False, "TESTING": True}, False),
        ({"DEBUG": True}, True),
        ({"TESTING": True}, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("done", [False, True], ids=["before effects", "after effects"])
def test_exception_ends_the_key_however_it_leaves(
    lone_bank: Make, config: dict[str, Any], passes: bool, done: bool
) -> None:
    bank, runs = lone_bank(wait=0), []
    bank.app.config.update(config)

    def view() -> Any:
        runs.append(1)
        if done:
            idempotency.effects_done()
        if len(runs) == 1:
            raise RuntimeError("in the view")
        return "again"

    bank.add("/raises", view)
    key = new_key()
    if passes:
        with pytest.raises(RuntimeError):
            bank.post(key, "/raises")
    else:
        assert bank.post(key, "/raises").status_code == 500
    second = bank.post(key, "/raises")
    assert (second.status_code, len(runs)) == ((500, 1) if done else (200, 2))


@pytest.mark.parametrize("trap", ["TRAP_HTTP_EXCEPTIONS", "TRAP_BAD_REQUEST_ERRORS"])
def test_trapped_error_gives_the_key_back(lone_bank: Make, trap: str) -> None:
    from flask import request

    bank, runs = lone_bank(wait=0), []
    bank.app.config[trap] = True
    bank.app.testing = True

    def view() -> Any:
        runs.append(1)
        return request.form["amount"] if len(runs) == 1 else "again"

    bank.add("/trapped", view)
    key = new_key()
    with pytest.raises(KeyError):
        bank.post(key, "/trapped")
    assert bank.post(key, "/trapped").text == "again"


def test_hook_that_fails_on_the_way_out_does_not_run_the_view_again(bank: Bank) -> None:
    fails = [True, False]

    @bank.app.after_request
    def hook(response: Any) -> Any:
        if fails.pop(0):
            raise RuntimeError("on the way out")
        return response

    key = new_key()
    fails.insert(1, False)  # Flask calls it again for the error page
    assert bank.post(key).status_code == 500
    assert bank.post(key).json == {"run": 1}


# --- sessions -----------------------------------------------------------------------------------


def test_session_is_changed_by_the_first_run_only(app: Flask) -> None:
    dj = Demijohn(app, principal=lambda: "alice")

    @app.post("/")
    @dj.idempotent
    def count() -> dict[str, int]:
        session["count"] = session.get("count", 0) + 1
        return {"count": session["count"]}

    app.get("/")(lambda: {"now": session.get("count")})
    client, headers = app.test_client(), {"Idempotency-Key": new_key()}
    for _ in range(3):
        assert client.post("/", headers=headers).json == {"count": 1}
    assert client.get("/").json == {"now": 1}
    assert app.test_client().post("/", headers=headers).json == {"count": 1}


# --- an operator decides ------------------------------------------------------------------------


@pytest.mark.parametrize("decision", ["run", "answer"])
def test_operator_decides_what_became_of_a_lost_request(lone_bank: Make, decision: str) -> None:
    store = FailingStore()
    bank, key = lone_bank(store=store, lease=0.1, on_lost="refuse"), new_key()

    def view() -> Any:
        if idempotency.current.attempt == 1:
            raise SystemExit
        return f"attempt {idempotency.current.attempt}"

    bank.add("/lost", view)
    with pytest.raises(SystemExit):
        bank.post(key, "/lost")
    while bank.post(key, "/lost", headers={"Prefer": "wait=0"}).get_json()["title"] != (
        "The outcome of the first request is not known"
    ):
        pass
    ((name, _),) = store.scan("")
    frame = encode(Frame(202, [("Content-Type", "text/plain")], b"was paid"))
    step = core.resolve(
        name, frame=b"" if decision == "run" else frame, ttl_ms=60_000, retain_ms=60_000
    )
    assert store.run([step])[0].status == "resolved"
    answer = bank.post(key, "/lost")
    expected = (200, "attempt 2") if decision == "run" else (202, "was paid")
    assert (answer.status_code, answer.text) == expected


# --- waiting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefer", "wait_ms"),
    [
        (None, 10_000),
        ("wait=3", 3000),
        ("WAIT = 3 ; x", 3000),
        ("respond-async, wait=0", 0),
        ("wait=99", 10_000),
        ("wait=-1", 10_000),
        ("wait=1.5", 10_000),
        ("handling=lenient;wait=1", 10_000),
        ("await=1", 10_000),
        ("wait=" + "9" * 400, 10_000),
    ],
)
def test_preference_only_shortens_the_wait(prefer: str | None, wait_ms: int) -> None:
    headers = {} if prefer is None else {"Prefer": prefer}
    with Flask("app").test_request_context(headers=headers) as context:
        assert patience_ms(context.request, 10_000) == wait_ms
