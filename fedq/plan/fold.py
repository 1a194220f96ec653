"""Folding a plan over mini-batches: what fits, how many steps, what reaches what. Knows no torch.

The plan holds one step. Its first inputs are the carry and its first outputs the next carry; then
come the batches, slices of the data along their first dimension, and then arguments that are the
same in every step. Outputs beyond the carry are metrics: a row per step, or what is made of those.
Format: docs/format.md, sections 4 and 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedq import ids
from fedq.errors import SpecMismatch, UsageError
from fedq.plan import spec
from fedq.plan.graph import About, Graph, Tree, Type, Var, flatten

if TYPE_CHECKING:
    import numpy as np

MAX_STEPS = 1 << 40
MAX_BATCH = 1 << 40
MAX_EPOCHS = 1 << 20
METRICS = ("steps", "last", "sum", "mean", "epochs")
"""What is given of the metrics: a row per step; the last step's; sums and means over all steps; a mean per epoch."""
NONFINITE = ("stop", "error", "keep")
"""What to do at the first step whose carry or metrics are not finite."""
_UNKNOWN = About()


@dataclass(frozen=True, slots=True)
class Batches:
    """How data is cut into mini-batches.

    Attributes:
        size: rows of each; the last of an epoch has what is left, unless ``drop_last``.
        epochs: how often all of the data is gone through.
        shuffle: in an order of its own each epoch, given by the seed.
    """

    size: int
    epochs: int = 1
    shuffle: bool = False
    drop_last: bool = False

    def of(self, rows: int) -> tuple[int, ...]:
        """The different sizes that occur, the full one first; empty if there is no batch at all."""
        rest = 0 if self.drop_last else rows % self.size
        return tuple(n for n in (self.size * (rows >= self.size), rest) if n)

    def steps(self, rows: int) -> int:
        """Steps of one epoch."""
        return rows // self.size if self.drop_last else -(-rows // self.size)

    def __str__(self) -> str:
        said = [f"batches of {self.size}", f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}"]
        return ", ".join(said + ["shuffled"] * self.shuffle + ["last one dropped"] * self.drop_last)


def batches(batch_size: int, epochs: int = 1, *, shuffle: bool = False, drop_last: bool = False) -> Batches:
    """Batches as a user asks for them; UsageError for what can not be."""
    for name, value, most in (("batch_size", batch_size, MAX_BATCH), ("epochs", epochs, MAX_EPOCHS)):
        if type(value) is not int or not 0 < value <= most:
            raise UsageError(f"{name} {value!r} is no count", hint=f"{name}: a whole number from 1 to {most}")
    for name, flag in (("shuffle", shuffle), ("drop_last", drop_last)):
        if type(flag) is not bool:
            raise UsageError(f"{name}={flag!r} says neither yes nor no", hint=f"{name}=True or {name}=False")
    return Batches(batch_size, epochs, shuffle, drop_last)


@dataclass(frozen=True, slots=True)
class Loop:
    """How many of a call's arguments are carry and how many are data, how the data is cut, and what is given.

    Attributes:
        metrics: one of `METRICS`. Means weigh each step by its rows.
        nonfinite: one of `NONFINITE`.
    """

    carry: int
    data: int
    batches: Batches
    metrics: str = "steps"
    nonfinite: str = "keep"


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fold will do: rows of the data, steps in all, and the types of its results."""

    rows: int
    steps: int
    outputs: tuple[Type, ...]


def fit(graph: Graph, loop: Loop, given: Sequence[Type], *, about: About = _UNKNOWN) -> Fitted:
    """Check a fold before its first step: every size of batch that will occur, and what is carried on.

    Args:
        given: types of the carry, the data (whole) and the other arguments, in this order.

    Raises:
        SpecMismatch: says which argument or output does not fit, and what would.
    """
    k, batches = loop.carry, loop.batches
    carry, data, rest = given[:k], given[k : k + loop.data], given[k + loop.data :]
    rows = _rows(data, k, about)
    sizes = batches.of(rows)
    if not sizes:
        raise _nothing(rows, batches)
    for i, type_ in enumerate(carry):
        if not type_.is_tensor:
            name = _place(about, i, f"carry {i}")
            raise SpecMismatch(f"{name}: a tensor expected, {type_} given", hint="carry torch.tensor(0), not 0")
    found = [_outputs(graph, loop, (*carry, *(cut(t, n) for t in data), *rest), n, rows, about) for n in sizes]
    _check_carry(graph, carry, found[0], about)
    names = output_names(graph, about, k)
    for n, outputs in zip(sizes, found, strict=True):
        _check_same(names, found[0], outputs, sizes[0], n)
    metrics = (kept(names[k + i], t, loop, rows) for i, t in enumerate(found[0][k:]))
    return Fitted(rows, batches.steps(rows) * batches.epochs, (*carry, *metrics))


def _place(about: About, i: int, otherwise: str) -> str:
    """What an argument is called: its path in a structure, else ``carry 1``, ``data 0``."""
    name = spec.place(about, i)
    return otherwise if name == f"input {i}" else name


def _nothing(rows: int, batches: Batches) -> SpecMismatch:
    if not rows:
        return SpecMismatch("nothing to fold over: the data has no rows", hint="leave this device out, or add data")
    why = f"no full batch of {batches.size} in {rows} row{'' if rows == 1 else 's'}"
    return SpecMismatch(f"nothing to fold over: {why}", hint="use a smaller batch_size, or drop_last=False")


def loop(
    graph: Graph, carry: int, data: int, batches: Batches, *, metrics: str = "steps", nonfinite: str = "stop"
) -> Loop:
    """A loop whose carry and data are so many of the plan's arguments, which may be structures of inputs.

    Raises:
        UsageError: ``metrics`` or ``nonfinite`` is no word that a fold knows.
    """
    trees = [p.tree for p in graph.params] or [Var(i) for i in range(len(graph.inputs))]
    check_words(metrics, nonfinite)
    return Loop(_inputs(trees[:carry]), _inputs(trees[carry : carry + data]), batches, metrics, nonfinite)


def check_words(metrics: str, nonfinite: str) -> None:
    """UsageError for what a fold cannot do with its metrics, or with values that are not finite."""
    for name, word, known in (("metrics", metrics, METRICS), ("nonfinite", nonfinite, NONFINITE)):
        if word not in known:
            raise UsageError(f"{name}={word!r} is unknown", hint=f"{name}: {', '.join(map(repr, known))}")


def _inputs(trees: Sequence[Tree]) -> int:
    return sum(isinstance(leaf, Var) for leaf in flatten(list(trees)))


def _rows(data: Sequence[Type], first: int, about: About) -> int:
    if not data:
        raise SpecMismatch("a fold needs data to go through", hint="data=[device.find(...)]")
    for i, type_ in enumerate(data):
        if not type_.shape:
            name = _place(about, first + i, f"data {i}")
            raise SpecMismatch(f"{name}: {type_} has no first dimension to be cut along")
    sizes = [t.shape[0] for t in data if t.shape]
    if len(set(sizes)) > 1:
        raise SpecMismatch(f"the data has {', '.join(map(str, sizes))} rows; all of it is cut together")
    rows = sizes[0]
    assert isinstance(rows, int)
    return rows


def cut(whole: Type, rows: int) -> Type:
    """The type of so many rows of a tensor."""
    assert whole.shape
    return Type(whole.dtype, (rows, *whole.shape[1:]))


def _outputs(graph: Graph, loop: Loop, given: tuple[Type, ...], n: int, rows: int, about: About) -> tuple[Type, ...]:
    size = loop.batches.size
    try:
        spec.match(graph, given, about=about)
        return spec.output_types(graph, given)
    except SpecMismatch as error:
        least = _least(graph, loop)
        if n == size < least <= rows and _is_of_batches(graph, loop, given, least):
            raise SpecMismatch(f"batches of {size}: {error}", hint=_larger(loop.batches, least)) from None
        if n == size or not _is_of_batches(graph, loop, given, size):
            raise
        fixed = isinstance(_first_size(graph, loop), int)
        if rows < size:
            what = f"the data has {rows} row{'' if rows == 1 else 's'}, fewer than a batch of {size}: {error}"
            raise SpecMismatch(what, hint=_FREE if fixed else "leave this device out, or add data") from None
        raise SpecMismatch(
            f"the last batch of {rows} rows would have {n}, not {size}: {error}",
            hint=f"leave it out (drop_last), or {_FREE if fixed else 'take a batch_size that leaves more rows over'}",
        ) from None


_FREE = "build the plan with a free batch size"


def _least(graph: Graph, loop: Loop) -> int:
    """How few rows the plan takes, as its first batch says."""
    first = _first_size(graph, loop)
    return graph.sizes.get(first, 0) if isinstance(first, str) else 0


def _larger(batches: Batches, least: int) -> str:
    rest = "" if batches.drop_last else "; drop_last leaves out a last batch of fewer"
    return f"take a batch_size of {least} or more{rest}"


def _is_of_batches(graph: Graph, loop: Loop, given: tuple[Type, ...], size: int) -> bool:
    """Whether a full batch would be taken: then it is the number of rows that does not fit."""
    k, end = loop.carry, loop.carry + loop.data
    try:
        spec.match(graph, (*given[:k], *(cut(t, size) for t in given[k:end]), *given[end:]))
    except SpecMismatch:
        return False
    return True


def _first_size(graph: Graph, loop: Loop) -> int | str | None:
    """How many rows the plan takes, as its first batch says: a letter or a number."""
    shape = graph.inputs[loop.carry].shape if loop.carry < len(graph.inputs) else None
    return shape[0] if shape else None


def _check_carry(graph: Graph, carry: Sequence[Type], outputs: Sequence[Type], about: About) -> None:
    if len(outputs) < len(carry):
        raise SpecMismatch(
            f"the plan gives {len(outputs)} values, fewer than the {len(carry)} carried",
            hint="return the new carry first, in the order of the inputs, then the metrics",
        )
    for i, (before, after) in enumerate(zip(carry, outputs, strict=False)):
        if (before.dtype, before.shape) != (after.dtype, after.shape):
            raise SpecMismatch(
                f"{_place(about, i, f'carry {i}')} is {before}, but the plan gives {after} as its next value",
                hint="return the new carry first, in the order of the inputs, with the same shapes and dtypes",
            )
    assert len(outputs) == len(graph.output_vars)


def _check_same(names: Sequence[str], first: Sequence[Type], other: Sequence[Type], size: int, n: int) -> None:
    for name, a, b in zip(names, first, other, strict=True):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            raise SpecMismatch(
                f"{name} is {a} for batches of {size} and {b} for the last one of {n}: it cannot be stacked",
                hint="return a mean or sum over the batch, or leave the last one out (drop_last)",
            )


_STACKED = {"int": "i64", "float": "f64", "bool": "bool"}


_WHOLE = ("bool", "i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8")


def kept(name: str, type_: Type, loop: Loop, rows: int) -> Type:
    """What is given of a metric: rows of it, or one; sums of integers are ``i64``, their means ``f64``."""
    dtype, shape, batches = _STACKED.get(type_.dtype, type_.dtype), type_.shape or (), loop.batches
    if loop.metrics in ("sum", "mean", "epochs"):
        if dtype.startswith("f8"):
            raise SpecMismatch(f"{name} is {type_}: it cannot be summed", hint="metrics='steps' or 'last'")
        if dtype in _WHOLE:
            dtype = "i64" if loop.metrics == "sum" else "f64"
    counts = {"steps": batches.steps(rows) * batches.epochs, "epochs": batches.epochs}
    return Type(dtype, (counts[loop.metrics], *shape) if loop.metrics in counts else shape)


def output_names(graph: Graph, about: About, carry: int) -> list[str]:
    """What the outputs are called, flat: of the carry its inputs' names, of metrics their place in the structure."""
    paths = list(_paths(graph.outputs, ""))
    return [_place(about, i, f"carry {i}") if i < carry else _metric(path, i) for i, path in enumerate(paths)]


def _metric(path: str, i: int) -> str:
    """``[1].loss`` is the loss: a step gives ``(carry, metrics)``."""
    name = path.partition(".")[2] if path.startswith("[") else path.lstrip(".")
    return f"metrics.{name}" if name else f"output {i}"


def _paths(tree: Tree, path: str) -> Iterator[str]:
    match tree:
        case Var():
            yield path
        case list() | tuple():
            for i, part in enumerate(tree):
                yield from _paths(part, f"{path}[{i}]")
        case dict():
            for key, part in tree.items():
                yield from _paths(part, f"{path}.{key}")


def reaches(once: Sequence[frozenset[int]], loop: Loop) -> tuple[frozenset[int], ...]:
    """Per output, the inputs that flow into it over all steps.

    A carried input holds, from the second step on, what flowed into that output; and how many
    steps there are tells of the data, so all data reaches all outputs.
    """
    data = frozenset(range(loop.carry, loop.carry + loop.data))
    closed = [reach | data for reach in once]
    while True:
        carried = closed[: loop.carry]
        wider = [r.union(*(carried[n] for n in r if n < len(carried))) for r in closed]
        if wider == closed:
            return tuple(closed)
        closed = wider


def order(rows: int, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The order of the rows in one epoch: i64[rows], the same wherever it is computed.

    Rows are sorted by splitmix64 of the epoch's seed at their number: a bijection of 64 bits, so
    no two are equal. Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    import numpy as np

    start = np.uint64(ids.derive_seed(seed, epoch))
    keys = np.arange(1, rows + 1, dtype=np.uint64)
    keys *= np.uint64(0x9E3779B97F4A7C15)
    keys += start
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys ^= keys >> np.uint64(shift)
        keys *= np.uint64(factor)
    keys ^= keys >> np.uint64(31)
    return np.argsort(keys)
