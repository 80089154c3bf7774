"""``flask limits``: what an operator may see of limits, and undo."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import click
from flask import Flask, current_app
from flask.cli import AppGroup

from ..core import limits as core
from ..core.step import Row
from ..defaults import guard_by_default
from ..errors import DemijohnError
from ..extension import Binding
from ..guard import Guard
from ..limits.asking import PREFIX
from ..limits.bound import Bound, bound_to
from ..limits.headers import seconds
from ..limits.identity import EVERYBODY, Identities
from ..limits.plan import Declared, Entry
from ..limits.policy import BoundLimits
from ..limits.tally import PREFIX as REFUSED

PAGE: Final = 100

group = AppGroup("limits", help="Look at limits and at who has reached them; reset them.")


class Standing(NamedTuple):
    """A limit of an endpoint, and the row of the caller who is looked at."""

    endpoint: str
    entry: Entry
    key: str


def _app() -> Flask:
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    return app


def _bound() -> tuple[Binding, Bound]:
    try:
        return bound_to(_app())
    except DemijohnError as error:
        raise click.ClickException(str(error)) from error


def _watched(every_s: float | None, times: int | None, show: Callable[[], None]) -> None:
    """Show something once, or again and again."""
    count = 0
    while True:
        if every_s is not None:
            click.clear()
        try:
            show()
        except DemijohnError as error:
            raise click.ClickException(str(error)) from error
        count += 1
        if every_s is None or count == times:
            return
        time.sleep(every_s)


def _watching(command: Callable[..., Any]) -> Callable[..., Any]:
    watch = click.option("--watch", type=float, help="Show it again every so many seconds.")
    times = click.option("--times", type=int, help="With --watch: stop after so many.")
    return watch(times(command))


# --- which limits there are ---------------------------------------------------------------------


def _guards(view: object) -> Iterator[Guard]:
    """Yield the guards of a view, and of what it wraps."""
    while view is not None:
        found = getattr(view, "__demijohn_guard__", None)
        if isinstance(found, Guard) and found.wrapper is view:
            yield found
        view = getattr(view, "__wrapped__", None)


def _policies(app: Flask, binding: Binding, endpoint: str) -> Iterator[BoundLimits]:
    guard_by_default(app, binding, endpoint)
    view = app.view_functions[endpoint]
    of_class = getattr(view, "view_class", None)
    methods = sorted(getattr(view, "methods", None) or ())
    views = [view, *(getattr(of_class, method.lower(), None) for method in methods)]
    for guard in (guard for each in views for guard in _guards(each)):
        beside = frozenset(policy.capability for policy in guard.policies)
        for policy in guard.policies:
            bound: object = policy.bind(binding, beside)
            bound = getattr(bound, "policy", bound)
            if isinstance(bound, BoundLimits):
                yield bound


def _declared(app: Flask, binding: Binding) -> Iterator[tuple[str, Declared, list[Entry]]]:
    for endpoint in sorted(app.view_functions):
        for policy in _policies(app, binding, endpoint):
            plan = policy.plan(endpoint)
            for limit, entries in plan.declared() if plan else ():
                yield endpoint, limit, entries


def _described(limit: Declared, entry: Entry) -> str:
    rate = f" ({entry.rule[1]}/{entry.rule[2] // 1000}s)"
    shown = entry.name + (rate if limit.options.name and not entry.places else "")
    words = [shown, "by " + "+".join(Identities.kinds(entry.by))]
    algorithm = {core.GCRA: "gcra", core.CALENDAR: "calendar", core.LOG: "log"}
    if entry.rule[0] in algorithm:
        words.append(algorithm[entry.rule[0]])
    if limit.options.group:
        words.append(f"group {limit.options.group}")
    if limit.options.methods:
        words.append(" ".join(limit.options.methods))
    if limit.options.unless:
        words.append("unless ...")
    if entry.shadow:
        words.append("in shadow")
    return ", ".join(words)


@group.command("list")
@click.option("--endpoint", help="Only of this endpoint.")
def list_limits(endpoint: str | None) -> None:
    """List the limits of every endpoint."""
    app, (binding, _) = _app(), _bound()
    for name, limit, entries in _declared(app, binding):
        if endpoint in {None, name}:
            texts = [_described(limit, entry) for entry in entries]
            for text in texts or [f"by a function, {limit.rates!r}"]:
                click.echo(f"{name}: {text}")


# --- how somebody stands ------------------------------------------------------------------------


def _spelled(bound: Bound, who: str) -> tuple[tuple[str, ...], str]:
    try:
        return bound.identities.spelled(who)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _tag(bound: Bound, entry: Entry, kinds: tuple[str, ...], tag: str) -> str | None:
    """Return the name under which ``entry`` counts a caller; ``None`` if it counts by others."""
    counted = Identities.kinds(entry.by)
    if counted == (EVERYBODY,):
        return bound.identities.spelled(f"{EVERYBODY}:{EVERYBODY}")[1]
    missing = entry.missing or ("ip" if counted == ("session",) else "deny")
    by_address = kinds == ("ip",) and missing == "ip" and len(counted) == 1
    return tag if counted == kinds or by_address else None


def _standings(app: Flask, binding: Binding, bound: Bound, who: str) -> Iterator[Standing]:
    kinds, tag = _spelled(bound, who)
    seen: set[str] = set()
    for endpoint, limit, entries in _declared(app, binding):
        for entry in entries:
            found = _tag(bound, entry, kinds, tag)
            key = f"{PREFIX}{{{found}}}:{entry.suffix}"
            if found is not None and key not in seen:
                seen.add(key)
                yield Standing(limit.options.group or endpoint, entry, key)


def _look(bound: Bound, standing: Standing) -> tuple[int, int]:
    """Return what is left of a limit, and when there is more; nothing is taken."""
    step = core.take((standing.key,), [standing.entry.taking(0)])
    outcome = bound.store.run([step])[0]
    return outcome.integer(core.FIRST), outcome.integer(core.FIRST + 1)


def _line(standing: Standing, left: int, reset_ms: int) -> str:
    more = f", more in {seconds(reset_ms)} s" if reset_ms else ""
    amount = standing.entry.rule[1]
    return f"{standing.endpoint}: {standing.entry.name}: {left} of {amount} left{more}"


@group.command("peek")
@click.argument("who")
@_watching
def peek(who: str, watch: float | None, times: int | None) -> None:
    """Show what WHO (such as ip:192.0.2.1 or principal:42) has left of every limit."""
    app, (binding, bound) = _app(), _bound()
    standings = list(_standings(app, binding, bound, who))
    if not standings:
        raise click.ClickException(f"no limit counts by {who.partition(':')[0]}")

    def show() -> None:
        for standing in standings:
            click.echo(_line(standing, *_look(bound, standing)))

    _watched(watch, times, show)


@group.command("test")
@click.argument("who")
@click.argument("endpoint")
def test(who: str, endpoint: str) -> None:
    """Tell whether a request of WHO at ENDPOINT would be admitted now; exit 1 if not."""
    app, (binding, bound) = _app(), _bound()
    if endpoint not in app.view_functions:
        raise click.BadParameter(f"there is no endpoint {endpoint!r}")
    kinds, tag = _spelled(bound, who)
    refused, unknown = False, []
    for name, _, entries in _declared(app, binding):
        for entry in entries if name == endpoint else ():
            found = _tag(bound, entry, kinds, tag)
            if found is None:
                unknown.append(entry.name)
                continue
            key = f"{PREFIX}{{{found}}}:{entry.suffix}"
            standing = Standing(name, entry, key)
            left, reset_ms = _look(bound, standing)
            short = left < entry.rule[4]
            refused = refused or (short and not entry.shadow)
            word = "REFUSED" if short else "ok"
            click.echo(f"{word}: {_line(standing, left, reset_ms)}")
    for name in unknown:
        click.echo(f"not known: {name} counts by something else")
    if refused:
        raise SystemExit(1)


# --- undoing ------------------------------------------------------------------------------------


def _reset(bound: Bound, prefix: str) -> int:
    count, page = 0, []
    for name, _ in bound.store.scan(prefix):
        page.append(name)
        if len(page) == PAGE:
            count, page = count + _removed(bound, page), []
    return count + _removed(bound, page)


def _removed(bound: Bound, names: list[str]) -> int:
    outcomes = bound.store.run([core.reset((name,)) for name in names]) if names else []
    return sum(outcome.integer(0) for outcome in outcomes)


@group.command("reset")
@click.argument("who", required=False)
@click.option("--all", "everybody", is_flag=True, help="Reset everybody's limits.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(who: str | None, everybody: bool, yes: bool) -> None:
    """Forget what WHO has used up; running processes hear of it within a second."""
    _, bound = _bound()
    if (who is None) != everybody:
        raise click.UsageError("give either WHO or --all")
    prefix = PREFIX
    if who is not None:
        prefix = f"{PREFIX}{{{_spelled(bound, who)[1]}}}:"
    elif not yes:
        click.confirm("Reset the limits of everybody?", abort=True)
    try:
        count = _reset(bound, prefix)
    except DemijohnError as error:
        raise click.ClickException(str(error)) from error
    bound.rejections.clear()
    click.echo(f"{count} reset")


# --- who is refused -----------------------------------------------------------------------------


def _number(row: Row, name: str) -> int:
    value = row.get(name)
    return value if isinstance(value, int) else 0


def _label(row: Row) -> str:
    value = row.get("d")
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


@group.command("top")
@click.option("--limit", default=20, show_default=True, help="At most so many.")
@_watching
def top(limit: int, watch: float | None, times: int | None) -> None:
    """List who was refused most in the last hour, by all processes.

    Rows are named by hidden names; `flask limits peek` shows those of somebody you know.
    """
    _, bound = _bound()

    def show() -> None:
        rows = sorted(bound.store.scan(REFUSED), key=lambda each: -_number(each[1], "n"))
        for name, row in rows[:limit]:
            last = datetime.fromtimestamp(_number(row, "c") / 1000, UTC).strftime("%H:%M:%SZ")
            refused = _number(row, "n")
            click.echo(f"{refused:>8}  last {last}  {_label(row)}  {name.removeprefix(REFUSED)}")
        if not rows:
            click.echo("nobody was refused")

    _watched(watch, times, show)
