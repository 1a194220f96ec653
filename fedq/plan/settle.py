"""Make recordings comparable: symbols to letters, and whether two recordings are the same graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy

from fedq.plan.graph import Arg, Tree, Var, flatten
from fedq.plan.recording import Body, Call, Guard, Size, Trace, Value
from fedq.plan.sizes import FLOAT_OPS, LETTERS, put
from fedq.plan.tensors import same_bits

Place = tuple[int, int]
Places = Mapping[Place, str]
"""Letter of each free dimension, by input and dimension; dimension -1 is a Python number."""


@dataclass(frozen=True)
class Settled:
    """A recording over letters.

    Attributes:
        trace: with letters for symbols in calls, values and outputs.
        places: where the letters stand.
        guards, asked: conditions on letters that are not always true.
    """

    trace: Trace
    places: Places
    guards: tuple[Guard, ...]
    asked: tuple[Guard, ...]


def letter(name: str) -> Any:
    """The sympy symbol of a letter; numbers (``v0``) may be negative, sizes not."""
    if name.startswith("v"):
        return sympy.Symbol(name, integer=True)
    return sympy.Symbol(name, integer=True, positive=True)


def settle(trace: Trace, places: Places | None = None) -> Settled:
    """The recording over letters: given ones, or new ones where equal sizes share a letter."""
    places = dict(places) if places is not None else _places(trace)
    known: dict[Any, Any] = {symbol: value for symbol, value in trace.solved.items() if value.is_number}
    known |= {symbol: letter(places[at]) for at, symbol in trace.symbols.items() if at in places}
    _name_unbacked(trace, known)
    guards = tuple(
        g for g in (replace(g, expr=put(g.expr, known)) for g in trace.guards) if g.expr not in (True, sympy.true)
    )
    asked = tuple(replace(g, expr=put(g.expr, known)) for g in trace.asked)
    settled = _settle_trace(trace, known)
    return Settled(settled, places, tuple(g for g in guards if g.expr.free_symbols), asked)


def _settle_trace(trace: Trace, known: Mapping[Any, Any]) -> Trace:
    return replace(
        trace,
        values=[_settle_value(v, known) for v in trace.values],
        calls=[replace(c, args=_settle_arg(c.args, known), kwargs=_settle_arg(c.kwargs, known)) for c in needed(trace)],
        outputs=_settle_arg(trace.outputs, known),
    )


def _places(trace: Trace) -> dict[tuple[int, int], str]:
    places: dict[tuple[int, int], str] = {}
    of_root: dict[Any, str] = {}
    for at, symbol in trace.symbols.items():
        root = trace.solved[symbol]
        if root.is_number:
            continue
        key = root if root.is_Symbol else symbol
        if key not in of_root:
            sizes = sum(not name.startswith("v") for name in of_root.values())
            of_root[key] = f"v{at[0]}" if at[1] == -1 else LETTERS[sizes]
        places[at] = of_root[key]
    return places


def _name_unbacked(trace: Trace, known: dict[Any, Any]) -> None:
    """Sizes that depend on data get names by where they first appear."""
    for value in _all_values(trace):
        for expr in (*(value.dims or ()), value.symbol):
            for symbol in sorted(getattr(expr, "free_symbols", ()), key=str):
                if symbol not in known:
                    count = sum(str(k).startswith("u") for k in known.values())
                    known[symbol] = sympy.Symbol(f"u{count}", **symbol.assumptions0)


def _all_values(trace: Trace) -> Iterator[Value]:
    """Those of bodies too."""
    yield from trace.values
    for call in trace.calls:
        for body in bodies(call):
            yield from _all_values(body.trace)


def bodies(call: Call) -> list[Body]:
    return [arg for arg in call.args if isinstance(arg, Body)]


def needed(trace: Trace) -> list[Call]:
    """The calls the outputs need, and those that draw random numbers, which others come after."""
    needed = {leaf.number for leaf in flatten(trace.outputs) if isinstance(leaf, Var)}
    symbols = {s for leaf in flatten(trace.outputs) for s in used_symbols(leaf)}
    calls = []
    for call in reversed(trace.calls):
        told = {s for o in call.outs for s in made(trace.values[o])}
        if call.kept or needed & set(call.outs) or symbols & told:
            calls.append(call)
            for leaf in flatten([*call.args, *call.kwargs.values()]):
                if isinstance(leaf, Var):
                    needed.add(leaf.number)
                symbols |= used_symbols(leaf)
    return calls[::-1]


def used_symbols(leaf: Any) -> set[Any]:
    """Symbols that an argument needs to be known; those of a body may be made in it."""
    match leaf:
        case Size(expr, made):
            return set(expr.free_symbols).union(*(used_symbols(m) for m in made or ()))
        case Body(trace):
            args = (a for c in trace.calls for a in flatten([*c.args, *c.kwargs.values()]))
            return set[Any]().union(*map(used_symbols, args), *map(used_symbols, flatten(trace.outputs)))
    return set()


def made(value: Value) -> set[Any]:
    """Symbols that only this value tells: sizes that depend on data."""
    return {
        s
        for e in (*(value.dims or ()), value.symbol)
        for s in getattr(e, "free_symbols", ())
        if str(s).startswith(("u", "z"))
    }


def _settle_value(value: Value, known: Mapping[Any, Any]) -> Value:
    if value.dims is not None:
        return replace(value, dims=tuple(put(d, known) for d in value.dims))
    return replace(value, symbol=put(value.symbol, known))


def _settle_arg(arg: Arg, known: Mapping[Any, Any]) -> Arg:
    match arg:
        case Size(expr, made, kind):
            expr = put(expr, known)
            made = made and (made[0], *(_settle_arg(a, known) for a in made[1:]))
            return expr if kind == "int" and isinstance(expr, int) else number(Size(expr, made, kind))
        case Body(trace):
            return replace(arg, trace=_settle_trace(trace, known))
        case list():
            return [_settle_arg(a, known) for a in arg]
        case tuple():
            return tuple(_settle_arg(a, known) for a in arg)
        case dict():
            return {k: _settle_arg(a, known) for k, a in arg.items()}
    return arg


_NO_NUMBERS = (sympy.nan, sympy.zoo)
"""What a remainder or quotient is where its divisor is 0."""


def number(size: Any) -> Any:
    """A size whose letters are all known, as the Python number the function would have seen."""
    if not isinstance(size, Size) or getattr(size.expr, "free_symbols", None) or size.expr in _NO_NUMBERS:
        return size
    if size.made is None:
        return {"int": int, "bool": bool}.get(size.kind, float)(size.expr)
    op, *operands = size.made[0], *map(number, size.made[1:])
    if op not in FLOAT_OPS:
        return size
    cancelled = any(isinstance(o, Size) for o in operands)  # such as x * 0
    return float(size.expr) if cancelled else FLOAT_OPS[op][1](*operands)


def at(size: Size, known: Mapping[Any, Any]) -> Any:
    """A size where these symbols have these values: Python's arithmetic, in the order it was done."""
    return number(_settle_arg(size, known))


# -- comparison ------------------------------------------------------------------------------


def difference(base: Settled, other: Settled, at: Mapping[str, Any]) -> str | None:
    """None if ``other`` is ``base`` with these numbers for letters, else the first line that differs."""
    known = {letter(name): sympy.Integer(n) if isinstance(n, int) else sympy.Float(n) for name, n in at.items()}
    ours, theirs = base.trace, other.trace
    numbers = {i: i for i in range(ours.num_inputs + ours.num_state)}
    same = _Same(ours, theirs, numbers, known)
    for ours_call, theirs_call in zip(ours.calls, theirs.calls, strict=False):
        if not same.call(ours_call, theirs_call):
            return theirs_call.line or ours_call.line
    if len(ours.calls) != len(theirs.calls):
        longer = max(ours.calls, theirs.calls, key=len)
        return longer[min(len(ours.calls), len(theirs.calls))].line
    for a, b in zip(flatten(ours.outputs), flatten(theirs.outputs), strict=False):
        if not (same.arg(a, b) and same.dims(a, b)):
            return next((c.line for c in theirs.calls if isinstance(b, Var) and b.number in c.outs), theirs.last_line)
    return None if same.arg(ours.outputs, theirs.outputs) else theirs.last_line


@dataclass(frozen=True, slots=True)
class _Same:
    ours: Trace
    theirs: Trace
    numbers: dict[int, int]
    known: Mapping[Any, Any]

    def call(self, a: Call, b: Call) -> bool:
        same = a.op == b.op and len(a.outs) == len(b.outs)
        same = same and self.arg(list(a.args), list(b.args)) and self.arg(dict(a.kwargs), dict(b.kwargs))
        self.numbers.update(zip(a.outs, b.outs, strict=False))
        return same

    def arg(self, a: Tree, b: Tree) -> bool:
        a = number(_settle_arg(a, self.known)) if isinstance(a, Size) else a
        match a:
            case Var(n):
                return isinstance(b, Var) and self._same_value(n, b.number)
            case Size():
                return isinstance(b, Size) and _expr(a) == _expr(b)
            case Body():
                return isinstance(b, Body) and self.body(a, b)
            case list() | tuple():
                return type(b) is type(a) and len(a) == len(b) and all(map(self.arg, a, b))
            case dict():
                return isinstance(b, dict) and a.keys() == b.keys() and all(self.arg(a[k], b[k]) for k in a)
        return type(a) is type(b) and (a == b or a != a)

    def body(self, a: Body, b: Body) -> bool:
        inner = _Same(a.trace, b.trace, dict(zip(a.inputs, b.inputs, strict=False)), self.known)
        same = len(a.inputs) == len(b.inputs) and len(a.trace.calls) == len(b.trace.calls)
        same = same and all(map(inner.call, a.trace.calls, b.trace.calls))
        return same and inner.arg(a.trace.outputs, b.trace.outputs)

    def dims(self, a: Tree, b: Tree) -> bool:
        """Whether the sizes promised for an output are the sizes it has."""
        if not isinstance(a, Var):
            return True
        promised, has = self.ours.values[a.number].dims or (), self.theirs.values[b.number].dims or ()
        return [put(d, self.known) for d in promised] == list(has)

    def _same_value(self, a: int, b: int) -> bool:
        ours, theirs = self.ours.constants.get(a), self.theirs.constants.get(b)
        if ours is not None and theirs is not None:
            return same_bits(ours, theirs)
        return self.numbers.get(a) == b


def _expr(size: Size) -> Any:
    return size.made or size.expr
