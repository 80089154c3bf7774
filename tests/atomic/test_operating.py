"""Making the tables and removing what is over, by ``flask demijohn``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import Result
from flask import Flask
from flask.cli import FlaskGroup
from sqlalchemy import Engine, insert, update

from demijohn import Demijohn, records
from demijohn.records.tables import keys, steps
from tests.acceptance.conftest import new_key
from tests.atomic.shop import Shop


def run(app: Flask, *words: str) -> Result:
    return app.test_cli_runner().invoke(FlaskGroup(create_app=lambda: app), ["demijohn", *words])


def test_tables_are_made_once_and_again(shop: Shop, engine: Engine) -> None:
    records.metadata.drop_all(engine)
    for _ in range(2):
        result = run(shop.app, "init-db")
        assert (result.exit_code, result.output) == (0, "all tables are there\n")
    assert shop.post(new_key()).status_code == 201


def test_check_makes_nothing(shop: Shop, engine: Engine) -> None:
    records.metadata.drop_all(engine)
    result = run(shop.app, "init-db", "--check")
    assert result.exit_code == 1
    assert "has no demijohn_idempotency, demijohn_schema, demijohn_steps" in result.output
    assert len(records.missing(engine)) == 3
    run(shop.app, "init-db")
    assert run(shop.app, "init-db", "--check").exit_code == 0


def test_purge_removes_what_is_over_and_nothing_else(shop: Shop, engine: Engine) -> None:
    live, over = new_key(), [new_key() for _ in range(5)]
    for key in over:
        shop.post(key)
    with engine.begin() as connection:
        connection.execute(update(keys).values(expires=1, until=1))
        for position in range(3):
            row = {"key": "k", "position": position, "name": "n", "result": b"1"}
            connection.execute(insert(steps).values(**row, expires=1 if position else 1 << 50))
    shop.post(live)
    result = run(shop.app, "purge", "--batch", "2")
    assert (result.exit_code, result.output) == (0, "keys: 5 removed\nsteps: 2 removed\n")
    assert shop.records() == 1
    assert shop.post(live).headers["Idempotent-Replayed"] == "true"


def test_purge_leaves_a_key_that_runs(make_shop: Callable[..., Shop], engine: Engine) -> None:
    shop = make_shop()
    seen: list[str] = []

    def view() -> tuple[dict[str, str], int]:
        if engine.dialect.name != "sqlite":  # where the purge would wait for the view
            seen.append(run(shop.app, "purge").output)
        return {}, 201

    shop.add("/view", view)
    shop.post(new_key(), "/view")
    assert seen in ([], ["keys: 0 removed\nsteps: 0 removed\n"])
    assert shop.records() == 1


def test_without_a_database_there_is_nothing_to_make(tmp_path: object) -> None:
    app = Flask("app", instance_path=str(tmp_path))
    Demijohn(app, stores="memory://")
    for command in ("init-db", "purge"):
        result = run(app, command)
        assert result.exit_code == 1
        assert "give Demijohn(app, db=...)" in result.output


def test_database_without_a_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from demijohn.errors import MissingExtra

    for name in [name for name in sys.modules if name.startswith("demijohn.records")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(MissingExtra, match="sql"):
        Demijohn(Flask("app"), stores="memory://", db=object())
