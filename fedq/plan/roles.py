"""What a training plan is made of, looked at before anything is recorded: who is what, who is called with what.

A recording would find the same mistakes, in Python's words and at a line that is not the user's. What a
recording refused is looked at here once more, by a call without data, to say which part of the batch it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from fedq.errors import CannotRecord, UsageError
from fedq.plan.blame import FAILED, shown
from fedq.plan.tensors import NAMES, type_of

_ORDER = "training_plan(model, loss, optimizer, *batch)"
Batch = Sequence[torch.Tensor]
Loss = Callable[..., Any]
Correct = Callable[..., Mapping[str, torch.Tensor]]


class Parts(NamedTuple):
    """What a training plan is made of, as `training_plan` takes it.

    A tuple, so that no part of it is registered in a module, and what a loss keeps is found and put back.
    """

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    inputs: int | None
    given: Mapping[str, Any] | None
    gradient: Correct | None


def check(parts: Parts) -> None:
    """UsageError for what cannot be a model, a loss, an optimizer, a correction of gradients, or what is given."""
    from fedq.plan.plan import Plan

    model: Any = parts.model
    loss: Any = parts.loss
    optimizer: Any = parts.optimizer
    gradient, given = parts.gradient, parts.given
    if isinstance(model, Plan):
        raise UsageError("the model is a plan", hint="give the nn.Module that the plan is of")
    if not isinstance(model, nn.Module):
        raise UsageError(f"the model is {_called(model)}, not an nn.Module", hint=_made(model, nn.Module) or _ORDER)
    if isinstance(loss, Optimizer):
        raise UsageError("loss and optimizer are in each other's place", hint=_ORDER)
    _check_called("the loss", loss)
    if not isinstance(optimizer, Optimizer):
        raise UsageError(f"the optimizer is {_called(optimizer)}, not one of torch.optim", hint=_optimizer(optimizer))
    if gradient is not None:
        _check_called("gradient=", gradient)
    if given is not None and not isinstance(given, Mapping):
        raise UsageError(f"given= is {_called(given)}, not a dict", hint='given={"lr": None}: names with examples')


def _check_called(who: str, value: Any) -> None:
    if isinstance(value, type):
        raise UsageError(f"{who} is a class: {value.__name__}", hint=f"make one: {value.__name__}()")
    if not callable(value):
        raise UsageError(f"{who} is {_called(value)}, which cannot be called", hint=_ORDER)


def _called(value: Any) -> str:
    """``a list``, ``the class SGD``, ``None``, ``the function cross_entropy``."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"the function {value.__name__}" if inspect.isroutine(value) else kind_of(value)


def kind_of(value: Any) -> str:
    """``a list``, ``an int``."""
    name = type(value).__name__
    return f"a{'n' * (name[0].lower() in 'aeio')} {name}"


def _made(value: Any, kind: type) -> str:
    return f"make one: {value.__name__}(...)" if isinstance(value, type) and issubclass(value, kind) else ""


def _optimizer(value: Any) -> str:
    if isinstance(getattr(value, "optimizer", None), Optimizer):
        return "give the optimizer that the scheduler changes; its lr can be given with each fold: given={'lr': None}"
    return (_made(value, Optimizer) and f"make one: {value.__name__}(model.parameters(), lr=0.1)") or _ORDER


def check_batch(batch: Sequence[Any], inputs: Any) -> int:
    """How many of a batch the model takes; UsageError if the examples are none, or not so many."""
    if not batch:
        raise UsageError("there is no example of a batch", hint=_ORDER)
    for i, example in enumerate(batch):
        if not isinstance(example, torch.Tensor):
            raise UsageError(f"batch[{i}] is {_called(example)}, not a tensor", hint=f"{_ORDER}: a tensor of each")
        if not example.dim():
            raise UsageError(
                f"batch[{i}] is {type_of(example)}, which has no rows", hint="give tensors with rows first"
            )
    take = len(batch) - 1 if inputs is None else inputs
    if type(take) is not int or not 0 <= take <= len(batch):
        what = f"a batch of {len(batch)} tensor{'s' * (len(batch) > 1)}"
        raise UsageError(f"inputs={inputs!r} of {what}", hint="inputs: how many of them the model takes")
    return take


# -- who is called with what ----------------------------------------------------------------------


def check_calls(parts: Parts, *, take: int, rest: int, given: Collection[str]) -> None:
    """UsageError where model, loss or correction ask for more or fewer arguments than they get.

    Args:
        take, rest: how many of the batch the model gets, and the loss after the model's output.
        given: names of what is given.
    """
    _check_call("the model", parts.model, take, (), f"it gets {_tensors(take)} of the batch", _INPUTS)
    gets = f"it gets the model's output and {_tensors(rest)} of the batch"
    _check_call("the loss", parts.loss, 1 + rest, {"params", *given}, gets, _INPUTS)
    if parts.gradient is not None:
        gets = "it gets gradients and parameters"
        _check_call("gradient=", parts.gradient, 2, given, gets, "def gradient(grads, params, *, ...)")


_INPUTS = "inputs= says how many tensors of the batch the model takes; the loss gets the others"


def _tensors(count: int) -> str:
    return f"{count or 'no'} tensor{'s' * (count != 1)}"


def _check_call(who: str, called: Any, count: int, names: Collection[str], gets: str, hint: str) -> None:
    parameters = _parameters(called)
    if parameters is None:
        return
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(places) < count and not any_many:
        raise UsageError(f"{who} takes {len(places)} argument{'s' * (len(places) != 1)}; {gets}", hint=hint)
    lacking = [p for p in _needed(parameters, places[count:]) if p.name not in names or p.kind is p.POSITIONAL_ONLY]
    if lacking and who == "the model":
        raise UsageError(f"{who} asks for {lacking[0].name!r}, too; {gets}", hint=hint)
    if lacking:
        name = lacking[0].name
        raise UsageError(
            f"{who} asks for {name!r}, which is not given; {gets}",
            hint=f"give an example of it, given={{{name!r}: 0.1}} for a number; or, of a tensor of the batch: {hint}",
        )


def _needed(parameters: Sequence[inspect.Parameter], free: Sequence[inspect.Parameter]) -> Iterator[inspect.Parameter]:
    for p in parameters:
        if p.default is p.empty and (p in free or p.kind is p.KEYWORD_ONLY):
            yield p


def _parameters(called: Any) -> list[inspect.Parameter] | None:
    """What it takes; None if it does not tell."""
    try:
        return list(inspect.signature(called.forward if isinstance(called, nn.Module) else called).parameters.values())
    except (TypeError, ValueError):
        return None


# -- what a recording refused ---------------------------------------------------------------------


class Trial(Protocol):
    """Calls the model, then the loss, on a batch, and raises what they raise; or records a step of it."""

    def model(self, batch: Batch) -> Any: ...
    def loss(self, out: Any, batch: Batch) -> Any: ...
    def records(self, batch: Batch) -> bool: ...


def explained(error: CannotRecord, trial: Trial, batch: Batch, dtypes: Sequence[torch.dtype]) -> CannotRecord:
    """The refusal, with the part of the batch that is to blame, if a call on zeros says the same.

    Args:
        dtypes: what another dtype of one tensor is tried with.
    """
    who, line = _refuses(trial, batch), error.fields.get("line", "")
    takes, where = (trial.records, "the step") if not who else (lambda tried: not _refuses(trial, tried), who)
    for i, dtype in ((i, dtype) for i in range(len(batch)) for dtype in dtypes if _is_odd(batch[i], dtype, who)):
        if takes([t.to(dtype) if n == i else t for n, t in enumerate(batch)]):
            text = f"batch[{i}] is {NAMES[batch[i].dtype]}, where {where} takes {NAMES[dtype]}{_at(line)}"
            hint = f"give an example and data of {NAMES[dtype]}: batch[{i}]{_CONVERTED.get(dtype, f'.to({dtype})')}"
            return CannotRecord(text, hint=f"{hint}; or convert it in {who or 'model or loss'}", **error.fields)
    if not who or not str(error).startswith(FAILED):
        return error
    types = " and ".join(f"batch[{i}] {type_of(t)}" for i, t in enumerate(batch))
    text = f"{who} does not take what it gets of {types}{_at(line)}"
    return CannotRecord(text, hint=f"call it yourself first: {_CALLS[who]}", **error.fields)


_CONVERTED = {torch.int64: ".long()", torch.float32: ".float()"}


def _is_odd(tensor: torch.Tensor, dtype: torch.dtype, who: str) -> bool:
    """Whether this dtype is worth a try; where eager takes it and a recording does not, it is small integers."""
    return tensor.dtype != dtype and (bool(who) or (dtype is torch.int64 and not tensor.dtype.is_floating_point))


_CALLS = {"the model": "model(*batch[:-1])", "the loss": "loss(model(*batch[:-1]), batch[-1])"}


def _at(line: str) -> str:
    return shown(line)


def _refuses(trial: Trial, batch: Batch) -> str:
    """Which of the two raises on zeros like these; "" if neither does."""
    zeros = [torch.zeros_like(t) for t in batch]
    try:
        out = trial.model(zeros)
    except Exception:
        return "the model"
    try:
        trial.loss(out, zeros)
    except Exception:
        return "the loss"
    return ""
