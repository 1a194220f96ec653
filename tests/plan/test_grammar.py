"""A plan is never wrong: random functions replay as eager, or are refused when built or called.

FEDQ_FUZZ=10000 pytest tests/plan/test_grammar.py        FEDQ_SEED=7 repeats a run
"""

from __future__ import annotations

import linecache
import os
import random
import traceback
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fedq.errors import CannotRecord, SpecMismatch
from fedq.plan import prove, replay
from fedq.plan.bodies import nested
from fedq.plan.graph import Type, flatten, unflatten
from fedq.plan.spec import choose, match, output_types
from fedq.plan.tensors import DTYPES, type_of
from fedq.plan.trace import trace
from fedq.plan.verify import verify
from tests.plan.grammar import written

CASES = int(os.environ.get("FEDQ_FUZZ", "64"))
SEED = int(os.environ.get("FEDQ_SEED", "0")) or (random.SystemRandom().randrange(1 << 40) if CASES > 1000 else 1)
SHARDS = 8
SIZES = (0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 12, 17)
BUILT = ((-1,), (-1,), (-1, -1), (-1, 2), (3,), (1,), (2, 3), (-1, 1), (), (5, -1))
OVERLAP = "refer to a single memory location"
OTHERS = ("f32", "f32", "f64", "i64", "i32", "f16", "bf16")


def text_of(seed):
    return "".join(linecache.getlines(f"/grammar/{seed}.py"))


class Wrong(Exception):
    pass


def asked(r, tensors, number):
    """Types to build on."""
    first = r.choice(BUILT)
    shapes = [first, first if r.random() < 0.6 else r.choice(BUILT)][:tensors]
    dtype = "f32" if r.random() < 0.85 else r.choice(OTHERS)
    return [*(Type(dtype, s) for s in shapes), *([Type("int", None, r.choice((3, 1, 0, 5)))] if number else [])]


def drawn(r, types):
    """Inputs of other sizes, dtypes and values."""
    size = {-1: r.choice(SIZES)}
    dtype = r.choice(OTHERS)
    made = []
    for t in types:
        if t.shape is None:
            made.append(r.choice((t.value, 2, 0, -1, 7)))
            continue
        one = r.random() < 0.2
        shape = [d if d >= 0 and r.random() < 0.6 else (r.choice(SIZES) if one else size[-1]) for d in t.shape]
        kind = dtype if r.random() < 0.9 else r.choice(OTHERS)
        made.append(values(r, shape, DTYPES[kind]))
    return made


def values(r, shape, dtype):
    g = torch.Generator().manual_seed(r.getrandbits(40))
    kind = r.randrange(4)
    if kind == 0:
        return torch.zeros(shape).to(dtype)
    if kind == 1 or not dtype.is_floating_point:
        return torch.randint(-4, 5, shape, generator=g).to(dtype)
    return torch.randn(shape, generator=g).to(dtype)


class Apart(TorchFunctionMode):
    """Control flow gives values of its own, as torch says it does: with its compiler set aside, it does not."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if not isinstance(func, torch._ops.HigherOrderOperator):
            return func(*args, **(kwargs or {}))
        args = [self.again(a) if callable(a) and not isinstance(a, torch.Tensor) else a for a in args]
        return pytree.tree_map_only(torch.Tensor, torch.clone, func(*args))

    def again(self, function):
        def called(*args):
            with self:
                return function(*args)

        return called


def eager(function, inputs):
    given = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    with torch.compiler.set_stance("force_eager"), torch.no_grad(), Apart():
        out = function(*given)
    if not all(same(a, b) for a, b in zip(given, inputs, strict=True)):
        raise Wrong("was built, though the function writes to its arguments")
    return out


def lines_of(graph, about, given):
    """Those of the variant that is run."""
    counts = [sum(len(g.actions) for g in (part, *(b for _, b in nested(part)))) for part in (graph, *graph.variants)]
    chosen = choose(graph, given)[0]
    return about.lines[sum(counts[:chosen]) : sum(counts[: chosen + 1])]


def _line_of(error):
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith("/grammar/")]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def same(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        return isinstance(ours, torch.Tensor) and ours.dtype == theirs.dtype and torch.equal(*_comparable(ours, theirs))
    return type(ours) is type(theirs) and (ours == theirs or ours != ours)


def _comparable(a, b):
    if a.shape != b.shape or not a.is_floating_point():
        return a, b
    return a.nan_to_num(nan=12345), b.nan_to_num(nan=12345)


def check(seed, outcomes):
    """One function: built, or refused; then called with other inputs.

    Raises:
        Wrong: the plan gave something else than eager.
    """
    r = random.Random(seed)
    example = None

    def inputs(tensors, number):
        nonlocal example
        example = asked(r, tensors, number)
        return [
            values(r, [5 if d == -1 else d for d in t.shape], DTYPES[t.dtype]) if t.shape is not None else t.value
            for t in example
        ]

    _, function, _ = written(seed, inputs)
    try:
        graph, about, constants = trace(lambda held, *args: function(*args), example)
    except CannotRecord as refused:
        outcomes["refused when built"] += 1
        if not str(refused):
            raise Wrong("no reason") from refused
        return
    outcomes["built"] += 1
    compiled = replay.compile(verify(graph))
    for _ in range(8):
        call(graph, about, constants, compiled, function, drawn(r, example), outcomes)


def call(graph, about, constants, compiled, function, inputs, outcomes):
    given = [type_of(x) for x in inputs]
    try:
        match(graph, given, about=about)
    except SpecMismatch:
        outcomes["refused when called"] += 1
        return
    kept = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    try:
        theirs = eager(function, inputs)
    except Wrong:
        raise
    except Exception as error:
        theirs = error
    try:
        flat = replay.run(compiled, inputs, constants, seed=0)
    except replay.ActionFailed as error:
        if not isinstance(theirs, Exception):
            raise Wrong(f"fails where eager does not: {error.__cause__!r}, for {given}") from error
        outcomes["fails as eager does"] += 1
        return
    ours = unflatten(graph.outputs, iter(flat))
    if isinstance(theirs, Exception) and _line_of(theirs) not in lines_of(graph, about, given):
        outcomes["eager fails on what nothing needs"] += 1
        return
    if OVERLAP in str(theirs):  # a plan has no memory that could overlap: it reads first, then writes
        outcomes["eager will not write over what it reads"] += 1
        return
    if isinstance(theirs, Exception):
        raise Wrong(f"gives {ours} where eager fails: {theirs!r}, for {given}")
    pairs = list(zip(flatten(ours), flatten(theirs), strict=True))
    if not all(same(a, b) for a, b in pairs):
        raise Wrong(f"gives\n{ours}\nwhere eager gives\n{theirs}\nfor {inputs}")
    promised = output_types(graph, given)
    for type_, (a, _) in zip(promised, pairs, strict=True):
        if isinstance(a, torch.Tensor) and type_ != type_of(a):
            raise Wrong(f"promised {type_}, gives {type_of(a)} for {given}")
    if not all(same(a, b) for a, b in zip(inputs, kept, strict=True)):
        raise Wrong("wrote to its inputs")
    outcomes["equal to eager"] += 1


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_random_function_replays_as_eager_or_is_refused(shard, monkeypatch):
    if CASES < 1000:  # most of the time goes into the dtypes; make fuzz tries all of them
        monkeypatch.setattr(prove, "DTYPES", ("f32", "f64", "i64"))
    outcomes, wrong = Counter(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(shard, CASES, SHARDS):
            seed = SEED * 1_000_000 + i
            try:
                check(seed, outcomes)
            except Exception as error:
                wrong.append(seed)
                if len(wrong) <= 5:
                    print(f"seed {seed}: {type(error).__name__}: {str(error)[:600]}\n{text_of(seed)}")
    print(f"seed {SEED}, part {shard}:", dict(outcomes))
    assert not wrong, f"{len(wrong)} of {CASES // SHARDS}: {wrong[:20]}"
    if CASES >= 1000:
        assert outcomes["equal to eager"] > CASES // SHARDS // 4
