"""What is imported when: each import that a user does not need costs every start of a worker."""

from __future__ import annotations

import subprocess
import sys

import pytest


def imported_by(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import demijohn", "import demijohn.client"])
def test_client_side_does_not_bring_in_flask(statement: str) -> None:
    assert not imported_by(statement) & {"flask", "werkzeug", "redis", "sqlite3"}


def test_server_side_does_not_bring_in_a_driver_or_a_client_library() -> None:
    loaded = imported_by("import demijohn; demijohn.Demijohn")
    assert not loaded & {"redis", "httpx", "requests", "pytest", "demijohn.testing"}


def test_every_public_name_is_there() -> None:
    assert "demijohn.app" in imported_by("from demijohn import *")
