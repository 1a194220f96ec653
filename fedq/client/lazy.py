"""Operators on pointers: each is checked at once on fake tensors, and sent with the next value asked for.

``p + q``, ``torch.add(p, q)``, ``p.sum()``, ``p[0]`` give pointers without a message. An operation
is recorded for the types it is called with, which are public: a wrong shape is an error here, at
the user's line, in torch's own words. How steps travel: `client.pending`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fedq.client.pending import Step
from fedq.client.pointers import PointerTensor, raw_tensor
from fedq.errors import CannotRecord, FedqError, SpecMismatch, UsageError
from fedq.plan.blame import FAILED, WRITES_TO_ARGUMENT, Unrecordable
from fedq.plan.codec import RawTensor
from fedq.plan.graph import Graph, Type, unflatten
from fedq.plan.tensors import DTYPES, to_raw
from fedq.plan.trace import trace_as_is

_HERE = (str(Path(__file__).parent.parent), str(Path(torch.__file__).parent))
_NO_WRITES = "leave out what makes it write, such as max_norm= or training=True, or give the values to a plan"
_VALUE_IS_THERE = "get the value with .get(), or choose with torch.where(condition, a, b)"


@dataclass(frozen=True, slots=True)
class _Slot:
    """The place of a tensor among the arguments."""

    number: int


@dataclass(frozen=True, slots=True)
class _Known:
    """What an operation gives that needs no device: a size, a dtype, a count of dimensions."""

    value: Any


@dataclass(frozen=True, slots=True)
class _Recorded:
    """An operation: its graph, the tree of its outputs, and tensors that torch made up on the way."""

    graph: Graph
    outputs: Any
    constants: tuple[RawTensor, ...]


def apply(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What torch's function gives for these pointers: pointers, or plain values that shapes tell.

    Raises:
        SpecMismatch: torch refuses these shapes or dtypes.
        CannotRecord: it needs the values, or a plan can not hold it.
        UsageError: pointers of two devices; it would write to a value.
    """
    name = getattr(func, "__name__", str(func))
    kwargs = _idle(name, kwargs)
    _refuse_writes(func, name, args, kwargs)
    given: list[Any] = []
    name = name.strip("_")
    frozen = _freeze((tuple(args), kwargs), given)
    device = _one_device(name, [g for g in given if isinstance(g, PointerTensor)])
    types = tuple(_type(name, g) for g in given)
    recorded = _recorded(func, frozen, types)
    if isinstance(recorded, _Known):
        return recorded.value
    private = frozenset[str]().union(*(g.private for g in given if isinstance(g, PointerTensor)))
    made = [PointerTensor(device, device.new_id(), t, mine=device.lets_go, private=private) for t in _types(recorded)]
    held = [_held(device, g) for g in given]
    step = Step(recorded.graph, (*held, *recorded.constants), tuple(p.address for p in made), _line(), private)
    device.pending.add(step, made)
    return unflatten(recorded.outputs, iter(made))


def attribute(pointer: PointerTensor, name: str) -> Any:
    """A method or attribute of torch.Tensor, of a pointer."""
    found = getattr(torch.Tensor, name, None)
    if found is None or str(getattr(found, "__module__", "")).startswith("fedq."):
        raise AttributeError(f"a pointer has no {name!r}, and no tensor method is called so")
    if callable(found):
        return lambda *args, **kwargs: apply(found, (pointer, *args), kwargs)
    return apply(found.__get__, (pointer,), {})


# -- what would write -----------------------------------------------------------------------------


def _idle(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A dropout that drops nothing writes nothing: a model after .eval() says inplace=True still."""
    idle = "dropout" in name and kwargs.get("training") is False
    return {**kwargs, "inplace": False} if idle and kwargs.get("inplace") else kwargs


def _refuse_writes(func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    if name in ("__setitem__", "__delitem__"):
        raise UsageError("a value on a device is never changed: p[...] = y", hint="write p = torch.where(mask, y, p)")
    what = _write(name, kwargs)
    if what:
        raise UsageError(f"{what} would change a value, and pointers stay", hint=_instead(name))
    if func in _NORMS:
        _refuse_statistics(func, args, kwargs)


def _write(name: str, kwargs: dict[str, Any]) -> str:
    """What of a call writes to a tensor, or an empty text."""
    if kwargs.get("out") is not None:
        return f"out= of {name}"
    if kwargs.get("inplace"):
        return f"{name} with inplace=True"
    if name in _INPLACE:
        return f"p {_INPLACE[name]}= q"
    if name.endswith("_") and not name.endswith("__"):
        return name
    return ""


_INPLACE = {
    "__iadd__": "+", "__isub__": "-", "__imul__": "*", "__itruediv__": "/", "__idiv__": "/", "__ifloordiv__": "//",
    "__imod__": "%", "__ipow__": "**", "__imatmul__": "@", "__iand__": "&", "__ior__": "|", "__ixor__": "^",
    "__ilshift__": "<<", "__irshift__": ">>",
}  # fmt: skip
_FRESH = {
    "zero_": "torch.zeros_like(p)", "fill_": "torch.full_like(p, value)", "copy_": "q, the value itself",
    "uniform_": "torch.rand_like(p)", "normal_": "torch.randn_like(p)", "random_": "torch.randint_like(p, high)",
    "exponential_": "-torch.rand_like(p).log()", "cauchy_": "((torch.rand_like(p) - 0.5) * torch.pi).tan()",
    "log_normal_": "torch.randn_like(p).exp()", "polygamma_": "p.polygamma(n)",
    "fill_diagonal_": "p.diagonal_scatter(q)", "resize_": "p.reshape(...)", "resize_as_": "p.reshape(q.shape)",
    "set_": "q, the value itself",
}  # fmt: skip


def _instead(name: str) -> str:
    """What to write for a call that writes: only functions that torch has."""
    if name in _INPLACE:
        return f"write p = p {_INPLACE[name]} q"
    if name in _FRESH:
        return f"write p = {_FRESH[name]}"
    plain = name.strip("_")
    for where, called in (("torch.nn.functional", torch.nn.functional), ("torch", torch)):
        if not name.endswith("_") and callable(getattr(called, plain, None)):
            return f"write p = {where}.{plain}(p, ...), without inplace= and out="
    if callable(getattr(torch, plain, None)):
        return f"write p = torch.{plain}(p, ...)"
    if callable(getattr(torch.Tensor, plain, None)):
        return f"write p = p.{plain}(...)"
    return "leave it out, or make a new value of the old one"


_NORMS = {torch.nn.functional.batch_norm: "training", torch.nn.functional.instance_norm: "use_input_stats"}
"""Functions that write to running statistics -> the argument that says so."""


def _refuse_statistics(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if given[_NORMS[func]] and (given["running_mean"] is not None or given["running_var"] is not None):
        _uncount()
        raise UsageError(
            f"{func.__name__} in training would change running statistics, which are here, by values that are not",
            hint="call the module's .eval() first, or make a plan of it in training: its new statistics are outputs",
        )


def _uncount() -> None:
    """Take back that a layer counted this batch: it does so before it asks for the function."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        layer = frame.f_locals.get("self")
        if isinstance(layer, _BatchNorm) and frame.f_code.co_name == "forward":
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.sub_(1)
            return
        frame = frame.f_back


def _one_device(name: str, pointers: Sequence[PointerTensor]) -> Any:
    first, *others = pointers
    for p in others:
        if p.device != first.device:
            raise UsageError(
                f"{name}: one argument is on {first.device.name}, another on {p.device.name}",
                hint=f"bring it along yourself: p.move({first.device.name}) gets the value and sends it on",
            )
    return first.device


def _type(name: str, given: Any) -> Type:
    if not isinstance(given, PointerTensor):
        raw = raw_tensor(given)
        return Type(raw.dtype, raw.shape)
    given.check_not_taken()
    if given.type is None or given.type.shape is None or not all(isinstance(d, int) for d in given.type.shape):
        what = "is a number" if given.type and given.type.shape is None else "has a shape that only the device knows"
        raise UsageError(f"{name}: {given!r} {what}", hint="pass it to a plan, which the device checks")
    return given.type


def _held(device: Any, given: Any) -> Any:
    """What a step keeps: a pointer's id if a step before makes it, else the pointer; a copy of a tensor."""
    if isinstance(given, PointerTensor):
        return given.address if given.address in device.pending.made else given
    raw = to_raw(given)
    return RawTensor(raw.dtype, raw.shape, bytes(raw.data))


def _types(recorded: _Recorded) -> list[Type]:
    return [recorded.graph.types[v.number] for v in recorded.graph.output_vars]


def _line() -> str:
    """The innermost line outside fedq and torch."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_HERE):
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


# -- recording one operation, once per function, literals and types ---------------------------


def _freeze(value: Any, given: list[Any]) -> Any:
    """Arguments as something to remember by: tensors and pointers become slots, in order."""
    match value:
        case PointerTensor() | torch.Tensor():
            given.append(value)
            return _Slot(len(given) - 1)
        case list() | tuple():
            return (list if isinstance(value, list) else tuple), tuple(_freeze(v, given) for v in value)
        case dict():
            return dict, tuple((k, _freeze(v, given)) for k, v in value.items())
        case slice():
            return slice, tuple(_freeze(v, given) for v in (value.start, value.stop, value.step))
    return None, (type(value), repr(value) if isinstance(value, float) else value), value


def _thaw(frozen: Any, tensors: Sequence[Any]) -> Any:
    match frozen:
        case _Slot(n):
            return tensors[n]
        case (None, _, value):
            return value
        case (kind, items) if kind is dict:
            return {k: _thaw(v, tensors) for k, v in items}
        case (kind, items) if kind is slice:
            return slice(*(_thaw(v, tensors) for v in items))
    return frozen[0](_thaw(v, tensors) for v in frozen[1])


def _recorded(func: Callable[..., Any], frozen: Any, types: tuple[Type, ...]) -> _Known | _Recorded:
    try:
        return _remembered(func, frozen, types)
    except TypeError as error:
        if isinstance(error, FedqError) or "unhashable" not in str(error):
            raise
    return _record(func, frozen, types)


def _record(func: Callable[..., Any], frozen: Any, types: tuple[Type, ...]) -> _Known | _Recorded:
    name = getattr(func, "__name__", str(func))
    known = _known(func, frozen, types)
    if isinstance(known, _Known):
        return known

    def call(held: list[Any], *tensors: Any) -> Any:
        args, kwargs = _thaw(frozen, tensors)
        return func(*args, **kwargs)

    try:
        graph, _, constants = trace_as_is(call, types)
    except CannotRecord as error:
        raise _explained(_call(name, types), error, known) from None
    if not all(graph.types[v.number].is_tensor for v in graph.output_vars):
        raise CannotRecord(f"{_call(name, types)}: it gives a number, which is not here", hint=_VALUE_IS_THERE)
    return _Recorded(*_with_constants_given(graph), tuple(to_raw(c) for c in constants))


_remembered = lru_cache(maxsize=2048)(_record)


def _known(func: Callable[..., Any], frozen: Any, types: Sequence[Type]) -> _Known | Exception | None:
    """The result, if shapes and dtypes alone tell it; what torch says if it refuses; None for tensors."""
    metas = [torch.empty(_sizes(t), dtype=DTYPES[t.dtype], device="meta") for t in types]
    args, kwargs = _thaw(frozen, metas)
    try:
        result = func(*args, **kwargs)
    except Exception as error:
        return error
    leaves = torch.utils._pytree.tree_leaves(result)
    return None if not leaves or any(isinstance(v, torch.Tensor) for v in leaves) else _Known(result)


def _sizes(type_: Type) -> tuple[int, ...]:
    return tuple(d for d in type_.shape or () if isinstance(d, int))


def _with_constants_given(graph: Graph) -> tuple[Graph, Any]:
    """The graph with its constants as inputs, which are numbered just so, and the tree of its outputs."""
    inputs = (*graph.inputs, *(t for _, t in graph.state))
    return Graph(inputs, graph.actions, graph.outputs, graphs=graph.graphs), graph.outputs


def _explained(call: str, error: CannotRecord, said: Exception | None) -> FedqError:
    """A refusal in torch's words, if it is about shapes; else in the recorder's."""
    cause = error.__cause__
    if isinstance(cause, Unrecordable) and cause.message == WRITES_TO_ARGUMENT[0]:
        return UsageError(f"{call} would change what it is given, and pointers stay", hint=_NO_WRITES)
    if str(error).startswith(FAILED) and not isinstance(cause, Unrecordable | None):
        text = (str(said or cause).splitlines() or [""])[0]
        return SpecMismatch(f"{call}: {text}", hint="shapes and dtypes of pointers: p.shape, p.dtype")
    text = str(error).splitlines()[0].partition(f": {Path(__file__).name}:")[0]
    return CannotRecord(f"{call}: {text}", hint=error.hint or _VALUE_IS_THERE)


def _call(name: str, types: Sequence[Type]) -> str:
    return f"{name.strip('_')}({', '.join(map(str, types))})"
