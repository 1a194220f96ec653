"""What a training plan was built from, to be noticed when it changes: the optimizer's numbers, the model, hooks.

A plan holds what was recorded. What a scheduler changes later, a parameter that is frozen later, a layer
that is put in the place of another, or a hook that is added later, would do nothing in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from fedq.errors import CannotRecord, UsageError

Hooks = dict[str, tuple[Any, ...]]
_NOT_NUMBERS = ("params", "initial_lr", "foreach", "fused")
_MODULE_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@dataclass(frozen=True)
class Snapshot:
    """Numbers of each group of parameters, which parameters are in it, all hooks by place, and the model's parts.

    Attributes:
        parts: modules and parameters by what they are called in a message; told apart by what they are.
        frozen: parameters of the optimizer that require no gradient.
    """

    numbers: tuple[dict[str, Any], ...]
    members: tuple[tuple[str | None, ...], ...]
    hooks: Hooks
    parts: dict[str, Any]
    frozen: frozenset[str]


def take(model: nn.Module, optimizer: Optimizer, names: Mapping[torch.Tensor, str], given: frozenset[str]) -> Snapshot:
    """As it is now; ``given``: numbers that come with each fold, and may change."""
    numbers = tuple({k: _plain(v) for k, v in g.items() if k not in given} for g in optimizer.param_groups)
    members = tuple(tuple(names.get(p) for p in g["params"]) for g in optimizer.param_groups)
    numbers = tuple({k: v for k, v in g.items() if k not in _NOT_NUMBERS} for g in numbers)
    theirs = {p for group in optimizer.param_groups for p in group["params"]}
    frozen = frozenset(n for n, p in model.named_parameters() if p in theirs and not p.requires_grad)
    return Snapshot(numbers, members, dict(_hooks(model, optimizer, names)), _parts(model), frozen)


def check(before: Snapshot, now: Snapshot) -> None:
    """UsageError if a plan built from what was before is not what would be built now."""
    if before.members != now.members:
        raise UsageError(
            "the optimizer trains other parameters than when the plan was built", hint="build another plan"
        )
    _check_model(before, now)
    for i, (old, new) in enumerate(zip(before.numbers, now.numbers, strict=True)):
        for key, value in old.items():
            if new.get(key, value) != value:
                _changed(key, value, new[key], f" of group {i}" if len(before.numbers) > 1 else "")
    odd = next((p for p in before.hooks.keys() | now.hooks.keys() if not _same(before.hooks, now.hooks, p)), None)
    if odd is not None:
        raise UsageError(f"hooks of {odd} changed since the plan was built", hint="build another plan")


def _check_model(before: Snapshot, now: Snapshot) -> None:
    """UsageError for another layer or parameter in the place of one, and for what was frozen or unfrozen."""
    for place in dict.fromkeys([*before.parts, *now.parts]):
        if before.parts.get(place) is not now.parts.get(place):
            raise UsageError(f"{place} is another one than when the plan was built", hint="build another plan")
    for name in sorted(before.frozen ^ now.frozen):
        is_now, was = ("frozen", "trained") if name in now.frozen else ("trained", "frozen")
        raise UsageError(
            f"parameter {name!r} is {is_now} now, and was {was} when the plan was built",
            hint=f"build another plan, or set its requires_grad to {name not in before.frozen} again",
        )


def _parts(model: nn.Module) -> dict[str, Any]:
    modules = {f"module {name!r}": module for name, module in model.named_modules() if name}
    return modules | {f"parameter {name!r}": p for name, p in model.named_parameters()}


def _changed(key: str, old: Any, new: Any, where: str) -> None:
    number = isinstance(old, (int, float, tuple)) and not isinstance(old, bool)
    given = f"give it with each fold: training_plan(..., given={{{key!r}: None}}), or " if number else ""
    raise UsageError(
        f"the optimizer's {key}{where} is {new} now, and the plan was recorded with {old}",
        hint=f"{given}build another plan",
    )


def _same(before: Hooks, now: Hooks, place: str) -> bool:
    old, new = before.get(place, ()), now.get(place, ())
    return len(old) == len(new) and all(a is b or a == b for a, b in zip(old, new, strict=True))


def _hooks(model: nn.Module, optimizer: Optimizer, names: Mapping[torch.Tensor, str]) -> Iterator[tuple[str, Any]]:
    for p, name in names.items():
        for attribute in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            if hooks := getattr(p, attribute, None):
                yield f"parameter {name!r} ({attribute.strip('_')})", tuple(hooks.values())
    for name, module in model.named_modules():
        for attribute in _MODULE_HOOKS:
            if hooks := getattr(module, attribute, None):
                yield f"module {name or type(module).__name__!r} ({attribute.strip('_')})", tuple(hooks.values())
    if hooks := _of_step(optimizer):
        yield "the optimizer", tuple(hooks)


def _of_step(optimizer: Optimizer) -> list[Any]:
    """Hooks around the optimizer's step, and another step put in the place of its own, but for a scheduler's."""
    own = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
    everyones = [
        *torch_optimizer._global_optimizer_pre_hooks.values(), *torch_optimizer._global_optimizer_post_hooks.values()
    ]  # fmt: skip
    step = vars(optimizer).get("step")
    return [*own, *everyones, *([] if step is None or hasattr(step, "_wrapped_by_lr_sched") else [step])]


def check_hooks(optimizer: Optimizer, names: Mapping[torch.Tensor, str]) -> None:
    """CannotRecord for hooks that a recorded step cannot run."""
    if _of_step(optimizer):
        raise CannotRecord(
            "the optimizer has hooks around its step, which a plan does not run",
            hint="take them off; change gradients with training_plan(..., gradient=f), numbers with given=",
        )
    for p, name in names.items():
        if getattr(p, "_post_accumulate_grad_hooks", None):
            raise CannotRecord(
                f"parameter {name!r} has a hook that runs when its gradient was added up, which a plan does not run",
                hint="take it off, and change gradients with training_plan(..., gradient=f)",
            )


def hooked(p: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """The gradient of a parameter after its hooks, in their order."""
    hooks: Sequence[Any] = tuple((p._backward_hooks or {}).values())
    for hook in hooks:
        changed = hook(grad)
        grad = grad if changed is None else changed
    return grad


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value
