"""What an operator sees and undoes with ``flask limits``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Blueprint, Flask
from flask.cli import FlaskGroup
from flask.views import MethodView

from demijohn import Demijohn, Idempotency
from demijohn.core import limits as core


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    app = Flask("operated", instance_path=str(tmp_path))
    app.secret_key = "s"
    limits: Any = {"default": "7/minute", "application": "100/hour"}
    dj = Demijohn(app, stores="memory://", principal=lambda: "42", limits=limits)
    api = Blueprint("api", __name__)

    @app.get("/search")
    @dj.limit("2/minute; 50/day", algorithm="log")
    @dj.limit("9/hour", by="principal", burst=3, shadow=True)
    def search() -> str:
        return "found"

    @app.post("/send")
    @dj.idempotent
    @dj.limit("3/month", by="all", algorithm="calendar", group="sending", methods="POST")
    @dj.limit(lambda: "5/minute", unless=lambda: False)
    @dj.limit("4/minute", by=lambda: "somebody", unless=lambda: False)
    def send() -> str:
        return "sent"

    @app.get("/known")
    @dj.limit("4/minute", by="api_key", missing="ip", name="known")
    @dj.limit("3/minute", by="session")
    @dj.limit("2/minute", by="api_key")
    def known() -> str:
        return "known"

    @app.get("/plain")
    def plain() -> str:
        return "plain"

    class Things(MethodView):
        @dj.limit("8/minute")
        def get(self) -> str:
            return "got"

        def post(self) -> str:
            return "posted"

    @api.get("/inside")
    def inside() -> str:
        return "inside"

    dj.limits.protect(api, "6/minute", by=("principal", "ip"))
    app.register_blueprint(api, url_prefix="/api")
    app.add_url_rule("/things", view_func=Things.as_view("things"))
    return app


def run(app: Flask, *words: str, **options: Any) -> Result:
    # FlaskGroup is what ``flask`` itself runs: it finds the command by its entry point.
    group = FlaskGroup(create_app=lambda: app)
    return app.test_cli_runner().invoke(group, ["limits", *words], **options)


def test_limits_of_every_endpoint_are_listed(app: Flask) -> None:
    lines = run(app, "list").output.splitlines()
    for line in (
        "plain: 7/minute, by ip",
        "plain: 100/hour, by ip, group application",
        "search: 2/minute, by ip, log",
        "search: 9/hour, by principal, gcra, in shadow",
        "send: 3/month, by all, calendar, group sending, POST",
        "send: 4/minute, by function, unless ...",
        "api.inside: 6/minute, by principal+ip",
        "things: 8/minute, by ip",
        "known: known (4/60s), by api_key",
        "things: 7/minute, by ip",
    ):
        assert line in lines
    assert any(line.startswith("send: by a function") for line in lines)
    assert not [line for line in lines if line.startswith("static")]


def test_limits_of_one_endpoint_are_listed(app: Flask) -> None:
    lines = run(app, "list", "--endpoint", "plain").output.splitlines()
    assert len(lines) == 2


def test_somebody_is_looked_at_and_nothing_is_taken(app: Flask) -> None:
    app.test_client().get("/search")
    for _ in range(3):
        shown = run(app, "peek", "ip:127.0.0.1")
        assert "search: 2/minute: 1 of 2 left, more in 60 s" in shown.output
        assert "plain: 7/minute: 7 of 7 left\n" in shown.output
        assert "application: 100/hour: 99 of 100 left" in shown.output
        assert "sending: 3/month: 3 of 3 left" in shown.output
    # Who does not say who calls may be counted by the address.
    shown = run(app, "peek", "ip:127.0.0.1").output
    assert "known: known: 4 of 4 left" in shown
    assert "known: 3/minute: 3 of 3 left" in shown
    assert "known: 2/minute" not in shown
    assert "search: 9/hour: 2 of 9 left" in run(app, "peek", "principal:42").output
    together = run(app, "peek", "user:42,ip:127.0.0.1").output
    assert "api.inside: 6/minute: 6 of 6 left" in together


def test_somebody_is_watched(app: Flask) -> None:
    shown = run(app, "peek", "ip:127.0.0.1", "--watch", "0.01", "--times", "3")
    assert shown.output.count("plain: 7/minute") == 3


def test_request_is_tried_without_being_made(app: Flask) -> None:
    before = run(app, "test", "ip:127.0.0.1", "search")
    assert before.exit_code == 0
    assert "ok: search: 2/minute: 2 of 2 left" in before.output
    assert "not known: 9/hour" in before.output
    for _ in range(2):
        app.test_client().get("/search")
    after = run(app, "test", "ip:127.0.0.1", "search")
    assert after.exit_code == 1
    assert "REFUSED: search: 2/minute: 0 of 2 left" in after.output
    assert run(app, "test", "ip:127.0.0.1", "nowhere").exit_code == 2


def test_what_was_taken_is_forgotten(app: Flask) -> None:
    client = app.test_client()
    assert [client.get("/search").status_code for _ in range(3)] == [200, 200, 429]
    other = client.get("/search", environ_overrides={"REMOTE_ADDR": "192.0.2.1"})
    assert other.status_code == 200
    assert run(app, "reset", "ip:127.0.0.1").output == "3 reset\n"
    assert client.get("/search").status_code == 200
    assert "search: 2/minute: 1 of 2" in run(app, "peek", "ip:192.0.2.1").output


def test_everybody_is_reset_after_a_question(app: Flask) -> None:
    store = app.extensions["demijohn"].stores["default"]
    for number in range(250):
        store.run([core.take((f"limits:{{{number}}}:k",), [(core.WINDOW, 5, 60_000, 0, 1)])])
    assert run(app, "reset", "--all", input="n\n").exit_code == 1
    assert run(app, "reset", "--all", input="y\n").output.endswith("250 reset\n")
    assert run(app, "reset", "--all", "--yes").output == "0 reset\n"


@pytest.mark.parametrize("words", [["reset"], ["reset", "ip:192.0.2.1", "--all"]])
def test_reset_wants_to_know_whom(app: Flask, words: list[str]) -> None:
    assert run(app, *words).exit_code == 2


@pytest.mark.parametrize("who", ["127.0.0.1", "mac:00", "ip"])
def test_who_is_not_spelled_is_told_how(app: Flask, who: str) -> None:
    shown = run(app, "peek", who)
    assert shown.exit_code == 2
    assert "such as ip:192.0.2.1" in shown.output


def test_nobody_counts_so(app: Flask) -> None:
    assert "no limit counts by api_key" not in run(app, "peek", "ip:192.0.2.1").output
    empty = Flask("empty")
    empty.secret_key = "s"
    Demijohn(empty, stores="memory://")
    assert "no limit counts by ip" in run(empty, "peek", "ip:192.0.2.1").output


def test_who_is_refused_most_is_listed(app: Flask) -> None:
    assert run(app, "top").output == "nobody was refused\n"
    client = app.test_client()
    for _ in range(7):
        client.get("/search")
    for _ in range(4):
        client.get("/search", environ_overrides={"REMOTE_ADDR": "192.0.2.1"})
    app.extensions["demijohn"].capabilities["limits"].tally.flush()
    lines = run(app, "top").output.splitlines()
    assert [line.split()[0] for line in lines] == ["5", "2"]
    assert all("search 2/minute" in line and "limits:{" in line for line in lines)
    assert len(run(app, "top", "--limit", "1").output.splitlines()) == 1


def test_store_that_fails_is_told(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    from demijohn.errors import StoreUnavailable

    def fail(*_: Any) -> Any:
        raise StoreUnavailable("the store is down")

    store = app.extensions["demijohn"].stores["default"]
    monkeypatch.setattr(store, "run", fail)
    monkeypatch.setattr(store, "scan", fail)
    for words in (["peek", "ip:192.0.2.1"], ["top"], ["reset", "--all", "--yes"]):
        shown = run(app, *words)
        assert shown.exit_code == 1
        assert "the store is down" in shown.output


def test_application_without_limits_is_told() -> None:
    app = Flask("without")
    app.secret_key = "s"
    Idempotency(app, stores="memory://")
    assert "limits are not bound" in run(app, "list").output
