"""Graphs to canonical JSON and back. Reads strictly: BadFile for whatever it would not write so.

Says nothing of whether a graph is sound or allowed: that is `plan.verify`.
Format: docs/format.md, section 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fedq import ids
from fedq.errors import BadFile
from fedq.plan.ir import About, Action, Graph, Param
from fedq.plan.types import (
    FORMATS,
    ITEMSIZE,
    LETTER,
    MAX_SIZE,
    NUMBERS,
    Arg,
    Dtype,
    Format,
    Subgraph,
    Tree,
    Type,
    Var,
    is_int,
)

MAX_ACTIONS = 10_000
"""Actions of one graph, and of one message."""

MAX_VARIANTS = 8
"""Variants of one graph."""

_OP = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}(\.[A-Za-z0-9_]{1,100}){0,2}")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_VAR = re.compile(r"%(0|[1-9][0-9]{0,6})")
_COMPARE = ("==", "!=", "<", "<=")
_COMPUTE = ("+", "-", "*", "//", "%", "min", "max")
_COMPUTE_REAL = ("+", "-", "*", "/", "//", "%")
_ROUND = ("floor", "ceil", "round", "trunc")
_NON_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical(value: Any) -> bytes:
    """JSON without spaces, ASCII, keys in the order given: equal values give equal bytes."""
    return _JSON.encode(value).encode()


def need(condition: object, message: str) -> None:
    """BadFile unless the condition holds."""
    if not condition:
        raise BadFile(f"malformed file: {message}")


# -- graph -----------------------------------------------------------------------------------


def graph_to_json(graph: Graph) -> dict[str, Any]:
    """The graph as JSON; keys in this order, empty optional ones left out."""
    body = {
        "params": [_param_to_json(p) for p in graph.params],
        "inputs": [str(t) for t in graph.inputs],
        "sizes": dict(sorted(graph.sizes.items())),
        "guards": _lists(graph.guards),
        "dtypes": _lists(graph.dtypes),
        "state": [[name, str(t)] for name, t in graph.state],
        "graphs": [graph_to_json(g) for g in graph.graphs],
        "actions": [_action_to_json(a) for a in graph.actions],
        "outputs": tree_to_json(graph.outputs, _var_to_json),
        "variants": [graph_to_json(replace(g, state=())) for g in graph.variants],
    }
    optional = ("variants", "params", "sizes", "guards", "dtypes", "state", "graphs")
    return {k: v for k, v in body.items() if v or k not in optional}


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def _action_to_json(action: Action) -> list[Any]:
    kwargs = {k: arg_to_json(v) for k, v in sorted(action.kwargs.items())}
    return [action.op, [arg_to_json(x) for x in action.args], kwargs, [str(t) for t in action.types]]


def graph_from_json(body: Any) -> Graph:
    """Read a graph; BadFile names what is malformed. Does not verify it: see `plan.verify`."""
    keys = {"params", "inputs", "sizes", "guards", "dtypes", "state", "graphs", "actions", "outputs", "variants"}
    need(isinstance(body, dict) and {"inputs", "actions", "outputs"} <= body.keys() <= keys, "keys of a graph")
    lists = ("variants", "params", "inputs", "guards", "dtypes", "state", "graphs", "actions")
    need(all(isinstance(body.get(k, []), list) for k in lists), "a graph's key is not a list")
    need(len(body["actions"]) <= MAX_ACTIONS, f"more than {MAX_ACTIONS} actions")
    state = _state_from_json(body.get("state", []))
    graph = Graph(
        inputs=tuple(Type.parse(t) for t in body["inputs"]),
        sizes=_sizes_from_json(body.get("sizes", {})),
        guards=tuple(_guard_from_json(g) for g in body.get("guards", [])),
        dtypes=tuple(strings(row) for row in body.get("dtypes", [])),
        state=state,
        graphs=tuple(graph_from_json(g) for g in body.get("graphs", [])),
        actions=tuple(_action_from_json(a) for a in body["actions"]),
        outputs=tree_from_json(body["outputs"], _var_from_json),
        params=tuple(map(_param_from_json, body.get("params", []))),
        variants=_variants_from_json(body.get("variants", []), state),
    )
    width = len(graph.inputs) + len(graph.output_vars)
    need(all(len(row) == width for row in graph.dtypes), "a row of dtypes is not one per input and output")
    need(all(d in ITEMSIZE or d in NUMBERS for row in graph.dtypes for d in row), "a dtype is unknown")
    return graph


def _sizes_from_json(body: Any) -> dict[str, int]:
    need(isinstance(body, dict) and all(LETTER.fullmatch(k) for k in body), "sizes are not by letter")
    need(all(type(v) is int and 0 <= v < MAX_SIZE for v in body.values()), "a least size is malformed")
    return dict(body)


def _state_from_json(rows: list[Any]) -> tuple[tuple[str, Type], ...]:
    state = tuple((name, Type.parse(type_)) for name, type_ in pairs(rows))
    need(all(ids.is_text(name) for name, _ in state), "a state's name is malformed")
    need(len({name for name, _ in state}) == len(state), "a state's name stands twice")
    return state


def _variants_from_json(rows: list[Any], state: tuple[tuple[str, Type], ...]) -> tuple[Graph, ...]:
    """Graphs that have the state of the one they are variants of, and none of their own."""
    need(len(rows) <= MAX_VARIANTS, f"more than {MAX_VARIANTS} variants")
    own = {"state", "params", "variants"}
    need(all(isinstance(row, dict) and not row.keys() & own for row in rows), "keys of a variant")
    return tuple(replace(graph_from_json(row), state=state) for row in rows)


def _param_to_json(param: Param) -> list[Any]:
    default = [] if param.default is None else [number_to_json(param.default)]
    return [param.name, tree_to_json(param.tree, arg_to_json), *default]


def _param_from_json(row: Any) -> Param:
    match row:
        case [str(name), tree, *default] if ids.is_text(name) and len(default) <= 1:
            return Param(name, tree_from_json(tree, _leaf_from_json), number_from_json(default[0]) if default else None)
    raise BadFile("malformed file: a parameter is not [name, tree]")


def _leaf_from_json(value: Any) -> Arg:
    leaf = arg_from_json(value)
    need(isinstance(leaf, (Var, bool, int, float, str)), "a leaf of a parameter")
    return leaf


def _guard_from_json(value: Any) -> Any:
    match value:
        case [str(op), left, right] if op in _COMPARE:
            return (op, _size_from_json(left), _size_from_json(right))
    raise BadFile("malformed file: a guard is not [comparison, size, size]")


def _size_from_json(value: Any) -> Any:
    match value:
        case int() if is_int(value):
            return value
        case str() if LETTER.fullmatch(value):
            return value
        case [str(op), left, right] if op in _COMPUTE:
            return (op, _size_from_json(left), _size_from_json(right))
        case [str(op), real] if op in _ROUND:
            return (op, _real_from_json(real))
    raise BadFile("malformed file: a size in a guard")


def _real_from_json(value: Any) -> Any:
    match value:
        case float():
            return value
        case [str(op), left, right] if op in _COMPUTE_REAL:
            return (op, _real_from_json(left), _real_from_json(right))
    return _size_from_json(value)


def _action_from_json(row: Any) -> Action:
    match row:
        case [str(op), list(args), dict(kwargs), list(types)]:
            need(_OP.fullmatch(op), f"op {op[:60]!r}")
            need(all(_WORD.fullmatch(k) for k in kwargs), f"a keyword of {op}")
            named = {k: arg_from_json(v) for k, v in kwargs.items()}
            return Action(op, tuple(map(arg_from_json, args)), named, tuple(map(Type.parse, types)))
    raise BadFile("malformed file: an action is not [op, args, kwargs, types]")


def strings(row: Any) -> tuple[str, ...]:
    """A list of strings as a tuple."""
    need(isinstance(row, list) and all(isinstance(x, str) for x in row), "expected a list of strings")
    return tuple(row)


def pairs(rows: Any) -> list[Any]:
    """A list of lists of two."""
    need(isinstance(rows, list), "expected a list of pairs")
    need(all(isinstance(r, list) and len(r) == 2 for r in rows), "expected a list of pairs")
    return rows  # type: ignore[no-any-return]


# -- arguments -------------------------------------------------------------------------------


def arg_to_json(arg: Arg) -> Any:
    """``%3`` a Var; ``{"s"}`` text, ``{"d"}`` dtype, ``{"m"}`` memory format, ``{"f"}`` a
    non-finite float, ``{"c"}`` complex, ``{"g"}`` a subgraph; numbers, true, null as they are."""
    match arg:
        case Var():
            return str(arg)
        case str():
            return {"s": arg}
        case Dtype():
            return {"d": arg.name}
        case Format():
            return {"m": arg.name}
        case Subgraph():
            return {"g": arg.number}
        case complex():
            return {"c": [number_to_json(arg.real), number_to_json(arg.imag)]}
        case list() | tuple():
            return [arg_to_json(a) for a in arg]
        case None:
            return None
        case bool() | int() | float():
            return number_to_json(arg)
    raise TypeError(f"{type(arg).__name__} is no argument of an action")


def arg_from_json(value: Any) -> Arg:
    match value:
        case str():
            return _var_from_json(value)
        case list():
            return [arg_from_json(v) for v in value]
        case None:
            return None
        case {"s": str(text), **rest} if not rest:
            return text
        case {"d": str(name), **rest} if not rest and name in ITEMSIZE:
            return Dtype(name)
        case {"m": str(name), **rest} if not rest and name in FORMATS:
            return Format(name)
        case {"g": int(number), **rest} if not rest and type(number) is int and 0 <= number < 1 << 16:
            return Subgraph(number)
        case {"c": [real, imag], **rest} if not rest:
            parts = number_from_json(real), number_from_json(imag)
            need(all(type(p) is float for p in parts), "a complex number needs two floats")
            return complex(*parts)
    return number_from_json(value)


def number_to_json(value: bool | int | float) -> Any:
    """A number as it is; nan, inf and -inf as ``{"f": "nan"}``."""
    if isinstance(value, float) and (value != value or value in _NON_FINITE.values()):
        return {"f": str(value)}
    return value


def number_from_json(value: Any) -> bool | int | float:
    match value:
        case bool() | float():
            return value
        case int() if is_int(value):
            return value
        case {"f": str(name), **rest} if not rest and name in _NON_FINITE:
            return _NON_FINITE[name]
    raise BadFile("malformed file: an argument or number")


def _var_to_json(leaf: Any) -> str:
    if not isinstance(leaf, Var):
        raise TypeError(f"{type(leaf).__name__} is no output of a graph")
    return str(leaf)


def _var_from_json(text: Any) -> Var:
    match = _VAR.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise BadFile("malformed file: expected a Var such as %3")
    return Var(int(match[1]))


def tree_to_json(tree: Tree, leaf: Callable[[Any], Any]) -> Any:
    """A list as a list, a tuple as ``{"tuple": [...]}``, a dict as ``{"dict": [[key, ...]]}``,
    None as null, anything else by ``leaf``."""
    match tree:
        case list():
            return [tree_to_json(t, leaf) for t in tree]
        case tuple():
            return {"tuple": [tree_to_json(t, leaf) for t in tree]}
        case dict():
            return {"dict": [[k, tree_to_json(t, leaf)] for k, t in tree.items()]}
        case None:
            return None
    return leaf(tree)


def tree_from_json(value: Any, leaf: Callable[[Any], Any]) -> Tree:
    match value:
        case list():
            return [tree_from_json(v, leaf) for v in value]
        case {"tuple": list(items), **rest} if not rest:
            return tuple(tree_from_json(v, leaf) for v in items)
        case {"dict": list(items), **rest} if not rest:
            need(all(isinstance(k, str) or is_int(k) for k, _ in pairs(items)), "a dict's key")
            tree = {k: tree_from_json(v, leaf) for k, v in items}
            need(len(tree) == len(items), "a dict's key stands twice")
            return tree
        case None:
            return None
    return leaf(value)


# -- about -----------------------------------------------------------------------------------


_ABOUT = {"name", "lines", "params", "refused", "updates"}


def about_to_json(about: About) -> dict[str, Any]:
    body = {
        "name": ids.as_text(about.name),
        "lines": [ids.as_text(line) for line in about.lines],
        "params": list(about.params),
        "refused": {ids.as_text(k): ids.as_text(v) for k, v in sorted(about.refused.items())},
        "updates": list(about.updates),
    }
    return {k: v for k, v in body.items() if v}


def about_from_json(body: Any) -> About:
    need(isinstance(body, dict) and body.keys() <= _ABOUT, "keys of about")
    name, refused = body.get("name", ""), body.get("refused", {})
    lines, params, updates = (strings(body.get(key, [])) for key in ("lines", "params", "updates"))
    need(name == "" or ids.is_text(name), "a plan's name")
    need(isinstance(refused, Mapping) and all(map(ids.is_text, refused)), "refused")
    texts = (*lines, *params, *refused.values(), *updates)
    need(all(text == "" or ids.is_text(text) for text in texts), "a text of about")
    return About(name, lines, params, dict(refused), updates)
