"""Which server of a cluster answers for a key.

Theory of operation. Every key belongs to one of 16,384 slots, and every slot to one master. The
map of slots is asked from any server at the first call, and kept. A server that no longer has a
slot says so and names the one that has (MOVED): that entry of the map is corrected, the call
follows, and the whole map is asked anew before the next call. A slot that is on its way answers
for single keys (ASK). When a master cannot be reached the call fails, because it may have been
executed; the next call asks another server for the map, and so finds the replica that was promoted.

redis-py's own cluster client asks all servers for the map while a request waits, whatever its
deadline; here a call never costs more than a few exchanges.
"""

from __future__ import annotations

import binascii
import threading
import time
from collections.abc import Sequence
from typing import Final, cast

from demijohn.errors import StoreUnavailable, UsageError
from demijohn.stores.redis.address import Address
from demijohn.stores.redis.driver import Call, Node, Redirected, Reply, connect

SLOTS: Final = 16_384
REDIRECTIONS: Final = 5

Place = tuple[str, int]


def key_slot(key: bytes) -> int:
    """Return the slot of ``key``: that of its hash tag, if it has one.

    Source: the Redis cluster specification, "Key distribution model" and "Hash tags".
    """
    _, opened, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return binascii.crc_hqx(tag if opened and closed and tag else key, 0) % SLOTS


class ClusterLink:
    """The way to the servers of a cluster.

    Args:
        address: some of the servers, and how to speak to them.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self.renew_after_fork()

    def renew_after_fork(self) -> None:
        """Forget all connections, without touching them."""
        self._lock = threading.Lock()
        self._nodes: dict[Place, Node] = {}
        self._masters: list[Place | None] = []
        self._stale = True
        self._suspect: Place | None = None

    def slot(self, keys: Sequence[str]) -> int:
        """Return the slot that holds ``keys``; 0 if there are none.

        Raises:
            UsageError: they lie in different slots.
        """
        slots = {key_slot(key.encode()) for key in keys}
        if len(slots) > 1:
            raise UsageError(
                f"a step's keys lie in {len(slots)} slots of the cluster;"
                f" give them one hash tag in braces: {', '.join(keys)}"
            )
        return slots.pop() if slots else 0

    def evaluate(self, slot: int, call: Call) -> list[Reply]:
        """Execute a script on the master of ``slot``, wherever that has gone."""
        self._refresh()
        node, asking = self._master(slot), False
        for _ in range(REDIRECTIONS):
            try:
                return node.evaluate(call, asking=asking)
            except Redirected as elsewhere:
                node, asking = self._follow(elsewhere, node), elsewhere.asking
            except StoreUnavailable:
                self._stale, self._suspect = True, self._place_of(node)
                raise
        raise StoreUnavailable(f"{self._address.name}: slot {slot} was moved on and on; try again")

    def _follow(self, elsewhere: Redirected, node: Node) -> Node:
        place = elsewhere.address
        if not place[0]:  # the server that answered has no name for itself but ours
            place = (self._place_of(node)[0], place[1])
        if not elsewhere.asking:
            self._masters[elsewhere.slot] = place
            self._stale = True
        return self._node(place)

    def _place_of(self, node: Node) -> Place:
        return next(place for place, known in list(self._nodes.items()) if known is node)

    def _master(self, slot: int) -> Node:
        place = self._masters[slot]
        if place is None:
            self._stale = True
            raise StoreUnavailable(f"{self._address.name}: nobody serves slot {slot}")
        return self._node(place)

    def _node(self, place: Place) -> Node:
        node = self._nodes.get(place)
        if node is None:
            with self._lock:
                node = self._nodes.setdefault(place, connect(self._address, place))
        return node

    def _refresh(self) -> None:
        """Ask for the map if there is none, or if it is known to be wrong."""
        if not self._stale:
            return
        with self._lock:
            places = list(dict.fromkeys([*self._nodes, *self._address.nodes]))
        places.sort(key=lambda place: place == self._suspect)  # who failed last is asked last
        options = self._address.options
        deadline = time.monotonic() + options.connect_timeout + options.timeout
        failure: StoreUnavailable | None = None
        for place in places:
            try:
                self._masters = _map_of(self._node(place).command("CLUSTER", "SLOTS"), place)
            except StoreUnavailable as error:
                failure = error
                if time.monotonic() > deadline:
                    break
            else:
                self._stale = False
                return
        if not self._masters and failure is not None:
            raise failure

    def nodes(self) -> list[Node]:
        """Return every master."""
        self._refresh()
        places = dict.fromkeys(place for place in self._masters if place is not None)
        return [self._node(place) for place in places]

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            nodes = list(self._nodes.values())
        for node in nodes:
            node.close()


def _map_of(reply: Reply, asked: Place) -> list[Place | None]:
    masters: list[Place | None] = [None] * SLOTS
    for first, last, master, *_ in cast("list[tuple[int, int, list[bytes | int]]]", reply):
        host, port = cast("tuple[bytes | None, int]", tuple(master[:2]))
        place = (host.decode() if host else asked[0], port)
        for slot in range(first, last + 1):
            masters[slot] = place
    return masters
