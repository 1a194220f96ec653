"""Pointers: a requester's handles on values at a device. Loads torch when tensors are made.

A pointer is there at once: its id is chosen here, the value comes to be when the device gets
to it. Types are checked before anything is sent, wherever they are known. Operators make
pointers, too: `client.lazy`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fedq import spelling
from fedq.client import fetch
from fedq.errors import CannotRecord, FedqError, UsageError
from fedq.plan.codec import RawTensor
from fedq.plan.graph import Type
from fedq.queue.message import Number, OwnerRef, Ref

if TYPE_CHECKING:
    import torch

    from fedq.client.device import Device

Value = Any
"""What a user gets: a torch.Tensor, or a Python number."""


class PointerTensor:
    """A value on a device, which may not exist yet.

    A value that was made here is dropped by the next message after its pointer is deleted, unless
    it was tagged or its id was told: ``.id`` or printing the pointer keeps it.

    Attributes:
        address: its id, for fedq itself: reading it tells nobody.
        type: ``f32[2,3]``, or None where only the device will know.
        tag: if it was found by one, or sent with one.
        mine: whether it was made here, by this very pointer.
        told: whether somebody may have noted its id.
        taken: whether `get` took it away.
        owners: whether it is a value of the device's owner.
        private: the owner's values that are not open and that it comes from: it leaves only with the owner's word.
    """

    __slots__ = ("__weakref__", "address", "device", "mine", "owners", "private", "tag", "taken", "told", "type")

    def __init__(
        self,
        device: Device,
        id_: str,
        type_: Type | None,
        tag: str | None = None,
        *,
        mine: bool = False,
        owners: bool = False,
        private: frozenset[str] = frozenset(),
    ) -> None:
        self.device, self.address, self.type, self.tag, self.mine = device, id_, type_, tag, mine
        self.owners, self.private = owners, private
        self.taken = self.told = False

    def __del__(self) -> None:
        if self.mine and not (self.told or self.taken or self.tag or self.address in self.device.pending.made):
            self.device.client.outbox.let_go(self.device.number, self.address)

    @property
    def id(self) -> str:
        """Its id, for the terminal and other processes; operations it comes from are sent, so that it is promised."""
        self.told = True
        if self.address in self.device.pending.made:
            self.device.settle()
        return self.address

    @property
    def reference(self) -> Ref | OwnerRef:
        """It as a message names it: the owner's values and the requester's own are spelt apart."""
        return OwnerRef(self.address) if self.owners else Ref(self.address)

    @property
    def location(self) -> Device:
        """The device; PySyft's word."""
        return self.device

    @property
    def shape(self) -> tuple[int | str, ...] | None:
        return self.type.shape if self.type else None

    @property
    def dtype(self) -> torch.dtype | None:
        from fedq.plan.tensors import DTYPES

        return DTYPES.get(self.type.dtype) if self.type else None

    def get(self, timeout_s: float | None = None) -> Value:
        """The tensor or number; taken away from the device if this requester made it, but not in a block with a token.

        Raises:
            TimedOut, WaitingForApproval: it did not come in time; says why.
            Failed, and other errors: what went wrong there instead.
        """
        return gather([self], timeout_s)[0]

    def copy(self, timeout_s: float | None = None) -> Value:
        """As `get`, and it stays on the device."""
        return gather([self], timeout_s, copy=True)[0]

    def move(self, device: Device) -> PointerTensor:
        """Get the value, under its device's rule, and send it to another device: they do not talk to each other."""
        return device.send(self.get())

    def check_not_taken(self, name: str = "") -> None:
        """UsageError if it was; ``name``: of the argument that it is."""
        if self.taken:
            told = f"argument {name} ({self.address[:12]})" if name else self.address
            raise UsageError(f"{told} was taken away by .get()", hint=".copy() leaves it there")

    def __repr__(self) -> str:
        self.told = True
        more = [
            self.type,
            self.tag and f"tag '{spelling.text(self.tag)}'",
            self.address in self.device.pending.made and "not sent yet",
        ]
        return f"PointerTensor({self.device.name}:{self.address}{''.join(f', {m}' for m in more if m)})"

    # -- as a tensor

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        from fedq.client import lazy

        return lazy.attribute(self, name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from fedq.client import lazy

        return lazy.apply(func, args, kwargs or {})

    def __eq__(self, other: object) -> Any:
        return _operate(self, "__eq__", other) if _is_operand(other) else NotImplemented

    def __ne__(self, other: object) -> Any:
        return _operate(self, "__ne__", other) if _is_operand(other) else NotImplemented

    __hash__ = object.__hash__

    def __len__(self) -> int:
        if not self.shape or not isinstance(self.shape[0], int):
            raise UsageError(f"{self!r} has no length that is known here")
        return self.shape[0]

    def __iter__(self) -> Iterator[PointerTensor]:
        return (_operate(self, "__getitem__", n) for n in range(len(self)))

    def __bool__(self) -> bool:
        raise _no_value("a Python condition")

    def __int__(self) -> int:
        raise _no_value("int()")

    def __float__(self) -> float:
        raise _no_value("float()")

    def __index__(self) -> int:
        raise _no_value("an index")

    def __setitem__(self, at: Any, value: Any) -> None:
        _operate(self, "__setitem__", at, value)

    def __copy__(self) -> PointerTensor:
        return self

    def __deepcopy__(self, memo: Any) -> PointerTensor:
        return self


def _is_operand(value: object) -> bool:
    torch = sys.modules.get("torch")
    return isinstance(value, (PointerTensor, int, float)) or (torch is not None and isinstance(value, torch.Tensor))


def _no_value(what: str) -> CannotRecord:
    return CannotRecord(
        f"{what} needs the value of a pointer, which is on its device",
        hint="get the value with .get(), or choose with torch.where(condition, a, b)",
    )


def _operate(pointer: PointerTensor, name: str, *args: Any) -> Any:
    import torch

    from fedq.client import lazy

    return lazy.apply(getattr(torch.Tensor, name), (pointer, *args), {})


def _operator(name: str) -> Any:
    def operator(self: PointerTensor, *args: Any) -> Any:
        return _operate(self, name, *args)

    operator.__name__ = name
    return operator


_BOTH_SIDES = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
_IN_PLACE = [f"i{n}" for n in _BOTH_SIDES if n != "matmul"]  # p @= q is p = p @ q, as with tensors
_ONE_SIDE = ("lt", "le", "gt", "ge", "neg", "abs", "invert", "getitem")
for _name in (*_BOTH_SIDES, *(f"r{n}" for n in _BOTH_SIDES), *_IN_PLACE, *_ONE_SIDE):
    setattr(PointerTensor, f"__{_name}__", _operator(f"__{_name}__"))


class PointerTensors(list[PointerTensor]):
    """The values of one sending to several devices, in their order."""

    def get(self, timeout_s: float | None = None) -> list[Value]:
        return gather(self, timeout_s)

    def copy(self, timeout_s: float | None = None) -> list[Value]:
        return gather(self, timeout_s, copy=True)


def gather(pointers: Iterable[PointerTensor], timeout_s: float | None = None, *, copy: bool = False) -> list[Value]:
    """Many values, in order, asked for with one action per device.

    Args:
        timeout_s: for all of them together.
        copy: leave them on their devices.

    Raises:
        whatever the first one that failed raises; nothing is taken away then.
    """
    pointers = list(pointers)
    for p in pointers:
        p.check_not_taken()
    found = fetch.outcomes(pointers, timeout_s, take=not copy, each=_value)
    for value in found:
        if isinstance(value, FedqError):
            raise value
    return found


def _value(came: RawTensor | Number) -> Value:
    if isinstance(came, Number):
        return came.value
    from fedq.plan.tensors import from_raw

    return from_raw(came)


def raw_tensor(value: Any, name: str = "") -> RawTensor:
    """The bytes of a tensor; UsageError for what is none. ``name``: of the argument that it is."""
    if isinstance(value, RawTensor):
        return value
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        from fedq.plan.tensors import to_raw

        return to_raw(value)
    raise UsageError(
        f"{name}: a {type(value).__name__} cannot be sent" if name else f"{type(value).__name__} can not be sent",
        hint="pass a pointer, a number or a torch.Tensor (torch.as_tensor(x))",
    )
