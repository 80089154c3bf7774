"""Who is counted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.limited import Make, Shop, clock, lone, make, shop, store

__all__ = ["clock", "lone", "make", "shop", "store"]


# --- who is counted ------------------------------------------------------------------------------


def test_callers_are_counted_by_themselves(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("1/minute", by="principal"))
    assert shop.statuses("/a", 2, user="alice") == [200, 429]
    assert shop.statuses("/a", 2, user="bob", ip="192.0.2.1") == [200, 429]


@pytest.mark.parametrize("by", ["principal", "api_key", "session", lambda: None])
@pytest.mark.parametrize("missing", ["deny", "ip", "skip", None])
def test_who_is_not_known_is_never_let_past_by_accident(lone: Make, by: Any, missing: Any) -> None:
    shop = lone()
    shop.add("/a", shop.dj.limit("1/minute", by=by, missing=missing))
    statuses = shop.statuses("/a", 2)
    if missing is None:
        missing = "ip" if by == "session" else "deny"
    assert statuses == {"deny": [401, 401], "ip": [200, 429], "skip": [200, 200]}[missing]


def test_api_key_is_what_the_header_holds(lone: Make) -> None:
    shop = lone(limits={"api_key_header": "X-Token"})
    shop.add("/a", shop.dj.limit("1/minute", by="api_key"))
    assert shop.statuses("/a", 2, headers={"X-Token": "one"}) == [200, 429]
    assert shop.statuses("/a", 2, headers={"X-Token": "two"}) == [200, 429]
    assert shop.statuses("/a", 1, headers={"X-Token": ""}) == [401]


def test_session_is_counted_by_its_id(lone: Make) -> None:
    shop = lone()
    shop.add("/a", shop.dj.limit("1/minute", by="session", missing="deny"))
    client = shop.app.test_client()
    with client.session_transaction() as session:
        session["_id"] = "of flask-login"
    assert [client.get("/a").status_code for _ in range(2)] == [200, 429]
    client.delete_cookie("session")
    client.set_cookie("other", "cookie")
    assert client.get("/a").status_code == 401


def test_several_are_counted_together(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("1/minute", by=("principal", "ip")))
    assert shop.statuses("/a", 2, user="alice", ip="192.0.2.1") == [200, 429]
    assert shop.statuses("/a", 2, user="alice", ip="192.0.2.2") == [200, 429]
    assert shop.statuses("/a", 1, user="bob", ip="192.0.2.1") == [200]


def test_everybody_is_counted_as_one(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("2/minute", by="all"))
    assert [shop.get("/a", ip=f"192.0.2.{n}").status_code for n in range(3)] == [200, 200, 429]


def test_network_of_an_ipv6_client_is_one_caller(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("2/minute"))
    addresses = [f"2001:db8:0:{n:x}::{n}" for n in (1, 2, 0xFF)]
    assert [shop.get("/a", ip=ip).status_code for ip in addresses] == [200, 200, 429]
    assert shop.get("/a", ip="2001:db8:0:100::1").status_code == 200  # the next /56


def test_mapped_address_is_the_address(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("1/minute"))
    assert shop.get("/a", ip="192.0.2.9").status_code == 200
    assert shop.get("/a", ip="::ffff:192.0.2.9").status_code == 429


def test_forwarded_address_is_not_believed_and_told_of_once(
    lone: Make, caplog: pytest.LogCaptureFixture
) -> None:
    shop = lone()
    shop.add("/a", shop.dj.limit("1/minute"))
    forged = [{"X-Forwarded-For": f"198.51.100.{n}"} for n in range(3)]
    assert [shop.get("/a", headers=h).status_code for h in forged] == [200, 429, 429]
    assert [r for r in caplog.records if "ProxyFix" in r.getMessage()].__len__() == 1


def test_proxy_fix_is_believed(lone: Make, caplog: pytest.LogCaptureFixture) -> None:
    from werkzeug.middleware.proxy_fix import ProxyFix

    shop = lone()
    shop.add("/a", shop.dj.limit("1/minute"))
    shop.app.wsgi_app = ProxyFix(shop.app.wsgi_app, x_for=1)  # type: ignore[method-assign]
    forwarded = [{"X-Forwarded-For": f"198.51.100.{n}"} for n in range(3)]
    assert [shop.get("/a", headers=h).status_code for h in forwarded] == [200] * 3
    assert not caplog.records


def test_store_holds_nobodys_name(shop: Shop) -> None:
    shop.add("/a", shop.dj.limit("5/minute"), shop.dj.limit("5/hour", by="principal"))
    shop.get("/a", user="alice@example.com", ip="203.0.113.77")
    rows = [name + repr(row) for name, row in shop.store.scan("limits:")]
    assert len(rows) == 2
    assert not [row for row in rows if "alice" in row or "203.0.113" in row]
