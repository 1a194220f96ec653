"""The only door of a graph: bound, typed, allowed and sized, before anything runs. Knows no torch.

What it says of a graph holds whoever made it: nothing here trusts a type, a number of results or
an order written in a file. What needs actual tensors (sizes that must agree, indices within
bounds) is checked by `plan.contracts` before the call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from fedq.errors import BadFile, NotAllowed
from fedq.plan import bodies, optable
from fedq.plan.bodies import Flow
from fedq.plan.graph import (
    ITEMSIZE,
    NUMBERS,
    Action,
    Arg,
    Dtype,
    Format,
    Graph,
    Subgraph,
    Type,
    Var,
    flatten,
    parse_size,
)
from fedq.plan.optable import Op, Param
from fedq.plan.types import FORMATS, LETTER, MAX_SIZE

MAX_ACTIONS = 10_000
MAX_VARS = 65_536
MAX_STATE = 4096
MAX_INPUTS = 4096
MAX_OUTPUTS = 4096
MAX_DIMS = 64
MAX_VARIANTS = 8
MAX_DEPTH = 32
MAX_LIST = 4096
MAX_TEXT = 200
MAX_INT = 1 << 40
"""Integers that are counts, sizes or steps stay below this."""
MAX_ELEMENTS = 1 << 36
"""Elements of one tensor, as far as literal sizes tell."""
MAX_REACHES = 1 << 22
"""Pairs of an output and what reaches it, in all."""

_WIDE = frozenset(("start", "end", "step", "index", "high", "low", "ignore_index", "diagonal", "offset", "length"))
_SIZES = frozenset(("size", "sizes", "shape", "repeats", "output_size", "input_sizes", "self_sizes"))


@dataclass(frozen=True, slots=True)
class Verified:
    """A graph that may run.

    Attributes:
        graph: as given.
        reaches: per output, the numbers of the inputs and state Vars that flow into it; a size
            carries its tensor along.
        random: whether it draws from the generator.
        variants: those of the graph, each for itself.
    """

    graph: Graph
    reaches: tuple[frozenset[int], ...]
    random: bool
    variants: tuple[Verified, ...] = ()


def verify(graph: Graph) -> Verified:
    """The graph, if every line of it is allowed.

    Raises:
        NotAllowed: with ``action`` (its number, or None) and ``op`` in its fields.
    """
    first = _verify_one(graph)
    if not graph.variants:
        return first
    variants = tuple(_verify_variant(variant, graph) for variant in graph.variants)
    count = sum(len(inner.actions) for g in (graph, *graph.variants) for _, inner in ((0, g), *bodies.nested(g)))
    _need(len(variants) <= MAX_VARIANTS and count <= MAX_ACTIONS, "too many variants, or too long ones")
    reaches = _reaches_of_all((first, *variants))
    return Verified(graph, reaches, any(v.random for v in (first, *variants)), variants)


def _verify_one(graph: Graph) -> Verified:
    _check_frame(graph)
    _check_spec(graph)
    _check_nested(graph)
    flow = _follow(graph)
    return Verified(graph, _reaches(graph, flow.flows), flow.random)


def _verify_variant(graph: Graph, first: Graph) -> Verified:
    _need(not graph.variants and not graph.params and graph.state == first.state, "a variant has a state of its own")
    made = _verify_one(graph)
    inputs = [t.is_tensor for t in graph.inputs] == [t.is_tensor for t in first.inputs]
    outputs = [graph.types[v.number].is_tensor for v in graph.output_vars]
    same = outputs == [first.types[v.number].is_tensor for v in first.output_vars]
    _need(inputs and same, "a variant has other inputs or outputs")
    return made


def _reaches_of_all(all_: Sequence[Verified]) -> tuple[frozenset[int], ...]:
    """What flows in any of the graphs, and the inputs by which one of them is chosen."""
    inputs = zip(*(v.graph.inputs for v in all_), strict=True)
    choosing = frozenset(
        i
        for i, types in enumerate(inputs)
        if any(isinstance(d, str) for t in types for d in t.shape or ()) or len(set(types)) > 1
    )
    return tuple(choosing.union(*sets) for sets in zip(*(v.reaches for v in all_), strict=True))


def _follow(graph: Graph) -> Flow:
    """Check every action; what flows where."""
    called = [_follow_body(body) for body in graph.graphs]
    first = len(graph.inputs) + len(graph.state)
    is_tensor = [t.is_tensor for t in graph.types[:first]]
    flows = [1 << n for n in range(first)]
    random = False
    for i, action in enumerate(graph.actions):
        try:
            made, draws = _check_any(action, is_tensor, flows, called)
        except _Wrong as wrong:
            raise NotAllowed(f"{wrong} (action {i})", action=i, op=action.op) from None
        random |= draws
        flows += made
        is_tensor += [t.is_tensor for t in action.types]
    for var in flatten(graph.outputs):
        _need(isinstance(var, Var) and 0 <= var.number < len(flows), f"output {var} is not defined")
    return Flow(is_tensor, flows, graph.output_vars, first, random)


def _follow_body(graph: Graph) -> Flow:
    try:
        return _follow(graph)
    except NotAllowed as error:
        raise NotAllowed(f"{error}, in a body", action=None, op=error.fields["op"]) from None


class _Wrong(Exception):
    """What is wrong with an action."""


def _need(condition: object, message: str) -> None:
    if not condition:
        raise NotAllowed(message, action=None, op=None)


def _wrong(message: str) -> NoReturn:
    raise _Wrong(message)


# -- the frame: counts, inputs, state, guards, outputs ------------------------------------------


def _check_frame(graph: Graph) -> None:
    for what, count, most in (
        ("actions", len(graph.actions), MAX_ACTIONS),
        ("inputs", len(graph.inputs), MAX_INPUTS),
        ("state tensors", len(graph.state), MAX_STATE),
        ("values", len(graph.inputs) + len(graph.state) + sum(len(a.types) for a in graph.actions), MAX_VARS),
    ):
        _need(count <= most, f"{count} {what}, at most {most} are allowed")
    _need(_nests(graph.outputs, MAX_DEPTH), f"outputs are nested deeper than {MAX_DEPTH}")
    _need(len(flatten(graph.outputs)) <= MAX_OUTPUTS, f"at most {MAX_OUTPUTS} outputs are allowed")
    names = [name for name, _ in graph.state]
    _need(len(set(names)) == len(names), "two state tensors have one name")
    _need(all(0 < len(n) <= 300 for n in names), "a state tensor's name is too long")
    sizes = [d for _, t in graph.state for d in (t.shape if t.shape is not None else (None,))]
    _need(all(type(d) is int for d in sizes), "a state tensor has a free size, or is none")


def _check_nested(graph: Graph) -> None:
    """Bodies in bodies: how deep, how much in all, and that each is called."""
    actions = values = pairs = 0
    for depth, inner in ((0, graph), *bodies.nested(graph)):
        actions, values = actions + len(inner.actions), values + len(inner.types)
        calls = [a for a in inner.actions if a.op in bodies.CONTROL]
        pairs += sum(len(a.types) * sum(1 for _ in a.vars()) for a in calls)
        _need(depth <= bodies.MAX_NESTED, f"bodies are nested deeper than {bodies.MAX_NESTED}")
        _need(actions <= MAX_ACTIONS, f"more than {MAX_ACTIONS} actions, with those of bodies")
        _need(values <= MAX_VARS, f"more than {MAX_VARS} values, with those of bodies")
        _need(pairs <= bodies.MAX_PAIRS, "too many values go through bodies")
        why = bodies.unsound(inner) if depth else None
        _need(why is None, why or "")
        called = {a.number for action in calls for a in action.args if isinstance(a, Subgraph)}
        _need(called == set(range(len(inner.graphs))), "a body is missing, or never called")


def _nests(tree: Any, levels: int) -> bool:
    """Whether a tree has at most so many levels."""
    if not isinstance(tree, (list, tuple, dict)):
        return True
    inner = tree.values() if isinstance(tree, dict) else tree
    return levels > 0 and all(_nests(t, levels - 1) for t in inner)


def _check_spec(graph: Graph) -> None:
    for i, type_ in enumerate((*graph.inputs, *(t for _, t in graph.state))):
        _need(_is_type(type_), f"input {i}: {str(type_)[:60]!r} is not a type of an input")
    letters = {d for t in graph.inputs for d in t.shape or () if isinstance(d, str)}
    _need(letters <= graph.sizes.keys(), f"size {min(letters - graph.sizes.keys(), default='')!r} is not declared")
    _need(all(type(n) is int and 0 <= n < MAX_SIZE for n in graph.sizes.values()), "a least size is not a number")
    for guard in graph.guards:
        _need(_letters(guard, compare=True) <= letters, f"guard {str(guard)[:60]} names a size of no input")
    _check_params(graph)
    width = len(graph.inputs) + len(graph.output_vars)
    for row in graph.dtypes:
        _need(len(row) == width, "a row of dtypes is not one per input and output")
        known = all(d in ITEMSIZE or d in NUMBERS for d in row)
        fits = all(d in (ITEMSIZE if t.is_tensor else NUMBERS) for t, d in zip(graph.inputs, row, strict=False))
        _need(known and fits, "a row of dtypes does not fit the inputs")
    types = graph.types
    for var in graph.output_vars:
        if var.number < len(types):
            dims = [d for d in types[var.number].shape or () if isinstance(d, str)]
            used = set[str]().union(*(_letters(_parsed(d)) for d in dims))
            _need(used <= letters, f"output {var}: {types[var.number]} names a size of no input")


def _check_params(graph: Graph) -> None:
    """Arguments hold every input once, in order."""
    if not graph.params:
        return
    names = [p.name for p in graph.params]
    _need(len(names) <= MAX_INPUTS and len(set(names)) == len(names), "two arguments have one name")
    _need(all(_nests(p.tree, MAX_DEPTH) for p in graph.params), f"arguments are nested deeper than {MAX_DEPTH}")
    leaves = [leaf for p in graph.params for leaf in flatten(p.tree)]
    numbers = [leaf.number for leaf in leaves if isinstance(leaf, Var)]
    _need(numbers == list(range(len(graph.inputs))), "arguments do not hold each input once, in order")
    for p in graph.params:
        kind = graph.inputs[p.tree.number].dtype if isinstance(p.tree, Var) else ""
        _need(p.default is None or type(p.default).__name__ == kind, f"default of {p.name[:60]!r}: not {kind or 'one'}")


def _is_type(type_: Type) -> bool:
    if type_.shape is None:
        return type_.dtype in NUMBERS
    sizes = all(LETTER.fullmatch(d) if isinstance(d, str) else 0 <= d < MAX_SIZE for d in type_.shape)
    return type_.dtype in ITEMSIZE and len(type_.shape) <= MAX_DIMS and bool(sizes)


def _parsed(text: str) -> Any:
    try:
        return parse_size(text)
    except BadFile as error:
        raise NotAllowed(str(error), action=None, op=None) from None


_COMPARISONS = ("==", "!=", "<", "<=")
_ARITY = {
    **dict.fromkeys(("+", "-", "*", "/", "//", "%", "min", "max"), 2),
    **dict.fromkeys(("floor", "ceil", "round", "trunc"), 1),
}


def _letters(size: Any, *, compare: bool = False) -> set[str]:
    """The letters of a guard (``compare``) or of a parsed size; NotAllowed if it is malformed or nested too deep."""
    found: set[str] = set()
    level = [size]
    for depth in range(MAX_DEPTH + 1):
        deeper: list[Any] = []
        for part in level:
            if isinstance(part, tuple):
                arity = dict.fromkeys(_COMPARISONS, 2) if compare and not depth else _ARITY
                _need(arity.get(part[0]) == len(part) - 1, "a guard is malformed")
                deeper += part[1:]
            elif isinstance(part, str):
                found.add(part)
            else:
                _need(type(part) in (int, float) and abs(part) < 1 << 64, "a guard is malformed")
        if not deeper:
            return found
        level = deeper
    raise NotAllowed(f"a guard is nested deeper than {MAX_DEPTH}", action=None, op=None)


def _reaches(graph: Graph, flows: list[int]) -> tuple[frozenset[int], ...]:
    sets: dict[int, frozenset[int]] = {}
    total = 0
    for var in graph.output_vars:
        flow = flows[var.number]
        if flow not in sets:
            total += flow.bit_count()
            _need(total <= MAX_REACHES, "too many inputs reach too many outputs")
            sets[flow] = frozenset(n for n, bit in enumerate(reversed(f"{flow:b}")) if bit == "1")
    return tuple(sets[flows[var.number]] for var in graph.output_vars)


# -- one action -------------------------------------------------------------------------------


def _check_any(
    action: Action, is_tensor: list[bool], flows: list[int], called: Sequence[Flow]
) -> tuple[list[int], bool]:
    """What flows into each of its results, and whether it draws random numbers."""
    if action.op in bodies.CONTROL:
        _check_vars(action, is_tensor)
        try:
            made = bodies.follow(action, called, is_tensor, flows)
        except bodies.Misused as wrong:
            _wrong(f"{action.op}: {wrong}")
        return made, any(called[a.number].random for a in action.args if isinstance(a, Subgraph))
    op = _check_action(action, is_tensor)
    flow = 0
    for var in action.vars():
        flow |= flows[var.number]
    return [flow] * len(action.types), op.random


def _check_vars(action: Action, is_tensor: list[bool]) -> None:
    for var in action.vars():
        if not 0 <= var.number < len(is_tensor):
            _wrong(f"{action.op}: {var} is not defined here")


def _check_action(action: Action, is_tensor: list[bool]) -> Op:
    op = optable.find(action.op)
    if op is None:
        _wrong(f"op {action.op[:100]!r} is not allowed: {optable.why_not(action.op)}")
    _check_vars(action, is_tensor)
    given = dict(bind(op, action))
    for param, arg in given.values():
        if not _fits(param.kind, arg, is_tensor, op.numbers):
            _wrong(f"{op.name}: argument {param.name!r} is not {_KINDS.get(param.kind, param.kind)}")
        if not _sane(param, arg):
            _wrong(f"{op.name}: argument {param.name!r} is out of bounds")
    for words in op.contract:
        _check_contract(op, words, given)
    _check_results(op, action.types)
    return op


def bind(op: Op, action: Action) -> Iterator[tuple[str, tuple[Param, Arg]]]:
    """Each argument with its parameter, by name; _Wrong if they do not match the schema."""
    positional = [p for p in op.params if not p.keyword]
    if len(action.args) > len(positional):
        _wrong(f"{op.name} takes {len(positional)} arguments, {len(action.args)} given")
    taken = positional[: len(action.args)]
    yield from ((p.name, (p, arg)) for p, arg in zip(taken, action.args, strict=True))
    rest = {p.name: p for p in op.params if p not in taken}
    for name, arg in action.kwargs.items():
        if name not in rest:
            _wrong(f"{op.name} has no argument {name[:60]!r}")
        yield name, (rest.pop(name), arg)
    missing = next((p.name for p in rest.values() if p.default is None), None)
    if missing:
        _wrong(f"{op.name} lacks argument {missing!r}")


_KINDS = {
    "Tensor": "a tensor", "Tensor?": "a tensor", "Tensor[]": "a list of tensors", "int": "an integer",
    "int?": "an integer", "int[]": "a list of integers", "int[]?": "a list of integers", "float": "a number",
    "float?": "a number", "bool": "true or false", "bool?": "true or false", "Scalar": "a number",
    "Scalar?": "a number", "str": "a text", "str?": "a text", "dtype": "a dtype", "dtype?": "a dtype",
    "format": "a memory format", "format?": "a memory format", "none": "left out",
}  # fmt: skip


def _fits(kind: str, arg: Arg, is_tensor: list[bool], numbers: bool) -> bool:
    if kind[-1] == "?":
        return arg is None or _fits(kind[:-1], arg, is_tensor, numbers)
    if kind[-2:] == "[]":
        if type(arg) is list:
            return len(arg) <= MAX_LIST and all(_fits(kind[:-2], a, is_tensor, False) for a in arg)
        return kind == "int[]" and _fits("int", arg, is_tensor, False)
    if type(arg) is Var:
        if kind == "Tensor":
            return is_tensor[arg.number] or numbers
        return kind in _VARIABLE and not is_tensor[arg.number]
    if kind == "none":
        return arg is None or arg is False
    if kind == "Tensor":
        return numbers and type(arg) in _LITERALS["Scalar"]
    return type(arg) in _LITERALS.get(kind, ())


_VARIABLE = frozenset(("int", "float", "Scalar", "real"))
_LITERALS: Mapping[str, tuple[type, ...]] = {
    "int": (int,), "float": (float, int), "bool": (bool,), "Scalar": (int, float, bool, complex),
    "real": (int, float, bool), "str": (str,), "dtype": (Dtype,), "format": (Format,),
}  # fmt: skip


def _sane(param: Param, arg: Arg) -> bool:
    """Whether literals are within the bounds every op has."""
    match arg:
        case bool():
            return True
        case int():
            bound = MAX_INT if param.kind.startswith("int") and param.name not in _WIDE else 1 << 63
            return -bound <= arg < bound
        case str():
            return len(arg) <= MAX_TEXT and arg.isascii() and arg.isprintable()
        case Dtype():
            return arg.name in ITEMSIZE
        case Format():
            return arg.name in FORMATS
        case list():
            counts = [abs(a) for a in arg if type(a) is int] if param.name in _SIZES else []
            return all(_sane(param, a) for a in arg) and math.prod(counts) <= MAX_ELEMENTS
    return True


def _check_contract(op: Op, words: tuple[str, ...], given: Mapping[str, tuple[Param, Arg]]) -> None:
    """Conditions on literals; those on tensors are for `plan.contracts`."""
    match words:
        case (name, "in", *allowed) if name in given:
            arg = given[name][1]
            if arg is not None and (type(arg) not in (int, str, bool) or str(arg) not in allowed):
                _wrong(f"{op.name}: argument {name!r} is one of {', '.join(allowed)}")
        case (name, "from", low, "to", high) if name in given:
            arg = given[name][1]
            if any(type(a) is not int or not int(low) <= a <= int(high) for a in (arg if type(arg) is list else [arg])):
                _wrong(f"{op.name}: argument {name!r} is out of bounds: {low} to {high}")


def _check_results(op: Op, types: tuple[Type, ...]) -> None:
    if len(op.returns) == 1 and op.returns[0] == "Tensor[]":
        fits = all(t.is_tensor for t in types)
    else:
        fits = len(types) == len(op.returns) and all(
            t.is_tensor == (r == "Tensor") for t, r in zip(types, op.returns, strict=True)
        )
    if not fits:
        _wrong(f"{op.name} gives {', '.join(op.returns)}, not {', '.join(map(str, types))[:100] or 'nothing'}")
