"""What a plan costs at given sizes, without data: a dry run on fakes. An estimate, never a safety check.

Counts what its actions make; what an op needs inside is not seen. Of a branch both sides are run,
of a loop over data one pass; a scan or map counts its body once per element.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fedq.errors import FedqError, UsageError
from fedq.plan import bodies, optable, spec
from fedq.plan.graph import ITEMSIZE, Action, Arg, Dtype, Format, Graph, Subgraph, Type, Var
from fedq.plan.kernels import SYM, exact
from fedq.plan.tensors import DTYPES

USUAL = 32
"""The size of a letter that nobody named."""
_FORMATS = {
    "contiguous": torch.contiguous_format, "preserve": torch.preserve_format,
    "channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cost:
    """At these sizes of the letters.

    Attributes:
        elements, state_bytes: of its state: parameters, buffers, constants.
        flops: of products, convolutions and attention; what is done per element is not counted.
        peak_bytes: inputs, state and what is alive at the worst moment.
    """

    sizes: Mapping[str, int]
    elements: int
    state_bytes: int
    flops: int
    peak_bytes: int


def cost(graph: Graph, sizes: Mapping[str, int] | None = None) -> Cost:
    """The cost of a verified graph.

    Raises:
        UsageError: a letter is not one of the graph's, or it cannot be told without data.
        SpecMismatch: the graph does not admit these sizes.
    """
    letters = {name: max(least, USUAL) for name, least in _letters(graph).items()}
    unknown = [name for name in sizes or {} if name not in letters]
    if unknown:
        raise UsageError(f"the plan has no size {unknown[0]!r}", hint=f"its sizes are {', '.join(letters) or 'fixed'}")
    letters |= sizes or {}
    given = [_at(t, letters) for t in graph.inputs]
    chosen = (graph, *graph.variants)[spec.choose(graph, given)[0]]
    state = [t for _, t in graph.state]
    dry = _Dry()
    try:
        with FakeTensorMode(allow_fallback_kernels=False), dry.counter:
            dry.run(chosen, [_fake(t) for t in (*given, *state)])
    except FedqError:
        raise
    except Exception as error:
        raise UsageError(
            f"its cost can not be told without data: {type(error).__name__}", hint="its sizes may depend on values"
        ) from error
    elements = sum(_count(t) for t in state)
    flops = dry.counter.get_total_flops() + dry.more_flops
    return Cost(letters, elements, sum(_count(t) * ITEMSIZE[t.dtype] for t in state), flops, dry.peak_bytes)


def _letters(graph: Graph) -> dict[str, int]:
    return {d: graph.sizes[d] for t in graph.inputs for d in t.shape or () if isinstance(d, str)}


def _at(type_: Type, letters: Mapping[str, int]) -> Type:
    if type_.shape is None:
        return type_ if type_.value is not None else Type(type_.dtype, None, 1.0 if type_.dtype == "float" else 1)
    return Type(type_.dtype, tuple(letters[d] if isinstance(d, str) else d for d in type_.shape))


def _fake(type_: Type) -> Any:
    return type_.value if type_.shape is None else torch.empty([int(d) for d in type_.shape], dtype=DTYPES[type_.dtype])


def _count(type_: Type) -> int:
    count = 1
    for d in type_.shape or ():
        count *= int(d)
    return count


@dataclass
class _Dry:
    """Runs graphs on fakes, and keeps what is alive."""

    counter: FlopCounterMode = field(default_factory=lambda: FlopCounterMode(display=False))
    peak_bytes: int = 0
    more_flops: int = 0

    def run(self, graph: Graph, inputs: Sequence[Any], held: int = 0) -> list[Any]:
        """The outputs; ``held`` bytes are alive outside."""
        values: dict[int, Any] = dict(enumerate(inputs))
        last = {var.number: i for i, action in enumerate(graph.actions) for var in action.vars()}
        kept = {var.number for var in graph.output_vars} | set(values)
        for i, (action, numbers) in enumerate(graph.numbered()):
            made = self.action(graph, action, values, held + _bytes(values))
            values.update(zip(numbers, made, strict=True))
            self.peak_bytes = max(self.peak_bytes, held + _bytes(values))
            for n in [n for n in values if n not in kept and last.get(n, i) <= i]:
                del values[n]
        self.peak_bytes = max(self.peak_bytes, held + _bytes(values))
        return [values[var.number] for var in graph.output_vars]

    def action(self, graph: Graph, action: Action, values: Mapping[int, Any], held: int) -> Sequence[Any]:
        op, args, kwargs = action.op, action.args, action.kwargs
        if op in bodies.CONTROL:
            called = [graph.graphs[a.number] for a in args if isinstance(a, Subgraph)]
            return self.control(op, called, [_concrete(a, values) for a in args if not isinstance(a, Subgraph)], held)
        found = optable.find(op)
        if found is None:
            raise UsageError(f"op {op!r} is not known")
        named = {p.name for p in found.params if p.kind != "none"}
        given = {k: _concrete(v, values) for k, v in kwargs.items() if k in named}
        made = (SYM[op] if op in SYM else exact(found))(*(_concrete(a, values) for a in args), **given)
        return [made] if found.returns in (("Tensor",), ("Scalar",)) else list(made)

    def control(self, op: str, called: Sequence[Graph], given: Sequence[Any], held: int) -> Sequence[Any]:
        if op == "ctl.cond":
            then, _ = [self.run(body, given[1], held) for body in called]
            return then
        if op == "ctl.while_loop":
            return [self.run(body, [*given[0], *given[1]], held) for body in called][-1]
        carried, xs, rest = given if op == "ctl.scan" else ([], *given)
        before, length = self.counter.get_total_flops(), xs[0].shape[0]
        made = self.run(called[0], [*carried, *(x[0] for x in xs), *rest], held)
        self.more_flops += (self.counter.get_total_flops() - before) * (length - 1)
        kept = len(carried)
        return [*made[:kept], *(row.new_empty((length, *row.shape)) for row in made[kept:])]


def _concrete(arg: Arg, values: Mapping[int, Any]) -> Any:
    match arg:
        case Var(n):
            return values[n]
        case Dtype(name):
            return DTYPES[name]
        case Format(name):
            return _FORMATS[name]
        case list() | tuple():
            return [_concrete(a, values) for a in arg]
    return arg


def _bytes(values: Mapping[int, Any]) -> int:
    """Of all memory that is held, once however many tensors look at it."""
    storages = {v.untyped_storage()._cdata: v.untyped_storage().nbytes() for v in values.values() if torch.is_tensor(v)}
    return sum(storages.values())
