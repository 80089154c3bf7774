"""What a proof starts from; a store of one's own overrides some of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from demijohn.stores.protocol import Store

from .tools import (
    ManualClock,
)


class Fixtures:
    """The store to prove, its clock, and a key."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The clock that the store must use."""
        return ManualClock()

    @pytest.fixture
    def store(self, clock: ManualClock) -> Iterator[Store]:
        """The store to prove; override this."""
        raise NotImplementedError("override the fixture `store`")

    @pytest.fixture
    def key(self) -> str:
        """A key that nobody has used."""
        return f"{{{uuid.uuid4().hex}}}:key"

    def corrupt(self, store: Store, key: str) -> None:
        """Make the row of ``key`` unreadable; override this where it can be done."""
        pytest.skip("this store's rows cannot be spoiled from outside")
