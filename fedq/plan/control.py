"""Record torch.cond, while_loop, scan and map: their functions become bodies, graphs of their own.

A body is recorded once, on values that look like those it will be called with. What it uses of
the functions around it (closures, parameters, constants) becomes an explicit argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from types import CellType, FunctionType
from typing import Any

import torch
from torch._higher_order_ops.cond import cond_op
from torch._higher_order_ops.map import map_impl
from torch._higher_order_ops.scan import scan_op
from torch._higher_order_ops.while_loop import while_loop_op
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from fedq.plan.blame import Unrecordable, user_line
from fedq.plan.graph import Var, flatten
from fedq.plan.recorder import Frame, Recorder
from fedq.plan.recording import Body, Call
from fedq.plan.settle import needed
from fedq.plan.tensors import NAMES

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A body: its frame, the numbers of what it was given, its results and their structure."""

    frame: Frame
    given: tuple[int, ...]
    results: list[torch.Tensor]
    spec: Any

    def uses(self, value: torch.Tensor) -> bool:
        trace = self.frame.trace
        number = self.frame.numbers.get(value)  # type: ignore[no-untyped-call]
        args = [trace.outputs, *([*c.args, *c.kwargs.values()] for c in trace.calls)]
        return number is not None and Var(number) in flatten(args)

    def body(self, recorder: Recorder, outside: Sequence[torch.Tensor]) -> Body:
        with recorder.inside(self.frame):
            also = [recorder.arg(value).number for value in outside]
        return Body(self.frame.trace, (*self.given, *also))


class Control:
    """Records calls of control flow for one recorder.

    Args:
        recorder: what to record with.
        inside: entered while a body runs.
        gradients: whether the function takes a gradient.
    """

    def __init__(self, recorder: Recorder, inside: AbstractContextManager[Any], *, gradients: bool) -> None:
        self.recorder = recorder
        self.inside = inside
        self.gradients = gradients
        self.rules: Mapping[Any, Function] = {
            cond_op: self._cond, while_loop_op: self._while_loop, scan_op: self._scan, map_impl: self._map,
        }  # fmt: skip

    def call(self, op: Any, args: Sequence[Any]) -> Any:
        """What eager would give, as fakes."""
        if op not in self.rules:
            raise Unrecordable(f"torch's {op.name()} has no place in a plan", "use torch.cond, while_loop, scan or map")
        return self.rules[op](*args)

    # -- the four

    def _cond(self, pred: Any, then: Function, other: Function, operands: Sequence[Any]) -> Any:
        if not isinstance(pred, torch.Tensor):  # a size: its guard is enforced
            return (then if pred else other)(*operands)
        outside: list[torch.Tensor] = []
        bodies = [self._body(f, (), outside, operands) for f in (then, other)]
        a, b = bodies
        if a.spec != b.spec:
            raise Unrecordable(
                "the branches of torch.cond give different structures", "return the same tuples, lists and dicts"
            )
        _agree("the branches of torch.cond give", a.results, b.results)
        return self._append("ctl.cond", [self._arg(pred), a, b], outside, [_kind(t) for t in a.results], a.spec)

    def _while_loop(self, test: Function, body: Function, carried: Sequence[Any], given: Sequence[Any]) -> Any:
        outside: list[torch.Tensor] = []
        tested, done = (self._body(f, self._fresh(map(_kind, carried)), outside, given) for f in (test, body))
        (pred, *more) = tested.results
        if more or not (isinstance(pred, torch.SymBool) or _kind(pred) == ((), torch.bool)):
            raise Unrecordable(
                "the condition of while_loop does not give one bool", "return a comparison such as x.sum() < 3"
            )
        _agree("while_loop is given, and its body gives,", carried, done.results)
        args = [tested, done, [self._arg(t) for t in carried]]
        return self._append("ctl.while_loop", args, outside, [_kind(t) for t in carried], done.spec)

    def _scan(self, body: Function, carried: Sequence[Any], xs: Sequence[Any], given: Sequence[Any]) -> Any:
        length, kinds = _length(xs), [_kind(t) for t in carried]
        outside: list[torch.Tensor] = []
        done = self._body(body, self._fresh([*kinds, *map(_slice, xs)]), outside, given)
        _agree("scan is given, and its function gives,", carried, done.results[: len(carried)])
        each = _rows("scan", length, done.results[len(carried) :])
        args = [done, [self._arg(t) for t in carried], [self._arg(t) for t in xs]]
        return self._append("ctl.scan", args, outside, [*kinds, *each], done.spec)

    def _map(self, body: Function, xs: Sequence[Any], given: Sequence[Any]) -> Any:
        length = _length(xs)
        outside: list[torch.Tensor] = []
        done = self._body(body, self._fresh(map(_slice, xs)), outside, given)
        each = _rows("map", length, done.results)
        return self._append("ctl.map", [done, [self._arg(t) for t in xs]], outside, each, done.spec)

    # -- bodies

    def _body(
        self, function: Function, given: Sequence[Any], outside: list[torch.Tensor], also: Sequence[Any]
    ) -> _Recorded:
        """Record a call of the function with ``given``, which are its own, and ``also``, used from outside."""
        recorder, frame = self.recorder, Frame(outside=outside)
        for value in (*pytree.tree_leaves(also), *_held(function)):
            recorder.inner(value)  # views of what was written are taken again here, not inside
        with recorder.inside(frame):
            numbers = tuple(recorder.add(recorder.inner(value)) for value in given)
            frame.memory = recorder.memory()
            with self.inside:
                out = function(*given, *also)
            leaves, spec = pytree.tree_flatten(out)
            results = [recorder.inner(leaf) for leaf in leaves]
            frame.trace.outputs = [recorder.arg(value) for value in results]
        frame.trace.calls = needed(frame.trace)
        recorder.trace.writes |= frame.trace.writes
        return _Recorded(frame, numbers, results, spec)

    def _append(self, op: str, args: list[Any], outside: list[torch.Tensor], outs: list[_Kind], spec: Any) -> Any:
        """Append the call; gives what it makes, in the structure its body gave."""
        recorder = self.recorder
        bodies = [a for a in args if isinstance(a, _Recorded)]
        used = [t for t in {id(t): t for t in outside}.values() if any(b.uses(t) for b in bodies)]
        args = [a.body(recorder, used) if isinstance(a, _Recorded) else a for a in args]
        self._refuse_gradients([*used, *(t for b in bodies for t in b.results)])
        if any(free_unbacked_symbols(shape) for shape, _ in outs):
            raise Unrecordable(
                "the size of what a branch or loop gives depends on data", "return torch.where(mask, x, 0) instead"
            )
        made = self._fresh(outs)
        numbers = tuple(recorder.add(recorder.inner(t)) for t in made)
        args.append([recorder.arg(t) for t in used])
        kept = any(c.kept for b in bodies for c in b.frame.trace.calls)
        recorder.trace.calls.append(Call(op, tuple(args), {}, numbers, user_line(), kept))
        return pytree.tree_unflatten(made, spec)

    def _refuse_gradients(self, values: Sequence[torch.Tensor]) -> None:
        if (
            self.gradients
            and torch.is_grad_enabled()
            and any(isinstance(t, torch.Tensor) and t.requires_grad for t in values)
        ):
            raise Unrecordable(
                "a gradient goes through a branch or loop of torch",
                "use torch.where, or a for loop over a constant, or .detach() what needs no gradient",
            )

    def _arg(self, value: Any) -> Any:
        return self.recorder.arg(self.recorder.inner(value))

    def _fresh(self, kinds: Iterable[_Kind]) -> list[Any]:
        """New values that no op made: tensors, and integers that nobody knows."""
        with _disable_current_modes(), self.recorder.fakes, self.recorder.sizes.ignore_fresh_unbacked_symbols():
            made = [
                self.recorder.sizes.create_unbacked_symint() if dtype is int else torch.empty(shape, dtype=dtype)
                for shape, dtype in kinds
            ]
        return [self.recorder.outer(v) if isinstance(v, torch.Tensor) else v for v in made]


def _held(function: Any) -> list[Any]:
    """Tensors that a function holds on to: in closures, defaults and partial arguments, to any depth."""
    found, seen, todo = list[Any](), set[int](), [function]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, partial):
            todo += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, FunctionType):
            cells = (c.cell_contents for c in value.__closure__ or () if c != CellType())
            todo += [*cells, *(value.__defaults__ or ())]
        elif isinstance(value, (list, tuple, dict)):
            todo += pytree.tree_leaves(value)
    return found


_Kind = tuple[tuple[Any, ...], Any]
"""Shape and dtype of a tensor; of an integer, () and int."""


def _kind(value: Any) -> _Kind:
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return (), int
    if not isinstance(value, torch.Tensor):
        name = type(value).__name__.replace("Sym", "").lower()
        raise Unrecordable(
            f"a branch or loop is given, or gives, a Python {name}", "make it a tensor, as torch.tensor(0.5) for 0.5"
        )
    return tuple(value.shape), value.dtype


def _slice(value: torch.Tensor) -> _Kind:
    return tuple(value.shape[1:]), value.dtype


def _length(xs: Sequence[torch.Tensor]) -> Any:
    lengths = [t.shape[0] for t in xs]
    if any(n != lengths[0] for n in lengths):
        raise Unrecordable("scan or map goes over tensors of different lengths", "cut them to one length first")
    return lengths[0]


def _agree(what: str, ours: Sequence[Any], theirs: Sequence[Any]) -> None:
    if len(ours) != len(theirs):
        raise Unrecordable(f"{what} {len(ours)} and {len(theirs)} values", "give the same number")
    for i, ((m, a), (n, b)) in enumerate(zip(map(_kind, ours), map(_kind, theirs), strict=True)):
        if a != b:
            hint = "carry a tensor, as torch.tensor(0) for 0" if int in (a, b) else "convert with .to(dtype)"
            raise Unrecordable(f"{what} {_name(a)} and {_name(b)} as value {i}", hint)
        if len(m) != len(n) or any(x != y for x, y in zip(m, n, strict=True)):
            raise Unrecordable(
                f"{what} the shapes {_shape(m)} and {_shape(n)} as value {i}",
                "give one shape, as with expand, torch.where or padding",
            )


def _rows(what: str, length: Any, values: Sequence[Any]) -> list[_Kind]:
    """What comes of stacking each of these."""
    kinds = [_kind(v) for v in values]
    if any(dtype is int for _, dtype in kinds):
        raise Unrecordable(f"{what} gives an integer to be stacked", "make it a tensor")
    return [((length, *shape), dtype) for shape, dtype in kinds]


def _name(dtype: Any) -> str:
    return "int" if dtype is int else NAMES.get(dtype, str(dtype))


def _shape(shape: Sequence[Any]) -> str:
    return f"({', '.join(str(n) if isinstance(n, int) else '?' for n in shape)})"
