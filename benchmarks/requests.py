"""The same request to the same view, bare and guarded; ``wsgi_app`` is called directly."""

from __future__ import annotations

import io
import itertools
import json
import sys
import uuid
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import redis
from flask import Flask, Response, request

from demijohn import Demijohn
from demijohn.idempotency import Options
from demijohn.stores import Store

Case: TypeAlias = Callable[[], None]
"""One call of what is measured."""

# About 1 kB each way, of the kind that payment APIs speak.
DOCUMENT: Final = {
    "amount": 1000,
    "currency": "EUR",
    "recipient": {
        "name": "Ada Lovelace",
        "iban": "DE89370400440532013000",
        "address": {"street": "12 St James's Square", "city": "London", "country": "GB"},
    },
    "items": [
        {"sku": f"SKU-{number:04}", "name": f"Article number {number}", "price": number * 100 + 99}
        for number in range(12)
    ],
    "metadata": {"order": "ord_20261120_000017", "channel": "web", "locale": "en_GB"},
}
BODY: Final = json.dumps(DOCUMENT).encode()


View: TypeAlias = Callable[[], tuple[dict[str, Any], int]]


def pay() -> tuple[dict[str, Any], int]:
    """Read the request's JSON, answer with as much."""
    document = request.get_json()
    return {"id": "pay_0123456789", "status": "succeeded", **document}, 201


def bare_app() -> Flask:
    """The view in plain Flask."""
    app = Flask("bare")
    app.secret_key = "a benchmark's"
    app.post("/pay")(pay)
    return app


def guarded_app(store: str | Store, view: View = pay, options: Options | None = None) -> Flask:
    """The same view under Demijohn."""
    app = Flask("guarded")
    app.secret_key = "a benchmark's"
    dj = Demijohn(app, stores={"default": store}, idempotency=options)
    app.post("/pay")(dj.idempotent(view))
    return app


def raw_app(act: Case) -> Flask:
    """The view with the raw protocol around it: what two trips cost in the midst of a request.

    A loop of nothing but trips finds the processor's caches warm each time; a request does not.
    """
    app = Flask("raw")
    app.secret_key = "a benchmark's"

    def raw_pay() -> Response:
        act()
        return app.make_response(pay())

    app.post("/pay")(raw_pay)
    return app


def peer_app(client: redis.Redis) -> Flask:
    """Flask-Idempotent's protocol, which does not import on this Flask, in plain redis-py calls.

    A first request: SET NX, SET, PUBLISH. A replay: SET NX, then SUBSCRIBE on a connection of its
    own, then GET. What it pickles is stored as bytes here, which is cheaper for it; so is
    ``client``, if it greets the server with nothing when it connects.
    """
    app = Flask("peer")
    app.secret_key = "a benchmark's"

    def idempotent_pay() -> Response:
        key = f"IDEMPOTENT_{request.headers['Idempotency-Key']}"
        if client.set(key, "PROCESSING", nx=True, ex=240):
            response = app.make_response(pay())
            client.set(key, response.get_data(), ex=240)
            client.publish(key, "complete")
            return response
        subscription = client.pubsub()
        subscription.subscribe(key)
        stored: Any = client.get(key)
        subscription.close()
        return app.response_class(stored, status=201, mimetype="application/json")

    app.post("/pay")(idempotent_pay)
    return app


def ask(app: Flask, key: str | None) -> None:
    """Make one request as a server would, and read the answer to its end.

    Raises:
        UnexpectedAnswer: the view did not answer, nor anything in its place that it has answered.
    """
    statuses: list[str] = []

    def start_response(status: str, *_: object) -> Any:
        statuses.append(status)

    body = app.wsgi_app(_environ(key), start_response)
    b"".join(body)
    body.close()  # type: ignore[attr-defined]
    if not statuses[0].startswith("201"):
        raise UnexpectedAnswer(f"the benchmark's request was answered {statuses[0]}")


class UnexpectedAnswer(RuntimeError):
    """What was measured is not what was meant."""


def _environ(key: str | None) -> dict[str, Any]:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/pay",
        "QUERY_STRING": "",
        "REMOTE_ADDR": "192.0.2.1",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "HTTP_ACCEPT": "*/*",
        "HTTP_USER_AGENT": "benchmark",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(BODY)),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(BODY),
        "wsgi.errors": sys.stderr,
    }
    if key is not None:
        environ["HTTP_IDEMPOTENCY_KEY"] = key
    return environ


def without_key(app: Flask) -> Case:
    """A request without a key."""
    return lambda: ask(app, None)


def first(app: Flask) -> Case:
    """A request with a key that was never seen."""
    run, counter = uuid.uuid4().hex, itertools.count()
    return lambda: ask(app, f"{run}-{next(counter)}")


def replay(app: Flask) -> Case:
    """A request with a key whose response is stored."""
    key = str(uuid.uuid4())
    ask(app, key)
    return lambda: ask(app, key)
