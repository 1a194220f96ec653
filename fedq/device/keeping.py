"""What a fold keeps of its metrics: a row per step, or what is made of those on the way. Needs torch.

Sums are made one step after the other in 64 bits, so they do not depend on how many steps are
looked at together, nor on threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from fedq.errors import SpecMismatch
from fedq.plan.fold import Batches, Loop
from fedq.plan.graph import Type
from fedq.plan.tensors import DTYPES

AS_INTS = {
    torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8,
    torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64,
}  # fmt: skip
"""Dtypes whose rows torch does not gather or stack; as integers it does."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many rows each step takes."""

    batches: Batches
    rows: int

    def of(self, first: int, end: int) -> list[int]:
        """Of the steps from ``first`` on, counted from 0 over all epochs, to before ``end``."""
        size, steps = self.batches.size, self.batches.steps(self.rows)
        return [min(size, self.rows - n % steps * size) for n in range(first, end)]


class Kept(Protocol):
    """What is kept of one metric."""

    def add(self, rows: torch.Tensor, sizes: Sequence[int]) -> None:
        """Some more steps: a row of the metric for each, and how many rows of data it took."""

    def made(self) -> torch.Tensor:
        """The result, once all steps were added."""


def keeps(type_: Type, loop: Loop, rows: int) -> Kept:
    """What the loop asks for of a metric; ``type_`` is that of the result."""
    dtype = DTYPES[type_.dtype]
    match loop.metrics:
        case "steps":
            return Rows()
        case "last":
            return Last()
        case "sum":
            return Total(dtype)
        case "mean":
            return Total(dtype, weighted=True)
    return Epochs(lambda: Total(dtype, weighted=True), loop.batches.steps(rows))


@dataclass(slots=True)
class Rows:
    """Each step's."""

    parts: list[torch.Tensor] = field(default_factory=list)

    def add(self, rows: torch.Tensor, sizes: Sequence[int]) -> None:
        self.parts.append(rows)

    def made(self) -> torch.Tensor:
        return _as_ints(torch.cat, self.parts) if len(self.parts) > 1 else self.parts[0]


@dataclass(slots=True)
class Last:
    """The last step's."""

    row: torch.Tensor | None = None

    def add(self, rows: torch.Tensor, sizes: Sequence[int]) -> None:
        self.row = rows[-1].clone()

    def made(self) -> torch.Tensor:
        assert self.row is not None
        return self.row


@dataclass(slots=True)
class Total:
    """The sum over all steps; weighted, the mean over all rows of data."""

    dtype: torch.dtype
    weighted: bool = False
    sum: torch.Tensor | None = None
    rows: int = 0

    def add(self, rows: torch.Tensor, sizes: Sequence[int]) -> None:
        rows = rows.to(_WIDE.get(self.dtype, torch.float64))
        if self.weighted:
            rows = rows * torch.tensor(sizes, dtype=torch.float64).reshape(-1, *[1] * (rows.dim() - 1))
        before = [] if self.sum is None else [self.sum[None]]
        self.sum = torch.cat([*before, rows]).cumsum(0)[-1].clone()
        self.rows += sum(sizes)

    def made(self) -> torch.Tensor:
        assert self.sum is not None
        return (self.sum / self.rows if self.weighted else self.sum).to(self.dtype)


_WIDE = {torch.int64: torch.int64, torch.complex64: torch.complex128}


@dataclass(slots=True)
class Epochs:
    """Of each epoch, what ``one`` makes of its steps: one row per epoch."""

    one: Callable[[], Total]
    steps: int
    totals: list[Total] = field(default_factory=list)
    at: int = 0

    def add(self, rows: torch.Tensor, sizes: Sequence[int]) -> None:
        """No block of steps is of two epochs."""
        if self.at == 0:
            self.totals.append(self.one())
        self.totals[-1].add(rows, sizes)
        self.at = (self.at + len(sizes)) % self.steps

    def made(self) -> torch.Tensor:
        return torch.stack([total.made() for total in self.totals])


def stack(column: Sequence[Any]) -> torch.Tensor:
    """A metric of some steps: one row per step."""
    first = column[0]
    if not isinstance(first, torch.Tensor):
        dtype = {bool: torch.bool, int: torch.int64, float: torch.float64}[type(first)]
        return torch.tensor(column, dtype=dtype)
    if {(x.dtype, x.shape) for x in column} != {(first.dtype, first.shape)}:
        raise SpecMismatch("a metric has not the same shape in every step: it cannot be stacked")
    return _as_ints(torch.stack, column)


def _as_ints(join: Callable[[list[torch.Tensor]], torch.Tensor], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    dtype = parts[0].dtype
    ints = AS_INTS.get(dtype, dtype)
    return join([x.view(ints) for x in parts] if ints != dtype else list(parts)).view(dtype)
