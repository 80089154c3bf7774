"""A store's URL is understood whole, or refused with the cure."""

from __future__ import annotations

import pytest

from demijohn.errors import ConfigError
from demijohn.stores.redis.address import Address, Layout, Options, parse_url


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("://", Address(Layout.SINGLE, (("127.0.0.1", 6379),))),
        ("://db.example", Address(Layout.SINGLE, (("db.example", 6379),))),
        ("://db.example:7000/5", Address(Layout.SINGLE, (("db.example", 7000),), db=5)),
        ("://db.example/?db=5", Address(Layout.SINGLE, (("db.example", 6379),), db=5)),
        ("://[::1]:7000", Address(Layout.SINGLE, (("::1", 7000),))),
        ("s://h", Address(Layout.SINGLE, (("h", 6379),), tls=True)),
        ("://:p%40ss@h", Address(Layout.SINGLE, (("h", 6379),), password="p@ss")),
        ("://me:pw@h", Address(Layout.SINGLE, (("h", 6379),), username="me", password="pw")),
        ("+unix:///run/r.sock?db=2", Address(Layout.UNIX, path="/run/r.sock", db=2)),
        ("+unix://:pw@/r%20s", Address(Layout.UNIX, path="/r s", password="pw")),
        ("+cluster://a:1,b", Address(Layout.CLUSTER, (("a", 1), ("b", 6379)))),
        ("s+cluster://a:1", Address(Layout.CLUSTER, (("a", 1),), tls=True)),
        (
            "+sentinel://a,b:1/main/3",
            Address(Layout.SENTINEL, (("a", 26379), ("b", 1)), service="main", db=3),
        ),
        (
            "s+sentinel://u:p@a/main",
            Address(
                Layout.SENTINEL,
                (("a", 26379),),
                service="main",
                tls=True,
                username="u",
                password="p",
            ),
        ),
    ],
)
def test_url_says_where_the_servers_are(scheme: str, rest: str, expected: Address) -> None:
    address = parse_url(scheme + rest)
    db = expected.db
    assert (address.layout, address.nodes, address.path) == (
        expected.layout,
        expected.nodes,
        expected.path,
    )
    assert (address.service, address.tls, address.db) == (expected.service, expected.tls, db)
    assert (address.username, address.password) == (expected.username, expected.password)


def test_options_are_read_with_their_types() -> None:
    options = parse_url(
        "redis://h?timeout=0.2&prefix=app%3A&wait_replicas=1&breaker_reset=0.1&breaker_failures=5"
        "&breaker_reset_max=2&tls_ca=/etc/ca.pem"
    ).options
    assert options == Options(
        timeout=0.2,
        prefix="app:",
        wait_replicas=1,
        breaker_reset=0.1,
        breaker_failures=5,
        breaker_reset_max=2.0,
        tls_ca="/etc/ca.pem",
    )
    breaker = options.breaker
    assert (breaker.failures, breaker.reset_ms, breaker.reset_max_ms) == (5, 100, 2000)


def test_defaults_are_fifty_milliseconds() -> None:
    assert parse_url("redis://h").options == Options(connect_timeout=0.05, timeout=0.05)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://h?timeuot=1", "did you mean 'timeout'"),
        ("redis://h?zzzzzz=1", "known are connect_timeout"),
        ("redis://h?timeout=soon", "timeout='soon' is not a duration"),
        ("redis://h?timeout=0", "above 0"),
        ("redis://h?timeout=-1", "above 0"),
        ("redis://h?timeout=inf", "above 0"),
        ("redis://h?timeout=nan", "above 0"),
        ("redis://h?timeout=1&timeout=2", "given twice"),
        ("redis://h?timeout", "name=value"),
        ("redis://h?max_connections=some", "not a whole number"),
        ("redis://h?max_connections=0", "at least 1"),
        ("redis://h?breaker_failures=0", "at least 1"),
        ("redis://h?prefix={app}", "braces"),
        ("redis://h/one", "db='one' is not a whole number"),
        ("redis://h/1/2", "only a database's number"),
        ("redis://h:port", "is not host:port"),
        ("redis://h#1", "fragment"),
        ("redis://a,b", "several servers"),
        ("redis+unix://relative/path", "absolute"),
        ("redis+unix://", "absolute"),
        ("redis+cluster://a/1", "one database only"),
        ("redis+cluster://a?db=1", "one database only"),
        ("redis+cluster://a?wait_replicas=1", "does not work with a cluster"),
        ("redis+sentinel://a", "name the service"),
        ("redis+sentinel://a/main/1/2", "only a database's number"),
    ],
)
def test_what_makes_no_sense_is_told(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_url(url)


def test_name_and_repr_keep_passwords_to_themselves() -> None:
    address = parse_url("redis+sentinel://me:secret@h/main?sentinel_password=hidden")
    assert address.name == "redis at h:26379/main"
    assert "secret" not in repr(address)
    assert "hidden" not in repr(address)
    assert parse_url("redis+unix:///run/r.sock").name == "redis at /run/r.sock"
