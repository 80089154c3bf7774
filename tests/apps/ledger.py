"""A payments API whose payments and keys are rows of one database, with points to die at."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from flask import Flask, request
from sqlalchemy import Engine, String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from demijohn import Demijohn, records
from demijohn.records.keys import Keys
from tests.apps.payments import CONTROL, point


class Base(DeclarativeBase):
    pass


class Payment(Base):
    """A payment has two rows, so that a half of one would be seen."""

    __tablename__ = "payments"

    id: Mapped[int] = mapped_column(primary_key=True)
    payment: Mapped[str] = mapped_column(String(60), index=True)
    side: Mapped[str] = mapped_column(String(10))


def pointed(engine: Engine) -> None:
    """Put points around the claim, the completion and the commit."""

    def around(name: str, act: Any) -> Any:
        def pointing(*args: Any, **kwargs: Any) -> Any:
            point(f"before-{name}")
            result = act(*args, **kwargs)
            point(f"after-{name}")
            return result

        return pointing

    Keys.claim = around("claim", Keys.claim)  # type: ignore[method-assign]
    Keys.complete = around("complete", Keys.complete)  # type: ignore[method-assign]
    engine.dialect.do_commit = around("commit", engine.dialect.do_commit)  # type: ignore[method-assign]


def open_engine() -> Engine:
    return records.real_transactions(create_engine(os.environ["DATABASE"], pool_size=20))


def create_app() -> Flask:
    """Make the application that the environment describes."""
    app = Flask(__name__, instance_path=str(CONTROL))
    app.secret_key = "a test's"
    engine = open_engine()
    make_session = sessionmaker(engine)
    options = json.loads(os.environ.get("OPTIONS", "{}"))
    dj = Demijohn(app, stores="memory://", db=make_session, idempotency=options)
    app.extensions["demijohn"].database.prepare()  # so that its commits are none of the points'
    pointed(engine)

    @app.post("/pay")
    @dj.idempotent(atomic=True)
    def pay() -> tuple[dict[str, Any], int]:
        payment = request.get_json()["id"]
        point("in-view")
        with make_session() as session:
            session.add(Payment(payment=payment, side="debit"))
            session.commit()
            point("between-commits")
            time.sleep(float(request.get_json().get("seconds", 0)))
            session.add(Payment(payment=payment, side="credit"))
            session.commit()
        point("after-view")
        return {"payment": payment, "by": os.getpid()}, 201

    @app.after_request
    def leave(response: Any) -> Any:
        point("before-response")
        return response

    return app
