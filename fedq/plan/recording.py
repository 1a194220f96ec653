"""What recording a function gives: its ops in order, as data over torch's symbols of sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fedq.plan.graph import Arg, Tree


@dataclass(frozen=True, slots=True)
class Free:
    """A size, or a Python number, that is a symbol while recording; ``hint`` is what it looks like."""

    hint: int | float


@dataclass(frozen=True, slots=True)
class In:
    """One input as asked for: a tensor's dtype and sizes, or a Python value (``dims`` is None)."""

    dtype: str
    dims: tuple[int | Free, ...] | None = None
    value: Free | bool | int | float | str | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """A number computed from sizes, as an argument of an op.

    ``expr`` is over symbols; for floats, whose rounding depends on the order of the arithmetic,
    ``made`` is the Python operation and its operands instead.
    """

    expr: Any
    made: tuple[Any, ...] | None = None
    kind: str = "int"


@dataclass(frozen=True, slots=True)
class Value:
    """What a recorded value is: a dtype with sizes (ints and expressions), or a number."""

    dtype: str
    dims: tuple[Any, ...] | None = None
    symbol: Any = None


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded op; ``outs`` are numbers into `Trace.values`."""

    op: str
    args: tuple[Arg, ...]
    kwargs: Mapping[str, Arg]
    outs: tuple[int, ...]
    line: str
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """A function given to control flow, recorded: an argument of its call.

    Attributes:
        trace: its recording; the outputs are a list of Vars.
        inputs: numbers in it of what it is called with: carried values and slices, then what it
            uses from outside, which is the last argument of the call.
    """

    trace: Trace
    inputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition on sizes that this recording relies on, and the line that asked."""

    expr: Any
    line: str


@dataclass
class Trace:
    """One recording. Values 0.. are the inputs, then the state, then what calls and constants made.

    Attributes:
        values: every value, by number.
        num_inputs, num_state: how many come first.
        constants: value number -> tensor made inside the function from Python numbers.
        calls: the ops in order.
        outputs: a tree of Var, Size or Python numbers; ``(outputs, {state: new value})`` with updates.
        updates: which of the state the function changed, counted from 0.
        guards: conditions on the symbols.
        asked: conditions that Python code (not an op's inside) put on sizes, decided or not.
        symbols: symbol of each free dimension of the inputs, as (input, dimension) -> symbol;
            dimension -1 is the number itself.
        solved: symbol -> what a guard made of it.
        writes: whether an op wrote to one of its arguments.
        gradients, functional: how it was recorded: below autograd; writes made new values.
        transformed: whether torch.func's transforms (grad, vmap) rewrote what was called.
    """

    values: list[Value] = field(default_factory=list)
    num_inputs: int = 0
    num_state: int = 0
    constants: dict[int, torch.Tensor] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    outputs: Tree = None
    updates: tuple[int, ...] = ()
    guards: list[Guard] = field(default_factory=list)
    asked: list[Guard] = field(default_factory=list)
    symbols: dict[tuple[int, int], Any] = field(default_factory=dict)
    solved: dict[Any, Any] = field(default_factory=dict)
    writes: bool = False
    gradients: bool = False
    functional: bool = False
    transformed: bool = False

    @property
    def last_line(self) -> str:
        return self.calls[-1].line if self.calls else ""

    def line_of(self, symbol: Any) -> str:
        """The line that first put a condition on this symbol."""
        return next((g.line for g in (*self.guards, *self.asked) if symbol in g.expr.free_symbols and g.line), "")
