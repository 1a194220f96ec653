"""Record a Python function or nn.Module as a Graph, with a Spec that admits what was proved."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from fedq.errors import CannotRecord
from fedq.plan import kinds, optable, variants
from fedq.plan.blame import cannot, line_of_call, shown
from fedq.plan.capture import Function, record
from fedq.plan.emit import emit
from fedq.plan.graph import About, Graph, Type
from fedq.plan.prove import Proved, prove
from fedq.plan.recording import In
from fedq.plan.rehearse import rehearse
from fedq.plan.settle import settle
from fedq.plan.twice import refuse_memory
from fedq.plan.untouched import Kept

_ONE_AT_A_TIME = threading.RLock()
"""Recording changes what is torch's and Python's own for a while: generators, modes, the user's globals."""

Traced = tuple[Graph, About, tuple[torch.Tensor, ...]]


def trace(
    function: Function,
    asked: Sequence[Type],
    *,
    state: Sequence[tuple[str, torch.Tensor]] = (),
    name: str = "",
    params: Sequence[str] = (),
    as_written: bool = False,
) -> Traced:
    """Record ``function(state tensors, *inputs)``.

    Args:
        function: called with the list of state tensors first.
        asked: types to record it on: sizes, -1 for a free one; or a Python value.
        state: named tensors; shapes and dtypes are recorded, values are read when the plan is sent.
        name, params: of the function and its inputs, for people.
        as_written: only what is -1 is free, and no other dtype is tried.

    Returns:
        graph, about, and the constants found in it, which are the last of ``graph.state``.

    Raises:
        CannotRecord: it does what a plan cannot hold; names line and cure.
        OtherTorch: what is loaded is not what the ops of plans were judged for; no device would take its word.
    """
    optable.check_torch(torch.__version__)
    tensors = [tensor for _, tensor in state]
    names = [n for n, _ in state]
    as_it_is, kept = function, Kept(function)
    function = kept.around(as_it_is)
    with _ONE_AT_A_TIME, kinds.told(kept.places), _seeds_untouched(lambda: prove(function, asked, tensors)):
        proved = prove(function, asked, tensors, as_written=as_written)
        refuse_memory(as_it_is, kept, asked, proved.inputs, tensors)
        first, examples = _graph(proved, names, name, params), [proved.example]
        others: list[Traced] = []
        waiting = deque([(first[0], asked)])
        while waiting and len(others) < variants.MAX_VARIANTS:
            for types, fixed in variants.wanted(*waiting.popleft()):
                if as_written and any(0 in (t.shape or ()) for t in types):
                    continue  # a step over no rows
                with contextlib.suppress(CannotRecord):
                    proved = prove(function, types, tensors, as_written=as_written, fixed=fixed)
                    others.append(_graph(proved, names, name, params))
                    examples.append(proved.example)
                    waiting.append((others[-1][0], types))
    made = variants.joined(first, others[: variants.MAX_VARIANTS]) if others else first
    rehearse(made[0], made[1], examples)
    return made


def trace_as_is(function: Function, types: Sequence[Type]) -> Traced:
    """Record ``function([], *inputs)`` for exactly these types, sizes all numbers; nothing else is proved.

    Raises:
        CannotRecord: as `trace`; its cause is what torch raised, if torch did.
    """
    optable.check_torch(torch.__version__)
    with cannot():
        inputs = [In(t.dtype, tuple(d for d in t.shape or () if isinstance(d, int)), None) for t in types]
        settled = settle(record(function, inputs))
    made = _graph(Proved(settled, tuple(types), {}, (), (), {}), [], "", ())
    rehearse(made[0], made[1], [types])
    return made


def _graph(proved: Proved, state_names: list[str], name: str, params: Sequence[str]) -> Traced:
    with cannot():
        made = emit(proved.settled, proved.inputs, state_names)
    updates = tuple(state_names[i] for i in proved.settled.trace.updates)
    graph = Graph(
        inputs=made.inputs,
        actions=made.actions,
        outputs=_named(made.outputs, updates) if updates else made.outputs,
        sizes=proved.least,
        guards=proved.guards,
        dtypes=proved.dtypes,
        state=made.state,
        graphs=made.graphs,
    )
    about = About(name, made.lines, tuple(params), dict(proved.refused), updates)
    constants = tuple(proved.settled.trace.constants[n].detach().clone() for n in made.constants)
    return graph, about, constants


def _named(outputs: Any, names: Sequence[str]) -> Any:
    out, new = outputs
    return out, dict(zip(names, new.values(), strict=True))


@contextmanager
def _seeds_untouched(again: Callable[[], Any]) -> Iterator[None]:
    """Refuses functions that seed torch or draw from Python's or NumPy's random numbers."""
    before = _seeds()
    failed: CannotRecord | None = None
    try:
        yield
    except CannotRecord as error:
        failed = error
    after = _seeds()
    _restore(before)
    for source, was, is_ in zip(("torch", "random", "numpy"), before, after, strict=True):
        if not _equal(was, is_):
            line = line_of_call(again, source)
            _restore(before)
            raise CannotRecord(
                f"it {'seeds torch' if source == 'torch' else f'draws from {source!r}'}: "
                f"a plan would repeat what it saw{shown(line)}",
                hint="draw with torch.rand and give the run a seed, or pass the number as an argument",
                line=line,
            ) from failed
    if failed is not None:
        raise failed


def _seeds() -> tuple[Any, Any, Any]:
    numpy = sys.modules.get("numpy")
    return torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy else None


def _restore(seeds: tuple[Any, Any, Any]) -> None:
    torch.set_rng_state(seeds[0])
    random.setstate(seeds[1])
    if seeds[2] is not None:
        sys.modules["numpy"].random.set_state(seeds[2])


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return repr(a) == repr(b) if isinstance(a, tuple) else a is b
