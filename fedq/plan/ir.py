"""Action, Graph, About: a recorded function as frozen data.

A graph is a list of actions in single assignment. Vars are numbered: inputs first, then state,
then every output of every action, in order; so an action's outputs need no names in the file.
Knows no torch. Its JSON is `plan.graphjson`, its printed form `plan.graph`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fedq import ids
from fedq.plan.types import Arg, Tree, Type, Var


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


@dataclass(frozen=True, slots=True)
class Param:
    """One argument of the function that was recorded, where it is more than one input by position.

    Attributes:
        name: ``batch``; of the i-th of ``*rest``: ``rest[i]``.
        tree: its structure: Vars of inputs, and what the recording fixed (None, texts, numbers).
        default: what its one input is where it is left out; None if it must be given.
    """

    name: str
    tree: Tree
    default: bool | int | float | None = None

    @property
    def needed(self) -> bool:
        return self.default is None and any(True for _ in _vars(self.tree))


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
        params: the function's arguments as structures of inputs; empty where each is one input.
        variants: graphs for sizes that this one does not admit, with the same state, as many
            inputs, and outputs of the same structure; the first that admits what is given is run.
    """

    inputs: tuple[Type, ...]
    actions: tuple[Action, ...]
    outputs: Tree
    sizes: Mapping[str, int] = field(default_factory=dict)
    guards: tuple[Any, ...] = ()
    dtypes: tuple[tuple[str, ...], ...] = ()
    state: tuple[tuple[str, Type], ...] = ()
    graphs: tuple[Graph, ...] = ()
    params: tuple[Param, ...] = ()
    variants: tuple[Graph, ...] = ()

    @cached_property
    def id(self) -> str:
        """SHA-256 of the canonical JSON, 64 hex digits."""
        from fedq.plan.graphjson import canonical, graph_to_json

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
        lines: per action, ``tour.py:9`` or ``""``; after the graph's own those of its bodies, each
            followed by those of the bodies in it.
        params: names of the inputs, for messages: ``x``.
        refused: what the Spec does not admit and the line that is why: ``n=1`` -> ``tour.py:9``.
        updates: names of state the function writes to: its outputs are then ``(result, {name: new value})``.
    """

    name: str = ""
    lines: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    updates: tuple[str, ...] = ()

    @property
    def above_zero(self) -> list[int]:
        """Inputs that are taken above 0 only: ``given['momentum'] <= 0`` is among what is refused."""
        return [i for i, path in enumerate(self.params) if f"{path} <= 0" in self.refused]

    def line(self, action: int) -> str:
        return self.lines[action] if action < len(self.lines) else ""


def renumbered(graph: Graph, new: Mapping[int, Var]) -> Graph:
    """The graph with other numbers in its actions and outputs; bodies number for themselves."""
    actions = tuple(
        replace(a, args=tuple(put(x, new) for x in a.args), kwargs=put(dict(a.kwargs), new)) for a in graph.actions
    )
    return replace(graph, actions=actions, outputs=put(graph.outputs, new))


def put(arg: Any, new: Mapping[int, Var]) -> Any:
    """An argument or tree with other Vars."""
    match arg:
        case Var(n):
            return new[n]
        case list():
            return [put(a, new) for a in arg]
        case tuple():
            return tuple(put(a, new) for a in arg)
        case dict():
            return {k: put(a, new) for k, a in arg.items()}
    return arg


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
