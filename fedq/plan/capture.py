"""Record one run of a Python function on fake tensors: the ops it calls, in order.

No data is touched: inputs are fakes whose free sizes are symbols, so Python that looks at values
fails, and Python that looks at sizes leaves a guard. Ops are seen before autograd and before
composite ops are taken apart, so what is recorded is what the function called, and replays as
eager would at other sizes and dtypes; only where the function takes a gradient itself are they
seen below autograd. What one recording proves and what not: `plan.prove`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import sympy
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, PythonKeyTracer
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from fedq.errors import CannotRecord
from fedq.plan.blame import Unrecordable, cannot, user_line, watched
from fedq.plan.graph import Arg, Dtype, Format, Tree, Var
from fedq.plan.tensors import NAMES

FORMATS = {
    torch.contiguous_format: "contiguous",
    torch.preserve_format: "preserve",
    torch.channels_last: "channels_last",
    torch.channels_last_3d: "channels_last_3d",
}
_SYMS = (torch.SymInt, torch.SymFloat, torch.SymBool)


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
        outputs: a tree of Var, Size or Python numbers.
        guards: conditions on the symbols.
        asked: conditions that Python code (not an op's inside) put on sizes, decided or not.
        symbols: symbol of each free dimension of the inputs, as (input, dimension) -> symbol;
            dimension -1 is the number itself.
        solved: symbol -> what a guard made of it.
        writes: whether an op wrote to one of its arguments.
    """

    values: list[Value] = field(default_factory=list)
    num_inputs: int = 0
    num_state: int = 0
    constants: dict[int, torch.Tensor] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    outputs: Tree = None
    guards: list[Guard] = field(default_factory=list)
    asked: list[Guard] = field(default_factory=list)
    symbols: dict[tuple[int, int], Any] = field(default_factory=dict)
    solved: dict[Any, Any] = field(default_factory=dict)
    writes: bool = False

    @property
    def last_line(self) -> str:
        return self.calls[-1].line if self.calls else ""

    def line_of(self, symbol: Any) -> str:
        """The line that first put a condition on this symbol."""
        return next((g.line for g in (*self.guards, *self.asked) if symbol in g.expr.free_symbols and g.line), "")


class _Sizes(ShapeEnv):
    """Torch's account of symbolic sizes, which also notes who asked what."""

    def __init__(self) -> None:
        super().__init__(duck_shape=False)
        self.inside_op = False
        self.lines: list[Guard] = []
        self.asked: list[Guard] = []

    def evaluate_expr(self, orig_expr: Any, *args: Any, **kwargs: Any) -> Any:
        known = len(self.guards)
        result = super().evaluate_expr(orig_expr, *args, **kwargs)
        if getattr(orig_expr, "free_symbols", None):
            if not self.inside_op:
                self.asked.append(Guard(orig_expr, user_line()))
            self.lines += [Guard(g.expr, user_line()) for g in self.guards[known:]]
        return result


class _Watch(TorchFunctionMode):
    """Stops at calls that would leave the recording: values as Python, gradients."""

    def __init__(self, *, gradients: bool) -> None:
        super().__init__()
        self.gradients = gradients

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _GRADIENTS and not self.gradients:
            raise TakesGradient
        if func in watched():
            raise Unrecordable(watched()[func])
        return func(*args, **(kwargs or {}))


class TakesGradient(BaseException):
    """The function takes a gradient: record it below autograd instead."""


_GRADIENTS = (torch.autograd.grad, torch.Tensor.backward, torch.autograd.backward)


class _Recorder(ProxyTorchDispatchMode):  # type: ignore[no-untyped-call]
    """Appends every op that reaches it to a trace, then lets it run on the fakes."""

    supports_higher_order_operators = True

    def __init__(self, sizes: _Sizes, *, pre_dispatch: bool) -> None:
        super().__init__(PythonKeyTracer(), "real", pre_dispatch=pre_dispatch)
        self.sizes = sizes
        self.trace = Trace()
        self.numbers = WeakIdKeyDictionary()  # a strong one makes torch copy what factories return
        self.alive: list[Any] = []
        self.made: dict[int, tuple[Any, ...]] = {}
        self.state_memory: set[int] = set()

    def __sym_dispatch__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        if isinstance(out, torch.SymFloat):
            self.alive.append(out)
            self.made[id(out.node)] = (func.__name__, *args)
        return out

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            raise Unrecordable(
                f"torch.{getattr(func, '__name__', func)} can not be recorded yet", "write it with torch.where"
            )
        was, self.sizes.inside_op = self.sizes.inside_op, True
        try:
            run = _RNNS.get(func, func) if self.pre_dispatch else func
            out = run(*args, **kwargs)
        finally:
            self.sizes.inside_op = was
        leaves = list(out) if isinstance(out, (tuple, list)) else [out]
        same = _same_value(func, args)
        if same is not None:
            self.numbers[out] = self._tensor(same).number
        elif func._schema.is_mutable or any(isinstance(x, (torch.Tensor, *_SYMS)) for x in leaves):
            self._append(func, args, kwargs, leaves)
        return out

    def _append(self, func: Any, args: Any, kwargs: Any, leaves: list[Any]) -> None:
        line = user_line()
        self._note_writes(func, args, kwargs)
        op, args, kwargs = _named(func, args, kwargs)
        call_args = tuple(self.arg(a) for a in args)
        call_kwargs = {k: self.arg(v) for k, v in kwargs.items()}
        kept = func._schema.is_mutable or torch.Tag.nondeterministic_seeded in func.tags
        outs = tuple(self.add(x) for x in leaves)
        self.trace.calls.append(Call(op, call_args, call_kwargs, outs, line, kept))

    def _note_writes(self, func: Any, args: Any, kwargs: Any) -> None:
        if func.overloadpacket in _HIDDEN_WRITES and any(self._is_state(a) for a in args[3:5]) and args[5]:
            raise Unrecordable(*_HIDDEN_STATE)
        if not func._schema.is_mutable:
            return
        self.trace.writes = True
        for i, spec in enumerate(func._schema.arguments):
            value = args[i] if i < len(args) else kwargs.get(spec.name)
            written = spec.alias_info is not None and spec.alias_info.is_write
            if written and any(map(self._is_state, value if isinstance(value, list) else [value])):
                raise Unrecordable(*_HIDDEN_STATE)

    def _is_state(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.untyped_storage()._cdata in self.state_memory

    def add(self, value: Any) -> int:
        """The number of a value that was just made."""
        number = len(self.trace.values)
        self.trace.values.append(_value(value))
        if isinstance(value, torch.Tensor):
            self.numbers[value] = number
        return number

    def arg(self, value: Any) -> Arg:
        """An argument of an op, as data."""
        match value:
            case torch.Tensor():
                return self._tensor(value)
            case torch.SymInt() | torch.SymFloat() | torch.SymBool():
                return self._size(value)
            case torch.dtype():
                return _dtype(value)
            case torch.memory_format():
                return Format(FORMATS[value])
            case list() | tuple():
                return [self.arg(v) for v in value]
            case None | bool() | int() | float() | complex() | str():
                return value
        raise Unrecordable(f"a {type(value).__name__} can not be an argument of a recorded op")

    def _tensor(self, value: torch.Tensor) -> Var:
        number = self.numbers.get(value)  # type: ignore[no-untyped-call]
        if number is None:
            if isinstance(value, FakeTensor):
                raise Unrecordable("it uses a tensor of which no op is known", "report this function")
            number = self.add(value)
            self.trace.constants[number] = value
        return Var(number)

    def _size(self, value: Any) -> Any:
        if value.node.is_constant() or not isinstance(value.node.expr, sympy.Basic):
            return value.node.constant
        return Size(value.node.expr, self._made(value))

    def _made(self, value: Any) -> tuple[Any, ...] | None:
        found = self.made.get(id(value.node)) if isinstance(value, torch.SymFloat) else None
        return found and (found[0], *(self._size(a) if isinstance(a, _SYMS) else a for a in found[1:]))


def _rnn(given: Any, hx: Any, params: Any, *rest: Any, **named: Any) -> Any:
    """What a recurrent layer gives; torch's own rule would run over every time step."""
    states = list(hx) if isinstance(hx, (list, tuple)) else [hx]
    layers = rest[1] if len(rest) > 1 else named["num_layers"]
    out = given.new_empty((*given.shape[:-1], states[0].shape[-1] * (states[0].shape[0] // layers)))
    return (out, *(given.new_empty(s.shape) for s in states))


_RNNS = {getattr(torch.ops.aten, name).input: _rnn for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")}
_HIDDEN_WRITES = (torch.ops.aten.batch_norm, torch.ops.aten.native_batch_norm, torch.ops.aten.instance_norm)
_HIDDEN_STATE = (
    "it writes to its state (a parameter or buffer), and a plan has outputs, never hidden writes",
    "call .eval() first, or clone the state and return the new one",
)


def _same_value(func: Any, args: Any) -> torch.Tensor | None:
    """The argument that an op gives back as it is, if it does: it is left out.

    A slice of all of a dimension is one: torch calls it for free sizes only.
    """
    if func in (torch.ops.aten.lift_fresh.default, torch.ops.aten.detach_.default):
        return cast(torch.Tensor, args[0])
    if func is torch.ops.aten.slice.Tensor and args[2:] in _ALL:
        return cast(torch.Tensor, args[0])
    if func is torch.ops.aten.slice_scatter.default and args[3:] in _ALL:
        return cast(torch.Tensor, args[1])
    return None


_ALL = ((0, (1 << 63) - 1), (0, (1 << 63) - 1, 1))
_SPELLED = {
    "aten.zero": "aten.zeros_like",
    "aten.empty.memory_format": "aten.zeros",
    "aten.empty_like": "aten.zeros_like",
    "aten.new_empty": "aten.new_zeros",
}
_STRIPPED = ("device", "layout", "pin_memory")


def _named(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """Our name and arguments of an op: no devices, no layouts, nothing uninitialised."""
    device = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.device)), None)
    if device is not None and device.type != "cpu":
        raise Unrecordable(f"it asks for device {device}", "leave devices out: a plan runs where the data is")
    op = func.name().replace("::", ".")
    if op == "aten.to.device":
        op, args = "aten.to.dtype", (args[0], *args[2:])
    elif op in ("aten.to.dtype_layout", "aten.to.prim_Device"):
        op, args, kwargs = _to_dtype(args, kwargs)
    kwargs = {k: v for k, v in kwargs.items() if k not in _STRIPPED and v is not None}
    if op == "aten.empty.memory_format":
        kwargs.pop("memory_format", None)
    if op == "aten.empty_strided":
        raise Unrecordable("it makes an uninitialised tensor", "use torch.zeros")
    return _SPELLED.get(op, op), args, kwargs


def _to_dtype(args: Any, kwargs: dict[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    dtype = next((a for a in (*args[1:], *kwargs.values()) if isinstance(a, torch.dtype)), args[0].dtype)
    rest = {k: v for k, v in kwargs.items() if k in ("non_blocking", "copy", "memory_format")}
    return "aten.to.dtype", (args[0], dtype), rest


def _dtype(dtype: torch.dtype) -> Dtype:
    if dtype not in NAMES:
        raise Unrecordable(f"{dtype} has no place in a plan", f"use one of {', '.join(sorted(NAMES.values()))}")
    return Dtype(NAMES[dtype])


def _value(value: Any) -> Value:
    match value:
        case torch.Tensor():
            dims = tuple(d if isinstance(d, int) else d.node.expr for d in value.shape)
            return Value(_dtype(value.dtype).name, dims)
        case torch.SymInt() | torch.SymFloat() | torch.SymBool():
            name = {torch.SymInt: "int", torch.SymFloat: "float", torch.SymBool: "bool"}[type(value)]
            return Value(name, None, value.node.expr)
        case bool() | int() | float() | str():
            return Value(type(value).__name__, None, value)
    raise Unrecordable("it uses an op that gives no tensor in one of its places")


# -- one recording ---------------------------------------------------------------------------

Function = Callable[..., Any]
"""Called with the list of state tensors, then the inputs."""


def record(function: Function, inputs: Sequence[In], state: Sequence[torch.Tensor] = ()) -> Trace:
    """Run ``function(state, *inputs)`` on fakes and record it; no recorded op writes to its arguments.

    Args:
        function: the user's function, given its state as a list.
        inputs: what to fake.
        state: real tensors; only their shapes and dtypes are used.

    Raises:
        CannotRecord: it does what a plan cannot hold; names the user's line.
    """
    try:
        trace = _record(function, inputs, state, _plain)
        return _record(function, inputs, state, _functional) if trace.writes else trace
    except TakesGradient:
        trace = _record(function, inputs, state, _plain, gradients=True)
        return _record(function, inputs, state, _functional, gradients=True) if trace.writes else trace


def _record(
    function: Function, inputs: Sequence[In], state: Sequence[torch.Tensor], run: Any, *, gradients: bool = False
) -> Trace:
    sizes = _Sizes()
    fakes = FakeTensorMode(shape_env=sizes, allow_non_fake_inputs=False, allow_fallback_kernels=False)
    recorder = _Recorder(sizes, pre_dispatch=not gradients)
    trace = recorder.trace
    args = [_fake(fakes, sizes, trace, i, given) for i, given in enumerate(inputs)]
    held = [fakes.from_tensor(t, static_shapes=True) for t in state]
    trace.num_inputs, trace.num_state = len(args), len(held)
    for value in (*args, *held):
        recorder.add(value)
    recorder.state_memory = {t.untyped_storage()._cdata for t in held}
    sizes.asked.clear()
    with cannot(), _modes(fakes, recorder, gradients=gradients):
        trace.outputs = _outputs(recorder, run(function, held, args, pre_dispatch=not gradients))
        _refuse_equalities_of_data(sizes)
    trace.guards, trace.asked = sizes.lines, sizes.asked
    trace.solved = {s: sizes.replace(s) for s in trace.symbols.values()}
    return trace


def _refuse_equalities_of_data(sizes: _Sizes) -> None:
    for checks in sizes.deferred_runtime_asserts.values():
        if any(isinstance(check.expr, sympy.Eq) for check in checks):
            raise Unrecordable(
                "a size that depends on data meets another size", "bring both to one size first, or use torch.where"
            )


def call_users_function(function: Function, held: list[Any], args: list[Any]) -> Any:
    return function(held, *args)


def _plain(function: Function, held: list[Any], args: list[Any], *, pre_dispatch: bool) -> Any:
    return call_users_function(function, held, args)


def _functional(function: Function, held: list[Any], args: list[Any], *, pre_dispatch: bool) -> Any:
    """Run it with writes turned into new values, and views of what was written taken again."""
    with FunctionalTensorMode(pre_dispatch=pre_dispatch):
        wrap = [FunctionalTensor.to_functional(a) if isinstance(a, torch.Tensor) else a for a in (*held, *args)]
        out = call_users_function(function, wrap[: len(held)], wrap[len(held) :])
        return tree_map_only(FunctionalTensor, _synced, out)


def _synced(tensor: Any) -> Any:
    torch._sync(tensor)  # type: ignore[attr-defined, no-untyped-call]
    return FunctionalTensor.from_functional(tensor)


@contextmanager
def _modes(fakes: FakeTensorMode, recorder: _Recorder, *, gradients: bool) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(fakes)
        stack.enter_context(enable_python_dispatcher())
        stack.enter_context(_Watch(gradients=gradients))
        stack.enter_context(recorder)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch logs what a fake op refuses; here refusing is an answer."""
    torch_log = logging.getLogger("torch._subclasses.fake_tensor")
    torch_log.addFilter(_never)
    try:
        yield
    finally:
        torch_log.removeFilter(_never)


def _never(record: logging.LogRecord) -> bool:
    return False


def _fake(fakes: FakeTensorMode, sizes: _Sizes, trace: Trace, number: int, given: In) -> Any:
    from fedq.plan.tensors import DTYPES

    if given.dims is None:
        return _number(sizes, trace, number, given.value)
    free = [isinstance(d, Free) for d in given.dims]
    shape = [int(d.hint) if isinstance(d, Free) else d for d in given.dims]
    kinds = [DimDynamic.DYNAMIC if f else DimDynamic.STATIC for f in free]
    tensor = torch.empty(shape, dtype=DTYPES[given.dtype], device="meta")
    context: Any = StatelessSymbolicContext(dynamic_sizes=kinds)
    fake = _on_cpu(fakes, tensor, context, number)
    trace.symbols |= {(number, d): s.node.expr for d, s in enumerate[Any](fake.shape) if isinstance(s, torch.SymInt)}
    return fake


def _on_cpu(fakes: FakeTensorMode, meta: torch.Tensor, context: Any, number: int) -> torch.Tensor:
    with torch.utils._python_dispatch._disable_current_modes():
        real = torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype)
    return fakes.from_tensor(real, symbolic_context=context, source=ConstantSource(f"input{number}"))


def _number(sizes: _Sizes, trace: Trace, number: int, value: Any) -> Any:
    if not isinstance(value, Free):
        return value
    source = ConstantSource(f"input{number}")
    symbol = sizes.create_symbol(value.hint, source, DimDynamic.DYNAMIC, positive=None, do_not_specialize_zero_one=True)
    trace.symbols[number, -1] = symbol
    make = sizes.create_symintnode if isinstance(value.hint, int) else sizes.create_symfloatnode
    return make(symbol, hint=value.hint, source=source)


def _outputs(recorder: _Recorder, out: Any) -> Tree:
    match out:
        case list():
            return [_outputs(recorder, v) for v in out]
        case tuple():
            return tuple(_outputs(recorder, v) for v in out)
        case dict():
            return {k: _outputs(recorder, v) for k, v in out.items()}
        case None:
            return None
        case torch.Tensor() | torch.SymInt() | torch.SymFloat() | int() | float():
            return recorder.arg(out)
    raise CannotRecord(
        f"it returns a {type(out).__name__}",
        hint="return tensors, numbers made of sizes, or lists, tuples and dicts of them",
    )
