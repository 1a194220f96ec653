"""Types found by running a graph on fakes: what the file claims of them is not looked at."""

import pytest
import torch

import fedq as fq
from fedq.errors import BadFile, SpecMismatch
from fedq.plan import typed
from fedq.plan.foresee import foresee
from fedq.plan.graph import Action, Graph, Subgraph, Type, Var


def types(graph, *given):
    """The types of a graph's actions, as texts."""
    _, found = foresee(graph, [Type.parse(t) for t in given])
    return [str(t) for a in found.actions for t in a.types]


def lying(*actions, inputs=("f32[n]",), outputs=None, **more):
    """A graph whose every type is a lie."""
    made = tuple(Action(op, args, {}, (Type.parse("f32[]"),)) for op, *args in actions)
    return Graph(tuple(map(Type.parse, inputs)), made, outputs or Var(len(inputs)), {"n": 0}, **more)


def test_a_column_that_claims_to_be_one_number_is_a_column():
    assert types(lying(("aten.alias", Var(0))), "f32[1000]") == ["f32[1000]"]


def test_a_size_that_depends_on_values_is_not_known():
    assert types(lying(("aten.nonzero", Var(0)), ("aten.sum", Var(1))), "f32[7]") == ["i64[?,1]", "i64[]"]


def test_what_follows_from_what_cannot_be_run_is_not_known():
    graph = lying(("aten.reshape", Var(0), [2, 2]), ("aten.abs", Var(1)), ("aten.abs", Var(0)))
    assert types(graph, "f32[7]") == ["?", "?", "f32[7]"]


def test_the_types_of_a_built_plan_are_those_it_has():
    @fq.func2plan()
    def step(x, w):
        with torch.no_grad():
            h = torch.relu(x @ w)
            return h.mean(0), h.to(torch.float64), torch.linalg.svdvals(w)

    step.build(torch.ones(4, 3), torch.ones(3, 2))
    _, found = foresee(step.graph, [Type.parse("f32[4,3]"), Type.parse("f32[3,2]")])
    assert [str(found.types[v.number]) for v in found.output_vars] == ["f32[2]", "f64[4,2]", "f32[2]"]


def body(*actions, inputs, outputs):
    made = tuple(Action(op, args, {}, (Type.parse("f32[]"),)) for op, *args in actions)
    return Graph(tuple(map(Type.parse, inputs)), made, outputs)


def test_of_branches_that_give_different_sizes_none_is_believed():
    one = body(("aten.sum", Var(0)), inputs=("f32[]",), outputs=[Var(1)])
    all_ = body(("aten.alias", Var(0)), inputs=("f32[]",), outputs=[Var(1)])
    row = body(("aten.slice.Tensor", Var(0), 0, 0, 1), inputs=("f32[]",), outputs=[Var(1)])
    for then, other, known in ((one, all_, "?"), (all_, row, "f32[?]"), (all_, all_, "f32[9]")):
        graph = lying(
            ("aten.sum", Var(0)), ("aten.gt.Scalar", Var(1), 0),
            ("ctl.cond", Var(2), Subgraph(0), Subgraph(1), [Var(0)]), graphs=(then, other),
        )  # fmt: skip
        assert types(graph, "f32[9]")[2] == known


def test_what_a_loop_makes_larger_each_round_is_not_known_nor_what_takes_its_place_later():
    test = body(("aten.sum", Var(0)), ("aten.lt.Scalar", Var(2), 9), inputs=("f32[]", "f32[]"), outputs=[Var(3)])
    grow = body(("aten.cat", [Var(0), Var(0)]), inputs=("f32[]", "f32[]"), outputs=[Var(2), Var(0)])
    kind = Type.parse("f32[]")
    loop = Action("ctl.while_loop", (Subgraph(0), Subgraph(1), [Var(0), Var(0)], []), {}, (kind, kind))
    graph = Graph((Type.parse("f32[n]"),), (loop,), Var(1), {"n": 0}, graphs=(test, grow))
    assert types(graph, "f32[2]") == ["?", "?"]


def test_a_graph_that_does_not_take_what_is_given_has_no_types():
    with pytest.raises(SpecMismatch):
        types(lying(("aten.abs", Var(0))), "f32[2,2]")


def test_types_are_put_back_where_they_were_found():
    test = body(("aten.sum", Var(0)), ("aten.lt.Scalar", Var(1), 9), inputs=("f32[]",), outputs=[Var(2)])
    twice = body(("aten.add.Tensor", Var(0), Var(0)), inputs=("f32[]",), outputs=[Var(1)])
    graph = lying(("ctl.while_loop", Subgraph(0), Subgraph(1), [Var(0)], []), graphs=(test, twice))
    _, found = foresee(graph, [Type.parse("f32[3]")])
    texts = typed.texts(found)
    assert typed.retyped(graph, [[typed.parse(t) for t in part] for part in texts]) == found
    for wrong in (texts[:-1], [*texts, []], [texts[0], [], *texts[2:]], [[], *texts[1:]]):
        with pytest.raises(BadFile):
            typed.retyped(graph, [[typed.parse(t) for t in part] for part in wrong])


@pytest.mark.parametrize("text", ["f32[a]", "f33[2]", "f32", "", None, "f32[2", "int=x", "f32[-1]"])
def test_what_is_no_type_is_refused(text):
    with pytest.raises(BadFile):
        typed.parse(text)
