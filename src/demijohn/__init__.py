"""Flask, in a protective case: JSON APIs that are safe to retry."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
