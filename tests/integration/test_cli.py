"""What an operator sees and decides with ``flask demijohn``."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from flask import Flask
from flask.cli import FlaskGroup

from demijohn import Demijohn
from demijohn.core import idempotency as core

KEY = "0d4f8f6e-7d9e-4c43-9f0e-6f6f5ad0c8a1"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    app = Flask(__name__, instance_path=str(tmp_path))
    dj = Demijohn(app, principal=lambda: "alice", idempotency={"on_lost": "refuse"})

    @app.post("/payments")
    @dj.idempotent
    def pay() -> tuple[dict[str, str], int]:
        return {"paid": "once"}, 201

    return app


def run(app: Flask, *words: str) -> Result:
    # FlaskGroup is what ``flask`` itself runs: it finds the command by its entry point.
    group = FlaskGroup(create_app=lambda: app)
    return app.test_cli_runner().invoke(group, ["demijohn", *words])


def name_of_key(app: Flask) -> str:
    return run(app, "idempotency", "name", KEY, "--principal", "alice").output.strip()


def lose(app: Flask) -> str:
    """Leave a request behind whose process died: begun, its lease over, never completed."""
    name = name_of_key(app)
    store = app.extensions["demijohn"].store("idempotency")
    with app.test_request_context("/payments", method="POST"):
        claim = {"fingerprint": b"x", "lease_ms": 0, "retain_ms": 60_000}
        refuse = core.OnLost.REFUSE
        store.run([core.begin((name,), token=b"dead", on_lost=refuse, **claim)])
        lost = store.run([core.begin((name,), token=b"late", on_lost=refuse, **claim)])
    assert lost[0].status == "unknown"
    return name


def test_stores_answer(app: Flask) -> None:
    result = run(app, "stores")
    assert result.exit_code == 0
    assert result.output.startswith("default: ok sqlite")


def test_store_that_cannot_be_opened_is_named_and_fails(tmp_path: Path) -> None:
    app = Flask(__name__, instance_path=str(tmp_path))
    (tmp_path / "rows.db").mkdir()
    Demijohn(app, stores="sqlite:///rows.db")
    result = run(app, "stores")
    assert result.exit_code == 1
    assert "default: FAILED sqlite" in result.output


def test_application_without_demijohn_is_told_so() -> None:
    for words in (["stores"], ["idempotency", "list"]):
        result = run(Flask(__name__), *words)
        assert result.exit_code == 1
        assert "is not bound" in result.output


def test_key_is_listed_and_shown_without_revealing_it(app: Flask) -> None:
    app.test_client().post("/payments", headers={"Idempotency-Key": KEY})
    name = name_of_key(app)
    listed = run(app, "idempotency", "list").output
    assert listed.startswith(f"{name}  completed  attempt 1  since 20")
    assert KEY not in listed
    assert "alice" not in listed
    assert run(app, "idempotency", "list", "--state", "running").output == ""
    shown = run(app, "idempotency", "show", name).output
    assert "state: completed" in shown
    assert "response: 201, body 16 bytes" in shown


def test_list_ends_at_its_limit(app: Flask) -> None:
    for number in range(3):
        headers = {"Idempotency-Key": f"{KEY}-{number}"}
        app.test_client().post("/payments", headers=headers)
    assert len(run(app, "idempotency", "list", "--limit", "2").output.splitlines()) == 2


def test_running_key_shows_its_lease(app: Flask) -> None:
    name = name_of_key(app)
    store = app.extensions["demijohn"].store("idempotency")
    begin = core.begin((name,), fingerprint=b"x", token=b"here", lease_ms=60_000, retain_ms=60_000)
    store.run([begin])
    assert "lease until: 20" in run(app, "idempotency", "show", name).output
    refused = run(app, "idempotency", "resolve", name, "--run")
    assert refused.exit_code == 1
    assert "the key is running" in refused.output


def test_key_that_is_not_there_is_an_error(app: Flask) -> None:
    result = run(app, "idempotency", "show", "idempotency:{0000}:none")
    assert result.exit_code == 1
    assert "there is no key" in result.output


def test_operator_lets_a_lost_request_run_again(app: Flask) -> None:
    name = lose(app)
    client = app.test_client()
    headers = {"Idempotency-Key": KEY}
    assert "unknown" in run(app, "idempotency", "list", "--state", "unknown").output
    assert client.post("/payments", headers=headers).status_code == 422  # another request's key
    assert run(app, "idempotency", "resolve", name, "--run").output == (
        "resolved: a retry will run\n"
    )
    answer = client.post("/payments", headers=headers)
    assert (answer.status_code, answer.json) == (201, {"paid": "once"})


def test_operator_answers_a_lost_request_for_good(app: Flask) -> None:
    name = lose(app)
    words = ["--status", "201", "--body", '{"paid": "by hand"}']
    assert run(app, "idempotency", "resolve", name, *words).exit_code == 0
    assert "response: 201" in run(app, "idempotency", "show", name).output


def test_operator_must_choose(app: Flask) -> None:
    name = lose(app)
    assert run(app, "idempotency", "resolve", name).exit_code == 2
    assert run(app, "idempotency", "resolve", name, "--run", "--status", "200").exit_code == 2
