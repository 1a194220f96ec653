"""Plans as users meet them: building, calling, state, files, sending."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from fedq.errors import NotBuilt, SpecMismatch, UsageError
from fedq.local import VirtualWorker
from fedq.plan.codec import decode
from fedq.plan.file import decode_plan
from fedq.plan.plan import Plan, from_file, func2plan
from fedq.trust.keys import Key


def double_abs(x):
    x = x + x
    return torch.abs(x)


class Net(Plan):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(2, 3)
        self.fc2 = nn.Linear(3, 1)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


@dataclass
class Device:
    """Takes plans, as a client's device does."""

    got: list = field(default_factory=list)

    def send_plan(self, plan):
        self.got.append(plan.file())
        return f"pointer {len(self.got)}"


def test_a_plan_is_built_once_and_lists_what_was_recorded():
    plan = func2plan()(double_abs)
    assert not plan.is_built
    assert plan.build(torch.tensor([1.0, -2.0])) is plan
    assert plan.is_built
    assert [a.op for a in plan.actions] == ["aten.add.Tensor", "aten.abs"]
    assert str(plan).startswith("plan double_abs(%0: f32")


def test_with_args_shape_it_is_built_at_definition():
    @func2plan(args_shape=[(-1, 1)])
    def doubled(x):
        return x * 2

    assert doubled.is_built
    assert str(doubled.graph.inputs[0]) == "f32[n,m]"


def test_building_again_makes_a_new_graph():
    plan = func2plan()(lambda x: x * 2)
    first = plan.build(torch.ones(2)).graph
    second = plan.build(torch.ones(2, 3, dtype=torch.int64)).graph
    assert first.id != second.id and plan.graph is second


@pytest.mark.parametrize("use", [
    lambda plan: plan.send(Device()), lambda plan: plan.file(), lambda plan: plan.actions,
    lambda plan: plan.compiled(), lambda plan: plan.id, lambda plan: plan.save("nowhere", signer=None),
])  # fmt: skip
def test_an_unbuilt_plan_can_not_be_used(use):
    with pytest.raises(NotBuilt, match="'double_abs' is not built"):
        use(func2plan()(double_abs))
    with pytest.raises(RuntimeError):
        use(func2plan()(double_abs))


@pytest.mark.parametrize("shape", [(-2, 1), (1.5,), 3, "3", (True,)])
def test_a_shape_that_is_none_is_refused(shape):
    with pytest.raises(UsageError, match="args_shape"):
        func2plan(args_shape=[shape])(double_abs)


def test_examples_must_fit_the_functions_arguments():
    with pytest.raises(UsageError, match="2 arguments"):
        func2plan()(double_abs).build(torch.ones(2), torch.ones(2))
    with pytest.raises(UsageError, match="'x' is a set"):
        func2plan()(double_abs).build({1.0})


# -- state


def test_state_is_the_last_argument_and_is_read():
    @func2plan(args_shape=[(1,)], state=(torch.tensor([1]),))
    def plus_bias(x, state):
        (bias,) = state.read()
        return x * 2 + bias

    assert [str(t) for _, t in plus_bias.graph.state] == ["i64[1]"]
    assert plus_bias.about.params == ("x",)
    x = torch.tensor([1.0, 2.0])
    assert torch.equal(plus_bias(x), torch.tensor([3.0, 5.0]))
    assert torch.equal(plus_bias.compiled()(x), torch.tensor([3.0, 5.0]))


def test_a_class_with_layers_is_a_module_and_a_plan():
    net = Net()
    assert [name for name, _ in net.named_parameters()] == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    net.build_shapes([(-1, 2)])
    assert net.name == "Net"
    assert [name for name, _ in net.graph.state] == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    x = torch.randn(4, 2)
    assert torch.equal(net.compiled()(x), net(x))


def test_state_is_read_when_sent_and_not_when_built():
    net = Net().build(torch.ones(1, 2))
    device = Device()
    net.send(device)
    with torch.no_grad():
        net.fc1.bias.add_(1)
    net.send(device)
    first, second = device.got
    assert first.graph.id == second.graph.id and first.id != second.id


def test_tied_weights_and_modules_of_others_are_recorded():
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    plan = func2plan([(-1, 2)])(module)
    assert [name for name, _ in plan.graph.state] == ["0.weight"]
    x = torch.randn(3, 2)
    assert torch.equal(plan.compiled()(x), module(x))


# -- calling


def test_a_local_call_runs_the_function_and_autograd_works():
    net = Net().build(torch.ones(1, 2))
    net(torch.ones(3, 2)).sum().backward()
    assert net.fc1.weight.grad is not None
    x = torch.ones(2, requires_grad=True)
    func2plan([(-1,)])(double_abs)(x).sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 2.0))


def test_an_unbuilt_plan_can_be_called_here():
    assert torch.equal(func2plan()(double_abs)(torch.tensor([-1.0])), torch.tensor([2.0]))


def test_compiled_takes_inputs_and_gives_the_outputs_structure():
    plan = func2plan([(-1,), (-1,)])(lambda x, y: {"sum": x + y, "parts": [x * 2, (y, x.shape[0])]})
    out = plan.compiled()(torch.ones(3), torch.zeros(3))
    assert out["parts"][1][1] == 3 and torch.equal(out["sum"], torch.ones(3))


# -- files


def test_a_saved_plan_replays_as_the_one_that_was_saved(tmp_path):
    net = Net().build_shapes([(-1, 2)])
    path = tmp_path / "net.safetensors"
    net.save(path, signer=Key.from_seed(bytes(32)))
    loaded = from_file(decode_plan(decode(path.read_bytes())))
    assert (loaded.id, loaded.name, str(loaded)) == (net.id, "Net", str(net))
    x = torch.randn(5, 2)
    assert torch.equal(loaded(x), net(x))
    with pytest.raises(SpecMismatch, match=r"f32\[n,2\] expected, f32\[2\] given"):
        loaded(torch.ones(2))
    with pytest.raises(UsageError, match="came from a file"):
        loaded.build(x)


def test_saving_again_replaces_the_file(tmp_path):
    path = tmp_path / "plan.safetensors"
    for shape in ((-1,), (-1, 2)):
        func2plan([shape])(double_abs).save(path, signer=Key.from_seed(bytes(32)))
    assert len(decode_plan(decode(path.read_bytes())).graph.inputs[0].shape) == 2


def test_constants_travel_with_the_plan():
    plan = func2plan([(2,)])(lambda x: x + torch.tensor([1.0, 2.0]))
    assert torch.equal(from_file(plan.file())(torch.zeros(2)), torch.tensor([1.0, 2.0]))


# -- sending


def test_one_built_plan_goes_to_any_number_of_devices():
    plan = func2plan([(-1,)])(double_abs)
    one, other = VirtualWorker("one"), VirtualWorker("other")
    assert plan.send(one).id == plan.id
    pointers = plan.send(one, other)
    assert [p.device for p in pointers] == [one, other]
    assert {p.id for p in pointers} == {plan.id}
    one.client.close()
    other.client.close()


def test_replaying_loads_neither_sympy_nor_torchs_compiler(tmp_path):
    path = tmp_path / "plan.safetensors"
    func2plan([(-1,)])(double_abs).save(path, signer=Key.from_seed(bytes(32)))
    code = """
import sys, torch
from fedq.plan.codec import decode
from fedq.plan.file import decode_plan
from fedq.plan.plan import from_file
plan = from_file(decode_plan(decode(open(sys.argv[1], "rb").read())))
assert plan(torch.tensor([-1.0])).tolist() == [2.0]
assert not {"sympy", "torch._dynamo"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)
