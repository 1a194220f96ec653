"""Real worker processes for tests: one that all tests of a process share, and ones that were just started."""

from __future__ import annotations

import atexit
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from fedq.checking import replayed as replay_in
from fedq.device.pool import ProcessWorker
from fedq.plan import params
from fedq.plan.codec import decode
from fedq.plan.file import PlanFile, decode_plan, encode_plan
from fedq.plan.graph import unflatten
from fedq.plan.verify import verify
from fedq.trust.keys import Key

KEY = Key.from_seed(bytes(32))


@cache
def shared() -> ProcessWorker:
    """The worker of this process; ends with it."""
    worker = ProcessWorker(threads=torch.get_num_threads())
    atexit.register(worker.close)
    return worker


@contextmanager
def fresh():
    """A worker that never did anything."""
    worker = ProcessWorker(threads=torch.get_num_threads())
    try:
        yield worker
    finally:
        worker.close()


def replayed(plan: PlanFile, /, *args: Any, seed: int = 0, worker: ProcessWorker | None = None, **kwargs: Any) -> Any:
    """What a plan gives in a worker, through all that a file goes through on its way: in its structure."""
    file = decode_plan(decode(b"".join(encode_plan(plan, KEY))))
    verify(file.graph)
    inputs = params.bind(file.graph, args, kwargs, about=file.about)
    made = replay_in(worker or shared(), file, inputs, seed=seed)
    return unflatten(file.graph.outputs, iter(made))
