"""The store in an SQLite file: the default, for the processes of one machine."""

from __future__ import annotations

from .file import Synchronous
from .store import SqliteStore, from_url

__all__ = ["SqliteStore", "Synchronous", "from_url"]
