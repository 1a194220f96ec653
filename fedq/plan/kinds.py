"""``type(x)`` and ``x.__class__`` of a tensor that stands in for one: what they are when the function runs.

A function is recorded on tensors of subclasses, which ``isinstance`` takes for what they stand for and
``type`` does not. So while functions are recorded, the name ``type`` in users' modules means `Type`, and
``__class__`` of a stand-in says the class of the tensor it stands for. Both are put back afterwards. To
everybody else, other threads included, `Type` answers as ``type`` does.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from operator import attrgetter
from types import ModuleType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from fedq.plan.untouched import Globals, Place, is_library

_NOW: ContextVar[_Telling | None] = ContextVar("telling", default=None)
Names = dict[str, Any]


class _IsParam:
    """``_is_param``, by which torch lets a tensor pass for a parameter: then its class is nn.Parameter, too."""

    def __get__(self, tensor: Any, owner: type) -> bool:
        try:
            return bool(vars(tensor)["_is_param"])
        except (KeyError, TypeError):
            raise AttributeError("_is_param") from None

    def __set__(self, tensor: Any, is_one: bool) -> None:
        vars(tensor).update(_is_param=is_one, _stands_for=torch.nn.Parameter if is_one else torch.Tensor)


class _StandIn:
    """A base of torch's stand-ins while functions are recorded. All in C: torch asks for classes often."""

    __slots__ = ()
    _stands_for = torch.Tensor
    _is_param = _IsParam()
    __class__ = property(attrgetter("_stands_for"))


class _Meta(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is not Type:
            return super().__call__(*args, **kwargs)
        if len(args) != 1 or kwargs:
            return type(*args, **kwargs)
        kind = type(args[0])
        if kind in _STAND_INS:
            return args[0].__class__
        return Type if kind is type else kind

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, type)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, type)

    def __eq__(cls, other: object) -> bool:
        return other is cls or (cls is Type and other is type)

    def __hash__(cls) -> int:
        return hash(type) if cls is Type else type.__hash__(cls)


class Type(type, metaclass=_Meta):
    """Python's ``type``, that knows what stand-ins stand for."""


Type.__name__ = Type.__qualname__ = "type"
Type.__module__ = "builtins"
_STAND_INS = (FakeTensor, FunctionalTensor)
_BUILTINS = ModuleType("builtins")
vars(_BUILTINS).update(vars(builtins), type=Type)


class _Users:
    """The names of each module that is neither torch's nor Python's: found again when the modules are others."""

    def __init__(self) -> None:
        self.modules: list[ModuleType] = []
        self.found: list[Names] = []

    def names(self) -> list[Names]:
        modules = list(sys.modules.values())
        if modules != self.modules:
            known = [(name, getattr(module, "__dict__", None)) for name, module in list(sys.modules.items())]
            self.found = [names for name, names in known if isinstance(names, dict) and not _is_torchs(name)]
            self.modules = modules
        return self.found


_USERS = _Users()


def _is_torchs(module: str) -> bool:
    """A library that torch uses all the time while it records counts as its own: these know no tensors."""
    return is_library(module) or module.partition(".")[0] in ("sympy", "mpmath")


@contextmanager
def told(places: Sequence[Place]) -> Iterator[None]:
    """While functions are recorded: all users' modules, and what these places hold, have `Type` for ``type``."""
    telling = _Telling()
    token = _NOW.set(telling)
    was = tuple(kind.__bases__ for kind in _STAND_INS)
    for kind, bases in zip(_STAND_INS, was, strict=True):
        kind.__bases__ = bases if _StandIn in bases else (_StandIn, *bases)
    try:
        telling.modules()
        telling.places(places)
        yield
    finally:
        telling.take_back()
        for kind, bases in zip(_STAND_INS, was, strict=True):
            kind.__bases__ = bases
        _NOW.reset(token)


def tell() -> bool:
    """Tell users' modules that were imported meanwhile: whether there are any."""
    telling = _NOW.get()
    return telling is not None and len(sys.modules) != telling.count and telling.modules()


class _Telling:
    """Where users' code finds `Type` now, and how to take it back."""

    def __init__(self) -> None:
        self.told: list[Names] = []
        self.known: list[Names] = []
        self.count = 0
        self.undo: list[Callable[[], None]] = []

    def modules(self) -> bool:
        found, self.count = _USERS.names(), len(sys.modules)
        if found is self.known:
            return False
        before, self.known = len(self.told), found
        self.names(found)
        return len(self.told) > before

    def names(self, modules: Iterable[Names]) -> None:
        """There are a thousand of them: these lines are short of time."""
        for of in modules:
            if "type" not in of:
                of["type"] = Type
                self.told.append(of)
            if "builtins" in of:
                self.builtins(of)

    def builtins(self, of: Names) -> None:
        if of["builtins"] is builtins:
            of["builtins"] = _BUILTINS
            self.undo.append(partial(of.__setitem__, "builtins", builtins))

    def places(self, places: Sequence[Place]) -> None:
        for place in places:
            if isinstance(place, Globals):
                self.names((place.of,))
        for place in places:
            place.swap(type, Type)
        self.undo += [partial(place.swap, Type, type) for place in places]

    def take_back(self) -> None:
        for undo in reversed(self.undo):
            undo()
        for of in self.told:
            of.pop("type", None)
