"""Clients that retry safely. They need no Flask.

``RetryAdapter`` and :func:`retrying` are for requests, ``RetryTransport`` and
``AsyncRetryTransport`` for httpx; each is loaded when it is first used, so that either library is
enough.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .policy import Answer, Retry, RetryPolicy

if TYPE_CHECKING:
    from .httpx_transport import AsyncRetryTransport as AsyncRetryTransport
    from .httpx_transport import RetryTransport as RetryTransport
    from .requests_adapter import RetryAdapter as RetryAdapter
    from .requests_adapter import retrying as retrying

_HOMES = {
    "AsyncRetryTransport": ("httpx_transport", "httpx"),
    "RetryAdapter": ("requests_adapter", "requests"),
    "RetryTransport": ("httpx_transport", "httpx"),
    "retrying": ("requests_adapter", "requests"),
}

__all__ = [
    "Answer",
    "AsyncRetryTransport",
    "Retry",
    "RetryAdapter",
    "RetryPolicy",
    "RetryTransport",
    "retrying",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, library = _HOMES[name]
    try:
        value: object = getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise ImportError(
            f"demijohn.client.{name} needs {library}: pip install 'demijohn[client]'"
        ) from error
    globals()[name] = value
    return value
