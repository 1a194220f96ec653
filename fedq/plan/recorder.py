"""The dispatch mode that appends every op it sees to a `Trace`, and lets it run on fakes.

Devices, layouts and uninitialised memory are left out on the way; ops that give back an argument
as it is are not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import sympy
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, PythonKeyTracer
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv, free_unbacked_symbols
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from fedq.errors import CannotRecord
from fedq.plan.blame import DEVICES, OTHER_MEMORY, WRITES_TO_ARGUMENT, Line, Unrecordable, shown, user_line
from fedq.plan.graph import Arg, Dtype, Format, Var
from fedq.plan.held import is_own, stand_in
from fedq.plan.recording import Call, Guard, Size, Trace, Value
from fedq.plan.rules import RUN_AS, refuse_empty, refuse_outright
from fedq.plan.settle import at
from fedq.plan.sizes import FLOAT_ORDER
from fedq.plan.tensors import NAMES

FORMATS = {
    torch.contiguous_format: "contiguous",
    torch.preserve_format: "preserve",
    torch.channels_last: "channels_last",
    torch.channels_last_3d: "channels_last_3d",
}
_KINDS = {torch.SymInt: "int", torch.SymFloat: "float", torch.SymBool: "bool"}
_SYMS = tuple(_KINDS)


def _hint_for(value: Any) -> str:
    if isinstance(value, torch.Generator):
        return "leave the generator out: random numbers are drawn from the seed of the message"
    return "give it tensors and numbers"


def _kind(value: Any) -> str:
    return next(kind for type_, kind in _KINDS.items() if isinstance(value, type_))


class Sizes(ShapeEnv):
    """Torch's account of symbolic sizes, which also notes who asked what."""

    def __init__(self) -> None:
        super().__init__(duck_shape=False)
        self.inside_op = False
        self.lines: list[Guard] = []
        self.asked: list[Guard] = []
        self.deferred: list[Guard] = []

    def evaluate_expr(self, orig_expr: Any, *args: Any, **kwargs: Any) -> Any:
        known = len(self.guards)
        result = super().evaluate_expr(orig_expr, *args, **kwargs)
        if getattr(orig_expr, "free_symbols", None):
            if not self.inside_op:
                self.asked.append(Guard(orig_expr, user_line()))
            self.lines += [Guard(g.expr, user_line()) for g in self.guards[known:]]
        return result

    def guard_or_defer_runtime_assert(self, orig_expr: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self.deferred.append(Guard(orig_expr, user_line()))
        return super().guard_or_defer_runtime_assert(orig_expr, *args, **kwargs)

    def refuse_equalities_of_data(self) -> None:
        """Refuse what holds only if a size that depends on data is another size."""
        checks = [
            c.expr for some in self.deferred_runtime_asserts.values() for c in some if isinstance(c.expr, sympy.Eq)
        ]
        if checks:
            symbols = {s for check in checks for s in check.free_symbols}
            line = next((g.line for g in reversed(self.deferred) if symbols & g.expr.free_symbols and g.line), Line())
            raise CannotRecord(
                f"a size that depends on data meets another size{shown(line)}",
                hint="bring both to one size first, or use torch.where",
                line=line,
            )


_MARK = 0.1618033988749895e-5
SEEDS = (
    "it seeds torch: a plan would repeat what it saw",
    "draw with torch.rand and give the run a seed, or pass the number as an argument",
)


def _by_identity() -> WeakIdKeyDictionary:
    return WeakIdKeyDictionary()  # a strong one makes torch copy what factories return


@dataclass
class Frame:
    """A function being recorded: the plan's own, or a body of control flow in it.

    Attributes:
        trace: what was recorded of it.
        numbers: value -> its number in the trace.
        outside: what it uses of the functions around it; bodies of one call share the list.
        memory: storages that were there before it: it must not write to them.
    """

    trace: Trace = field(default_factory=Trace)
    numbers: WeakIdKeyDictionary = field(default_factory=_by_identity)
    outside: list[torch.Tensor] = field(default_factory=list)
    memory: set[int] = field(default_factory=set)


class Recorder(ProxyTorchDispatchMode):  # type: ignore[no-untyped-call]
    """Appends every op that reaches it to a trace, then lets it run on the fakes."""

    supports_higher_order_operators = True

    def __init__(self, fakes: FakeTensorMode, sizes: Sizes, *, pre_dispatch: bool, functional: bool = False) -> None:
        super().__init__(PythonKeyTracer(), "real", pre_dispatch=pre_dispatch)
        self.fakes = fakes
        self.sizes = sizes
        self.functional = functional
        self.frames = [Frame()]
        self.alive: list[Any] = []
        self.made: dict[int, tuple[Any, ...]] = {}
        self.state_memory: set[int] = set()
        self.seeded = torch.default_generator.get_state()
        self.arguments: list[torch.Tensor] = []
        self.read_values = False
        self.differentiable = False
        self.marks: dict[float, torch.SymFloat] = {}

    @property
    def trace(self) -> Trace:
        return self.frames[-1].trace

    @property
    def numbers(self) -> WeakIdKeyDictionary:
        return self.frames[-1].numbers

    @contextmanager
    def inside(self, frame: Frame) -> Iterator[None]:
        """Record into this frame for a while."""
        self.frames.append(frame)
        try:
            yield
        finally:
            self.frames.pop()

    def inner(self, value: Any) -> Any:
        """What ops see of a value of the user's function: without the wrapper that turns writes into values."""
        if not isinstance(value, FunctionalTensor):
            return value
        torch._sync(value)  # type: ignore[attr-defined, no-untyped-call]
        return FunctionalTensor.from_functional(value)

    def outer(self, value: torch.Tensor) -> torch.Tensor:
        """A value as the user's function is given it."""
        return FunctionalTensor.to_functional(value) if self.functional else value

    def memory(self) -> set[int]:
        """Storages of all values so far."""
        return {t.untyped_storage()._cdata for f in self.frames for t in f.numbers}

    def __sym_dispatch__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        if isinstance(out, torch.SymFloat):
            self.alive.append(out)
            self.made[id(out.node)] = (func.__name__, *args)
        elif isinstance(out, torch.SymInt) and isinstance(args[0], torch.SymFloat):
            self._check_order(self._size(args[0]))
        return out

    def _check_order(self, size: Any) -> None:
        """That a float made into a size is what its expression says: sympy puts terms in an order of its own."""
        symbols = sorted(getattr(getattr(size, "expr", None), "free_symbols", ()), key=str)
        for n in range(2, 40):
            known = {s: sympy.Integer(n + i) for i, s in enumerate(symbols)}
            if symbols and at(size, known) != float(size.expr.xreplace(known)):
                raise Unrecordable(*FLOAT_ORDER)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            raise Unrecordable(f"torch's {getattr(func, '__name__', func)} has no place in a plan")
        refuse_outright(func)
        refuse_empty(func, args)
        self.read_values |= func in _READS
        if func.overloadpacket in _OTHER_MEMORY:
            raise Unrecordable(*OTHER_MEMORY)
        was, self.sizes.inside_op = self.sizes.inside_op, True
        try:
            run = RUN_AS.get(func, func) if self.pre_dispatch else func
            out = _apart(run(*args, **kwargs), func, args)
        except (GuardOnDataDependentSymNode, DataDependentOutputException):
            self.read_values |= not free_unbacked_symbols((args, tuple(kwargs.values())))
            raise
        finally:
            self.sizes.inside_op = was
        leaves = list(out) if isinstance(out, (tuple, list)) else [out]
        same = _same_value(func, args, kwargs)
        if same is not None:
            if any(isinstance(a, torch.device) and a.type != "cpu" for a in (*args, *kwargs.values())):
                raise Unrecordable(*(_FORWARD if self.trace.transformed else ("it uses another device", DEVICES)))
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
        draws = torch.Tag.nondeterministic_seeded in func.tags
        if draws:
            self._check_seed()
        kept = func._schema.is_mutable or draws
        outs = tuple(self.add(x) for x in leaves)
        self.trace.calls.append(Call(op, call_args, call_kwargs, outs, line, kept))

    def _check_seed(self) -> None:
        """That nobody seeded torch before this draw: on fakes, drawing itself changes nothing."""
        with _disable_current_modes():
            if not torch.equal(torch.default_generator.get_state(), self.seeded):
                raise Unrecordable(*SEEDS)

    def _note_writes(self, func: Any, args: Any, kwargs: Any) -> None:
        if func.overloadpacket in _HIDDEN_WRITES and args[5]:
            self._refuse_hidden_writes([a for a in args[3:5] if isinstance(a, torch.Tensor)])
        if not func._schema.is_mutable:
            return
        self.trace.writes = True
        for value in _written(func, args, kwargs):
            if _memory(value) in self.frames[-1].memory:
                raise Unrecordable(
                    "a branch or loop writes to what it was given", "make a new value: i = i + 1, not i += 1"
                )
            if not self.functional and self._is_argument(value, whole=torch.Tag.inplace_view in func.tags):
                raise Unrecordable(*WRITES_TO_ARGUMENT)

    def _refuse_hidden_writes(self, statistics: list[torch.Tensor]) -> None:
        if any(_memory(t) in self.state_memory for t in statistics):
            raise Unrecordable(*_HIDDEN_STATE)
        if any(self._is_argument(t) for t in statistics):
            raise Unrecordable(*WRITES_TO_ARGUMENT)

    def _is_argument(self, value: torch.Tensor, *, whole: bool = False) -> bool:
        """Whether it is an argument, or a view of one: who calls the function would see it written.

        Args:
            whole: whether the argument itself is meant: an op such as ``t_`` turns a view of it alone.
        """
        given = [a for a in self.arguments if not is_own(a)]
        return any(value is a for a in given) if whole else _memory(value) in {_memory(a) for a in given}

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
            case float() if value in self.marks:
                return self._size(self.marks[value])
            case None | bool() | int() | float() | complex() | str():
                return value
        raise Unrecordable(f"a {type(value).__name__} can not be an argument of a recorded op", _hint_for(value))

    def marked(self, number: torch.SymFloat) -> float:
        """A number that stands for one that only a device knows, in ops that take no symbols for it."""
        mark = _MARK * (1 + len(self.marks))
        self.marks[mark] = number
        return mark

    def _tensor(self, value: torch.Tensor) -> Var:
        number = self.numbers.get(value)  # type: ignore[no-untyped-call]
        if number is None:
            self._find(value)
            number = self.numbers[value] if len(self.frames) == 1 else self.add(value)
        return Var(number)

    def _find(self, value: torch.Tensor) -> None:
        """What this frame did not make: a constant, or of a frame around it."""
        *around, frame = self.frames
        if not any(value in f.numbers for f in around):
            if isinstance(value, FakeTensor):
                raise Unrecordable(
                    "it uses a tensor that no op of it made",
                    "write torch.zeros(2, 3) for torch.Tensor(2, 3), leave out torch.vmap and its like, and "
                    "return from a branch or loop what is used after it",
                )
            whole = self.frames[0]
            whole.numbers[value] = number = len(whole.trace.values)
            whole.trace.values.append(_value(value))
            whole.trace.constants[number] = value
        if around:
            frame.outside.append(value)

    def _size(self, value: Any) -> Any:
        if value.node.is_constant() or not isinstance(value.node.expr, sympy.Basic):
            return value.node.constant
        return Size(value.node.expr, self._made(value), _kind(value))

    def _made(self, value: Any) -> tuple[Any, ...] | None:
        found = self.made.get(id(value.node)) if isinstance(value, torch.SymFloat) else None
        return found and (found[0], *(self._size(a) if isinstance(a, _SYMS) else a for a in found[1:]))


def _memory(value: torch.Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    """The tensors that an op writes to."""
    for i, spec in enumerate(func._schema.arguments):
        if spec.alias_info is not None and spec.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(spec.name)
            yield from value if isinstance(value, (list, tuple)) else [value]


_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)
_OTHER_MEMORY = (torch.ops.aten.set_, torch.ops.aten.resize_, torch.ops.aten.resize_as_, torch.ops.aten.set_data)
_HIDDEN_WRITES = (torch.ops.aten.batch_norm, torch.ops.aten.native_batch_norm, torch.ops.aten.instance_norm)
_HIDDEN_STATE = (
    "it writes to its state (a parameter or buffer), and a plan has outputs, never hidden writes",
    "call .eval() first, or clone the state and return the new one",
)


def _apart(out: Any, func: Any, args: Any) -> Any:
    """What an op gave; where that is its argument itself (``x.float()`` of floats), a view of it.

    Else the argument would be taken for the result from then on.
    """
    if func._schema.is_mutable or not any(out is a for a in args):
        return out
    made = torch.ops.aten.alias.default(out)
    stand_in(made, out)
    return made


def _same_value(func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    """The argument that an op gives back as it is, if it does: it is left out.

    A slice of all of a dimension is one: torch calls it for free sizes only.
    """
    if func in (torch.ops.aten.lift_fresh.default, torch.ops.aten.detach_.default, torch.ops.aten.alias.default):
        return cast(torch.Tensor, args[0])
    if func is torch.ops.aten.slice.Tensor and args[2:] in _ALL:
        return cast(torch.Tensor, args[0])
    if func is torch.ops.aten.slice_scatter.default and args[3:] in _ALL:
        return cast(torch.Tensor, args[1])
    if func is torch.ops.aten.slice_backward.default and args[3:] in _ALL:
        return cast(torch.Tensor, args[0])
    if (
        func is torch.ops.aten.to.dtype_layout
        and kwargs.get("dtype") in (None, args[0].dtype)
        and not kwargs.get("copy")
    ):
        return cast(torch.Tensor, args[0])  # x.to(device): torch adds the dtype that x has
    return None


_ALL = ((0, (1 << 63) - 1), (0, (1 << 63) - 1, 1))
_SPELLED = {
    "aten.zero": "aten.zeros_like",
    "aten.empty.memory_format": "aten.zeros",
    "aten.empty_like": "aten.zeros_like",
    "aten.new_empty": "aten.new_zeros",
    "aten.empty_strided": "aten.zeros",
    "aten.empty_permuted": "aten.zeros",
    "aten.new_empty_strided": "aten.new_zeros",
}
_PLACED = {"aten.empty_strided": 1, "aten.empty_permuted": 1, "aten.new_empty_strided": 2}
"""Ops that place what they make in memory -> how many of their arguments say what it is."""
_FORWARD = (
    "torch's forward derivative of a derivative has no place in a plan",
    "for torch.func.hessian(f) write torch.func.jacrev(torch.func.grad(f)); leave out the meta device",
)
_STRIPPED = ("device", "layout", "pin_memory")


def _named(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """Our name and arguments of an op: no devices, no layouts, nothing uninitialised."""
    device = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.device)), None)
    if device is not None and device.type == "meta":
        raise Unrecordable(*_FORWARD)
    if device is not None and device.type != "cpu":
        raise Unrecordable(f"it asks for device {device}", DEVICES)
    op = func.name().replace("::", ".")
    if op.startswith(("aten._foreach", "aten._fused_ad", "aten._fused_sgd")):
        raise Unrecordable("it uses the foreach or fused form of an optimizer", "give it foreach=False, fused=False")
    if op == "aten.to.device":
        op, args = "aten.to.dtype", (args[0], *args[2:])
    elif op == "aten.to.dtype_layout":
        op, args, kwargs = _to_dtype(args, kwargs)
    kwargs = {k: v for k, v in kwargs.items() if k not in _STRIPPED and v is not None}
    if op == "aten.empty.memory_format":
        kwargs.pop("memory_format", None)
    args = args[: _PLACED.get(op, len(args))]
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
            return Value(_KINDS[type(value)], None, value.node.expr)
        case bool() | int() | float() | str():
            return Value(type(value).__name__, None, value)
        case None:
            return Value("f32", (0,))  # a gradient nobody wants: the op's output_mask leaves it out
    raise Unrecordable("it uses an op that gives no tensor in one of its places")
