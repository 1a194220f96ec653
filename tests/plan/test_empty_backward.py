"""Backward ops on tensors without elements: an error or a result, and never the end of the process."""

from __future__ import annotations

import ast
import itertools
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import warnings

import pytest
import torch

from fedq.plan import optable
from fedq.plan.contracts import Broken
from fedq.plan.kernels import kernel
from tests.marks import MORE, more
from tests.plan import programs
from tests.plan.draw import Draw, allowed, aten, concrete

BACKWARD = [op for op in aten() if "backward" in op.name]
MOST_CALLS = 6 if MORE else 1
"""Real calls of each op that are emptied."""
SMALL = 40_000
"""Elements of what an op is given at most: the page that it reads beyond is as near as with larger ones."""


def emptied(tensor, dims):
    shape = [0 if d in {n % tensor.dim() for n in dims if -tensor.dim() <= n < tensor.dim()} else size
             for d, size in enumerate(tensor.shape)]  # fmt: skip
    return tensor.new_zeros(shape)


def sizes_like(arg, old, new):
    """A list of sizes of a tensor that was emptied."""
    return list(new.shape) if isinstance(arg, (list, tuple)) and list(arg) == list(old.shape) else arg


def calls_of(op, args, kwargs):
    """Each way to take all elements of some tensors along one or two dimensions."""
    tensors = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and a.dim()]
    deepest = max((args[i].dim() for i in tensors), default=0)
    ways = [(d,) for d in range(-deepest, deepest)] + list(itertools.combinations(range(-deepest, 0), 2))
    subsets = [s for n in range(1, len(tensors) + 1) for s in itertools.combinations(tensors, n)]
    if len(subsets) > 31:
        subsets = [s for s in subsets if len(s) in (1, len(tensors))]
    for dims, chosen in itertools.product(ways, subsets):
        made = list(args)
        for i in chosen:
            made[i] = emptied(args[i], dims)
        yield made, kwargs
        sized = [sizes_like(a, args[i], made[i]) for a in made for i in chosen[:1]]
        if len(sized) == len(made) and any(a is not b for a, b in zip(sized, made, strict=True)):
            yield sized, kwargs


def real_calls(op):
    known = [c for c in programs.calls().get(op.name, ()) if _is_small(c)][:MOST_CALLS]
    return known or [Draw(seed).call(op) for seed in range(3)]


def _is_small(call):
    return all(a.numel() <= SMALL for a in call[0] if isinstance(a, torch.Tensor))


def work():
    for op in BACKWARD:
        for args, kwargs in real_calls(op):
            yield from ((op, *call) for call in calls_of(op, list(args), kwargs))


def deaths():
    """What ended its process: op, shapes and signal; and how many calls were taken."""
    rows, shared, start, found, taken = list(work()), mmap.mmap(-1, 16), 0, [], 0
    while start < len(rows):
        child = os.fork()
        if child == 0:
            _go(rows[start:], shared)
        status = os.waitpid(child, 0)[1]
        reached, done = struct.unpack("QQ", shared[:])
        taken += done
        if status:
            op, args, _ = rows[start + reached]
            shapes = [tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in args]
            found.append((op.name, shapes, signal.Signals(status).name if status < 64 else status))
        start += reached + 1
    return found, taken, len(rows)


def _go(rows, shared):
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        warnings.simplefilter("ignore")
        taken = 0
        for i, (op, args, kwargs) in enumerate(rows):
            shared[:] = struct.pack("QQ", i, taken)
            signal.alarm(5)
            taken += _took(op, args, kwargs)
        shared[:] = struct.pack("QQ", i, taken)
        os._exit(0)
    finally:
        os._exit(1)


def _took(op, args, kwargs):
    if not allowed(op, args, kwargs):
        return False
    try:
        with torch.inference_mode():
            kernel(op)(*map(concrete, args), **{k: concrete(v) for k, v in kwargs.items()})
        return True
    except Exception:
        return False


@more
def test_no_backward_op_ends_the_process_on_empty_tensors():
    found, taken, count = apart()
    assert found == [] and taken > count / 20


def apart():
    """`deaths` in a process of its own: one in which torch ran threads is not forked."""
    words = [sys.executable, "-c", "import torch; torch.set_num_threads(1)\n"
             "from tests.plan.test_empty_backward import deaths; print(deaths())"]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=True)
    return ast.literal_eval(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("dims", [2, 3])
def test_an_empty_batch_goes_back_through_pooling_as_in_eager_and_an_empty_plane_is_refused(dims):
    op = optable.find(f"aten._adaptive_avg_pool{dims}d_backward")
    grad, x = torch.ones(0, 3, *[1] * dims), torch.ones(0, 3, *[4] * dims)
    assert kernel(op)(grad, x).shape == x.shape
    for d in range(dims):
        with pytest.raises(Broken, match="planes of self"):
            kernel(op)(torch.ones(1, 3, *[1] * dims), torch.ones(1, 3, *[4 * (n != d) for n in range(dims)]))


def main():
    torch.set_num_threads(1)
    found, taken, count = deaths()
    print(f"{len(BACKWARD)} ops, {count} calls, {taken} taken, {len(found)} deaths")
    for death in found:
        print(*death)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
