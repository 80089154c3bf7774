"""What parts of a batch say of one another: order, dependencies, references, deadlines."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Response, request

from demijohn.batch import running
from tests.acceptance.batched import (
    Api,
    answers,
    api,
    make,
    multipart,
    parts,
    problem,
    slugs,
    statuses,
)

__all__ = ["api", "make"]

Make = Callable[..., Api]


# --- one fails ----------------------------------------------------------------------------------


def test_parts_go_on_behind_one_that_has_failed(api: Api) -> None:
    response = api.post([{"url": "/status/500"}, {"url": "/status/200"}])
    assert statuses(response) == [500, 200]
    assert "Preference-Applied" not in response.headers


@pytest.mark.parametrize("name", ["continue-on-error", "odata.continue-on-error"])
def test_parts_stop_behind_one_that_has_failed_if_that_is_preferred(api: Api, name: str) -> None:
    requests = [{"url": "/status/200"}, {"url": "/status/409"}, {"url": "/status/200"}]
    response = api.post(requests, Prefer=f"respond-sync, {name}=false")
    assert statuses(response) == [200, 409, 424]
    assert slugs(response) == ["", "", "not-attempted"]
    assert len(api.runs) == 2
    assert response.headers["Preference-Applied"] == "continue-on-error=false"


# --- dependencies -------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["dependsOn", "depends_on"])
def test_part_runs_only_if_what_it_depends_on_has_succeeded(api: Api, word: str) -> None:
    response = api.post(
        [
            {"id": "a", "url": "/status/404"},
            {"id": "b", "url": "/status/200", word: ["a"]},
            {"id": "c", "url": "/status/200", word: ["b"]},
            {"id": "d", "url": "/status/200"},
        ]
    )
    assert statuses(response) == [404, 424, 424, 200]
    assert slugs(response) == ["", "dependency-failed", "dependency-failed", ""]
    assert parts(response)[1]["body"]["depends-on"] == 0
    assert len(api.runs) == 2


def test_redirect_is_no_success_to_depend_on(api: Api) -> None:
    response = api.post(
        [{"id": "a", "url": "/status/304"}, {"url": "/status/200", "dependsOn": ["a"]}]
    )
    assert statuses(response) == [304, 424]


@pytest.mark.parametrize(
    ("requests", "kind", "part"),
    [
        ([{"id": "a", "dependsOn": ["x"]}], "bad-dependency", 0),
        ([{"id": "a", "dependsOn": ["a"]}], "bad-dependency", 0),
        ([{"id": "a", "dependsOn": ["b"]}, {"id": "b"}], "bad-dependency", 0),
        ([{"id": "a"}, {"id": "A"}], "bad-id", 1),
        ([{"id": "a", "dependsOn": "b"}], "bad-dependency", 0),
    ],
)
def test_dependencies_that_make_no_sense_refuse_the_batch(
    api: Api, requests: list[dict[str, Any]], kind: str, part: int
) -> None:
    response = api.post([{"url": "/echo", **each} for each in requests])
    assert (response.status_code, problem(response)) == (400, kind)
    assert response.get_json()["part"] == part
    assert api.runs == []


# --- references ---------------------------------------------------------------------------------


def add_orders(api: Api) -> None:
    def order() -> Any:
        return (
            {"id": 7, "name": "a/../b", "lines": [{"sku": "x1"}], "none": None},
            201,
            {"Location": "http://localhost/orders/7", "ETag": '"v1"', "X-Note": "hi"},
        )

    api.add("/orders", order, methods=["POST"])
    api.add("/orders/7", lambda: {"order": 7, "match": request.headers.get("If-Match")})
    api.add("/orders/7/lines", lambda: {"lines": 1})


def order_and(*rest: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"id": "o", "method": "POST", "url": "/orders", "body": {}}, *rest]


def test_first_segment_is_the_location_of_an_earlier_answer(api: Api) -> None:
    add_orders(api)
    response = api.post(order_and({"url": "$o"}, {"url": "/$o/lines"}))
    assert [part["body"] for part in parts(response)[1:]] == [
        {"order": 7, "match": None},
        {"lines": 1},
    ]


def test_etag_of_an_earlier_answer(api: Api) -> None:
    add_orders(api)
    response = api.post(order_and({"url": "$o", "headers": {"If-Match": "$o"}}))
    assert parts(response)[1]["body"]["match"] == '"v1"'


def test_values_of_an_earlier_answer_in_target_header_and_content(api: Api) -> None:
    add_orders(api)
    response = api.post(
        order_and(
            {
                "method": "POST",
                "url": "/echo?name=@{o.body.name}&id=@{o.body.id}",
                "headers": {"X-Sku": "sku @{o.body.lines.0.sku}, @{o.headers.x-note}"},
                "body": {
                    "id": "@{o.body.id}",
                    "text": "no. @{o.body.id}",
                    "all": "@{o.body.lines}",
                },
                "dependsOn": ["o"],
            }
        )
    )
    body = parts(response)[1]["body"]
    assert body["args"] == {"name": "a/../b", "id": "7"}
    assert body["headers"]["x-sku"] == "sku x1, hi"
    assert body["body"] == '{"id": 7, "text": "no. 7", "all": [{"sku":"x1"}]}'


def test_content_is_left_alone_unless_the_part_depends_on_the_id(api: Api) -> None:
    add_orders(api)
    response = api.post(
        order_and({"method": "POST", "url": "/echo", "body": {"a": "@{o.body.id}"}})
    )
    assert parts(response)[1]["body"]["body"] == '{"a": "@{o.body.id}"}'


def test_reference_can_be_escaped(api: Api) -> None:
    add_orders(api)
    response = api.post(
        order_and(
            {
                "method": "POST",
                "url": "/echo",
                "body": {"a": "@@{o.body.id}", "@{o.body.id}": 1},
                "dependsOn": ["o"],
            }
        )
    )
    assert parts(response)[1]["body"]["body"] == '{"a": "@{o.body.id}", "@{o.body.id}": 1}'


@pytest.mark.parametrize(
    "part",
    [
        {"url": "/echo/@{o.body.nothing}"},
        {"url": "/echo/@{o.body.none}"},
        {"url": "/echo/@{o.body.lines}"},
        {"url": "/echo/@{o.body.lines.5}"},
        {"url": "/echo", "headers": {"X": "@{o.headers.nothing}"}},
        {"url": "/echo?@{e.headers.location}x", "headers": {"If-Match": "$e"}},
        {"url": "$e/x"},
    ],
)
def test_what_is_not_there_fails_the_part_alone(api: Api, part: dict[str, Any]) -> None:
    add_orders(api)
    response = api.post(order_and({"id": "e", "url": "/echo"}, part, {"url": "/status/200"}))
    assert statuses(response) == [201, 200, 424, 200]
    assert slugs(response)[2] == "unresolved-reference"


def test_location_of_another_origin_is_not_followed(api: Api) -> None:
    api.add("/away", lambda: Response("", 201, {"Location": "http://evil.example/x"}))
    response = api.post([{"id": "a", "url": "/away"}, {"url": "$a"}])
    assert slugs(response) == ["", "unresolved-reference"]


def test_reference_cannot_lead_to_the_batch_itself(api: Api) -> None:
    api.add("/loop", lambda: Response("", 201, {"Location": "/batch"}))
    response = api.post([{"id": "a", "url": "/loop"}, {"method": "POST", "url": "$a"}])
    assert slugs(response) == ["", "unresolved-reference"]


def test_referred_part_is_one_that_is_depended_on(api: Api) -> None:
    response = api.post([{"id": "a", "url": "/status/500"}, {"url": "/echo?x=@{a.body.status}"}])
    assert slugs(response) == ["", "dependency-failed"]


def test_reference_forward_refuses_the_batch(api: Api) -> None:
    response = api.post([{"url": "$b"}, {"id": "b", "url": "/echo"}])
    assert (response.status_code, problem(response)) == (400, "bad-dependency")


def test_dollar_that_names_no_part_is_a_path(api: Api) -> None:
    api.add("/$metadata", lambda: {"metadata": True})
    assert statuses(api.post([{"url": "/$metadata"}])) == [200]


def test_references_in_multipart_by_setting(make: Make) -> None:
    body = multipart("POST /orders HTTP/1.1\n\n", "GET $0 HTTP/1.1\n\n")
    api = make()
    add_orders(api)
    assert [answer.status for answer in answers(api.send(body))] == [201, 404]
    api = make(batch={"references": True})
    add_orders(api)
    assert [answer.status for answer in answers(api.send(body))] == [201, 200]


# --- deadline -----------------------------------------------------------------------------------


def test_parts_that_the_deadline_passes_are_not_run(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = make(batch={"deadline": 5})
    real = running.time.monotonic

    def slow() -> Any:
        monkeypatch.setattr(running.time, "monotonic", lambda: real() + 6)
        return {}

    api.add("/slow", slow)
    response = api.post([{"url": "/slow"}, {"url": "/echo"}, {"url": "/echo"}])
    assert statuses(response) == [200, 503, 503]
    assert slugs(response)[1:] == ["deadline", "deadline"]
    assert parts(response)[1]["headers"]["retry-after"] == "1"
    assert api.runs == ["GET /slow"]


# --- reads in parallel --------------------------------------------------------------------------


def test_reads_run_side_by_side_and_are_answered_in_order(make: Make) -> None:
    api = make(batch={"workers": 4})
    together = threading.Barrier(3)

    def meet(name: str) -> Any:
        together.wait(10)
        return {"name": name}

    api.add("/meet/<name>", meet)
    response = api.post([{"url": f"/meet/{name}"} for name in "abc"])
    assert [part["body"] for part in parts(response)] == [{"name": name} for name in "abc"]


def test_writes_and_what_depends_are_never_side_by_side(make: Make) -> None:
    api = make(batch={"workers": 4})
    inside = threading.Lock()
    order: list[str] = []

    def view(name: str) -> Any:
        assert inside.acquire(blocking=False), "nothing else runs"
        order.append(name)
        inside.release()
        return {}

    api.add("/alone/<name>", view)
    response = api.post(
        [
            {"id": "a", "url": "/alone/a"},
            {"id": "b", "url": "/alone/b", "method": "POST"},
            {"id": "c", "url": "/alone/c", "method": "PUT"},
            {"id": "d", "url": "/alone/d", "dependsOn": ["b"]},
            {"id": "e", "url": "/alone/e", "dependsOn": ["d"]},
        ]
    )
    assert statuses(response) == [200] * 5
    assert order == list("abcde")


def test_reads_are_in_order_where_the_first_failure_ends_the_batch(make: Make) -> None:
    api = make(batch={"workers": 4})
    requests = [{"url": "/status/500"}, {"url": "/status/200"}]
    assert statuses(api.post(requests, Prefer="continue-on-error=false")) == [500, 424]
    assert len(api.runs) == 1


def test_contexts_of_reads_side_by_side_are_their_own(make: Make) -> None:
    api = make(batch={"workers": 2})
    found = parts(api.post([{"url": "/echo"}] * 10))
    assert [part["body"]["seen"] for part in found] == [1] * 10


def test_answers_of_reads_side_by_side_are_no_more_than_a_batch_can_hold(make: Make) -> None:
    api = make(batch={"workers": 4, "max_response_bytes": 1000})
    together = threading.Barrier(4)

    def large() -> Any:
        together.wait(10)
        return Response("x" * 400, mimetype="text/plain")

    api.add("/large", large)
    response = api.post([{"url": "/large"}] * 4)
    assert sorted(statuses(response)) == [200, 200, 500, 500]
    assert slugs(response).count("part-response-too-large") == 2


def test_batch_that_a_part_sends_does_not_wait_for_the_threads_that_the_part_is_in(
    make: Make,
) -> None:
    api = make(batch={"workers": 1})

    def within() -> Any:
        return {"inner": statuses(api.post([{"url": "/status/200"}] * 3))}

    api.add("/within", within)
    found: list[Any] = []
    batch = threading.Thread(
        target=lambda: found.extend(parts(api.post([{"url": "/within"}] * 3))), daemon=True
    )
    batch.start()
    batch.join(20)
    assert [part["body"] for part in found] == [{"inner": [200] * 3}] * 3
