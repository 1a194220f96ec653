"""Steps of torch's optimizers that choose by their own numbers, in words that a plan can hold.

Each computes what the step of the same name in ``torch.optim`` does, in the same order, so the bits are the
same; where that asks Python which way to go, both are computed and one is chosen. Numbers are Python's, since
those are rounded otherwise than a tensor's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import ASGD, Adafactor, Optimizer, RAdam

Group = Mapping[str, Any]
Slots = dict[str, torch.Tensor]
Step = Callable[[torch.Tensor, torch.Tensor, Slots, Group], None]
"""Writes to a parameter and what is kept for it, given its gradient and the group's numbers."""


def step_of(optimizer: Optimizer) -> Step | None:
    """The step of one parameter, of an optimizer that is one of these."""
    return _STEPS.get(type(optimizer))


def take(step: Step, groups: list[dict[str, Any]], state: Mapping[torch.Tensor, Slots]) -> None:
    """Step all parameters that have a gradient."""
    with torch.no_grad():
        for group in groups:
            for p in group["params"]:
                if p.grad is not None:
                    step(p, -p.grad if group["maximize"] else p.grad, state[p], group)


def _tensor(number: Any) -> torch.Tensor:
    return torch.full((), number, dtype=torch.float64)


def _larger(a: Any, b: Any) -> Any:
    return torch.maximum(_tensor(a), _tensor(b)).item()


def _smaller(a: Any, b: Any) -> Any:
    return torch.minimum(_tensor(a), _tensor(b)).item()


def _asgd(p: torch.Tensor, grad: torch.Tensor, kept: Slots, group: Group) -> None:
    lr, lambd, average = group["lr"], group["lambd"], kept["ax"]
    kept["step"] += 1
    if group["weight_decay"] != 0:
        grad = grad.add(p, alpha=group["weight_decay"])
    eta = kept["eta"].item()
    p.mul_(1 - lambd * eta)
    p.add_(grad, alpha=-eta)
    average.copy_(torch.where(kept["mu"] != 1, average.add(p.sub(average).mul_(kept["mu"])), p))
    step = kept["step"].item()
    kept["eta"].fill_(lr / ((1 + lambd * lr * step) ** group["alpha"]))
    kept["mu"].fill_(1 / _larger(1, step - group["t0"]))


def _radam(p: torch.Tensor, grad: torch.Tensor, kept: Slots, group: Group) -> None:
    lr, (beta1, beta2) = group["lr"], group["betas"]
    first, second = kept["exp_avg"], kept["exp_avg_sq"]
    kept["step"] += 1
    step = kept["step"].item()
    if group["weight_decay"] != 0 and group["decoupled_weight_decay"]:
        p.mul_(1 - lr * group["weight_decay"])
    elif group["weight_decay"] != 0:
        grad = grad.add(p, alpha=group["weight_decay"])
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    bias1, bias2 = 1 - beta1**step, 1 - beta2**step
    plain = first / bias1 * lr
    length = 2 / (1 - beta2) - 1
    now = length - 2 * step * (beta2**step) / bias2
    now_, length_ = _larger(now, 5.0), _larger(length, 5.0)  # what is computed and not chosen is a number, too
    rectified = ((now_ - 4) * (now_ - 2) * length_ / ((length_ - 4) * (length_ - 2) * now_)) ** 0.5
    adapted = plain * ((bias2**0.5) / second.sqrt().add_(group["eps"])) * rectified
    p.add_(torch.where(_tensor(now) > 5.0, adapted, plain), alpha=-1.0)


def _adafactor(p: torch.Tensor, grad: torch.Tensor, kept: Slots, group: Group) -> None:
    lr, (eps1, eps2) = group["lr"], group["eps"]
    eps1 = torch.finfo(p.dtype).eps if eps1 is None else eps1
    kept["step"] += 1
    step = kept["step"].item()
    weight = step ** group["beta2_decay"]
    alpha = _larger(eps2, p.norm(2).item() / (p.numel() ** 0.5)) * _smaller(lr, 1 / (step**0.5))
    if group["weight_decay"] != 0:
        p.mul_(1 - lr * group["weight_decay"])
    update = _variance(grad, kept, weight, eps1).clamp_(min=eps1 * eps1).rsqrt_().mul_(grad)
    denominator = _larger(1.0, update.norm(2).item() / ((update.numel() ** 0.5) * group["d"]))
    p.add_(update, alpha=-alpha / denominator)


def _variance(grad: torch.Tensor, kept: Slots, weight: Any, eps: float) -> torch.Tensor:
    """Of a vector, kept as it is; of a matrix, of rows and of columns."""
    if grad.dim() <= 1:
        return kept["variance"].lerp_(grad * grad, weight).clone()
    rows, columns = kept["row_var"], kept["col_var"]
    rows.lerp_(torch.norm(grad, dim=-1, keepdim=True).square_().div_(grad.size(-1)), weight)
    columns.lerp_(torch.norm(grad, dim=-2, keepdim=True).square_().div_(grad.size(-2)), weight)
    return (rows @ columns).div_(rows.mean(dim=-2, keepdim=True).clamp_(min=eps))


_STEPS: Mapping[type, Step] = {ASGD: _asgd, RAdam: _radam, Adafactor: _adafactor}
