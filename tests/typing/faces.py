"""Options, hooks, finders and what a view asks are typed; read by mypy and pyright, never run.

Each `type: ignore` is a test as well: both checkers report one that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import assert_type

from flask import Blueprint, Flask, Request, Response

from demijohn import Demijohn, Idempotency, Principal, Problem, idempotency
from demijohn.idempotency import Attempt, KeyReused, Options
from demijohn.problem import Refusal
from demijohn.stores import Store, open_store

app = Flask(__name__)
shop = Blueprint("shop", __name__)


def who() -> Principal | None:
    return None


def in_body(request: Request) -> str | None:
    return request.headers.get("X")


def small(response: Response) -> bool:
    return response.status_code == 200


store: Store = open_store("memory://")
options: Options = {"wait": timedelta(seconds=1), "store": small, "fingerprint": ["/amount"]}
dj = Demijohn(app, stores={"default": store}, principal=who, idempotency=options)
idem = Idempotency(stores="memory://", store={200, 201}, key_pattern="uuid", lease=30)

assert_type(idem.key_finder(in_body), Callable[[Request], str | None])
idem.protect(shop, required=True, methods={"PUT"})

# Decorators compose, in any order, and give what they were given.


def pay(order: int, /, *amounts: float, **notes: str) -> tuple[str, int]:
    return "", len(amounts) + len(notes) + order


async def later(order: int) -> str:
    return str(order)


assert_type(dj.exempt(dj.idempotent(pay))(1, 2.0, note="x"), tuple[str, int])
assert_type(dj.idempotent(required=True)(dj.exempt(pay))(1), tuple[str, int])
assert_type(dj.idempotent.exempt(pay)(1), tuple[str, int])


async def waits() -> None:
    assert_type(await dj.idempotent(later)(1), str)
    assert_type(await idem.idempotent(wait=0)(later)(1), str)


guarded: Callable[[int], Awaitable[str]] = dj.idempotent(later)
dj.idempotent(pay)("one")  # type: ignore[arg-type]
dj.idempotent(required=True)(pay)(1, note=2)  # type: ignore[arg-type]
dj.idempotent("required")  # type: ignore[call-overload]

# What a view asks.
assert_type(idempotency.current, Attempt)
assert_type(idempotency.current.key, str | None)
assert_type(idempotency.current.fence, int)
assert_type(idempotency.current.derive("charge"), str)

# What a handler is given.


@app.errorhandler(KeyReused)
def reused(error: KeyReused) -> tuple[dict[str, str], int]:
    assert_type(error.problem, Problem)
    refusal: Refusal = error
    return {"title": refusal.problem.title}, error.problem.status


Demijohn(principal="alice")  # type: ignore[arg-type]
Idempotency(on_lost="maybe")  # type: ignore[arg-type]
Idempotency(wait="10")  # type: ignore[arg-type]
idem.protect(shop, requird=True)  # type: ignore[call-arg]
misspelt: Options = {"wiat": 1}  # type: ignore[typeddict-unknown-key]
