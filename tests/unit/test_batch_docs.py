"""What batches may be told, and be set to, stands on the pages of reference."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from demijohn.batch import refusals, settings

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("slug", [*refusals.BATCHES, *refusals.PARTS])
def test_every_problem_is_on_its_page_with_its_status(slug: str) -> None:
    kind = {**refusals.BATCHES, **refusals.PARTS}[slug]
    text = (REFERENCE / "problems.md").read_text()
    assert f"\n### {slug}\n\n{kind.status}" in text


def test_every_setting_is_on_its_page() -> None:
    text = (REFERENCE / "settings.md").read_text()
    section = text.partition("## `DEMIJOHN_BATCH`")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    names = {field.metadata["name"] for field in dataclasses.fields(settings.Settings)}
    assert named == names
    assert names == set(settings.BatchOptions.__annotations__)


def test_no_problem_of_a_batch_is_called_as_one_of_a_part() -> None:
    assert not refusals.BATCHES.keys() & refusals.PARTS.keys()
