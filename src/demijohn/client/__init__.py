"""Clients that retry safely, and that send many requests as one. They need no Flask.

``RetryAdapter``, :func:`retrying`, ``Batching`` and ``BatchAdapter`` are for requests,
``RetryTransport``, ``HttpxBatching``, ``BatchTransport`` and their asynchronous forms for httpx;
each is loaded when it is first used, so that either library is enough.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .batching import BatchDependencyError, BatchError, BatchPending, BatchProtocolError
from .policy import Answer, Retry, RetryPolicy

if TYPE_CHECKING:
    from .batching.adapter import BatchAdapter as BatchAdapter
    from .batching.adapter import singly as singly
    from .batching.async_transport import AsyncBatchTransport as AsyncBatchTransport
    from .batching.clients import AsyncHttpxBatching as AsyncHttpxBatching
    from .batching.clients import HttpxBatching as HttpxBatching
    from .batching.sessions import Batching as Batching
    from .batching.transports import BatchTransport as BatchTransport
    from .httpx_transport import AsyncRetryTransport as AsyncRetryTransport
    from .httpx_transport import RetryTransport as RetryTransport
    from .requests_adapter import RetryAdapter as RetryAdapter
    from .requests_adapter import retrying as retrying

_HOMES = {
    "AsyncBatchTransport": ("batching.async_transport", "httpx"),
    "AsyncHttpxBatching": ("batching.clients", "httpx"),
    "AsyncRetryTransport": ("httpx_transport", "httpx"),
    "BatchAdapter": ("batching.adapter", "requests"),
    "BatchTransport": ("batching.transports", "httpx"),
    "Batching": ("batching.sessions", "requests"),
    "HttpxBatching": ("batching.clients", "httpx"),
    "RetryAdapter": ("requests_adapter", "requests"),
    "RetryTransport": ("httpx_transport", "httpx"),
    "retrying": ("requests_adapter", "requests"),
    "singly": ("batching.adapter", "requests"),
}

__all__ = [
    "Answer",
    "AsyncBatchTransport",
    "AsyncHttpxBatching",
    "AsyncRetryTransport",
    "BatchAdapter",
    "BatchDependencyError",
    "BatchError",
    "BatchPending",
    "BatchProtocolError",
    "BatchTransport",
    "Batching",
    "HttpxBatching",
    "Retry",
    "RetryAdapter",
    "RetryPolicy",
    "RetryTransport",
    "retrying",
    "singly",
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
