"""The op table: what each op of a graph takes, gives, and must be given to be safe.

Knows no torch: the rows in `plan.ops` were made from its schemas by tools/make_ops.py. An op that
is not in the table is not allowed; `why_not` says why. Kinds of arguments are ``Tensor``, ``int``,
``float``, ``bool``, ``Scalar`` (any number), ``str``, ``dtype``, ``format``, ``none`` (what a plan
leaves out: devices, layouts, generators); ``[]`` marks lists, ``?`` what may be None.

A contract is a list of conditions beyond kinds, each a text of words:
    ``reduction in 0 1 2``           a literal, one of these
    ``padding from 0 to 4096``       every integer within these bounds
    ``contiguous self``              tensors made so before the call
and the others, on the tensors themselves, as `plan.contracts` explains them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from fedq.errors import OtherTorch
from fedq.plan.ops import DENIED, OPS
from fedq.plan.ops import TORCH as TORCH

_SPLIT = re.compile(r", (?![^\[]*\])")

SYM = {
    "sym.size": ("Tensor self, int dim", "Scalar"),
    "sym.numel": ("Tensor self", "Scalar"),
    **{f"sym.{name}": ("real a, real b", "Scalar") for name in (
        "add", "sub", "mul", "floordiv", "mod", "pow", "truediv", "min", "max", "eq", "ne", "lt", "le", "gt", "ge",
    )},
    **{f"sym.{name}": ("real a", "Scalar") for name in (
        "neg", "abs", "float", "int", "floor", "ceil", "round", "sqrt", "not",
    )},
}  # fmt: skip
"""Arithmetic on sizes and Python numbers; ``real`` is an int, float or bool."""


@dataclass(frozen=True, slots=True)
class Param:
    """One argument of an op.

    Attributes:
        name: as torch calls it.
        kind: ``Tensor``, ``int[]?`` and so on.
        default: as torch prints it; None if it must be given.
        keyword: whether it can only be given by name.
    """

    name: str
    kind: str
    default: str | None = None
    keyword: bool = False


@dataclass(frozen=True, slots=True)
class Op:
    """An allowed op.

    Attributes:
        name: ``aten.add.Tensor``; the default overload has no third part.
        params: its arguments, those only given by name last.
        returns: ``Tensor``, ``Tensor[]`` or ``Scalar`` for each result.
        contract: conditions beyond kinds, each as words.
        numbers: whether a number may stand for a tensor.
        random: whether it draws from the generator.
        data_size: whether a size of its result may depend on the values it is given.
        fast: the fastest callable that runs exactly this op: ``.add`` a tensor's method,
            ``torch.arange`` a function; ``""`` for the op itself.
    """

    name: str
    params: tuple[Param, ...]
    returns: tuple[str, ...]
    contract: tuple[tuple[str, ...], ...] = ()
    numbers: bool = False
    random: bool = False
    data_size: bool = False
    fast: str = ""


def check_torch(version: str) -> None:
    """OtherTorch unless this is the torch that the table was judged for; local parts (``+cpu``) do not count."""
    if version.partition("+")[0] != TORCH:
        raise OtherTorch(
            f"torch {version[:60]} is installed, but the ops of plans were judged for torch {TORCH} only: "
            "'make ops' judges them for another"
        )


def names() -> tuple[str, ...]:
    """Every allowed op."""
    return (*OPS, *SYM)


@cache
def find(name: str) -> Op | None:
    """The op of this name, if it is allowed."""
    if name in SYM:
        params, returns = SYM[name]
        return Op(name, tuple(_params(params)), (returns,))
    if name not in OPS:
        return None
    params, returns, contract, flags, fast = OPS[name]
    return Op(
        name,
        tuple(_params(params)),
        tuple(returns.split(", ")),
        tuple(tuple(c.split()) for c in contract.split("; ") if c),
        numbers="numbers" in flags,
        random="random" in flags,
        data_size="data_size" in flags,
        fast=fast,
    )


def why_not(name: str) -> str:
    """Why an op that is not in the table is not allowed."""
    parts = name.split(".")
    if parts[0] not in ("aten", "sym", "ctl") or len(parts) < 2:
        return "a plan holds ops of aten, sym and ctl only"
    if parts[0] == "ctl":
        return "no such control flow"
    if parts[0] == "sym":
        return "no such arithmetic on sizes"
    if name in DENIED:
        return DENIED[name]
    base, overload = parts[1], parts[2] if len(parts) > 2 else ""
    stem = base.rstrip("_") if not base.startswith("__") else base
    reason = next((why for word, why in DENIED.items() if stem == word or stem.startswith(f"{word}_")), None)
    if reason:
        return reason
    if base != stem or base.startswith("__i"):
        return "it writes to its argument; ops of a plan make new values"
    if overload == "out" or overload.endswith("_out"):
        return "it writes to a given result; ops of a plan make new values"
    return "it is not among the ops that were checked"


def _params(text: str) -> Iterator[Param]:
    keyword = False
    for part in _SPLIT.split(text) if text else []:
        if part == "*":
            keyword = True
            continue
        kind, _, rest = part.partition(" ")
        name, given, default = rest.partition("=")
        yield Param(name, kind, default if given else None, keyword)
