"""The loop of a fold, in a worker: batches of the data, the compiled step, what is kept of metrics. Needs torch.

Data is mapped from the store's files and never copied whole: a batch in order is a view, a
shuffled one gathers its rows. A worker so holds nothing of the data that the system could not
take back; pages of large data that were passed, it gives back by itself.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from fedq.device import finite
from fedq.device.fold import not_finite
from fedq.device.keeping import AS_INTS, Kept, Sizes, keeps, stack
from fedq.errors import NotFinite, SpecMismatch
from fedq.plan import replay
from fedq.plan.codec import RawTensor
from fedq.plan.fold import Batches, Fitted, Loop, order
from fedq.plan.tensors import DTYPES, from_raw, type_of

BLOCK = 256
"""Batches cut at a time; metrics are kept, and pages let go of, between blocks."""
LOOKED = 64
"""Batches after which carry and metrics are looked at, whether they are finite: looking costs some ops."""
LARGE_BYTES = 64 << 20
"""Mapped data beyond this is let go of when it was passed; a block reads about so much."""
FAULT_BYTES = 64 << 10
"""What reading one row may map around it."""


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


@dataclass(slots=True)
class Fold:
    """One fold: what is called, on what, and what came of it so far.

    Attributes:
        compiled, args: the step, and what is the same in every step: other arguments, then state.
        data: whole.
        fitted: what was foreseen: rows, steps, types of results.
        page: tells the gate which step this is.
        names: of the outputs, for messages.
        stopped: why it stopped before its end.
    """

    compiled: replay.Compiled
    args: Sequence[Any]
    data: Sequence[torch.Tensor]
    loop: Loop
    fitted: Fitted
    page: Page
    names: Sequence[str]
    stopped: NotFinite | None = None

    def steps(self, carry: tuple[Any, ...], blocks: Iterable[Block], kept: Sequence[Kept]) -> tuple[Any, ...]:
        """All steps, or those before the first that is not finite; the last carry."""
        fn, args, page, k, step = self.compiled.fn, self.args, self.page, self.loop.carry, 0
        looks, sizes = self.loop.nonfinite != "keep", Sizes(self.loop.batches, self.fitted.rows)
        for block in blocks:
            before, draws, first, rows = carry, self.draws() if looks else None, step, []
            for batch in block():
                page[1] = step = step + 1
                made = fn(*carry, *batch, *args)
                carry = made[:k]
                rows.append(made[k:])
            columns = [stack(column) for column in zip(*rows, strict=True)]
            if looks and not finite.all_of([*carry, *columns]):
                return self.stop(before, block, first, draws)
            for one, column in zip(kept, columns, strict=True):
                one.add(column, sizes.of(first, step))
        return carry

    def draws(self) -> torch.Tensor | None:
        """The state of the generator, if the plan draws from it."""
        return torch.get_rng_state() if self.compiled.random else None

    def stop(self, carry: tuple[Any, ...], block: Block, step: int, draws: torch.Tensor | None) -> tuple[Any, ...]:
        """Go through a block again, now step by step, to the one that is not finite; the carry it was given."""
        if draws is not None:
            torch.set_rng_state(draws)
        for batch in block():
            self.page[1] = step = step + 1
            made = self.compiled.fn(*carry, *batch, *self.args)
            odd = [i for i, x in enumerate(made) if not finite.is_finite(x)]
            if odd:
                break
            carry = made[: self.loop.carry]
        self.stopped = not_finite(odd, self.names, step, self.fitted.steps, self.loop)
        return carry


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
    names: Sequence[str] = (),
) -> list[torch.Tensor | NotFinite]:
    """All steps; the last carry, then of each metric what the loop says.

    Args:
        inputs: carry, whole data, other arguments; they were found to fit.
        files: what the data is mapped from.
        names: of the outputs, for messages.

    Returns:
        the results. If a step was not finite, and the loop says ``stop``: the carry that it was given, and
        the reason in place of each metric.

    Raises:
        ActionFailed: an action raised; ``page`` says in which step.
        SpecMismatch: a result is not what the plan said it would be.
        NotFinite: a step was not finite, and the loop says ``error``, or there is no metric to say so.
    """
    k, end = loop.carry, loop.carry + loop.data
    data = inputs[k:end]
    names = names or [f"output {i}" for i in range(len(fitted.outputs))]
    run = Fold(compiled, (*inputs[end:], *state), data, loop, fitted, page, names)
    kept = [keeps(t, loop, fitted.rows) for t in fitted.outputs[k:]]
    most = BLOCK if loop.nonfinite == "keep" else min(BLOCK, LOOKED)
    page[1], page[2] = 0, fitted.steps

    def steps(*carry: Any) -> tuple[Any, ...]:
        return run.steps(carry, _blocks(data, loop.batches, seed, files, most), kept)

    carry = replay.run(compiled, inputs[:k], (), seed=seed, fork_rng=fork_rng, over=steps)
    if run.stopped is not None:
        if loop.nonfinite == "error" or not kept:
            raise run.stopped
        return [*carry, *(run.stopped for _ in kept)]
    made = [*carry, *(one.made() for one in kept)]
    for name, result, foreseen in zip(names, made, fitted.outputs, strict=True):
        if type_of(result) != foreseen:
            raise SpecMismatch(f"{name} became {type_of(result)}, not {foreseen} as the plan says")
    return made


Block = Callable[[], Iterator[Sequence[torch.Tensor]]]
"""Some batches in a row; may be gone through again."""


def _blocks(
    data: Sequence[torch.Tensor], batches: Batches, seed: int, files: Sequence[mmap.mmap], most: int
) -> Iterator[Block]:
    """The batches of all epochs, some at a time; large data is let go of after each block."""
    large = sum(map(len, files)) > LARGE_BYTES
    end = batches.steps(len(data[0])) * batches.size
    span = batches.size * (min(most, _batches_at_once(data, batches)) if large else most)
    for epoch in range(batches.epochs):
        rows = torch.from_numpy(order(len(data[0]), seed, epoch))[:end] if batches.shuffle else None
        for at in range(0, min(end, len(data[0])), span):
            yield partial(_batches, data, rows, at, min(at + span, end), batches.size)
            for file in files if large and hasattr(mmap, "MADV_DONTNEED") else ():
                file.madvise(mmap.MADV_DONTNEED)


def _batches(
    data: Sequence[torch.Tensor], rows: torch.Tensor | None, at: int, end: int, size: int
) -> Iterator[Sequence[torch.Tensor]]:
    if rows is None:
        return zip(*(torch.split(x[at:end], size) for x in data), strict=True)
    return _gathered(data, torch.split(rows[at:end], size))


def _batches_at_once(data: Sequence[torch.Tensor], batches: Batches) -> int:
    """As many as read about ``LARGE_BYTES``."""
    least = FAULT_BYTES if batches.shuffle else 1
    row = sum(max(x[0].numel() * x.element_size(), least) for x in data)
    return max(1, min(BLOCK, LARGE_BYTES // (row * batches.size)))


def _gathered(data: Sequence[torch.Tensor], orders: Sequence[torch.Tensor]) -> Iterator[Sequence[torch.Tensor]]:
    dtypes = [x.dtype for x in data]
    whole = [x.view(AS_INTS.get(x.dtype, x.dtype)) for x in data]
    if dtypes == [x.dtype for x in whole]:
        return ([x.index_select(0, rows) for x in whole] for rows in orders)
    return ([x.index_select(0, rows).view(d) for x, d in zip(whole, dtypes, strict=True)] for rows in orders)
