"""A shop whose orders and idempotency keys are rows of one database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from sqlalchemy import Engine, String, create_engine, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from werkzeug.test import TestResponse

from demijohn import Demijohn, records
from demijohn.records.tables import keys


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str] = mapped_column(String(50))


class Shop:
    """An application with one atomic view, which writes an order for each run."""

    def __init__(self, engine: Engine, folder: Path, db: object = None, **options: Any) -> None:
        self.engine = engine
        self.make_session = sessionmaker(engine)
        self.app = Flask("shop", instance_path=str(folder))
        self.app.secret_key = "the shop's"
        idempotency = {"wait": 20, "max_waiters": 100, "atomic": True, **options}
        self.dj = Demijohn(
            self.app,
            stores="memory://",
            db=db or self.make_session,
            idempotency=idempotency,  # type: ignore[arg-type]
        )
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()
        self.add("/orders", self.order)

    def order(self) -> Any:
        """Write an order, and commit as views do."""
        self.write(request.get_json()["what"])
        self.entered.release()
        assert self.go.wait(30)
        return {"written": request.get_json()["what"]}, 201

    def write(self, *orders: str) -> None:
        with self.make_session() as session:
            for what in orders:
                session.add(Order(what=what))
                session.commit()

    def add(self, path: str, view: Callable[[], Any], **options: Any) -> None:
        guarded = self.dj.idempotent(**options)(view)
        self.app.add_url_rule(path, endpoint=path, view_func=guarded, methods=["POST"])

    def post(self, key: str | None, path: str = "/orders", what: str = "tea") -> TestResponse:
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.app.test_client().post(
            path, json={"what": what}, headers=headers, buffered=True
        )

    def orders(self) -> list[str]:
        """Return what is really in the database."""
        with Session(self.engine) as session:
            return list(session.scalars(select(Order.what).order_by(Order.id)))

    def records(self) -> int:
        """Return how many keys are recorded."""
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(keys)) or 0


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a database with empty tables."""
    engine = records.real_transactions(create_engine(database_url, pool_size=20))
    clear(engine)
    Base.metadata.create_all(engine)
    records.create(engine)
    yield engine
    clear(engine)
    engine.dispose()


def clear(engine: Engine) -> None:
    Base.metadata.drop_all(engine)
    records.metadata.drop_all(engine)


@pytest.fixture
def make_shop(engine: Engine, tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    with ExitStack() as stack:

        def make(**options: Any) -> Shop:
            shop = Shop(engine, tmp_path, **options)
            stack.callback(shop.app.extensions["demijohn"].keeper.stop)
            return shop

        yield make
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Shop:
    return make_shop()


@pytest.fixture
def statements(engine: Engine) -> Iterator[list[str]]:
    """The first words of what is sent: statements, and where transactions begin and end."""
    seen: list[str] = []

    def executed(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement.split(maxsplit=1)[0].upper())

    listeners: dict[str, Callable[..., None]] = {
        "before_cursor_execute": executed,
        "commit": lambda _: seen.append("COMMIT"),
        "rollback": lambda _: seen.append("ROLLBACK all"),
    }
    for name, listener in listeners.items():
        event.listen(engine, name, listener)
    yield seen
    for name, listener in listeners.items():
        event.remove(engine, name, listener)


@pytest.fixture
def needs_async(need: Callable[[str], None]) -> None:
    need("asgiref")
