"""Plans called by a plan that is being built: recorded inline, on state that the outer one lends them.

Which plans are called is found by recording: the first call of one that has state stops it
(`NeedsState`), its state joins the outer plan's under its name, and recording starts again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from fedq.plan.plan import Plan

Called = Callable[..., Any]
"""Called with the list of state tensors, then the arguments."""


class NeedsState(BaseException):
    """A plan with state was called that the plan being built does not know yet; no error of the user's."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.plan, self.name = plan, name


@dataclass(frozen=True, slots=True)
class Inner:
    """A plan that is called inside another, and the prefix of its state there."""

    plan: Plan
    name: str


@dataclass
class Lent:
    """The state of inner plans while their outer plan runs on tensors that are not its own."""

    held: Mapping[int, list[torch.Tensor]]
    running: list[Plan]

    def call(self, plan: Plan, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the plan gives on its part of the state."""
        function, state = plan.inside()
        self.running.append(plan)
        try:
            if state and id(plan) not in self.held:
                raise NeedsState(plan, ".".join(p.name for p in self.running[1:]))
            return function(self.held.get(id(plan), []), *args, **kwargs)
        finally:
            self.running.pop()

    def owns(self, plan: Plan) -> bool:
        """Whether it is one that runs, or a part of its module: then its state was lent already.

        A part that is a plan of something else keeps that to itself: it is lent like any other.
        """
        return any(plan is p or (plan.is_module and any(plan is m for m in p.parts())) for p in self.running)


_LENT: ContextVar[Lent | None] = ContextVar("lent", default=None)


def lent_for(plan: Plan) -> Lent | None:
    """What is lent to this plan if it is called now inside another; None if it is called for itself."""
    lent = _LENT.get()
    return None if lent is None or lent.owns(plan) else lent


def together(outer: Plan, own: tuple[Called, list[Any]], inner: Sequence[Inner]) -> Any:
    """A plan's function and named state, with those of the plans it calls after its own."""
    function, state = own
    named = {i.name: [(f"{i.name}.{n}", t) for n, t in i.plan.inside()[1]] for i in inner}

    def called(held: list[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        parts = list(_split(held, [len(state), *map(len, named.values())]))
        with _lending(Lent({id(i.plan): p for i, p in zip(inner, parts[1:], strict=True)}, [outer])):
            out = function(parts[0], *args, **kwargs)
        held[:] = [t for part in parts for t in part]
        return out

    return called, [*state, *(pair for pairs in named.values() for pair in pairs)]


def _split(held: Sequence[torch.Tensor], lengths: Sequence[int]) -> Iterator[list[torch.Tensor]]:
    at = 0
    for length in lengths:
        yield list(held[at : at + length])
        at += length


@contextmanager
def _lending(lent: Lent) -> Iterator[None]:
    token = _LENT.set(lent)
    try:
        yield
    finally:
        _LENT.reset(token)


def unique(name: str, known: Sequence[Inner]) -> str:
    """The name, with a number after it where two plans of one name are called."""
    taken = {i.name for i in known}
    return next(n for n in (name, *(f"{name}{k}" for k in range(1, len(taken) + 2))) if n not in taken)


def runs_within(plan: Plan) -> bool:
    """Whether it is called as a part of a plan that runs on what it was lent."""
    lent = _LENT.get()
    return lent is not None and lent.owns(plan)
