"""Bodies of control flow: what flows through them, and what a device does not take."""

from __future__ import annotations

import pytest
import torch
from torch._higher_order_ops import map as torch_map
from torch._higher_order_ops import scan, while_loop

from fedq.errors import NotAllowed
from fedq.plan import replay
from fedq.plan.graph import Action, Graph, Subgraph, Type, Var
from fedq.plan.plan import Plan
from fedq.plan.verify import verify
from tests.golden import contents


def zero():
    return torch.zeros((), dtype=torch.int64)


# -- what flows where --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "reaches"),
    [
        (lambda x, y: torch.cond(x.sum() > 0, lambda: y + 1, lambda: y * 2), [{0, 1}]),
        (lambda x, y: torch.cond(y.sum() > 0, lambda: (x + 1, y + 1), lambda: (x * 2, y - 1)), [{0, 1}, {1}]),
        (lambda x, y: while_loop(lambda a, b: a.sum() < 9, lambda a, b: (a * a + 1, b + 1), (x, y)), [{0}, {0, 1}]),
        (lambda x, y: while_loop(lambda a, b: b.sum() < 9, lambda a, b: (a + b, b + 1), (x, y)), [{0, 1}, {1}]),
        (lambda x, y: scan(lambda c, a: (c + a, a * 2), y.sum(), x), [{0, 1}, {0}]),
        (lambda x, y: torch_map(lambda a: a + y.sum(), x), [{0, 1}]),
    ],
)
def test_outputs_are_reached_by_predicates_and_by_what_goes_through_bodies(function, reaches):
    plan = Plan(function).build_shapes([(3,), (3,)])
    assert [set(r) for r in verify(plan.graph).reaches] == reaches


def rotates(x, y, z):
    return while_loop(lambda i, a, b, c: i < 2, lambda i, a, b, c: (i + 1, b * 1, c * 1, a * 1), (zero(), x, y, z))


def test_what_goes_round_in_a_loop_reaches_all_it_can():
    plan = Plan(rotates).build_shapes([(3,), (3,), (3,)])
    assert [set(r) for r in verify(plan.graph).reaches] == [set(), *[{0, 1, 2}] * 3]


# -- what a device does not take ---------------------------------------------------------------

F, B, N = Type("f32", (2,)), Type("bool", ()), Type("int")
PRED, FIRST, SECOND = Var(1), Subgraph(0), Subgraph(1)
SAME = Graph((F,), (), [Var(0)])
TEST = Graph((F,), (Action("aten.any", (Var(0),), {}, (B,)),), [Var(1)])
EACH = Graph((F, F), (Action("aten.add.Tensor", (Var(0), Var(1)), {}, (F,)),), [Var(2), Var(2)])


def graph(op, *args, graphs=(SAME, SAME), types=(F,), inputs=(F, B, N), **more):
    action = Action(op, args, more.pop("kwargs", {}), types)
    return Graph(inputs, (action,), [Var(len(inputs))], graphs=graphs, **more)


def cond(pred=PRED, a=FIRST, b=SECOND, given=None, **more):
    return graph("ctl.cond", pred, a, b, [Var(0)] if given is None else given, **more)


def deep(levels):
    inner = SAME
    for _ in range(levels):
        inner = Graph((F,), (Action("ctl.map", (Subgraph(0), [Var(0)], []), {}, (F,)),), [Var(1)], graphs=(inner,))
    return inner


WHILE = (Subgraph(0), Subgraph(1))
SOUND = {
    "cond": cond(),
    "cond on a number": cond(Var(2)),
    "while_loop": graph("ctl.while_loop", Subgraph(0), Subgraph(1), [Var(0)], [], graphs=(TEST, SAME)),
    "while_loop on a number": graph(
        "ctl.while_loop",
        *WHILE,
        [Var(0)],
        [],
        graphs=(Graph((F,), (Action("sym.numel", (Var(0),), {}, (N,)),), [Var(1)]), SAME),
    ),
    "scan": graph("ctl.scan", Subgraph(0), [Var(0)], [Var(0)], [], graphs=(EACH,), types=(F, F)),
    "map": graph("ctl.map", Subgraph(0), [Var(0)], [], graphs=(SAME,)),
    "deep": deep(8),
}
UNSOUND = {
    "unknown": graph("ctl.goto", Subgraph(0), [Var(0)]),
    "no arguments": graph("ctl.cond"),
    "pred is literal": cond(True),
    "pred is undefined": cond(Var(9)),
    "no such graph": cond(b=Subgraph(2)),
    "negative graph": cond(b=Subgraph(-1)),
    "graph for a value": cond(given=[Subgraph(0)]),
    "value for a graph": cond(a=Var(0)),
    "not a list": cond(given=Var(0)),
    "a literal is given": cond(given=[3]),
    "a value is undefined": cond(given=[Var(3)]),
    "one too many": cond(given=[Var(0), Var(0)]),
    "one too few": cond(given=[]),
    "a number for a tensor": cond(given=[Var(2)]),
    "keywords": cond(kwargs={"x": 1}),
    "more results": cond(types=(F, F)),
    "no results": graph("ctl.cond", Var(1), *WHILE, [Var(0)], types=()),
    "a result of another kind": cond(types=(N,)),
    "branches differ in count": cond(graphs=(SAME, Graph((F,), (), [Var(0), Var(0)]))),
    "branches differ in kind": cond(graphs=(SAME, Graph((F,), (Action("sym.numel", (Var(0),), {}, (N,)),), [Var(1)]))),
    "a body is never called": cond(graphs=(SAME, SAME, SAME)),
    "bodies without calls": Graph((F,), (), Var(0), graphs=(SAME,)),
    "body with state": cond(graphs=(SAME, Graph((), (), [Var(0)], state=(("w", F),)))),
    "body with sizes": cond(graphs=(SAME, Graph((F,), (), [Var(0)], sizes={"n": 1}))),
    "body with variants": cond(graphs=(SAME, Graph((F,), (), [Var(0)], variants=(SAME,)))),
    "body gives a tree": cond(graphs=(SAME, Graph((F,), (), (Var(0),)))),
    "body gives nothing there": cond(graphs=(SAME, Graph((F,), (), [Var(5)]))),
    "body with a forbidden op": cond(
        graphs=(SAME, Graph((F,), (Action("aten.from_file", ("x",), {}, (F,)),), [Var(1)]))
    ),
    "test gives two": graph("ctl.while_loop", *WHILE, [Var(0)], [], graphs=(EACH, SAME)),
    "body gives less than it carries": graph(
        "ctl.while_loop", *WHILE, [Var(0), Var(0)], [], types=(F, F),
        graphs=(Graph((F, F), TEST.actions[:0], [Var(0)]), Graph((F, F), (), [Var(0)])),
    ),
    "scan over nothing": graph("ctl.scan", Subgraph(0), [Var(0)], [], [], graphs=(SAME,)),
    "scan over a number": graph("ctl.scan", Subgraph(0), [], [Var(2)], [], graphs=(Graph((N,), (), [Var(0)]),)),
    "map gives numbers": graph(
        "ctl.map", Subgraph(0), [Var(0)], [Var(2)], graphs=(Graph((F, N), (), [Var(1)]),), types=(N,)
    ),
    "too deep": deep(9),
    "too many actions": cond(
        graphs=(SAME, Graph((F,), tuple(Action("aten.abs", (Var(0),), {}, (F,)) for _ in range(10_000)), [Var(1)]))
    ),
    "too much through bodies": graph(
        "ctl.cond", Var(1), *WHILE, [Var(0)] * 600, types=(F,) * 600,
        graphs=(Graph((F,) * 600, (), [Var(0)] * 600),) * 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", SOUND)
def test_a_sound_graph_with_bodies_is_let_through(reason):
    replay.compile(verify(SOUND[reason]))


@pytest.mark.parametrize("reason", UNSOUND)
def test_a_graph_whose_bodies_do_not_fit_is_refused(reason):
    with pytest.raises(NotAllowed):
        verify(UNSOUND[reason])


def test_a_scan_over_nothing_fails_instead_of_making_up_a_shape():
    compiled = replay.compile(verify(SOUND["map"]))
    with pytest.raises(replay.ActionFailed):
        replay.run(compiled, [torch.ones(0), torch.tensor(True), 3], [], seed=0)


def test_following_what_flows_through_large_bodies_comes_to_an_end():
    width = 500
    body = Graph((F,) * width, (), [Var((i + 1) % width) for i in range(width)])
    test = Graph((F,) * width, TEST.actions[:0], [Var(0)])
    loop = Action("ctl.while_loop", (*WHILE, [Var(i) for i in range(width)], []), {}, (F,) * width)
    verified = verify(Graph((F,) * width, (loop,), [Var(width)], graphs=(test, body)))
    assert verified.reaches[0] == frozenset(range(width))


def test_the_golden_plan_of_control_flow_is_sound_and_runs():
    graph = contents.CONTROL.graph
    count, total, before = replay.run(
        replay.compile(verify(graph)), [torch.tensor([1.0, 2.0]), torch.tensor(0)], [torch.tensor(2.0)], seed=0
    )
    assert (count, total) == (3, 8) and before.tolist() == [2.0, 4.0]
