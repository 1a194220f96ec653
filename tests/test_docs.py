"""The code in the documentation runs, and shows what it says.

Python blocks of a page share one namespace. A block after a line `` `name`: `` is a file. Console
blocks are typed into bash in a folder of their own; their output must be the one shown, up to
ids, times and that folder's path. A text block after a Python block is what it prints, and a
comment behind a ``print(...)`` is a line of it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.marks import rows

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "docs/tutorial.md", "docs/tutorial.ja.md", "docs/pysyft.md"]
FILES = {"README.md": {"readings.csv": "1\n-2\n3.5\n"}}
"""Files that a page uses and does not show."""
THERE = "/home/alice/fedq"
HEX = re.compile(r"\b[0-9a-f]{8,64}\b")
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


@dataclass(frozen=True)
class Block:
    kind: str
    code: str
    line: int
    file: str | None


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, each with the line its code begins at and the file it is, if it is one."""
    found, inside, kind, start, file = [], None, "", 0, None
    last = ""
    for number, line in enumerate((ROOT / page).read_text("utf-8").splitlines(), 1):
        if inside is None and line.startswith("```"):
            named = re.fullmatch(r"`([\w.]+)`:", last)
            inside, kind, start, file = [], line[3:].strip(), number + 1, named[1] if named else None
        elif inside is not None and line.startswith("```"):
            found.append(Block(kind, "\n".join(inside) + "\n", start, file))
            inside, last = None, ""
        elif inside is not None:
            inside.append(line)
        elif line.strip():
            last = line.strip()
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, as alice, with the commands of this environment."""
    place = tmp_path / "fedq"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("FEDQ_USER", "alice")
    monkeypatch.setenv("FEDQ_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    yield place
    if (place / "devices").exists():
        subprocess.run(["fedq", "device", "down"], cwd=place, capture_output=True, timeout=60)


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs_and_prints_what_it_says(page, place):
    found, names = blocks(page), {"__name__": "docs"}
    for n, block in enumerate(found):
        if block.kind == "python" and block.file is None:
            code = compile("\n" * (block.line - 1) + block.code, str(ROOT / page), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, names)
            printed = out.getvalue()
            for said in re.findall(r"^ *print\(.*\)  # (.+)$", block.code, re.M):
                assert said in printed.splitlines(), f"{page}:{block.line}: {said!r} is not in {printed!r}"
            after = found[n + 1] if n + 1 < len(found) else None
            if after is not None and after.kind == "text" and after.file is None:
                assert printed.endswith(after.code), f"{page}:{after.line}: {printed}"
    assert not hasattr(torch.Tensor, "tag"), f"{page} leaves torch.Tensor patched"


CONSOLES = [p for p in PAGES if any(b.kind == "console" for b in blocks(p))]


@pytest.mark.parametrize("page", rows(CONSOLES, [p for p in CONSOLES if not p.endswith(".ja.md")]))
def test_the_console_of_a_page_shows_what_happens(page, place):
    for name, text in FILES.get(page, {}).items():
        (place / name).write_text(text)
    known: dict[str, str] = {}
    for block in blocks(page):
        if block.file is not None:
            (place / block.file).write_text(block.code)
        if block.kind == "console":
            for command, shown in commands(block.code):
                came = type_in(HEX.sub(lambda m: known.get(m[0], m[0]), command), place)
                came = "".join(line for line in came.splitlines(True) if not line.startswith("waiting for "))
                learn(known, shown, came)
                assert plain(came, place) == plain(shown, place), f"{page}:{block.line}: $ {command}"


def commands(code: str) -> list[tuple[str, str]]:
    """Each command of a console block with the output shown below it."""
    parts = re.split(r"^\$ ", code, flags=re.M)[1:]
    return [(command, shown) for command, _, shown in (part.partition("\n") for part in parts)]


def type_in(command: str, place: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}"
    return done.stdout


def learn(known: dict[str, str], shown: str, came: str) -> None:
    """Which id of ours stands for which that is shown."""
    for ours, theirs in zip(came.splitlines(), shown.splitlines(), strict=False):
        known.update(zip(HEX.findall(theirs), HEX.findall(ours), strict=False))


def plain(text: str, place: Path) -> str:
    """Output without what is different each time."""
    text = TIME.sub("TIME", HEX.sub("ID", text.replace(str(place), THERE)))
    return textwrap.dedent(re.sub(r"\w+-ID", "NAME", text))


def test_both_tutorials_have_the_same_code():
    def code(page):
        return [(b.kind, re.sub(r"[\w.]+\.md:\d+", "", b.code)) for b in blocks(page)]

    assert code("docs/tutorial.md") == code("docs/tutorial.ja.md")


def test_the_pages_link_to_what_is_there():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text("utf-8")):
            assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"
