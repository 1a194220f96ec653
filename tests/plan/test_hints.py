"""Every function of torch that a message names is one that torch has."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import fedq
from fedq.client.lazy import _instead
from fedq.plan import capture  # noqa: F401  brings torch._higher_order_ops

ROOT = Path(fedq.__file__).parent
NAMED = re.compile(r"\btorch((?:\.[A-Za-z_]\w*)+)")


def texts(file):
    """Texts of a module that are no documentation, and parts of those with values in them."""
    tree = ast.parse(file.read_text("utf-8"))
    docs = {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body
            and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    return [
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs
    ]


def names():
    sources = {
        str(file.relative_to(ROOT)): texts(file)
        for room in ("plan", "client")
        for file in sorted((ROOT / room).glob("*.py"))
        if file.name not in ("ops.py", "kernels.py")
    }
    sources["refusals.md"] = re.findall(r"(?m)^> hint: (.*)$", (ROOT.parent / "docs/refusals.md").read_text("utf-8"))
    return sorted({(name, dotted) for name, some in sources.items() for text in some for dotted in NAMED.findall(text)})


def resolve(dotted):
    found = torch
    for name in dotted.strip(".").split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            found = importlib.import_module(f"{found.__name__}.{name}")
    return found


def test_there_are_names_to_look_at():
    assert len(names()) > 20


@pytest.mark.parametrize(("where", "dotted"), names())
def test_a_message_names_only_what_torch_has(where, dotted):
    assert resolve(dotted) is not None


WRITING = sorted(
    {n for t in (torch, torch.Tensor, F) for n in dir(t) if n.endswith("_") and not n.startswith("_")}
    | {n for n in dir(torch.Tensor) if re.fullmatch(r"__i\w+__", n) and hasattr(torch.Tensor, f"__{n[3:]}")}
)


@pytest.mark.parametrize("name", WRITING)
def test_the_cure_of_a_write_to_a_pointer_exists(name):
    hint = _instead(name)
    assert all(callable(resolve(dotted)) for dotted in NAMED.findall(hint) if dotted != ".pi")
    assert all(callable(getattr(torch.Tensor, n)) for n in re.findall(r"\bp\.(\w+)", hint))
