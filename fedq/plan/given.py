"""What each step of a training plan is given besides carry and batch: numbers, and tensors in structures.

A number of the optimizer or the loss becomes an input of the plan, a tensor without dimensions. The
step reads it as a number again, so that it computes what it computes with Python's. Where torch asks
whether it is 0, it is recorded for a number above 0, and the plan takes no other.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fedq.errors import CannotRecord, SpecMismatch, UsageError
from fedq.plan.tensors import type_of

NAME = "given"
"""The argument of a step."""
Groups = Sequence[Mapping[str, Any]]
Tree = Any
"""A number, a tensor, or lists, tuples and dicts of them."""


@dataclass
class Given:
    """What is given, by name.

    Attributes:
        examples: as they were given when the plan was built; of the optimizer's own numbers, None.
        numbers: names of numbers of the optimizer, which reach it.
        above_zero: paths of numbers that torch asked for, whether they are 0, while it was recorded.
    """

    examples: dict[str, Tree]
    numbers: frozenset[str]
    above_zero: set[str] = field(default_factory=set)

    def now(self, groups: Groups) -> dict[str, Tree]:
        """Each as it is now: the numbers of an optimizer's groups, and tensors as they were given, copied."""
        return {name: _copy(value) for name, value in self._all(groups).items()}

    def _all(self, groups: Groups) -> dict[str, Tree]:
        return {name: _with_own(groups, name, value) for name, value in self.examples.items()}

    def tensors(self, groups: Groups) -> dict[str, Tree]:
        """The same with a tensor for each number: the inputs of a recording."""
        now = self.now(groups).items()
        return {name: _map(_as_double if name in self.numbers else _as_tensor, value) for name, value in now}

    def read(self, groups: Groups, given: Mapping[str, Tree]) -> dict[str, Tree]:
        """What a step was given, with a number where one was meant."""
        like = self._all(groups)
        return {name: self._read(like[name], value, f"{NAME}[{name!r}]") for name, value in given.items()}

    def _read(self, example: Tree, value: Tree, path: str) -> Tree:
        match example:
            case dict():
                return {k: self._read(v, value[k], f"{path}[{k!r}]") for k, v in example.items()}
            case list() | tuple():
                each = enumerate(zip(example, value, strict=True))
                return type(example)(self._read(e, v, f"{path}[{i}]") for i, (e, v) in each)
            case torch.Tensor():
                return value
        return self._number(example, value, path)

    def _number(self, example: float, value: Any, path: str) -> Any:
        number = _unknown(value).item() if isinstance(value, torch.Tensor) else value
        if isinstance(number, torch.SymFloat):
            return Number(number, path, example, self.above_zero)
        if path in self.above_zero and not number > 0:
            raise SpecMismatch(f"{path}: a number above 0 expected, {number} given", hint=_ZERO)
        return number

    def groups(self, groups: Groups, given: Mapping[str, Tree]) -> list[dict[str, Any]]:
        """Groups of an optimizer with these numbers; a list has one for each group."""
        own = {name: given[name] for name in given if name in self.numbers}
        return [{**g, **{k: v[i] if isinstance(v, list) else v for k, v in own.items()}} for i, g in enumerate(groups)]

    def named_by(self, taker: Callable[..., Any], values: Mapping[str, Any], *, taken: int) -> dict[str, Any]:
        """Those of the values that a function takes by name, besides so many that it gets by position.

        A ``**rest`` of it gets what is neither the optimizer's nor named.
        """
        names, rest = _parameters(taker)
        free = names[taken:]
        own = {name: v for name, v in values.items() if name in free}
        more = {k: v for k, v in values.items() if rest and k in self.examples and k not in (*names, *self.numbers)}
        return own | more

    def others(self, groups: Groups) -> dict[str, Tree]:
        """Other numbers than now's, to try what holds for all: halfway to 0.5."""
        now = self._all(groups)
        return {name: _map(lambda x: x * 0.5 + 0.25, now[name]) for name in self.numbers}


class Number(torch.SymFloat):
    """A number while a step is recorded: it computes as torch's symbols do, and says what is asked of it."""

    def __init__(self, symbol: torch.SymFloat, path: str, example: float, asked: set[str]) -> None:
        super().__init__(symbol.node)  # type: ignore[no-untyped-call]
        self.path, self.example, self.asked = path, example, asked

    def above_zero(self, other: Any) -> float:
        """1, for a number that is recorded as one above 0; what it is compared with must be 0."""
        if type(other) not in (int, float) or other != 0:
            raise CannotRecord(f"the step asks whether {self.path} is {other}", hint=_FIXED)
        if not self.example > 0:
            raise CannotRecord(f"the step goes another way where {self.path} is 0, as its example is", hint=_EXAMPLE)
        self.asked.add(self.path)
        return 1.0

    def __bool__(self) -> bool:
        return bool(self.above_zero(0))

    def __float__(self) -> float:
        raise CannotRecord(f"the step takes the value of {self.path}, which a plan does not see", hint=_AS_IT_IS)

    __int__ = __float__

    __hash__ = torch.SymFloat.__hash__


def _asks(compare: Callable[[float, float], bool]) -> Callable[[Number, Any], bool]:
    return lambda self, other: compare(self.above_zero(other), 0.0)


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Number, f"__{_name}__", _asks(getattr(operator, _name)))

_ZERO = "the plan was recorded for numbers above 0: build another one, with it left out of given"
_AS_IT_IS = "use it as it is, without float() or int(), or leave it out of given: it is then fixed in the plan"
_FIXED = "leave it out of given: it is then fixed in the plan"
_EXAMPLE = "give an example above 0, or leave it out of given: it is then fixed in the plan"


# -- who takes what -------------------------------------------------------------------------------


def read(optimizer: Optimizer, given: Mapping[str, Tree] | None, takers: Iterable[Callable[..., Any]]) -> Given:
    """What a user gave to build a plan with.

    Args:
        given: None stands for the optimizer's number of this name.
        takers: the loss, and what corrects gradients.

    Raises:
        UsageError: nobody takes a name, or its value is none that can be given; says what can.
    """
    for name in given or {}:
        if name in _flags(optimizer):
            raise UsageError(
                f"{name!r} of {type(optimizer).__name__} is no number: it says which ops are recorded",
                hint="leave it out of given, and build a plan for each",
            )
    examples = {name: _plain(name, value) for name, value in (given or {}).items()}
    numbers = _numbers(optimizer)
    for name, value in examples.items():
        if name == "params":
            raise UsageError("'params' are not given: whoever names them gets those of the step")
        if name not in numbers and value is None:
            raise UsageError(
                f"{name!r} is no number of {type(optimizer).__name__}",
                hint=f"it has {', '.join(numbers)}; for what the loss takes give an example, not None",
            )
        if name not in numbers and not any(name in names or rest for names, rest in map(_parameters, takers)):
            raise UsageError(
                f"nobody takes {name!r}",
                hint=f"the optimizer has {', '.join(numbers)}; name others in the loss or in what gradient= calls",
            )
        if name in numbers:
            _check_groups(optimizer, name, value)
        elif _holds_none(value):
            raise UsageError(f"given {name!r} holds None, which is no example", hint="give a number or a tensor there")
    return Given(examples, frozenset(numbers) & examples.keys())


def _parameters(taker: Callable[..., Any]) -> tuple[list[str], bool]:
    """Names that a function takes arguments by, in order; whether it takes any others."""
    called = taker.forward if isinstance(taker, nn.Module) else taker
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        return [], False
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _numbers(optimizer: Optimizer) -> list[str]:
    (first, *_) = optimizer.param_groups
    return [k for k, v in first.items() if k not in ("params", "initial_lr") and _is_number(v)]


def _flags(optimizer: Optimizer) -> list[str]:
    return [k for k in optimizer.param_groups[0] if k not in (*_numbers(optimizer), "params", "initial_lr")]


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_number, value))
    return type(value) in (int, float) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def _own(groups: Groups, name: str) -> Tree:
    """The number of an optimizer's group; of several groups, a list of each one's."""
    found = [_map(_as_number, group[name]) for group in groups]
    return found[0] if len(found) == 1 else found


def _with_own(groups: Groups, name: str, value: Tree) -> Tree:
    """The value, with the optimizer's own number where it is None: of all groups, or in a list of one for each."""
    if value is None:
        return _own(groups, name)
    if isinstance(value, list) and any(v is None for v in value):
        return [_map(_as_number, group[name]) if v is None else v for v, group in zip(value, groups, strict=True)]
    return value


def _check_groups(optimizer: Optimizer, name: str, value: Tree) -> None:
    groups = len(optimizer.param_groups)
    if isinstance(value, list) and len(value) != groups:
        have = f"{groups} group{'s' * (groups > 1)} of parameters"
        raise UsageError(f"{name!r} has {len(value)} numbers, and the optimizer {have}", hint="give one for each group")
    like = _map(_as_number, optimizer.param_groups[0][name])
    for one in value if isinstance(value, list) else [value]:
        fits = len(one) == len(like) if isinstance(like, tuple) and isinstance(one, tuple) else _is_number(one)
        if one is not None and (not fits or isinstance(like, tuple) is not isinstance(one, tuple)):
            raise UsageError(f"{name!r} is {like}, not {one!r}", hint="give None for the optimizer's own")


# -- values ---------------------------------------------------------------------------------------


def _plain(path: str, value: Tree) -> Tree:
    """Lists, tuples and dicts, whatever kind they are of; UsageError for what no plan takes."""
    match value:
        case None | torch.Tensor():
            return value
        case Mapping():
            return {k: _plain(f"{path}.{k}", v) for k, v in value.items()}
        case tuple():
            return tuple(_plain(path, v) for v in value)
        case str() | bytes() | bool():
            pass
        case Iterable():
            return [_plain(path, v) for v in value]
        case int() | float():
            return value
    raise UsageError(
        f"given {path!r} is {value!r}", hint="give numbers and tensors, or lists, tuples and dicts of them"
    )


def _holds_none(value: Tree) -> bool:
    match value:
        case dict():
            return any(map(_holds_none, value.values()))
        case list() | tuple():
            return any(map(_holds_none, value))
    return value is None


def check(now: Mapping[str, Tree], given: Any) -> None:
    """SpecMismatch where what is given to a fold is not of the kind that the plan was built with; names the path.

    Shapes and dtypes of tensors are for the plan's Spec to see. None stands for what is so now.
    """
    if not isinstance(given, Mapping):
        raise SpecMismatch(f"{NAME}: a dict expected, {_told(given)} given", hint=f"{NAME}={{name: value, ...}}")
    for name, value in given.items():
        if name not in now:
            what = f"{NAME}: key {name!r} is not among those it was built with"
            raise SpecMismatch(what, hint=f"its keys are {', '.join(map(repr, now))}")
        if value is not None:
            _check(now[name], value, f"{NAME}.{name}")


def _check(now: Tree, value: Tree, path: str) -> None:
    match now:
        case dict():
            _need(isinstance(value, Mapping) and value.keys() == now.keys(), path, f"a dict of {_keys(now)}", value)
            for key, inner in now.items():
                _check(inner, value[key], f"{path}.{key}")
        case list() | tuple():
            kind = "list" if isinstance(now, list) else "tuple"
            _need(isinstance(value, type(now)) and len(value) == len(now), path, f"a {kind} of {len(now)}", value)
            for i, (inner, part) in enumerate(zip(now, value, strict=True)):
                _check(inner, part, f"{path}[{i}]")
        case torch.Tensor():
            _need(_is_tensor(value), path, "a tensor", value)
        case _:
            is_one = type(value) in (int, float) or (_is_tensor(value) and not getattr(value, "shape", None))
            _need(is_one or (isinstance(value, torch.Tensor) and value.numel() == 1), path, "a number", value)


def _is_tensor(value: Any) -> bool:
    """Also one that is on a device."""
    return isinstance(value, torch.Tensor) or hasattr(value, "address")


def _need(fits: bool, path: str, wanted: str, value: Any) -> None:
    if not fits:
        raise SpecMismatch(f"{path}: {wanted} expected, {_told(value)} given", hint=_AS_BUILT)


_AS_BUILT = "give it as it was when the plan was built, or leave it out: it is then as it is now"


def _told(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return str(type_of(value))
    return repr(value)[:40] if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"


def _keys(tree: Mapping[str, Tree]) -> str:
    return ", ".join(map(repr, tree))


def filled(now: Tree, value: Tree) -> Tree:
    """What is given to a fold, with numbers where numbers are meant: ``torch.tensor(0.1)`` is one, too."""
    if value is None:
        return now
    match now:
        case dict() if isinstance(value, Mapping):
            return {k: filled(now[k], v) if k in now else v for k, v in value.items()}
        case list() | tuple() if isinstance(value, type(now)) and len(now) == len(value):
            return type(now)(filled(n, v) for n, v in zip(now, value, strict=True))
        case int() | float() if isinstance(value, torch.Tensor) and value.numel() == 1:
            return value.item()
    return value


def _map(change: Callable[[Any], Any], tree: Tree) -> Tree:
    match tree:
        case dict():
            return {k: _map(change, v) for k, v in tree.items()}
        case list() | tuple():
            return type(tree)(_map(change, v) for v in tree)
    return change(tree)


def _unknown(value: torch.Tensor) -> torch.Tensor:
    """The same tensor; to torch one that an op made. Of an input in f64, its symbols know a value, which is none."""
    return torch.ops.aten.alias.default(value) if torch._C._len_torch_dispatch_stack() else value


def _copy(tree: Tree) -> Tree:
    return _map(lambda x: x.detach().clone() if isinstance(x, torch.Tensor) else x, tree)


def _as_number(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value


def _as_tensor(value: Any) -> torch.Tensor:
    """A number as a tensor without dimensions: an ``int`` in 64 bits, others as Python has them."""
    if isinstance(value, torch.Tensor):
        return value
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _as_double(value: Any) -> torch.Tensor:
    """The same of the optimizer's numbers, which are all floats."""
    return _as_tensor(float(value))
