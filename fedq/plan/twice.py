"""Whether a call changes what the next one gives: asked where a function changes what it can keep.

A device runs every call of a plan as the first one. So two calls are recorded in a row, on two sets of
inputs, and the second must give what a first call would. A cache may be there, a count may not matter.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fedq.errors import CannotRecord
from fedq.plan.blame import Line, shown
from fedq.plan.capture import Function, record
from fedq.plan.graph import Tree, Type, Var
from fedq.plan.recording import Body, Call, In, Size, Trace
from fedq.plan.settle import made
from fedq.plan.untouched import Kept, Place, copied, line_of_change

_MARK = 2.718281828459045e-9
"""A number that stands between the two calls."""
_HINT = (
    "compute it in each call, or make it a buffer (self.register_buffer) or state=: "
    "what a plan writes there is an output of it"
)


def refuse_memory(
    function: Function, kept: Kept, asked: Sequence[Type], types: Sequence[Type], state: Sequence[torch.Tensor]
) -> None:
    """Refuse a function that remembers something that the next call's result depends on.

    Args:
        function: as it is, not put back after each call.
        kept: what it can keep, and what of it was touched while it was recorded.
        asked: what it was recorded on.
        types: the inputs as they were proved, with letters for free sizes.
        state: its state tensors.

    Raises:
        CannotRecord: names what is kept, and the line that changes it.
    """
    if not kept.touched:
        return
    for first, second in _pairs(asked, types):
        if not _same(function, kept, first, second, state):
            name, place = next(iter(kept.touched.items()))
            line = _line(function, kept, place, first, state)
            raise CannotRecord(
                f"what it keeps from one call ({name}) changes what the next call gives{shown(line)}",
                hint=_HINT,
                line=line,
            )


def _pairs(asked: Sequence[Type], types: Sequence[Type]) -> Iterator[tuple[list[In], list[In]]]:
    """Inputs of two calls in a row: of the same sizes, and of others where sizes are free."""
    for hint in (5, 64):
        yield _inputs(asked, types, hint), _inputs(asked, types, hint)
        if any(isinstance(d, str) for t in types for d in t.shape or ()):
            yield _inputs(asked, types, hint), _inputs(asked, types, hint + 2)


def _inputs(asked: Sequence[Type], types: Sequence[Type], hint: int) -> list[In]:
    letters = sorted({d for t in types for d in t.shape or () if isinstance(d, str)})
    sizes = {letter: hint + 4 * i for i, letter in enumerate(letters)}
    return [_input(a, t, sizes) for a, t in zip(asked, types, strict=True)]


def _input(asked: Type, proved: Type, sizes: Mapping[str, int]) -> In:
    if proved.shape is None:
        return In(proved.dtype, None, asked.value)
    return In(proved.dtype, tuple(d if isinstance(d, int) else sizes[d] for d in proved.shape))


def _same(
    function: Function, kept: Kept, first: Sequence[In], second: Sequence[In], state: Sequence[torch.Tensor]
) -> bool:
    """Whether the second of two calls gives what it would give as the first."""
    try:
        alone = record(kept.around(function), second, state)
        record(kept.around(function), first, state)
    except CannotRecord:
        return True  # sizes that the plan does not admit
    try:
        both = record(kept.around(_both(function)), [*first, *second], [*state, *state])
    except CannotRecord:
        return False
    known: dict[Any, int] = {}
    ours = _Keys(alone, known, 0, 0).of_results(alone.outputs, alone.updates)
    theirs = _Keys(both, known, len(first), len(state)).of_second()
    return bool(ours == theirs)


def _both(function: Function) -> Function:
    def called(held: list[Any], *args: Any) -> Any:
        states, inputs = len(held) // 2, len(args) // 2
        parts = held[:states], held[states:]
        one = copied(function(parts[0], *args[:inputs]))
        torch.full((), _MARK)
        two = function(parts[1], *args[inputs:])
        held[:] = [*parts[0], *parts[1]]
        return one, two

    return called


def _line(function: Function, kept: Kept, place: Place, inputs: Sequence[In], state: Sequence[torch.Tensor]) -> Line:
    found = Line()

    def watched(held: list[Any], *args: Any) -> None:
        nonlocal found
        found = line_of_change(place, function, held, *args)

    with contextlib.suppress(CannotRecord):
        record(kept.around(watched), inputs, state)
    return found


# -- what a value is made of ----------------------------------------------------------------------


@dataclass
class _Keys:
    """Numbers for values: equal ones are made by the same ops from the same inputs.

    Args:
        trace: a recording of one call, or of two.
        known: the numbers so far; two recordings that share them can be compared.
        inputs, states: how many of each come before those of the call in question.
    """

    trace: Trace
    known: dict[Any, int]
    inputs: int
    states: int
    of: dict[int, int] = field(default_factory=dict)
    symbols: dict[Any, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        trace = self.trace
        for i in range(trace.num_inputs):
            self.of[i] = self._number(("input", i - self.inputs))
        for i in range(trace.num_state):
            self.of[trace.num_inputs + i] = self._number(("state", i - self.states))
        for n, tensor in trace.constants.items():
            self.of[n] = self._number(("constant", str(tensor.dtype), tuple(tensor.shape), repr(tensor.tolist())))
        drawn = Counter[Any]()
        before = (
            next((i for i, c in enumerate(trace.calls) if _MARK in c.args), -1) if self.inputs or self.states else -1
        )
        for i, call in enumerate(trace.calls):
            self._add(call, i < before, drawn)

    def _add(self, call: Call, before: bool, drawn: Counter[Any]) -> None:
        key: tuple[Any, ...] = (call.op, self.key(list(call.args)), self.key(dict(call.kwargs)))
        if call.kept and not before:
            drawn[key] += 1
        key = (*key, "drawn before" if before else drawn[key]) if call.kept else key
        for place, out in enumerate(call.outs):
            self.of[out] = self._number((*key, place))
            for symbol in made(self.trace.values[out]):
                self.symbols.setdefault(symbol, self.of[out])

    def _number(self, key: Any) -> int:
        return self.known.setdefault(key, len(self.known))

    def key(self, arg: Any) -> Any:
        match arg:
            case Var(n):
                return ("value", self.of[n])
            case Size(expr, parts, kind):
                names = {str(s): self.symbols.get(s) for s in getattr(expr, "free_symbols", ())}
                made_of = tuple(sorted((str(k), v if v is not None else -1) for k, v in names.items()))
                shape = str(expr)
                for i, (name, _) in enumerate(made_of):
                    shape = shape.replace(name, f"s{i}")
                return ("size", shape, tuple(v for _, v in made_of), parts and repr(parts[0]), kind)
            case Body(trace, inputs):
                inner = _Keys(
                    replace(trace, num_inputs=0, num_state=0),
                    self.known,
                    0,
                    0,
                    {n: self._number(("given", i)) for i, n in enumerate(inputs)},
                )
                return ("body", inner.key(trace.outputs))
            case list() | tuple():
                return (type(arg).__name__, *(self.key(a) for a in arg))
            case dict():
                return ("dict", *((k, self.key(v)) for k, v in arg.items()))
        return (type(arg).__name__, repr(arg))

    def of_results(self, outputs: Tree, updates: Sequence[int]) -> Any:
        out, new = outputs if updates else (outputs, {})
        return self.key(out), {i - self.states: self.key(v) for i, v in new.items() if i >= self.states}

    def of_second(self) -> Any:
        out, new = self.trace.outputs if self.trace.updates else (self.trace.outputs, {})
        return self.of_results((out[1], new), (0,))
