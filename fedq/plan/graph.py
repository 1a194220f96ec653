"""Graph and its parts under one name, and the printed form that people read.

`print(plan)`, `fedq show`, the review page and golden files are the same text. The data is
`plan.ir` and `plan.types`, its JSON `plan.graphjson`. Knows no torch.
Format: docs/format.md, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fedq import spelling
from fedq.plan.graphjson import (
    about_from_json,
    about_to_json,
    arg_from_json,
    arg_to_json,
    canonical,
    graph_from_json,
    graph_to_json,
    tree_from_json,
    tree_to_json,
)
from fedq.plan.ir import About, Action, Graph, Param, flatten, unflatten
from fedq.plan.types import (
    ITEMSIZE,
    NUMBERS,
    Arg,
    Dtype,
    Format,
    Size,
    Subgraph,
    Tree,
    Type,
    Var,
    parse_size,
)

__all__ = [
    "ITEMSIZE", "NUMBERS", "About", "Action", "Arg", "Dtype", "Format", "Graph", "Param", "Size", "Subgraph", "Tree",
    "Type", "Var", "about_from_json", "about_to_json", "arg_from_json", "arg_to_json", "canonical", "flatten",
    "graph_from_json", "graph_to_json", "parse_size", "show", "show_arg", "show_guard", "tree_from_json",
    "tree_to_json", "unflatten",
]  # fmt: skip


_NOWHERE = About()
_QUOTED = ' !"#$%&()*+,-./:;<=>?@[]^_`{|}~'
"""What a text that is an argument may have: all signs but the quote that ends it."""
_PATH = "[]'"
"""What a path of an argument has besides names: ``batch['x']``."""


def show(graph: Graph, about: About = _NOWHERE, *, claims: bool = False) -> str:
    """The printed form: one line per input row, state tensor and action, with source lines.

    Names and lines are spelled as `fedq.spelling` has it: they cannot look like a part of the form.

    Args:
        claims: names and lines are the word of somebody else, and are marked as such.
    """
    above = [f"{spelling.name(about.params[i], also=_PATH)} > 0" for i in about.above_zero]
    lines = (f"{'claims ' if claims and line else ''}{spelling.place(line)}" for line in about.lines)
    rows = _rows(graph, spelling.name(about.name or "plan"), lines, above=above)
    width = max((len(text) for text, line in rows if line), default=0)
    return "\n".join(f"{text:<{width}}   {line}".rstrip() if line else text for text, line in rows)


def _rows(
    graph: Graph, name: str, lines: Iterator[str], *, state: bool = True, above: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Each line of text with its source line; the lines are of its actions, its bodies', its variants'."""
    rows = [(f"plan {name}({', '.join(_inputs(graph))}) -> {show_arg(graph.outputs)}", "")]
    rows += [(f"  takes {', '.join(map(_param, graph.params))}", "")] if graph.params else []
    rows += [(f"  where {text}", "") for text in _conditions(graph, above)]
    first = len(graph.inputs)
    rows += [
        (f"  %{first + i}: {t} = state {spelling.name(n, also=_PATH, most=300)}", "")
        for i, (n, t) in enumerate(graph.state if state else ())
    ]
    for action, numbers in graph.numbered():
        outs = ", ".join(f"%{n}: {t}" for n, t in zip(numbers, action.types, strict=True))
        rows.append((f"  {outs} = {action.op}({_call(action)})", next(lines, "")))
    for i, body in enumerate(graph.graphs):
        (head, _), *inner = _rows(body, "body", lines)
        rows += [(f"  @{i}: {head}", ""), *((f"  {text}", line) for text, line in inner)]
    for variant in graph.variants:
        (head, _), *inner = _rows(variant, name, lines, state=False)
        rows += [(f"  or {head}", ""), *((f"  {text}", line) for text, line in inner)]
    return rows


def _inputs(graph: Graph) -> list[str]:
    also = list(zip(*(row[: len(graph.inputs)] for row in graph.dtypes), strict=True))
    texts = []
    for i, t in enumerate(graph.inputs):
        others = dict.fromkeys(d for d in also[i] if d != t.dtype) if also else {}
        dtypes = "|".join([t.dtype, *others])
        shape = str(t).removeprefix(t.dtype)
        texts.append(f"%{i}: {dtypes}{' ' if others else ''}{shape}")
    return texts


def _param(param: Param) -> str:
    default = "" if param.default is None else f" = {param.default}"
    return f"{spelling.name(param.name, also=_PATH)}: {show_arg(param.tree)}{default}"


def _conditions(graph: Graph, above: Sequence[str]) -> list[str]:
    least = [f"{letter} >= {n}" for letter, n in graph.sizes.items() if n]
    texts = [*least, *map(show_guard, graph.guards), *above, *_together(graph)]
    return [", ".join(texts)] if texts else []


def _together(graph: Graph) -> list[str]:
    """Which of the inputs' dtypes go together, if there is a choice."""
    if not graph.dtypes or len(graph.inputs) < 2:
        return []
    rows = list(
        dict.fromkeys((tuple(t.dtype for t in graph.inputs), *(row[: len(graph.inputs)] for row in graph.dtypes)))
    )
    if all(len(set(row)) == 1 for row in rows):
        return ["inputs share one dtype"]
    return [f"dtypes {' or '.join(f'({chr(44).join(row)})' for row in rows)}"]


def show_guard(guard: Any) -> str:
    """``("<=", "n", 4)`` as ``n <= 4``."""
    if not isinstance(guard, tuple):
        return str(guard)
    op, *operands = guard
    if op.isalpha():
        return f"{op}({', '.join(map(show_guard, operands))})"
    left, right = operands
    return f"{_side(left, op in ('*', '/', '//', '%'))} {op} {_side(right, op in ('*', '/', '//', '%', '-'))}"


def _side(size: Any, bracket: bool) -> str:
    bracket = bracket and isinstance(size, tuple) and not size[0].isalpha()
    return f"({show_guard(size)})" if bracket else show_guard(size)


def _call(action: Action) -> str:
    args = [show_arg(a) for a in action.args]
    return ", ".join([*args, *(f"{k}={show_arg(v)}" for k, v in sorted(action.kwargs.items()))])


def show_arg(arg: Any) -> str:
    match arg:
        case list():
            return f"[{', '.join(map(show_arg, arg))}]"
        case tuple():
            return f"({', '.join(map(show_arg, arg))}{',' if len(arg) == 1 else ''})"
        case dict():
            return f"{{{', '.join(f'{_key(k)}: {show_arg(v)}' for k, v in arg.items())}}}"
        case str():
            return f"'{spelling.name(arg, also=_QUOTED, most=300)}'"
    return str(arg)


def _key(key: object) -> str:
    return f"'{spelling.name(key, also=' ')}'" if isinstance(key, str) else repr(key)
