"""One step of a torch optimizer outside of its model: over given parameters, state and numbers.

torch makes an optimizer's state inside its first step, and keeps it by parameter; a plan needs both
before it is recorded, and the step over tensors that are not parameters.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fedq.errors import CannotRecord, UsageError
from fedq.plan import steps

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
    like, own = _like(optimizer, groups, params, state), steps.step_of(optimizer)
    if own is not None:
        steps.take(own, like.param_groups, like.state)
    else:
        _torchs_step(like)
    return {name: like.state[p] for name, p in zip(state, params.values(), strict=True)}


def _like(
    optimizer: Optimizer, groups: Groups, params: Mapping[Any, torch.Tensor], state: Mapping[str, Any]
) -> Optimizer:
    like: Optimizer = object.__new__(type(optimizer))
    like.__dict__.update(vars(optimizer))
    like.param_groups = [{**g, "params": [params[p] for p in g["params"] if p in params]} for g in groups]
    like.state = defaultdict(dict, {p: dict(s) for p, s in zip(params.values(), state.values(), strict=True) if s})
    return like


def _torchs_step(like: Optimizer) -> None:
    try:
        type(like).step(like)
    except TypeError as error:
        if "closure" not in str(error):
            raise
        name = type(like).__name__
        raise CannotRecord(f"{name} calls the model itself", hint="use SGD, Adam or AdamW") from None


def plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """The loop over parameters, not the fused forms; numbers, not tensors of them."""
    numbers = {k: v.item() for k, v in group.items() if isinstance(v, torch.Tensor)}
    return numbers | {k: False for k in ("foreach", "fused") if k in group}


def slots(
    optimizer: Optimizer, groups: Groups, params: Mapping[str, Any], also: Groups | None = None
) -> dict[str, dict[str, Any]]:
    """What the optimizer keeps for each parameter before its first step, where that is proved.

    torch makes this state inside the first step: most of it zeros, some of it numbers, which its
    ``_init_group`` tells. So a step is taken from nothing, and one from that state; both must give the
    same, with these numbers and with those of ``also``, for which the state must be no other.
    """
    fresh = [name for name, p in params.items() if not optimizer.state.get(p)]
    start = _start(optimizer, groups, params, fresh)
    if also is not None and fresh and not _alike(start, _start(optimizer, also, params, fresh), fresh):
        raise _unlike(optimizer)
    return {name: start[name] if name in fresh else dict(optimizer.state[p]) for name, p in params.items()}


def _start(
    optimizer: Optimizer, groups: Groups, params: Mapping[str, Any], fresh: Sequence[str]
) -> dict[str, dict[str, Any]]:
    nothing: dict[str, dict[str, Any]] = {name: {} for name in params}
    copies = _copies(params)
    like = _like(optimizer, groups, copies, nothing)
    _torchs_step(like)
    first, a = {n: like.state[p] for n, p in zip(params, copies.values(), strict=True)}, list(copies.values())
    made = _initial(optimizer, groups, params)
    start = {n: {k: made[n].get(k, _zero(v)) for k, v in first[n].items()} for n in params}
    copies = _copies(params)
    second = step_of(optimizer, groups, copies, {n: {k: _copy(v) for k, v in s.items()} for n, s in start.items()})
    steps_equal = all(_equal(x, y) for n, x, y in zip(params, a, copies.values(), strict=True) if n in fresh)
    if not (steps_equal and _alike(first, second, fresh)):
        raise _unlike(optimizer)
    return start


def _unlike(optimizer: Optimizer) -> CannotRecord:
    return CannotRecord(
        f"the first step of {type(optimizer).__name__} is unlike its others",
        hint="take one step with it before: then the plan goes on from there",
    )


def _initial(optimizer: Optimizer, groups: Groups, params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What torch puts there before the arithmetic of a first step, for optimizers that do so in a place of its own."""
    copies = _copies(params)
    like = _like(optimizer, groups, copies, {name: {} for name in params})
    init = getattr(type(like), "_init_group", None)
    if init is not None:
        lists = len(inspect.signature(init).parameters) - 2  # besides itself and the group
        for group in like.param_groups:
            init(like, group, *([] for _ in range(lists)))
    state = (like.state.get(p, {}) for p in copies.values())
    return {name: {k: _copy(v) for k, v in s.items() if v is not None} for name, s in zip(params, state, strict=True)}


def _copies(params: Mapping[str, Any]) -> dict[Any, torch.Tensor]:
    """Of each parameter, with some gradient."""
    copies = {p: p.detach().clone() for p in params.values()}
    for copy in copies.values():
        copy.grad = torch.linspace(-1, 1, copy.numel(), dtype=copy.dtype).view(copy.shape)
    return copies


def _alike(a: Mapping[str, Any], b: Mapping[str, Any], names: Sequence[str]) -> bool:
    return all(a[n].keys() == b[n].keys() and all(_equal(a[n][k], b[n][k]) for k in a[n]) for n in names)


def _zero(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else value


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a is b or a == b
