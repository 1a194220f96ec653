"""A settled recording as a Graph: sizes become actions, constants become state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedq.plan.blame import Unrecordable, shown
from fedq.plan.graph import Action, Arg, Graph, Subgraph, Tree, Type, Var, flatten
from fedq.plan.recording import Body, Call, Size, Trace, Value
from fedq.plan.settle import Places, Settled, bodies, made, used_symbols
from fedq.plan.sizes import COMPARISONS, FLOAT_OPS, OPS, guard, is_real, text, tree


@dataclass(frozen=True, slots=True)
class Emitted:
    """What of a Graph one recording tells."""

    inputs: tuple[Type, ...]
    state: tuple[tuple[str, Type], ...]
    actions: tuple[Action, ...]
    lines: tuple[str, ...]
    outputs: Tree
    constants: tuple[int, ...]
    graphs: tuple[Graph, ...]


def emit(settled: Settled, inputs: Sequence[Type], state_names: Sequence[str]) -> Emitted:
    """Number the values anew: inputs, state, constants, then what actions make.

    Args:
        settled: the recording.
        inputs: the types of the inputs, with letters.
        state_names: of the state tensors that were recorded with it.
    """
    return _Emitter(settled.trace, settled.places).run(inputs, state_names)


@dataclass
class _Emitter:
    trace: Trace
    places: Places = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    sizes: dict[Any, Arg] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    graphs: list[Graph] = field(default_factory=list)
    lines_of_graphs: list[str] = field(default_factory=list)
    next: int = 0

    def run(self, inputs: Sequence[Type], state_names: Sequence[str]) -> Emitted:
        constants = self._constants()
        given = range(self.trace.num_inputs + self.trace.num_state)
        self.numbers = {old: new for new, old in enumerate((*given, *constants))}
        self.next = len(self.numbers)
        self._letters()
        for call in self.trace.calls:
            self._call(call)
        self._check_outputs()
        outputs = self._outputs(self.trace.outputs)
        names = (*state_names, *(f"const{i}" for i in range(len(constants))))
        held = (*range(self.trace.num_inputs, given.stop), *constants)
        state = tuple((name, type_of(self.trace.values[n])) for name, n in zip(names, held, strict=True))
        lines = (*self.lines, *self.lines_of_graphs)
        return Emitted(tuple(inputs), state, tuple(self.actions), lines, outputs, constants, tuple(self.graphs))

    def body(self, inputs: Sequence[int], letters: Mapping[str, str]) -> Graph:
        """A body as a graph: given the values of these numbers, then the numbers of these letters, by kind."""
        self.numbers = {old: new for new, old in enumerate(inputs)}
        self.next = len(inputs) + len(letters)
        self.sizes = {name: Var(len(inputs) + i) for i, name in enumerate(letters)}
        for new, old in enumerate(inputs):
            self._data_dependent(self.trace.values[old], new)
        for call in self.trace.calls:
            self._call(call)
        outputs = [self._held(leaf, "") for leaf in self.trace.outputs]
        types = (*(type_of(self.trace.values[n]) for n in inputs), *map(Type, letters.values()))
        return Graph(types, tuple(self.actions), outputs, graphs=tuple(self.graphs))

    def _check_outputs(self) -> None:
        known = set(self.places.values())
        for dim, line in _output_sizes(self.trace):
            if {str(s) for s in dim.free_symbols} - known:
                raise Unrecordable(
                    f"the size of a result depends on data{shown(line)}",
                    "return torch.where(mask, x, 0), or reduce what was picked, as x[mask].sum() does",
                )

    def _constants(self) -> tuple[int, ...]:
        used = [leaf for c in self.trace.calls for leaf in flatten([*c.args, *c.kwargs.values()])]
        used += flatten(self.trace.outputs)
        numbers = {leaf.number for leaf in used if isinstance(leaf, Var)}
        return tuple(n for n in self.trace.constants if n in numbers)

    def _letters(self) -> None:
        """Where each letter is read: at the first input that has it."""
        for (i, d), name in self.places.items():
            self.sizes.setdefault(name, Var(i) if d == -1 else (i, d))

    def _call(self, call: Call) -> None:
        args = self._control(call) if bodies(call) else tuple(self.arg(a, call.line) for a in call.args)
        kwargs = {k: self.arg(a, call.line) for k, a in call.kwargs.items()}
        outs = self._add(call.op, args, kwargs, [type_of(self.trace.values[o]) for o in call.outs], call.line)
        for old, new in zip(call.outs, outs, strict=True):
            self.numbers[old] = new.number
            self._data_dependent(self.trace.values[old], new.number)

    def _control(self, call: Call) -> tuple[Arg, ...]:
        """Its arguments, bodies as graphs; sizes that these need and can not read off are passed to them."""
        letters = sorted({s.name for body in bodies(call) for s in used_symbols(body) - _known(body)})
        kinds = {str(v.symbol): v.dtype for v in self.trace.values if v.dims is None}
        typed = {name: kinds.get(name, "int") for name in letters}
        args: list[Any] = [self._body(a, typed) if isinstance(a, Body) else self._held(a, call.line) for a in call.args]
        return (*args[:-1], [*args[-1], *(self._read(name, call.line) for name in letters)])

    def _held(self, arg: Arg, line: str) -> Arg:
        """An argument, or list of them, as Vars: numbers are computed."""
        if isinstance(arg, list):
            return [self._held(a, line) for a in arg]
        arg = self.arg(arg, line)
        return arg if isinstance(arg, Var) else self._once("add", (arg, 0), "int", line)

    def _body(self, body: Body, letters: Mapping[str, str]) -> Subgraph:
        inner = _Emitter(body.trace)
        self.graphs.append(inner.body(body.inputs, letters))
        self.lines_of_graphs += [*inner.lines, *inner.lines_of_graphs]
        return Subgraph(len(self.graphs) - 1)

    def _data_dependent(self, value: Value, number: int) -> None:
        for d, expr in enumerate(value.dims or ()):
            if getattr(expr, "is_Symbol", False):
                self.sizes.setdefault(expr.name, (number, d))
        if value.dims is None and getattr(value.symbol, "is_Symbol", False):
            self.sizes.setdefault(value.symbol.name, Var(number))

    def _add(
        self, op: str, args: tuple[Arg, ...], kwargs: Mapping[str, Arg], types: list[Type], line: str
    ) -> list[Var]:
        self.actions.append(Action(op, args, dict(kwargs), tuple(types)))
        self.lines.append(line)
        self.next += len(types)
        return [Var(self.next - len(types) + i) for i in range(len(types))]

    def arg(self, arg: Arg, line: str) -> Arg:
        match arg:
            case Var(n):
                return Var(self.numbers[n])
            case Size():
                return self._size(arg, line)
            case list() | tuple():
                return [self.arg(a, line) for a in arg]
        return arg

    def _size(self, size: Any, line: str) -> Arg:
        if not isinstance(size, Size):
            return size
        if size.kind == "bool":
            op, *sides = guard(size.expr)
            return self._once(COMPARISONS[op], tuple(self._tree(s, line) for s in sides), "bool", line)
        if size.made is None or size.made[0] not in FLOAT_OPS:
            return self._tree(_tree_at(size.expr, line), line)
        op, *operands = size.made
        return self._once(FLOAT_OPS[op][0], tuple(self._size(o, line) for o in operands), "float", line)

    def _tree(self, made: Any, line: str) -> Arg:
        if isinstance(made, (int, float)):
            return made
        if isinstance(made, str):
            return self._read(made, line)
        op, *operands = made
        kind = "float" if is_real(made) else "int"
        return self._once(OPS[op], tuple(self._tree(o, line) for o in operands), kind, line)

    def _read(self, name: str, line: str) -> Arg:
        where = self.sizes.get(name)
        if where is None:
            raise Unrecordable("it computes with a size that depends on data")
        if isinstance(where, tuple):
            where = self.sizes[name] = self._once("size", (Var(where[0]), where[1]), "int", line)
        return where

    def _once(self, op: str, args: tuple[Arg, ...], kind: str, line: str) -> Arg:
        key = (op, args)
        if key not in self.sizes:
            (self.sizes[key],) = self._add(f"sym.{op}", args, {}, [Type(kind)], line)
        return self.sizes[key]

    def _outputs(self, out: Tree) -> Tree:
        match out:
            case list():
                return [self._outputs(o) for o in out]
            case tuple():
                return tuple(self._outputs(o) for o in out)
            case dict():
                return {k: self._outputs(o) for k, o in out.items()}
            case bool():
                return self._once("eq", (int(out), 1), "bool", "")
            case int() | float():
                return self._once("add", (out, type(out)(0)), type(out).__name__, "")
            case None:
                return None
        return self.arg(out, "")


def _output_sizes(trace: Trace) -> Iterator[tuple[Any, str]]:
    """Sizes of results that are expressions, each with the line that makes it."""
    for leaf in flatten(trace.outputs):
        dims = trace.values[leaf.number].dims if isinstance(leaf, Var) else None
        for dim in dims or ():
            if getattr(dim, "free_symbols", None):
                yield dim, next((c.line for c in trace.calls if leaf.number in c.outs), "")


def unwritten_sizes(settled: Settled) -> Iterator[tuple[set[str], Unrecordable, str]]:
    """Results of a size that a type cannot write: the letters in it, why, and the line."""
    for dim, line in _output_sizes(settled.trace):
        try:
            text(tree(dim))
        except Unrecordable as why:
            yield {str(s) for s in dim.free_symbols}, why, line


def _known(body: Body) -> set[Any]:
    """Symbols that a body can read off what it is given, or that it makes."""
    given = (body.trace.values[n] for n in body.inputs)
    read = {e for v in given for e in (*(v.dims or ()), v.symbol) if getattr(e, "is_Symbol", False)}
    return read.union(*(made(body.trace.values[o]) for c in body.trace.calls for o in c.outs))


def _tree_at(expr: Any, line: str) -> Any:
    try:
        return tree(expr)
    except Unrecordable as error:
        raise Unrecordable(f"{error.message}{shown(line)}", error.hint) from None


def type_of(value: Value) -> Type:
    """A recorded value's type, its sizes as text."""
    if value.dims is None:
        return Type(value.dtype)
    return Type(value.dtype, tuple(_dim(d) for d in value.dims))


def _dim(expr: Any) -> int | str:
    if isinstance(expr, int):
        return expr
    try:
        made = text(tree(expr))
    except Unrecordable:
        made = "x0"
    return int(made) if made.isdecimal() else made
