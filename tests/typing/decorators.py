"""Decorators keep the type of a view; read by mypy and pyright, never run.

Each `type: ignore` is a test as well: both checkers report one that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from flask import Blueprint, Flask
from flask.views import MethodView

from demijohn import Demijohn, Idempotency

app = Flask(__name__)
dj = Demijohn(app)
alone = Idempotency(app)
shop = Blueprint("shop", __name__)


@app.post("/payments/<int:order>")
@dj.idempotent
def pay(order: int, *, note: str = "") -> dict[str, int]:
    return {"order": order, "note": len(note)}


@app.post("/refunds/<int:order>")
@dj.idempotent(required=True, ttl=timedelta(days=1))
def refund(order: int) -> tuple[str, int]:
    return str(order), 201


@app.post("/async")
@alone.idempotent(wait=0)
async def later(order: int) -> str:
    return str(order)


@shop.post("/hook")
@dj.exempt
def hook(order: int) -> str:
    return str(order)


class Orders(MethodView):
    decorators = [dj.idempotent(required=True)]  # noqa: RUF012 -- as Flask documents it


class Returns(MethodView):
    @dj.idempotent
    def post(self, order: int) -> str:
        return str(order)


async def awaits() -> None:
    assert_type(await later(1), str)


assert_type(pay(1, note="x"), dict[str, int])
assert_type(refund(1), tuple[str, int])
assert_type(hook(1), str)
assert_type(Returns().post(1), str)

pay("one")  # type: ignore[arg-type]
pay(1, "x")  # type: ignore[call-arg]
refund()  # type: ignore[call-arg]
dj.idempotent(requird=True)  # type: ignore[call-overload]
dj.idempotent(required="yes")  # type: ignore[call-overload]
