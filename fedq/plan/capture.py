"""Record one run of a Python function on fake tensors: the ops it calls, in order.

No data is touched: inputs are fakes whose free sizes are symbols, so Python that looks at values
fails, and Python that looks at sizes leaves a guard. Ops are seen before autograd and before
composite ops are taken apart, so what is recorded is what the function called, and replays as
eager would at other sizes and dtypes; only where the function takes a gradient itself are they
seen below autograd. What one recording proves and what not: `plan.prove`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, GuardOnDataDependentSymNode, StatelessSymbolicContext
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from fedq.errors import CannotRecord
from fedq.plan import kinds
from fedq.plan.blame import (
    ASKS,
    WATCHED,
    WRITES_TO_ARGUMENT,
    Unrecordable,
    asked_by_user,
    cannot,
    names_it_in_an_error,
    reads_values,
)
from fedq.plan.control import Control
from fedq.plan.graph import Tree
from fedq.plan.held import any_would_require_grad, is_own, recording, stand_in
from fedq.plan.recorder import Recorder, Sizes
from fedq.plan.recording import Free, In, Trace
from fedq.plan.rules import REWRITTEN
from fedq.plan.statistics import SEEN, float_of_tensors


class _Watch(TorchFunctionMode):
    """Stops at calls that would leave the recording: values as Python, gradients."""

    def __init__(self, recorder: Recorder, *, gradients: bool) -> None:
        super().__init__()
        self.gradients, self.trace, self.recorder = gradients, recorder.trace, recorder
        self.control = Control(recorder, self, gradients=gradients)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        transformed = torch._C._functorch.peek_interpreter_stack() is not None
        self.trace.transformed |= transformed
        if not self.gradients and (transformed or func in _GRADIENTS or torch.is_autocast_enabled("cpu")):
            raise TakesGradient
        if func in _FLAGS and not self.gradients and self._misses_gradients() and asked_by_user():
            raise TakesGradient
        if func in WATCHED and not names_it_in_an_error(func):
            raise Unrecordable(WATCHED[func])
        if isinstance(func, torch._ops.HigherOrderOperator):
            return self.control.call(func, args)
        if func in SEEN:
            args, kwargs = tree_map_only(torch.SymFloat, self.recorder.marked, (args, kwargs or {}))
            return SEEN[func](*args, **kwargs) if not self.gradients else self._call(func, args, kwargs)
        if func in REWRITTEN:
            return REWRITTEN[func](*args, **(kwargs or {}))
        if func == _DATA:
            return args[0].detach()
        if func in _DROPOUTS and _drops_nothing(*args, **(kwargs or {})):
            return args[0]
        if func in ASKS:
            return func(*args, **(kwargs or {}))
        return self._call(func, args, kwargs or {})

    def _misses_gradients(self) -> bool:
        return self.recorder.differentiable or any_would_require_grad()

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.recorder.read_values = False
        try:
            return func(*args, **kwargs)
        except (GuardOnDataDependentSymNode, DataDependentOutputException) as error:
            if not self.recorder.read_values:
                raise
            raise Unrecordable(*reads_values(_name_of(func))) from error


def _name_of(func: Any) -> str:
    """``torch.nn.functional.ctc_loss``."""
    if isinstance(func, FunctionType):
        return f"{func.__module__}.{func.__name__}"
    return torch.overrides.resolve_name(func) or str(func)


_DROPOUTS = (torch.dropout, torch.nn.functional.dropout)


def _drops_nothing(given: Any, p: float = 0.5, training: bool = True, inplace: bool = False, **named: Any) -> bool:
    """Whether a dropout gives its input itself, as eager does; torch's rule for recording copies it."""
    return (type(p) in (int, float) and p == 0) or not named.get("train", training)


class TakesGradient(BaseException):
    """The function takes a gradient or has its calls rewritten: record it below autograd instead."""


_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_GRADIENTS = (torch.autograd.grad, torch.Tensor.backward, torch.autograd.backward)
_FLAGS = tuple(getattr(torch.Tensor, name).__get__ for name in ("requires_grad", "grad_fn", "is_leaf"))
"""Asked whether it takes a gradient, only a recording below autograd answers as eager does."""


Function = Callable[..., Any]
"""Called with the list of state tensors, then the inputs."""


def record(
    function: Function, inputs: Sequence[In], state: Sequence[torch.Tensor] = (), *, like: Trace | None = None
) -> Trace:
    """Run ``function(state, *inputs)`` on fakes and record it; no recorded op writes to its arguments.

    Args:
        function: the user's function, given its state as a list.
        inputs: what to fake.
        state: real tensors; only their shapes and dtypes are used.
        like: a recording of the same function: it is recorded in the way that this one came to.

    Raises:
        CannotRecord: it does what a plan cannot hold; names the user's line.
    """
    while True:
        try:
            trace = _recorded(function, inputs, state, like)
        except CannotRecord:
            if not kinds.tell():
                raise
        else:
            if not kinds.tell():
                return trace


def _recorded(function: Function, inputs: Sequence[In], state: Sequence[torch.Tensor], like: Trace | None) -> Trace:
    run = _functional if like is not None and like.functional else _plain
    gradients = like is not None and like.gradients
    try:
        trace = _record(function, inputs, state, run, gradients=gradients)
    except TakesGradient:
        trace = _record(function, inputs, state, run, gradients=True)
    return _record(function, inputs, state, _functional, gradients=trace.gradients) if trace.writes else trace


def _record(
    function: Function, inputs: Sequence[In], state: Sequence[torch.Tensor], run: Any, *, gradients: bool = False
) -> Trace:
    sizes = Sizes()
    fakes = FakeTensorMode(shape_env=sizes, allow_non_fake_inputs=False, allow_fallback_kernels=False)
    recorder = Recorder(fakes, sizes, pre_dispatch=not gradients, functional=run is _functional)
    trace = recorder.trace
    args = [_fake(fakes, sizes, trace, i, given) for i, given in enumerate(inputs)]
    held = [fakes.from_tensor(t.detach(), static_shapes=True) for t in state]
    wanted = [gradients and t.requires_grad for t in state]
    for t, real in zip(held, state, strict=True):
        stand_in(t, real)
    recorder.differentiable = any(t.requires_grad for t in state)
    trace.num_inputs, trace.num_state = len(args), len(held)
    trace.gradients, trace.functional = gradients, run is _functional
    for value in (*args, *held):
        recorder.add(value)
    recorder.state_memory = {t.untyped_storage()._cdata for t in held}
    recorder.arguments = [a for a in args if isinstance(a, torch.Tensor)]
    sizes.asked.clear()
    with cannot(), recording(gradients=gradients), _modes(fakes, recorder, gradients=gradients):
        out, after = run(function, held, args, wanted, pre_dispatch=not gradients)
        new = _changed(held, after)
        trace.updates = tuple(new)
        trace.outputs = _outputs(recorder, (out, new) if new else out)
        sizes.refuse_equalities_of_data()
    trace.guards, trace.asked = sizes.lines, sizes.asked
    trace.solved = {s: sizes.replace(s) for s in trace.symbols.values()}
    return trace


def call_users_function(function: Function, held: list[Any], args: list[Any]) -> Any:
    return function(held, *args)


def _plain(function: Function, held: list[Any], args: list[Any], wanted: list[bool], *, pre_dispatch: bool) -> Any:
    after = [t.requires_grad_(w) for t, w in zip(held, wanted, strict=True)]
    return call_users_function(function, after, args), after


def _functional(function: Function, held: list[Any], args: list[Any], wanted: list[bool], *, pre_dispatch: bool) -> Any:
    """Run it with writes turned into new values, and views of what was written taken again."""
    with FunctionalTensorMode(pre_dispatch=pre_dispatch):
        wrap = [FunctionalTensor.to_functional(a) if isinstance(a, torch.Tensor) else a for a in (*held, *args)]
        after = [t.requires_grad_(w) for t, w in zip(wrap[: len(held)], wanted, strict=True)]
        for t, plain in zip(after, held, strict=True):
            stand_in(t, plain)
        out = call_users_function(function, after, wrap[len(held) :])
        if any(_is_written(a) for a in wrap[len(held) :]):
            raise Unrecordable(*WRITES_TO_ARGUMENT)
        return tree_map_only(FunctionalTensor, _synced, (out, after))


def _is_written(argument: Any) -> bool:
    if not isinstance(argument, FunctionalTensor) or is_own(argument):
        return False
    return torch._functionalize_has_data_mutation(argument.elem)  # type: ignore[attr-defined, no-any-return]


def _changed(before: list[Any], after: list[Any]) -> dict[int, Any]:
    """State the function wrote to, or put another tensor in the place of: by number, its new value."""
    new = {i: b for i, (a, b) in enumerate(zip(before, after, strict=True)) if b is not a}
    if any(b.shape != before[i].shape or b.dtype != before[i].dtype for i, b in new.items()):
        raise Unrecordable("it changes the shape or dtype of its state", "keep both, or return the new tensor")
    return new


def _synced(tensor: Any) -> Any:
    torch._sync(tensor)  # type: ignore[attr-defined, no-untyped-call]
    return FunctionalTensor.from_functional(tensor)


@contextmanager
def _modes(fakes: FakeTensorMode, recorder: Recorder, *, gradients: bool) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(float_of_tensors())
        stack.enter_context(fakes)
        stack.enter_context(enable_python_dispatcher())
        if gradients:
            stack.enter_context(_without_mkldnn())
        stack.enter_context(_Watch(recorder, gradients=gradients))
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # else torch.cond compiles itself
        stack.enter_context(recorder)
        yield


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    """Its recurrent layers are one op, whose backward trusts its arguments: `verify` denies it."""
    was = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(was)


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


def _fake(fakes: FakeTensorMode, sizes: Sizes, trace: Trace, number: int, given: In) -> Any:
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
    fake = fakes.from_tensor(real, symbolic_context=context, source=ConstantSource(f"input{number}"))
    fake.item_memo = None  # else torch takes what lies in that memory for the value that item() gives
    return fake


def _number(sizes: Sizes, trace: Trace, number: int, value: Any) -> Any:
    if not isinstance(value, Free):
        return value
    source = ConstantSource(f"input{number}")
    symbol = sizes.create_symbol(value.hint, source, DimDynamic.DYNAMIC, positive=None, do_not_specialize_zero_one=True)
    trace.symbols[number, -1] = symbol
    make = sizes.create_symintnode if isinstance(value.hint, int) else sizes.create_symfloatnode
    return make(symbol, hint=value.hint, source=source)


def _outputs(recorder: Recorder, out: Any) -> Tree:
    match out:
        case list():
            return [_outputs(recorder, v) for v in out]
        case tuple():
            return tuple(_outputs(recorder, v) for v in out)
        case dict():
            return {k: _outputs(recorder, v) for k, v in out.items()}
        case None:
            return None
        case torch.Tensor() | torch.SymInt() | torch.SymFloat() | torch.SymBool() | int() | float():
            return recorder.arg(out)
    raise CannotRecord(
        f"it returns a {type(out).__name__}",
        hint="return tensors, numbers made of sizes, or lists, tuples and dicts of them",
    )
