"""docs/training.md: its code runs from top to bottom, at a device in this process and at one with a daemon."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.marks import more
from tests.rig import Rig

PAGE = Path(__file__).parents[2] / "docs/training.md"
HERE = 'fq.VirtualWorker(id="device_1", data=data)'


def run(text: str, **scope: object) -> None:
    scope["__name__"] = "page"
    for found in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        above = "\n" * text[: found.start(1)].count("\n")
        exec(compile(above + found[1], str(PAGE), "exec"), scope)


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDQ_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEDQ_USER", "alice")


@more
def test_the_code_of_the_page_runs():
    run(PAGE.read_text("utf-8"))


def test_the_code_of_the_page_runs_at_a_device_with_worker_processes(tmp_path):
    text = PAGE.read_text("utf-8")
    assert text.count(HERE) == 1
    rigs: list[Rig] = []

    def served(data):
        rigs.append(Rig(tmp_path / "rig", data=data))
        rigs[0].start()
        return rigs[0].device

    try:
        run(text.replace(HERE, "served(data)"), served=served)
    finally:
        for rig in rigs:
            rig.__exit__()
