"""A verified Graph as one Python function, and running it.

The function's text holds numbers and names of ours only: ops become methods and globals looked up
in the op table, texts and dtypes become globals too. Each action is one line, which is how a
failure finds its action. Values are let go after their last use.
"""

from __future__ import annotations

import builtins
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedq.plan import optable
from fedq.plan.graph import Action, Arg, Dtype, Format, Graph, Var
from fedq.plan.kernels import kernel, method
from fedq.plan.tensors import DTYPES
from fedq.plan.verify import Verified

FORMATS = {
    "contiguous": torch.contiguous_format, "preserve": torch.preserve_format,
    "channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d,
}  # fmt: skip
_STRIDED = frozenset(("aten.view", "aten.view.dtype", "aten._unsafe_view", "aten.view_as", "aten.view_as_complex"))
"""Ops that refuse some layouts of memory: a recording may hold them where it saw contiguous inputs."""


class ActionFailed(Exception):
    """An action raised; says which, never what torch said (it echoes values), which is the cause."""

    def __init__(self, action: int, op: str) -> None:
        super().__init__(f"action {action} ({op}) failed")
        self.action = action
        self.op = op


@dataclass(frozen=True, slots=True)
class Compiled:
    """A graph made runnable.

    Attributes:
        fn: ``fn(*inputs, *state)`` gives the outputs, flat, as a tuple.
        source: its text.
        random: whether it draws from the generator.
        ops: of each action, for messages.
        arity: how many inputs and state tensors it takes.
    """

    fn: Callable[..., tuple[Any, ...]]
    source: str
    random: bool
    ops: tuple[str, ...]
    arity: int


def compile(verified: Verified) -> Compiled:
    """The function of a graph."""
    graph = verified.graph
    first = len(graph.inputs) + len(graph.state)
    writer = _Writer(graph, {"__builtins__": {}})
    lines = [
        f"def replay({', '.join(f'v{n}' for n in range(first))}):",
        f"    {_entry(graph)}",
        *(f"    {line}" for line in writer.lines()),
        f"    return ({''.join(f'v{var.number}, ' for var in graph.output_vars)})",
    ]
    source = "\n".join(lines) + "\n"
    exec(builtins.compile(source, "<plan>", "exec"), writer.scope)
    return Compiled(writer.scope["replay"], source, verified.random, tuple(a.op for a in graph.actions), first)


def run(
    compiled: Compiled, inputs: Sequence[Any], state: Sequence[Any], *, seed: int, fork_rng: bool = False
) -> tuple[Any, ...]:
    """The outputs, flat, computed under inference_mode; random plans draw from ``seed``.

    Args:
        fork_rng: put the process's generator back as it was.

    Raises:
        ActionFailed: an action raised, or the inputs are not as many as the graph's.
    """
    before = torch.get_rng_state() if compiled.random and fork_rng else None
    if compiled.random:
        torch.default_generator.manual_seed(seed)
    try:
        with torch.inference_mode():
            return compiled.fn(*inputs, *state)
    except Exception as error:
        raise ActionFailed(*_blame(compiled, error)) from error
    finally:
        if before is not None:
            torch.set_rng_state(before)


def _blame(compiled: Compiled, error: Exception) -> tuple[int, str]:
    """The action whose line raised; -1 where none did."""
    code = compiled.fn.__code__
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is code:
            action = trace.tb_lineno - _FIRST_LINE
            return (action, compiled.ops[action]) if 0 <= action < len(compiled.ops) else (-1, "")
        trace = trace.tb_next
    return -1, ""


def harden() -> None:
    """For a worker's process: nothing that was not written to is ever handed out.

    torch then fills new memory (integers with their largest value, floats with NaN) before ops
    write to it, and picks the deterministic form of an op. A setting of the whole process.
    """
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


# -- writing the function -----------------------------------------------------------------------

_FIRST_LINE = 3


def _entry(graph: Graph) -> str:
    """Line 2: inputs made contiguous where an action needs it."""
    if not any(a.op in _STRIDED for a in graph.actions):
        return "pass"
    tensors = [n for n, t in enumerate(graph.types[: len(graph.inputs) + len(graph.state)]) if t.is_tensor]
    return "; ".join(f"v{n} = v{n}.contiguous()" for n in tensors) or "pass"


class _Writer:
    """Writes actions as lines; what can not stand in a text goes to ``scope``, the function's globals."""

    def __init__(self, graph: Graph, scope: dict[str, Any]) -> None:
        self.graph = graph
        self.types = graph.types
        self.scope = scope
        self.named: dict[Any, str] = {}

    def lines(self) -> Iterator[str]:
        last = {var.number: i for i, action in enumerate(self.graph.actions) for var in action.vars()}
        kept = {var.number for var in self.graph.output_vars}
        dying: dict[int, list[int]] = {}
        for i, (_, numbers) in enumerate(self.graph.numbered()):
            for n in numbers:
                if n not in kept:
                    dying.setdefault(last.get(n, i), []).append(n)
        for i, (action, numbers) in enumerate(self.graph.numbered()):
            dead = "; del " + ", ".join(f"v{n}" for n in dying[i]) if i in dying else ""
            yield f"{self.results(action, numbers)} = {self.call(action)}{dead}"

    def is_tensor(self, arg: Arg) -> bool:
        return isinstance(arg, Var) and self.types[arg.number].is_tensor

    def results(self, action: Action, numbers: range) -> str:
        op = optable.find(action.op)
        assert op is not None
        if op.returns in (("Tensor",), ("Scalar",)):
            return f"v{numbers[0]}"
        return f"[{', '.join(f'v{n}' for n in numbers)}]"

    def call(self, action: Action) -> str:
        op = optable.find(action.op)
        assert op is not None
        keyword = {p.name: p for p in op.params}
        named = {k: v for k, v in action.kwargs.items() if keyword[k].kind != "none"}
        args = [*map(self.arg, action.args), *(f"{k}={self.arg(v)}" for k, v in named.items())]
        if op.name == "sym.size" and len(action.args) == 2:
            return f"{args[0]}.shape[{args[1]}]"
        name = method(op)
        if not all(keyword[k].keyword for k in named) or (name and not self.is_tensor(action.args[0])):
            op, name = dataclasses.replace(op, fast=""), None
        if name:
            return f"{args[0]}.{name}({', '.join(args[1:])})"
        return f"{self.constant(kernel(op))}({', '.join(args)})"

    def arg(self, arg: Arg) -> str:
        match arg:
            case Var():
                return f"v{arg.number}"
            case None | bool() | int():
                return repr(arg)
            case float() if math.isfinite(arg):
                return repr(arg)
            case list():
                inner = "".join(f"{self.arg(a)}, " for a in arg)
                return f"[{inner}]" if any(isinstance(a, Var) for a in arg) else f"({inner})"
            case Dtype():
                return self.constant(DTYPES[arg.name])
            case Format():
                return self.constant(FORMATS[arg.name])
            case float() | complex() | str():
                return self.constant(arg)
        raise TypeError(f"{type(arg).__name__} is no argument of an action")

    def constant(self, value: Any) -> str:
        key = (type(value), repr(value) if isinstance(value, (float, complex)) else value)
        if key not in self.named:
            self.named[key] = f"c{len(self.named)}"
            self.scope[self.named[key]] = value
        return self.named[key]
