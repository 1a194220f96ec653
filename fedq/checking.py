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
    from fedq.plan.file import PlanFile
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
    worker = ProcessWorker(threads=torch.get_num_threads(), deadline_s=DEADLINE_S)
    try:
        got = replayed(worker, plan.file(), given, seed=seed)
    finally:
        worker.close()
    want = flatten(plan.eager(args, kwargs, seed=seed))
    for i, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        if (wrong := _difference(ours, theirs)) is not None:
            raise CannotRecord(
                f"plan {plan.name!r} gives another value than its function: result {i}: {wrong}",
                hint="leave out what asks whether it is recorded or what torch's kinds of tensors have of their own; "
                "else this is a defect of fedq, please report it with the printed plan",
            )


def replayed(worker: ProcessWorker, plan: PlanFile, inputs: Sequence[Any], *, seed: int) -> list[Any]:
    """What a worker gives for these inputs, flat.

    Args:
        inputs: tensors and numbers, as the graph takes them.

    Raises:
        CannotRecord: it failed; names the line.
        WorkerDied: it ended.
    """
    import torch

    from fedq.plan.tensors import from_raw, to_raw

    tensors = list(plan.state.values())
    args, give = list[Any](), list[Any]()
    for i, value in enumerate(inputs):
        if isinstance(value, torch.Tensor):
            give.append([f"x{i}", len(tensors)])
            tensors.append(to_raw(value))
        args.append(f"x{i}" if isinstance(value, torch.Tensor) else {"n": value})
    results = [f"r{i}" for i in range(len(plan.graph.output_vars))]
    head = {
        "forget": [key for key, _ in give],
        "plans": [[plan.id, graph_to_json(plan.graph), list(range(len(plan.state))), list(plan.about.params)]],
        "give": give,
        "calls": [[plan.id, args, results, seed, None]],
    }
    said = _answer(worker, head, tensors)
    if isinstance(said, Died):
        raise WorkerDied(f"the worker that was to check the plan ended: {said.why}")
    (row,) = said.rows
    if row[0] != "ok":
        action = row[3].get("action", -1)
        line = plan.about.line(action) if action >= 0 else ""
        raise CannotRecord(f"a worker failed on the example: {row[2]}{f': {line}' if line else ''}", line=line)
    return [r["n"] if isinstance(r, dict) else from_raw(said.tensors[r]) for r in row[1]]


def _answer(worker: ProcessWorker, head: Any, tensors: Sequence[Any]) -> Answer | Died:
    worker.start(head, tensors)
    while (said := worker.poll()) is None:
        select.select([worker], [], [], 1.0)
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
