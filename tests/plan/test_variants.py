"""Plans that hold another graph for small sizes: recorded, written, verified, picked, run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fedq as fq
from fedq.errors import BadFile, NotAllowed, SpecMismatch
from fedq.plan import replay
from fedq.plan.graph import Type, Var, graph_from_json, graph_to_json, show, unflatten
from fedq.plan.plan import Plan
from fedq.plan.spec import choose, match, output_types
from fedq.plan.tensors import type_of
from fedq.plan.verify import verify
from tests.plan.test_params import again


def triple_unless_many(x):
    return x * 2 if x.shape[0] > 1 else x * 3


def shift_by_size(x):
    if x.shape[0] == 0:
        return x + torch.tensor([7.0]), x.sum()
    if x.shape[0] == 1:
        return x + torch.tensor([5.0]), x.sum() * 0 + torch.tensor(4.0)
    return x + torch.tensor([7.0]), x.mean()


def standardised(x):
    return (x - x.mean(0)) / x.std(0) if x.shape[0] > 1 else x * 0


def pairwise(x, y):
    return x * y if x.shape[0] > 1 and y.shape[0] > 1 else x.sum() + y.sum() + torch.zeros(1)


FUNCTIONS = [
    (triple_unless_many, [(-1,)]), (shift_by_size, [(-1,)]), (standardised, [(-1, 3)]), (pairwise, [(-1,), (-1,)]),
]  # fmt: skip


@pytest.mark.parametrize(("function", "shapes"), FUNCTIONS)
def test_one_plan_gives_eagers_value_at_every_batch_size(function, shapes):
    plan = again(Plan(function).build_shapes(shapes))
    for n in (0, 1, 2, 7):
        inputs = [torch.randn([n if d == -1 else d for d in shape]) for shape in shapes]
        want, got = function(*inputs), plan(*inputs)
        want, got = (w if isinstance(w, tuple) else (w,) for w in (want, got))
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
        types = [type_of(x) for x in inputs]
        assert [t.shape for t in output_types(plan.graph, types)] == [tuple(w.shape) for w in want]


def test_the_printed_form_shows_each_graph_with_its_lines():
    plan = Plan(triple_unless_many).build_shapes([(-1,)])
    line = triple_unless_many.__code__.co_firstlineno + 1
    assert str(plan) == (
        "plan triple_unless_many(%0: f32|f64|f16|bf16|i64|i32 [n]) -> %1\n"
        "  where n >= 2\n"
        f"  %1: f32[n] = aten.mul.Tensor(%0, 2)     test_variants.py:{line}\n"
        "  or plan triple_unless_many(%0: f32|f64|f16|bf16|i64|i32 [1]) -> %1\n"
        f"    %1: f32[1] = aten.mul.Tensor(%0, 3)   test_variants.py:{line}\n"
        "  or plan triple_unless_many(%0: f32|f64|f16|bf16|i64|i32 [0]) -> %1\n"
        f"    %1: f32[0] = aten.mul.Tensor(%0, 3)   test_variants.py:{line}"
    )


def test_the_first_graph_that_admits_the_inputs_is_run():
    graph = Plan(triple_unless_many).build_shapes([(-1,)]).graph
    assert [choose(graph, [Type("f32", (n,))])[0] for n in (5, 1, 0)] == [0, 1, 2]
    with pytest.raises(SpecMismatch, match=r"f32\[n\] expected, f32\[1,1\] given"):
        match(graph, [Type("f32", (1, 1))])


def test_a_graph_that_admits_all_sizes_has_no_variant():
    for module, shape in ((nn.Linear(2, 3), (-1, 2)), (nn.Softmax(0), (-1,))):
        assert Plan(module).build_shapes([shape]).graph.variants == ()


def test_a_batch_written_as_a_number_has_a_variant_for_one():
    def step(x, w):
        return x @ w if x.shape[0] > 1 else (x * w.t()).sum(1, keepdim=True)

    plan = again(Plan(step).build(torch.ones(4, 2), torch.ones(2, 1)))
    for n in (1, 4, 6):
        x, w = torch.randn(n, 2), torch.randn(2, 1)
        assert torch.equal(plan(x, w), step(x, w))


def test_outputs_of_another_structure_are_no_variant():
    plan = Plan(lambda x: (x, x) if x.shape[0] > 1 else x * 1).build_shapes([(-1,)])
    assert plan.graph.variants == () and "n=1" in plan.about.refused


def test_state_is_held_once_and_equal_constants_are_shared():
    plan = Plan(shift_by_size).build_shapes([(-1,)])
    assert [name for name, _ in plan.graph.state] == ["const0", "const1", "const2"]
    assert all(v.state == plan.graph.state for v in plan.graph.variants)
    assert "state" not in graph_to_json(plan.graph)["variants"][0]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x) if x.shape[0] > 1 else self.fc(x) * 0

    net = Net()
    plan = again(Plan(net).build_shapes([(-1, 2)]))
    for n in (1, 3):
        x = torch.randn(n, 2)
        assert torch.equal(plan(x), net(x))


def test_a_failure_is_blamed_on_the_variants_own_action():
    def picks(x, at):
        return x[at] + 1 if x.shape[0] > 1 else x[at] * x[at]

    plan = Plan(picks).build(torch.ones(4), torch.tensor([0, 1]))
    compiled = replay.compile(verify(plan.graph))
    for n, op in ((4, "aten.index.Tensor"), (1, "aten.index.Tensor")):
        with pytest.raises(replay.ActionFailed) as caught:
            replay.run(compiled, [torch.ones(n), torch.tensor([9])], (), seed=0)
        assert caught.value.op == op
        assert plan.about.line(caught.value.action).startswith("test_variants.py")
    assert caught.value.action >= len(plan.graph.actions)


def test_what_picks_the_graph_reaches_every_output():
    def chosen(x, y):
        return (y * 2, y + 1) if x.shape[0] > 1 else (y * 3, y + x.sum())

    graph = Plan(chosen).build_shapes([(-1,), (2,)]).graph
    assert graph.variants and verify(graph).reaches == (frozenset({0, 1}), frozenset({0, 1}))


def test_written_and_read_again_it_is_the_same():
    graph = Plan(shift_by_size).build_shapes([(-1,)]).graph
    read = graph_from_json(graph_to_json(graph))
    assert read == graph and read.id == graph.id and show(read) == show(graph)


@pytest.fixture(scope="module")
def graph():
    return Plan(shift_by_size).build_shapes([(-1,)]).graph


@pytest.mark.parametrize(
    "change",
    [
        lambda v: replace(v, state=()),
        lambda v: replace(v, variants=(v,)),
        lambda v: replace(v, inputs=(*v.inputs, Type("f32", (1,)))),
        lambda v: replace(v, inputs=(Type("int"),)),
        lambda v: replace(v, outputs=v.output_vars[0]),
        lambda v: replace(v, outputs=(Var(99), Var(1))),
        lambda v: replace(v, actions=(replace(v.actions[0], op="aten.from_file"), *v.actions[1:])),
    ],
)
def test_a_variant_that_does_not_fit_is_not_admitted(graph, change):
    verify(graph)
    with pytest.raises(NotAllowed):
        verify(replace(graph, variants=(change(graph.variants[0]),)))


def test_too_many_or_nested_variants_are_refused(graph):
    with pytest.raises(NotAllowed):
        verify(replace(graph, variants=graph.variants[:1] * 9))
    body = graph_to_json(graph)
    one = body["variants"][0]
    for rows in ([one] * 9, [{**one, "state": []}], [{**one, "variants": [one]}], [{**one, "params": []}], [3]):
        with pytest.raises(BadFile):
            graph_from_json({**body, "variants": rows})


def test_a_device_runs_the_graph_that_fits():
    device = fq.VirtualWorker("device_1", {"one": torch.ones(1), "many": torch.ones(3)})
    there = Plan(triple_unless_many).build_shapes([(-1,)]).send(device)
    assert there(device.find("one")).get().tolist() == [3.0]
    assert there(device.find("many")).get().tolist() == [2.0] * 3


def test_the_compiled_function_keeps_the_structure():
    plan = Plan(lambda x: {"a": x * 2 if x.shape[0] > 1 else x}).build_shapes([(-1,)])
    assert plan.compiled()(torch.ones(1))["a"].tolist() == [1.0]
    flat = replay.compile(verify(plan.graph)).fn(torch.ones(2))
    assert unflatten(plan.graph.outputs, iter(flat))["a"].tolist() == [2.0, 2.0]
