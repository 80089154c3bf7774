"""Batches by clients that others have written, over sockets."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from werkzeug.serving import make_server

from demijohn import Demijohn
from tests.serving import Serve

URLS = ["/batch", "/batch/storage/v1", "/v1.0/$batch"]


@pytest.fixture
def runs() -> list[str]:
    return []


@pytest.fixture
def server(tmp_path: Path, runs: list[str]) -> Iterator[str]:
    app = Flask("peers", instance_path=str(tmp_path))
    app.secret_key = "x"
    Demijohn(app, stores="memory://", batch={"url": URLS, "json_binary": "base64"})

    @app.route("/cats/<name>", methods=["GET", "PUT", "DELETE"])
    def cats(name: str) -> Any:
        runs.append(f"{request.method} {name}")
        if request.method == "DELETE":
            return "", 204
        if name == "none":
            return {"error": {"message": "no such cat", "code": 404}}, 404
        if name == "boom":
            raise RuntimeError("boom")
        sent = request.get_json(silent=True)
        return {"name": name, "sent": sent, "encoding": request.headers.get("Accept-Encoding")}

    @app.route("/storage/v1/b/<bucket>/o/<name>", methods=["PATCH", "DELETE"])
    def objects(bucket: str, name: str) -> Any:
        runs.append(f"{request.method} {bucket}/{name}")
        if request.method == "DELETE":
            return "", 204
        return {"kind": "storage#object", "bucket": bucket, "name": name, **request.get_json()}

    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_googles_client_of_apis(server: str, runs: list[str]) -> None:
    httplib2 = pytest.importorskip("httplib2")
    pytest.importorskip("googleapiclient")
    from googleapiclient.errors import HttpError
    from googleapiclient.http import BatchHttpRequest, HttpRequest
    from googleapiclient.model import JsonModel

    model = JsonModel()
    http = httplib2.Http()
    found: dict[str, Any] = {}

    def called_back(name: str, response: Any, error: Any) -> None:
        found[name] = error if error is not None else response

    def ask(method: str, name: str, body: Any = None) -> Any:
        headers, _, query, content = model.request({}, {}, {}, body)
        uri = f"{server}/cats/{name}{query}"
        return HttpRequest(http, model.response, uri, method=method, body=content, headers=headers)

    batch = BatchHttpRequest(callback=called_back, batch_uri=f"{server}/batch")
    batch.add(ask("PUT", "tom", {"v": 1}), request_id="a + b/é")
    batch.add(ask("GET", "tom"))
    batch.add(ask("GET", "none"))
    batch.add(ask("DELETE", "tom"))
    batch.add(ask("GET", "boom"))
    batch.execute(http=http)
    assert found["a + b/é"] == {"name": "tom", "sent": {"v": 1}, "encoding": None}
    assert found["1"]["name"] == "tom"
    assert isinstance(found["2"], HttpError)
    assert found["2"].status_code == 404
    assert found["3"] == {}
    assert found["4"].status_code == 500
    assert runs == ["PUT tom", "GET tom", "GET none", "DELETE tom", "GET boom"]


def test_googles_client_of_apis_with_a_hundred_parts(server: str, runs: list[str]) -> None:
    httplib2 = pytest.importorskip("httplib2")
    pytest.importorskip("googleapiclient")
    from googleapiclient.http import BatchHttpRequest, HttpRequest

    http = httplib2.Http()
    found: dict[str, Any] = {}
    batch = BatchHttpRequest(
        callback=lambda name, response, error: found.update({name: error or response}),
        batch_uri=f"{server}/batch",
    )
    for number in range(100):
        uri = f"{server}/cats/c{number}"
        batch.add(HttpRequest(http, lambda _, content: json.loads(content)["name"], uri))
    batch.execute(http=http)
    assert sorted(found.values()) == sorted(f"c{number}" for number in range(100))
    assert len(runs) == 100


def test_googles_client_of_storage(server: str, runs: list[str]) -> None:
    pytest.importorskip("google.cloud.storage")
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    client = storage.Client(
        project="p", credentials=AnonymousCredentials(), client_options={"api_endpoint": server}
    )
    bucket = client.bucket("b")
    tom, tim = bucket.blob("tom"), bucket.blob("tim")
    with client.batch():
        tom.metadata = {"colour": "grey"}
        tom.patch()
        tim.delete()
    assert tom.metadata == {"colour": "grey"}
    assert runs == ["PATCH b/tom", "DELETE b/tim"]


def test_microsofts_client_of_graph(server: str, runs: list[str]) -> None:
    pytest.importorskip("msgraph_core")
    httpx = pytest.importorskip("httpx")
    from kiota_abstractions.method import Method
    from kiota_abstractions.request_information import RequestInformation
    from msgraph_core.requests.batch_request_content import BatchRequestContent
    from msgraph_core.requests.batch_request_item import BatchRequestItem

    def ask(method: Method, name: str, body: bytes | None = None) -> Any:
        information = RequestInformation()
        information.http_method = method
        information.url = f"{server}/cats/{name}"
        if body is not None:
            information.headers.add("Content-Type", "application/json")
            information.content = body
        return BatchRequestItem(request_information=information)

    content = BatchRequestContent()
    first = ask(Method.PUT, "tom", b'{"v": 1}')
    second = ask(Method.GET, "tom")
    content.add_request(first.id, first)
    content.add_request(second.id, second)
    second.set_depends_on([first])

    from kiota_serialization_json.json_serialization_writer import JsonSerializationWriter

    writer = JsonSerializationWriter()
    content.serialize(writer)
    sent = writer.get_serialized_content()
    assert b'"depends_on"' in sent, "in snake case, and always"

    async def post() -> Any:
        async with httpx.AsyncClient() as client:
            headers = {"Content-Type": "application/json"}
            return await client.post(f"{server}/v1.0/$batch", content=sent, headers=headers)

    response = asyncio.run(post())
    assert response.status_code == 200, response.text
    by_id = {part["id"]: part for part in response.json()["responses"]}
    assert by_id[first.id]["body"]["sent"] == {"v": 1}
    assert by_id[second.id]["status"] == 200
    assert runs == ["PUT tom", "GET tom"]


def test_example_prints_what_its_page_says(serve: Serve) -> None:
    pytest.importorskip("googleapiclient")
    folder = Path(__file__).parents[2] / "examples" / "batch"
    served = serve("examples.batch.app:app", workers=1)
    done = subprocess.run(
        [sys.executable, folder / "google_client.py", served.url("")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = folder.joinpath("README.md").read_text().replace("http://127.0.0.1:5000", served.url(""))
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["tom", "tim", "nobody"]
    assert all(f"\n{line}\n" in said for line in lines), done.stdout
