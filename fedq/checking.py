"""Replay a plan in a worker that was just started, on the caller's own example, and compare with eager.

What ``build(..., check=True)`` and ``fedq build --check`` do. The example goes to a child process of
this user and nowhere else.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedq import ids
from fedq.device.pool import Answer, Died, ProcessWorker
from fedq.errors import CannotRecord, WorkerDied
from fedq.plan import params
from fedq.plan.graph import flatten, graph_to_json

if TYPE_CHECKING:
    from fedq.plan.plan import Plan

DEADLINE_S = 600.0


def check(plan: Plan, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Demand of a fresh worker what eager gives: the same dtypes and shapes, values within torch's tolerance.

    Args:
        args, kwargs: as the plan's function takes them; random ops are seeded alike on both sides.

    Raises:
        CannotRecord: it gives something else, or fails.
        WorkerDied: the worker ended.
    """
    import torch

    seed = ids.derive_seed(0, 0)
    given = params.bind(plan.graph, args, kwargs, about=plan.about)
    got = _replayed(plan, given, seed, torch.get_num_threads())
    want = flatten(plan.eager(args, kwargs, seed=seed))
    for i, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        if (wrong := _difference(ours, theirs)) is not None:
            raise CannotRecord(
                f"plan {plan.name!r} gives another value than its function: result {i}: {wrong}",
                hint="a defect of fedq: please report it with the printed plan",
            )


def _replayed(plan: Plan, given: Sequence[Any], seed: int, threads: int) -> list[Any]:
    """What a worker gives for these inputs."""
    import torch

    from fedq.plan.tensors import from_raw, to_raw

    state, inputs = plan.state_tensors(), [t for t in given if isinstance(t, torch.Tensor)]
    numbers = iter(range(len(state), len(state) + len(inputs)))
    give = [[f"x{i}", next(numbers)] for i, value in enumerate(given) if isinstance(value, torch.Tensor)]
    args = [f"x{i}" if isinstance(value, torch.Tensor) else {"n": value} for i, value in enumerate(given)]
    results = [f"r{i}" for i in range(len(plan.graph.output_vars))]
    head = {
        "plans": [["p", graph_to_json(plan.graph), list(range(len(state))), list(plan.about.params)]],
        "give": give,
        "forget": [],
        "calls": [["p", args, results, seed, None]],
    }
    answer = _asked(head, [to_raw(t) for t in (*state, *inputs)], threads)
    (row,) = answer.rows
    if row[0] != "ok":
        action = row[3].get("action", -1)
        line = plan.about.line(action) if action >= 0 else ""
        raise CannotRecord(f"a worker failed on the example: {row[2]}{f': {line}' if line else ''}", line=line)
    return [r["n"] if isinstance(r, dict) else from_raw(answer.tensors[r]) for r in row[1]]


def _asked(head: Any, tensors: Sequence[Any], threads: int) -> Answer:
    worker = ProcessWorker(threads=threads, deadline_s=DEADLINE_S)
    try:
        worker.start(head, tensors)
        while (said := worker.poll()) is None:
            select.select([worker], [], [], 1.0)
    finally:
        worker.close()
    if isinstance(said, Died):
        raise WorkerDied(f"the worker that was to check the plan ended: {said.why}")
    return said


def _difference(ours: Any, theirs: Any) -> str | None:
    """What differs, in one line without values."""
    import torch

    if not isinstance(theirs, torch.Tensor):
        return None if ours == theirs or ours != ours else "another number"
    theirs = theirs.detach()
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return f"{ours.dtype} {tuple(ours.shape)}, not {theirs.dtype} {tuple(theirs.shape)}"
    close: Callable[..., None] = torch.testing.assert_close
    try:
        close(ours, theirs.resolve_conj().resolve_neg(), equal_nan=True)
    except AssertionError:
        return "values differ"
    return None
