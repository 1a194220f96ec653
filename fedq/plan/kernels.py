"""Op -> the callable that runs it, with what its contract asks checked before the call.

The fastest callable that runs exactly the op (a tensor's method, a function of ``torch``) stands
in the op table, was proved by dispatching both, and is looked up there: no name of a file is ever
an attribute. Where none was proved, ``torch.ops`` is called.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from fedq.plan.contracts import CHECKS, need
from fedq.plan.optable import Op

Kernel = Callable[..., Any]


@cache
def kernel(op: Op) -> Kernel:
    """What runs an op; checks its contract where that needs the tensors."""
    if op.name in SYM:
        return SYM[op.name]
    if op.name in GUARDED:
        return GUARDED[op.name]
    call = _plain(op)
    conditions = [words for words in op.contract if words[0] in CHECKS]
    dense = tuple(name for words in op.contract if words[0] == "contiguous" for name in words[1:])
    return _checked(op, call, conditions, dense) if conditions or dense else call


def method(op: Op) -> str | None:
    """The name of the tensor's method that is the op's kernel, if one is."""
    return op.fast[1:] if op.fast.startswith(".") and kernel(op) is _plain(op) else None


def exact(op: Op) -> Kernel:
    """The op itself, by its overload: takes arguments by the names of its schema."""
    _, base, *overload = op.name.split(".")
    found = getattr(getattr(torch.ops.aten, base), overload[0] if overload else "default")
    return found._op  # type: ignore[no-any-return]


def _plain(op: Op) -> Kernel:
    if not op.fast:
        return exact(op)
    start: Any = torch.Tensor if op.fast.startswith(".") else torch
    return operator.attrgetter(op.fast.removeprefix(".").removeprefix("torch."))(start)  # type: ignore[no-any-return]


def _checked(op: Op, call: Kernel, conditions: Sequence[tuple[str, ...]], dense: tuple[str, ...]) -> Kernel:
    names = [p.name for p in op.params if not p.keyword]
    defaults = {p.name: _default(p.default) for p in op.params if p.default is not None}
    checks = [(CHECKS[words[0]], words[1:]) for words in conditions]

    def run(*args: Any, **kwargs: Any) -> Any:
        given = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        for check, words in checks:
            check(given, *words)
        if dense:
            args = tuple(_dense(a) if n in dense else a for n, a in zip(names, args, strict=False))
            kwargs = {n: _dense(a) if n in dense else a for n, a in kwargs.items()}
        return call(*args, **kwargs)

    return run


def _dense(value: Any) -> Any:
    return value.contiguous() if isinstance(value, torch.Tensor) else value


def _default(text: str) -> Any:
    """A default as the table writes it; None where no check needs it."""
    return {"True": True, "False": False}.get(text, int(text) if text.lstrip("-").isdecimal() else None)


# -- ops that crash on values -------------------------------------------------------------------

_SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8)


def _dividing(overload: Kernel) -> Kernel:
    """Division that truncates integers: the least one by -1 kills the process, so negate instead."""

    def div(self: Any, other: Any, *, rounding_mode: str | None) -> Any:
        if rounding_mode != "trunc" or torch.result_type(self, other) not in _SIGNED:
            return overload(self, other, rounding_mode=rounding_mode)
        if not isinstance(other, torch.Tensor):
            return (
                -overload(self, 1, rounding_mode="trunc")
                if other == -1
                else overload(self, other, rounding_mode="trunc")
            )
        negate = other == -1
        quotient = overload(self, other.masked_fill(negate, 1), rounding_mode="trunc")
        return torch.where(negate, -quotient, quotient)

    return div


# -- ops that a worker's determinism refuses ----------------------------------------------------


def _put(self: Any, index: Any, source: Any, accumulate: bool = False) -> Any:
    """torch.put; where places stand twice, the last source stays."""
    need(index.dtype == torch.int64 and index.numel() == source.numel(), "index and source differ")
    flat = self.flatten().index_put((index.flatten(),), source.flatten(), accumulate)
    return flat.reshape(self.shape)


def _unpooling(dims: int) -> Kernel:
    """torch.max_unpool2d and 3d; where places stand twice, the last value stays."""

    def unpool(self: Any, indices: Any, output_size: Sequence[int], *_: Any, **__: Any) -> Any:
        need(self.shape == indices.shape and self.dim() in (dims + 1, dims + 2), "self and indices differ")
        need(len(output_size) == dims and indices.dtype == torch.int64, "output_size, or indices not i64")
        need(self.numel() > 0 or 0 not in self.shape[self.dim() - dims - 1 :], "self has no elements")
        shape = (*self.shape[:-dims], *output_size)
        flat = self.new_zeros(shape).flatten(-dims)
        return flat.scatter(-1, indices.flatten(-dims), self.flatten(-dims)).reshape(shape)

    return unpool


GUARDED: Mapping[str, Kernel] = {
    **{
        f"aten.{base}.{kind}_mode": _dividing(getattr(getattr(torch.ops.aten, base), f"{kind}_mode")._op)
        for base in ("div", "divide")
        for kind in ("Tensor", "Scalar")
    },
    "aten.put": _put,
    "aten.max_unpool2d": _unpooling(2),
    "aten.max_unpool3d": _unpooling(3),
}


# -- arithmetic on sizes ------------------------------------------------------------------------

_BOUND = 1 << 63


def _bounded(call: Callable[..., Any]) -> Kernel:
    """Python's arithmetic, within 64 bits: a plan can not make numbers that fill memory."""

    def run(*args: Any) -> Any:
        value = call(*args)
        if isinstance(value, int) and not -_BOUND <= value < _BOUND:
            raise OverflowError
        if isinstance(value, complex):
            raise ArithmeticError
        return value

    return run


def _pow(a: float, b: float) -> Any:
    if isinstance(a, int) and isinstance(b, int) and abs(a) > 1 and b > 63:
        raise OverflowError
    return a**b


def _round(a: float) -> int:
    return round(a)


_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": operator.floordiv,
    "mod": operator.mod, "pow": _pow, "truediv": operator.truediv, "min": min, "max": max,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt,
    "ge": operator.ge, "neg": operator.neg, "abs": operator.abs, "float": float, "int": int,
    "floor": math.floor, "ceil": math.ceil, "round": _round, "sqrt": math.sqrt, "not": operator.not_,
}  # fmt: skip

SYM: Mapping[str, Kernel] = {
    "sym.size": lambda self, dim: self.shape[dim],
    "sym.numel": torch.Tensor.numel,
    **{f"sym.{name}": _bounded(call) for name, call in _ARITHMETIC.items()},
}
