"""The one module that speaks to redis-py: connections, exchanges, and what its errors mean.

An exchange takes one idle connection, sends, reads, and gives it back. It goes below
``Redis.execute_command``, whose retries would send a timed-out script a second time, and below
redis-py's pools and packing, which cost as much as the rest of an exchange. An idle connection is
looked at before it is used, so that one which the server closed meanwhile is made anew and not
found dead by a request. A connection on which anything but a whole reply was read is closed.

Connections are made with RESP2 and without ``CLIENT SETINFO``: no trip but those for the password
and the database.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn, Protocol, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ConnectionError,  # noqa: A004 - not Python's own: here it is always redis-py's
    MovedError,
    NoScriptError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
)
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from demijohn.errors import CorruptRecord, StoreBusy, StoreError, StoreTimeout, StoreUnavailable
from demijohn.stores.redis.address import Address, Layout
from demijohn.stores.redis.scripts import Script

# What is refused by the server's state, and the cure. Every other error of a reply is a mistake.
CURES: Final[Mapping[str, str]] = {
    "OOM": "it is full: raise its maxmemory, or give Demijohn a server of its own",
    "READONLY": "it is a replica: name the master, or use redis+sentinel:// to have it found",
    "LOADING": "it is reading its data after a start: try again in a moment",
    "BUSY": "a script keeps it busy: end that by SCRIPT KILL",
    "MISCONF": "it cannot save to disk, so it refuses writes: look into its log",
    "MASTERDOWN": "it is a replica that lost its master: name the master",
    "NOREPLICAS": "too few replicas are in reach: see its min-replicas-to-write",
    "CLUSTERDOWN": "the cluster does not serve all slots: see CLUSTER INFO",
    "TRYAGAIN": "the slot is being moved: try again in a moment",
    "EXECABORT": "it refused a transaction: see its log",
    "NOAUTH": "it wants a password: redis://:password@host",
    "WRONGPASS": "user or password in the store's URL are wrong",
    "NOPERM": "the user lacks a permission: it needs EVALSHA, EVAL, the hash commands, PEXPIREAT,"
    " PUBLISH and SUBSCRIBE on keys and channels below the prefix",
}
# A server that wants a password first hangs up on a command of many parts, without a code.
_UNAUTHENTICATED: Final = "unauthenticated"
_CODE_INSIDE: Final = re.compile(rf"(?:^|-)({'|'.join(CURES)}) ")
_NO_RETRY: Final = Retry(NoBackoff(), 0)

T = TypeVar("T")
Reply = object
Argument = int | bytes | str


class Redirected(StoreUnavailable):
    """Another server of the cluster answers for the slot.

    Args:
        address: host and port of that server.
        slot: the slot.
        asking: whether this goes for one command only, because the slot is on its way.
    """

    def __init__(self, address: tuple[str, int], slot: int, *, asking: bool) -> None:
        super().__init__(f"slot {slot} is served by {address[0]}:{address[1]}")
        self.address = address
        self.slot = slot
        self.asking = asking


@dataclass(frozen=True, slots=True)
class Call:
    """One execution of a script."""

    script: Script
    keys: Sequence[str]
    argv: Sequence[Argument]


class _Connection(Protocol):
    """What is used of redis-py's connections."""

    @property
    def is_connected(self) -> bool: ...
    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def can_read(self, timeout: float = 0) -> bool: ...
    def send_command(self, *args: Argument) -> None: ...
    def pack_commands(self, commands: Sequence[tuple[Argument, ...]]) -> list[bytes]: ...
    def send_packed_command(self, command: list[bytes], check_health: bool = ...) -> None: ...
    def read_response(self, *, timeout: float = ..., disconnect_on_error: bool = ...) -> Reply: ...


class _Closable(Protocol):
    def close(self) -> None: ...


class Node:
    """The connections to one server.

    Args:
        address: how to speak to it.
        make: makes a connection that is not connected yet.
        name: how messages call the server.
        sentinels: clients that find the master.
    """

    def __init__(
        self,
        address: Address,
        make: Callable[[], _Connection],
        name: str,
        sentinels: Sequence[_Closable] = (),
    ) -> None:
        self._options = address.options
        self._make = make
        self._sentinels = sentinels
        self._idle: list[_Connection] = []  # the last one given back is the next one taken
        self._all: list[_Connection] = []
        self._lock = threading.Lock()
        self._closings = 0
        self.name = name

    def evaluate(self, call: Call, *, asking: bool = False) -> list[Reply]:
        """Execute a script: one exchange, or two when the server does not know it yet.

        Args:
            call: the script with its keys and arguments.
            asking: whether to insist, as a cluster's ASK wants it.
        """
        return self._exchange(lambda connection: self._evaluate(connection, call, asking))

    def _evaluate(self, connection: _Connection, call: Call, asking: bool) -> list[Reply]:
        try:
            reply = _execute(connection, "EVALSHA", call.script.sha, call, asking)
        except NoScriptError:
            reply = _execute(connection, "EVAL", call.script.source, call, asking)
        wanted = self._options.wait_replicas
        if wanted and reply[0]:
            self._await_replicas(connection, wanted)
        return reply

    def _await_replicas(self, connection: _Connection, wanted: int) -> None:
        seconds = self._options.wait_timeout
        connection.send_command("WAIT", wanted, max(round(seconds * 1000), 1))
        had = connection.read_response(timeout=seconds + self._options.timeout)
        if cast("int", had) < wanted:
            raise StoreTimeout(
                f"{self.name}: {had} of {wanted} replicas had the write after {seconds} s;"
                " it stands on the master and may be lost by a failover (wait_replicas)"
            )

    def command(self, *command: Argument) -> Reply:
        """Send one command and return its reply."""

        def converse(connection: _Connection) -> Reply:
            connection.send_command(*command)
            return connection.read_response()

        return self._exchange(converse)

    def pipeline(self, commands: Sequence[tuple[Argument, ...]]) -> list[Reply]:
        """Send all commands in one go; a command that was refused answers with its error."""

        def converse(connection: _Connection) -> list[Reply]:
            connection.send_packed_command(connection.pack_commands(commands))
            return [_reply_or_error(connection) for _ in commands]

        return self._exchange(converse)

    def _exchange(self, converse: Callable[[_Connection], T]) -> T:
        connection = self._take()
        closings = self._closings
        try:
            if not _is_ready(connection):
                connection.connect()
            return converse(connection)
        except ResponseError as error:
            # The reply was read whole, so the connection is sound. But behind a failover it leads
            # to the wrong server, and so do the idle ones; new ones will not.
            if _code(error) in {"READONLY", "MASTERDOWN", "NOAUTH"}:
                connection.disconnect()
                self._disconnect_idle()
            _fail(self.name, error)
        except (RedisError, OSError) as error:
            connection.disconnect()
            _fail(self.name, error)
        except BaseException:
            connection.disconnect()
            raise
        finally:
            if closings != self._closings:
                connection.disconnect()
            self._idle.append(connection)

    def _disconnect_idle(self) -> None:
        # Taken out first: one that is in use belongs to another thread.
        idle: list[_Connection] = []
        with suppress(IndexError):
            while True:
                idle.append(self._idle.pop())
        for connection in idle:
            connection.disconnect()
        self._idle += idle

    def _take(self) -> _Connection:
        try:
            return self._idle.pop()
        except IndexError:
            pass
        with self._lock:
            if len(self._all) >= self._options.max_connections:
                raise StoreBusy(
                    f"all {len(self._all)} connections to {self.name} are in use:"
                    " raise max_connections"
                )
            connection = self._make()
            self._all.append(connection)
        return connection

    def listen(self) -> Listener:
        """Open a connection of its own, outside the pool, to hear messages on."""
        connection = self._make()
        try:
            connection.connect()
        except (RedisError, OSError) as error:
            connection.disconnect()
            _fail(self.name, error)
        return Listener(connection, self.name)

    def close(self) -> None:
        """Close all connections: the idle ones now, those in use when their reply is there."""
        self._closings += 1
        self._disconnect_idle()
        for sentinel in self._sentinels:
            sentinel.close()


class Listener:
    """A connection that hears what is published on a channel."""

    def __init__(self, connection: _Connection, name: str) -> None:
        self._connection = connection
        self._name = name

    def subscribe(self, channel: str) -> None:
        """Subscribe to ``channel``; return when the server has confirmed it."""
        self._checked(lambda: self._connection.send_command("SUBSCRIBE", channel))
        self._checked(self._connection.read_response)

    def ping(self) -> None:
        """Ask the server for a sign of life."""
        self._checked(lambda: self._connection.send_command("PING"))

    def receive(self, seconds: float) -> tuple[bytes, bytes] | None:
        """Return the kind and content of the next message; ``None`` if none came in time."""
        try:
            reply = self._connection.read_response(timeout=seconds, disconnect_on_error=False)
        except TimeoutError:
            return None
        except (RedisError, OSError, ValueError) as error:  # ValueError: closed while it was read
            _fail(self._name, error)
        parts = cast("list[bytes]", reply)
        return parts[0], parts[-1]

    def _checked(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except (RedisError, OSError) as error:
            _fail(self._name, error)

    def close(self) -> None:
        """Close the connection; who receives on it in another thread gets an error."""
        self._connection.disconnect()


def connect(address: Address, place: tuple[str, int] | None = None) -> Node:
    """Make the node at ``place``, or the one that ``address`` names. Nothing is sent yet."""
    if address.layout is Layout.SENTINEL:
        return _master_of(address)
    settings = _settings(address)
    if address.layout is Layout.UNIX:
        settings["path"] = address.path
        unix = cast("Callable[..., _Connection]", redis.UnixDomainSocketConnection)
        return Node(address, partial(unix, **settings), address.name)
    host, port = place or address.nodes[0]
    settings |= {"host": host, "port": port, **_tls(address)}
    chosen = redis.SSLConnection if address.tls else redis.Connection
    tcp = cast("Callable[..., _Connection]", chosen)
    return Node(address, partial(tcp, **settings), f"redis at {host}:{port}")


def _master_of(address: Address) -> Node:
    options = address.options
    asking = {
        **_settings(address),
        "username": options.sentinel_username or None,
        "password": options.sentinel_password or None,
        "db": 0,
    }
    if address.tls:
        asking |= {"ssl": True, **_tls(address)}
    sentinel = Sentinel(address.nodes, sentinel_kwargs=asking)
    # Of the pool only its way to make connections is used: each asks the sentinels for the master.
    pool = SentinelConnectionPool(
        address.service, sentinel, ssl=address.tls, **_settings(address), **_tls(address)
    )

    def make() -> _Connection:
        return cast("_Connection", pool.connection_class(**pool.connection_kwargs))

    return Node(address, make, address.name, sentinel.sentinels)


def _settings(address: Address) -> dict[str, Any]:
    return {
        "db": address.db,
        "username": address.username or None,
        "password": address.password or None,
        "socket_connect_timeout": address.options.connect_timeout,
        "socket_timeout": address.options.timeout,
        "retry": _NO_RETRY,
        "protocol": 2,
        "driver_info": None,
    }


def _tls(address: Address) -> dict[str, Any]:
    if not address.tls:
        return {}
    return {
        "ssl_ca_certs": address.options.tls_ca or None,
        "ssl_certfile": address.options.tls_cert or None,
        "ssl_keyfile": address.options.tls_key or None,
    }


def _execute(
    connection: _Connection,
    command: str,
    script: Argument,
    call: Call,
    asking: bool,
) -> list[Reply]:
    if asking:
        connection.send_command("ASKING")
        connection.read_response()
    parts = (command, script, len(call.keys), *call.keys, *call.argv)
    connection.send_packed_command(_packed(parts), check_health=False)
    return cast("list[Reply]", connection.read_response())


# Half of what a script is given are counts and flags.
_SMALL: Final = tuple(b"$%d\r\n%d\r\n" % (len(str(number)), number) for number in range(100))


def _packed(parts: Sequence[Argument]) -> list[bytes]:
    """Return a command as it goes over the wire, in a quarter of the time redis-py takes."""
    pieces = [b"*%d\r\n" % len(parts)]
    for part in parts:
        if isinstance(part, int):
            if 0 <= part < len(_SMALL):
                pieces.append(_SMALL[part])
                continue
            raw = b"%d" % part
        else:
            raw = part.encode() if isinstance(part, str) else part
        pieces.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return [b"".join(pieces)]


def _is_ready(connection: _Connection) -> bool:
    """Tell whether an idle connection can be used; one with something to read is of no use."""
    if not connection.is_connected:
        return False
    try:
        stale = connection.can_read()
    except (RedisError, OSError):
        stale = True
    if stale:
        connection.disconnect()
    return not stale


def _reply_or_error(connection: _Connection) -> Reply:
    try:
        return connection.read_response(disconnect_on_error=False)
    except ResponseError as error:
        return error


def _code(error: RedisError) -> str:
    """Return the code with which the server refused, or ``""``."""
    # Redis 6.2 wraps what a command in a script answered: "ERR Error running script ...: -OOM ...".
    if _UNAUTHENTICATED in str(error):
        return "NOAUTH"
    found = _CODE_INSIDE.search(str(error))
    return error.status_code or "" if not found else found[1]


def _fail(name: str, error: Exception) -> NoReturn:
    """Raise what ``error`` means."""
    raise _meaning(name, error) from error


def _meaning(name: str, error: Exception) -> StoreError:
    if isinstance(error, AskError):
        place = (error.host, error.port)
        return Redirected(place, error.slot_id, asking=not isinstance(error, MovedError))
    code = _code(error) if isinstance(error, RedisError) else ""
    if code in CURES:
        return StoreUnavailable(f"{name} refuses ({code}): {CURES[code]}. It said: {error}")
    if isinstance(error, ConnectionError | TimeoutError | OSError):
        return _out_of_reach(name, error)
    if str(error).startswith("CORRUPT "):
        return CorruptRecord(f"{name}: {str(error)[8:]}")
    return StoreError(f"{name} reports a mistake: {error}")


def _out_of_reach(name: str, error: Exception) -> StoreError:
    if isinstance(error, TimeoutError):
        return StoreTimeout(f"{name} did not answer in time (timeout, connect_timeout): {error}")
    return StoreUnavailable(f"{name} cannot be reached: {error}")
