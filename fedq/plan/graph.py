"""Graph, Action, Var, Type: frozen data, its canonical JSON, and its printed form.

A graph is a list of actions in single assignment. Vars are numbered: inputs first, then state,
then every output of every action, in order; so an action's outputs need no names in the file.
Knows no torch. Format: docs/format.md, section 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fedq import ids
from fedq.errors import BadFile

ITEMSIZE = {
    "f64": 8, "f32": 4, "f16": 2, "bf16": 2, "f8_e4m3": 1, "f8_e5m2": 1, "c64": 8,
    "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u64": 8, "u32": 4, "u16": 2, "u8": 1, "bool": 1,
}  # fmt: skip
"""Our dtype names and their bytes per element."""
NUMBERS = ("int", "float", "bool", "str")
"""Types of Python values, which have no shape."""

_TYPE = re.compile(r"([a-z0-9_]+)(?:\[([A-Za-z0-9_+*/()%, -]*)\]|=(.*))?", re.DOTALL)
_LETTER = re.compile(r"[a-z][a-z0-9]*")


@dataclass(frozen=True, slots=True)
class Var:
    """The ``number``-th value of a graph, written ``%number``."""

    number: int

    def __str__(self) -> str:
        return f"%{self.number}"


@dataclass(frozen=True, slots=True)
class Dtype:
    """A dtype as an argument of an op: ``f32``."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Format:
    """A memory format as an argument of an op: ``contiguous``, ``preserve``, ``channels_last``."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Subgraph:
    """The ``number``-th graph in ``Graph.graphs`` as an argument: a branch or loop body."""

    number: int

    def __str__(self) -> str:
        return f"@{self.number}"


Arg = Any
"""Var | Dtype | Format | Subgraph | int | float | complex | bool | str | None | list[Arg]"""
Tree = Any
"""A structure of outputs: Var | number | None | list | tuple | dict of the same."""


@dataclass(frozen=True, slots=True)
class Type:
    """What a value is: dtype and shape of a tensor, or the kind of a Python number.

    A dimension is a number, or text: a letter where free (``n``), an expression of letters in
    results (``2*n+1``). ``shape`` is None for Python values; ``value`` then may fix it: ``int=3``.
    """

    dtype: str
    shape: tuple[int | str, ...] | None = None
    value: int | float | bool | str | None = None

    def __str__(self) -> str:
        if self.shape is not None:
            return f"{self.dtype}[{','.join(map(str, self.shape))}]"
        return self.dtype if self.value is None else f"{self.dtype}={json.dumps(self.value)}"

    @property
    def is_tensor(self) -> bool:
        return self.shape is not None

    @classmethod
    def parse(cls, text: object) -> Type:
        """Read ``f32[n,3]``, ``i64[]``, ``int``, ``int=3``; BadFile for anything else."""
        match = _TYPE.fullmatch(text) if isinstance(text, str) and len(text) <= 1000 else None
        if match is None:
            raise BadFile(f"{str(text)[:60]!r} is not a type")
        dtype, dims, value = match.groups()
        if dims is not None and dtype in ITEMSIZE:
            return cls(dtype, tuple(_dim(d) for d in dims.split(",")) if dims else ())
        if dims is None and dtype in NUMBERS:
            return cls(dtype, None, None if value is None else _fixed(dtype, value))
        raise BadFile(f"{text!r} is not a type")


def _dim(text: str) -> int | str:
    text = text.strip()
    if not text or len(text) > 200:
        raise BadFile(f"{text[:60]!r} is not a size")
    if not text.isdecimal():
        return text
    if len(text) > 18:
        raise BadFile(f"size {text} is too large")
    return int(text)


def _fixed(dtype: str, text: str) -> int | float | bool | str:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if type(value).__name__ != dtype:
        raise BadFile(f"{text[:60]!r} is not a {dtype}")
    return value  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Action:
    """One op applied to Vars and literals, giving as many Vars as there are types.

    ``op`` is ``aten.add.Tensor``, ``aten.abs`` (the default overload has no third part), or
    ``sym.mul``: arithmetic on sizes, giving Python ints. ``types`` are what the recorder saw,
    for people and pointers; nothing is decided by them.
    """

    op: str
    args: tuple[Arg, ...]
    kwargs: Mapping[str, Arg]
    types: tuple[Type, ...]

    def vars(self) -> Iterator[Var]:
        return _vars((self.args, tuple(self.kwargs.values())))


def _vars(arg: Any) -> Iterator[Var]:
    if isinstance(arg, Var):
        yield arg
    elif isinstance(arg, Mapping):
        for a in arg.values():
            yield from _vars(a)
    elif isinstance(arg, (list, tuple)):
        for a in arg:
            yield from _vars(a)


@dataclass(frozen=True)
class Graph:
    """A recorded function: inputs and state -> outputs.

    Attributes:
        inputs: one type per input; equal letters are equal sizes.
        sizes: letter -> the least size a capture proved (2, or 1, or 0).
        guards: conditions on letters, each ``(op, left, right)`` with op one of ``== != < <=``
            and sides an int, a letter or ``(op, left, right)`` with op one of ``+ - * // %``.
        dtypes: other admitted dtypes, one row each: dtypes of the inputs, then of the outputs.
        state: name and type of each state tensor (parameters, buffers, constants).
        actions: in order of evaluation.
        outputs: a tree of Vars: one Var, or a list, tuple or dict of trees.
        graphs: bodies of control flow, each with inputs and outputs of its own.
    """

    inputs: tuple[Type, ...]
    actions: tuple[Action, ...]
    outputs: Tree
    sizes: Mapping[str, int] = field(default_factory=dict)
    guards: tuple[Any, ...] = ()
    dtypes: tuple[tuple[str, ...], ...] = ()
    state: tuple[tuple[str, Type], ...] = ()
    graphs: tuple[Graph, ...] = ()

    @cached_property
    def id(self) -> str:
        """SHA-256 of the canonical JSON, 64 hex digits."""
        return ids.digest(b"graph", canonical(graph_to_json(self)))

    @cached_property
    def types(self) -> tuple[Type, ...]:
        """The type of every Var, by its number."""
        made = (t for a in self.actions for t in a.types)
        return (*self.inputs, *(t for _, t in self.state), *made)

    @cached_property
    def output_vars(self) -> tuple[Var, ...]:
        """The Vars of the outputs, flat, in order; repeats stay."""
        return tuple(_vars(self.outputs))

    def numbered(self) -> Iterator[tuple[Action, range]]:
        """Each action with the numbers of the Vars it makes."""
        start = len(self.inputs) + len(self.state)
        for action in self.actions:
            yield action, range(start, start + len(action.types))
            start += len(action.types)


@dataclass(frozen=True, slots=True)
class About:
    """Where a plan came from; outside its id.

    Attributes:
        name: of the function or class.
        lines: per action, ``tour.py:9`` or ``""``.
        params: names of the inputs, for messages: ``x``.
        refused: what the Spec does not admit and the line that is why: ``n=1`` -> ``tour.py:9``.
    """

    name: str = ""
    lines: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def line(self, action: int) -> str:
        return self.lines[action] if action < len(self.lines) else ""


# -- JSON ------------------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    """JSON without spaces, ASCII, keys in the order given: equal values give equal bytes."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def graph_to_json(graph: Graph) -> dict[str, Any]:
    """The graph as JSON; keys in this order, empty optional ones left out."""
    body = {
        "inputs": [str(t) for t in graph.inputs],
        "sizes": dict(sorted(graph.sizes.items())),
        "guards": _lists(graph.guards),
        "dtypes": _lists(graph.dtypes),
        "state": [[name, str(t)] for name, t in graph.state],
        "graphs": [graph_to_json(g) for g in graph.graphs],
        "actions": [
            [a.op, [arg_to_json(x) for x in a.args],
             {k: arg_to_json(v) for k, v in sorted(a.kwargs.items())}, [str(t) for t in a.types]]
            for a in graph.actions
        ],
        "outputs": tree_to_json(graph.outputs, str),
    }  # fmt: skip
    optional = ("sizes", "guards", "dtypes", "state", "graphs")
    return {k: v for k, v in body.items() if v or k not in optional}


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def graph_from_json(body: Any) -> Graph:
    """Read a graph; BadFile names what is malformed. Does not verify it: see `plan.verify`."""
    keys = {"inputs", "sizes", "guards", "dtypes", "state", "graphs", "actions", "outputs"}
    _need(isinstance(body, dict) and body.keys() <= keys, "a graph has an unknown key")
    _need({"inputs", "actions", "outputs"} <= body.keys(), "a graph lacks a key")
    lists = ("inputs", "guards", "dtypes", "state", "graphs", "actions")
    _need(all(isinstance(body.get(k, []), list) for k in lists), "a graph's key is not a list")
    sizes = body.get("sizes", {})
    _need(
        isinstance(sizes, dict)
        and all(_LETTER.fullmatch(k) and type(v) is int and 0 <= v < 1 << 62 for k, v in sizes.items()),
        "sizes are not letters with their least sizes",
    )
    return Graph(
        inputs=tuple(Type.parse(t) for t in body["inputs"]),
        sizes=sizes,
        guards=tuple(_guard_from_json(g) for g in body.get("guards", [])),
        dtypes=tuple(_strings(row) for row in body.get("dtypes", [])),
        state=tuple((n, Type.parse(t)) for n, t in map(_strings, _pairs(body.get("state", [])))),
        graphs=tuple(graph_from_json(g) for g in body.get("graphs", [])),
        actions=tuple(_action_from_json(a) for a in body["actions"]),
        outputs=tree_from_json(body["outputs"], _var),
    )


def _need(condition: object, message: str) -> None:
    if not condition:
        raise BadFile(message)


def _strings(row: Any) -> tuple[str, ...]:
    _need(isinstance(row, list) and all(isinstance(x, str) for x in row), "expected a list of strings")
    return tuple(row)


def _pairs(rows: list[Any]) -> list[Any]:
    _need(all(isinstance(r, list) and len(r) == 2 for r in rows), "expected a list of pairs")
    return rows


def _guard_from_json(value: Any) -> Any:
    if type(value) is int:
        return value
    if isinstance(value, str):
        _need(_LETTER.fullmatch(value), "a guard names no letter")
        return value
    ops = ("==", "!=", "<", "<=", "+", "-", "*", "//", "%")
    _need(isinstance(value, list) and len(value) == 3 and value[0] in ops, "a guard is malformed")
    return (value[0], _guard_from_json(value[1]), _guard_from_json(value[2]))


def _action_from_json(row: Any) -> Action:
    _need(isinstance(row, list) and len(row) == 4, "an action is not [op, args, kwargs, types]")
    op, args, kwargs, types = row
    _need(isinstance(op, str) and isinstance(args, list), "an action is malformed")
    _need(isinstance(kwargs, dict) and isinstance(types, list), "an action is malformed")
    return Action(
        op,
        tuple(arg_from_json(a) for a in args),
        {k: arg_from_json(v) for k, v in kwargs.items()},
        tuple(Type.parse(t) for t in types),
    )


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
            return {"c": [arg_to_json(arg.real), arg_to_json(arg.imag)]}
        case float() if arg != arg or arg in (float("inf"), float("-inf")):
            return {"f": str(arg)}
        case list() | tuple():
            return [arg_to_json(a) for a in arg]
        case None | bool() | int() | float():
            return arg
    raise TypeError(f"{type(arg).__name__} is no argument of an action")


def arg_from_json(value: Any) -> Arg:
    match value:
        case str():
            return _var(value)
        case {"s": str(text), **rest} if not rest:
            return text
        case {"d": str(name), **rest} if not rest and name in ITEMSIZE:
            return Dtype(name)
        case {"m": str(name), **rest} if not rest:
            return Format(name)
        case {"g": int(number), **rest} if not rest:
            return Subgraph(number)
        case {"f": ("inf" | "-inf" | "nan") as text, **rest} if not rest:
            return float(text)
        case {"c": [re_, im], **rest} if not rest:
            parts = arg_from_json(re_), arg_from_json(im)
            _need(all(type(p) is float for p in parts), "a complex number needs two floats")
            return complex(*parts)
        case list():
            return [arg_from_json(v) for v in value]
        case None | bool() | int() | float():
            return value
    raise BadFile("an argument of an action is malformed")


def _var(text: Any) -> Var:
    _need(
        isinstance(text, str) and text[:1] == "%" and text[1:].isdecimal() and len(text) < 9,
        "expected a Var such as %3",
    )
    return Var(int(text[1:]))


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
            _need(all(type(k) in (str, int) for k, _ in _pairs(items)), "a dict's key is malformed")
            return {k: tree_from_json(v, leaf) for k, v in items}
        case None:
            return None
    return leaf(value)


def about_to_json(about: About) -> dict[str, Any]:
    body = {
        "name": about.name,
        "lines": list(about.lines),
        "params": list(about.params),
        "refused": dict(about.refused),
    }
    return {k: v for k, v in body.items() if v}


def about_from_json(body: Any) -> About:
    _need(isinstance(body, dict), "about is not an object")
    name, refused = body.get("name", ""), body.get("refused", {})
    _need(isinstance(name, str) and len(name) <= 200, "a plan's name is malformed")
    _need(isinstance(refused, dict) and all(isinstance(v, str) for v in refused.values()), "refused")
    return About(name, _strings(body.get("lines", [])), _strings(body.get("params", [])), refused)


# -- print -----------------------------------------------------------------------------------


def show(graph: Graph, about: About = About()) -> str:
    """The printed form: one line per input row, state tensor and action, with source lines."""
    head = f"plan {about.name or 'plan'}({', '.join(_inputs(graph))}) -> {show_arg(graph.outputs)}"
    rows = [(head, "")]
    rows += [(f"  where {text}", "") for text in _conditions(graph)]
    first = len(graph.inputs)
    rows += [(f"  %{first + i}: {t} = state {name}", "") for i, (name, t) in enumerate(graph.state)]
    for i, (action, numbers) in enumerate(graph.numbered()):
        outs = ", ".join(f"%{n}: {t}" for n, t in zip(numbers, action.types, strict=True))
        rows.append((f"  {outs} = {action.op}({_call(action)})", about.line(i)))
    for i, sub in enumerate(graph.graphs):
        rows += [(f"  @{i}: {show(sub, About('body'))}".replace("\n", "\n  "), "")]
    width = max(len(text) for text, line in rows if line) if any(line for _, line in rows) else 0
    return "\n".join(f"{text:<{width}}   {line}".rstrip() if line else text for text, line in rows)


def _inputs(graph: Graph) -> list[str]:
    also = list(zip(*(row[: len(graph.inputs)] for row in graph.dtypes), strict=True))
    texts = []
    for i, t in enumerate(graph.inputs):
        others = dict.fromkeys(d for d in also[i] if d != t.dtype) if also else {}
        dtypes = "|".join([t.dtype, *others])
        shape = str(t).removeprefix(t.dtype)
        texts.append(f"%{i}: {dtypes}{' ' if others else ''}{shape}")
    return texts


def _conditions(graph: Graph) -> list[str]:
    least = [f"{letter} >= {n}" for letter, n in graph.sizes.items() if n]
    same = ["inputs share one dtype"] if graph.dtypes and len(graph.inputs) > 1 else []
    return [", ".join([*least, *map(show_guard, graph.guards), *same])] if least or graph.guards or same else []


def show_guard(guard: Any) -> str:
    """``("<=", "n", 4)`` as ``n <= 4``."""
    if not isinstance(guard, tuple):
        return str(guard)
    sides = [f"({show_guard(g)})" if isinstance(g, tuple) and guard[0] in "*//%" else show_guard(g) for g in guard[1:]]
    return f" {guard[0]} ".join(sides)


def _call(action: Action) -> str:
    args = [show_arg(a) for a in action.args]
    return ", ".join([*args, *(f"{k}={show_arg(v)}" for k, v in sorted(action.kwargs.items()))])


def show_arg(arg: Any) -> str:
    match arg:
        case list():
            return f"[{', '.join(map(show_arg, arg))}]"
        case tuple():
            return f"({', '.join(map(show_arg, arg))})"
        case dict():
            return f"{{{', '.join(f'{k!r}: {show_arg(v)}' for k, v in arg.items())}}}"
        case str():
            return repr(arg)
    return str(arg)


def flatten(tree: Tree) -> Sequence[Any]:
    """The leaves of a tree, in order; None is no leaf."""
    match tree:
        case list() | tuple():
            return [leaf for t in tree for leaf in flatten(t)]
        case dict():
            return [leaf for t in tree.values() for leaf in flatten(t)]
        case None:
            return []
    return [tree]


def unflatten(tree: Tree, leaves: Iterator[Any]) -> Tree:
    """The tree with its leaves replaced, in order."""
    match tree:
        case list():
            return [unflatten(t, leaves) for t in tree]
        case tuple():
            return tuple(unflatten(t, leaves) for t in tree)
        case dict():
            return {k: unflatten(t, leaves) for k, t in tree.items()}
        case None:
            return None
    return next(leaves)
