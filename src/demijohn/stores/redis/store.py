"""The store on Redis or Valkey: one EVALSHA for all the steps of a run."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Final, Protocol, cast

from demijohn.core.step import EXPIRES, Outcome, Row, Step, Value
from demijohn.errors import StoreError
from demijohn.stores.bell import Bell
from demijohn.stores.forks import renew_in_children
from demijohn.stores.protocol import Clock, Health
from demijohn.stores.redis import row
from demijohn.stores.redis.address import Address, Layout
from demijohn.stores.redis.cluster import ClusterLink
from demijohn.stores.redis.driver import Argument, Call, Node, Reply, connect
from demijohn.stores.redis.scripts import script_for
from demijohn.stores.redis.subscriber import POLL_MS, Subscriber

logger: Final = logging.getLogger("demijohn.stores")

SCAN_COUNT: Final = 100
# With a clock that is not the server's, the server must not remove a row before that clock says.
TEST_SLACK_MS: Final = 3_600_000


class Link(Protocol):
    """The way to the server, or to the servers."""

    def slot(self, keys: Sequence[str]) -> int:
        """Return what groups keys that one script may touch."""
        ...

    def evaluate(self, slot: int, call: Call) -> list[Reply]:
        """Execute a script where ``slot`` is."""
        ...

    def nodes(self) -> list[Node]:
        """Return every server that holds rows."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...

    def renew_after_fork(self) -> None:
        """Forget all connections, without touching them."""
        ...


class SingleLink:
    """The way to a single server, or to the master that the sentinels name."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self.renew_after_fork()

    def renew_after_fork(self) -> None:
        """Forget all connections, without touching them."""
        self._node = connect(self._address)

    def slot(self, keys: Sequence[str]) -> int:
        """Return 0: all keys lie together."""
        return 0

    def evaluate(self, slot: int, call: Call) -> list[Reply]:
        """Execute a script."""
        return self._node.evaluate(call)

    def nodes(self) -> list[Node]:
        """Return the server."""
        return [self._node]

    def close(self) -> None:
        """Close all connections."""
        self._node.close()


class RedisStore:
    """Rows as hashes on Redis >= 6.2 or Valkey, changed by Lua scripts only.

    A run is one exchange, whatever the number of its steps; on a cluster, one for each slot that
    its steps lie in, in order. Time is the server's. Rows expire on the server by themselves.

    Args:
        address: where the servers are, and how to speak to them.
        clock: for tests only: milliseconds since the epoch, instead of the server's clock. It
            starts at the real time and only advances.
    """

    def __init__(self, address: Address, *, clock: Clock | None = None) -> None:
        self.address = address
        self._prefix = address.options.prefix
        self._clock = clock
        self.scattered = address.layout is Layout.CLUSTER
        self._link: Link = ClusterLink(address) if self.scattered else SingleLink(address)
        self._policy_checked = False
        self._renew_waiting()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Leave connections, thread and inbox to the parent, and begin anew."""
        self._link.renew_after_fork()
        self._renew_waiting()

    def _renew_waiting(self) -> None:
        self._bell = Bell()
        self._subscriber = Subscriber(self._prefix, self._bell, self._any_node, self._check_policy)

    def _any_node(self) -> Node:
        # A cluster passes messages to all its servers. Any will do, and if one is down, another.
        return random.choice(self._link.nodes())  # noqa: S311 - no secret

    # --- running -------------------------------------------------------------------------------

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        """See :meth:`Store.run`."""
        outcomes: list[Outcome] = []
        for slot, group in groupby(steps, lambda step: self._link.slot(step.keys)):
            reply = self._link.evaluate(slot, self._call(list(group)))
            outcomes += map(_outcome, islice(cast("list[list[Value]]", reply), 1, None))
            if outcomes[-1].halts:
                break
        return outcomes

    def _call(self, steps: Sequence[Step]) -> Call:
        script = script_for(frozenset([step.kind for step in steps]))
        keys: list[str] = []
        argv: list[Argument] = ["", 0] if self._clock is None else [self._clock(), TEST_SLACK_MS]
        for step in steps:
            keys += [self._prefix + key for key in step.keys]
            others = step.otherwise or ()
            argv += (script.numbers[step.kind], len(step.keys), len(step.args), len(others))
            argv += step.args
            argv += others
        return Call(script, keys, argv)

    # --- waiting -------------------------------------------------------------------------------

    @property
    def inbox(self) -> str:
        """See :attr:`Store.inbox`; ``""`` until the first wait."""
        return self._subscriber.inbox

    @property
    def mark(self) -> int:
        """See :attr:`Store.mark`."""
        return self._bell.mark

    def wait(self, key: str, *, since: int, timeout_ms: int) -> bool:
        """See :meth:`Store.wait`.

        The first wait of a process only learns to hear, and says "look again": what it looked at
        has not been told where to call. While wake-ups cannot be heard a wait is short, and says
        the same.
        """
        subscriber = self._subscriber
        if not subscriber.inbox:
            options = self.address.options
            patience_ms = round((options.connect_timeout + options.timeout) * 1000) + POLL_MS
            subscriber.start(min(timeout_ms, patience_ms))
            return True
        if not subscriber.listening:
            self._bell.wait(key, since, min(timeout_ms, POLL_MS))
            return True
        return self._bell.wait(key, since, timeout_ms)

    # --- for operators -------------------------------------------------------------------------

    def scan(self, prefix: str) -> Iterator[tuple[str, Row]]:
        """See :meth:`Store.scan`; a row that comes or goes meanwhile may be seen or not."""
        pattern = row.escape_glob(self._prefix + prefix) + "*"
        seen: set[bytes] = set()
        for node in self._link.nodes():
            cursor: int | bytes = 0
            while True:
                page = node.command("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
                cursor, names = cast("tuple[bytes, list[bytes]]", page)
                fresh = [name for name in dict.fromkeys(names) if name not in seen]
                seen.update(fresh)
                yield from self._rows(node, fresh)
                if int(cursor) == 0:
                    break

    def _rows(self, node: Node, names: Sequence[bytes]) -> Iterator[tuple[str, Row]]:
        if not names:
            return
        time_of_server, *replies = node.pipeline(
            [("TIME",), *[("HGETALL", name) for name in names]]
        )
        seconds, micros = cast("list[bytes]", time_of_server)
        server_ms = int(seconds) * 1000 + int(micros) // 1000
        now_ms = server_ms if self._clock is None else self._clock()
        for name, reply in zip(names, replies, strict=True):
            found = row.decode(reply)
            expires = found.get(EXPIRES)
            if isinstance(expires, int) and now_ms < expires:
                yield name.decode(errors="surrogateescape")[len(self._prefix) :], found

    def health(self) -> Health:
        """See :meth:`Store.health`; every master is asked."""
        started = time.perf_counter()
        try:
            nodes = self._link.nodes()
            for node in nodes:
                node.command("PING")
            latency_ms = (time.perf_counter() - started) * 1000
            self._check_policy(nodes[0])
        except StoreError as error:
            latency_ms = (time.perf_counter() - started) * 1000
            return Health("redis", ok=False, latency_ms=latency_ms, detail=str(error))
        return Health("redis", ok=True, latency_ms=latency_ms, detail=self.address.name)

    def _check_policy(self, node: Node) -> None:
        """Warn, once, of a server that may evict rows: a record that is lost runs twice."""
        if self._policy_checked:
            return
        try:
            memory = row.info(node.command("INFO", "memory"))
        except StoreError:
            return  # not allowed, or not there: the next call of the store will tell
        self._policy_checked = True
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and memory.get("maxmemory", "0") != "0":
            logger.warning(
                "%s has maxmemory-policy %s: when it is full it evicts records that are still"
                " needed, and requests run twice; set maxmemory-policy noeviction",
                node.name,
                policy,
            )

    def close(self) -> None:
        """See :meth:`Store.close`."""
        self._subscriber.close()
        self._link.close()


def _outcome(reply: list[Value]) -> Outcome:
    status, halts, *values = reply
    return Outcome(cast("bytes", status).decode(), tuple(values), halts == 1)
