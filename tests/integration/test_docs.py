"""Every Python snippet of the README, the tutorial and the how-to pages runs.

The ``python`` blocks of a page run in their order, as one program in one namespace, in an empty
folder, in a process of its own. A block that cannot run is preceded by ``<!-- not run: why -->``.
A block that belongs to a program of its own is preceded by ``<!-- new program -->``. Blocks of any
other language are not run; a page shows what to expect by ``assert``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [
    path
    for path in [
        ROOT / "README.md",
        *sorted(ROOT.glob("docs/tutorial/*.md")),
        *sorted(ROOT.glob("docs/howto/*.md")),
    ]
    if path.exists()
]
BLOCK: Final = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*?) -->\n\n?)?"
    r"(?P<indent> *)(?P<fence>`{3,})(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
NOT_RUN: Final = "not run: "
NEW_PROGRAM: Final = "new program"


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page, with the number of the line on which its code begins."""

    language: str
    note: str
    line: int
    code: str


def blocks(text: str) -> Iterator[Block]:
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        indent = len(found["indent"])
        code = "".join(row[indent:] or "\n" for row in found["code"].splitlines(keepends=True))
        yield Block(found["language"].strip(), found["note"] or "", line, code)


def programs(text: str) -> list[str]:
    """Return the programs of a page, each padded so that a traceback names the page's own lines."""
    made: list[list[str]] = []
    for block in blocks(text):
        if block.language not in {"python", "{code-block} python"}:
            continue
        if block.note.startswith(NOT_RUN):
            continue
        if not made or block.note == NEW_PROGRAM:
            made.append([])
        lines = made[-1]
        lines.extend([""] * (block.line - 1 - len(lines)))
        lines.extend(block.code.splitlines())
    return ["\n".join(lines) + "\n" for lines in made]


def needs_an_extra(errors: str) -> bool:
    """Whether a program ended for want of a library that an extra brings."""
    last = errors.strip().rpartition("\n")[2]
    return "demijohn[" in last or last.startswith("ModuleNotFoundError")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_of_a_page_run(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for number, program in enumerate(programs(page.read_text()), start=1):
        folder = tmp_path / str(number)
        folder.mkdir()
        script = folder / page.with_suffix(".py").name
        script.write_text(program)
        done = subprocess.run(
            [sys.executable, "-W", "error", script],
            cwd=folder,
            env={**os.environ, "FLASK_APP": script.name},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if request.config.getoption("--bare") and needs_an_extra(done.stderr):
            pytest.skip("needs an extra")
        assert done.returncode == 0, f"{page.name}, line numbers are the page's:\n{done.stderr}"


def test_every_reason_for_not_running_is_given() -> None:
    for page in PAGES:
        for block in blocks(page.read_text()):
            known = block.note in {"", NEW_PROGRAM} or block.note.startswith(NOT_RUN)
            assert known or block.language != "python", f"{page.name}:{block.line}: {block.note}"


PAGE = """\
# A page

```python
a = 1
```

<!-- not run: it never ends -->
```python
while True: pass
```

- item

  ```python
  if a:
      b = a
  ```

```console
$ false
```

<!-- new program -->

```python
c = 1
```
"""


def test_programs_of_a_page_keep_their_line_numbers() -> None:
    first, second = programs(PAGE)
    assert first.splitlines()[3] == "a = 1"
    assert first.splitlines()[14:16] == ["if a:", "    b = a"]
    assert "while" not in first
    assert second.split() == ["c", "=", "1"]
