"""Arguments as users give them, and as a graph takes them: a flat list of inputs. Knows no torch.

`taken` reads the structure off the examples a plan is built with; `bind` brings later arguments
into the same order, or says where they differ.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NoReturn

from fedq.errors import SpecMismatch, UsageError
from fedq.plan.ir import About, Graph, Param, flatten, put, renumbered
from fedq.plan.spec import place
from fedq.plan.types import Tree, Var

_UNKNOWN = About()


# -- binding --------------------------------------------------------------------------------------


def bind(graph: Graph, args: Sequence[Any], kwargs: Mapping[str, Any], *, about: About = _UNKNOWN) -> list[Any]:
    """The inputs of a graph, in order, from a call's arguments.

    Raises:
        SpecMismatch: they are of another structure; names the place, such as ``batch['y']``.
    """
    if not (graph.params or kwargs) and len(args) == len(graph.inputs) and not any(map(_is_structure, args)):
        return list(args)
    return _bound(graph, graph.params or _flat(graph, about), args, kwargs)


def _is_structure(value: Any) -> bool:
    return value is None or isinstance(value, (list, tuple, dict))


def bind_flat(graph: Graph, args: Sequence[Any], named: Mapping[str, Any], *, about: About = _UNKNOWN) -> list[Any]:
    """The same from single inputs, by position or path (``batch['y']``, ``batch.y``): what a command line can write."""
    written = {place(about, i): path for i, path in enumerate(about.params)}
    return _bound(graph, _flat(graph, about), args, {written.get(name, name): v for name, v in named.items()})


def _bound(graph: Graph, params: Sequence[Param], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    given = _by_name(params, args, kwargs)
    missing = [p.name for p in params if p.needed and p.name not in given]
    if missing:
        text = f"requires {_count(sum(p.needed for p in params))}, received {len(args) + len(kwargs)}"
        raise SpecMismatch(f"{text}: {' and '.join(map(repr, missing[:3]))} missing")
    return [leaf for p in params for leaf in _of(graph, p, given)]


def _flat(graph: Graph, about: About) -> tuple[Param, ...]:
    known = len(about.params) == len(graph.inputs)
    defaults = {p.tree.number: p.default for p in graph.params if p.default is not None}
    names = about.params if known else [f"input {i}" for i in range(len(graph.inputs))]
    return tuple(Param(name, Var(i), defaults.get(i)) for i, name in enumerate(names))


def _by_name(params: Sequence[Param], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = [p.name for p in params]
    if len(args) > len(names):
        least = sum(p.needed for p in params)
        wanted = _count(least) if least == len(names) else f"{least} to {_count(len(names))}"
        raise SpecMismatch(f"requires {wanted}, received {len(args) + len(kwargs)}")
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name in given:
            raise SpecMismatch(f"argument {name!r} is given twice")
        if name not in names:
            raise SpecMismatch(f"there is no argument {name!r}", hint=f"the plan takes {', '.join(names) or 'nothing'}")
        given[name] = value
    return given


def _of(graph: Graph, param: Param, given: Mapping[str, Any]) -> Iterator[Any]:
    if param.name in given:
        yield from _fill(graph, param.tree, given[param.name], param.name)
    elif param.default is not None:
        yield param.default


def _fill(graph: Graph, tree: Tree, value: Any, path: str) -> Iterator[Any]:
    """The leaves of a value that has this structure."""
    match tree:
        case Var():
            if _is_structure(value):
                _differs(path, str(graph.inputs[tree.number]), value)
            yield value
        case list() | tuple():
            kind = list if isinstance(tree, list) else tuple
            if not isinstance(value, kind) or len(value) != len(tree):
                _differs(path, _told(tree), value)
            for i, (inner, part) in enumerate(zip(tree, value, strict=True)):
                yield from _fill(graph, inner, part, f"{path}[{i}]")
        case dict():
            if not isinstance(value, dict):
                _differs(path, _told(tree), value)
            _same_keys(tree, value, path)
            for key, inner in tree.items():
                yield from _fill(graph, inner, value[key], f"{path}[{key!r}]")
        case _ if type(value) is not type(tree) or value != tree:
            hint = "it was so when the plan was built: build another plan"
            raise SpecMismatch(f"{path}: {tree!r} expected, {_told(value)} given", hint=hint)


def _same_keys(tree: Mapping[Any, Tree], value: Mapping[Any, Any], path: str) -> None:
    missing = [k for k in tree if k not in value]
    more = [k for k in value if k not in tree]
    if missing or more:
        what = f"key {missing[0]!r} is missing" if missing else f"key {more[0]!r} is not among those it was built with"
        raise SpecMismatch(f"{path}: {what}", hint=f"its keys are {', '.join(map(repr, tree))}")


def _differs(path: str, wanted: str, value: Any) -> NoReturn:
    raise SpecMismatch(f"{path}: {wanted} expected, {_told(value)} given")


def _told(value: Any) -> str:
    match value:
        case None | bool() | int() | float() | str():
            return repr(value)
        case dict():
            return f"a dict of {', '.join(map(repr, value)) or 'nothing'}"
        case list() | tuple():
            return f"a {'list' if isinstance(value, list) else 'tuple'} of {len(value)}"
    return f"a {type(value).__name__}"


def _count(n: int) -> str:
    return f"{n} argument{'' if n == 1 else 's'}"


# -- building -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """The examples of a build.

    Attributes:
        params: the function's arguments over the numbers of ``leaves``.
        leaves: tensors and numbers, flat, in order.
        names: of each leaf: ``x``, ``batch['y']``.
        left: names of arguments that were left out.
        by_name: of those that are given by name, as they were.
        bound: the call itself, to be made again with other leaves.
    """

    params: tuple[Param, ...]
    leaves: tuple[Any, ...]
    names: tuple[str, ...]
    left: frozenset[str]
    by_name: frozenset[str]
    bound: inspect.BoundArguments

    def again(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments by position and by name, with these leaves for those it was made with."""
        rest = iter(leaves)
        parts = self.bound.arguments
        made = {name: _like(parts[name], rest) for name in self.bound.signature.parameters if name in parts}
        named = {name: made.pop(name) for name in self.by_name if name in made}
        bound = inspect.BoundArguments(self.bound.signature, made)
        return bound.args, {**bound.kwargs, **named}


def taken(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Taken:
    """The structure of a call with examples. A number that is left out, and has a default, is an input too.

    Raises:
        TypeError: the function can not be called so.
        UsageError: an argument holds what a plan does not take; names the place.
    """
    bound = signature.bind(*args, **kwargs)
    reader = _Reader(count(), [], [])
    params: list[Param] = []
    left = frozenset(signature.parameters) - bound.arguments.keys()
    for name, p in signature.parameters.items():
        value = bound.arguments.get(name, p.default)
        if p.kind is p.VAR_POSITIONAL:
            params += (reader.param(f"{name}[{i}]", v) for i, v in enumerate(bound.arguments.get(name, ())))
        elif p.kind is p.VAR_KEYWORD:
            params += (reader.param(k, v) for k, v in bound.arguments.get(name, {}).items())
        elif name in bound.arguments:
            params.append(_with_default(reader.param(name, value), value, p.default))
        elif type(value) in (int, float, bool):
            bound.arguments[name] = value
            params.append(replace(reader.param(name, value), default=value))
        else:
            params.append(Param(name, value if value is None or type(value) in (bool, str) else "its default"))
    positional_only = {name for name, p in signature.parameters.items() if p.kind is p.POSITIONAL_ONLY}
    by_name = (left | kwargs.keys()) - positional_only
    return Taken(tuple(params), tuple(reader.leaves), tuple(reader.names), left, frozenset(by_name), bound)


def _with_default(param: Param, value: Any, default: Any) -> Param:
    numbers = type(default) in (int, float, bool) and type(value) is type(default)
    return replace(param, default=default) if numbers else param


@dataclass(frozen=True, slots=True)
class _Reader:
    numbers: Iterator[int]
    leaves: list[Any]
    names: list[str]

    def param(self, name: str, value: Any) -> Param:
        return Param(name, self.tree(value, name))

    def tree(self, value: Any, path: str) -> Tree:
        match value:
            case None | str():
                return value
            case list():
                return [self.tree(v, f"{path}[{i}]") for i, v in enumerate(value)]
            case tuple():
                return tuple(self.tree(v, f"{path}[{i}]") for i, v in enumerate(value))
            case dict():
                if not all(type(k) in (str, int) for k in value):
                    raise UsageError(f"{path}: keys of a dict are texts or integers in a plan")
                return {k: self.tree(v, f"{path}[{k!r}]") for k, v in value.items()}
        self.leaves.append(value)
        self.names.append(path)
        return Var(next(self.numbers))


def _like(example: Any, leaves: Iterator[Any]) -> Any:
    """The example with its leaves replaced; named tuples and kinds of dict stay what they are."""
    match example:
        case None | str():
            return example
        case list():
            return [_like(v, leaves) for v in example]
        case tuple():
            made = [_like(v, leaves) for v in example]
            return type(example)._make(made) if hasattr(example, "_make") else tuple(made)
        case dict():
            items = {k: _like(v, leaves) for k, v in example.items()}
            return items if type(example) is dict else type(example)(items)
    return next(leaves)


# -- after recording ------------------------------------------------------------------------------


def settled(graph: Graph, taken: Taken) -> tuple[Graph, tuple[int, ...]]:
    """The graph with its arguments, and which inputs it kept.

    A number that was left out and is not free is no input; and there is nothing to tell where
    each argument is one input.
    """
    kept, params, new = list[int](), list[Param](), dict[int, Var]()
    for p in taken.params:
        number = p.name in taken.left and p.default is not None
        fixed = number and graph.inputs[p.tree.number].value is not None
        for leaf in () if fixed else _leaves(p.tree):
            new[leaf.number] = Var(len(kept))
            kept.append(leaf.number)
        params.append(Param(p.name, p.default) if fixed else replace(p, tree=put(p.tree, new)))
    graph = graph if len(kept) == len(graph.inputs) else _keep(graph, kept)
    given = [p for p in params if p.name not in taken.left or p.default is not None]
    plain = all(isinstance(p.tree, Var) and p.default is None for p in given) and params[: len(given)] == given
    return replace(graph, params=() if plain else tuple(params)), tuple(kept)


def _leaves(tree: Tree) -> list[Var]:
    return [leaf for leaf in flatten(tree) if isinstance(leaf, Var)]


def _keep(graph: Graph, kept: Sequence[int]) -> Graph:
    """The graph with only these inputs; no action uses the others, which are fixed numbers."""
    lost = len(graph.inputs) - len(kept)
    new = {n: Var(n - lost) for n in range(len(graph.inputs), len(graph.types))}
    new |= {old: Var(i) for i, old in enumerate(kept)}
    rows = tuple((*(row[n] for n in kept), *row[len(graph.inputs) :]) for row in graph.dtypes)
    inputs = tuple(graph.inputs[n] for n in kept)
    variants = tuple(_keep(v, kept) for v in graph.variants)
    return replace(renumbered(graph, new), inputs=inputs, dtypes=rows, variants=variants)
