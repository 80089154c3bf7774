"""``flask demijohn``: what an operator may see and decide."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click
from flask import Flask, current_app
from flask.cli import AppGroup

from ..core import idempotency as core
from ..core.step import Row
from ..errors import DemijohnError
from ..extension import Binding
from ..frame import Frame, decode, encode
from ..idempotency.bound import Bound, bound_to
from ..idempotency.claim import row_names
from ..principal import ANONYMOUS, Principal
from ..stores import Store

if TYPE_CHECKING:
    from ..records import Database

PREFIX: Final = "idempotency:"
STATES: Final = tuple(state.name.lower() for state in core.State if state is not core.State.ABSENT)

group = AppGroup("demijohn", help="Look at what Demijohn keeps, and decide what it cannot.")
keys = AppGroup("idempotency", help="Idempotency keys.")
group.add_command(keys)


def _app() -> Flask:
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    return app


def _bound() -> tuple[Binding, Bound, Store]:
    try:
        binding, bound = bound_to(_app())
    except DemijohnError as error:
        raise click.ClickException(str(error)) from error
    return binding, bound, binding.store("idempotency")


def _number(row: Row, field: str) -> int:
    value = row.get(field, 0)
    return value if isinstance(value, int) else 0


def _when(row: Row, field: str) -> str:
    seconds = _number(row, field) / 1000
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _state(row: Row) -> core.State:
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    return core.state_of(row, now_ms)


@group.command("stores")
def stores() -> None:
    """Ask every store whether it answers; exit 1 if one does not."""
    binding = _app().extensions.get("demijohn")
    if not isinstance(binding, Binding):
        raise click.ClickException("Demijohn is not bound to this application")
    failed = False
    for name, store in binding.stores.items():
        health = store.health()
        failed = failed or not health.ok
        word = "ok" if health.ok else "FAILED"
        click.echo(f"{name}: {word} {health.kind} {health.latency_ms:.1f} ms {health.detail}")
    if failed:
        raise SystemExit(1)


def _database() -> Database:
    binding = _app().extensions.get("demijohn")
    if not isinstance(binding, Binding) or binding.database is None:
        raise click.ClickException("no database is bound: give Demijohn(app, db=...)")
    return binding.database


@group.command("init-db")
@click.option("--check", is_flag=True, help="Make nothing; exit 1 if something is missing.")
def init_db(check: bool) -> None:
    """Make Demijohn's tables in the database; what is there is left as it is."""
    database = _database()
    try:
        if not check:
            database.create()
        database.prepare()
    except DemijohnError as error:
        raise click.ClickException(str(error)) from error
    click.echo("all tables are there")


@group.command("purge")
@click.option("--batch", default=500, show_default=True, help="Rows in one transaction.")
def purge(batch: int) -> None:
    """Remove the records of the database that are over: keys after their time, and steps.

    Stores remove by themselves what is over; run this once a day or so, at any time.
    """
    for kind, count in _database().purge(batch).items():
        click.echo(f"{kind}: {count} removed")


@keys.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only keys in this state.")
@click.option("--limit", default=100, show_default=True, help="At most so many.")
def list_keys(state: str | None, limit: int) -> None:
    """List stored keys by the names of their rows, which tell neither key nor caller."""
    _, _, store = _bound()
    shown = 0
    for name, row in store.scan(PREFIX):
        found = _state(row)
        if found is core.State.ABSENT or (state and found.name.lower() != state):
            continue
        click.echo(
            f"{name}  {found.name.lower():9}  attempt {_number(row, core.ATTEMPT)}  "
            f"since {_when(row, core.SINCE)}"
        )
        shown += 1
        if shown >= limit:
            return


@keys.command("show")
@click.argument("name")
def show(name: str) -> None:
    """Show one stored key: its state, and the response without its body."""
    row = _row(name)
    found = _state(row)
    click.echo(f"state: {found.name.lower()}")
    click.echo(f"attempt: {_number(row, core.ATTEMPT)}")
    click.echo(f"fence: {_number(row, core.FENCE)}")
    click.echo(f"since: {_when(row, core.SINCE)}")
    if found is core.State.RUNNING:
        click.echo(f"lease until: {_when(row, core.LEASE_UNTIL)}")
    if found is core.State.COMPLETED:
        click.echo(f"kept until: {_when(row, core.UNTIL)}")
        data = row[core.FRAME]
        stored = decode(data if isinstance(data, bytes) else b"")
        size = "not kept" if stored.body is None else f"{len(stored.body)} bytes"
        click.echo(f"response: {stored.status}, body {size}")


def _row(name: str) -> Row:
    _, _, store = _bound()
    row = dict(store.scan(name)).get(name)
    if row is None:
        raise click.ClickException(f"there is no key {name}")
    return row


@keys.command("name")
@click.argument("key")
@click.option("--principal", default=None, help="The caller's id; without it, anonymous.")
@click.option("--kind", default="user", show_default=True, help="The caller's kind.")
@click.option("--tenant", default="", help="The caller's tenant.")
@click.option("--scope", default="", help="What scope= returned for the request.")
def name_of(key: str, principal: str | None, kind: str, tenant: str, scope: str) -> None:
    """Print the name under which the KEY of a caller is stored, the current secret's first."""
    binding, _, _ = _bound()
    caller = ANONYMOUS if principal is None else Principal(principal, kind=kind, tenant=tenant)
    for name in row_names(binding.secrets, caller.key, scope, key):
        click.echo(name)


@keys.command("resolve")
@click.argument("name")
@click.option("--run", is_flag=True, help="It had no effect: let a retry run.")
@click.option("--status", type=click.IntRange(200, 599), help="It is done: answer with this.")
@click.option("--body", default="", help="The body to answer with.")
@click.option("--content-type", default="application/json", show_default=True)
def resolve(name: str, run: bool, status: int | None, body: str, content_type: str) -> None:
    """Decide a key whose first request was lost, after finding out what it did.

    Whatever still runs under the key is fenced: its result will be refused.
    """
    if run == (status is not None):
        raise click.UsageError("give either --run or --status")
    _, bound, store = _bound()
    _row(name)
    frame = b""
    if status is not None:
        frame = encode(Frame(status, [("Content-Type", content_type)], body.encode()))
    settings = bound.settings
    step = core.resolve(name, frame=frame, ttl_ms=settings.ttl_ms, retain_ms=settings.retain_ms)
    outcome = store.run([step])[0]
    if outcome.status != "resolved":
        state = core.State(outcome.integer(0)).name.lower()
        raise click.ClickException(f"the key is {state}; only a lost request can be resolved")
    click.echo("resolved: a retry will run" if run else f"resolved: answered with {status}")
