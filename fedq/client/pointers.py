"""Pointers: a requester's handles on values and plans at a device. Loads torch when tensors are made.

A pointer is there at once: its id is chosen here, the value comes to be when the device gets
to it. Types are checked before anything is sent, wherever they are known.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fedq.client import fetch
from fedq.errors import UsageError
from fedq.plan import spec
from fedq.plan.codec import RawTensor
from fedq.plan.graph import About, Graph, Type, unflatten
from fedq.queue.message import Number, Ref, Run, RunArg

if TYPE_CHECKING:
    import torch

    from fedq.client.device import Device

Value = Any
"""What a user gets: a torch.Tensor, or a Python number."""
UNKNOWN = Type("?")
"""Of an argument that only the device knows enough of."""


class PointerTensor:
    """A value on a device, which may not exist yet.

    Attributes:
        type: ``f32[2,3]``, or None where only the device will know.
        tag: if it was found by one.
        taken: whether `get` took it away.
    """

    __slots__ = ("device", "id", "tag", "taken", "type")

    def __init__(self, device: Device, id_: str, type_: Type | None, tag: str | None = None) -> None:
        self.device, self.id, self.type, self.tag = device, id_, type_, tag
        self.taken = False

    @property
    def shape(self) -> tuple[int | str, ...] | None:
        return self.type.shape if self.type else None

    @property
    def dtype(self) -> torch.dtype | None:
        from fedq.plan.tensors import DTYPES

        return DTYPES.get(self.type.dtype) if self.type else None

    def get(self, timeout_s: float | None = None) -> Value:
        """The tensor or number; taken away from the device if this requester made it.

        Raises:
            TimedOut, WaitingForApproval: it did not come in time; says why.
            Failed, and other errors: what went wrong there instead.
        """
        return gather([self], timeout_s)[0]

    def copy(self, timeout_s: float | None = None) -> Value:
        """As `get`, and it stays on the device."""
        return gather([self], timeout_s, copy=True)[0]

    def __repr__(self) -> str:
        told = "".join(f", {t}" for t in (self.type, self.tag and f"tag {self.tag!r}") if t)
        return f"PointerTensor({self.device.name}:{self.id}{told})"


def gather(pointers: Iterable[PointerTensor], timeout_s: float | None = None, *, copy: bool = False) -> list[Value]:
    """Many values, in order, asked for with one action per device.

    Args:
        timeout_s: for all of them together.
        copy: leave them on their devices.

    Raises:
        whatever the first one that failed raises; nothing is taken away then.
    """
    return [_value(outcome) for outcome in fetch.outcomes(list(pointers), timeout_s, take=not copy)]


def _value(outcome: fetch.Outcome) -> Value:
    if isinstance(outcome, RawTensor):
        from fedq.plan.tensors import from_raw

        return from_raw(outcome)
    if isinstance(outcome, Number):
        return outcome.value
    raise outcome


class PointerPlan:
    """A plan on a device: call it with pointers, numbers and tensors."""

    def __init__(self, device: Device, id_: str, graph: Graph, about: About) -> None:
        self.device, self.id, self.graph, self.about = device, id_, graph, about
        self._checked: dict[tuple[Type, ...], tuple[Type, ...]] = {}

    @property
    def name(self) -> str:
        return self.about.name or "plan"

    def __repr__(self) -> str:
        return f"PointerPlan({self.device.name}:{self.id[:12]}, {self.name})"

    def __call__(self, *args: Any) -> Any:
        """Replay it there; returns at once.

        Args:
            args: pointers of the same device, numbers, or tensors, which are sent along.

        Returns:
            the plan's structure of outputs, of pointers.

        Raises:
            SpecMismatch: the plan does not admit these arguments; nothing was sent.
        """
        return unflatten(self.graph.outputs, iter(self.run(args)))

    def run(self, args: Sequence[Any], *, release: bool = False) -> list[PointerTensor]:
        """Replay it there; the results, flat. ``release``: ask for each of them in the same message."""
        with self.device.drafting() as draft:
            given, types = [], []
            for arg in args:
                run_arg, type_ = self._argument(arg)
                given.append(draft.inline(self.device.hold(run_arg)) if isinstance(run_arg, RawTensor) else run_arg)
                types.append(type_)
            made = self._output_types(tuple(types))
            results = [PointerTensor(self.device, draft.new_id(), type_) for type_ in made]
            draft.types.update((p.id, p.type) for p in results)
            draft.actions.append(Run(self.id, tuple(given), {}, tuple(p.id for p in results)))
            for p in results if release else ():
                draft.ask([p.id])
        return results

    def _argument(self, arg: Any) -> tuple[RunArg | RawTensor, Type]:
        if isinstance(arg, PointerTensor):
            if arg.device != self.device:
                raise UsageError(
                    f"the plan is on {self.device.name}, argument {arg.id[:12]} on {arg.device.name}",
                    hint="send the plan there, or get the value and pass it as a tensor",
                )
            if arg.taken:
                raise UsageError(f"{arg.id} was taken away by .get()", hint=".copy() leaves it there")
            return Ref(arg.id), arg.type if arg.type and _known(arg.type) else UNKNOWN
        if isinstance(arg, (bool, int, float)):
            return arg, Type(type(arg).__name__, None, arg)
        raw = raw_tensor(arg)
        return raw, Type(raw.dtype, raw.shape)

    def _output_types(self, given: tuple[Type, ...]) -> tuple[Type | None, ...]:
        """Check the arguments, unless the device must; what the results will be, where that is known."""
        found = self._checked.get(given)
        if found is None:
            if UNKNOWN in given and len(given) == len(self.graph.inputs):
                return (None,) * len(self.graph.output_vars)
            spec.match(self.graph, given, about=self.about)
            found = spec.output_types(self.graph, given)
            if len(self._checked) < 1000:
                self._checked[given] = found
        return found


def _known(type_: Type) -> bool:
    """Whether every size is a number."""
    return type_.shape is None or all(isinstance(d, int) for d in type_.shape)


def raw_tensor(value: Any) -> RawTensor:
    """The bytes of a tensor; UsageError for what is none."""
    if isinstance(value, RawTensor):
        return value
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        from fedq.plan.tensors import to_raw

        return to_raw(value)
    raise UsageError(
        f"{type(value).__name__} can not be sent",
        hint="pass a pointer, a number or a torch.Tensor (torch.as_tensor(x))",
    )
