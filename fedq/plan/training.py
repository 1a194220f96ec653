"""A training step as a plan: model, loss and optimizer in, ``step(carry, *batch) -> (carry, metrics)`` out.

The carry is all that a step changes: parameters, buffers such as BatchNorm's statistics, and the
optimizer's state. It goes in and comes out in one structure, so a device can fold the plan over
its data, and nothing is written in secret. What stays as it is (frozen parameters, other buffers)
is the plan's state; numbers of the optimizer (lr, momentum) are part of the graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from fedq.errors import CannotRecord, UsageError
from fedq.plan import held as holding
from fedq.plan.graph import Type, Var
from fedq.plan.plan import Plan
from fedq.plan.tensors import type_of

Loss = Callable[..., Any]
Tensors = dict[str, torch.Tensor]
Groups = Sequence[Mapping[str, Any]]
Carry = dict[str, Any]
"""``{"params": {name: tensor}, "buffers": {name: tensor}, "optimizer": {name: {slot: tensor}}}``."""


def training_plan(
    model: nn.Module, loss: Loss, optimizer: Optimizer, *batch: torch.Tensor, inputs: int | None = None
) -> TrainingPlan:
    """One training step as a plan, built for batches like this one with any number of rows.

    Args:
        model: trained as it is: call ``model.train()`` first where dropout or BatchNorm ask for it.
        loss: called with the model's output and what of the batch the model does not take; gives
            a scalar, or a scalar and a dict of further metrics (tensors).
        optimizer: of ``torch.optim``, over parameters of the model; the others are frozen.
        batch: an example of what comes with each step; only dtypes and sizes count.
        inputs: how many of the batch the model takes; by default all but the last.

    Raises:
        CannotRecord: a part does what a plan cannot hold; names the line and what to write instead.
    """
    return TrainingPlan(model, loss, optimizer, inputs=inputs)._build_for(batch)


class TrainingPlan(Plan):
    """A plan of one training step; see `training_plan`."""

    def __init__(self, model: nn.Module, loss: Loss, optimizer: Optimizer, *, inputs: int | None = None) -> None:
        super().__init__(self.step)
        self.model = model
        self.optimizer, self._loss, self._inputs = optimizer, (loss,), inputs
        self._names = _trained(model, optimizer)
        self._changing = [name for name, _ in model.named_buffers()]
        self._groups = [{**g, **_plain(g)} for g in optimizer.param_groups]
        self._slots = _slots(optimizer, self._groups, {name: p for p, name in self._names.items()})
        self._as_written = True

    @property
    def name(self) -> str:
        return f"train_{type(self.model).__name__}"

    # -- what a step changes

    def carry(self) -> Carry:
        """A copy of all a step changes, as model and optimizer have it now: the first argument of a step."""
        buffers = dict(self.model.named_buffers())
        return {
            "params": {name: p.detach().clone() for p, name in self._names.items()},
            "buffers": {name: buffers[name].detach().clone() for name in self._changing},
            "optimizer": {
                name: {
                    k: self.optimizer.state.get(p, {}).get(k, v).detach().clone()
                    for k, v in self._slots[name].items()
                    if isinstance(v, torch.Tensor)
                }
                for p, name in self._names.items()
            },
        }

    def load_carry(self, carry: Carry) -> None:
        """Put what steps made of a carry back into the model and the optimizer."""
        held = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        with torch.no_grad():
            for name, value in {**carry["params"], **carry["buffers"]}.items():
                held[name].copy_(value)
        for p, name in self._names.items():
            state = {k: carry["optimizer"][name].get(k, v) for k, v in self._slots[name].items()}
            self.optimizer.state[p] = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}

    # -- recording

    def _build_for(self, batch: Sequence[torch.Tensor]) -> TrainingPlan:
        """Record it; buffers that turn out not to change become state, and it is recorded again."""
        rows = [_rows(i, t) for i, t in enumerate(batch)]
        self.build(self.carry(), *rows)
        changed = self._changed_buffers()
        if changed != self._changing:
            self._changing = changed
            self.build(self.carry(), *rows)
        return self

    def _changed_buffers(self) -> list[str]:
        first = len(self._names)
        made = self.graph.outputs[0]["buffers"]
        return [name for i, name in enumerate(self._changing) if made[name] != Var(first + i)]

    def _own_function(self) -> tuple[Callable[..., Any], list[tuple[str, torch.Tensor]]]:
        kept = self._kept()
        return (
            lambda held, carry, *batch: self._step(holding.own(carry), batch, dict(zip(kept, held, strict=True))),
            list(kept.items()),
        )

    def _kept(self) -> Tensors:
        """What no step changes."""
        changed = {*self._names.values(), *self._changing}
        held = (*self.model.named_parameters(), *self.model.named_buffers())
        return {name: t.detach() for name, t in held if name not in changed}

    def step(self, carry: Carry, *batch: torch.Tensor) -> tuple[Carry, Tensors]:
        """One step, here: the next carry and the metrics; model and optimizer stay as they are."""
        given = {kind: tree_map(torch.clone, part) for kind, part in carry.items()}
        return self._step(given, batch, self._kept())

    def _step(self, carry: Carry, batch: Sequence[torch.Tensor], held: Tensors) -> tuple[Carry, Tensors]:
        """A step that writes to its carry; recording makes new values of what is written."""
        params = {name: p.detach().requires_grad_() for name, p in carry["params"].items()}
        called = {**params, **carry["buffers"], **held}
        take = len(batch) - 1 if self._inputs is None else self._inputs
        out = torch.func.functional_call(self.model, called, batch[:take], tie_weights=True)
        loss, metrics = _loss_of(self._loss[0](out, *batch[take:]))
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        state = self._stepped(params, grads, carry["optimizer"])
        trained = {name: p.detach() for name, p in params.items()}
        buffers = {name: called[name] for name in carry["buffers"]}
        return {"params": trained, "buffers": buffers, "optimizer": state}, metrics

    def _stepped(self, params: Tensors, grads: Sequence[Any], state: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """The optimizer's next state; it writes the next parameters into ``params``."""
        for p, grad in zip(params.values(), grads, strict=True):
            p.grad = None if grad is None else grad.detach()
        before = {name: {k: state[name].get(k, v) for k, v in slots.items()} for name, slots in self._slots.items()}
        after = _step_of(self.optimizer, self._groups, {p: params[name] for p, name in self._names.items()}, before)
        return {name: {k: after[name][k] for k in given} for name, given in state.items()}


def _loss_of(result: Any) -> tuple[torch.Tensor, Tensors]:
    loss, metrics = result if isinstance(result, tuple) else (result, {})
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise UsageError("the loss is no scalar", hint="return loss.mean(), or (loss, {'accuracy': ...})")
    return loss, {"loss": loss.detach(), **{k: v.detach() for k, v in metrics.items()}}


def _rows(i: int, example: torch.Tensor) -> Type:
    if not isinstance(example, torch.Tensor) or not example.dim():
        raise UsageError(f"tensor {i} of the batch has no rows", hint="give an example of each, rows first")
    return Type(type_of(example).dtype, (-1, *example.shape[1:]))


# -- optimizers -----------------------------------------------------------------------------------


def _trained(model: nn.Module, optimizer: Optimizer) -> dict[torch.Tensor, str]:
    """What the optimizer trains, in the model's order, with its name there."""
    theirs = {p for group in optimizer.param_groups for p in group["params"]}
    names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters() if p in theirs}
    if theirs - names.keys():
        raise UsageError("the optimizer trains a parameter that the model does not have")
    return names


def _step_of(
    optimizer: Optimizer, groups: Groups, params: Mapping[Any, torch.Tensor], state: Mapping[str, Any]
) -> dict[str, Any]:
    """Take one step of an optimizer like this one, over these parameters and this state."""
    like = object.__new__(type(optimizer))
    like.__dict__.update(vars(optimizer))
    like.param_groups = [{**g, "params": [params[p] for p in g["params"]]} for g in groups]
    like.state = defaultdict(dict, {p: dict(s) for p, s in zip(params.values(), state.values(), strict=True) if s})
    try:
        type(optimizer).step(like)
    except TypeError as error:
        if "closure" not in str(error):
            raise
        name = type(optimizer).__name__
        raise CannotRecord(f"{name} calls the model itself", hint="use SGD, Adam or AdamW") from None
    return {name: like.state[p] for name, p in zip(state, params.values(), strict=True)}


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """The loop over parameters, not the fused forms; numbers, not tensors of them."""
    numbers = {k: v.item() for k, v in group.items() if isinstance(v, torch.Tensor)}
    return numbers | {k: False for k in ("foreach", "fused") if k in group}


def _slots(optimizer: Optimizer, groups: Groups, params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the optimizer keeps for each parameter before its first step: zeros, where that is proved.

    torch makes this state inside the first step, so a step is taken from nothing, and one from
    zeros; both must give the same.
    """
    fresh = [name for name, p in params.items() if not optimizer.state.get(p)]
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
    return {name: zeros[name] if name in fresh else dict(optimizer.state[p]) for name, p in params.items()}


def _trial(
    optimizer: Optimizer, groups: Groups, params: Mapping[str, Any], state: Mapping[str, Any]
) -> tuple[Any, Tensors]:
    copies = {p: p.detach().clone() for p in params.values()}
    for copy in copies.values():
        copy.grad = torch.linspace(-1, 1, copy.numel(), dtype=copy.dtype).view(copy.shape)
    after = _step_of(optimizer, groups, copies, {n: {k: _copy(v) for k, v in s.items()} for n, s in state.items()})
    return after, dict(zip(params, copies.values(), strict=True))


def _zero(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else value


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a is b or a == b
