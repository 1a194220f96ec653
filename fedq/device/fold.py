"""A fold on its way from the gate to a worker: what is data, what is told, what reaches what. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedq.errors import NotFinite, SpecMismatch
from fedq.plan import fold, ranges, spec
from fedq.plan.fold import Batches, Loop
from fedq.plan.graph import About, Graph, Type


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


def check(graph: Graph, loop: Loop | None, given: Sequence[Type], values: Sequence[Any], *, about: About) -> None:
    """What a worker looks at before it replays; ``values``: of numbers, None of what is not known.

    Raises:
        SpecMismatch: the plan does not take arguments of these types.
    """
    if loop is None:
        spec.match(graph, given, about=about)
    ranges.check(about, values)
    if loop is not None:
        fold.fit(graph, loop, given, about=about)
    if about.above_zero:
        places = ", ".join(spec.place(about, i) for i in about.above_zero if values[i] is None)
        raise SpecMismatch(f"{places}: a number above 0 expected", hint=ranges.HINT)


def not_finite(outputs: Sequence[int], names: Sequence[str], step: int, steps: int, loop: Loop) -> NotFinite:
    """Why a fold stopped: which outputs of this step were not finite; none of them: it was the carry."""
    odd = [names[i] for i in outputs] or ["the carry"]
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    what = f"{', '.join(odd[:3])}{more}"
    there = "the carry is there as it was before this step; " if loop.nonfinite == "stop" and loop.carry else ""
    hint = f"{there}try a smaller learning rate, or look at the data; nonfinite='keep' goes on"
    facts = {"step": step, "steps": steps, "names": what[:300], "kind": "not_finite", "outputs": list(outputs)}
    return NotFinite(f"{what} {'is' if len(odd) == 1 else 'are'} not finite", hint=hint, **facts)
