"""What the record in the view's own transaction costs: the same view with and without it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flask import Flask
from sqlalchemy import Engine, String, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from demijohn import Demijohn, records
from tests.databases import mariadb_database, postgres_database

from .requests import Case, View, first, pay, replay, without_key

TRANSACTIONAL: Final = ("SAVEPOINT", "RELEASE", "ROLLBACK", "BEGIN", "COMMIT")
"""What is no statement of its own, but begins and ends what the view does in any case."""


class Base(DeclarativeBase):
    pass


class Order(Base):
    """What the view writes."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    recipient: Mapped[str] = mapped_column(String(50))
    amount: Mapped[int]


@dataclass(frozen=True, slots=True)
class Atomic:
    """The cases of all databases, and how many statements each sends in a call."""

    cases: Mapping[str, Case]
    statements: Mapping[str, int]


def names(database: str) -> tuple[str, str, str]:
    """Return the names of a database's cases: the view alone, first, replay."""
    return f"view on {database}", f"atomic first, {database}", f"atomic replay, {database}"


@contextmanager
def atomic_cases(folder: Path, stores: Collection[str]) -> Iterator[Atomic]:
    """Open the databases among ``stores``, each new and empty."""
    with ExitStack() as stack:
        urls: dict[str, str] = {}
        if "sqlite" in stores:
            urls["SQLite full"] = f"sqlite:///{folder}/business.db"
        if "postgres" in stores:
            urls["PostgreSQL"] = stack.enter_context(postgres_database())
        if "mariadb" in stores:
            urls["MariaDB"] = stack.enter_context(mariadb_database())
        cases: dict[str, Case] = {}
        statements: dict[str, int] = {}
        for database, url in urls.items():
            engine = _engine(url)
            stack.callback(engine.dispose)
            of_database = _cases(database, engine)
            cases |= of_database
            statements |= {name: _count(engine, case) for name, case in of_database.items()}
        yield Atomic(cases, statements)


def _engine(url: str) -> Engine:
    engine = records.real_transactions(create_engine(url))
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def prepare(connection: Any, _record: object) -> None:
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute("PRAGMA synchronous = full")

    Base.metadata.create_all(engine)
    records.create(engine)
    return engine


def _cases(database: str, engine: Engine) -> dict[str, Case]:
    make_session = sessionmaker(engine)
    view = _ordering(make_session)
    plain, guarded = Flask("plain"), Flask("guarded")
    for app in (plain, guarded):
        app.secret_key = "a benchmark's"
    plain.post("/pay")(view)
    dj = Demijohn(guarded, stores="memory://", db=make_session)
    guarded.post("/pay")(dj.idempotent(atomic=True)(view))
    cases = (without_key(plain), first(guarded), replay(guarded))
    return dict(zip(names(database), cases, strict=True))


def _ordering(make_session: Callable[[], Session]) -> View:
    def order() -> tuple[dict[str, Any], int]:
        answer, status = pay()
        with make_session() as session:
            session.add(Order(recipient=answer["recipient"]["name"], amount=answer["amount"]))
            session.commit()
        return answer, status

    return order


def _count(engine: Engine, case: Case) -> int:
    """Return how many statements one call sends, once everything is warm."""
    seen: list[str] = []

    def executed(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement.split(maxsplit=1)[0])

    case()
    event.listen(engine, "before_cursor_execute", executed)
    case()
    event.remove(engine, "before_cursor_execute", executed)
    return sum(word not in TRANSACTIONAL for word in seen)
