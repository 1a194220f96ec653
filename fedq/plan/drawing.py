"""A graph as a picture: DOT text, for graphviz. Knows no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator

from fedq.plan.graph import About, Graph, Subgraph, Var, show_arg
from fedq.plan.ir import Action


def dot(graph: Graph, about: About) -> str:
    """One box per action, with its op, types and source line; inputs above, outputs below, state beside."""
    head = f"digraph {json.dumps(about.name or 'plan')} {{"
    style = ['  node [shape=box, fontname="monospace", fontsize=10];', '  edge [fontname="monospace", fontsize=9];']
    return "\n".join([head, *style, *_one(graph, about, "g", iter(about.lines)), "}", ""])


def _one(graph: Graph, about: About, prefix: str, lines: Iterator[str]) -> Iterator[str]:
    made = {n: f"{prefix}v{n}" for n in range(len(graph.inputs) + len(graph.state))}
    for i, type_ in enumerate(graph.inputs):
        name = about.params[i] if len(about.params) == len(graph.inputs) else f"%{i}"
        yield f"  {made[i]} [label={json.dumps(f'{name}: {type_}')}, shape=ellipse];"
    for i, (name, type_) in enumerate(graph.state, len(graph.inputs)):
        yield f"  {made[i]} [label={json.dumps(f'{name}: {type_}')}, shape=cylinder];"
    for i, (action, numbers) in enumerate(graph.numbered()):
        node = f"{prefix}a{i}"
        made |= dict.fromkeys(numbers, node)
        text = "\n".join(
            filter(None, [action.op, ", ".join(map(str, action.types)), _literals(action), next(lines, "")])
        )
        yield f"  {node} [label={json.dumps(text)}];"
        for number in dict.fromkeys(v.number for v in action.vars()):
            yield f"  {made[number]} -> {node};"
    for i, var in enumerate(graph.output_vars):
        yield f'  {prefix}o{i} [label="output {i}", shape=ellipse];'
        yield f"  {made[var.number]} -> {prefix}o{i};"
    inner = [*((f"@{i}", g) for i, g in enumerate(graph.graphs)), *(("or", g) for g in graph.variants)]
    for i, (label, other) in enumerate(inner):
        yield f"  subgraph cluster_{prefix}{i} {{"
        yield f"  label={json.dumps(label)};"
        yield from _one(other, About(), f"{prefix}{i}_", lines)
        yield "  }"


def _literals(action: Action) -> str:
    """Arguments that are no Vars, shortly."""
    shown = [show_arg(a) for a in action.args if not isinstance(a, Var) and not list(Action("", (a,), {}, ()).vars())]
    shown += [f"{k}={show_arg(v)}" for k, v in sorted(action.kwargs.items()) if not isinstance(v, (Var, Subgraph))]
    text = ", ".join(shown)
    return text if len(text) <= 60 else f"{text[:57]}..."
