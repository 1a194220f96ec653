"""PyTorch's own samples of every op, recorded, run by a worker process, and compared with eager.

    python -m tests.plan.samples                  # all ops: what does not hold, and where docs/samples.md differs
    python -m tests.plan.samples --every 20       # a fixed twentieth
    python -m tests.plan.samples --write          # all ops, and writes docs/samples.md
    python -m tests.plan.samples diag bincount    # these

Up to three samples an op, on CPU, of f32 or, where an op has none, of the first dtype it has. Their
tensors (in lists, too) are inputs of a recorded function, all else stands in it. A plan goes through
its file: signed, read back, verified; then to a worker process, whose results must be eager's, to the
bit where eager repeats its own bits.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import random
import re
import sys
import textwrap
import time
import warnings
from pathlib import Path
from select import select

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

import fedq as fq
from fedq.device.pool import Died, ProcessWorker
from fedq.errors import BadFile, FedqError, NotAllowed
from fedq.plan import codec
from fedq.plan.blame import Unrecordable
from fedq.plan.file import decode_plan, encode_plan
from fedq.plan.graph import flatten, graph_to_json
from fedq.plan.tensors import NAMES, from_raw, to_raw
from fedq.plan.verify import verify
from fedq.trust.keys import Key, signer_of

PAGE = Path(__file__).parents[2] / "docs/samples.md"
SAMPLES = 3
SEED = 11
TWENTIETH = 20
TIMEOUT_S = 60
LAST_BITS = "it differs in its last bits"
UNDEFINED = ("empty", "new_empty")
"""Ops whose content nobody defines start so: only what type they give is compared."""

HOLDS, REFUSED, EAGER = "holds", "refused", "eager fails"
FAULTS = ("wrong", "built, then failed", "built, then refused", "build broke", "torch's text", "no line", "no cure")
"""What must not be, the worst first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one sample: one of the kinds above, and of a refusal its words and cure."""

    kind: str
    words: str = ""
    cure: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What came of an op: of its worst sample, and of how many samples that came."""

    name: str
    kind: str
    words: str
    cure: str
    count: int
    samples: int


# -- torch's samples --------------------------------------------------------------------------------


def ops():
    """Name -> torch's description of the op, in the order of names; those without samples for a CPU are left out."""
    from torch.testing._internal import common_methods_invocations as theirs

    theirs.wrapper_set_seed = _unseeded
    named = {f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name: op for op in theirs.op_db}
    return {name: op for name, op in sorted(named.items()) if _dtypes(op)}


def _unseeded(op, *args, **kwargs):
    """Torch's tests seed inside of ops that draw: here a run has a seed."""
    return op(*args, **kwargs)


def samples(op):
    """The first of its samples, as (tensors, function of as many tensors)."""
    _seeded(0)
    made = []
    for sample in op.sample_inputs("cpu", _dtype(op), requires_grad=False):
        leaves, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
        made.append(_recordable(op, leaves, spec))
        if len(made) == SAMPLES:
            break
    return made


def _dtype(op):
    return torch.float32 if torch.float32 in (known := _dtypes(op)) else known[0]


def _dtypes(op):
    return sorted((d for d in op.supported_dtypes("cpu") if d in NAMES), key=list(NAMES).index)


def _recordable(op, leaves, spec):
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def function(*tensors):
        given = list(leaves)
        for i, tensor in zip(places, tensors, strict=True):
            given[i] = tensor
        first, args, kwargs = tree_unflatten(given, spec)
        return op(first, *args, **kwargs)

    return [_plain(leaves[i]) for i in places], function


def _plain(tensor):
    """As it lies on a device: row-major, nothing lazy."""
    if tensor.layout != torch.strided:
        return tensor
    return tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def _seeded(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed(seed)


# -- one sample -------------------------------------------------------------------------------------


class Pool:
    """One worker process at a time; another one where it died."""

    def __init__(self):
        self.worker, self.number, self.key = None, 0, Key.from_seed(bytes(32))

    def call(self, plan, tensors):
        """What a worker gives for a plan that came by file: ("ok", values) or (kind, words)."""
        data = b"".join(map(bytes, encode_plan(plan.file(), self.key)))
        try:
            signer_of("plan", data)
            file = decode_plan(codec.decode(data))
            verify(file.graph)
        except (BadFile, NotAllowed) as error:
            return "built, then refused", str(error)
        self.worker = self.worker or ProcessWorker(threads=1, deadline_s=TIMEOUT_S)
        self.number += 1
        raws = [*file.state.values(), *map(to_raw, tensors)]
        states, ids = len(file.state), [f"{self.number}.{i}" for i in range(len(tensors))]
        head = {
            "plans": [[str(self.number), graph_to_json(file.graph), list(range(states)), list(file.about.params)]],
            "give": [[id_, states + i] for i, id_ in enumerate(ids)],
            "calls": [[str(self.number), ids, [f"{self.number}.r{i}" for i, _ in enumerate(file.graph.output_vars)],
                       SEED, None]],
            "forget": [f"{self.number - 1}.{r}{i}" for r in ("", "r") for i in range(99)],
        }  # fmt: skip
        self.worker.start(head, raws)
        return self.answer()

    def answer(self):
        while (found := self.worker.poll()) is None:
            select([self.worker], [], [], 0.2)
        if isinstance(found, Died):
            self.worker = None
            return "built, then failed", found.why
        (row,) = found.rows
        if row[0] != "ok":
            return "built, then refused" if row[1] in ("not_allowed", "spec_mismatch") else "built, then failed", row[2]
        return "ok", [r["n"] if isinstance(r, dict) else from_raw(found.tensors[r]) for r in row[1]]

    def close(self):
        if self.worker:
            self.worker.close()


def outcome(name, tensors, function, pool):
    """What comes of one sample."""
    try:
        expected = _eager(function, tensors)
    except Exception as error:
        return Outcome(EAGER, f"{type(error).__name__}")
    try:
        plan = fq.func2plan()(function).build(*(t.clone() for t in tensors))
    except Exception as error:
        return refusal(error)
    kind, found = pool.call(plan, tensors)
    if kind != "ok":
        return Outcome(kind, found)
    differs = _difference(name, expected, found)
    if differs == LAST_BITS and _varies(function, tensors, expected):
        differs = ""
    return Outcome("wrong", differs) if differs else Outcome(HOLDS)


def _eager(function, tensors, offset=0):
    tensors = [_elsewhere(t, offset) for t in tensors]  # it may write to them
    torch.manual_seed(SEED)
    with torch.no_grad():
        given = function(*tensors)
    return [_resolved(leaf) for leaf in flatten(_trees(given)) if leaf is not None]


def _trees(value):
    """Named tuples of torch as tuples."""
    return tuple(map(_trees, value)) if isinstance(value, tuple) else value


def _resolved(leaf):
    return leaf.resolve_conj().resolve_neg() if isinstance(leaf, torch.Tensor) else leaf


def refusal(error):
    """How a build was refused; a fault where it names no line or cure, or says what torch said."""
    words = re.sub(r":? ?\(?samples\.py:\d+\)?", "", str(error).partition("\n")[0])
    if not isinstance(error, FedqError):
        return Outcome("build broke", f"{type(error).__name__}: {words}")
    if _leaks(error):
        return Outcome("torch's text", words, error.hint or "")
    if not re.search(r"samples\.py:\d+", str(error)):
        return Outcome("no line", words, error.hint or "")
    return Outcome(REFUSED if error.hint else "no cure", words, error.hint or "")


def _leaks(error):
    """Whether it repeats what torch said."""
    cause = error.__cause__ or error.__context__
    while cause is not None and not isinstance(cause, (FedqError, Unrecordable)):
        said = str(cause).partition("\n")[0].strip()
        named = re.fullmatch(r"\w+(\.\w+)+", said)  # an op's name is no text of torch's
        if len(said) > 12 and not named and said[:60] in str(error):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _varies(function, tensors, expected):
    """Whether eager has other last bits where its tensors lie elsewhere: LAPACK's do."""
    runs = (_eager(function, tensors, offset) for offset in range(1, 9))
    return any(_difference("", expected, run) == LAST_BITS for run in runs)


def _elsewhere(tensor, offset):
    """A copy that starts some elements after where memory is aligned."""
    if tensor.layout != torch.strided:
        return tensor.clone()
    return torch.cat([tensor.new_zeros(offset), tensor.flatten()])[offset:].view(tensor.shape)


def _difference(name, expected, found):
    """What differs between eager's values and a plan's; empty if nothing does."""
    if len(expected) != len(found):
        return f"{len(found)} results, not {len(expected)}"
    worst = ""
    for i, (a, c) in enumerate(zip(expected, found, strict=True)):
        if _kind(a) != _kind(c):
            return f"result {i} is {_kind(c)}, not {_kind(a)}"
        if name.startswith(UNDEFINED):
            continue
        if isinstance(a, torch.Tensor):
            if _far(a, c):
                return f"result {i} differs"
            worst = worst or (_bits(a) != _bits(c) and LAST_BITS)
        elif a != c and a == a:
            return f"result {i} is another number"
    return worst or ""


def _kind(value):
    return (value.dtype, tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__


def _bits(tensor):
    """Its bytes; any NaN is every NaN, and -0 is 0."""
    if tensor.is_floating_point() or tensor.is_complex():
        tensor = torch.nan_to_num(tensor, nan=12345.678) if tensor.dtype.itemsize > 1 else tensor.float()
        tensor = tensor + 0
    return bytes(to_raw(tensor).data)


def _far(a, c):
    try:
        torch.testing.assert_close(c, a, equal_nan=True)
    except AssertionError:
        return True
    return False


# -- all ops ----------------------------------------------------------------------------------------


def row(name, op, pool):
    """What comes of all samples of an op."""
    try:
        made = samples(op)
    except Exception as error:
        return Row(name, EAGER, f"its samples fail: {type(error).__name__}", "", 0, 0)
    found = [outcome(name, tensors, function, pool) for tensors, function in made]
    ranks = (*FAULTS, REFUSED, HOLDS, EAGER)
    worst = min(found, key=lambda o: ranks.index(o.kind), default=Outcome(EAGER, "it has no samples"))
    return Row(name, worst.kind, worst.words, worst.cure, sum(o.kind == worst.kind for o in found), len(found))


def rows(names, *, tell=lambda row: None):
    """One Row for each name."""
    known, pool, made, threads = ops(), Pool(), [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in names:
                made.append(row(name, known[name], pool))
                tell(made[-1])
    finally:
        torch.set_num_threads(threads)
        pool.close()
    return made


def told(names):
    return rows(names, tell=lambda row: row.kind != HOLDS and print(describe(row), flush=True))


def spread(names, lanes):
    """The same as `told`, by so many processes."""
    if lanes == 1:
        return told(names)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(lanes, mp_context=context) as executor:
        parts = list(executor.map(told, (names[i : i + 20] for i in range(0, len(names), 20))))
    return sorted((row for part in parts for row in part), key=lambda row: row.name)


def describe(row):
    return f"{row.name}: {row.kind} ({row.count} of {row.samples}): {row.words} | {row.cure}"


def counts(made):
    found = collections.Counter(row.kind for row in made)
    return {kind: found[kind] for kind in (HOLDS, REFUSED, *FAULTS, EAGER)}


# -- the page ---------------------------------------------------------------------------------------


HEAD = """\
# PyTorch's own samples

`make samples` takes up to three samples of every op in PyTorch's test suite (`op_db`, on CPU, torch {torch}), makes
their tensors the inputs of a recorded function, sends the plan to a worker process and compares with eager: equal
to the bit where eager repeats its own bits. `python -m tests.plan.samples --write` writes this page; `make test` runs
a twentieth of the ops and compares.

| ops | |
|---|---|
{counts}

## Refused

When built, at the user's line, with these words and this cure. An op that is refused for some of its samples only
says for how many.

| op | words | cure |
|---|---|---|
{refused}

## Hold

{holds}

## Fail in eager

{eager}
"""


def page(made):
    """docs/samples.md."""
    listed = {kind: [r for r in made if r.kind == kind] for kind in (HOLDS, EAGER)}
    others = [r for r in made if r.kind not in listed]
    figures = counts(made)
    return HEAD.format(
        torch=torch.__version__.partition("+")[0],
        counts="\n".join(f"| {kind} | {n} |" for kind, n in figures.items()),
        refused="\n".join(map(_table_row, others)),
        holds=_list(r.name for r in listed[HOLDS]),
        eager=_list(r.name for r in listed[EAGER]),
    )


def _list(names):
    return textwrap.fill(", ".join(names), 110, break_long_words=False, break_on_hyphens=False)


def _table_row(row):
    some = f" ({row.count} of {row.samples})" if row.count < row.samples else ""
    kind = "" if row.kind == REFUSED else f"{row.kind}: "
    cells = (f"{row.name}{some}", kind + row.words, row.cure)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def on_the_page():
    """What the page says: names that hold, and the line of each that is refused."""
    text = PAGE.read_text("utf-8")
    held = text.partition("## Hold\n")[2].partition("##")[0].replace("\n", " ")
    table = text.partition("## Refused\n")[2].partition("##")[0]
    refused = {line[2:].split(" | ")[0].split(" (")[0]: line for line in table.splitlines() if line.startswith("| ")}
    refused.pop("op")  # the table's head
    return set(held.replace(" ", "").split(",")), refused


def drift(made):
    """Where rows are not what the page says."""
    held, refused = on_the_page()
    return [
        describe(r)
        for r in made
        if (r.kind == HOLDS) != (r.name in held) or (r.kind == REFUSED and refused.get(r.name) != _table_row(r))
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each Nth op only")
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--write", action="store_true", help="write docs/samples.md")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    parser.add_argument("ops", nargs="*")
    given = parser.parse_args()
    start = time.monotonic()
    names = [n for n in ops() if not given.ops or n in given.ops or n.partition(".")[0] in given.ops]
    made = spread(names[:: given.every], given.lanes if len(names[:: given.every]) > 40 else 1)
    if given.json:
        given.json.write_text(json.dumps([dataclasses.asdict(r) for r in made], indent=0))
    print(f"{len(made)} ops, {sum(r.samples for r in made)} samples, {time.monotonic() - start:.0f} s:")
    print(*(f"  {kind}: {n}" for kind, n in counts(made).items()), sep="\n")
    if given.write:
        PAGE.write_text(page(made), "utf-8")
    drifted = drift(made)
    print(*(f"not what {PAGE.name} says: {line}" for line in drifted), sep="\n")
    sys.exit(bool(drifted) or any(r.kind in FAULTS for r in made))


if __name__ == "__main__":
    main()
