"""docs/training.md: its code runs from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/training.md"


def test_the_code_of_the_page_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDQ_HOME", str(tmp_path))
    text = PAGE.read_text("utf-8")
    scope: dict[str, object] = {"__name__": "page"}
    for found in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        above = "\n" * text[: found.start(1)].count("\n")
        exec(compile(above + found[1], str(PAGE), "exec"), scope)
