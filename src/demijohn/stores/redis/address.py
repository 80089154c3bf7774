"""From a URL to where the servers are and how to speak to them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from demijohn.errors import ConfigError
from demijohn.stores import options
from demijohn.stores.breaker import BreakerOptions

PORT: Final = 6379
SENTINEL_PORT: Final = 26379


class Layout(enum.Enum):
    """How the servers are arranged."""

    SINGLE = ""
    UNIX = "unix"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


@dataclass(frozen=True, slots=True)
class Options:
    """The options that a store's URL may carry; durations in seconds.

    Args:
        connect_timeout: how long to wait for a connection.
        timeout: how long to wait for a reply.
        prefix: stands in front of every key on the server.
        max_connections: the most connections of a process to one server.
        breaker_failures: how many failures in a row open the circuit breaker.
        breaker_reset: the breaker's first pause; it doubles with each failed probe.
        breaker_reset_max: the breaker's longest pause.
        wait_replicas: how many replicas must have a write before it counts; 0 for none. It
            narrows the window in which a failover loses a write; it does not close it.
        wait_timeout: how long to wait for these replicas.
        sentinel_username: a user that the sentinels know, if they want one.
        sentinel_password: its password.
        tls_ca: file of the certificates that sign the server's.
        tls_cert: file of the client's certificate.
        tls_key: file of the client's key.
        db: number of the database, where the path does not give it.
    """

    connect_timeout: float = 0.05
    timeout: float = 0.05
    prefix: str = "demijohn:"
    max_connections: int = 100
    breaker_failures: int = 3
    breaker_reset: float = 0.25
    breaker_reset_max: float = 5.0
    wait_replicas: int = 0
    wait_timeout: float = 0.05
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    db: int = 0

    @property
    def breaker(self) -> BreakerOptions:
        """The options of the circuit breaker."""
        return BreakerOptions(
            failures=self.breaker_failures,
            reset_ms=round(self.breaker_reset * 1000),
            reset_max_ms=round(self.breaker_reset_max * 1000),
        )


@dataclass(frozen=True, slots=True)
class Address:
    """Where the servers are, and how to speak to them.

    Args:
        layout: how the servers are arranged.
        nodes: host and port of the server, the sentinels, or some of the cluster's servers.
        path: of the socket, with :attr:`Layout.UNIX`.
        service: the name that the sentinels give the master.
        tls: whether connections are encrypted.
        username: the user; ``""`` for the default one.
        password: ``""`` for none.
        db: the number of the database.
        options: the rest.
    """

    layout: Layout
    nodes: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    tls: bool = False
    username: str = ""
    password: str = field(default="", repr=False)
    db: int = 0
    options: Options = field(default_factory=Options)

    @property
    def name(self) -> str:
        """How messages call the store: without user and password."""
        places = ",".join(f"{host}:{port}" for host, port in self.nodes)
        tail = f"/{self.service}" if self.service else ""
        return f"redis at {self.path or places}{tail}"


def parse_url(url: str) -> Address:
    """Read a store's URL; the reference of settings lists the forms and options.

    Raises:
        ConfigError: a part of it makes no sense; the message names it.
    """
    parts = urlsplit(url)
    scheme, _, arrangement = parts.scheme.partition("+")
    layout = Layout(arrangement)
    given = _options(parts.query)
    if parts.fragment:
        raise ConfigError(f"a store's URL has no fragment: write # as %23, not #{parts.fragment}")
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    service, db = _service_and_db(parts, layout, given)
    if layout is Layout.CLUSTER and given.wait_replicas:
        raise ConfigError("wait_replicas does not work with a cluster; leave it out")
    port = SENTINEL_PORT if layout is Layout.SENTINEL else PORT
    return Address(
        layout,
        nodes=() if layout is Layout.UNIX else _nodes(hosts, port, layout),
        path=unquote(parts.path) if layout is Layout.UNIX else "",
        service=service,
        tls=scheme in {"rediss", "valkeys"},
        username=unquote(username),
        password=unquote(password),
        db=db,
        options=given,
    )


def _nodes(hosts: str, port: int, layout: Layout) -> tuple[tuple[str, int], ...]:
    nodes = tuple(_node(host, port) for host in hosts.split(","))
    if layout is Layout.SINGLE and len(nodes) > 1:
        raise ConfigError(
            f"{hosts!r} names several servers: is it a cluster (redis+cluster://)"
            " or are they sentinels (redis+sentinel://)?"
        )
    return nodes


def _node(place: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{place}")
        return parts.hostname or "127.0.0.1", parts.port or port
    except ValueError as error:
        raise ConfigError(f"{place!r} is not host:port: {error}") from error


def _service_and_db(parts: SplitResult, layout: Layout, given: Options) -> tuple[str, int]:
    if layout is Layout.UNIX:
        if not parts.path or parts.netloc.rpartition("@")[2]:
            raise ConfigError("the path of a socket is absolute: redis+unix:///path/to/socket")
        return "", given.db
    segments = [unquote(segment) for segment in parts.path.split("/") if segment]
    service = ""
    if layout is Layout.SENTINEL:
        if not segments:
            raise ConfigError("name the service: redis+sentinel://host:26379/service")
        service = segments.pop(0)
    if layout is Layout.CLUSTER and (segments or given.db):
        raise ConfigError("a cluster has one database only; leave its number out")
    if len(segments) > 1:
        raise ConfigError(f"{parts.path!r}: only a database's number may stand there")
    return service, options.whole_number("db", segments[0]) if segments else given.db


def _options(query: str) -> Options:
    given = _pairs(query)
    unknown = given.keys() - set(_KNOWN)
    if unknown:
        raise options.unknown("a Redis store", min(unknown), _KNOWN, _KNOWN)
    found = options.read(Options, given)
    if found.prefix.count("{") or found.prefix.count("}"):
        raise ConfigError("prefix must not contain braces: they say where a cluster keeps a key")
    return found


def _pairs(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ConfigError(f"the options of a store's URL are name=value: {error}") from error
    given = dict(pairs)
    if len(given) < len(pairs):
        raise ConfigError(f"an option is given twice in {query!r}")
    return given


_KNOWN: Final = tuple(options.readers_of(Options))
