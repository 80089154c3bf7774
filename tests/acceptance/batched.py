"""An application that takes batches, and the clients that send them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Flask, g, jsonify, request
from werkzeug.test import TestResponse

from demijohn import Demijohn
from demijohn.core.batch import Answer, Bounds, boundary_of, read_multipart_answers
from demijohn.stores import Store

MULTIPART = "multipart/mixed; boundary=b"


class Api:
    """An application whose views say what they see, and count their runs."""

    def __init__(self, folder: Path, store: str | Store = "memory://", **options: Any) -> None:
        self.runs: list[str] = []
        self.app = Flask("api", instance_path=str(folder))
        self.app.secret_key = "the api's"
        self.app.testing = options.pop("testing", False)
        options.setdefault("batch", {})
        self.dj = Demijohn(self.app, stores={"default": store}, **options)
        self.app.before_request(self.note)
        self.add("/echo", self.echo)
        self.add("/status/<int:code>", lambda code: ({"status": code}, code))

    def note(self) -> None:
        if request.path not in {"/batch", "/$batch"}:
            self.runs.append(f"{request.method} {request.full_path.rstrip('?')}")

    @staticmethod
    def echo() -> Any:
        """Say what this request looks like from the inside."""
        g.seen = g.get("seen", 0) + 1
        return jsonify(
            method=request.method,
            args=request.args.to_dict(),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=request.get_data().decode("latin-1"),
            seen=g.seen,
            environ={name: value for name, value in request.environ.items() if name.isupper()},
        )

    def add(self, path: str, view: Callable[..., Any], *decorators: Any, **options: Any) -> None:
        for decorate in reversed(decorators):
            view = decorate(view)
        options.setdefault("methods", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
        self.app.add_url_rule(path, endpoint=path, view_func=view, **options)

    def post(self, requests: Sequence[dict[str, Any]], **headers: str) -> TestResponse:
        """Send a batch in JSON; ids are the numbers of the requests where they have none."""
        numbered = [{"id": str(i), "method": "GET", **each} for i, each in enumerate(requests)]
        return self.send(json.dumps({"requests": numbered}), "application/json", **headers)

    def send(
        self, body: str | bytes, kind: str = MULTIPART, url: str = "/batch", **headers: str
    ) -> TestResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.app.test_client(use_cookies=False).post(
            url, data=body, content_type=kind, headers=named, buffered=True
        )


def parts(response: TestResponse) -> list[dict[str, Any]]:
    """Return the answers of a batch in JSON."""
    assert response.status_code == 200, response.text
    return cast("list[dict[str, Any]]", response.get_json()["responses"])


def statuses(response: TestResponse) -> list[int]:
    """Return the statuses of the parts, in the order in which they were answered."""
    if response.mimetype == "application/json":
        return [part["status"] for part in parts(response)]
    return [answer.status for answer in answers(response)]


def slugs(response: TestResponse) -> list[str]:
    """Return the ends of the types of the problems in a batch in JSON; ``""`` for no problem."""
    types = [
        part.get("body", {}).get("type", "") if isinstance(part.get("body"), dict) else ""
        for part in parts(response)
    ]
    return [kind.rpartition("#")[2] for kind in types]


def problem(response: TestResponse) -> str:
    """Return the end of the type of the problem that a whole batch is."""
    assert response.content_type == "application/problem+json", response.text
    return str(response.get_json()["type"]).rpartition("#")[2]


def answers(response: TestResponse) -> list[Answer]:
    """Return the answers of a multipart batch."""
    assert response.status_code == 200, response.text
    boundary = boundary_of(response.headers["Content-Type"])
    return read_multipart_answers(response.data, boundary, Bounds())


def multipart(*requests: str, ids: bool = True, end: str = "\r\n") -> str:
    """Return a multipart body with the boundary ``b``."""
    sections = [
        "--b\nContent-Type: application/http\n"
        + (f"Content-ID: <{number}>\n" if ids else "")
        + f"\n{text}\n"
        for number, text in enumerate(requests)
    ]
    return ("".join(sections) + "--b--\n").replace("\n", end)


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Api]:
    return lambda **options: Api(tmp_path, **options)
