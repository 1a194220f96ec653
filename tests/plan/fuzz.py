"""Call every allowed op with hostile arguments, in processes that may die.

    python -m tests.plan.fuzz --calls 300 --seed 7 [op ...]

Calls run in forked children; what it was given lies against pages that may not be touched, so
that reading beyond it is fatal. A death is printed with the seed that repeats it.
"""

import argparse
import mmap
import os
import resource
import signal
import struct
import sys
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch

from fedq.plan.kernels import kernel
from tests.plan import programs
from tests.plan.draw import Draw, allowed, aten, concrete

TIMEOUT_S = 5
MORE_BYTES = 1 << 30
"""What a child may take beyond what it has: larger tensors fail at once."""
ENOUGH = 20
"""With so many calls of each op, every op takes one."""
PAUSE = 2000
"""Calls of one child: memory maps of fences are few."""


def call(op, seed, *, bent):
    """One call: drawn by the op's schema, or a real call of it bent; True if the op took it."""
    draw = Draw(seed, wild=0.06, fenced=True)
    real = programs.calls().get(op.name) if bent else None
    args, kwargs = draw.bend(op, *draw.random.choice(real)) if real else draw.call(op)
    return take(op, args, kwargs)


def take(op, args, kwargs):
    """Call it; True if the op took it."""
    if not allowed(op, args, kwargs):
        return False
    args, kwargs = [concrete(a) for a in args], {k: concrete(v) for k, v in kwargs.items()}
    signal.alarm(TIMEOUT_S)
    try:
        with torch.inference_mode():
            kernel(op)(*args, **kwargs)
        return True
    except Exception:
        return False
    finally:
        signal.alarm(0)


@dataclass
class Found:
    """What came of a fuzz.

    Attributes:
        deaths: (op, seed, drawn or bent, signal).
        took: how many calls each op took; one that took none was not shown to survive anything.
    """

    deaths: list[tuple[str, int, str, str]]
    took: dict[str, int]

    @property
    def never(self):
        """Ops that took no call, of those that have something to run on a CPU."""
        return [name for name, count in self.took.items() if not count and runs_here(name)]


def runs_here(name):
    """Whether torch has any code of an op for a CPU; without, it fails before it looks at its arguments."""
    _, base, *overload = name.split(".")
    try:
        return torch._C._dispatch_has_computed_kernel_for_dispatch_key(".".join([f"aten::{base}", *overload]), "CPU")
    except RuntimeError:  # of some overloads the dispatcher knows nothing, they are torch's own way to others
        return True


def fuzz(ops, *, calls, seed):
    """So many drawn calls of each op, and as many real ones bent, in children that may die."""
    places = {op.name: n for n, op in enumerate(ops)}
    shared, deaths, start = mmap.mmap(-1, 8 * (1 + len(ops))), [], 0
    work = [
        (op, zlib.crc32(f"{op.name} {seed} {bent}".encode()) << 20 | i, bent)
        for op in ops
        for bent in ((False, True) if op.name in programs.calls() else (False,))
        for i in range(calls)
    ]
    while start < len(work):
        status = survive(work[start : start + PAUSE], shared, places)
        (reached,) = struct.unpack_from("Q", shared)
        if status:
            op, at, bent = work[start + reached]
            how = signal.Signals(status).name if status < 64 else f"exit {status >> 8}"
            deaths.append((op.name, at, "bent" if bent else "drawn", how))
        start += reached + 1
    return Found(deaths, dict(zip(places, struct.unpack_from(f"{len(ops)}Q", shared, 8), strict=True)))


def survive(work, shared, places):
    """Do it in a child, which notes where it is and what was taken; the child's status, 0 if it came to the end."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            most = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE + MORE_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            taken = memoryview(shared).cast("Q")
            for i, (op, seed, bent) in enumerate(work):
                taken[0] = i
                if bent and not taken[1 + places[op.name]]:
                    taken[1 + places[op.name]] += sum(take(op, *real) for real in programs.calls()[op.name])
                taken[1 + places[op.name]] += call(op, seed, bent=bent)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("ops", nargs="*")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ops = [op for op in aten() if not given.ops or op.name in given.ops]
    found = fuzz(ops, calls=given.calls, seed=given.seed)
    print(f"{len(ops)} ops, {sum(found.took.values())} calls taken, {len(found.deaths)} deaths")
    for death in found.deaths:
        print(*death)
    print(f"{len(found.never)} ops took no call", *found.never)
    sys.exit(bool(found.deaths or (found.never and given.calls >= ENOUGH)))


if __name__ == "__main__":
    main()
