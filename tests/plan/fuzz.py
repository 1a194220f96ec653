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
from pathlib import Path

import torch

from fedq.plan.kernels import kernel
from tests.plan import programs
from tests.plan.draw import Draw, allowed, aten, concrete

TIMEOUT_S = 5
MORE_BYTES = 1 << 30
"""What a child may take beyond what it has: larger tensors fail at once."""
PAUSE = 2000
"""Calls of one child: memory maps of fences are few."""


def call(op, seed, *, bent):
    """One call: drawn by the op's schema, or a real call of it bent; True if the op took it."""
    draw = Draw(seed, wild=0.06, fenced=True)
    real = programs.calls().get(op.name) if bent else None
    args, kwargs = draw.bend(op, *draw.random.choice(real)) if real else draw.call(op)
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


def fuzz(ops, *, calls, seed):
    """The deaths: (op, seed, drawn or bent, signal); and how many calls were taken by their op."""
    shared, deaths, took, start = mmap.mmap(-1, 16), [], 0, 0
    work = [
        (op, zlib.crc32(f"{op.name} {seed} {bent}".encode()) << 20 | i, bent)
        for op in ops
        for bent in ((False, True) if op.name in programs.calls() else (False,))
        for i in range(calls)
    ]
    while start < len(work):
        status = survive(work[start:], shared)
        reached, done = struct.unpack_from("QQ", shared, 0)
        took += done
        if status:
            op, at, bent = work[start + reached]
            how = signal.Signals(status).name if status < 64 else f"exit {status >> 8}"
            deaths.append((op.name, at, "bent" if bent else "drawn", how))
        start += reached + 1
    return deaths, took


def survive(work, shared):
    """Do it in a child, which notes where it is; the child's status, 0 if it came to the end or paused."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            most = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE + MORE_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            took = 0
            for i, (op, seed, bent) in enumerate(work[:PAUSE]):
                struct.pack_into("QQ", shared, 0, i, took)
                took += call(op, seed, bent=bent)
            struct.pack_into("QQ", shared, 0, i, took)
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
    deaths, took = fuzz(ops, calls=given.calls, seed=given.seed)
    print(f"{len(ops)} ops, {took} calls taken, {len(deaths)} deaths")
    for death in deaths:
        print(*death)
    sys.exit(bool(deaths))


if __name__ == "__main__":
    main()
