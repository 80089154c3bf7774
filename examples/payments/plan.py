"""What is meant to happen, and the count of what does."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import Literal, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to play, as the command line says."""

    store: str
    guarded: bool
    payments: int
    duplicates: int
    kills: int
    seed: int
    plain: bool

    def intents(self) -> list[Intent]:
        """Return the payments that are meant; the same for the same seed."""
        draw = random.Random(self.seed)
        return [Intent.random(draw, number) for number in range(1, self.payments + 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A payment that a customer means to make once, and what happens to its requests."""

    key: str
    recipient: str
    cents: int
    cuts: tuple[Literal["halfway", "unread"], ...]

    @classmethod
    def random(cls, draw: random.Random, number: int) -> Self:
        """Draw one."""
        return cls(
            key=str(uuid.UUID(int=draw.getrandbits(128), version=4)),
            recipient=f"customer {number:04d}",
            cents=draw.randint(100, 99_999),
            cuts=draw.choice(((), ("halfway",), ("unread",), ("unread", "halfway"))),
        )

    @property
    def body(self) -> bytes:
        """The request's body."""
        order = f'{{"amount": {self.cents}, "currency": "EUR", "recipient": "{self.recipient}"}}'
        return order.encode()

    @property
    def headers(self) -> dict[str, str]:
        """The request's fields."""
        return {"Idempotency-Key": f'"{self.key}"', "Content-Type": "application/json"}


class Tally:
    """What has happened so far, counted by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._answers: dict[str, set[bytes]] = {}

    def add(self, *names: str) -> None:
        """Count one of each."""
        with self._lock:
            self._counts.update(names)

    def answered(self, intent: Intent, body: bytes) -> None:
        """Note what a copy of a request was answered."""
        with self._lock:
            self._answers.setdefault(intent.key, set()).add(body)

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    @property
    def contradictions(self) -> int:
        """How many payments had copies that were answered differently."""
        return sum(len(bodies) > 1 for bodies in self._answers.values())
