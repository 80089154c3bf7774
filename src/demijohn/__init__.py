"""Flask, in a protective case: JSON APIs that are safe to retry, limited and batched.

The public names are loaded when they are first used, so that the clients in
:mod:`demijohn.client` do not bring in Flask.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .app import Demijohn as Demijohn
    from .batch import Batch as Batch
    from .batch import add_batch_route as add_batch_route
    from .idempotency import Idempotency as Idempotency
    from .limits import Limits as Limits
    from .principal import Principal as Principal
    from .problem import Problem as Problem

__version__ = "0.1.0"

_HOMES = {
    "Batch": "batch",
    "Demijohn": "app",
    "Idempotency": "idempotency",
    "Limits": "limits",
    "Principal": "principal",
    "Problem": "problem",
    "add_batch_route": "batch",
}

__all__ = [
    "Batch",
    "Demijohn",
    "Idempotency",
    "Limits",
    "Principal",
    "Problem",
    "__version__",
    "add_batch_route",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
