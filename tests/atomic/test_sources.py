"""Every way in which an application may have its sessions."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from demijohn import Demijohn, Idempotency, records
from demijohn.errors import ConfigError
from tests.acceptance.conftest import new_key
from tests.atomic.shop import Order

KINDS = ("sessionmaker", "scoped_session", "Flask-SQLAlchemy", "Flask-SQLAlchemy-Lite")


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    app = Flask("sources", instance_path=str(tmp_path))
    app.secret_key = "s"
    app.config["DEMIJOHN_STORES"] = "memory://"
    return app


Open = Callable[[], Session]


def from_sessionmaker(app: Flask, engine: Engine) -> tuple[object, Open]:
    make, made = sessionmaker(engine), list[Session]()

    def open_one() -> Session:
        made.append(make())
        return made[-1]

    @app.teardown_appcontext
    def close(_: object) -> None:
        for session in made:
            session.close()

    return make, open_one


def from_scoped_session(app: Flask, engine: Engine) -> tuple[object, Open]:
    scoped = scoped_session(sessionmaker(engine))
    app.teardown_appcontext(lambda _: scoped.remove())
    return scoped, scoped


def from_flask_sqlalchemy(app: Flask, engine: Engine) -> tuple[object, Open]:
    library = pytest.importorskip("flask_sqlalchemy")
    app.config["SQLALCHEMY_DATABASE_URI"] = engine.url
    db = library.SQLAlchemy(app)
    with app.app_context():
        records.real_transactions(db.engine)
    return db, lambda: db.session  # type: ignore[no-any-return]


def from_lite(app: Flask, engine: Engine) -> tuple[object, Open]:
    library = pytest.importorskip("flask_sqlalchemy_lite")
    app.config["SQLALCHEMY_ENGINES"] = {"default": engine.url}
    db = library.SQLAlchemy(app)
    with app.app_context():
        records.real_transactions(db.engine)
    return db, lambda: db.session  # type: ignore[no-any-return]


MAKERS = dict(
    zip(
        KINDS,
        (from_sessionmaker, from_scoped_session, from_flask_sqlalchemy, from_lite),
        strict=True,
    )
)


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, app: Flask, engine: Engine) -> Iterator[Any]:
    source, opens = MAKERS[request.param](app, engine)
    yield source, opens
    if "SQLAlchemy" in request.param:
        with app.app_context():
            source.engine.dispose()  # type: ignore[attr-defined]


def test_view_and_record_commit_together(app: Flask, source: Any, engine: Engine) -> None:
    db, opens = source
    dj = Demijohn(app, db=db)
    statuses = iter((500, 201))

    @app.before_request
    def who() -> None:  # a hook that has read before
        session = opens()
        session.scalars(select(Order)).all()
        if isinstance(db, sessionmaker):
            session.close()  # nobody else could end what it has begun

    @app.post("/")
    @dj.idempotent(atomic=True)
    def view() -> Any:
        session = opens()
        session.add(Order(what="it"))
        session.commit()
        return {"seen": len(session.scalars(select(Order)).all())}, next(statuses)

    key = {"Idempotency-Key": new_key()}
    client = app.test_client()
    assert client.post("/", headers=key).status_code == 500
    assert client.post("/", headers=key).json == {"seen": 1}
    assert client.post("/", headers=key).headers["Idempotent-Replayed"] == "true"
    with Session(engine) as session:
        assert session.scalars(select(Order.what)).all() == ["it"]


def test_what_a_hook_has_written_is_committed_before_the_view(
    app: Flask, source: Any, engine: Engine
) -> None:
    db, opens = source
    if isinstance(db, sessionmaker):
        pytest.skip("its sessions are known to nobody but who made them")
    dj = Demijohn(app, db=db)

    @app.before_request
    def visit() -> None:
        opens().add(Order(what="visit"))

    @app.post("/")
    @dj.idempotent(atomic=True)
    def view() -> Any:
        opens().add(Order(what="undone"))
        opens().commit()
        return {}, 500

    app.test_client().post("/", headers={"Idempotency-Key": new_key()})
    with Session(engine) as session:
        assert session.scalars(select(Order.what)).all() == ["visit"]


def test_session_of_a_sessionmaker_that_began_before_the_view_is_refused(
    app: Flask, engine: Engine
) -> None:
    make = sessionmaker(engine)
    dj = Demijohn(app, db=make)
    early = make()

    @app.before_request
    def read() -> None:
        early.scalars(select(Order)).all()

    @app.post("/")
    @dj.idempotent(atomic=True)
    def view() -> Any:
        early.add(Order(what="elsewhere"))
        early.commit()
        return {}

    app.testing = True
    try:
        with pytest.raises(InvalidRequestError, match="already has a Connection"):
            app.test_client().post("/", headers={"Idempotency-Key": new_key()})
    finally:
        early.close()
    with Session(engine) as session:
        assert session.scalars(select(Order.what)).all() == []


def test_two_applications_share_a_sessionmaker(engine: Engine, tmp_path: Path) -> None:
    make = sessionmaker(engine)
    for name in ("one", "two"):
        app = Flask(name, instance_path=str(tmp_path))
        app.secret_key = "s"
        dj = Demijohn(app, stores="memory://", db=make)

        @app.post("/")
        @dj.idempotent(atomic=True)
        def view() -> Any:
            with make() as session:
                session.add(Order(what="it"))
                session.commit()
            return {}

        app.test_client().post("/", headers={"Idempotency-Key": new_key()})
    with Session(engine) as session:
        assert len(session.scalars(select(Order)).all()) == 2


# --- what is refused ----------------------------------------------------------------------------


def test_extension_that_is_bound_later_is_refused(app: Flask) -> None:
    for name in ("flask_sqlalchemy", "flask_sqlalchemy_lite"):
        if importlib.util.find_spec(name) is None:
            continue
        library = importlib.import_module(name)
        with pytest.raises(ConfigError, match=r"init_app\(app\) before"):
            Demijohn(app, db=library.SQLAlchemy())


@pytest.mark.parametrize("source", [object(), "sqlite://", 3])
def test_what_is_no_source_is_refused(app: Flask, source: object) -> None:
    with pytest.raises(ConfigError, match="db must be an Engine, a sessionmaker"):
        Demijohn(app, db=source)


def test_sessionmaker_without_an_engine_is_refused(app: Flask) -> None:
    with pytest.raises(ConfigError, match="has no Engine as its bind"):
        Idempotency(app, db=sessionmaker())


def test_database_of_another_kind_is_refused(app: Flask) -> None:
    engine = create_engine("sqlite://")
    engine.dialect.name = "oracle"
    with pytest.raises(ConfigError, match="not in 'oracle'"):
        Demijohn(app, db=engine)


def test_atomic_view_needs_sessions(app: Flask) -> None:
    dj = Demijohn(app, db=create_engine("sqlite://"))
    app.post("/")(dj.idempotent(atomic=True)(dict))
    app.testing = True
    with pytest.raises(ConfigError, match="atomic=True needs the sessions"):
        app.test_client().post("/")


def test_database_is_given_once(app: Flask) -> None:
    Demijohn(app)
    with pytest.raises(ConfigError, match="db= must be given where Demijohn is first bound"):
        Idempotency(app, db=create_engine("sqlite://"))
