"""Run a function on real tensors with each body of its control flow once: for dtypes, not values.

Both branches run, and a loop's body once, so that it ends whatever the values are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch._higher_order_ops.cond import cond_op
from torch._higher_order_ops.map import map_impl
from torch._higher_order_ops.scan import scan_op
from torch._higher_order_ops.while_loop import while_loop_op
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

Function = Callable[..., Any]


def once(function: Function, *args: Any) -> Any:
    """What the function gives, with the right structure, shapes and dtypes."""
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_Once())
        return function(*args)


class _Once(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = _RULES.get(func)
        if rule is None:
            return func(*args, **(kwargs or {}))
        with self:
            return rule(*args)


def _cond(pred: Any, then: Function, other: Function, operands: Sequence[Any]) -> Any:
    other(*operands)
    return then(*operands)


def _while_loop(test: Function, body: Function, carried: Sequence[Any], given: Sequence[Any]) -> Any:
    test(*carried, *given)
    return body(*carried, *given)


def _scan(body: Function, carried: Sequence[Any], xs: Sequence[Any], given: Sequence[Any]) -> Any:
    made, spec = pytree.tree_flatten(body(*carried, *(x[0] for x in xs), *given))
    kept = len(carried)
    return pytree.tree_unflatten([*made[:kept], *_rows(made[kept:], xs)], spec)


def _map(body: Function, xs: Sequence[Any], given: Sequence[Any]) -> Any:
    made, spec = pytree.tree_flatten(body(*(x[0] for x in xs), *given))
    return pytree.tree_unflatten(_rows(made, xs), spec)


def _rows(made: Sequence[Any], xs: Sequence[Any]) -> list[Any]:
    return [torch.stack([row] * len(xs[0])) for row in made]


_RULES: Mapping[Any, Function] = {cond_op: _cond, while_loop_op: _while_loop, scan_op: _scan, map_impl: _map}
