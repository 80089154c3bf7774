"""Where rows live. A store is named by a URL; the driver is loaded by its scheme."""

from __future__ import annotations

from .opening import open_store
from .protocol import Clock, Health, Store, scattered

__all__ = ["Clock", "Health", "Store", "open_store", "scattered"]
