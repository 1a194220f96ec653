"""The loop of a fold, in a worker: batches of the data, the compiled step, metrics stacked. Needs torch.

Data is mapped from the store's files and never copied whole: a batch in order is a view, a
shuffled one gathers its rows. A worker so holds nothing of the data that the system could not
take back; pages of large data that were passed, it gives back by itself.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from fedq.errors import SpecMismatch
from fedq.plan import replay
from fedq.plan.codec import RawTensor
from fedq.plan.fold import Batches, Fitted, Loop, order
from fedq.plan.tensors import DTYPES, from_raw, type_of

BLOCK = 256
"""Batches cut at a time; metrics are stacked, and pages let go of, between blocks."""
LARGE_BYTES = 64 << 20
"""Mapped data beyond this is let go of when it was passed; a block reads about so much."""
FAULT_BYTES = 64 << 10
"""What reading one row may map around it."""
_AS_INTS = {
    torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8,
    torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64,
}  # fmt: skip
"""Dtypes whose rows torch does not gather or stack; as integers it does."""


class Page(Protocol):
    """What a worker tells while it works: the number of its call, the step and the steps of its fold."""

    def __getitem__(self, at: int, /) -> int: ...
    def __setitem__(self, at: int, value: int, /) -> None: ...


def mapped(raw: RawTensor) -> torch.Tensor:
    """A tensor on the bytes as they are, not copied: nothing may write to it.

    Raises:
        BadFile: a bool is neither 0 nor 1.
    """
    if file_of(raw) is None or raw.dtype == "bool" or not raw.size_bytes:
        return from_raw(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it can not be written to is what is wanted
        return torch.frombuffer(raw.data, dtype=DTYPES[raw.dtype]).reshape(raw.shape)


def file_of(raw: RawTensor) -> mmap.mmap | None:
    """The mapping a tensor's bytes lie in."""
    found = memoryview(raw.data).obj
    return found if isinstance(found, mmap.mmap) else None


def fold(
    compiled: replay.Compiled,
    state: Sequence[torch.Tensor],
    inputs: Sequence[Any],
    loop: Loop,
    fitted: Fitted,
    *,
    seed: int,
    fork_rng: bool,
    page: Page,
    files: Sequence[mmap.mmap] = (),
) -> list[torch.Tensor]:
    """All steps; the last carry, then each metric with one row per step.

    Args:
        inputs: carry, whole data, other arguments; they were found to fit.
        files: what the data is mapped from.

    Raises:
        ActionFailed: an action raised; ``page`` says in which step.
        SpecMismatch: a result is not what the plan said it would be.
    """
    k, end = loop.carry, loop.carry + loop.data
    data, args = inputs[k:end], (*inputs[end:], *state)
    page[1], page[2] = 0, fitted.steps
    metrics: list[list[torch.Tensor]] = [[] for _ in fitted.outputs[k:]]

    def steps(*carry: Any) -> tuple[Any, ...]:
        fn, step = compiled.fn, 0
        for block in _blocks(data, loop.batches, seed, files):
            rows = []
            for batch in block:
                page[1] = step = step + 1
                made = fn(*carry, *batch, *args)
                carry = made[:k]
                rows.append(made[k:])
            for kept, column in zip(metrics, zip(*rows, strict=True), strict=True):
                kept.append(_stack(column))
        return carry

    carry = replay.run(compiled, inputs[:k], (), seed=seed, fork_rng=fork_rng, over=steps)
    made = [*carry, *(_joined(kept) for kept in metrics)]
    for i, (result, foreseen) in enumerate(zip(made, fitted.outputs, strict=True)):
        if type_of(result) != foreseen:
            raise SpecMismatch(f"output {i} became {type_of(result)}, not {foreseen} as the plan says")
    return made


def _blocks(
    data: Sequence[torch.Tensor], batches: Batches, seed: int, files: Sequence[mmap.mmap]
) -> Iterator[Iterator[Sequence[torch.Tensor]]]:
    """The batches of all epochs, some at a time; large data is let go of after each block."""
    large = sum(map(len, files)) > LARGE_BYTES
    end = batches.steps(len(data[0])) * batches.size
    span = batches.size * (_batches_at_once(data, batches) if large else BLOCK)
    for epoch in range(batches.epochs):
        rows = torch.from_numpy(order(len(data[0]), seed, epoch))[:end] if batches.shuffle else None
        for at in range(0, min(end, len(data[0])), span):
            till = min(at + span, end)
            if rows is None:
                yield zip(*(torch.split(x[at:till], batches.size) for x in data), strict=True)
            else:
                yield _gathered(data, torch.split(rows[at:till], batches.size))
            for file in files if large and hasattr(mmap, "MADV_DONTNEED") else ():
                file.madvise(mmap.MADV_DONTNEED)


def _batches_at_once(data: Sequence[torch.Tensor], batches: Batches) -> int:
    """As many as read about ``LARGE_BYTES``."""
    least = FAULT_BYTES if batches.shuffle else 1
    row = sum(max(x[0].numel() * x.element_size(), least) for x in data)
    return max(1, min(BLOCK, LARGE_BYTES // (row * batches.size)))


def _gathered(data: Sequence[torch.Tensor], orders: Sequence[torch.Tensor]) -> Iterator[Sequence[torch.Tensor]]:
    dtypes = [x.dtype for x in data]
    whole = [x.view(_AS_INTS.get(x.dtype, x.dtype)) for x in data]
    if dtypes == [x.dtype for x in whole]:
        return ([x.index_select(0, rows) for x in whole] for rows in orders)
    return ([x.index_select(0, rows).view(d) for x, d in zip(whole, dtypes, strict=True)] for rows in orders)


def _stack(column: Sequence[Any]) -> torch.Tensor:
    """A metric of some steps: one row per step."""
    first = column[0]
    if not isinstance(first, torch.Tensor):
        dtype = {bool: torch.bool, int: torch.int64, float: torch.float64}[type(first)]
        return torch.tensor(column, dtype=dtype)
    if {(x.dtype, x.shape) for x in column} != {(first.dtype, first.shape)}:
        raise SpecMismatch("a metric has not the same shape in every step: it can not be stacked")
    ints = _AS_INTS.get(first.dtype, first.dtype)
    return torch.stack([x.view(ints) for x in column] if ints != first.dtype else list(column)).view(first.dtype)


def _joined(kept: Sequence[torch.Tensor]) -> torch.Tensor:
    if len(kept) == 1:
        return kept[0]
    ints = _AS_INTS.get(kept[0].dtype, kept[0].dtype)
    return torch.cat([x.view(ints) for x in kept]).view(kept[0].dtype)
