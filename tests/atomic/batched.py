"""A shop to which batches are sent, on every database."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, abort
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import sessionmaker
from werkzeug.test import TestResponse

from demijohn import Demijohn
from demijohn.records.tables import keys
from tests.atomic.shop import Order, Shop

Make = Callable[..., Shop]


class Batches:
    """A shop to which batches are sent."""

    def __init__(self, engine: Engine, folder: Any, **options: Any) -> None:
        self.shop = Shop.__new__(Shop)
        self.engine = engine
        self.make_session = sessionmaker(engine)
        self.app = Flask("batches", instance_path=str(folder))
        self.app.secret_key = "the shop's"
        self.caller: str | None = "ann"
        self.dj = Demijohn(
            self.app,
            stores="memory://",
            principal=lambda: self.caller,
            db=options.pop("db", self.make_session),
            idempotency={"wait": 0},
            batch=options,
        )
        self.runs: list[str] = []
        self.add("/orders/<what>", self.order)
        self.add("/kept/<what>", self.dj.idempotent(self.order))
        self.add("/atomic/<what>", self.dj.idempotent(atomic=True)(self.order))
        self.add("/fail/<int:code>", self.fail)

    def add(self, path: str, view: Callable[..., Any]) -> None:
        self.app.add_url_rule(path, endpoint=path, view_func=view, methods=["GET", "POST"])

    def order(self, what: str) -> Any:
        """Write an order, and commit as views do."""
        self.runs.append(what)
        with self.make_session() as session:
            session.add(Order(what=what))
            session.commit()
            count = session.scalar(select(func.count()).select_from(Order))
        return {"what": what, "count": count}, 201

    def fail(self, code: int) -> Any:
        with self.make_session() as session:
            session.add(Order(what="never"))
            session.commit()
        abort(code)

    def post(self, *requests: dict[str, Any], **headers: str) -> TestResponse:
        numbered = [{"id": str(i), "method": "POST", **each} for i, each in enumerate(requests)]
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.app.test_client().post(
            "/batch", json={"requests": numbered}, headers=named, buffered=True
        )

    def group(self, *urls: str, group: str = "g", **headers: str) -> TestResponse:
        return self.post(*[{"url": url, "atomicityGroup": group} for url in urls], **headers)

    def orders(self) -> list[str]:
        with self.engine.connect() as connection:
            return sorted(connection.scalars(select(Order.what)))

    def records(self) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(keys)) or 0


@pytest.fixture
def batches(engine: Engine, tmp_path: Any) -> Any:
    made = Batches(engine, tmp_path)
    yield made
    made.app.extensions["demijohn"].keeper.stop()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def new_key() -> str:
    return str(uuid.uuid4())
