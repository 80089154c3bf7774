"""Problem details: one catalogue, one body, and handlers that keep working."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import Flask, abort
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import HTTPException, Unauthorized

from demijohn.idempotency import refusals
from demijohn.problem import BASE, MEDIA_TYPE, Problem, Refusal, about, problem_for

app = Flask(__name__)


def body(response: Any) -> dict[str, Any]:
    assert response.mimetype == MEDIA_TYPE
    found: dict[str, Any] = json.loads(response.get_data())
    return found


@pytest.mark.parametrize("kind", refusals.ALL, ids=lambda kind: kind.__name__)
def test_every_refusal_is_an_http_error_with_a_documented_problem(kind: type[Refusal]) -> None:
    error = kind("what happened, and the cure", retry_after=3, extensions={"more": [1]})
    assert isinstance(error, HTTPException)
    with app.test_request_context():
        response = error.get_response()
        uri = f"{BASE}{kind.kind.slug}"
        assert body(response) == {
            "type": uri,
            "title": kind.kind.title,
            "status": kind.kind.status,
            "detail": "what happened, and the cure",
            "more": [1],
        }
        assert response.status_code == error.code == kind.kind.status
        assert response.headers["Link"] == f'<{uri}>; rel="describedby"'
        assert response.headers["Retry-After"] == "3"
        assert response.headers["Cache-Control"] == "no-store"


def test_types_of_problems_are_distinct() -> None:
    assert len({kind.kind.slug for kind in refusals.ALL}) == len(refusals.ALL)


def test_refusal_without_a_time_has_no_such_header() -> None:
    with app.test_request_context():
        assert "Retry-After" not in refusals.KeyReused("x").get_response().headers


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.text(), st.dictionaries(st.text(), json_values))
def test_extensions_never_hide_a_member_of_the_standard(
    detail: str, extensions: dict[str, Any]
) -> None:
    problem = Problem("about:blank", 409, "Conflict", detail, {**extensions, "status": 200})
    document = json.loads(problem.response().get_data())
    assert (document["type"], document["status"], document["title"]) == (
        "about:blank",
        409,
        "Conflict",
    )
    assert document.get("detail", "") == (detail or extensions.get("detail", ""))


def test_status_may_say_it_all() -> None:
    assert about(404).document() == {"type": "about:blank", "title": "Not Found", "status": 404}
    assert about(599).title == "Unknown Error"


def test_any_error_becomes_a_problem_with_its_headers() -> None:
    error = Unauthorized("who are you?", www_authenticate=WWWAuthenticate("basic"))
    with app.test_request_context():
        response: Any = problem_for(error)
    assert body(response)["detail"] == "who are you?"
    assert response.headers["WWW-Authenticate"].startswith("Basic")
    assert response.headers.getlist("Content-Type") == [MEDIA_TYPE]


@pytest.mark.parametrize("status", [400, 404, 405, 413, 415, 418, 429, 500, 503])
def test_aborted_view_of_an_application_with_problems_is_one(status: int, tmp_path: Any) -> None:
    from demijohn import Demijohn

    application = Flask("problems", instance_path=str(tmp_path))
    Demijohn(application, stores="memory://", problems=True)
    application.get("/", endpoint="x")(lambda: abort(status))
    answer = application.test_client().get("/")
    assert (answer.status_code, body(answer)["status"]) == (status, status)


def test_handler_of_the_application_wins_over_problems(tmp_path: Any) -> None:
    from demijohn import Demijohn

    application = Flask("problems", instance_path=str(tmp_path))
    Demijohn(application, stores="memory://", problems=True)
    application.register_error_handler(404, lambda error: ("mine", 404))
    assert application.test_client().get("/no").text == "mine"
    assert application.test_client().post("/no").text == "mine"


def test_body_that_is_too_large_is_a_problem(tmp_path: Any) -> None:
    from flask import request

    from demijohn import Demijohn

    application = Flask("problems", instance_path=str(tmp_path))
    application.config["MAX_CONTENT_LENGTH"] = 10
    Demijohn(application, stores="memory://", problems=True)
    application.post("/", endpoint="x")(lambda: request.get_data(cache=True))
    answer = application.test_client().post("/", data=b"x" * 11)
    assert (answer.status_code, body(answer)["type"]) == (413, "about:blank")


def test_what_is_an_answer_already_stays_as_it_is() -> None:
    from flask import Response

    ready = HTTPException(response=Response("ready"))
    redirect = HTTPException()
    redirect.code = 308
    refusal = refusals.KeyReused("x")
    assert [problem_for(error) for error in (ready, redirect, refusal)] == [
        ready,
        redirect,
        refusal,
    ]
