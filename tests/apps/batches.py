"""An app that takes batches, counts what ran, and has rows in a database with points to die at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flask import Flask, request

from demijohn import Demijohn
from tests.apps.payments import CONTROL, point


def create_app() -> Flask:
    """Make the app; with ``DATABASE`` it has payments, and groups of them."""
    app = Flask(__name__, instance_path=str(CONTROL))
    app.secret_key = "a test's"
    database = os.environ.get("DATABASE")
    make_session = _sessions(database) if database else None
    dj = Demijohn(
        app,
        stores=os.environ.get("STORE", "memory://"),
        db=make_session,
        idempotency={"lease": 1.5, "wait": 5},
        batch={
            "max_parts": 20,
            "max_bytes": 20_000,
            "max_part_bytes": 2_000,
            "workers": int(os.environ.get("WORKERS", "0")),
        },
    )
    ran = Path(CONTROL) / "ran"

    @app.route("/echo", methods=["GET", "POST", "PUT"])
    def echo() -> dict[str, Any]:
        with ran.open("a") as file:
            file.write(f"{request.method}\n")
        return {"got": request.get_data(as_text=True)}

    def pay(payment: str) -> tuple[dict[str, Any], int]:
        from tests.apps.ledger import Payment

        assert make_session is not None
        point(f"in-{payment}")
        with make_session() as session:
            session.add(Payment(payment=payment, side="debit"))
            session.commit()
            session.add(Payment(payment=payment, side="credit"))
            session.commit()
        point(f"after-{payment}")
        return {"payment": payment}, 201

    @app.post("/counted/<name>")
    @dj.idempotent
    def counted(name: str) -> tuple[dict[str, Any], int]:
        point(f"in-{name}")
        with (Path(CONTROL) / "counted").open("a") as file:
            file.write(f"{name}\n")
        return {"name": name}, 201

    app.add_url_rule("/plain/<payment>", "plain", pay, methods=["POST"])
    app.add_url_rule(
        "/atomic/<payment>", "atomic", dj.idempotent(atomic=True)(pay), methods=["POST"]
    )
    app.add_url_rule("/leased/<payment>", "leased", dj.idempotent(pay), methods=["POST"])
    if make_session is not None:
        # In each worker before it is asked, so that its commits are none of the points'.
        app.extensions["demijohn"].database.prepare()
    return app


def _sessions(database: str) -> Any:
    from sqlalchemy import create_engine
    from sqlalchemy.orm import sessionmaker

    from demijohn import records

    engine = records.real_transactions(create_engine(database))

    def around(act: Any) -> Any:
        def committing(connection: Any) -> None:
            point("before-commit")
            act(connection)
            point("after-commit")

        return committing

    engine.dialect.do_commit = around(engine.dialect.do_commit)  # type: ignore[method-assign]
    return sessionmaker(engine)
