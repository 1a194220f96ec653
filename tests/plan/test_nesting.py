"""Plans that call plans: inlined, their state beside the outer plan's, under their names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedq.errors import CannotRecord
from fedq.plan.plan import Plan, func2plan
from tests.plan.test_params import again


def scaled(by: float, *, built: bool) -> Plan:
    def scale(x, state):
        return x * state.read()[0]

    return func2plan([(-1,)] if built else None, state=(torch.tensor([by]),))(scale)


@pytest.mark.parametrize("built", [True, False])
def test_a_plan_without_state_is_recorded_inline_whether_it_was_built_or_not(built):
    inner = func2plan([(-1,)] if built else None)(lambda x: x + x)
    outer = func2plan([(-1,)])(lambda x: torch.abs(inner(x)))
    assert [a.op for a in outer.actions] == ["aten.add.Tensor", "aten.abs"]
    assert again(outer)(torch.tensor([-1.0])).tolist() == [2.0]


def test_a_plan_that_is_built_afterwards_is_none_the_worse():
    inner = func2plan()(lambda x: x + x)
    outer = func2plan([(-1,)])(lambda x: inner(x) * 2)
    inner.build(torch.ones(3))
    assert again(outer)(torch.ones(2)).tolist() == [4.0, 4.0]
    assert again(inner)(torch.ones(2)).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("built", [True, False])
def test_state_is_taken_over_under_the_inner_plans_name_and_read_when_sent(built):
    inner = scaled(3.0, built=built)
    outer = func2plan([(-1,)], state=(torch.ones(1),))(lambda x, state: inner(x) + state.read()[0] + inner(x))
    assert [name for name, _ in outer.graph.state] == ["state0", "scale.state0"]
    assert again(outer)(torch.ones(2)).tolist() == [7.0, 7.0]
    inner.load_state({"state0": torch.tensor([5.0])})
    assert again(outer)(torch.ones(2)).tolist() == outer(torch.ones(2)).tolist() == [11.0, 11.0]
    assert list(outer.state) == ["state0", "scale.state0"]


class Net(Plan):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return torch.relu(self.fc(x))


def test_three_levels_with_state_have_names_by_their_path():
    net = Net()
    middle = func2plan(state=(torch.tensor([2.0]),))(lambda x, state: net(x) * state.read()[0])

    def top(x, state):
        return middle(x) + state.read()[0] + net(x)

    plan = func2plan([(-1, 2)], state=(torch.tensor([7.0]),))(top)
    assert [name for name, _ in plan.graph.state] == [
        "state0", "<lambda>.state0", "<lambda>.Net.fc.weight", "<lambda>.Net.fc.bias",
    ]  # fmt: skip
    x = torch.randn(3, 2)
    assert torch.equal(again(plan)(x), plan(x))


def test_a_plan_that_is_a_layer_of_another_is_a_layer():
    class Outer(Plan):
        def __init__(self):
            super().__init__()
            self.net, self.out = Net(), nn.Linear(2, 1)

        def forward(self, x):
            return self.out(self.net(x))

    outer = Outer().build(torch.ones(3, 2))
    assert [name for name, _ in outer.graph.state] == ["net.fc.weight", "net.fc.bias", "out.weight", "out.bias"]
    x = torch.randn(4, 2)
    assert torch.equal(again(outer)(x), outer(x))


def test_two_plans_of_one_name_have_a_number():
    one, two = scaled(2.0, built=False), scaled(5.0, built=False)
    outer = func2plan([(-1,)])(lambda x: one(x) + two(x))
    assert [name for name, _ in outer.graph.state] == ["scale.state0", "scale1.state0"]
    assert again(outer)(torch.ones(1)).tolist() == [7.0]


def test_a_plan_of_a_module_and_one_from_a_file_can_be_called():
    module = func2plan()(nn.Linear(2, 2))
    loaded = again(Plan(nn.Linear(2, 2)).build(torch.ones(3, 2)))
    outer = func2plan([(-1, 2)])(lambda x: loaded(module(x)))
    assert [name for name, _ in outer.graph.state] == ["Linear.weight", "Linear.bias", "Linear1.weight", "Linear1.bias"]
    x = torch.randn(5, 2)
    assert torch.equal(again(outer)(x), outer(x))


def test_what_an_inner_plan_can_not_do_is_refused_with_its_line():
    inner = func2plan()(lambda x: x if x.sum() > 0 else -x)
    with pytest.raises(CannotRecord, match=r"test_nesting\.py:\d+"):
        func2plan([(-1,)])(lambda x: inner(x) + 1)


def test_structures_go_in_and_out_of_inner_plans():
    inner = func2plan()(lambda batch, k=2.0: {"sum": batch["x"] + batch["y"] * k})
    outer = func2plan([(-1,), (-1,)])(lambda x, y: inner({"x": x, "y": y})["sum"])
    assert again(outer)(torch.ones(2), torch.ones(2)).tolist() == [3.0, 3.0]
