"""Judge the op table for the torch that is installed, and write it: ``make ops``.

    python -m tools.judge_ops                  # fedq/plan/ops.py
    python -m tools.judge_ops --table FILE     # another table, such as a copy
    python -m tools.judge_ops --calls 3000     # more calls of each op

Lists the overloads that are new in this torch, gone, or changed since the table was judged. New and changed
ones are fuzzed as ``make fuzz`` does, and so is each op, with a tenth of the calls, if the version is another:
the same schema may have other code. Fast forms are compared with their ops. If no call ended its process, each
op that is new or changed took a call, and each fast form is its op, the table is written for this version (exit
code 0); else it stays as it is (exit code 1), and what is to be done is said.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedq.plan import kernels, ops, optable
from tests.plan import fuzz, test_kernels
from tools import make_ops

CALLS = 300
SEED = 0
EACH = 10
"""Of an op that is as it was, under another version, this part of the calls."""

Rows = dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between a table and what this torch gives by the choices of tools/make_ops.py.

    Attributes:
        was, is_: the versions.
        new, gone, changed: names of ops; changed are those of another schema, or another row.
    """

    was: str
    is_: str
    new: tuple[str, ...]
    gone: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def judged(self) -> tuple[str, ...]:
        """Ops that were never judged as they are now."""
        return (*self.new, *self.changed)

    def lines(self) -> Iterator[str]:
        yield f"judged for torch {self.was}; torch {self.is_} is installed"
        for what in ("new", "gone", "changed"):
            names = getattr(self, what)
            yield f"{len(names)} {what}{':' if names else ''}"
            yield from (f"  {name}" for name in names)


def compare(table: Path, rows: Rows) -> Changes:
    """The table of a file against the rows that this torch gives."""
    old = runpy.run_path(str(table))
    was, schemas, now = old["OPS"], old["SCHEMAS"], make_ops.marks()
    same = [name for name in rows if name in was]
    changed = [name for name in same if was[name] != rows[name] or schemas.get(name) != now[name]]
    new = [name for name in rows if name not in was]
    gone = [name for name in was if name not in rows]
    return Changes(old["TORCH"], make_ops.version(), tuple(new), tuple(gone), tuple(changed))


def put(rows: Rows) -> None:
    """Have this process use these rows: what is fuzzed is what would be written."""
    ops.OPS.clear()
    ops.OPS.update(rows)  # type: ignore[arg-type]
    optable.find.cache_clear()
    kernels.kernel.cache_clear()


def faults(names: Sequence[str], *, calls: int, every: bool) -> Iterator[str]:
    """What speaks against these ops, in words; ``every``: each of them must take a call."""
    if not names or not calls:
        return
    some = [op for name in names if (op := optable.find(name))]
    found = fuzz.fuzz(some, calls=calls, seed=SEED)
    print(f"{len(some)} ops fuzzed, {calls} calls each and as many bent ones, {sum(found.took.values())} were taken")
    for name, seed, how, signal in found.deaths:
        yield f"{name}: a call ended the process with {signal} ({how}, seed {seed}): give it a contract, or deny it"
    for name in found.never if every else ():
        yield f"{name}: it took no call, so it is not shown to survive any: add one to tests/plan/programs.py"
    yield from _forms(some, found.never)


def _forms(some: Collection[optable.Op], never: Collection[str]) -> Iterator[str]:
    for op in some:
        if op.fast and op.name not in never and (why := test_kernels.wrong(op)):
            yield f"{op.name}: {op.fast} is not exactly it: add it to SLOW in tools/make_ops.py ({why})"


def judge(table: Path, *, calls: int) -> int:
    """Report, fuzz, write; the exit code."""
    rows = make_ops.table()
    changes = compare(table, rows)
    print("\n".join(changes.lines()), flush=True)
    text = make_ops.source(rows)
    if table.read_text() == text:
        print("the table is what this torch gives")
        return 0
    put(rows)
    rest = [name for name in rows if name not in changes.judged] if changes.was != changes.is_ else []
    wrong = [*faults(changes.judged, calls=calls, every=True), *faults(rest, calls=calls // EACH, every=False)]
    for line in wrong:
        print(line)
    if wrong:
        print(f"{table} stays as it is: {len(wrong)} to see to")
        return 1
    table.write_text(text)
    print(f"{table}: written, judged for torch {changes.is_}")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge the op table for the installed torch.")
    parser.add_argument("--table", type=Path, default=make_ops.TABLE)
    parser.add_argument("--calls", type=int, default=CALLS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.exit(judge(given.table, calls=given.calls))


if __name__ == "__main__":
    main()
