"""What a device will ask of a plan, asked when it is built: written down, read back, verified, compiled, dry-run.

The dry run calls the very function that a device replays, on fake tensors of the recorded types:
no data is touched. Of a branch both sides are run, of a loop one pass.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv

from fedq.errors import BadFile, CannotRecord, NotAllowed, SpecMismatch
from fedq.plan import dtypes, loops, optable, replay, spec
from fedq.plan.blame import shown
from fedq.plan.codec import MAX_HEADER_BYTES, parse_json
from fedq.plan.contracts import ON_VALUES
from fedq.plan.graph import (
    About,
    Graph,
    Type,
    about_from_json,
    about_to_json,
    canonical,
    graph_from_json,
    graph_to_json,
)
from fedq.plan.kernels import SYM, exact
from fedq.plan.rules import RUN_AS
from fedq.plan.tensors import DTYPES, type_of
from fedq.plan.verify import Verified, verify

ROOM_BYTES = 1 << 16
"""Of a file's header: what a message says besides its plan."""
_NEEDS_DATA = (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode)


def rehearse(graph: Graph, about: About, examples: Sequence[Sequence[Type]]) -> None:
    """Check that a device will take the graph and run it.

    Args:
        examples: input types, all sizes numbers, on which it was recorded: of the graph, then of its variants.

    Raises:
        CannotRecord: names the line and what to write instead.
    """
    try:
        verified = verify(_read_back(graph, about))
    except NotAllowed as error:
        raise _not_allowed(error, graph, about) from None
    for row in examples:
        with contextlib.suppress(SpecMismatch):  # of a variant that was not kept
            _dry_run(verified, about, row)


def _read_back(graph: Graph, about: About) -> Graph:
    """The graph as a device reads it."""
    try:
        body, rest = canonical(graph_to_json(graph)), canonical(about_to_json(about))
        states = sum(len(name) + 100 for name, _ in graph.state)
        if len(body) + len(rest) + states > MAX_HEADER_BYTES - ROOM_BYTES:
            raise BadFile(f"the recorded plan takes {len(body) + len(rest)} bytes of a file's 4 MiB")
        about_from_json(parse_json(rest))
        return graph_from_json(parse_json(body))
    except BadFile as error:
        hint = "split the function into plans, or replace a Python loop by scan of torch._higher_order_ops"
        raise CannotRecord(f"no file can hold it: {error.args[0]}", hint=hint) from None


def _not_allowed(error: NotAllowed, graph: Graph, about: About) -> CannotRecord:
    """The refusal with the user's line: of the action, or of the first in a body with this op."""
    action, op = error.fields.get("action"), error.fields.get("op")
    line = about.line(action) if action is not None else _line_of_op(graph, about, op)
    why, _, cure = re.sub(r" \(action \d+\)(?=$|, in a body)", "", str(error.args[0])).partition("; ")
    if (fixed := re.search(r"argument '(\w+)' is one of (.+)$", why)) is not None:
        cure = f"give {fixed[1]} as {fixed[2]}"
    return CannotRecord(f"{why}{shown(line)}", hint=cure or error.hint, line=line)


def _line_of_op(graph: Graph, about: About, op: str | None) -> str:
    return next((line for name, line in zip(_ops(graph), about.lines, strict=False) if name == op), "")


def _ops(graph: Graph) -> Iterator[str]:
    """Ops in the order of `About.lines`."""
    yield from (action.op for action in graph.actions)
    for inner in (*graph.graphs, *graph.variants):
        yield from _ops(inner)


# -- the dry run --------------------------------------------------------------------------------


def _dry_run(verified: Verified, about: About, given: Sequence[Type]) -> None:
    """Run one of the graphs on fakes of these types, and compare what it gives with what it says it gives."""
    which, _ = spec.choose(verified.graph, given)
    chosen = (verified, *verified.variants)[which]
    compiled = replay.compile_one(chosen, replay.Dry(RULES, _kernels()))
    state = [t for _, t in chosen.graph.state]
    try:
        with FakeTensorMode(shape_env=ShapeEnv(), allow_fallback_kernels=False), torch.no_grad():
            made = compiled.fn(*map(_fake, (*given, *state)))
    except _NEEDS_DATA:
        return  # recording followed it as far as that goes
    except dtypes.Unfit as error:
        line = _line(verified, which, about, replay.blame(compiled, error)[0])
        raise CannotRecord(
            f"{error}{shown(line)}",
            hint=dtypes.HINT,
            line=line,
        ) from None
    except Exception as error:
        action, op = replay.blame(compiled, error)
        raise _fails(f"{op or 'it'} does not run as it was recorded", _line(verified, which, about, action)) from error
    try:
        types = spec.output_types(verified.graph, given)
    except SpecMismatch as error:
        raise _fails(f"the size of a result can not be told: {error}", "") from None
    for value, foreseen in zip(made, types, strict=True):
        if isinstance(value, torch.Tensor) and _has_numbers(value) and type_of(value) != foreseen:
            raise _fails(f"a result is {type_of(value)}, recorded as {foreseen}", "")


def _line(verified: Verified, which: int, about: About, action: int) -> str:
    """The line of an action of a variant: their lines come after those of the graph."""
    before = [verified, *verified.variants][:which]
    return about.line(action + sum(1 for v in before for _ in _ops(v.graph))) if action >= 0 else ""


def _fails(message: str, line: str) -> CannotRecord:
    return CannotRecord(
        f"{message}{shown(line)}",
        hint="write it with other functions of torch; this one is a defect of fedq, please report it",
        line=line,
    )


def _has_numbers(value: torch.Tensor) -> bool:
    return all(isinstance(d, int) for d in value.shape)


def _fake(type_: Type) -> Any:
    return type_.value if type_.shape is None else torch.empty([int(d) for d in type_.shape], dtype=DTYPES[type_.dtype])


def _kernels() -> Callable[[optable.Op, Callable[..., Any]], Callable[..., Any]]:
    """What a dry run calls: the op, or what stands for it where it looks at values or takes long on fakes.

    Each runs the op itself, too, once for each row of dtypes that is not f32 alone.
    """
    named = {op.name().replace("::", "."): run for op, run in RUN_AS.items()}
    tried = dtypes.Tried()

    def of(op: optable.Op, usual: Callable[..., Any]) -> Callable[..., Any]:
        if op.name in SYM:
            return usual
        looks = any(words[0] in ON_VALUES for words in op.contract)
        return tried.kernel(op.name, named.get(op.name) or (exact(op) if looks else usual), usual)

    return of


def _both(then: loops.Body, other: loops.Body) -> Callable[..., Any]:
    def run(pred: Any, given: Sequence[Any]) -> tuple[Any, ...]:
        other(*given)
        return then(*given)

    return run


def _one_pass(test: loops.Body, body: loops.Body) -> Callable[..., Any]:
    def run(carried: Sequence[Any], given: Sequence[Any]) -> Sequence[Any]:
        test(*carried, *given)
        return body(*carried, *given)

    return run


def _one_element(body: loops.Body) -> Callable[..., Any]:
    def run(*lists: Sequence[Any]) -> list[Any]:
        carried, xs, given = lists if len(lists) == 3 else ([], *lists)
        made, kept = body(*carried, *(x[0] for x in xs), *given), len(carried)
        return [*made[:kept], *(row.new_empty((xs[0].shape[0], *row.shape)) for row in made[kept:])]

    return run


RULES: Mapping[str, Callable[..., Callable[..., Any]]] = {
    "ctl.cond": _both, "ctl.while_loop": _one_pass, "ctl.scan": _one_element, "ctl.map": _one_element,
}  # fmt: skip
"""As `loops.RULES`, without looking at values."""
