"""The store on Redis or Valkey: single, in a cluster, or behind sentinels."""

from __future__ import annotations

from demijohn.stores.breaker import CircuitBreaker, Guarded
from demijohn.stores.redis.address import Address, parse_url
from demijohn.stores.redis.store import RedisStore

__all__ = ["Address", "RedisStore", "from_url", "parse_url"]


def from_url(url: str) -> Guarded:
    """Make the store that ``url`` names, behind its circuit breaker. Nothing is sent yet.

    Raises:
        ConfigError: a part of the URL or an option makes no sense.
    """
    address = parse_url(url)
    breaker = CircuitBreaker(address.options.breaker)
    return Guarded(RedisStore(address), breaker, name=address.name)
