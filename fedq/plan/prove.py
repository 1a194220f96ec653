"""Find what a plan's Spec admits: only what recordings have proved.

One recording lies: a branch on a size that was true leaves no trace, a dtype read in Python is
baked. So the function is recorded again, at each size and dtype in question, and admitted is
what gave the same graph with the number put for the letter. When in doubt: fixed, or refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from types import MappingProxyType
from typing import Any

import sympy
import torch

from fedq.errors import CannotRecord
from fedq.plan.blame import Unrecordable, depends_on_values, shown
from fedq.plan.capture import Function, record
from fedq.plan.emit import unwritten_sizes
from fedq.plan.graph import Type, Var, flatten, show_guard
from fedq.plan.once import once
from fedq.plan.recording import Free, Guard, In, Trace
from fedq.plan.settle import Place, Places, Settled, difference, letter, settle
from fedq.plan.sizes import guard as guard_tree
from fedq.plan.sizes import put
from fedq.plan.tensors import DTYPES as DTYPE_OF
from fedq.plan.tensors import NAMES

DTYPES = ("f32", "f64", "f16", "bf16", "i64", "i32")
"""Dtypes tried besides the one built with."""
NOTHING: Mapping[str, Any] = MappingProxyType({})
_HINTS = (5, 7, 11, 13, 17)
_LARGE = 64
_HUGE = (10**6, 10**6 + 1)
"""A size for functions that need large inputs, such as convolutions."""


@dataclass(frozen=True)
class Proved:
    """What was recorded, and for what else it holds.

    Attributes:
        settled: the recording to keep.
        inputs: types of the inputs, with letters where free.
        least: letter -> least size proved.
        guards: conditions on letters, as in `Graph.guards`.
        dtypes: other admitted dtypes, as in `Graph.dtypes`.
        refused: what is not admitted -> the line that is why.
        example: the types it was recorded on, all sizes numbers.
    """

    settled: Settled
    inputs: tuple[Type, ...]
    least: Mapping[str, int]
    guards: tuple[Any, ...]
    dtypes: tuple[tuple[str, ...], ...]
    refused: Mapping[str, str]
    example: tuple[Type, ...] = ()


def prove(
    function: Function,
    asked: Sequence[Type],
    state: Sequence[torch.Tensor] = (),
    *,
    as_written: bool = False,
    fixed: Collection[Place] = (),
) -> Proved:
    """Record the function, freeing what can be free.

    Args:
        function: called with the list of state tensors, then the inputs.
        asked: types of the inputs as the user gave them: sizes, -1 for a free one; or a Python value.
        state: tensors the function reads besides its inputs.
        as_written: whether numbers and dtypes are meant: then only -1 is free, and no other dtype is tried.
        fixed: inputs and their dimensions (-1: a number) that stay as written.

    Raises:
        CannotRecord: it does what a plan cannot hold, or fixes a size that was asked to be free.
    """
    prover = _Prover(function, tuple(asked), tuple(state), as_written=as_written, fixed=set(fixed))
    if as_written:
        prover.fixed |= set(prover._optional())
    return prover.run()


@dataclass
class _Prover:
    function: Function
    asked: tuple[Type, ...]
    state: tuple[torch.Tensor, ...]
    as_written: bool = False
    hint: int = 5
    fixed: set[Place] = field(default_factory=set)
    like: Trace | None = None
    base: Settled = field(init=False)
    guards: list[Guard] = field(default_factory=list)
    small: list[Mapping[str, int]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def run(self) -> Proved:
        least = self._least()
        dtypes = tuple(self._rows(least))
        either = self._either([dtype for dtype, *_ in dtypes])
        inputs = tuple(self._type(i, a, either) for i, a in enumerate(self.asked))
        guards = {_as_tree(g): g.line for g in self.guards}
        self.refused |= {show_guard(guard): line for guard, line in guards.items()}
        looks, none = self._looks(), dict[Place, str]()
        example = (self._in_again(i, a, looks, none, "") for i, a in enumerate(self.asked))
        types = tuple(Type(e.dtype, e.dims, e.value) for e in example)  # type: ignore[arg-type]
        return Proved(self.base, inputs, least, tuple(guards), dtypes, self.refused, types)

    # -- which sizes are free

    def _least(self) -> dict[str, int]:
        """Free what can be; a letter that does not reach down to what was written is fixed again."""
        while True:
            self._free()
            self.refused.clear()
            least = self._lower()
            places = self.base.places
            low = [
                at for at in self._optional() if at[1] != -1 and self._written(at) < least.get(places.get(at, ""), 0)
            ]
            if not low:
                return least
            self.fixed |= set(low)

    def _free(self) -> None:
        """Record with as much free as keeps the graph of what was written."""
        while True:
            optional = [at for at in self._optional() if at not in self.fixed]
            try:
                self.base = self._base()
                bad = self._bound(optional)
            except CannotRecord:
                if not optional:
                    raise
                bad = self._likeliest(optional)
            if not bad:
                return
            self.fixed |= set(bad)

    def _base(self) -> Settled:
        literals = {d for a in self.asked for d in a.shape or ()}
        hints = [h for h in _HINTS if h not in literals][:1]
        first: CannotRecord | None = None
        for self.hint in [*hints, _LARGE] if -1 in literals else hints:
            try:
                inputs = [self._in(i, a) for i, a in enumerate(self.asked)]
                self.like = record(self.function, inputs, self.state, like=self.like)
                return settle(self.like)
            except CannotRecord as error:
                first = first or error
        assert first is not None
        raise first

    def _in(self, i: int, asked: Type) -> In:
        if asked.shape is None:
            free = type(asked.value) in (int, float) and (i, -1) not in self.fixed
            return In(asked.dtype, None, Free(asked.value) if free else asked.value)  # type: ignore[arg-type]
        sizes = (d if d == 0 or (i, n) in self.fixed else Free(self._hint(d)) for n, d in enumerate[Any](asked.shape))
        return In(asked.dtype, tuple(sizes))

    def _hint(self, written: int) -> int:
        return written if written >= 2 else self.hint

    def _optional(self) -> Iterator[Place]:
        """Places written as numbers, which may be free if that changes nothing."""
        for i, asked in enumerate(self.asked):
            if asked.shape is None:
                if type(asked.value) in (int, float):
                    yield i, -1
            else:
                yield from ((i, d) for d, n in enumerate[Any](asked.shape) if n > 0)

    def _written(self, at: Place) -> Any:
        asked = self.asked[at[0]]
        return asked.value if asked.shape is None else asked.shape[at[1]]

    def _bound(self, optional: Sequence[Place]) -> list[Place]:
        """Places written as numbers that must stay so.

        Raises:
            CannotRecord: a -1 is bound, or the graph is another one each time.
        """
        trace, places = self.base.trace, self.base.places
        for (i, d), symbol in trace.symbols.items():
            if (i, d) not in places and (i, d) not in optional:
                hint = _TRANSFORMS if trace.transformed else _NUMBERS
                raise _fixed(i, d, int(trace.solved[symbol]), trace.line_of(symbol), hint)
        for guard in self.base.guards:
            if not {s.name for s in guard.expr.free_symbols} <= set(places.values()):
                raise depends_on_values(guard.line)
        self.guards = [g for g in self.base.guards if not self._disproved(g)]
        for guard in filter(_fixes, self.guards):
            name = next(iter(guard.expr.free_symbols)).name
            for i, d in (at for at, n in places.items() if n == name and at not in optional):
                raise _fixed(i, d, self._looks()[name], guard.line, _NUMBERS)
        guarded = {s.name for g in self.guards for s in g.expr.free_symbols}
        unwritten = self._unwritten(optional)
        bad = [at for at in optional if at not in places or at in unwritten or self._meets_other(at)]
        bad = bad or self._likeliest([at for at in optional if places[at] in guarded])
        if bad:
            return bad
        written = self._again({places[at]: self._written(at) for at in optional})
        if isinstance(written, str) and not optional:
            raise self._differs_from_itself(written)
        if isinstance(written, str):
            return self._likeliest(optional)
        return [at for at in optional if at[1] == -1 and not self._is_any_number(at)]

    def _unwritten(self, optional: Sequence[Place]) -> list[Place]:
        """Places of which a result has a size that a type cannot write.

        Raises:
            CannotRecord: all of them were asked to be free.
        """
        found: list[Place] = []
        for letters, why, line in unwritten_sizes(self.base):
            places = [at for at in optional if self.base.places.get(at) in letters]
            if not places:
                message = f"{why.message}{shown(line)}"
                raise CannotRecord(message, hint=f"{why.hint}; or write the number in args_shape", line=line)
            found += places
        return found

    def _is_any_number(self, at: Place) -> bool:
        """Whether plain numbers give the same graph: symbols of numbers are no ``int`` to Python."""
        written, name = self._written(at), self.base.places[at]
        return not any(isinstance(self._again({name: written + n}), str) for n in (1, 1000))

    def _likeliest(self, places: Sequence[Place]) -> list[Place]:
        """Of places one of which must be fixed: numbers, else sizes of 1, else inner dimensions, else all."""
        numbers, inner = [at for at in places if at[1] == -1], [at for at in places if at[1] > 0]
        return numbers or [at for at in places if self._written(at) == 1] or inner or list(places)

    def _differs_from_itself(self, line: str) -> CannotRecord:
        if isinstance(self._again(free=True), str):
            return CannotRecord(
                f"it is another graph each time it is recorded{shown(line)}",
                hint="leave out the clock, counters and random numbers of Python, or pass them as arguments",
                line=line,
            )
        return CannotRecord(
            f"it is another graph when sizes are plain numbers{shown(line)}",
            hint="do not ask for the type of a size, or write the size as a number in args_shape",
            line=line,
        )

    def _meets_other(self, at: Place) -> bool:
        """Whether this, if free, would have to equal what was written differently, or is a number equal to a size.

        That sizes are equal is told by their letters, and checked; a number has none.
        """
        same = [p for p, name in self.base.places.items() if name == self.base.places[at]]
        if at[1] == -1 and len(same) > 1:
            return True
        return any(self._written(p) != self._written(at) for p in same)

    # -- one more recording

    def _again(
        self,
        at: Mapping[str, Any] = NOTHING,
        *,
        free: bool = False,
        dtype: str = "",
        hints: Mapping[str, int] = NOTHING,
    ) -> Settled | str:
        """Record with these numbers for letters: the recording if it is the same graph, else the line that is not.

        Args:
            at: letter -> number.
            free: leave the other letters free; else they are what they looked like at first.
            dtype: of the inputs of the built dtype.
            hints: what free letters look like, if not as at first.
        """
        looks = {**self._looks(), **hints}
        keep = {place: name for place, name in self.base.places.items() if free and name not in at}
        inputs = [self._in_again(i, a, {**looks, **at}, keep, dtype) for i, a in enumerate(self.asked)]
        try:
            other = settle(record(self.function, inputs, self.state, like=self.like), keep)
        except CannotRecord as error:
            return str(error.fields.get("line", ""))
        line = difference(self.base, other, at if free else {**looks, **at})
        return other if line is None else line

    def _in_again(self, i: int, asked: Type, sizes: Mapping[str, Any], keep: Places, dtype: str) -> In:
        name = dtype if dtype and asked.shape is not None and asked.dtype == self._built_dtype() else asked.dtype
        places = self.base.places

        def size(d: int, written: Any) -> Any:
            if (i, d) not in places:
                return written
            return Free(sizes[places[i, d]]) if (i, d) in keep else sizes[places[i, d]]

        if asked.shape is None:
            return In(name, None, size(-1, asked.value))
        return In(name, tuple(size(d, n) for d, n in enumerate(asked.shape)))

    def _looks(self) -> dict[str, Any]:
        """What each letter looked like while recording."""
        looks: dict[str, Any] = {}
        for at, name in self.base.places.items():
            written = self._written(at)
            looks.setdefault(name, written if at[1] == -1 else self._hint(written))
        return looks

    def _built_dtype(self) -> str:
        return next((a.dtype for a in self.asked if a.shape is not None), "")

    def _new_guards(self, other: Settled, at: Mapping[str, int] = NOTHING) -> list[Guard]:
        known = {letter(name): n for name, n in at.items()}
        ours = {put(g.expr, known) for g in self.base.guards}
        return [g for g in other.guards if g.expr not in ours]

    def _open_guards(self, other: Settled) -> list[Guard]:
        """Of a recording with another dtype, guards that are no conditions yet: new ones, and questions of Python
        whose answer changed nothing with the dtype that was built."""
        kept = {g.expr for g in self.guards}
        looked = {expr for g in other.asked for expr in (g.expr, sympy.Not(g.expr))} - kept
        new = self._new_guards(other)
        return [*new, *(g for g in other.guards if g.expr in looked and g not in new)]

    def _disproved(self, guard: Guard, dtype: str = "") -> bool:
        """Whether it is the same graph where the guard does not hold: then it is no condition.

        Torch asks much about sizes that changes nothing, such as which kernel is fastest.
        """
        if len(guard.expr.free_symbols) != 1 or str(*guard.expr.free_symbols) not in self._sizes():
            return False
        (symbol,) = guard.expr.free_symbols
        around = {int(c) + k for c in guard.expr.atoms(sympy.Integer) for k in (-1, 0, 1) if 20 < c + k < 1 << 40}
        tried = (*range(2, 21), *sorted(around), _LARGE, *_HUGE)
        held = {n: put(guard.expr, {symbol: n}) for n in tried}
        fails = [n for n, holds in held.items() if holds is sympy.nan or not holds]
        if not fails and guard.expr in {g.expr for g in self.base.asked}:
            return False
        for tries, n in enumerate(fails):
            if n in _HUGE and tries > 2:
                return False  # it became a number at all of these sizes: a loop over it would take for ever
            other = self._again(free=True, dtype=dtype, hints={str(symbol): n})
            if isinstance(other, str):
                return False
            new = [g for g in self._new_guards(other) if g.expr not in (sympy.Not(guard.expr), sympy.Eq(symbol, n))]
            if new:
                return False
            if not any(
                at in self.base.places and other.trace.solved[s].is_number for at, s in other.trace.symbols.items()
            ):
                return True
        return not set(fails) & set(_HUGE)

    # -- how small sizes may be

    def _sizes(self) -> list[str]:
        return list(dict.fromkeys(name for (_, d), name in self.base.places.items() if d != -1))

    def _lower(self) -> dict[str, int]:
        least, self.small = dict.fromkeys(self._sizes(), 2), []
        thorough = self._looked
        for name in least:
            for size in (1, 0):
                line = self._line_at({name: size}, thorough=thorough)
                if line is not None:
                    self.refused |= {f"{name}={smaller}": line for smaller in range(size, -1, -1)}
                    break
                least[name] = size
                self.small.append({name: size})
        for at in _mixtures(list(least), thorough=thorough):
            small = {name: size for name, size in at.items() if size < 2}
            if any(size < least[name] for name, size in small.items()):
                continue
            line = self._line_at(small, thorough=thorough)
            self.small.append(small)
            if line is not None:
                last = list(small)[-1]
                least[last] = small[last] + 1
                self.refused |= {f"{last}={smaller}": line for smaller in range(small[last], -1, -1)}
        return least

    @property
    def _looked(self) -> bool:
        """Whether Python code looked at sizes that are free."""
        return any(g.expr.free_symbols for g in self.base.asked)

    def _line_at(self, at: Mapping[str, int], *, thorough: bool, dtype: str = "") -> str | None:
        """None if the graph is the same at these small sizes (or a guard keeps them out), else the line.

        Args:
            thorough: where Python looks at sizes, all larger sizes of the other letters are meant.
        """
        known = {letter(name): n for name, n in at.items()}
        if any(put(g.expr, known) in (False, sympy.false) for g in self.guards):
            return None
        other = self._again(at, free=thorough, dtype=dtype)
        if isinstance(other, str):
            return other
        return next((g.line for g in self._new_guards(other, at) if thorough), None)

    # -- which dtypes

    def _rows(self, least: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
        built = self._built_dtype()
        for dtype in DTYPES if built and not self.as_written else ():
            if dtype == built:
                continue
            row = self._row(dtype, least)
            if isinstance(row, str):
                self.refused[dtype] = row
                continue
            inputs = (dtype if a.shape is not None and a.dtype == built else a.dtype for a in self.asked)
            yield (*inputs, *row)

    def _row(self, dtype: str, least: Mapping[str, int]) -> tuple[str, ...] | str:
        """Dtypes of the outputs for inputs of this one, or the line that treats it differently."""
        other = self._again(free=True, dtype=dtype)
        if isinstance(other, str):
            return other
        asked = {g.expr for g in self.base.asked}
        new = [g for g in other.asked if g.expr.free_symbols and g.expr not in asked]
        new += [g for g in self._open_guards(other) if not self._disproved(g, dtype)]
        if new:
            return new[0].line
        for at in self.small if self._looked else ():
            if all(size >= least[name] for name, size in at.items()):
                line = self._line_at(at, thorough=True, dtype=dtype)
                if line is not None:
                    return line
        dtypes = tuple(_dtypes(other))
        if self._eager(dtype, other.trace.updates) == dtypes:
            return dtypes
        return other.trace.calls[0].line if other.trace.calls else ""

    def _eager(self, dtype: str, updates: Sequence[int]) -> tuple[str, ...] | None:
        """Dtypes of the outputs of a real call: fakes accept mixtures of dtypes that kernels do not."""
        looks, none = self._looks(), dict[Place, str]()
        inputs = [self._in_again(i, a, looks, none, dtype) for i, a in enumerate(self.asked)]
        made = [v.value if v.dims is None else torch.ones(v.dims, dtype=DTYPE_OF[v.dtype]) for v in inputs]  # type: ignore[arg-type]
        try:
            with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
                held = [t.detach().clone() for t in self.state]
                out = [once(self.function, held, *made), *(held[i] for i in updates)]
        except Exception:
            return None
        return tuple(NAMES.get(v.dtype, "") if isinstance(v, torch.Tensor) else type(v).__name__ for v in flatten(out))

    # -- which bools do not matter

    def _either(self, dtypes: Sequence[str]) -> set[int]:
        """Inputs that are bools and change nothing, whatever the others are."""
        bools = [i for i, a in enumerate(self.asked) if isinstance(a.value, bool)]
        free = [i for i in bools if self._is_same_with({i}, dtypes)]
        sets = product((False, True), repeat=len(free)) if len(free) <= 3 else [(True,) * len(free)]
        several = ({i for i, flip in zip(free, flips, strict=True) if flip} for flips in sets)
        if len(free) > 3 or not all(self._is_same_with(flipped, dtypes) for flipped in several if len(flipped) > 1):
            return set()
        return set(free)

    def _is_same_with(self, flipped: Collection[int], dtypes: Sequence[str]) -> bool:
        asked, known = self.asked, {g.expr for g in self.base.asked}
        self.asked = tuple(replace(a, value=not a.value) if i in flipped else a for i, a in enumerate(asked))
        try:
            others = [self._again(free=True, dtype=dtype) for dtype in ("", *dtypes)]
        finally:
            self.asked = asked
        return all(not isinstance(o, str) and {g.expr for g in o.asked} <= known for o in others)

    def _type(self, i: int, asked: Type, either: Collection[int]) -> Type:
        if asked.shape is None:
            free = (i, -1) in self.base.places or i in either
            return Type(asked.dtype, None, None if free else asked.value)
        return Type(asked.dtype, tuple(self.base.places.get((i, d), n) for d, n in enumerate(asked.shape)))


def _fixes(guard: Guard) -> bool:
    """Whether it is an equation that some small sizes of one letter solve, and no large ones."""
    if not isinstance(guard.expr, sympy.Eq) or len(guard.expr.free_symbols) != 1:
        return False
    (symbol,) = guard.expr.free_symbols
    return not any(put(guard.expr, {symbol: n}) for n in range(100, 300))


def _mixtures(names: list[str], *, thorough: bool) -> Iterator[dict[str, int]]:
    """Several small sizes at once: all, where Python looks at sizes or there are two; else all equal ones."""
    if len(names) < 2:
        return
    if len(names) > 3:
        thorough = False
    sizes = (
        product((2, 1, 0), repeat=len(names)) if thorough or len(names) == 2 else ((n,) * len(names) for n in (1, 0))
    )
    for row in sizes:
        if sum(n < 2 for n in row) > 1:
            yield dict(zip(names, row, strict=True))


def _dtypes(settled: Settled) -> Iterator[str]:
    for leaf in flatten(settled.trace.outputs):
        if isinstance(leaf, Var):
            yield settled.trace.values[leaf.number].dtype
        else:
            yield getattr(leaf, "kind", type(leaf).__name__)


def _as_tree(guard: Guard) -> Any:
    try:
        return guard_tree(guard.expr)
    except Unrecordable as error:
        message = f"{error.message}{shown(guard.line)}"
        raise CannotRecord(message, hint=error.hint or None, line=guard.line) from None


_NUMBERS = (
    "write the number in args_shape, or do not use the size as a Python number (for, len(), [...] * n; int(n / 2), "
    "where math.floor(n / 2) stays a size): "
    "ops on whole tensors, or scan, map and while_loop of torch._higher_order_ops, take any size"
)
_TRANSFORMS = (
    "torch's vmap and torch.func.grad fix sizes with some ops: write the number in args_shape, "
    "or take the gradient with torch.autograd.grad"
)


def _fixed(i: int, d: int, size: int, line: str, hint: str) -> CannotRecord:
    return CannotRecord(
        f"size {d} of input {i} was to be free (-1), but it is fixed to {size} here{shown(line)}",
        hint=hint,
        line=line,
    )
