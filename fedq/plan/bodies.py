"""What control flow asks of its bodies, and what flows through them. Knows no torch.

``ctl.cond(%pred, @then, @else, [given])``: both are given the same; one runs.
``ctl.while_loop(@test, @body, [carried], [given])``: while the test gives true, the body's results
are carried on.
``ctl.scan(@body, [carried], [xs], [given])``: once per element of the first dimension of the xs;
gives what is carried, then the other results, stacked.
``ctl.map(@body, [xs], [given])``: the same with nothing carried.
Bodies are given what is carried, then elements, then ``given``. Format: docs/format.md, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedq.plan.graph import Action, Graph, Subgraph, Var

CONTROL = {
    "ctl.cond": (2, 0),
    "ctl.while_loop": (2, 1),
    "ctl.scan": (1, 2),
    "ctl.map": (1, 1),
}
"""Op -> how many bodies it takes, and how many lists before the last."""
MAX_NESTED = 8
"""Bodies within bodies."""
MAX_PAIRS = 1 << 18
"""Results of control flow times what it is given, in all."""
MAX_ROUNDS = 8
"""Times that what a loop carries is followed through its body, before all is said to reach all."""


class Misused(Exception):
    """What is wrong with an action of control flow."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What a checked graph does with its values.

    Attributes:
        is_tensor: per value, by number.
        flows: per value, a bit for each input and state tensor that flows into it.
        outputs: the values it gives.
        inputs: how many it is given.
        random: whether it draws from the generator.
    """

    is_tensor: list[bool]
    flows: list[int]
    outputs: tuple[Var, ...]
    inputs: int
    random: bool

    def kinds(self) -> list[bool]:
        return [self.is_tensor[v.number] for v in self.outputs]

    def through(self, given: Sequence[int]) -> list[int]:
        """What flows into each output, where these flow into the inputs."""
        return [_union(given[bit] for bit in _bits(self.flows[v.number])) for v in self.outputs]


def nested(graph: Graph) -> Iterator[tuple[int, Graph]]:
    """Every graph inside, with its level, the first being 1."""
    level = [graph]
    depth = 0
    while level := [inner for g in level for inner in g.graphs]:
        depth += 1
        yield from ((depth, g) for g in level)


def unsound(graph: Graph) -> str | None:
    """Why this can not be a body; its actions are not looked at."""
    if graph.state or graph.sizes or graph.guards or graph.dtypes or graph.params or graph.variants:
        return "a body has no state, sizes, guards, dtypes, params or variants of its own"
    if type(graph.outputs) is not list or not all(type(v) is Var for v in graph.outputs):
        return "a body gives a list of values"
    return None


def follow(action: Action, bodies: Sequence[Flow], is_tensor: Sequence[bool], flows: Sequence[int]) -> list[int]:
    """What flows into each result of an action of control flow.

    Raises:
        Misused: its bodies and arguments do not fit each other.
    """
    called, pred, lists = _taken(action, bodies, is_tensor)
    *own, given = [[v.number for v in values] for values in lists]
    inputs = [flows[n] for values in (*own, given) for n in values]
    kinds = [is_tensor[n] for values in (*own, given) for n in values]
    for body in called:
        _need(kinds == body.is_tensor[: body.inputs], "a body takes other values than it is given")
    results = _RULES[action.op](called, [len(values) for values in own], inputs, kinds)
    carried, made = results
    _need(made == [t.is_tensor for t in action.types], "its results are not those of its body")
    return [flow | flows[pred.number] for flow in carried] if pred is not None else carried


def _taken(action: Action, bodies: Sequence[Flow], is_tensor: Sequence[bool]) -> Any:
    """Its bodies, its predicate (or None) and its lists."""
    count, own = CONTROL[action.op]
    args = list(action.args)
    pred = args.pop(0) if action.op == "ctl.cond" and args else None
    _need(pred is None or type(pred) is Var, "the predicate is not a value")
    _need(len(args) == count + own + 1 and not action.kwargs, f"takes {count} graphs and {own + 1} lists")
    called, lists = args[:count], args[count:]
    _need(all(type(a) is Subgraph and 0 <= a.number < len(bodies) for a in called), "no such graph")
    _need(all(type(a) is list and all(type(v) is Var for v in a) for a in lists), "its lists are of values")
    if action.op in ("ctl.scan", "ctl.map"):
        _need(lists[-2] and all(is_tensor[v.number] for v in lists[-2]), "it goes over no tensor")
    return [bodies[a.number] for a in called], pred, lists


Followed = tuple[list[int], list[bool]]


def _cond(called: Sequence[Flow], own: Sequence[int], inputs: list[int], kinds: list[bool]) -> Followed:
    then, other = called
    _need(then.kinds() == other.kinds(), "its branches give different values")
    pairs = zip(then.through(inputs), other.through(inputs), strict=True)
    return [a | b for a, b in pairs], then.kinds()


def _while_loop(called: Sequence[Flow], own: Sequence[int], inputs: list[int], kinds: list[bool]) -> Followed:
    test, body = called
    (carried,) = own
    _need(len(test.outputs) == 1, "its test does not give one value")
    _need(body.kinds() == kinds[:carried], "its body does not give what it carries")
    after = _settled(body, carried, inputs, test)
    return after[:carried], kinds[:carried]


def _scan(called: Sequence[Flow], own: Sequence[int], inputs: list[int], kinds: list[bool]) -> Followed:
    (body,), (carried, xs) = called, own
    made = body.kinds()
    _need(made[:carried] == kinds[:carried] and all(made[carried:]), "its body does not give what it carries")
    length = _union(inputs[carried : carried + xs])
    inputs = [*(flow | length for flow in inputs[: carried + xs]), *inputs[carried + xs :]]
    after = _settled(body, carried, inputs, None)
    return after[:carried] + [flow | length for flow in body.through(after)[carried:]], made


def _map(called: Sequence[Flow], own: Sequence[int], inputs: list[int], kinds: list[bool]) -> Followed:
    return _scan(called, [0, *own], inputs, kinds)


_RULES = {"ctl.cond": _cond, "ctl.while_loop": _while_loop, "ctl.scan": _scan, "ctl.map": _map}


def _settled(body: Flow, carried: int, inputs: list[int], test: Flow | None) -> list[int]:
    """What flows into a loop's inputs once it has run any number of times."""
    for _ in range(MAX_ROUNDS):
        tested = test.through(inputs)[0] if test else 0
        after = [a | b | tested for a, b in zip(inputs, body.through(inputs), strict=False)][:carried]
        if after == inputs[:carried]:
            return inputs
        inputs = [*after, *inputs[carried:]]
    everything = _union(inputs)
    return [everything] * carried + inputs[carried:]


def _bits(flow: int) -> Iterator[int]:
    return (n for n, bit in enumerate(reversed(f"{flow:b}")) if bit == "1")


def _union(flows: Any) -> int:
    total = 0
    for flow in flows:
        total |= flow
    return total


def _need(condition: object, message: str) -> None:
    if not condition:
        raise Misused(message)
