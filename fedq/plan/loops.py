"""Branches and loops over compiled bodies: what runs `ctl.cond`, `while_loop`, `scan` and `map`.

Plain Python over functions that give tuples; nothing here looks at values but a predicate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Body = Callable[..., tuple[Any, ...]]
Values = Sequence[Any]


class NothingToGoOver(ValueError):
    """A scan or map over no elements, whose results would have no shape."""


def cond(then: Body, other: Body) -> Callable[..., Any]:
    def run(pred: Any, given: Values) -> tuple[Any, ...]:
        return then(*given) if pred else other(*given)

    return run


def while_loop(test: Body, body: Body) -> Callable[..., Any]:
    def run(carried: Values, given: Values) -> Values:
        while test(*carried, *given)[0]:
            carried = body(*carried, *given)
        return carried

    return run


def scan(body: Body) -> Callable[..., Any]:
    def run(carried: Values, xs: Values, given: Values) -> Values:
        kept, rows = len(carried), []
        for elements in _elements(xs):
            made = body(*carried, *elements, *given)
            carried = made[:kept]
            rows.append(made[kept:])
        return [*carried, *map(_stacked, zip(*rows, strict=True))]

    return run


def map_(body: Body) -> Callable[..., Any]:
    def run(xs: Values, given: Values) -> Values:
        rows = [body(*elements, *given) for elements in _elements(xs)]
        return list(map(_stacked, zip(*rows, strict=True)))

    return run


def _elements(xs: Values) -> list[tuple[Any, ...]]:
    elements = list(zip(*(x.unbind(0) for x in xs), strict=True))
    if not elements:
        raise NothingToGoOver
    return elements


def _stacked(column: Values) -> torch.Tensor:
    return torch.stack(tuple(column))


RULES: Mapping[str, Callable[..., Callable[..., Any]]] = {
    "ctl.cond": cond,
    "ctl.while_loop": while_loop,
    "ctl.scan": scan,
    "ctl.map": map_,
}
"""Op -> what makes its callable of compiled bodies; that is called with the action's other arguments."""
