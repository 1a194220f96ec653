"""A verified Graph as one Python function, and running it.

The function's text holds numbers and names of ours only: ops become methods and globals looked up
in the op table, texts and dtypes become globals too. Each action is one line, which is how a
failure finds its action. Values are let go after their last use.
"""

from __future__ import annotations

import builtins
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedq.plan import bodies, loops, optable, spec
from fedq.plan.graph import Action, Arg, Dtype, Format, Graph, Subgraph, Var
from fedq.plan.kernels import kernel, method
from fedq.plan.tensors import DTYPES, type_of
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
        ops: of each action, for messages; then nothing for each action of its bodies.
        lines: the action whose call ends on each line of the text; -1 for none.
        parts: the graph and its variants, where it has any; actions are then counted through them.
    """

    fn: Callable[..., tuple[Any, ...]]
    source: str
    random: bool
    ops: tuple[str, ...]
    lines: tuple[int, ...]
    parts: tuple[Compiled, ...] = ()


def compile(verified: Verified) -> Compiled:
    """The function of a graph; with variants, one that picks the graph by its inputs' sizes and dtypes."""
    first = compile_one(verified)
    if not verified.variants:
        return first
    parts = (first, *map(compile_one, verified.variants))
    ops = tuple(op for part in parts for op in part.ops)
    return Compiled(_choosing(verified.graph, parts), first.source, verified.random, ops, (), parts)


def _choosing(graph: Graph, parts: Sequence[Compiled]) -> Callable[..., tuple[Any, ...]]:
    known: dict[Any, Callable[..., tuple[Any, ...]]] = {}
    count = len(graph.inputs)

    def replay(*args: Any) -> tuple[Any, ...]:
        key = tuple([(a.dtype, a.shape) if isinstance(a, torch.Tensor) else (type(a), a) for a in args[:count]])
        fn = known.get(key)
        if fn is None:
            fn = parts[spec.choose(graph, [type_of(a) for a in args[:count]])[0]].fn
            if len(known) < 1000:
                known[key] = fn
        return fn(*args)

    return replay


def compile_one(verified: Verified, dry: Dry | None = None) -> Compiled:
    """The function of a graph without its variants; ``dry``: what it calls in a dry run.

    Raises:
        OtherTorch: its ops were not judged for the torch that is loaded.
    """
    optable.check_torch(torch.__version__)
    writer = _Writer(verified.graph, dry)
    source = writer.text()
    inside = sum(len(body.actions) for _, body in bodies.nested(verified.graph))
    ops = (*(action.op for action in verified.graph.actions), *("" for _ in range(inside)))
    return Compiled(writer.function(source), source, verified.random, ops, tuple(writer.ends))


def run(
    compiled: Compiled,
    inputs: Sequence[Any],
    state: Sequence[Any],
    *,
    seed: int,
    fork_rng: bool = False,
    over: Callable[..., tuple[Any, ...]] | None = None,
) -> tuple[Any, ...]:
    """The outputs, flat, computed under inference_mode; random plans draw from ``seed``.

    Args:
        fork_rng: put the process's generator back as it was.
        over: called in place of the plan's function, which it calls itself, as often as it wants.

    Raises:
        ActionFailed: an action raised, or the inputs are not as many as the graph's.
    """
    before = torch.get_rng_state() if compiled.random and fork_rng else None
    if compiled.random:
        torch.default_generator.manual_seed(seed)
    try:
        with torch.inference_mode():
            return (over or compiled.fn)(*inputs, *state)
    except Exception as error:
        raise ActionFailed(*blame(compiled, error)) from error
    finally:
        if before is not None:
            torch.set_rng_state(before)


def blame(compiled: Compiled, error: Exception) -> tuple[int, str]:
    """The action whose call raised, by the line on which the call ends; -1 where none did."""
    first = 0
    for part in compiled.parts:
        action, op = blame(part, error)
        if action >= 0:
            return first + action, op
        first += len(part.ops)
    code = compiled.fn.__code__
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not code:
        trace = trace.tb_next
    if trace is None:
        return -1, ""
    if compiled.parts:
        return -1, ""
    _, line, _, _ = list(code.co_positions())[trace.tb_lasti // 2]
    action = compiled.lines[line - 1] if line is not None else -1
    return action, compiled.ops[action] if action >= 0 else ""


def harden() -> None:
    """For a worker's process: nothing that was not written to is ever handed out.

    torch then fills new memory (integers with their largest value, floats with NaN) before ops
    write to it, and picks the deterministic form of an op. A setting of the whole process. Set
    below `torch.use_deterministic_algorithms`, which imports torch._inductor: two seconds.
    """
    torch._C._set_deterministic_algorithms(True, warn_only=False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


# -- writing the function -----------------------------------------------------------------------

MAX_NESTED = 30
"""Actions in one expression: a value used once, by the next action, gets no name."""


def _entry(graph: Graph) -> str:
    """The function's first statement: inputs made contiguous where an action needs it."""
    if not any(a.op in _STRIDED for a in graph.actions):
        return "pass"
    tensors = [n for n, t in enumerate(graph.types[: len(graph.inputs) + len(graph.state)]) if t.is_tensor]
    return "; ".join(f"v{n} = v{n}.contiguous()" for n in tensors) or "pass"


def _loaded(name: str, *_: object) -> Any:
    """The one builtin of compiled code: modules that are loaded already.

    torch's C++ imports where it first meets a kind of number or error, and Python then asks the frame
    that runs, which is the plan's. The text of a plan never imports, and nothing is loaded for it.
    """
    if name not in sys.modules:
        raise ImportError(f"{name} is not loaded", name=name)
    return sys.modules[name]


@dataclass(frozen=True, slots=True)
class Dry:
    """What is called in place of kernels and of control flow where there are no values.

    Attributes:
        rules: as `loops.RULES`.
        kernel: given an op and the callable that a device would call, what is called.
    """

    rules: Mapping[str, Callable[..., Callable[..., Any]]]
    kernel: Callable[[optable.Op, Callable[..., Any]], Callable[..., Any]]


class _Writer:
    """Writes the function; what can not stand in a text goes to ``scope``, its globals."""

    def __init__(self, graph: Graph, dry: Dry | None = None) -> None:
        self.graph = graph
        self.dry, self.rules = dry, dry.rules if dry else loops.RULES
        self.types = graph.types
        self.scope: dict[str, Any] = {"__builtins__": {"__import__": _loaded}}
        self.named: dict[Any, str] = {}
        self.nested: dict[int, str] = {}
        self.ends: list[int] = []
        self.bodies = [_function(body, dry) for body in graph.graphs]
        self.uses: dict[int, list[int]] = {}
        for i, action in enumerate(graph.actions):
            for var in action.vars():
                self.uses.setdefault(var.number, []).append(i)
        for var in graph.output_vars:
            self.uses.setdefault(var.number, []).append(len(graph.actions))

    def text(self) -> str:
        first = len(self.graph.inputs) + len(self.graph.state)
        lines = [f"def replay({', '.join(f'v{n}' for n in range(first))}):", f"    {_entry(self.graph)}"]
        self.ends += [-1, -1]
        lines += self.statements(first)
        outputs = "".join(f"v{var.number}, " for var in self.graph.output_vars)
        self.ends.append(-1)
        return "\n".join([*lines, f"    return ({outputs})", ""])

    def function(self, text: str) -> Callable[..., tuple[Any, ...]]:
        exec(builtins.compile(text, "<plan>", "exec"), self.scope)
        return self.scope["replay"]  # type: ignore[no-any-return]

    def statements(self, first: int) -> Iterator[str]:
        """One statement for each action, or each chain of actions; a call ends where its line ends."""
        dying: dict[int, list[int]] = {}
        for n in range(first, len(self.types)):
            dying.setdefault(max(self.uses.get(n, [-1])), []).append(n)
        depth, dead = 0, list[int]()
        for i, (action, numbers) in enumerate(self.graph.numbered()):
            call = self.call(action)
            self.ends.append(i)
            held = bool(dead)
            dead += [n for n in dying.get(i, []) if n not in self.nested]
            self.nested = {}
            if not held and depth < MAX_NESTED and self.is_inner(action, numbers, i):
                self.nested, depth = {numbers[0]: f"{call}\n        "}, depth + 1
                continue
            dead += [n for n in numbers if n not in self.uses]
            after = f"; del {', '.join(f'v{n}' for n in dead)}" if dead else ""
            yield f"    {self.results(action, numbers)} = {f'({call})' if depth else call}{after}"
            depth, dead = 0, []

    def is_inner(self, action: Action, numbers: range, i: int) -> bool:
        """Whether the only use of a result is by the next action: then it needs no name."""
        return _single(action) and self.uses.get(numbers[0]) == [i + 1] and i + 1 < len(self.graph.actions)

    def is_tensor(self, arg: Arg) -> bool:
        return isinstance(arg, Var) and self.types[arg.number].is_tensor

    def results(self, action: Action, numbers: range) -> str:
        names = ", ".join(f"v{n}" for n in numbers)
        return names if _single(action) else f"[{names}]"

    def call(self, action: Action) -> str:
        if action.op in self.rules:
            called = [self.bodies[a.number] for a in action.args if isinstance(a, Subgraph)]
            rest = [self.arg(a) for a in action.args if not isinstance(a, Subgraph)]
            return f"{self.constant(self.rules[action.op](*called))}({', '.join(rest)})"
        op = optable.find(action.op)
        assert op is not None
        keyword = {p.name: p for p in op.params}
        named = {k: v for k, v in action.kwargs.items() if keyword[k].kind != "none"}
        args = [*map(self.arg, action.args), *(f"{k}={self.arg(v)}" for k, v in named.items())]
        if op.name == "sym.size" and len(action.args) == 2:
            return f"{args[0]}.shape[{args[1]}]"
        name = method(op)
        if any(isinstance(a, Format) for a in action.args):  # methods take a memory format by name only
            op, name = dataclasses.replace(op, fast=""), None
        if not all(keyword[k].keyword for k in named) or (name and not self.is_tensor(action.args[0])):
            op, name = dataclasses.replace(op, fast=""), None
        if self.dry is not None:
            return f"{self.constant(self.dry.kernel(op, kernel(op)))}({', '.join(args)})"
        if name:
            return f"{args[0]}.{name}({', '.join(args[1:])})"
        return f"{self.constant(kernel(op))}({', '.join(args)})"

    def arg(self, arg: Arg) -> str:
        match arg:
            case Var():
                return self.nested.get(arg.number, f"v{arg.number}")
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


def _function(graph: Graph, dry: Dry | None) -> Callable[..., tuple[Any, ...]]:
    """A body as a function: of what it is given, to a tuple."""
    writer = _Writer(graph, dry)
    return writer.function(writer.text())


def _single(action: Action) -> bool:
    """Whether an action gives one value, not a list."""
    op = optable.find(action.op)
    return op is not None and op.returns in (("Tensor",), ("Scalar",))
