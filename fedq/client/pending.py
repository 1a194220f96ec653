"""Operations on pointers that were checked and not sent yet; they travel as one plan.

A step is one operation, recorded for the very types it was called with. When a value is asked
for, the steps that a pointer still in use depends on become one graph; all such pointers are its
outputs. Pure data: knows no torch and no disk.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedq.plan.codec import MAX_TENSORS, RawTensor
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Action, Graph, Subgraph, Type, Var
from fedq.plan.graphjson import MAX_ACTIONS

if TYPE_CHECKING:
    from fedq.client.pointers import PointerTensor

NAME = "operations"
"""What such a plan is called."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation.

    Attributes:
        graph: recorded; its inputs are ``given``, the Vars of its outputs ``results``.
        given: PointerTensors, tensors sent along, and ids of results of steps before.
        line: of the user's, ``tour.py:9``.
        private: the owner's values that are not open and that its results come from.
    """

    graph: Graph
    given: tuple[Any, ...]
    results: tuple[str, ...]
    line: str
    private: frozenset[str] = frozenset()

    @property
    def needs(self) -> list[str]:
        return [g for g in self.given if isinstance(g, str)]


@dataclass(slots=True)
class Pending:
    """The steps of one device, in order; ``made`` are the ids of their results, ``alive`` the pointers in use."""

    steps: list[Step] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    alive: weakref.WeakValueDictionary[str, PointerTensor] = field(default_factory=weakref.WeakValueDictionary)

    def add(self, step: Step, results: Sequence[PointerTensor]) -> None:
        self.steps.append(step)
        self.made.update(step.results)
        self.alive.update({p.address: p for p in results})

    def put_back(self, before: Pending) -> None:
        """Have these wait again, before the others: they were not sent."""
        self.steps[:0] = before.steps
        self.made |= before.made
        self.alive.update(before.alive)

    def parts(self) -> list[tuple[list[Step], list[str]]]:
        """The steps that are needed, as few plans as the caps allow; each with the ids it must give.

        Those that come from other private values are other plans: all results of a call wait for the
        word that one of them needs. A step's private values are among those of the steps that use it.
        """
        wanted = set(self.alive)
        needed: list[Step] = []
        for step in reversed(self.steps):
            if not wanted.isdisjoint(step.results):
                needed.append(step)
                wanted.update(step.needs)
        needed.reverse()
        needed.sort(key=lambda step: (len(step.private), sorted(step.private)))
        parts = _split(needed)
        return [(part, _outputs(part, parts[n + 1 :], set(self.alive))) for n, part in enumerate(parts)]


def _split(steps: Iterable[Step]) -> list[list[Step]]:
    parts: list[list[Step]] = []
    actions = tensors = 0
    for step in steps:
        actions += len(step.graph.actions)
        tensors += len(step.given)
        apart = bool(parts) and parts[-1][0].private != step.private
        if not parts or apart or actions > MAX_ACTIONS // 2 or tensors > MAX_TENSORS // 2:
            parts.append([])
            actions, tensors = len(step.graph.actions), len(step.given)
        parts[-1].append(step)
    return parts


def _outputs(part: Sequence[Step], later: Sequence[Sequence[Step]], alive: set[str]) -> list[str]:
    wanted = alive.union(*(step.needs for steps in later for step in steps))
    return [id_ for step in part for id_ in step.results if id_ in wanted]


def merge(steps: Sequence[Step], outputs: Sequence[str]) -> tuple[PlanFile, list[PointerTensor | RawTensor | str]]:
    """The steps as one plan, and its arguments."""
    return _Merge(steps).run(outputs)


@dataclass
class _Merge:
    """Numbers values anew: arguments first, then what the actions make."""

    steps: Sequence[Step]
    args: list[Any] = field(default_factory=list)
    types: list[Type] = field(default_factory=list)
    numbers: dict[Any, Var] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    graphs: list[Graph] = field(default_factory=list)

    def run(self, outputs: Sequence[str]) -> tuple[PlanFile, list[Any]]:
        made = {id_ for step in self.steps for id_ in step.results}
        for step in self.steps:
            for given, type_ in zip(step.given, step.graph.inputs, strict=True):
                if not (isinstance(given, str) and given in made):
                    self._argument(given, type_)
        number = len(self.args)
        for step in self.steps:
            number = self._add(step, number)
        graph = Graph(
            tuple(self.types), tuple(self.actions), tuple(self.numbers[o] for o in outputs), graphs=tuple(self.graphs)
        )
        return PlanFile(graph, {}, About(NAME, tuple(self.lines))), self.args

    def _argument(self, given: Any, type_: Type) -> None:
        if _key(given) not in self.numbers:
            self.numbers[_key(given)] = Var(len(self.args))
            self.args.append(given)
            self.types.append(type_)

    def _add(self, step: Step, number: int) -> int:
        """Append a step's actions; ``number``: of the next value."""
        given = [self.numbers[_key(g)] for g in step.given]
        local = dict(enumerate(given))
        for action, outs in step.graph.numbered():
            moved = _moved(action.args, local, len(self.graphs)), _moved(action.kwargs, local, len(self.graphs))
            self.actions.append(Action(action.op, *moved, action.types))
            self.lines.append(step.line)
            for out in outs:
                local[out] = Var(number)
                number += 1
        self.graphs += step.graph.graphs
        self.numbers.update({id_: local[v.number] for id_, v in zip(step.results, step.graph.output_vars, strict=True)})
        return number


def _key(given: Any) -> Any:
    """What makes two arguments the same: the id of a value, the very tensor that is sent along."""
    return given if isinstance(given, str) else id(given) if isinstance(given, RawTensor) else given.address


def _moved(arg: Any, local: Mapping[int, Var], graphs: int) -> Any:
    match arg:
        case Var(n):
            return local[n]
        case Subgraph(n):
            return Subgraph(n + graphs)
        case list() | tuple():
            return type(arg)(_moved(a, local, graphs) for a in arg)
        case Mapping():
            return {k: _moved(a, local, graphs) for k, a in arg.items()}
    return arg
