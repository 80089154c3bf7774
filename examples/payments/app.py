"""A small payments API that may be retried, through crashes.

    flask --app examples/payments/app.py run

The environment configures it: ``PAYMENTS_LEDGER`` (an SQLite file, by default in the instance
folder), ``DEMIJOHN_DEMO_STORE`` (a store URL), ``GUARD=off`` (the same without Demijohn), and
``FLASK_...`` for every setting of Flask and Demijohn, such as
``FLASK_DEMIJOHN_IDEMPOTENCY__lease=2``.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, ParamSpec, TypeVar

from flask import Flask, abort, request
from msgspec import DecodeError, Meta, Struct, json

from demijohn import Demijohn, idempotency

P = ParamSpec("P")
R = TypeVar("R")
Payment = dict[str, object]

SCHEMA = """
CREATE TABLE IF NOT EXISTS payments (
    id INTEGER PRIMARY KEY,
    reference TEXT NOT NULL UNIQUE,
    charge TEXT NOT NULL,
    amount INTEGER NOT NULL,
    currency TEXT NOT NULL,
    recipient TEXT NOT NULL
)
"""


class Order(Struct, forbid_unknown_fields=True):
    """What a client asks for; the amount is in the smallest unit, such as cents."""

    amount: Annotated[int, Meta(gt=0, le=1_000_000)]
    currency: Literal["CHF", "EUR", "USD"]
    recipient: Annotated[str, Meta(min_length=1, max_length=80)]


@dataclass(frozen=True, slots=True)
class Ledger:
    """The business's own database. Demijohn's records do not lie in it."""

    path: Path

    def open(self) -> sqlite3.Connection:
        # In autocommit mode: each statement below is a transaction of its own.
        return sqlite3.connect(self.path, timeout=30, isolation_level=None)

    def create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self.open()) as database:
            database.execute(SCHEMA)

    def record(self, reference: str, charge: str, order: Order) -> Payment:
        """Enter the payment unless one is there under its reference; return what is there."""
        # Not an error: the other run of this request (a worker that was paused for longer than
        # its lease, and woke up) may have entered it since this run has looked.
        with closing(self.open()) as database:
            database.execute(
                "INSERT INTO payments (reference, charge, amount, currency, recipient)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT (reference) DO NOTHING",
                (reference, charge, order.amount, order.currency, order.recipient),
            )
        return self._read("WHERE reference = ?", reference)[0]

    def find(self, reference: str) -> Payment | None:
        return next(iter(self._read("WHERE reference = ?", reference)), None)

    def newest(self, count: int) -> list[Payment]:
        return self._read("ORDER BY id DESC LIMIT ?", count)

    def _read(self, where: str, value: object) -> list[Payment]:
        with closing(self.open()) as database:
            database.row_factory = sqlite3.Row
            rows = database.execute(
                f"SELECT id, amount, currency, recipient, charge FROM payments {where}", (value,)
            )
            return [dict(row) for row in rows]


def create_app() -> Flask:
    app = Flask(__name__, instance_path=os.environ.get("PAYMENTS_INSTANCE"))
    app.config.from_prefixed_env()
    ledger = Ledger(Path(os.environ.get("PAYMENTS_LEDGER") or f"{app.instance_path}/ledger.db"))
    ledger.create()
    idempotent = guard(app)

    @app.post("/payments")
    @idempotent
    def create_payment() -> tuple[Payment, int]:
        """Make a payment."""
        # The recommended pattern. Demijohn runs this view once for each key, unless the worker
        # dies in it: then a retry takes over when the lease has ended, and runs it again. The
        # worker may have died after its commit, for the ledger and Demijohn's record are not
        # written in one transaction. So what is entered has a reference that is the same for
        # every run under one key and another for every other key; the column is UNIQUE, and a
        # later run finds what an earlier one has entered and answers from it.
        order = read_order()
        reference = idempotency.current.derive("payment")
        if idempotency.current.is_retry and (earlier := ledger.find(reference)):
            app.logger.warning("payment %s had been made by a run that died", earlier["id"])
            return earlier, 201
        # The provider hears a key as well, so that a second run is no second charge there.
        charge = charge_card(order, key=idempotency.current.derive("charge"))
        payment = ledger.record(reference, charge, order)
        send_receipt(payment)
        return payment, 201

    @app.get("/payments")
    def list_payments() -> list[Payment]:
        """List the newest payments."""
        return ledger.newest(100)

    return app


def guard(app: Flask) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return the decorator that makes a view safe to retry, or with ``GUARD=off`` none."""
    if os.environ.get("GUARD") == "off":
        return lambda view: view
    # Without a URL the default: a file in the instance folder, which all workers share.
    dj = Demijohn(app, stores=os.environ.get("DEMIJOHN_DEMO_STORE") or None, problems=True)
    return dj.idempotent(required=True)


def read_order() -> Order:
    try:
        return json.decode(request.get_data(), type=Order)
    except DecodeError as error:
        abort(400, str(error))


def charge_card(order: Order, *, key: str) -> str:
    """Stand in for a payment provider, which takes its time and knows its keys."""
    time.sleep(random.uniform(0.05, 0.15))
    return f"charge of {order.amount} {order.currency}, {key}"


def send_receipt(_payment: Payment) -> None:
    """Stand in for what is done behind the commit, where a worker may die as well."""
    time.sleep(random.uniform(0.05, 0.15))
