"""More graphs of one plan: for a size of 1, or 0, at which the function takes another way.

What the first graph's letters do not admit is recorded as a plan of its own, with the number in
its place and all else proved again; its graph is kept if it gives the same structure of outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from fedq.plan.graph import About, Graph, Type, Var, flatten, unflatten
from fedq.plan.ir import renumbered
from fedq.plan.tensors import same_bits

MAX_VARIANTS = 4
"""Recorded for one plan: each costs as much as building it."""

Traced = tuple[Graph, About, tuple[torch.Tensor, ...]]


def wanted(graph: Graph, asked: Sequence[Type]) -> Iterator[tuple[tuple[Type, ...], set[tuple[int, int]]]]:
    """What to record besides: the types, and the places that must stay as written.

    Letters that were asked to be free; where none was, the first (the batch, as a rule).
    """
    places = {(i, d): n for i, t in enumerate(graph.inputs) for d, n in enumerate(t.shape or ()) if isinstance(n, str)}
    free = [n for (i, d), n in places.items() if asked[i].shape[d] == -1]  # type: ignore[index]
    letters = list(dict.fromkeys(free or list(places.values())[:1]))
    missing = [(n, size) for size in ((1, 0) if free else (1,)) for n in letters if graph.sizes[n] > size]
    for name, size in missing[:MAX_VARIANTS]:
        here = {at for at, n in places.items() if n == name}
        types = tuple(_at(t, {d for i, d in here if i == k}, size) for k, t in enumerate(asked))
        fixed = {(i, d) for i, t in enumerate(asked) for d in range(len(t.shape or ())) if (i, d) not in places}
        fixed |= {(i, -1) for i, t in enumerate(graph.inputs) if t.value is not None}
        yield types, fixed | here


def _at(type_: Type, dims: set[int], size: int) -> Type:
    if type_.shape is None:
        return type_
    return replace(type_, shape=tuple(size if d in dims else n for d, n in enumerate(type_.shape)))


def joined(first: Traced, others: Sequence[Traced]) -> Traced:
    """One graph with the others as its variants, over one state: constants that are equal are held once."""
    graph, about, constants = first
    kept = [other for other in others if _same_outputs(graph, other[0])]
    pool = list(constants)
    places = [[_place(pool, c) for c in other[2]] for other in kept]
    own = graph.state[: len(graph.state) - len(constants)]
    state = (*own, *((f"const{i}", Type(_dtype(c), tuple(c.shape))) for i, c in enumerate(pool)))
    variants = [_over(g, state, at) for (g, _, _), at in zip(kept, places, strict=True)]
    graph = replace(_over(graph, state, range(len(constants))), variants=tuple(variants))
    lines = (*about.lines, *(line for _, a, _ in kept for line in a.lines))
    return graph, replace(about, lines=lines), tuple(pool)


def _same_outputs(a: Graph, b: Graph) -> bool:
    def kinds(graph: Graph) -> Any:
        return unflatten(graph.outputs, iter([graph.types[v.number].is_tensor for v in flatten(graph.outputs)]))

    return bool(kinds(a) == kinds(b))


def _place(pool: list[torch.Tensor], constant: torch.Tensor) -> int:
    """Where an equal constant stands; adds it if there is none."""
    for i, held in enumerate(pool):
        if same_bits(held, constant):
            return i
    pool.append(constant)
    return len(pool) - 1


def _dtype(tensor: torch.Tensor) -> str:
    from fedq.plan.tensors import NAMES

    return NAMES[tensor.dtype]


def _over(graph: Graph, state: tuple[tuple[str, Type], ...], places: Sequence[int]) -> Graph:
    """The graph with this state, in which its constants have these places."""
    before = len(graph.inputs) + len(graph.state)
    more = len(state) - len(graph.state)
    first = before - len(places)
    new = {n: Var(n) for n in range(first)}
    new |= {first + i: Var(first + place) for i, place in enumerate(places)}
    new |= {n: Var(n + more) for n in range(before, len(graph.types))}
    return replace(renumbered(graph, new), state=state)
