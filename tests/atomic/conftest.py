"""The fixtures of :mod:`tests.atomic.shop`, where SQLAlchemy is installed."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("sqlalchemy") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.atomic.shop import engine, make_shop, needs_async, shop, statements

    __all__ = ["engine", "make_shop", "needs_async", "shop", "statements"]
