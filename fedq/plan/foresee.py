"""The types of all that a graph makes, found by running its ops on fakes: nothing a file says of them is believed.

For who reads a stranger's plan. A size that depends on values is ``?``; so is a type where an op cannot
be run without them, and where the branches of a choice, or the rounds of a loop, give different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fedq.plan import bodies, optable, spec
from fedq.plan.contracts import ON_VALUES
from fedq.plan.graph import Action, Arg, Dtype, Format, Graph, Subgraph, Type, Var
from fedq.plan.kernels import SYM, exact, kernel
from fedq.plan.replay import FORMATS
from fedq.plan.rules import RUN_AS
from fedq.plan.tensors import DTYPES, NAMES
from fedq.plan.typed import ANY, UNKNOWN, join


class _Unknown:
    """In the place of a value of which nothing is known."""


NOTHING = _Unknown()


def foresee(graph: Graph, given: Sequence[Type]) -> tuple[int, Graph]:
    """Which of a verified graph's variants inputs of these types choose, and that one with the types it then makes.

    Raises:
        SpecMismatch: the graph does not take them.
    """
    which, _ = spec.choose(graph, given)
    chosen = (graph, *graph.variants)[which]
    shapes = ShapeEnv()
    with FakeTensorMode(shape_env=shapes, allow_fallback_kernels=False), torch.no_grad():
        inputs = [_fake(t, shapes) for t in (*given, *(t for _, t in chosen.state))]
        return which, _Foreseer(shapes).run(chosen, inputs)[1]


def _fake(type_: Type, shapes: ShapeEnv) -> Any:
    if type_.shape is not None:
        return torch.empty([int(d) for d in type_.shape], dtype=DTYPES[type_.dtype])
    if type_.value is not None:
        return type_.value
    unknown: dict[str, Callable[[], Any]] = {
        "int": shapes.create_unbacked_symint, "float": shapes.create_unbacked_symfloat,
    }  # fmt: skip
    return unknown[type_.dtype]() if type_.dtype in unknown else NOTHING


def _type(value: Any) -> Type:
    match value:
        case torch.Tensor():
            return Type(NAMES.get(value.dtype, ANY), tuple(map(_size, value.shape)))
        case bool() | torch.SymBool():
            return Type("bool")
        case int() | torch.SymInt():
            return Type("int")
        case float() | torch.SymFloat():
            return Type("float")
    return UNKNOWN


def _size(dim: Any) -> int | str:
    if isinstance(dim, int):
        return dim
    known = dim.node.maybe_as_int()
    return ANY if known is None else int(known)


@dataclass
class _Foreseer:
    shapes: ShapeEnv
    named: Mapping[str, Any] = field(
        default_factory=lambda: {op.name().replace("::", "."): run for op, run in RUN_AS.items()}
    )

    def run(self, graph: Graph, inputs: Sequence[Any]) -> tuple[list[Any], Graph]:
        """The outputs, and the graph with the types found."""
        values: dict[int, Any] = dict(enumerate(inputs))
        inner: dict[int, Graph] = {}
        actions = []
        for action, numbers in graph.numbered():
            made, types = self._action(graph, action, values, inner)
            values.update(zip(numbers, made, strict=True))
            actions.append(replace(action, types=types))
        found = tuple(inner.get(i) or _blank(body) for i, body in enumerate(graph.graphs))
        count = len(graph.inputs)
        head = tuple(
            t if isinstance(t, Type) else _with_value(_type(v), v)
            for t, v in zip(map(_known, inputs[:count]), inputs[:count], strict=True)
        )
        told = replace(
            graph, inputs=head, actions=tuple(actions), graphs=found, sizes={}, guards=(), dtypes=(), variants=()
        )
        return [values[var.number] for var in graph.output_vars], told

    def _action(
        self, graph: Graph, action: Action, values: Mapping[int, Any], inner: dict[int, Graph]
    ) -> tuple[list[Any], tuple[Type, ...]]:
        nothing = [NOTHING] * len(action.types)
        try:
            if action.op in bodies.CONTROL:
                made, types = self._control(graph, action, values, inner)
            else:
                made = self._op(action, values)
                types = tuple(map(_type, made))
        except _NotKnown:
            return nothing, (UNKNOWN,) * len(nothing)
        except Exception:  # whatever torch says of a stranger's arguments: it is not known what they give
            return nothing, (UNKNOWN,) * len(nothing)
        if len(made) != len(nothing):
            return nothing, (UNKNOWN,) * len(nothing)
        return made, types

    def _op(self, action: Action, values: Mapping[int, Any]) -> list[Any]:
        op = optable.find(action.op)
        assert op is not None
        kept = {p.name for p in op.params if p.kind != "none"}
        kwargs = {k: _concrete(v, values) for k, v in action.kwargs.items() if k in kept}
        args = [_concrete(a, values) for a in action.args]
        made = self._callable(op)(*args, **kwargs)
        return [made] if op.returns in (("Tensor",), ("Scalar",)) else list(made)

    def _callable(self, op: optable.Op) -> Callable[..., Any]:
        if op.name in SYM:
            return SYM[op.name]
        looks = any(words[0] in ON_VALUES for words in op.contract)
        return self.named.get(op.name) or (exact(op) if looks else kernel(op))

    def _control(
        self, graph: Graph, action: Action, values: Mapping[int, Any], inner: dict[int, Graph]
    ) -> tuple[list[Any], tuple[Type, ...]]:
        called = [a.number for a in action.args if isinstance(a, Subgraph)]
        given = [_lists(a, values) for a in action.args if not isinstance(a, Subgraph)]

        def run(which: int, inputs: Sequence[Any]) -> list[Any]:
            made, told = self.run(graph.graphs[called[which]], inputs)
            before = inner.get(called[which])
            inner[called[which]] = told if before is None else _joined(before, told)
            return made

        if action.op == "ctl.cond":
            return _either(run(0, given[1]), run(1, given[1]))
        if action.op == "ctl.while_loop":
            carried, rest = given

            def again(carried: Sequence[Any]) -> list[Any]:
                run(0, [*carried, *rest])
                return run(1, [*carried, *rest])

            kept, types, _ = self._settled(carried, again)
            return kept, types
        carried, xs, rest = given if action.op == "ctl.scan" else ([], *given)
        elements = [_need(x)[0] for x in xs]
        kept, types, made = self._settled(carried, lambda carried: run(0, [*carried, *elements, *rest]))
        stacked = [_need(row).new_empty((xs[0].shape[0], *row.shape)) for row in made[len(carried) :]]
        return [*kept, *stacked], (*types, *map(_type, stacked))

    def _settled(
        self, carried: Sequence[Any], again: Callable[[Sequence[Any]], list[Any]]
    ) -> tuple[list[Any], tuple[Type, ...], list[Any]]:
        """What a loop carries, of which only that is known which no round changes; and what the last round gave."""
        values = [_fake(_type(v), self.shapes) if type(v) in (int, float) else v for v in carried]
        types = tuple(map(_type, values))
        for _ in range(len(values) + 1):
            made = again(values)
            found = tuple(map(join, types, map(_type, made[: len(values)])))
            if found == types:
                return values, types, made
            types = found
            values = [
                v if t == _type(v) and ANY not in (t.shape or ()) else NOTHING
                for v, t in zip(values, types, strict=True)
            ]
        return [NOTHING] * len(values), (UNKNOWN,) * len(values), made


class _NotKnown(Exception):
    """An argument of which nothing is known."""


def _need(value: Any) -> Any:
    if isinstance(value, _Unknown):
        raise _NotKnown
    return value


def _known(value: Any) -> Type | None:
    return UNKNOWN if isinstance(value, _Unknown) else None


def _with_value(type_: Type, value: Any) -> Type:
    return Type(type_.dtype, None, value) if type(value) in (bool, int, float, str) else type_


def _either(one: Sequence[Any], other: Sequence[Any]) -> tuple[list[Any], tuple[Type, ...]]:
    """What is one or the other, as may be: known where both are alike."""
    types = tuple(join(_type(a), _type(b)) for a, b in zip(one, other, strict=True))
    same = (
        a if t == _type(a) == _type(b) and ANY not in (t.shape or ()) else NOTHING
        for a, b, t in zip(one, other, types, strict=True)
    )
    return [_unfixed(v) for v in same], types


def _unfixed(value: Any) -> Any:
    """A Python number that may be another in the end is not known."""
    return NOTHING if type(value) in (bool, int, float) else value


def _lists(arg: Arg, values: Mapping[int, Any]) -> Any:
    """A predicate, or a list of arguments, unknown ones among them."""
    if isinstance(arg, list):
        return [values[a.number] if isinstance(a, Var) else _concrete(a, values) for a in arg]
    return values[arg.number] if isinstance(arg, Var) else arg


def _concrete(arg: Arg, values: Mapping[int, Any]) -> Any:
    match arg:
        case Var(n):
            return _need(values[n])
        case Dtype(name):
            return DTYPES[name]
        case Format(name):
            return FORMATS[name]
        case list() | tuple():
            return [_concrete(a, values) for a in arg]
    return arg


def _joined(one: Graph, other: Graph) -> Graph:
    """A body that ran twice: what it makes each time."""
    pairs = zip(one.actions, other.actions, strict=True)
    actions = tuple(replace(a, types=tuple(map(join, a.types, b.types))) for a, b in pairs)
    graphs = tuple(map(_joined, one.graphs, other.graphs))
    return replace(one, inputs=tuple(map(join, one.inputs, other.inputs)), actions=actions, graphs=graphs)


def _blank(graph: Graph) -> Graph:
    """A body that was not run: nothing is known of what it makes."""
    actions = tuple(replace(a, types=(UNKNOWN,) * len(a.types)) for a in graph.actions)
    inputs = (UNKNOWN,) * len(graph.inputs)
    return replace(graph, inputs=inputs, actions=actions, graphs=tuple(map(_blank, graph.graphs)))
