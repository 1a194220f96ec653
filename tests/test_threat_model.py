"""docs/threat-model.md: what it says that nobody can do is shown by tests that are there."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "threat-model.md"
HEAD = "| cannot | shown by |"
ADVERSARIES = [
    "A stranger", "The carrier", "A requester", "A worker that was taken over", "A device",
    "Another user of the machine", "A reviewer in a hurry",
]  # fmt: skip
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
"""A test, or a file of them, as the page names it."""


@dataclass(frozen=True)
class Line:
    """What an adversary cannot do, and the cell beside it."""

    adversary: str
    cannot: str
    shown_by: str


def sections() -> dict[str, str]:
    """The text below each heading of the page."""
    _, *parts = re.split(r"^## (.+)\n", PAGE.read_text("utf-8"), flags=re.M)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def lines() -> list[Line]:
    found = []
    for adversary, text in sections().items():
        _, *tables = text.split(f"{HEAD}\n|---|---|\n")
        for row in (row for table in tables for row in table.partition("\n\n")[0].splitlines()):
            _, cannot, shown_by, _ = row.split("|")
            found.append(Line(adversary, cannot.strip(), shown_by.strip()))
    return found


@cache
def shown_in(file: str) -> frozenset[str]:
    """Names of the tests of a file, which is not imported; classes of a state machine among them."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    functions = {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}
    machines = {ast.unparse(t) for n in tree.body if isinstance(n, ast.Assign) for t in n.targets}
    return frozenset(functions | {name for name in machines if name.startswith("Test")})


@pytest.mark.parametrize("line", lines(), ids=lambda line: line.cannot[:50])
def test_what_nobody_can_do_is_shown_by_tests_that_are_there(line):
    named = NAMED.findall(line.shown_by)
    assert named and not NAMED.sub("", line.shown_by).strip(" ,"), f"{line.cannot}: {line.shown_by}"
    for file, test in named:
        assert (ROOT / file).is_file(), file
        assert test in shown_in(file) if test else shown_in(file), f"{file}::{test}"


def test_each_adversary_can_do_something_and_cannot_do_something():
    found = sections()
    assert [name for name in found if name in ADVERSARIES] == ADVERSARIES
    for name in ADVERSARIES:
        assert "**Can:**" in found[name] and HEAD in found[name], name
    assert {line.adversary for line in lines()} == set(ADVERSARIES)


def test_whatever_the_page_names_is_there_and_every_attack_is_named():
    text = PAGE.read_text("utf-8")
    for file, test in NAMED.findall(text):
        assert (ROOT / file).is_file() and (not test or test in shown_in(file)), f"{file}::{test}"
    attacks = {f"tests/attacks/{path.name}" for path in (ROOT / "tests" / "attacks").glob("test_*.py")}
    missing = attacks - {file for file, _ in NAMED.findall(text)}
    assert not missing
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (PAGE.parent / link).exists(), link


def test_the_page_is_short_and_others_lead_to_it():
    assert len(PAGE.read_text("utf-8").splitlines()) <= 220
    assert "docs/threat-model.md" in (ROOT / "README.md").read_text("utf-8")
    assert "threat-model.md" in (ROOT / "docs" / "architecture.md").read_text("utf-8")
