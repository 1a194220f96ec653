"""What a plan holds besides its inputs: tensors by name, lent to the function, and loaded anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fedq.errors import UsageError


class State:
    """The tensors a function was given with ``state=``, as its last argument."""

    def __init__(self, held: Sequence[torch.Tensor]) -> None:
        self._held = list(held)

    def read(self) -> list[torch.Tensor]:
        """All of them, in the order given."""
        return list(self._held)


def named(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, then buffers; tied ones once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def call(module: nn.Module, held: list[torch.Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a module with these tensors for its own; those it puts in their places are put in the list."""
    tensors = dict(zip(named(module), held, strict=True))
    out = torch.func.functional_call(module, tensors, tuple(args), dict(kwargs), tie_weights=True)
    held[:] = tensors.values()
    return out


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
