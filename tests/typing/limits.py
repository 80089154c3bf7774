"""Limits keep the type of a view, and their options are typed; read by mypy and pyright, never run.

Each `type: ignore` is a test as well: both checkers report one that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, assert_type

from flask import Blueprint, Flask, Response

from demijohn import Demijohn, Limits, Principal
from demijohn.limits import LimitsOptions, Taken

app = Flask(__name__)
options: LimitsOptions = {"default": "1000/hour", "shed": {"capacity": 8}, "headers": "draft"}
dj = Demijohn(app, limits=options)
alone = Limits(app, stores="memory://", default=["1/day"], on_store_failure="local:0.25")
shop = Blueprint("shop", __name__)


def plan() -> str | None:
    return None


def rows(response: Response) -> int:
    return response.status_code


@app.get("/search/<int:page>")
@dj.limit("100/minute; 2000/day", by=("principal", "ip"), missing="ip", cost=lambda: 2)
def search(page: int, *, note: str = "") -> dict[str, int]:
    return {"page": page, "note": len(note)}


@app.get("/reports")
@dj.limit(plan, by=lambda: Principal("42"), charge="on_failure", cost_after=rows)
@dj.limit(requests=100, window=timedelta(minutes=1), burst=5)
@dj.concurrent(2, lease=timedelta(seconds=10), wait=0.5)
@dj.shed(adaptive=True, critical=lambda: True)
async def reports(year: int) -> str:
    return str(year)


alone.protect(shop, "10/minute", group="shop", methods="POST")

assert_type(search(1, note="x"), dict[str, int])
_later: Coroutine[Any, Any, str] = reports(2026)
search("one")  # type: ignore[arg-type]
search()  # type: ignore[call-arg]
dj.limit("1/minute", by="address")  # type: ignore[arg-type]
dj.limit("1/minute", bi="ip")  # type: ignore[call-arg]
dj.concurrent("two")  # type: ignore[arg-type]

taken = alone.take("5/hour", "key", cost=2, at_most=True)
assert_type(taken, Taken)
assert_type(taken.granted, int)
assert_type(taken.retry_after, timedelta | None)
