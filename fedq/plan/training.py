"""A training step as a plan: model, loss and optimizer in, ``step(carry, *batch) -> (carry, metrics)`` out.

The carry is all that a step changes: parameters, buffers such as BatchNorm's statistics, and the
optimizer's state. It goes in and comes out in one structure, so a device can fold the plan over
its data, and nothing is written in secret. What stays as it is (frozen parameters, other buffers)
is the plan's state; numbers of the optimizer (lr, momentum) are part of the graph, unless they are
given with each fold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from fedq.errors import CannotRecord, UsageError
from fedq.plan import arrays, optimizers, ranges, roles, unchanged
from fedq.plan import given as giving
from fedq.plan import held as holding
from fedq.plan.file import PlanFile
from fedq.plan.graph import Type, Var
from fedq.plan.plan import Plan
from fedq.plan.roles import Correct, Loss, Parts
from fedq.plan.tensors import to_raw, type_of
from fedq.plan.untouched import Kept

Tensors = dict[str, torch.Tensor]
Carry = dict[str, Any]
"""``{"params": {name: tensor}, "buffers": {name: tensor}, "optimizer": {name: {slot: tensor}}}``."""


def training_plan(
    model: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    *batch: torch.Tensor,
    inputs: int | None = None,
    given: Mapping[str, Any] | None = None,
    gradient: Correct | None = None,
) -> TrainingPlan:
    """One training step as a plan, built for batches like this one with any number of rows.

    Args:
        model: trained as it is: call ``model.train()`` first where dropout or BatchNorm ask for it.
        loss: called with the model's output and what of the batch the model does not take; gives
            a scalar, or a scalar and a dict of further metrics (tensors). It gets by name what it
            names of ``given``, and ``params``, the parameters of this step: ``{name: tensor}``.
        optimizer: of ``torch.optim``, over parameters of the model; the others are frozen.
        batch: an example of what comes with each step; only dtypes and sizes count.
        inputs: how many of the batch the model takes; by default all but the last.
        given: what may be another with each fold, with an example of each: numbers of the optimizer
            (``None``: as it has them; of several groups, a list), numbers and structures of tensors
            for the loss and ``gradient``.
        gradient: called as ``gradient(grads, params)``, both ``{name: tensor}``, and with what it
            names of ``given``; gives the gradients that the optimizer takes, by the same names.

    Raises:
        CannotRecord: a part does what a plan cannot hold; names the line and what to write instead.
        UsageError: nobody takes what is given, or it cannot be given.
    """
    return TrainingPlan(Parts(model, loss, optimizer, inputs, given, gradient))._build_for(batch)


class TrainingPlan(Plan):
    """A plan of one training step; see `training_plan`."""

    def __init__(self, parts: Parts) -> None:
        roles.check(parts)
        super().__init__(self.step_given if parts.given else self.step)
        self.model, self.optimizer, self._parts = parts.model, parts.optimizer, parts
        self._takes = giving.read(parts.optimizer, parts.given, [parts.loss, *filter(None, [parts.gradient])])
        self._changing = [name for name, _ in self.model.named_buffers()]
        self._as_written = True
        self._look()

    def _look(self) -> None:
        """Take down what the plan is built from."""
        optimizer, given = self.optimizer, self._takes
        self._names = optimizers.trained(self.model, optimizer)
        unchanged.check_hooks(optimizer, self._names)
        self._groups = [{**g, **optimizers.plain(g)} for g in optimizer.param_groups]
        others = given.groups(self._groups, given.others(self._groups)) if given.numbers else None
        by_name = {name: p for p, name in self._names.items()}
        self._slots = optimizers.slots(optimizer, self._groups, by_name, others)
        self._built_from = self._now()

    def _now(self) -> unchanged.Snapshot:
        return unchanged.take(self.model, self.optimizer, self._names, self._takes.numbers)

    def check_unchanged(self) -> None:
        """UsageError if a scheduler or hook changed since what a plan would now not do, and how to go on."""
        unchanged.check(self._built_from, self._now())

    @property
    def name(self) -> str:
        return f"train_{type(self.model).__name__}"

    # -- what a step changes

    def carry(self) -> Carry:
        """A copy of all a step changes, as model and optimizer have it now: the first argument of a step.

        Raises:
            UsageError: the optimizer's numbers or hooks are not those the plan was built with.
        """
        self.check_unchanged()
        return self._carry()

    def _carry(self) -> Carry:
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
        """Put what steps made of a carry back into the model and the optimizer.

        A fold that stopped at what is not finite gives its last finite carry, without an error: get its
        metrics first, which say so, or fold with ``nonfinite="error"``.

        Raises:
            UsageError: a name, shape or dtype is another, or a value did not come yet; nothing was changed.
        """
        _check_like("carry", self._carry(), carry)
        held = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        with torch.no_grad():
            for name, value in {**carry["params"], **carry["buffers"]}.items():
                held[name].copy_(value)
        for p, name in self._names.items():
            state = {k: carry["optimizer"][name].get(k, v) for k, v in self._slots[name].items()}
            self.optimizer.state[p] = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # else a scheduler says that no step was taken

    def save_carry(self, path: str | Path, carry: Carry | None = None) -> Path:
        """Write a carry, by default that of model and optimizer as they are, to a file for ``fedq fold --carry``.

        Its tensors are named by their paths: ``params.0.weight``. Another file there is replaced.

        Raises:
            UsageError: the path does not end in ``.safetensors`` or ``.npz``; or it is no carry of this plan.
        """
        carry = self.carry() if carry is None else carry
        _check_like("carry", self._carry(), carry)
        paths = [
            *((f"{kind}.{name}", t) for kind in ("params", "buffers") for name, t in carry[kind].items()),
            *((f"optimizer.{name}.{k}", t) for name, slots in carry["optimizer"].items() for k, t in slots.items()),
        ]
        arrays.write(path, {name: to_raw(t) for name, t in paths})
        return Path(path)

    # -- what is given

    def given(self, **values: Any) -> dict[str, Any]:
        """What a fold is given: these, and for the others what is so now.

        The optimizer's numbers are read from it, tensors are copied from where they were given when
        the plan was built.
        """
        return self.filled(values)

    def filled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The same, as a device asks for it; SpecMismatch for what is not as it was when the plan was built."""
        now = self._takes.now(self.optimizer.param_groups)
        giving.check(now, given)
        return {**now, **{name: giving.filled(now[name], value) for name, value in given.items()}}

    def send(self, *devices: Any) -> Any:
        """As of any plan; the pointer looks, before each fold, whether the optimizer is what it was."""
        sent = super().send(*devices)
        return sent.of(self) if len(devices) == 1 else sent.together([pointer.of(self) for pointer in sent])

    def file(self) -> PlanFile:
        self.check_unchanged()
        return super().file()

    def compiled(self) -> Callable[..., Any]:
        self.check_unchanged()
        return super().compiled()

    # -- recording

    def _build_for(self, batch: Sequence[torch.Tensor]) -> TrainingPlan:
        """Record it; buffers that turn out not to change become state, and it is recorded again."""
        take = self._take(batch)
        rest, given = len(batch) - take, self._takes.examples
        roles.check_calls(self._parts, take=take, rest=rest, given=given)
        rows = _rows(batch)
        try:
            self.build(self.carry(), *rows, **self._examples())
        except CannotRecord as error:
            dtypes = [torch.int64, *{p.dtype for p in self._names}]
            raise roles.explained(error, _Trial(self), batch, dtypes) from error.__cause__
        changed = self._changed_buffers()
        if changed != self._changing:
            self._changing = changed
            self.build(self.carry(), *rows, **self._examples())
        return self

    def _take(self, batch: Sequence[Any]) -> int:
        return roles.check_batch(batch, self._parts.inputs)

    def _examples(self) -> dict[str, Any]:
        tensors = self._takes.tensors(self._groups)
        return {giving.NAME: tensors} if tensors else {}

    def _build(self, *args: Any, **kwargs: Any) -> Plan:
        """As of any plan, from model and optimizer as they are now; notes which numbers must be above 0."""
        self._look()
        self._takes.above_zero.clear()
        super()._build(*args, **kwargs)
        graph, about, constants = self._need()
        refused = {ranges.refusal(path): "" for path in self._takes.above_zero}
        self._built = graph, replace(about, refused={**about.refused, **refused}), constants
        return self

    def _record(self, *args: Any, **kwargs: Any) -> Plan:
        try:
            return super()._record(*args, **kwargs)
        except CannotRecord as error:
            raise self._with_given(error) from error.__cause__

    def _with_given(self, error: CannotRecord) -> CannotRecord:
        """Where torch itself asks for a value, and no line of the user's: it may be a number that is given."""
        names = ", ".join(map(repr, self._takes.examples))
        asked = "depends on the values" in str(error) or "reads values" in str(error)
        if not names or error.fields.get("line") or not asked:
            return error
        hint = (
            f"a number that is given may be what torch asks for: leave it out ({names}), it is then fixed in the plan"
        )
        return CannotRecord(str(error), hint=hint, **error.fields)

    def _changed_buffers(self) -> list[str]:
        first = len(self._names)
        made = self.graph.outputs[0]["buffers"]
        return [name for i, name in enumerate(self._changing) if made[name] != Var(first + i)]

    def _own_function(self) -> tuple[Callable[..., Any], list[tuple[str, torch.Tensor]]]:
        kept = self._kept()

        def step(held: Sequence[torch.Tensor], carry: Carry, *batch: torch.Tensor, given: Any = None) -> Any:
            return self._step(holding.own(carry), batch, dict(zip(kept, held, strict=True)), given)

        return step, list(kept.items())

    def _kept(self) -> Tensors:
        """What no step changes."""
        changed = {*self._names.values(), *self._changing}
        held = (*self.model.named_parameters(), *self.model.named_buffers())
        return {name: t.detach() for name, t in held if name not in changed}

    def step(self, carry: Carry, *batch: torch.Tensor) -> tuple[Carry, Tensors]:
        """One step, here: the next carry and the metrics; model and optimizer stay as they are."""
        return self._step_here(carry, batch, None)

    def step_given(
        self, carry: Carry, *batch: torch.Tensor, given: Mapping[str, Any] | None = None
    ) -> tuple[Carry, Tensors]:
        """The same, of a plan that is given numbers: those that are left out are as they are now."""
        return self._step_here(carry, batch, self.filled({} if given is None else given))

    def _step_here(self, carry: Carry, batch: Sequence[torch.Tensor], given: Any) -> tuple[Carry, Tensors]:
        self.check_unchanged()
        _check_like("carry", self._carry(), carry)
        self._take(batch)
        copied = {kind: tree_map(torch.clone, part) for kind, part in carry.items()}
        return self._step(copied, batch, self._kept(), given)

    def _step(self, carry: Carry, batch: Sequence[torch.Tensor], held: Tensors, given: Any) -> tuple[Carry, Tensors]:
        """A step that writes to its carry; recording makes new values of what is written."""
        read = self._takes.read(self._groups, given or {})
        params = {name: p.detach().requires_grad_() for name, p in carry["params"].items()}
        called = {**params, **carry["buffers"], **held}
        take = self._take(batch)
        out = torch.func.functional_call(self.model, called, batch[:take], tie_weights=True)
        rest = self._takes.named_by(self._parts.loss, {"params": params, **read}, taken=1 + len(batch[take:]))
        loss, metrics = _loss_of(self._parts.loss(out, *batch[take:], **rest))
        grads = self._gradients(loss, params, read)
        groups = self._takes.groups(self._groups, read)
        state = self._stepped(params, grads, carry["optimizer"], groups)
        trained = {name: p.detach() for name, p in params.items()}
        buffers = {name: called[name] for name in carry["buffers"]}
        return {"params": trained, "buffers": buffers, "optimizer": state}, metrics

    def _gradients(self, loss: torch.Tensor, params: Tensors, given: Mapping[str, Any]) -> Tensors:
        """Of each parameter that the loss depends on, after hooks and correction."""
        found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        of = {name: p for p, name in self._names.items()}
        grads = {
            name: unchanged.hooked(of[name], grad.detach())
            for name, grad in zip(params, found, strict=True)
            if grad is not None
        }
        correct = self._parts.gradient
        if correct is None:
            return grads
        detached = {name: p.detach() for name, p in params.items()}
        rest = self._takes.named_by(correct, given, taken=2)
        return _corrected(grads, correct(dict(grads), detached, **rest))

    def _stepped(
        self, params: Tensors, grads: Tensors, state: Mapping[str, Tensors], groups: optimizers.Groups
    ) -> dict[str, Tensors]:
        """The optimizer's next state; it writes the next parameters into ``params``."""
        for name, p in params.items():
            p.grad = grads.get(name)
        before = {name: {k: state[name].get(k, v) for k, v in slots.items()} for name, slots in self._slots.items()}
        own = {p: params[name] for p, name in self._names.items()}
        after = optimizers.step_of(self.optimizer, groups, own, before)
        return {name: {k: after[name][k] for k in kept} for name, kept in state.items()}


def _corrected(grads: Tensors, made: Any) -> Tensors:
    if not isinstance(made, Mapping) or made.keys() != grads.keys():
        names = ", ".join(grads)
        raise UsageError("gradient= gives other names than it is given", hint=f"return a dict of {names}")
    for name, grad in made.items():
        if not isinstance(grad, torch.Tensor) or (grad.shape, grad.dtype) != (grads[name].shape, grads[name].dtype):
            given = type_of(grad) if isinstance(grad, torch.Tensor) else type(grad).__name__
            raise UsageError(f"gradient= gives {given} for {name!r}, whose gradient is {type_of(grads[name])}")
    return dict(made)


def _check_like(path: str, want: Any, value: Any) -> None:
    """UsageError where a structure of tensors is not like the one wanted; names the place."""
    if isinstance(want, dict):
        if not isinstance(value, Mapping):
            raise UsageError(f"{path} is {roles.kind_of(value)}, not a dict", hint=_CARRY)
        odd = next((k for k in (*want, *value) if (k in want) is not (k in value)), None)
        if odd is not None:
            raise UsageError(f"{path}.{odd} is {'missing' if odd in want else 'not known'}", hint=_CARRY)
        for key, inner in want.items():
            _check_like(f"{path}.{key}", inner, value[key])
    elif not isinstance(value, torch.Tensor):
        fetched = hasattr(value, "address")
        hint = "fetch it first: .get()" if fetched else _CARRY
        raise UsageError(f"{path} is {roles.kind_of(value)}, not a tensor", hint=hint)
    elif (value.shape, value.dtype) != (want.shape, want.dtype):
        raise UsageError(f"{path} is {type_of(value)}, and {type_of(want)} in the model", hint=_CARRY)


_CARRY = "it has the structure of plan.carry()"


def _loss_of(result: Any) -> tuple[torch.Tensor, Tensors]:
    """The scalar to go down by, and the metrics with it; UsageError for what is neither."""
    loss, metrics = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise UsageError("the loss is no scalar", hint=_RETURN)
    if not loss.is_floating_point():
        raise UsageError(f"the loss is {type_of(loss)}, which has no gradient", hint="return a loss of floats")
    if not loss.requires_grad:
        what = "the loss depends on no parameter that is trained"
        raise UsageError(what, hint="compute it from the model's output, without .detach() or torch.no_grad()")
    if not isinstance(metrics, Mapping):
        raise UsageError(f"the loss gives {roles.kind_of(metrics)} of metrics, not a dict", hint=_RETURN)
    for name, value in metrics.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            what = roles.kind_of(value) if isinstance(name, str) else f"named by {roles.kind_of(name)}"
            raise UsageError(f"metric {name!r} is {what}: metrics are tensors with texts as names", hint=_RETURN)
    return loss, {"loss": loss.detach(), **{k: v.detach() for k, v in metrics.items()}}


_RETURN = "return loss.mean(), or (loss.mean(), {'accuracy': (out.argmax(1) == target).float().mean()})"


def _rows(batch: Sequence[torch.Tensor]) -> list[Type]:
    return [Type(type_of(t).dtype, (-1, *t.shape[1:])) for t in batch]


class _Trial:
    """Model and loss as a step calls them, on copies, for `roles.explained`."""

    def __init__(self, plan: TrainingPlan) -> None:
        self._plan, self._kept = plan, Kept((plan.model, plan._parts.loss))

    def model(self, batch: Sequence[torch.Tensor]) -> Any:
        plan = self._plan
        held = {name: t.detach().clone() for name, t in (*plan.model.named_parameters(), *plan.model.named_buffers())}
        for name in plan._names.values():
            held[name].requires_grad_()
        called = partial(torch.func.functional_call, plan.model, held, tuple(batch[: plan._take(batch)]))
        with torch.random.fork_rng(devices=[]):
            return self._kept.around(called)(tie_weights=True)

    def loss(self, out: Any, batch: Sequence[torch.Tensor]) -> Any:
        plan, rest = self._plan, batch[self._plan._take(batch) :]
        given = {**plan.filled({}), "params": dict(plan.model.named_parameters())}
        named = plan._takes.named_by(plan._parts.loss, given, taken=1 + len(rest))
        with torch.random.fork_rng(devices=[]):
            loss, _ = _loss_of(self._kept.around(plan._parts.loss)(out, *rest, **named))
        torch.autograd.backward(loss)

    def records(self, batch: Sequence[torch.Tensor]) -> bool:
        plan = self._plan
        try:
            plan.build(plan.carry(), *_rows(batch), **plan._examples())
        except CannotRecord:
            return False
        plan._built = None
        return True
