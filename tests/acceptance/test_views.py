"""Every kind of view and response behaves under the guard."""

from __future__ import annotations

import gzip
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    flash,
    get_flashed_messages,
    make_response,
    redirect,
    render_template_string,
    request,
    send_file,
    session,
    stream_with_context,
)
from flask.views import MethodView

from demijohn import Demijohn, Idempotency, idempotency
from demijohn.errors import UsageError
from demijohn.idempotency import signals
from tests.acceptance.conftest import Bank, heard, new_key, together

Make = Callable[..., Bank]


def replayed(response: Any) -> bool:
    return bool(response.headers.get("Idempotent-Replayed") == "true")


# --- responses ----------------------------------------------------------------------------------


def test_streamed_response_is_kept_when_it_has_been_sent(bank: Bank) -> None:
    count = []

    def view() -> Any:
        count.append(1)

        def parts() -> Iterator[str]:
            yield "one,"
            yield request.path

        return Response(stream_with_context(parts()), mimetype="text/csv")

    bank.add("/stream", view)
    key = new_key()
    first, second = bank.post(key, "/stream"), bank.post(key, "/stream")
    assert first.data == second.data == b"one,/stream"
    assert second.mimetype == "text/csv"
    assert replayed(second)
    assert len(count) == 1


def test_duplicate_waits_for_a_stream_to_end(make_bank: Make) -> None:
    bank = make_bank(lease=0.3)
    go = threading.Event()

    def view() -> Any:
        def parts() -> Iterator[bytes]:
            bank.entered.release()
            yield b"a"
            assert go.wait(20)
            yield b"b"

        return Response(parts())

    bank.add("/slow", view)
    key = new_key()
    with together(2) as start:
        first = start(bank.post, key, "/slow")
        assert bank.entered.acquire(timeout=10)
        second = start(bank.post, key, "/slow")
        threading.Event().wait(0.5)  # longer than the lease: it is renewed while the body is sent
        go.set()
        assert first.result(30).data == second.result(30).data == b"ab"
    assert replayed(second.result())


@pytest.mark.parametrize(("policy", "runs"), [("finish", 1), ("release", 2)])
def test_client_that_goes_away_in_a_stream(make_bank: Make, policy: str, runs: int) -> None:
    bank = make_bank(on_disconnect=policy)
    count = []

    def view() -> Any:
        count.append(1)
        return Response(iter([b"a", b"b", b"c"]))

    bank.add("/stream", view)
    key = new_key()
    client = bank.app.test_client()
    answer = client.post("/stream", headers={"Idempotency-Key": key}, buffered=False)
    assert next(answer.iter_encoded()) == b"a"
    answer.close()
    assert bank.post(key, "/stream", json=None).data == b"abc"
    assert len(count) == runs


def test_stream_that_fails_gives_the_key_back(bank: Bank) -> None:
    count = []

    def view() -> Any:
        count.append(1)

        def parts() -> Iterator[bytes]:
            yield b"a"
            if len(count) == 1:
                raise RuntimeError("in the middle")
            yield b"b"

        return Response(parts())

    bank.add("/fails", view)
    key = new_key()
    with pytest.raises(RuntimeError):
        bank.post(key, "/fails")
    assert bank.post(key, "/fails").data == b"ab"
    assert replayed(bank.post(key, "/fails"))


def test_stream_that_fails_after_its_effects_is_not_run_again(bank: Bank) -> None:
    def view() -> Any:
        idempotency.effects_done()

        def parts() -> Iterator[bytes]:
            yield b"a"
            raise RuntimeError("in the middle")

        return Response(parts())

    bank.add("/fails", view)
    key = new_key()
    with pytest.raises(RuntimeError):
        bank.post(key, "/fails")
    assert bank.post(key, "/fails").status_code == 409


def test_stream_larger_than_the_limit_is_not_kept(make_bank: Make) -> None:
    bank = make_bank(max_body=3)
    bank.add("/large", lambda: Response(iter([b"ab", b"cd", b"e"])))
    key = new_key()
    assert bank.post(key, "/large").data == b"abcde"
    assert bank.post(key, "/large").status_code == 409


def test_streamed_error_gives_the_key_back(bank: Bank) -> None:
    bank.add("/error", lambda: Response(iter([b"later"]), status=503))
    key = new_key()
    with heard(signals.released) as seen:
        assert bank.post(key, "/error").data == b"later"
    assert len(seen) == 1


def test_sent_file_is_replayed(bank: Bank) -> None:
    bank.add("/file", lambda: send_file(io.BytesIO(b"\x00\xffbinary"), "image/png"))
    key = new_key()
    first, second = bank.post(key, "/file"), bank.post(key, "/file")
    assert first.data == second.data == b"\x00\xffbinary"
    assert second.mimetype == "image/png"


def test_large_binary_body_is_replayed_to_the_byte(make_bank: Make) -> None:
    bank = make_bank(max_body=20_000_000)
    content = bytes(range(256)) * 40_000
    bank.add("/large", lambda: Response(content, mimetype="application/octet-stream"))
    key = new_key()
    bank.post(key, "/large")
    assert bank.post(key, "/large").data == content


def test_encoded_body_is_kept_plain(bank: Bank) -> None:
    def view() -> Any:
        return Response(gzip.compress(b"plain"), headers={"Content-Encoding": "gzip"})

    bank.add("/gzip", view)
    key = new_key()
    bank.post(key, "/gzip")
    second = bank.post(key, "/gzip")
    assert second.data == b"plain"
    assert "Content-Encoding" not in second.headers


def test_replay_is_given_no_cookie_and_no_id_of_the_first_request(bank: Bank) -> None:
    def view() -> Any:
        response = make_response("x")
        response.set_cookie("session_of", "alice")
        response.headers["X-Request-Id"] = "first"
        response.headers["X-RateLimit-Remaining"] = "7"
        response.headers["Date"] = "yesterday"
        response.headers["X-Kept"] = "kept"
        session["seen"] = True
        flash("hello")
        return response

    bank.add("/cookie", view)
    key = new_key()
    first = bank.post(key, "/cookie")
    assert len(first.headers.getlist("Set-Cookie")) == 2
    second = bank.post(key, "/cookie")
    for name in ("Set-Cookie", "X-Request-Id", "X-RateLimit-Remaining", "Date"):
        assert name not in second.headers
    assert second.headers["X-Kept"] == "kept"


def test_flashed_messages_are_not_repeated(bank: Bank) -> None:
    def view() -> Any:
        flash("paid")
        return redirect("/", 303)

    bank.add("/pay-form", view)
    bank.app.add_url_rule("/", "home", lambda: "|".join(get_flashed_messages()))
    client, headers = bank.app.test_client(), {"Idempotency-Key": new_key()}
    for _ in range(2):
        answer = client.post("/pay-form", headers=headers)
        assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    assert client.get("/").text == "paid"


def test_hooks_run_on_replays_with_the_new_request(bank: Bank) -> None:
    @bank.app.after_request
    def mark(response: Response) -> Response:
        response.headers["X-Request-Id"] = request.headers["X-Request-Id"]
        return response

    key = new_key()
    ids = [bank.post(key, headers={"X-Request-Id": i}).headers["X-Request-Id"] for i in "12"]
    assert ids == ["1", "2"]


def test_named_headers_are_dropped(make_bank: Make) -> None:
    bank = make_bank(drop_headers=["X-Trace"])
    bank.add("/trace", lambda: ("x", 200, {"x-trace": "1"}))
    key = new_key()
    assert "X-Trace" in bank.post(key, "/trace").headers
    assert "X-Trace" not in bank.post(key, "/trace").headers


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("all", {200, 500, 429}),
        ([200, 500], {200, 500}),
        (lambda response: response.status_code == 429, {429}),
    ],
)
def test_what_is_kept_may_be_chosen(make_bank: Make, rule: Any, kept: set[int]) -> None:
    bank = make_bank()
    for status in (200, 429, 500):
        bank.add(f"/{status}", lambda status=status: ("x", status), store=rule)
    for status in (200, 429, 500):
        key = new_key()
        bank.post(key, f"/{status}")
        assert replayed(bank.post(key, f"/{status}")) == (status in kept)


def test_rule_that_fails_does_not_make_the_view_run_again(
    bank: Bank, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []

    def view() -> Any:
        runs.append(1)
        return "paid"

    bank.add("/rule", view, store=lambda response: response.get_json()["no such member"])
    key = new_key()
    assert bank.post(key, "/rule").text == "paid"
    assert replayed(bank.post(key, "/rule"))
    assert len(runs) == 1
    assert "store= of /rule failed" in caplog.text


def test_status_of_no_known_class_is_replayed(bank: Bank) -> None:
    bank.add("/odd", lambda: ("x", 999), store="all")
    key = new_key()
    assert [bank.post(key, "/odd").status_code for _ in range(2)] == [999, 999]


# --- views --------------------------------------------------------------------------------------


def test_async_view(bank: Bank) -> None:
    pytest.importorskip("asgiref")
    count = []

    async def view() -> Any:
        count.append(1)
        if request.args:
            raise RuntimeError("async")
        return {"run": len(count)}

    bank.add("/async", view)
    key = new_key()
    assert bank.post(key, "/async").json == bank.post(key, "/async").json == {"run": 1}
    assert bank.post(path="/async").json == {"run": 2}
    failing = new_key()
    for _ in range(2):
        assert bank.post(failing, "/async", query_string={"x": 1}).status_code == 500
    assert len(count) == 4


def test_class_based_views(bank: Bank) -> None:
    count = []

    class Whole(MethodView):
        decorators = [bank.dj.idempotent]  # noqa: RUF012 - as Flask has it

        def post(self, number: int) -> Any:
            count.append(number)
            return str(number)

    class Method(MethodView):
        @bank.dj.idempotent(required=True)
        def post(self, number: int) -> Any:
            count.append(number)
            return str(number)

    bank.app.add_url_rule("/whole/<int:number>", view_func=Whole.as_view("whole"))
    bank.app.add_url_rule("/method/<int:number>", view_func=Method.as_view("method"))
    for path in ("/whole/1", "/method/2"):
        key = new_key()
        assert bank.post(key, path).text == bank.post(key, path).text
    assert count == [1, 2]
    assert bank.post(path="/method/3").status_code == 400


def test_foreign_decorator_in_between_is_kept(bank: Bank) -> None:
    import functools

    calls = []

    def foreign(view: Any) -> Any:
        @functools.wraps(view)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls.append("foreign")
            return view(*args, **kwargs)

        return wrapper

    def view() -> Any:
        calls.append("view")
        return "x"

    guarded = bank.dj.idempotent(foreign(bank.dj.idempotent(view)))
    bank.app.add_url_rule("/nested", view_func=guarded, methods=["POST"])
    key = new_key()
    bank.post(key, "/nested")
    assert calls == ["foreign", "view"]
    assert replayed(bank.post(key, "/nested"))
    assert calls == ["foreign", "view"]


def test_deciding_twice_for_one_view_is_a_mistake(bank: Bank) -> None:
    def view() -> str:
        return "x"

    with pytest.raises(UsageError, match="twice"):
        bank.dj.idempotent(required=True)(bank.dj.idempotent(view))


def test_whole_application_may_be_idempotent_by_default(tmp_path: Path) -> None:
    app = Flask("app", instance_path=str(tmp_path))
    app.config["DEMIJOHN_STORES"] = "memory://"
    app.config["DEMIJOHN_IDEMPOTENCY"] = {"default": True}
    dj = Demijohn(app)
    count: list[str] = []

    def view(name: str) -> Callable[[], str]:
        def run() -> str:
            count.append(name)
            return name

        run.__name__ = name
        return run

    class Mixed(MethodView):
        @dj.idempotent.exempt
        def post(self) -> str:
            count.append("mixed")
            return "x"

        def patch(self) -> str:
            count.append("patched")
            return "x"

    app.post("/plain")(view("plain"))
    app.post("/exempt")(dj.exempt(view("exempt")))
    app.post("/required")(dj.idempotent(required=True)(view("required")))
    app.add_url_rule("/mixed", view_func=Mixed.as_view("mixed"))
    client, headers = app.test_client(), {"Idempotency-Key": new_key()}

    def twice(path: str, method: str = "POST") -> None:
        for _ in range(2):
            client.open(path, method=method, headers=headers)
        headers["Idempotency-Key"] = new_key()

    for path in ("/plain", "/exempt", "/required", "/mixed"):
        twice(path)
    twice("/mixed", "PATCH")
    assert count == ["plain", "exempt", "exempt", "required", "mixed", "mixed", "patched"]
    assert client.post("/required").status_code == 400
    assert client.post("/nowhere").status_code == 404


def test_blueprints_may_be_idempotent_by_default_with_the_inner_one_deciding(
    tmp_path: Path,
) -> None:
    app = Flask("app", instance_path=str(tmp_path))
    outer, inner = Blueprint("outer", "o", url_prefix="/outer"), Blueprint("inner", "i")
    dj = Demijohn(stores="memory://")
    outer.post("/a")(lambda: "a")
    inner.post("/b")(lambda: "b")
    app.post("/c")(lambda: "c")
    outer.register_blueprint(inner, url_prefix="/inner")
    app.register_blueprint(outer)
    dj.idempotency.protect(outer)
    dj.init_app(app)
    dj.idempotency.protect(inner, required=True)
    client, headers = app.test_client(), {"Idempotency-Key": new_key()}
    for path, is_replayed in (("/outer/a", True), ("/outer/inner/b", True), ("/c", False)):
        headers = {"Idempotency-Key": new_key()}
        client.post(path, headers=headers)
        assert replayed(client.post(path, headers=headers)) == is_replayed
    assert client.post("/outer/a").status_code == 200
    assert client.post("/outer/inner/b").status_code == 400


def test_one_object_serves_several_applications(tmp_path: Path) -> None:
    idem = Idempotency(stores="memory://")

    @idem.idempotent
    def view() -> dict[str, str]:
        return {"from": request.headers["X-App"]}

    clients = []
    for name in "ab":
        app = Flask(name, instance_path=str(tmp_path / name))
        idem.init_app(app)
        app.add_url_rule("/", view_func=view, methods=["POST"])
        clients.append(app.test_client())
    key = new_key()
    for client, name in zip(clients * 2, "abab", strict=True):
        headers = {"Idempotency-Key": key, "X-App": name}
        assert client.post("/", headers=headers).json == {"from": name}


def test_decorated_view_in_an_unbound_application_says_so() -> None:
    app = Flask("unbound")
    app.testing = True
    app.add_url_rule("/", view_func=Idempotency().idempotent(lambda: "x"), methods=["POST"])
    with pytest.raises(UsageError, match="not bound"):
        app.test_client().post("/")


# --- what a view may ask ------------------------------------------------------------------------


def test_view_knows_its_attempt_and_derives_keys(bank: Bank) -> None:
    seen: list[Any] = []

    def view() -> Any:
        current = idempotency.current
        seen.append((current.key, current.derive("a"), current.derive("b"), current.fence))
        return "", 500 if len(seen) == 1 else 200

    bank.add("/derive", view)
    key = new_key()
    bank.post(key, "/derive")
    bank.post(f'"{key}"', "/derive")
    (key1, a1, b1, fence1), (key2, a2, b2, fence2) = seen
    assert key1 == key2 == key
    assert (a1, b1) == (a2, b2)
    assert a1 != b1
    assert fence2 > fence1


def test_view_without_a_key_is_a_first_attempt_with_random_keys(bank: Bank) -> None:
    def view() -> Any:
        current = idempotency.current
        idempotency.effects_done()
        idempotency.checkpoint()
        return f"{current.key} {current.is_retry} {current.derive('a') == current.derive('a')}"

    bank.add("/none", view)
    assert bank.post(path="/none").text == "None False False"


def test_current_outside_of_a_request_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="inside a request"):
        _ = idempotency.current.key


def test_checkpoint_stops_a_run_that_has_lost_its_lease(make_bank: Make) -> None:
    bank = make_bank(lease=0.3)
    go, effects = threading.Event(), []

    def view() -> Any:
        if idempotency.current.attempt > 1:
            return "the winner's"
        bank.entered.release()
        assert go.wait(20)
        for _ in range(500):
            threading.Event().wait(0.01)
            idempotency.checkpoint()
        effects.append("late")
        return "never"

    bank.add("/check", view)
    key = new_key()
    keeper = bank.app.extensions["demijohn"].keeper
    renew, keeper._renew_due = keeper._renew_due, lambda process: None  # as if it were paused
    with together(2) as start, heard(signals.lost) as seen:
        first = start(bank.post, key, "/check")
        assert bank.entered.acquire(timeout=10)
        assert bank.post(key, "/check").text == "the winner's"
        keeper._renew_due = renew
        go.set()
        answer = first.result(30)
    assert effects == []
    assert seen
    assert answer.text == "the winner's"


# --- forms and the old ways ---------------------------------------------------------------------


def form_app(tmp_path: Path, **options: Any) -> Flask:
    app = Flask("forms", instance_path=str(tmp_path))
    dj = Demijohn(app, stores="memory://", idempotency=options)  # type: ignore[arg-type]
    count = []

    @app.get("/")
    def form() -> str:
        return render_template_string("{{ idempotent_input() }}|{{ idempotent_key() }}")

    @app.post("/")
    @dj.idempotent
    def submit() -> Any:
        count.append(request.form.get("amount"))
        return redirect(f"/done/{len(count)}", 303)

    return app


def test_form_that_is_submitted_twice_gets_the_first_answer(tmp_path: Path) -> None:
    client = form_app(tmp_path, forms=True).test_client()
    field, _, key = client.get("/").text.partition("|")
    assert field.startswith('<input type="hidden" name="__idempotent_key" value="')
    value = field.split('value="')[1].split('"')[0]
    assert value != key
    data = {"__idempotent_key": value, "amount": "1"}
    answers = [client.post("/", data=data) for _ in range(2)]
    assert [answer.headers["Location"] for answer in answers] == ["/done/1", "/done/1"]
    assert client.post("/", data={**data, "amount": "2"}).status_code == 422
    again = client.post("/", data={"__idempotent_key": key, "amount": "1"})
    assert again.headers["Location"] == "/done/2"


def test_key_in_a_form_is_not_looked_for_unless_it_is_asked_for(tmp_path: Path) -> None:
    app = form_app(tmp_path)
    app.testing = True
    client = app.test_client()
    data = {"__idempotent_key": new_key()}
    assert client.post("/", data=data).headers["Location"] == "/done/1"
    assert client.post("/", data=data).headers["Location"] == "/done/2"
    with pytest.raises(UsageError, match="forms"):
        client.get("/")


def test_field_may_have_another_name(tmp_path: Path) -> None:
    client = form_app(tmp_path, forms=True, form_field="once").test_client()
    assert 'name="once"' in client.get("/").text
    data = {"once": new_key()}
    client.post("/", data=data)
    assert replayed(client.post("/", data=data))


@pytest.mark.parametrize("where", ["header", "form", "query"])
def test_old_places_of_a_key_work_in_legacy_mode(tmp_path: Path, where: str) -> None:
    client = form_app(tmp_path, legacy=True).test_client()
    key = new_key()
    options: dict[str, Any] = {
        "header": {"headers": {"X-Idempotent-Key": key}},
        "form": {"data": {"__idempotent_key": key}},
        "query": {"query_string": {"__idempotent_key": key}},
    }[where]
    client.post("/", **options)
    assert replayed(client.post("/", **options))


def test_sources_that_disagree_are_refused(tmp_path: Path) -> None:
    client = form_app(tmp_path, legacy=True).test_client()
    key = new_key()
    both = {"Idempotency-Key": key, "X-Idempotent-Key": key}
    assert client.post("/", headers=both).status_code == 303
    both["X-Idempotent-Key"] = new_key()
    answer = client.post("/", headers=both)
    assert answer.status_code == 400
    assert "two different" in answer.get_json(force=True)["detail"]


def test_key_finder_finds_a_key(tmp_path: Path) -> None:
    app = Flask("finder", instance_path=str(tmp_path))
    idem = Idempotency(stores="memory://")

    @idem.key_finder
    def from_body(request: Any) -> str | None:
        body = request.get_json(silent=True)
        return body.get("idempotency_key") if isinstance(body, dict) else None

    idem.init_app(app)
    app.add_url_rule("/", view_func=idem.idempotent(lambda: "x"), methods=["POST"])
    client = app.test_client()
    body = {"idempotency_key": new_key()}
    client.post("/", json=body)
    assert replayed(client.post("/", json=body))
    assert not replayed(client.post("/", json={}))


def test_key_finder_that_finds_no_string_is_a_mistake(tmp_path: Path) -> None:
    app = Flask("finder", instance_path=str(tmp_path))
    app.testing = True
    idem = Idempotency(app, stores="memory://")
    idem.key_finder(lambda request: 7)  # type: ignore[arg-type, return-value]
    app.add_url_rule("/", view_func=idem.idempotent(lambda: "x"), methods=["POST"])
    with pytest.raises(UsageError, match="returned 7; it must return a string"):
        app.test_client().post("/")


def test_old_settings_are_understood(tmp_path: Path) -> None:
    app = Flask("old", instance_path=str(tmp_path))
    app.config.update(IDEMPOTENT_TIMEOUT=7, IDEMPOTENT_EXPIRE=240)
    idem = Idempotency(app, stores="memory://")
    settings = app.extensions["demijohn"].capabilities["idempotency"].settings
    assert (settings.wait_ms, settings.ttl_ms) == (7_000, 240_000)
    assert idem


def test_old_redis_url_is_used_in_legacy_mode(redis_url: str, tmp_path: Path) -> None:
    app = Flask("old", instance_path=str(tmp_path))
    app.secret_key = "s"
    app.config.update(REDIS_URL=redis_url, DEMIJOHN_IDEMPOTENCY={"legacy": True})
    Idempotency(app)
    assert app.extensions["demijohn"].stores["default"].health().kind == "redis"
