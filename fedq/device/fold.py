"""A fold on its way from the gate to a worker: what is data, what is told, what reaches what. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedq.plan import fold
from fedq.plan.fold import Batches, Loop


def data(loop: Loop | None) -> range:
    """The numbers of the arguments that are read by slices; of a run, none."""
    return range(loop.carry, loop.carry + loop.data) if loop else range(0)


def to_json(loop: Loop | None) -> list[Any] | None:
    """As it stands in a frame."""
    if loop is None:
        return None
    b = loop.batches
    return [loop.carry, loop.data, b.size, b.epochs, b.shuffle, b.drop_last, loop.metrics, loop.nonfinite]


def from_json(row: Sequence[Any]) -> Loop:
    carry, count, size, epochs, shuffle, drop_last, *words = row
    return Loop(carry, count, Batches(size, epochs, shuffle, drop_last), *words)


def reaches(once: Sequence[frozenset[int]], loop: Loop | None) -> Sequence[frozenset[int]]:
    """Per result, the arguments that flow into it: of a run as verified, of a fold over all its steps."""
    return once if loop is None else fold.reaches(once, loop)
