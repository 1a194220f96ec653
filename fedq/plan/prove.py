"""Find what a plan's Spec admits: only what recordings have proved.

One recording lies: a branch on a size that was true leaves no trace, a dtype read in Python is
baked. So the function is recorded again, at each size and dtype in question, and admitted is
what gave the same graph with the number put for the letter. When in doubt: fixed, or refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

from fedq.errors import CannotRecord
from fedq.plan.blame import Unrecordable
from fedq.plan.capture import Free, Function, Guard, In, record
from fedq.plan.graph import Type, Var, flatten
from fedq.plan.settle import Places, Settled, difference, letter, settle
from fedq.plan.sizes import guard as guard_tree
from fedq.plan.sizes import put

DTYPES = ("f32", "f64", "f16", "bf16", "i64", "i32")
"""Dtypes tried besides the one built with."""
_HINTS = (5, 7, 11, 13, 17)
_LARGE = 64
"""A size for functions that need large inputs, such as convolutions."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One input as the user gave it: dtype and sizes, -1 for a free one; or a Python value."""

    dtype: str
    dims: tuple[int, ...] | None = None
    value: bool | int | float | str | None = None


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
    """

    settled: Settled
    inputs: tuple[Type, ...]
    least: Mapping[str, int]
    guards: tuple[Any, ...]
    dtypes: tuple[tuple[str, ...], ...]
    refused: Mapping[str, str]


def prove(function: Function, asked: Sequence[Asked], state: Sequence[torch.Tensor] = ()) -> Proved:
    """Record the function, freeing what can be free.

    Raises:
        CannotRecord: it does what a plan cannot hold, or fixes a size that was asked to be free.
    """
    return _Prover(function, tuple(asked), tuple(state)).run()


@dataclass
class _Prover:
    function: Function
    asked: tuple[Asked, ...]
    state: tuple[torch.Tensor, ...]
    hint: int = 5
    base: Settled = field(init=False)
    guards: list[Guard] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    repeated: bool = False

    def run(self) -> Proved:
        self._free()
        least = self._lower()
        dtypes = tuple(self._rows())
        self._repeatable()
        inputs = tuple(self._type(i, a) for i, a in enumerate(self.asked))
        guards = tuple(self._guard(g) for g in self.guards)
        return Proved(self.base, inputs, least, guards, dtypes, self.refused)

    # -- which sizes are free

    def _free(self) -> None:
        """Record with as much free as keeps the graph of what was written."""
        fixed: set[tuple[int, int]] = set()
        while True:
            optional = [at for at in self._optional() if at not in fixed]
            try:
                self.base = self._base(fixed)
            except CannotRecord:
                ones = [at for at in optional if self._written(at) == 1]
                if not optional:
                    raise
                fixed |= set(ones or optional)
                continue
            bad = self._bound(optional)
            if not bad:
                return
            fixed |= set(bad)

    def _base(self, fixed: set[tuple[int, int]]) -> Settled:
        literals = {d for a in self.asked for d in a.dims or ()}
        hints = [h for h in _HINTS if h not in literals][:1] + [_LARGE]
        first: CannotRecord | None = None
        for self.hint in hints:
            try:
                return settle(
                    record(self.function, [self._in(i, a, fixed) for i, a in enumerate(self.asked)], self.state)
                )
            except CannotRecord as error:
                first = first or error
                if not any(d == -1 for a in self.asked for d in a.dims or ()):
                    break
        assert first is not None
        raise first

    def _in(self, i: int, asked: Asked, fixed: set[tuple[int, int]]) -> In:
        if asked.dims is None:
            free = type(asked.value) in (int, float) and (i, -1) not in fixed
            return In(asked.dtype, None, Free(asked.value) if free else asked.value)  # type: ignore[arg-type]
        return In(
            asked.dtype,
            tuple(d if d == 0 or (i, n) in fixed else Free(self._hint(d)) for n, d in enumerate(asked.dims)),
        )

    def _hint(self, written: int) -> int:
        return written if written >= 2 else self.hint

    def _optional(self) -> Iterator[tuple[int, int]]:
        for i, asked in enumerate(self.asked):
            if asked.dims is None:
                if type(asked.value) in (int, float):
                    yield i, -1
            else:
                yield from ((i, d) for d, n in enumerate(asked.dims) if n > 0)

    def _written(self, at: tuple[int, int]) -> Any:
        asked = self.asked[at[0]]
        return asked.value if asked.dims is None else asked.dims[at[1]]

    def _bound(self, optional: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Places that were written as numbers and must stay so; refuses a bound -1."""
        trace, places = self.base.trace, self.base.places
        for (i, d), symbol in trace.symbols.items():
            if (i, d) not in places and (i, d) not in optional:
                raise _fixed(i, d, int(trace.solved[symbol]), trace.line_of(symbol))
        bad = [at for at in optional if at not in places]
        self.guards = [g for g in self.base.guards if not self._disproved(g)]
        guarded = {s.name for g in self.guards for s in g.expr.free_symbols}
        bad += [at for at in optional if places.get(at) in guarded]
        if not bad and optional:
            at = {places[o]: self._written(o) for o in optional}
            differs = self._differs(at)
            bad = list(optional) if differs is not None else []
        return bad

    # -- one more recording

    def _differs(self, at: Mapping[str, Any], *, symbolic: bool = False, dtype: str = "") -> str | None:
        """Record with these numbers for letters; None if the graph is the same, else the line."""
        keep = {place: name for place, name in self.base.places.items() if symbolic and name not in at}
        inputs = [self._at(i, a, at, keep, dtype) for i, a in enumerate(self.asked)]
        try:
            other = settle(record(self.function, inputs, self.state), keep)
        except CannotRecord as error:
            return str(error.fields.get("line", ""))
        filled = {**self._hints(), **at} if not symbolic else dict(at)
        line = difference(self.base, other, filled)
        if line is None and symbolic:
            line = self._new_condition(other, at)
        if line is None and dtype:
            self.row = other
        self.repeated |= line is None
        return line

    def _at(self, i: int, asked: Asked, at: Mapping[str, Any], keep: Places, dtype: str) -> In:
        name = dtype if dtype and asked.dims is not None and asked.dtype == self._built_dtype() else asked.dtype
        if asked.dims is None:
            free = (i, -1) in keep
            return In(name, None, Free(asked.value) if free else asked.value)  # type: ignore[arg-type]
        dims = []
        for d, written in enumerate(asked.dims):
            where = self.base.places.get((i, d))
            hint = self._hint(written)
            dims.append(
                written if where is None else Free(hint) if (i, d) in keep else at.get(where, self._hints()[where])
            )
        return In(name, tuple(dims))

    def _hints(self) -> dict[str, Any]:
        """What each letter looked like while recording."""
        hints: dict[str, Any] = {}
        for (i, d), name in self.base.places.items():
            hints.setdefault(name, self.asked[i].value if d == -1 else self._hint(self.asked[i].dims[d]))  # type: ignore[index]
        return hints

    def _new_condition(self, other: Settled, at: Mapping[str, int]) -> str | None:
        known = {letter(name): n for name, n in at.items()}
        ours = {put(g.expr, known) for g in self.base.guards}
        for guard in other.guards:
            if guard.expr not in ours:
                return guard.line
        asked = {put(g.expr, known) for g in self.base.asked}
        return (
            next((g.line for g in other.asked if g.expr not in asked and g.expr.free_symbols), None) if not at else None
        )

    def _built_dtype(self) -> str:
        return next((a.dtype for a in self.asked if a.dims is not None), "")

    def _disproved(self, guard: Guard) -> bool:
        """Whether the graph is the same where the guard does not hold, at all the few such sizes."""
        if len(guard.expr.free_symbols) != 1:
            return False
        (symbol,) = guard.expr.free_symbols
        name = str(symbol)
        if name not in self._sizes():
            return False
        holds = [bool(guard.expr.xreplace({symbol: n})) for n in (*range(2, 21), 10**6, 10**6 + 1)]
        few = [n for n, h in zip(range(2, 21), holds, strict=False) if not h]
        return all(holds[10:]) and all(self._differs({name: n}, symbolic=True) is None for n in few)

    # -- how small sizes may be

    def _sizes(self) -> list[str]:
        return list(dict.fromkeys(name for (_, d), name in self.base.places.items() if d != -1))

    def _lower(self) -> dict[str, int]:
        least = dict.fromkeys(self._sizes(), 2)
        asks = any(g.expr.free_symbols for g in self.base.asked)
        for name in least:
            for size in (1, 0):
                line = self._refuse({name: size}, symbolic=asks)
                if line is not None:
                    self.refused[f"{name}={size}"] = line
                    break
                least[name] = size
        if len(least) > 1:
            self._lower_together(least, thorough=asks)
        return least

    def _refuse(self, at: Mapping[str, int], *, symbolic: bool) -> str | None:
        known = {letter(name): n for name, n in at.items()}
        for guard in self.guards:
            if put(guard.expr, known) in (False,):
                return None
        return self._differs(at, symbolic=symbolic)

    def _lower_together(self, least: dict[str, int], *, thorough: bool) -> None:
        """Several small sizes at once: all equal ones, and every mixture where Python looks at sizes."""
        names = list(least)
        if thorough and len(names) > 3:
            least.update(dict.fromkeys(names[1:], 2))
            return
        mixtures = (
            product((2, 1, 0), repeat=len(names))
            if thorough or len(names) == 2
            else [(1,) * len(names), (0,) * len(names)]
        )
        for sizes in mixtures:
            at = {name: max(size, least[name]) for name, size in zip(names, sizes, strict=True)}
            small = {name: size for name, size in at.items() if size < 2}
            if len(small) < 2:
                continue
            line = self._refuse(small, symbolic=thorough)
            if line is not None:
                last = list(small)[-1]
                least[last] = small[last] + 1
                self.refused[f"{last}={small[last]}"] = line

    # -- which dtypes

    def _rows(self) -> Iterator[tuple[str, ...]]:
        built = self._built_dtype()
        for dtype in DTYPES:
            if not built or dtype == built:
                continue
            line = self._differs({}, symbolic=True, dtype=dtype)
            if line is not None:
                self.refused[dtype] = line
                continue
            inputs = (dtype if a.dims is not None and a.dtype == built else a.dtype for a in self.asked)
            yield (*inputs, *self._output_dtypes(self.row))

    def _output_dtypes(self, settled: Settled) -> Iterator[str]:
        for leaf in flatten(settled.trace.outputs):
            if isinstance(leaf, Var):
                yield settled.trace.values[leaf.number].dtype
            else:
                yield "float" if isinstance(leaf, float) or getattr(leaf, "made", None) else "int"

    def _repeatable(self) -> None:
        if self.repeated:
            return
        line = self._differs({}, symbolic=True)
        if line is not None:
            raise CannotRecord(
                "it is another graph each time it is recorded",
                hint="leave out the clock, counters and random numbers of Python, or pass them as arguments",
                line=line,
            )

    def _type(self, i: int, asked: Asked) -> Type:
        if asked.dims is None:
            return Type(asked.dtype, None, None if (i, -1) in self.base.places else asked.value)
        return Type(asked.dtype, tuple(self.base.places.get((i, d), n) for d, n in enumerate(asked.dims)))

    def _guard(self, guard: Guard) -> Any:
        try:
            return guard_tree(guard.expr)
        except Unrecordable as error:
            raise CannotRecord(f"{error.message} ({guard.line})", hint=error.hint or None, line=guard.line) from None


def _fixed(i: int, d: int, size: int, line: str) -> CannotRecord:
    return CannotRecord(
        f"size {d} of input {i} was to be free (-1), but it is fixed to {size} here: {line}",
        hint="write the number in args_shape, or do not use the size as a Python number (for, int(), [...] * n)",
        line=line,
    )
