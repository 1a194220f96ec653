"""docs/refusals.md as it is read: each function is refused with these words, its rewrite is built."""

from __future__ import annotations

import linecache
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fedq.errors import CannotRecord, SpecMismatch
from fedq.plan import replay
from fedq.plan.graph import Type, flatten
from fedq.plan.spec import match
from fedq.plan.tensors import DTYPES, type_of
from fedq.plan.trace import trace
from fedq.plan.verify import verify

PAGE = (Path(__file__).parents[2] / "docs/refusals.md").read_text("utf-8")
BLOCK = re.compile(r"```python (\w+) ?([^\n]*)\n(.*?)```", re.DOTALL)
SETUP = next(text for kind, _, text in BLOCK.findall(PAGE) if kind == "setup")
INPUTS = [torch.arange(n, dtype=torch.float32) - 2 for n in (15, 30, 4)]


@dataclass
class Entry:
    when: str
    example: str
    text: str
    says: str
    hint: str
    instead: str


def entries():
    for part in PAGE.split("\n## ")[1:]:
        (when, example, text), (_, _, instead) = BLOCK.findall(part)
        quoted = re.findall(r"(?m)^> (.*)$", part)
        hint = next((q.removeprefix("hint: ") for q in quoted if q.startswith("hint: ")), "")
        yield pytest.param(Entry(when, example, text, quoted[0], hint, instead), id=part.partition("\n")[0])


def defined(text):
    """The function, and the marked line as a refusal names it."""
    file = "/docs/refusals.py"
    whole = f"{SETUP}\n{text}"
    linecache.cache[file] = (len(whole), None, whole.splitlines(keepends=True), file)
    scope = {}
    exec(compile(whole, file, "exec"), scope)
    marked = next((n for n, line in enumerate(whole.splitlines(), 1) if line.endswith("# here")), None)
    return scope["f"], f"refusals.py:{marked}" if marked else "", marked and whole.splitlines()[marked - 1].strip()


def built(function, dtype="f32"):
    return trace(lambda held, *args: function(*args), [Type(dtype, (-1,))], name="f", params=("x",))


def refusal(entry):
    function, line, source = defined(entry.text)
    if entry.when == "refused":
        with pytest.raises(CannotRecord) as caught:
            built(function)
        return caught.value, line, source
    graph, about, _ = built(function)
    given = Type("f32", (2,)) if entry.example == "(2,)" else Type(entry.example, (4,))
    with pytest.raises(SpecMismatch) as caught:
        match(graph, [given], about=about)
    return caught.value, line, None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", list(entries()))
def test_it_is_refused_in_these_words_at_this_line(entry):
    error, line, source = refusal(entry)
    assert entry.says in str(error)
    assert entry.hint in (error.hint or "")
    assert line in str(error)
    assert source is None or source in str(error) or "draws from" in entry.says or "seeds" in entry.says


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", list(entries()))
def test_what_to_write_instead_is_built_and_gives_what_torch_gives(entry):
    function, _, _ = defined(entry.instead)
    graph, about, constants = built(function)
    compiled = replay.compile(verify(graph))
    ran = 0
    for x in (*INPUTS, *(-x for x in INPUTS), torch.ones(5, dtype=DTYPES["f64"])):
        try:
            match(graph, [type_of(x)], about=about)
        except SpecMismatch:
            continue
        ran += 1
        flat = replay.run(compiled, [x], constants, seed=3)
        torch.manual_seed(3)
        with torch.compiler.set_stance("force_eager"):
            expected = flatten(function(x))
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(flat, expected, strict=True))
    assert ran >= 6
