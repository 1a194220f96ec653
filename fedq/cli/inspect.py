"""What ``show`` and ``diff`` tell of plans beyond the printed form: costs, pictures, differences."""

from __future__ import annotations

import difflib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedq.errors import UsageError
from fedq.plan.graph import About, Graph, show

if TYPE_CHECKING:
    from fedq.plan.file import PlanFile


def sizes(texts: Sequence[str]) -> dict[str, int]:
    """``n=32,m=7`` as letters and numbers."""
    pairs = [pair.partition("=") for text in texts for pair in text.split(",")]
    wrong = [f"{name}{equals}{value}" for name, equals, value in pairs if not (equals and value.strip().isdecimal())]
    if wrong:
        raise UsageError(f"{wrong[0]!r} is not a size", hint="write --at n=32,m=7")
    return {name.strip(): int(value) for name, _, value in pairs}


def cost(graph: Graph, at: Mapping[str, int]) -> tuple[dict[str, Any], str]:
    """For programs and for people. Loads torch."""
    from dataclasses import asdict

    from fedq.plan.preflight import cost as dry_run
    from fedq.plan.verify import verify

    made = dry_run(verify(graph).graph, at)
    where = ", ".join(f"{k} = {v}" for k, v in made.sizes.items())
    text = (
        f"cost{f' at {where}' if where else ''}: {made.flops:,} FLOPs, {size(made.peak_bytes)} at most at once, "
        f"{made.elements:,} parameters and constants ({size(made.state_bytes)})"
    )
    return {**asdict(made), "sizes": dict(made.sizes)}, text


def size(count: int) -> str:
    """``4.9 kB``."""
    for unit, one in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
        if count >= one:
            return f"{count / one:.1f} {unit}"
    return f"{count} B"


def draw(graph: Graph, about: About, path: str) -> None:
    """Write a picture: ``.dot`` as text, ``.svg``, ``.png`` and ``.pdf`` by graphviz.

    Raises:
        UsageError: another suffix, or graphviz' ``dot`` is not installed.
    """
    from fedq import fs
    from fedq.plan.drawing import dot

    text, suffix = dot(graph, about).encode(), Path(path).suffix.removeprefix(".")
    place = fs.check_free(path)
    if suffix not in ("dot", "svg", "png", "pdf"):
        raise UsageError(f"{path}: a picture ends in .svg, .png, .pdf or .dot", hint="--graph out.svg")
    if suffix != "dot":
        try:
            done = subprocess.run(["dot", f"-T{suffix}"], input=text, capture_output=True, timeout=300, check=False)
        except FileNotFoundError:
            hint = f"install graphviz, or write the text: --graph {Path(path).with_suffix('.dot')}"
            raise UsageError(f"{path}: graphviz' program 'dot' draws it, and is not installed", hint=hint) from None
        if done.returncode:
            raise UsageError(f"dot failed: {(done.stderr.decode(errors='replace').splitlines() or [''])[0]}")
        text = done.stdout
    fs.replace(place, [text], durable=False)


def difference(a: PlanFile, b: PlanFile, names: tuple[str, str]) -> str:
    """A unified diff of the printed forms, then the state tensors whose values differ; "" for equal plans."""
    first, second = (show(p.graph, p.about).splitlines() for p in (a, b))
    lines = list(difflib.unified_diff(first, second, *names, lineterm="", n=2))
    both = [name for name in a.state if name in b.state]
    lines += [f"state {name}: other values" for name in both if a.state[name] != b.state[name] and _alike(a, b, name)]
    return "\n".join(lines)


def _alike(a: PlanFile, b: PlanFile, name: str) -> bool:
    """Whether a state tensor has one type in both: else the printed forms differ already."""
    return (a.state[name].dtype, a.state[name].shape) == (b.state[name].dtype, b.state[name].shape)
