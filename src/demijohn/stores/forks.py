"""What a process that was forked must make anew: locks, threads, sockets.

A lock that another thread held at the fork stays locked in the child for ever, and a socket that
two processes read belongs to neither. So whatever holds one is renewed in the child before any of
its code runs.
"""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol


class Renewable(Protocol):
    """Something that a forked child cannot share with its parent."""

    def renew_after_fork(self) -> None:
        """Forget, without touching, what belongs to the parent; make it anew."""
        ...


_renewables: Final[weakref.WeakSet[Renewable]] = weakref.WeakSet()


def renew_in_children(renewable: Renewable) -> None:
    """Have ``renewable`` renewed in every child, for as long as it lives."""
    _renewables.add(renewable)


def _renew_all() -> None:
    for renewable in list(_renewables):
        renewable.renew_after_fork()


if hasattr(os, "register_at_fork"):  # pragma: no branch - absent where nothing forks
    os.register_at_fork(after_in_child=_renew_all)
