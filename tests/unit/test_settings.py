"""The settings of idempotency: each option has a meaning, a default and an error."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from flask import Blueprint, Flask, Response
from hypothesis import given
from hypothesis import strategies as st

from demijohn import config
from demijohn.errors import ConfigError
from demijohn.frame import NEVER_STORED
from demijohn.idempotency import Idempotency, Options, RouteOptions, is_final
from demijohn.idempotency.settings import Settings

FINAL_4XX = set(range(400, 500)) - {401, 403, 407, 408, 409, 421, 423, 425, 429}


def settings(**options: Any) -> Settings:
    return config.combine(Settings, config.parse_layer(Settings, "here", options))


def test_every_option_is_typed_and_every_typed_option_exists() -> None:
    names = {field.metadata["name"] for field in Settings.__dataclass_fields__.values()}
    assert names == set(Options.__annotations__)


@given(st.integers(100, 599))
def test_what_is_final_is_what_a_retry_would_not_change(status: int) -> None:
    final = 200 <= status < 400 or status in FINAL_4XX
    assert is_final(Response(status=status)) == final


@pytest.mark.parametrize(
    ("rule", "stored"),
    [
        ("final", {200, 404}),
        ("all", {200, 404, 401, 500}),
        ([404], {404}),
        ({404, 500}, {404, 500}),
        (deque([200]), {200}),
        ((), set()),
        (lambda response: response.status_code < 300, {200}),
    ],
)
def test_rule_says_what_is_stored(rule: Any, stored: set[int]) -> None:
    stores = settings(store=rule).store
    statuses = [200, 404, 401, 500]
    assert {status for status in statuses if stores(Response(status=status))} == stored


@pytest.mark.parametrize("rule", ["most", [199], [600], ["200"], [[200]], [200.0], 200, None, ""])
def test_rule_that_says_nothing_is_refused(rule: Any) -> None:
    with pytest.raises(ConfigError, match=r"here\['store'\] must be 'final', 'all'"):
        settings(store=rule)


def test_old_header_is_looked_at_in_legacy_mode_and_once() -> None:
    assert settings().key_headers == ("Idempotency-Key",)
    assert settings(legacy=True).key_headers == ("Idempotency-Key", "X-Idempotent-Key")
    both = settings(legacy=True, headers=["X-Idempotent-Key", "Idempotency-Key"])
    assert both.key_headers == ("X-Idempotent-Key", "Idempotency-Key")


def test_field_is_looked_at_where_forms_are() -> None:
    assert settings().key_field is None
    assert settings(legacy=True).key_field == "__idempotent_key"
    assert settings(forms=True, form_field="once").key_field == "once"


def test_named_headers_are_dropped_besides_those_that_always_are() -> None:
    assert settings(drop_headers=["X-Trace"]).drop_headers == {"x-trace", *NEVER_STORED}
    assert settings().drop_headers == NEVER_STORED


def test_lost_record_is_remembered_for_several_leases() -> None:
    assert settings(ttl=1, lease=60).retain_ms == 600_000
    assert settings(ttl=86_400, lease=60).retain_ms == 86_400_000


@pytest.mark.parametrize(
    "options",
    [
        {"key_pattern": re.compile(b"x")},
        {"key_pattern": "("},
        {"fingerprint": "/amount"},
        {"fingerprint": b"/amount"},
        {"fingerprint": [7]},
        {"methods": [""]},
        {"ttl": 0.5},
        {"ttl": float("inf")},
        {"on_disconnect": "wait"},
        {"on_store_failure": None},
        {"anonymous": True},
        {"max_key_length": 0},
    ],
    ids=str,
)
def test_wrong_value_is_a_configuration_error(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        settings(**options)


@pytest.mark.parametrize("name", ["default", "max_waiters", "max_waiters_per_key"])
def test_setting_of_the_application_is_refused_for_a_route(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"@idempotent cannot set {name!r}: .*application"):
        Idempotency().idempotent(**{name: 1})
    with pytest.raises(ConfigError, match=rf"protect\(\) cannot set {name!r}"):
        Idempotency().protect(Blueprint("b", __name__), **{name: 1})


def test_options_can_be_inspected() -> None:
    assert {*get_type_hints(RouteOptions)} < {*get_type_hints(Options)}


@pytest.mark.parametrize("name", ["lease", "on_lost", "on_disconnect", "on_store_failure"])
def test_option_of_leases_is_refused_in_an_atomic_view(name: str) -> None:
    value = {"lease": 1, "on_lost": "run", "on_disconnect": "finish"}.get(name, "open")
    with pytest.raises(ConfigError, match=f"{name!r}, which has no meaning with atomic=True"):
        Idempotency().idempotent(atomic=True, **{name: value})


def test_retry_is_refused_where_nothing_is_undone(tmp_path: Path) -> None:
    app = Flask("app", instance_path=str(tmp_path))
    extension = Idempotency(app, stores="memory://")
    app.post("/")(extension.idempotent(retry=1)(dict))
    app.testing = True
    with pytest.raises(ConfigError, match="'retry', which is for atomic=True"):
        app.test_client().post("/")
