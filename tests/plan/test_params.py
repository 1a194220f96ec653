"""Arguments of any structure: built with one, bound to it later, refused where they differ."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedq.errors import BadFile, NotAllowed, SpecMismatch, UsageError
from fedq.plan.codec import decode
from fedq.plan.file import decode_plan, encode_plan
from fedq.plan.graph import Param, Type, Var, graph_from_json, graph_to_json, show
from fedq.plan.params import bind
from fedq.plan.plan import Plan, State, from_file, func2plan
from fedq.plan.spec import match
from fedq.plan.verify import verify
from fedq.trust.keys import Key

Pair = namedtuple("Pair", "x y")


def again(plan: Plan) -> Plan:
    """Written to a file and read back."""
    raw = b"".join(encode_plan(plan.file(), Key.from_seed(bytes(32))))
    return from_file(decode_plan(decode(raw)))


def loss(batch, rate=0.5, *, mask=None, reduce="mean", twice=False):
    error = (batch["x"] - batch["y"][0]) * rate
    error = error if mask is None else error * mask
    error = error * 2 if twice else error
    return {"error": error, "parts": [(error.mean(), None)]} if reduce == "mean" else error.sum()


def batch(n=3):
    return {"x": torch.arange(float(n)), "y": [torch.ones(n)]}


def test_nested_arguments_and_outputs_come_back_as_they_were():
    plan = again(Plan(loss).build(batch()))
    out = plan(batch(7))
    want = loss(batch(7))
    assert torch.equal(out["error"], want["error"]) and torch.equal(out["parts"][0][0], want["parts"][0][0])
    assert (type(out["parts"]), type(out["parts"][0]), out["parts"][0][1]) == (list, tuple, None)


def test_the_printed_form_tells_what_it_takes():
    plan = Plan(loss).build(batch())
    assert "\n  takes batch: {'x': %0, 'y': [%1]}, rate: %2 = 0.5, mask: None, reduce: 'mean', twice: False\n" in str(
        plan
    )
    assert plan.about.params == ("batch['x']", "batch['y'][0]", "rate")


def test_a_number_with_a_default_may_be_left_out_or_given_by_position_or_name():
    plan = again(Plan(loss).build(batch()))
    for call, rate in ((((), {}), 0.5), (((2.0,), {}), 2.0), (((), {"rate": -1.5}), -1.5)):
        assert torch.equal(plan(batch(4), *call[0], **call[1])["error"], loss(batch(4), rate)["error"])


def test_keywords_lists_and_numbers_of_any_function_are_taken():
    def mixed(first, *rest, scale, **more):
        return first * scale + sum(rest) + more["other"][1]

    args, kwargs = (torch.ones(3), torch.ones(3), torch.ones(3)), {"scale": 3, "other": (1, torch.ones(3))}
    plan = again(Plan(mixed).build(*args, **kwargs))
    assert torch.equal(plan(*args, **kwargs), mixed(*args, **kwargs))
    assert torch.equal(plan(*args, **{**kwargs, "scale": 5}), mixed(*args, **{**kwargs, "scale": 5}))


def test_named_tuples_and_ordered_dicts_reach_the_function_as_they_are():
    def named(pair, items):
        return pair.x + pair.y, next(iter(items.values()))

    plan = Plan(named).build(Pair(torch.ones(2), torch.ones(2)), OrderedDict(a=torch.ones(2)))
    assert torch.equal(
        plan.compiled()(Pair(torch.ones(2), torch.ones(2)), {"a": torch.ones(2)})[0], torch.full((2,), 2.0)
    )


def test_plain_arguments_are_told_by_position_or_name_and_need_no_structure_in_the_file():
    plan = Plan(lambda x, y, unused=None: x - y).build(torch.ones(3), torch.ones(3))
    assert plan.graph.params == () and "params" not in graph_to_json(plan.graph)
    loaded = again(plan)
    assert torch.equal(loaded(y=torch.zeros(2), x=torch.ones(2)), torch.ones(2))


@pytest.mark.parametrize("flag", [True, False])
def test_a_bool_is_an_input_of_its_own_and_fixed(flag):
    plan = again(Plan(lambda x, up: x + 1 if up else x - 1).build(torch.ones(3), flag))
    assert torch.equal(plan(torch.ones(2), flag), torch.ones(2) + (1 if flag else -1))
    with pytest.raises(SpecMismatch, match=f"bool={str(flag).lower()} expected"):
        plan(torch.ones(2), not flag)


def test_a_default_that_fixes_the_graph_is_no_input():
    def rolled(x, steps=2, shift=1.0):
        return torch.roll(x, steps if steps != 2 else 2, 0) + shift

    plan = Plan(rolled).build(torch.ones(4))
    assert [str(t) for t in plan.graph.inputs] == ["f32[n]", "float"]
    assert plan.graph.params == (Param("x", Var(0)), Param("steps", 2), Param("shift", Var(1), 1.0))
    assert torch.equal(again(plan)(torch.arange(5.0), shift=3.0), rolled(torch.arange(5.0), shift=3.0))
    with pytest.raises(SpecMismatch, match="steps: 2 expected, 3 given"):
        plan.compiled()(torch.arange(5.0), 3)


def test_a_number_left_out_takes_no_freedom_from_sizes():
    def picky(x, k=0):
        return x[-k:] if isinstance(k, int) and k else x * 2

    plan = Plan(picky).build(torch.ones(4, 3))
    assert [str(t) for t in plan.graph.inputs] == ["f32[n,m]"]


def test_state_is_the_last_argument_of_a_call_with_names():
    @func2plan(state=(torch.tensor([2.0]),))
    def scaled(x, *, by=1.0, state: State):
        return x * by * state.read()[0]

    plan = again(scaled.build(x=torch.ones(3)))
    assert torch.equal(plan(torch.ones(2), by=3.0), torch.full((2,), 6.0))
    assert torch.equal(scaled(torch.ones(2), by=3.0), torch.full((2,), 6.0))


class Net(Plan):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, batch, *, gain: float = 1.0):
        return {"logits": self.fc(batch["x"]) * gain}


def test_a_plan_class_takes_names_and_structures():
    net = Net().build({"x": torch.ones(3, 2)})
    loaded, x = again(net), torch.randn(5, 2)
    assert torch.equal(loaded({"x": x}, gain=2.0)["logits"], net({"x": x}, gain=2.0)["logits"])


WRONG = [
    ((), {}, r"requires 1 argument, received 0: 'batch' missing"),
    ((batch(), 1.0, None, "mean", False, 3), {}, r"requires 1 to 5 arguments, received 6"),
    ((batch(),), {"batch": batch()}, r"argument 'batch' is given twice"),
    ((batch(),), {"rat": 1.0}, r"there is no argument 'rat'"),
    (({"x": 1},), {}, r"batch: key 'y' is missing"),
    (({**batch(), "z": 1},), {}, r"batch: key 'z' is not among"),
    (([torch.ones(2)],), {}, r"batch: a dict of 'x', 'y' expected, a list of 1 given"),
    ((torch.ones(2),), {}, r"batch: a dict of 'x', 'y' expected, a Tensor given"),
    (({"x": torch.ones(2), "y": (torch.ones(2),)},), {}, r"batch\['y'\]: a list of 1 expected, a tuple of 1 given"),
    (({"x": torch.ones(2), "y": [torch.ones(2)] * 2},), {}, r"batch\['y'\]: a list of 1 expected, a list of 2 given"),
    (({"x": [torch.ones(2)], "y": [torch.ones(2)]},), {}, r"batch\['x'\]: f32\[n\] expected, a list of 1 given"),
    (({"x": None, "y": [torch.ones(2)]},), {}, r"batch\['x'\]: f32\[n\] expected, None given"),
    ((batch(),), {"mask": torch.ones(3)}, r"mask: None expected, a Tensor given"),
    ((batch(),), {"reduce": "sum"}, r"reduce: 'mean' expected, 'sum' given"),
    ((batch(),), {"twice": 0}, r"twice: False expected, 0 given"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "kwargs", "message"), WRONG)
def test_another_structure_is_refused_with_the_place_where_it_differs(args, kwargs, message):
    plan = _LOSS
    with pytest.raises(SpecMismatch, match=message):
        bind(plan.graph, args, kwargs, about=plan.about)


_LOSS = Plan(loss).build(batch())


def test_missing_and_surplus_arguments_of_a_plain_plan_are_counted_and_named():
    plan = Plan(lambda x, y: x + y).build(torch.ones(2), torch.ones(2))
    for args, message in (((1,), "requires 2 arguments, received 1: 'y' missing"),
                          ((1, 2, 3), "requires 2 arguments, received 3")):  # fmt: skip
        with pytest.raises(SpecMismatch, match=message):
            bind(plan.graph, args, {}, about=plan.about)


def test_what_can_be_no_argument_is_refused_with_its_place():
    with pytest.raises(UsageError, match=r"argument \"batch\['x'\]\" is a set"):
        Plan(lambda batch: 1).build({"x": {1}})
    with pytest.raises(UsageError, match="keys of a dict"):
        Plan(lambda batch: 1).build({(1, 2): torch.ones(2)})
    with pytest.raises(UsageError, match="can not be called with 1 arguments: missing a required argument: 'y'"):
        Plan(lambda x, y: 1).build(torch.ones(2))


def test_arguments_are_read_as_they_are_written():
    graph = _LOSS.graph
    assert graph_from_json(graph_to_json(graph)) == graph
    assert show(graph_from_json(graph_to_json(graph))) == show(graph)


@pytest.mark.parametrize("row", [["x"], ["x", "%0", 1, 2], ["", "%0"], ["x", {"d": "f32"}], ["x", {}]])
def test_a_malformed_argument_is_refused_by_the_reader(row):
    body = graph_to_json(Plan(lambda x: x + 1).build(torch.ones(2)).graph)
    with pytest.raises(BadFile):
        graph_from_json({"params": [row], **body})


@pytest.mark.parametrize(
    "params",
    [
        (Param("x", Var(1)), Param("y", Var(0))),
        (Param("x", [Var(0), Var(0)]), Param("y", Var(1))),
        (Param("x", Var(0)),),
        (Param("x", Var(0)), Param("x", Var(1))),
        (Param("x", Var(0)), Param("y", Var(1), 1.0)),
        (Param("x", Var(0), 2), Param("y", Var(1))),
        (Param("x", [Var(0)]), Param("y", [Var(1), 3], 1)),
    ],
)
def test_arguments_that_do_not_hold_each_input_once_in_order_are_not_admitted(params):
    graph = Plan(lambda x, k: x + k).build(torch.ones(2), 3).graph
    assert graph.inputs[1] == Type("int")
    with pytest.raises(NotAllowed):
        verify(replace(graph, params=params))


# -- bools ----------------------------------------------------------------------------------------


def test_a_bool_that_changes_nothing_may_be_either():
    plan = Plan(lambda x, flag: x * 2).build(torch.ones(3), True)
    for flag in (True, False):
        assert torch.equal(plan.compiled()(torch.ones(4), flag), torch.full((4,), 2.0))
        match(plan.graph, [Type("f32", (3,)), Type("bool", None, flag)])


def test_a_bool_that_was_left_out_and_changes_nothing_may_be_given():
    def f(x, verbose=False):
        return x + 1

    plan = Plan(f).build(torch.ones(3))
    loaded = from_file(plan.file())
    for call in (loaded, plan.compiled()):
        assert torch.equal(call(torch.ones(3)), call(torch.ones(3), verbose=True))


def test_bools_that_matter_together_are_fixed():
    plan = Plan(lambda x, a, b: x * 2 if a and b else x).build(torch.ones(3), False, False)
    assert [t.value for t in plan.graph.inputs[1:]] == [False, False]


def test_a_bool_that_matters_for_some_sizes_or_dtypes_is_fixed():
    small = Plan(lambda x, flag: x * 2 if flag and x.shape[0] == 3 else x).build(torch.ones(5), False)
    double = Plan(lambda x, flag: x * 2 if flag and x.dtype == torch.float64 else x).build(torch.ones(5), False)
    assert small.graph.inputs[1].value is False and double.graph.inputs[1].value is False


def test_the_other_value_of_a_bool_that_matters_needs_another_plan():
    plan = Plan(lambda x, flag: x * 2 if flag else x).build(torch.ones(3), True)
    with pytest.raises(SpecMismatch, match="bool=true expected, bool=false given") as caught:
        match(plan.graph, [Type("f32", (3,)), Type("bool", None, False)])
    assert "build another plan" in caught.value.hint and "args_shape" not in caught.value.hint


def test_a_function_of_torch_itself_takes_what_it_is_given():
    plan = Plan(torch.add).build(torch.ones(3), torch.ones(3), alpha=2)
    assert torch.equal(plan.compiled()(torch.ones(4), torch.ones(4), alpha=3), torch.full((4,), 4.0))
