"""What a plan holds besides its inputs: tensors by name, lent to the function, and loaded anew."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from fedq.errors import UsageError


class State:
    """The tensors a function was given with ``state=``, as its last argument."""

    def __init__(self, held: Sequence[torch.Tensor]) -> None:
        self._held = list(held)

    def read(self) -> list[torch.Tensor]:
        """All of them, in the order given."""
        return list(self._held)


@dataclass(slots=True)
class Attributes:
    """Plain tensors of a module that are state.

    Attributes:
        names: whole names, such as ``encoder.table``.
        held: whether a call with all of them came to its end.
    """

    names: tuple[str, ...] = ()
    held: bool = False

    def leave(self, names: Collection[str]) -> None:
        self.names = tuple(name for name in self.names if name not in names)


class Outgrown(BaseException):
    """A module gives a plain attribute a tensor of another type, so it is not state; not an error of the user's."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name


def named(module: nn.Module, attributes: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """Parameters, then buffers, tied ones once; then those of its attributes that are plain tensors."""
    found = attributes_of(module) if attributes else {}
    gone = [name for name in attributes if name not in found]
    if gone:
        raise UsageError(f"attribute {gone[0]!r} was a tensor when the plan was built", hint="build the plan again")
    plain = {name: getattr(*found[name]) for name in attributes}
    return {**dict(module.named_parameters()), **dict(module.named_buffers()), **plain}


def attributes_of(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Attributes that are tensors, but no parameters or buffers: by their whole name, whose they are, and their own."""
    found = {
        f"{prefix}.{name}" if prefix else name: (part, name)
        for prefix, part in nn.Module.named_modules(module)
        for name, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    }
    return dict(sorted(found.items()))


def call(
    module: nn.Module,
    held: list[torch.Tensor],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    attributes: Collection[str] = (),
) -> Any:
    """Call a module with these tensors for its own; those it puts in their places are put in the list."""
    tensors = dict(zip(named(module, attributes), held, strict=True))
    plain = {name: tensors.pop(name) for name in attributes}
    with _in_place(module, plain) as after:
        out = torch.func.functional_call(module, tensors, tuple(args), dict(kwargs), tie_weights=True)
        held[:] = [*tensors.values(), *after()]
    return out


@contextmanager
def _in_place(module: nn.Module, plain: Mapping[str, torch.Tensor]) -> Iterator[Callable[[], list[torch.Tensor]]]:
    """The module with these tensors as its attributes; gives a function that says what they are now."""
    found = attributes_of(module) if plain else {}
    places = {name: found[name] for name in plain}
    before = {name: getattr(*at) for name, at in places.items()}

    def after() -> list[torch.Tensor]:
        now = {name: getattr(*at) for name, at in places.items()}
        for name, value in now.items():
            if not _is_like(value, plain[name]):
                raise Outgrown(module, name)
        return list(now.values())

    try:
        for name, at in places.items():
            setattr(*at, plain[name])
        yield after
    finally:
        for name, at in places.items():
            setattr(*at, before[name])


def _is_like(new: Any, old: torch.Tensor) -> bool:
    """Asked so that no size is fixed by it."""
    if new is old:
        return True
    if not isinstance(new, torch.Tensor) or new.dtype != old.dtype:
        return False
    return tuple(map(_number, new.shape)) == tuple(map(_number, old.shape))


def _number(size: Any) -> int | None:
    """None for a symbol; a symbol that was found to be a number is that."""
    expr = size.node.expr if isinstance(size, torch.SymInt) else size
    return int(expr) if isinstance(size, int) or expr.is_number else None


def load(held: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> None:
    """Copy new values into what is held; it may be some of it only.

    Raises:
        UsageError: a name is not known, or a shape or dtype differs; then nothing was changed.
    """
    for name, value in new.items():
        if name not in held:
            raise UsageError(f"there is no state {name!r}", hint=f"its names are {', '.join(held) or 'none'}")
        old = held[name]
        if not isinstance(value, torch.Tensor):
            raise UsageError(f"state {name!r} is a tensor, not a {type(value).__name__}")
        if (old.shape, old.dtype) != (value.shape, value.dtype):
            raise UsageError(
                f"state {name!r} is {old.dtype} {tuple(old.shape)}, not {value.dtype} {tuple(value.shape)}"
            )
    with torch.no_grad():
        for name, value in new.items():
            held[name].copy_(value)


# -- arguments that are written to ----------------------------------------------------------------

_OWN: ContextVar[list[torch.Tensor] | None] = ContextVar("own", default=None)
_GRADIENTS: ContextVar[bool] = ContextVar("gradients", default=True)
_LEAVES: ContextVar[list[torch.Tensor]] = ContextVar("leaves")


@contextmanager
def recording(*, gradients: bool) -> Iterator[None]:
    """While a function is recorded: what `own` is told holds for this recording, and whether it takes a gradient."""
    tokens = _OWN.set([]), _GRADIENTS.set(gradients), _LEAVES.set([])
    try:
        yield
    finally:
        _OWN.reset(tokens[0])
        _GRADIENTS.reset(tokens[1])
        _LEAVES.reset(tokens[2])


def stand_in(tensor: torch.Tensor, real: torch.Tensor) -> None:
    """Let a tensor pass for this one: for an nn.Parameter, as torch lets tensors of other types, and in its class.

    What ``type`` says of it then, while a function is recorded: `plan.kinds`.
    """
    if isinstance(real, nn.Parameter):
        tensor._is_param = True
    tensor._stands_for = getattr(real, "_stands_for", type(real))  # type: ignore[attr-defined]


def own_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that takes gradients, and is a parameter, as the tensor does and is; in memory as a device holds it."""
    made = tensor.detach().clone(memory_format=torch.contiguous_format)
    if type(tensor) is nn.Parameter:
        return nn.Parameter(made, requires_grad=tensor.requires_grad)
    made.requires_grad_(tensor.requires_grad)
    if isinstance(tensor, nn.Parameter):
        made._is_param = True
    return made


def is_special(example: Any) -> bool:
    """Whether it is a tensor that a device's values are not: a parameter, or one that requires a gradient."""
    return isinstance(example, torch.Tensor) and (example.requires_grad or isinstance(example, nn.Parameter))


def like(example: Any, value: Any) -> Any:
    """The value of an argument whose example may require a gradient: then it does, where one is taken."""
    if not (isinstance(example, torch.Tensor) and example.requires_grad and value.is_floating_point()):
        return value
    if isinstance(example, nn.Parameter):
        stand_in(value, example)
    if _GRADIENTS.get():
        return value.requires_grad_()
    _LEAVES.get().append(value)
    return value


def any_would_require_grad() -> bool:
    """Whether an argument of what is recorded requires a gradient, which this recording leaves out."""
    return bool(_LEAVES.get())


def own(tree: Any) -> Any:
    """The same structure, of which the function may write to each tensor: it gives all of them back as results."""
    found = _OWN.get()
    if found is not None:
        found += [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return tree


def is_own(argument: torch.Tensor) -> bool:
    return any(argument is t for t in _OWN.get() or ())
