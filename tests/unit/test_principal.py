"""Who calls: two callers are never one, and one is never two by chance."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, request, session
from hypothesis import given
from hypothesis import strategies as st

from demijohn.errors import UsageError
from demijohn.principal import ANONYMOUS, Principal, resolve

app = Flask(__name__)
app.secret_key = "s"

names = st.text(max_size=4)
principals = st.builds(Principal, names.filter(bool), names, names)


def resolved(hook: Any = None, **headers: str) -> Principal:
    with app.test_request_context(headers={n.replace("_", "-"): v for n, v in headers.items()}):
        return resolve(hook, request._get_current_object())  # type: ignore[attr-defined]


@given(principals, principals)
def test_two_principals_never_have_one_key(one: Principal, other: Principal) -> None:
    assert (one.key == other.key) == (one == other)
    assert one.key != ANONYMOUS.key
    assert not one.anonymous


def test_hook_may_name_the_caller_in_several_ways() -> None:
    assert resolved(lambda: "7") == Principal("7")
    assert resolved(lambda: 7).key == Principal("7").key
    service = Principal("7", kind="service", tenant="acme")
    assert resolved(lambda: service) is service
    for nobody in (None, ANONYMOUS):
        assert resolved(lambda nobody=nobody: nobody) is ANONYMOUS


@given(st.sampled_from(["", None, True, 0.5, b"7", object()]))
def test_hook_that_names_nobody_is_a_mistake(value: Any) -> None:
    hooks = [lambda: Principal(value)]
    if value is not None:
        hooks.append(lambda: value)
    for hook in hooks:
        with pytest.raises(UsageError, match="must return a Principal"):
            resolved(hook)


def test_credentials_are_never_kept_as_they_are() -> None:
    caller = resolved(Authorization="Bearer secret-token")
    assert caller.kind == "credentials"
    assert "secret" not in caller.key
    assert caller == resolved(Authorization="Bearer secret-token")
    assert caller != resolved(Authorization="Bearer secret-tokem")


def test_request_without_credentials_is_anonymous_whatever_its_address() -> None:
    assert resolved() is ANONYMOUS
    assert resolved(X_Forwarded_For="10.0.0.1", Cookie="other=1") is ANONYMOUS


def test_user_of_the_session_is_the_caller_unless_there_is_authorization() -> None:
    with app.test_request_context(headers={"Cookie": "session=x"}):
        session["_user_id"] = "7"
        current = request._get_current_object()  # type: ignore[attr-defined]
        assert resolve(None, current) == Principal("7", kind="session")
    with app.test_request_context(headers={"Cookie": "session=x", "Authorization": "a"}):
        session["_user_id"] = "7"
        current = request._get_current_object()  # type: ignore[attr-defined]
        assert resolve(None, current).kind == "credentials"
