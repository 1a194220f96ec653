"""Types of which a part is not known, and a graph whose types were found anew. Knows no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fedq.errors import BadFile
from fedq.plan.graph import ITEMSIZE, NUMBERS, Graph, Type

ANY = "?"
UNKNOWN = Type(ANY)
"""A type of which nothing is known."""
_TYPE = re.compile(r"([a-z0-9_]+)\[((?:[0-9?]+(?:,[0-9?]+)*)?)\]")


def join(one: Type, other: Type) -> Type:
    """What is known of a value that has one of two types."""
    if one == other:
        return one
    if one.dtype != other.dtype or len(one.shape or ()) != len(other.shape or ()) or one.is_tensor != other.is_tensor:
        return UNKNOWN
    if one.shape is None or other.shape is None:
        return Type(one.dtype)
    return Type(one.dtype, tuple(a if a == b else ANY for a, b in zip(one.shape, other.shape, strict=True)))


def parse(text: object) -> Type:
    """Read ``f32[?,3]``, ``int`` or ``?``; BadFile for anything else."""
    if text == ANY:
        return UNKNOWN
    if text in NUMBERS:
        return Type(str(text))
    if isinstance(text, str) and "=" in text:
        return Type.parse(text)
    match = _TYPE.fullmatch(text) if isinstance(text, str) and len(text) < 2000 else None
    if match is None or match[1] not in (*ITEMSIZE, ANY):
        raise BadFile("a type is a dtype with sizes")
    return Type(match[1], tuple(d if d == ANY else int(d) for d in match[2].split(",")) if match[2] else ())


def size_bytes(type_: Type) -> int | None:
    """How many bytes a value of this type has; None if that is not known."""
    if type_.shape is None:
        return 8 if type_.dtype in NUMBERS else None
    if type_.dtype not in ITEMSIZE:
        return None
    size = ITEMSIZE[type_.dtype]
    for dim in type_.shape:
        if type(dim) is not int:
            return None
        size *= dim
    return size


def texts(graph: Graph) -> list[list[str]]:
    """The types that a graph's actions make, then those of its bodies: a list of texts per graph, bodies after it.

    The first list of each is of its inputs.
    """
    made = [[str(t) for t in graph.inputs], [str(t) for a in graph.actions for t in a.types]]
    return made + [part for body in graph.graphs for part in texts(body)]


def retyped(graph: Graph, found: Sequence[Sequence[Type]]) -> Graph:
    """The graph with the types of `texts`, in their order; BadFile if they are not as many."""
    parts = iter(found)
    made = _retyped(graph, parts)
    if next(parts, None) is not None:
        raise BadFile("types of no graph")
    return made


def _retyped(graph: Graph, parts: Iterator[Sequence[Type]]) -> Graph:
    inputs, types = tuple(next(parts, ())), iter(next(parts, ()))
    try:
        actions = tuple(replace(a, types=tuple(next(types) for _ in a.types)) for a in graph.actions)
    except (StopIteration, RuntimeError):
        raise BadFile("too few types") from None
    if len(inputs) != len(graph.inputs) or next(types, None) is not None:
        raise BadFile("types of no action")
    bodies = tuple(_retyped(body, parts) for body in graph.graphs)
    return replace(graph, inputs=inputs, actions=actions, graphs=bodies, sizes={}, guards=(), dtypes=(), variants=())
