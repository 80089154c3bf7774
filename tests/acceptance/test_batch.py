"""Parts of a batch run as if each had come alone."""

from __future__ import annotations

import gzip
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, Response, abort, current_app, g, request, session
from werkzeug.exceptions import ImATeapot
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from demijohn import Batch, Demijohn, add_batch_route
from demijohn.batch import current_part, signals
from demijohn.errors import ConfigError
from tests.acceptance.batched import (
    MULTIPART,
    Api,
    answers,
    api,
    make,
    multipart,
    parts,
    problem,
    statuses,
)

__all__ = ["api", "make"]

Make = Callable[..., Api]


# --- formats ------------------------------------------------------------------------------------


def test_json_is_answered_part_by_part(api: Api) -> None:
    response = api.post(
        [
            {"id": "a", "url": "/echo?x=1"},
            {"id": "b", "method": "post", "url": "/echo", "body": {"v": 1.10}},
            {"id": "c", "url": "/nowhere"},
        ]
    )
    first, second, third = parts(response)
    assert [first["id"], second["id"], third["id"]] == ["a", "b", "c"]
    assert [first["status"], second["status"], third["status"]] == [200, 200, 404]
    assert first["body"]["args"] == {"x": "1"}
    assert second["body"]["body"] == '{"v": 1.1}'
    assert second["body"]["headers"]["content-type"] == "application/json"
    assert api.runs == ["GET /echo?x=1", "POST /echo", "GET /nowhere"]
    assert response.headers["Cache-Control"] == "private, no-store"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_multipart_is_answered_as_googles_client_expects_it(api: Api, end: str) -> None:
    body = multipart(
        "PUT /echo?alt=json HTTP/1.1\ncontent-type: application/json\ncontent-length: 8\n\n"
        '{"v": 1}',
        "GET /status/404 HTTP/1.1\naccept-encoding: gzip\n\n",
        end=end,
    )
    response = api.send(body, Accept="*/*")
    first, second = answers(response)
    assert (first.id, second.id) == ("<response-0>", "<response-1>")
    assert (first.status, first.reason, second.status) == (200, "OK", 404)
    assert json.loads(first.body)["body"] == '{"v": 1}'
    assert b"\n" not in response.data.replace(b"\r\n", b"").replace(first.body, b"").replace(
        second.body, b""
    )


def test_no_content_keeps_its_empty_line(api: Api) -> None:
    api.add("/gone", lambda: ("", 204))
    response = api.send(multipart("DELETE /gone HTTP/1.1\n\n", ids=False))
    (answer,) = answers(response)
    assert (answer.status, answer.body, answer.id) == (204, b"", None)
    assert b"HTTP/1.1 204 NO CONTENT\r\n" in response.data
    assert b"\r\n\r\n\r\n--batch_" in response.data


def test_head_has_no_content(api: Api) -> None:
    (answer,) = answers(api.send(multipart("HEAD /echo HTTP/1.1\n\n")))
    assert (answer.status, answer.body) == (200, b"")


def test_binary_content_comes_back_as_it_was(api: Api) -> None:
    data = bytes(range(256))
    api.add("/image", lambda: Response(data, mimetype="image/png"))
    (answer,) = answers(api.send(multipart("GET /image HTTP/1.1\n\n")))
    assert answer.body == data
    assert parts(api.post([{"url": "/image"}]))[0]["body"].startswith("AAECAwQF")


def test_text_is_a_string_in_json(api: Api) -> None:
    api.add("/text", lambda: Response("é\n", mimetype="text/plain"))
    assert parts(api.post([{"url": "/text"}]))[0]["body"] == "é\n"


def test_what_is_no_json_does_not_spoil_the_batch(api: Api) -> None:
    api.add("/broken", lambda: Response("{", mimetype="application/json"))
    assert [
        p.get("body") for p in parts(api.post([{"url": "/broken"}, {"url": "/status/200"}]))
    ] == [
        "{",
        {"status": 200},
    ]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "multipart/mixed"),
        ("*/*", "multipart/mixed"),
        ("text/html", "multipart/mixed"),
        ("application/json", "application/json"),
        ("multipart/mixed, application/json;q=0.5", "multipart/mixed"),
        ("multipart/mixed;q=0.1, application/json;q=0.5", "application/json"),
        ("multipart/mixed;q=0", "application/json"),
    ],
)
def test_answer_has_the_format_that_the_client_accepts(
    api: Api, accept: str | None, expected: str
) -> None:
    headers = {} if accept is None else {"Accept": accept}
    response = api.send(multipart("GET /status/200 HTTP/1.1\n\n"), **headers)
    assert response.mimetype == expected
    assert "Accept" in response.headers["Vary"]
    assert statuses(response) == [200]


def test_accept_that_excludes_both_formats_is_406_and_nothing_runs(api: Api) -> None:
    accept = "multipart/mixed;q=0, application/json;q=0"
    response = api.send(multipart("GET /echo HTTP/1.1\n\n"), Accept=accept)
    assert (response.status_code, problem(response)) == (406, "not-acceptable")
    assert api.runs == []


def test_multipart_without_ids_is_numbered_in_json(api: Api) -> None:
    body = multipart("GET /echo\n\n", "GET /echo\n\n", ids=False)
    assert [part["id"] for part in parts(api.send(body, Accept="application/json"))] == ["0", "1"]


def test_whole_answer_is_compressed_and_parts_are_not(api: Api) -> None:
    requests = [{"url": "/echo", "headers": {"Accept-Encoding": "gzip"}}] * 50
    response = api.post(
        [{**r, "id": str(i)} for i, r in enumerate(requests)], Accept_Encoding="gzip"
    )
    assert response.headers["Content-Encoding"] == "gzip"
    found = json.loads(gzip.decompress(response.data))["responses"]
    assert len(found) == 50
    assert "accept-encoding" not in found[0]["body"]["headers"]
    assert len(response.data) * 10 < len(gzip.decompress(response.data))


def test_small_answer_is_not_compressed(api: Api) -> None:
    response = api.post([{"url": "/status/200"}], Accept_Encoding="gzip")
    assert "Content-Encoding" not in response.headers


def test_minimal_answer_leaves_content_of_success_out(api: Api) -> None:
    response = api.post([{"url": "/status/200"}, {"url": "/status/409"}], Prefer="return=minimal")
    assert ["body" in part for part in parts(response)] == [False, True]
    assert response.headers["Preference-Applied"] == "return=minimal"


def test_preferences_are_read_in_time_that_grows_with_their_length(api: Api) -> None:
    blank = ", ".join(["a" + " " * 50_000] * 4)
    started = time.perf_counter()
    response = api.post([{"url": "/echo"}], Prefer=f"{blank},{' ' * 50_000}, return=minimal")
    assert time.perf_counter() - started < 2
    assert response.headers["Preference-Applied"] == "return=minimal"


@pytest.mark.parametrize("accept", ["application/json", "multipart/mixed"])
@pytest.mark.parametrize("value", ["5 €", "a\r\nSet-Cookie: b=1"])
def test_part_whose_head_cannot_be_sent_fails_alone(
    api: Api, caplog: pytest.LogCaptureFixture, accept: str, value: str
) -> None:
    def price(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] != "/price":
            return inner(environ, start_response)
        start_response("200 OK", [("X-Price", value)])
        return [b"{}"]

    inner = api.app.wsgi_app
    api.app.wsgi_app = price  # type: ignore[method-assign]
    requests = [{"url": "/status/200"}, {"url": "/price"}, {"url": "/status/201"}]
    assert statuses(api.post(requests, Accept=accept)) == [200, 500, 201]
    assert "a part of a batch failed: '/price'" in caplog.text


def test_other_status_for_clients_of_odata_2(make: Make) -> None:
    assert make(batch={"success_status": 202}).post([{"url": "/echo"}]).status_code == 202


def test_standard_base64_for_microsofts_client(make: Make) -> None:
    api = make(batch={"json_binary": "base64"})
    api.add("/bytes", lambda: Response(b"\xfb\xff", mimetype="application/octet-stream"))
    assert parts(api.post([{"url": "/bytes"}]))[0]["body"] == "+/8="


# --- isolation ----------------------------------------------------------------------------------


def test_every_part_has_a_context_of_its_own(api: Api) -> None:
    ended: list[int] = []

    @api.app.teardown_appcontext
    def teardown(_: object) -> None:
        ended.append(g.get("seen", 0))

    found = parts(api.post([{"url": "/echo"}] * 3))
    assert [part["body"]["seen"] for part in found] == [1, 1, 1]
    assert ended[:3] == [1, 1, 1]


def test_part_knows_its_place_in_the_batch(api: Api) -> None:
    def place() -> Any:
        part = current_part()
        assert part is not None
        return {"batch": part.batch, "index": part.index, "id": part.id}

    api.add("/place", place)
    api.add("/alone", lambda: {"part": current_part() is not None})
    first, second = (p["body"] for p in parts(api.post([{"url": "/place"}, {"url": "/place"}])))
    assert (first["index"], first["id"], second["index"]) == (0, "0", 1)
    assert first["batch"] == second["batch"]
    assert api.app.test_client().get("/alone").get_json() == {"part": False}
    assert current_part() is None


def test_session_of_a_part_stays_in_the_part(api: Api) -> None:
    def count() -> Any:
        session["count"] = session.get("count", 0) + 1
        return {"count": session["count"]}

    api.add("/count", count)
    response = api.post([{"url": "/count"}, {"url": "/count"}])
    assert [part["body"]["count"] for part in parts(response)] == [1, 1]
    assert [len(part["headers"]["set-cookie"]) for part in parts(response)] == [1, 1]
    assert "Set-Cookie" not in response.headers


def test_cookies_are_forwarded_if_that_is_wanted(make: Make) -> None:
    api = make(batch={"cookies": "forward"})

    def bake(value: str) -> Response:
        response = Response("")
        response.set_cookie("a", value)
        return response

    api.add("/bake/<value>", bake)
    response = api.post([{"url": "/bake/1"}, {"url": "/bake/2"}])
    assert response.headers.getlist("Set-Cookie") == ["a=2; Path=/"]


def test_exception_stays_in_its_part(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Any:
        raise RuntimeError("out of tea")

    api.add("/fail", fail)
    assert statuses(api.post([{"url": "/echo"}, {"url": "/fail"}, {"url": "/echo"}])) == [
        200,
        500,
        200,
    ]
    assert "out of tea" in caplog.text


@pytest.mark.parametrize("testing", [True, False])
def test_applications_own_handler_answers_for_the_exception(make: Make, testing: bool) -> None:
    api = make(testing=testing)

    class NoTeaError(Exception):
        pass

    @api.app.errorhandler(NoTeaError)
    def no_tea(_: NoTeaError) -> Any:
        return {"tea": False}, 418

    def fail() -> Any:
        raise NoTeaError

    api.add("/fail", fail)
    (part,) = parts(api.post([{"url": "/fail"}]))
    assert (part["status"], part["body"]) == (418, {"tea": False})


def test_exception_that_the_application_lets_through_is_a_500(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    api = make(testing=True)

    def fail() -> Any:
        raise RuntimeError("out of tea")

    api.add("/fail", fail)
    response = api.post([{"url": "/fail"}, {"url": "/status/200"}])
    assert statuses(response) == [500, 200]
    assert parts(response)[0]["headers"]["content-type"] == "application/problem+json"
    assert "out of tea" in caplog.text


def test_parts_pass_middleware_whose_exceptions_stay_in_the_part(api: Api) -> None:
    inner = api.app.wsgi_app
    seen: list[str] = []

    def middleware(environ: dict[str, Any], start_response: Any) -> Any:
        seen.append(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/tea":
            raise ImATeapot("short and stout")
        return inner(environ, start_response)

    api.app.wsgi_app = middleware  # type: ignore[method-assign]
    assert statuses(api.post([{"url": "/tea"}, {"url": "/status/200"}])) == [418, 200]
    assert seen == ["/batch", "/tea", "/status/200"]


def test_body_is_closed_whatever_happens(api: Api) -> None:
    closed: list[str] = []

    class Body:
        def __init__(self, name: str, *chunks: bytes) -> None:
            self.name, self.chunks = name, iter(chunks)

        def __iter__(self) -> Any:
            return self.chunks

        def close(self) -> None:
            closed.append(self.name)

    api.add("/good", lambda: Response(Body("good", b"a", b"b")))
    api.add("/large", lambda: Response(Body("large", b"a" * (33 << 20))))
    response = api.post([{"url": "/good"}, {"url": "/large"}])
    assert closed == ["good", "large"]
    assert statuses(response) == [200, 500]
    assert parts(response)[1]["body"]["type"].endswith("#part-response-too-large")


def test_parts_behind_a_full_answer_are_not_run(make: Make) -> None:
    api = make(batch={"max_response_bytes": 20})
    response = api.post([{"url": "/status/200"}, {"url": "/status/201"}, {"url": "/status/202"}])
    assert statuses(response) == [200, 500, 503]
    assert parts(response)[2]["headers"]["retry-after"] == "1"
    assert len(api.runs) == 2


# --- what a part sees ---------------------------------------------------------------------------


def headers_of(response: Any, index: int = 0) -> dict[str, str]:
    found: dict[str, str] = parts(response)[index]["body"]["headers"]
    return found


def test_some_headers_are_inherited_and_a_parts_own_win(api: Api) -> None:
    response = api.post(
        [{"url": "/echo"}, {"url": "/echo", "headers": {"authorization": "Bearer b"}}],
        Authorization="Bearer a",
        Cookie="c=1",
        Accept_Language="de",
        User_Agent="test/1",
        traceparent="00-1-2-01",
        X_Request_ID="r",
    )
    first, second = headers_of(response), headers_of(response, 1)
    inherited = ("authorization", "cookie", "accept-language", "user-agent", "traceparent")
    assert [first[name] for name in inherited] == ["Bearer a", "c=1", "de", "test/1", "00-1-2-01"]
    assert (first["x-request-id"], second["x-request-id"]) == ("r.0", "r.1")
    assert second["authorization"] == "Bearer b"


@pytest.mark.parametrize("own", ["Authorization", "Cookie"])
def test_part_with_credentials_of_its_own_has_none_of_the_batch(api: Api, own: str) -> None:
    requests = [{"url": "/echo", "headers": {own: "its own"}}, {"url": "/echo"}]
    response = api.post(requests, Authorization="Bearer a", Cookie="session=ann")
    credentials = [
        {name: value for name, value in headers_of(response, index).items() if name in both}
        for both in [("authorization", "cookie")]
        for index in (0, 1)
    ]
    assert credentials[0] == {own.lower(): "its own"}
    assert credentials[1] == {"authorization": "Bearer a", "cookie": "session=ann"}


@pytest.mark.parametrize(
    "name",
    ["If-Match", "If-None-Match", "Range", "Prefer", "Accept", "X-Custom", "Content-Language"],
)
def test_other_headers_do_not_fan_out(api: Api, name: str) -> None:
    response = api.post([{"url": "/echo"}], **{name.replace("-", "_"): "*/*"})
    assert name.lower() not in headers_of(response)


def test_further_headers_are_inherited_by_setting(make: Make) -> None:
    api = make(batch={"inherit": ["X-Tenant"]})
    assert headers_of(api.post([{"url": "/echo"}], X_Tenant="acme"))["x-tenant"] == "acme"


@pytest.mark.parametrize(
    "name",
    [
        "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "X-Real-IP",
        "Proxy-Authorization", "Connection", "Keep-Alive", "TE", "Trailer", "Upgrade", "Expect",
        "Accept-Encoding", "X_Forwarded_For", "X_Custom", "Remote-User", "X-Remote-User",
        "CF-Connecting-IP", "True-Client-IP", "X-Client-IP", "X-Cluster-Client-IP", "X-Rewrite-URL",
        "X-Original-URL", "X-Auth-Request-User", "X-Amzn-Oidc-Identity", "X-SSL-Client-Verify",
    ],
)  # fmt: skip
def test_part_cannot_say_what_only_a_connection_or_a_proxy_may(api: Api, name: str) -> None:
    response = api.post([{"url": "/echo", "headers": {name: "6.6.6.6"}}])
    assert "6.6.6.6" not in parts(response)[0]["body"]["headers"].values()
    assert "6.6.6.6" not in parts(response)[0]["body"]["environ"].values()


def test_part_cannot_say_what_a_gateway_of_ones_own_says(make: Make) -> None:
    api = make(batch={"inherit": "X-Tenant", "drop_headers": "X-Tenant"})
    requests = [{"url": "/echo", "headers": {"x-TENANT": "evil"}}, {"url": "/echo"}]
    response = api.post(requests, X_Tenant="acme")
    assert [headers_of(response, index)["x-tenant"] for index in range(2)] == ["acme"] * 2


def test_behind_a_proxy_parts_have_the_clients_address_and_cannot_forge_it(api: Api) -> None:
    api.app.wsgi_app = ProxyFix(api.app.wsgi_app)  # type: ignore[method-assign]
    api.add("/who", lambda: {"ip": request.remote_addr, "url": request.url})
    response = api.post(
        [{"url": "/who", "headers": {"X-Forwarded-For": "6.6.6.6"}}],
        X_Forwarded_For="192.0.2.7",
        X_Forwarded_Proto="https",
    )
    assert parts(response)[0]["body"] == {"ip": "192.0.2.7", "url": "https://localhost/who"}


def test_environment_is_made_not_copied(api: Api) -> None:
    client = Client(api.app)
    body = json.dumps({"requests": [{"id": "1", "method": "GET", "url": "/echo"}]})
    response = client.post(
        "/batch?secret=1",
        data=body,
        content_type="application/json",
        environ_overrides={"REMOTE_USER": "root", "SSL_CLIENT_VERIFY": "SUCCESS"},
    )
    environ = response.get_json()["responses"][0]["body"]["environ"]
    assert "REMOTE_USER" not in environ
    assert "SSL_CLIENT_VERIFY" not in environ
    assert environ["QUERY_STRING"] == ""
    assert "CONTENT_LENGTH" not in environ


def test_more_of_the_environment_is_inherited_by_setting(make: Make) -> None:
    api = make(batch={"inherit_environ": "REMOTE_USER"})
    body = json.dumps({"requests": [{"id": "1", "method": "GET", "url": "/echo"}]})
    response = Client(api.app).post(
        "/batch",
        data=body,
        content_type="application/json",
        environ_overrides={"REMOTE_USER": "ann"},
    )
    assert response.get_json()["responses"][0]["body"]["environ"]["REMOTE_USER"] == "ann"


@pytest.mark.parametrize(
    "target",
    ["/echo", "http://localhost/echo", "http://LOCALHOST:80/echo", "echo", "./echo", "/ec%68o"],
)
@pytest.mark.parametrize("form", ["json", "multipart"])
def test_targets_that_real_clients_send(api: Api, target: str, form: str) -> None:
    if form == "json":
        response = api.post([{"url": target}])
    else:
        response = api.send(multipart(f"GET {target} HTTP/1.1\n\n"))
    assert statuses(response) == [200]


def test_other_origins_of_ours_by_setting(make: Make) -> None:
    api = make(batch={"origins": "https://api.example.com"})
    assert statuses(api.post([{"url": "https://api.example.com:443/echo"}])) == [200]


def test_encoded_path_reaches_the_view_as_it_was_meant(api: Api) -> None:
    api.add("/files/<path:name>", lambda name: {"name": name})
    (part,) = parts(api.post([{"url": "/files/a%20b/%C3%A9?x=%26"}]))
    assert part["body"] == {"name": "a b/é"}


def test_mounted_application_sees_its_own_paths() -> None:
    inner = Flask("inner")
    add_batch_route(inner, stores="memory://")
    inner.add_url_rule(
        "/where", view_func=lambda: {"root": request.root_path, "path": request.path}
    )
    outer = DispatcherMiddleware(Flask("outer"), {"/v1": inner})
    body = json.dumps(
        {
            "requests": [
                {"id": "1", "method": "GET", "url": "/v1/where"},
                {"id": "2", "method": "GET", "url": "where"},
            ]
        }
    )
    client = Client(outer)
    response = client.post("/v1/batch", data=body, content_type="application/json")
    found = [part["body"] for part in response.get_json()["responses"]]
    assert found == [{"root": "/v1", "path": "/where"}] * 2
    outside = body.replace("/v1/where", "/where")
    response = client.post("/v1/batch", data=outside, content_type="application/json")
    assert response.status_code == 400
    assert response.get_json()["type"].endswith("#foreign-origin")


def test_chunked_body_of_a_part_is_not_needed(api: Api) -> None:
    response = api.post([{"method": "POST", "url": "/echo", "body": "text",
                          "headers": {"content-type": "text/plain"}}])  # fmt: skip
    body = parts(response)[0]["body"]
    assert body["body"] == "text"
    assert body["environ"]["CONTENT_LENGTH"] == "4"


def test_streamed_response_of_a_view_is_whole(api: Api) -> None:
    api.add("/stream", lambda: Response((f"{n}," for n in range(3)), mimetype="text/plain"))
    assert parts(api.post([{"url": "/stream"}]))[0]["body"] == "0,1,2,"


async def _tea() -> Any:
    return {"tea": True}


def test_async_views(api: Api) -> None:
    pytest.importorskip("asgiref")
    api.add("/tea", _tea)
    assert parts(api.post([{"url": "/tea"}]))[0]["body"] == {"tea": True}


# --- binding ------------------------------------------------------------------------------------


def test_old_projects_way_of_binding(tmp_path: Any) -> None:
    app = Flask("old", instance_path=str(tmp_path))
    add_batch_route(app)
    app.add_url_rule("/x", view_func=lambda: "x")
    response = app.test_client().post(
        "/batch", data=multipart("GET /x HTTP/1.1\n\n"), content_type=MULTIPART
    )
    assert statuses(response) == [200]


def test_several_urls_and_a_factory(tmp_path: Any) -> None:
    batch = Batch(url=["/batch", "/$batch"], stores="memory://")
    for name in ("one", "two"):
        app = Flask(name, instance_path=str(tmp_path))
        batch.init_app(app)
        app.add_url_rule("/name", view_func=lambda: current_app.name)
        for url in ("/batch", "/$batch"):
            response = app.test_client().post(
                url, json={"requests": [{"id": "1", "method": "GET", "url": "/name"}]}
            )
            assert parts(response)[0]["body"] == name
        nested = {"requests": [{"id": "1", "method": "POST", "url": "/%24batch"}]}
        assert problem(app.test_client().post("/batch", json=nested)) == "nested-batch"


def test_only_post_is_taken(api: Api) -> None:
    assert api.app.test_client().get("/batch").status_code == 405


def test_configuration_alone_adds_the_route(tmp_path: Any) -> None:
    app = Flask("configured", instance_path=str(tmp_path))
    app.config["DEMIJOHN_BATCH"] = {"url": "/many", "max_parts": 1}
    Demijohn(app, stores="memory://")
    assert app.test_client().post("/many", json={"requests": []}).status_code == 400
    plain = Flask("plain", instance_path=str(tmp_path))
    Demijohn(plain, stores="memory://")
    assert plain.test_client().post("/batch").status_code == 404


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_part": 5}, "did you mean 'max_parts'"),
        ({"url": "batch"}, "must be paths that begin with /"),
        ({"url": "/<a>"}, "must be paths that begin with /"),
        ({"origins": "example.com"}, "must be origins"),
        ({"success_status": 207}, "must be 200 or 202"),
        ({"decorators": [1]}, "must be a list of decorators"),
        ({"stream": True, "cookies": "forward"}, "cookies='forward' needs"),
    ],
)
def test_mistakes_in_settings_are_told(tmp_path: Any, options: Any, message: str) -> None:
    app = Flask("wrong", instance_path=str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        Batch(app, stores="memory://", **options)
    assert "demijohn" not in app.extensions
    assert not any(rule.rule == "/batch" for rule in app.url_map.iter_rules())


def test_url_of_another_view_is_refused(tmp_path: Any) -> None:
    app = Flask("taken", instance_path=str(tmp_path))
    app.add_url_rule("/batch", view_func=lambda: "", methods=["POST"])
    with pytest.raises(ConfigError, match="taken by another view"):
        Batch(app, stores="memory://")


def test_decorators_are_around_the_batch_itself(make: Make) -> None:
    def closed(view: Any) -> Any:
        def guarded() -> Any:
            if "Authorization" not in request.headers:
                abort(401)
            return view()

        return guarded

    api = make(batch={"decorators": [closed]})
    assert api.post([{"url": "/echo"}]).status_code == 401
    assert api.runs == []
    assert api.post([{"url": "/echo"}], Authorization="x").status_code == 200


def test_signals_tell_what_became_of_batches(api: Api) -> None:
    heard: list[Any] = []

    def executed(_: Flask, **details: Any) -> None:
        heard.append(details["statuses"])

    def refused(_: Flask, **details: Any) -> None:
        heard.append(details["kind"])

    with signals.executed.connected_to(executed), signals.refused.connected_to(refused):
        api.post([{"url": "/echo"}, {"url": "/status/404"}])
        api.post([])
    assert heard == [[200, 404], "malformed-batch"]


def test_streaming_sends_parts_as_they_are_done(make: Make) -> None:
    api = make(batch={"stream": True})
    body = multipart(*["GET /echo HTTP/1.1\n\n"] * 3)
    response = api.app.test_client().post("/batch", data=body, content_type=MULTIPART)
    assert len(api.runs) == 1, "the client looks at the first chunk"
    chunks = response.iter_encoded()
    first = next(chunks)
    assert b"200 OK" in first
    assert len(api.runs) == 1
    rest = b"".join(chunks)
    assert len(api.runs) == 3
    assert (first + rest).count(b"HTTP/1.1 200 OK") == 3
    assert rest.endswith(b"--\r\n")


def test_stream_that_nobody_reads_on_runs_no_more(make: Make) -> None:
    api = make(batch={"stream": True})
    response = api.app.test_client().post(
        "/batch", data=multipart(*["GET /echo HTTP/1.1\n\n"] * 3), content_type=MULTIPART
    )
    next(iter(response.iter_encoded()))
    response.close()
    assert len(api.runs) == 1


@pytest.mark.parametrize("accept", ["multipart/mixed", "application/json"])
def test_stream_is_compressed_as_a_whole(make: Make, accept: str) -> None:
    api = make(batch={"stream": True})
    response = api.send(
        multipart(*["GET /echo HTTP/1.1\n\n"] * 3), Accept=accept, Accept_Encoding="gzip"
    )
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(response.data).count(b'"seen"') == 3


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
