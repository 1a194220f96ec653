"""One step of a torch optimizer outside of its model: over given parameters, state and numbers.

torch makes an optimizer's state inside its first step, and keeps it by parameter; a plan needs both
before it is recorded, and the step over tensors that are not parameters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fedq.errors import CannotRecord, UsageError

Tensors = dict[str, torch.Tensor]
Groups = Sequence[Mapping[str, Any]]


def trained(model: nn.Module, optimizer: Optimizer) -> dict[torch.Tensor, str]:
    """What the optimizer trains, in the model's order, with its name there; a frozen parameter is passed over."""
    theirs = {p for group in optimizer.param_groups for p in group["params"]}
    if theirs - set(model.parameters()):
        raise UsageError("the optimizer trains a parameter that the model does not have")
    names: dict[torch.Tensor, str] = {p: n for n, p in model.named_parameters() if p in theirs and p.requires_grad}
    if not names:
        raise UsageError(
            "the optimizer trains nothing: its parameters are all frozen",
            hint="set requires_grad to True of those to be trained, before the plan is built",
        )
    return names


def step_of(
    optimizer: Optimizer, groups: Groups, params: Mapping[Any, torch.Tensor], state: Mapping[str, Any]
) -> dict[str, Any]:
    """Take one step of an optimizer like this one, over these parameters and this state."""
    like = object.__new__(type(optimizer))
    like.__dict__.update(vars(optimizer))
    like.param_groups = [{**g, "params": [params[p] for p in g["params"] if p in params]} for g in groups]
    like.state = defaultdict(dict, {p: dict(s) for p, s in zip(params.values(), state.values(), strict=True) if s})
    try:
        type(optimizer).step(like)
    except TypeError as error:
        if "closure" not in str(error):
            raise
        name = type(optimizer).__name__
        raise CannotRecord(f"{name} calls the model itself", hint="use SGD, Adam or AdamW") from None
    return {name: like.state[p] for name, p in zip(state, params.values(), strict=True)}


def plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """The loop over parameters, not the fused forms; numbers, not tensors of them."""
    numbers = {k: v.item() for k, v in group.items() if isinstance(v, torch.Tensor)}
    return numbers | {k: False for k in ("foreach", "fused") if k in group}


def slots(
    optimizer: Optimizer, groups: Groups, params: Mapping[str, Any], also: Groups | None = None
) -> dict[str, dict[str, Any]]:
    """What the optimizer keeps for each parameter before its first step: zeros, where that is proved.

    torch makes this state inside the first step, so a step is taken from nothing, and one from
    zeros; both must give the same, with these numbers and with those of ``also``.
    """
    fresh = [name for name, p in params.items() if not optimizer.state.get(p)]
    zeros = _zeros(optimizer, groups, params, fresh)
    if also is not None and fresh:
        _zeros(optimizer, also, params, fresh)
    return {name: zeros[name] if name in fresh else dict(optimizer.state[p]) for name, p in params.items()}


def _zeros(
    optimizer: Optimizer, groups: Groups, params: Mapping[str, Any], fresh: Sequence[str]
) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {name: {} for name in params}
    first, a = _trial(optimizer, groups, params, made)
    zeros = {name: {k: _zero(v) for k, v in first[name].items()} for name in params}
    second, b = _trial(optimizer, groups, params, zeros)
    for name in fresh:
        if not (_equal(a[name], b[name]) and all(_equal(first[name][k], second[name][k]) for k in first[name])):
            raise CannotRecord(
                f"the first step of {type(optimizer).__name__} is unlike its others",
                hint="take one step with it before: then the plan goes on from there",
            )
    return zeros


def _trial(
    optimizer: Optimizer, groups: Groups, params: Mapping[str, Any], state: Mapping[str, Any]
) -> tuple[Any, Tensors]:
    copies = {p: p.detach().clone() for p in params.values()}
    for copy in copies.values():
        copy.grad = torch.linspace(-1, 1, copy.numel(), dtype=copy.dtype).view(copy.shape)
    after = step_of(optimizer, groups, copies, {n: {k: _copy(v) for k, v in s.items()} for n, s in state.items()})
    return after, dict(zip(params, copies.values(), strict=True))


def _zero(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else value


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a is b or a == b
