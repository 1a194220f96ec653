"""State: what a plan holds, what it would write there, and putting new values in."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fedq as fq
from fedq.errors import CannotRecord, UsageError
from fedq.plan.codec import decode
from fedq.plan.file import decode_plan, encode_plan
from fedq.plan.plan import from_file, func2plan
from fedq.trust.keys import Key
from tests import workers

NORMS = {
    "batch": (nn.BatchNorm1d(4), (6, 4)),
    "batch of images": (nn.BatchNorm2d(4, momentum=0.3), (6, 4, 5, 5)),
    "plain": (nn.BatchNorm1d(4, affine=False), (6, 4)),
    "a mean over all batches": (nn.BatchNorm1d(4, momentum=None), (6, 4)),
    "instance": (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (6, 4, 5, 5)),
}


class Counting(fq.Plan):
    """Replaces one buffer and writes into another."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(3))
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        self.calls = self.calls + 1
        self.seen[0] = x.sum()
        return self.fc(x) * self.calls


def through_a_file(plan):
    return from_file(decode_plan(decode(b"".join(encode_plan(plan.file(), Key.from_seed(bytes(32)))))))


def same(given, expected):
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], value) for name, value in expected.items())


@pytest.mark.parametrize("name", NORMS)
def test_the_statistics_a_layer_would_update_are_outputs(name):
    module, shape = copy.deepcopy(NORMS[name])
    plan = func2plan()(module).build(torch.randn(shape))
    for _ in range(2):
        x = torch.randn(9, *shape[1:])
        before = copy.deepcopy(module.state_dict())
        out, new = plan.compiled()(x)
        here, new_here = plan(x)
        same(module.state_dict(), before)
        eager = copy.deepcopy(module)
        assert torch.equal(out, here) and torch.allclose(out, eager(x), atol=1e-6)
        same(new, new_here)
        assert {*new} == {n for n, b in eager.named_buffers() if not torch.equal(b, before[n])}
        assert all(torch.allclose(new[n], b) for n, b in eager.named_buffers() if n in new)
        plan.load_state(new)
        same({n: b for n, b in module.named_buffers() if n in new}, new)


def test_buffers_that_a_plan_replaces_or_writes_to_are_outputs():
    plan, x = Counting(), torch.ones(5, 3)
    plan.build(x)
    assert plan.about.updates == ("calls", "seen")
    out, new = plan.compiled()(x)
    assert plan.calls == 0 and new["calls"] == 1 and new["seen"].tolist() == [15.0, 0.0, 0.0]
    assert torch.equal(plan(x)[0], out) and plan.calls == 0
    plan.load_state(new)
    assert plan.calls == 1 and torch.equal(plan(x)[0], 2 * plan.fc(x))


def test_state_given_to_a_function_is_given_back_when_written_to():
    @func2plan([(3,)], state=(torch.zeros(3),))
    def add_up(x, state):
        (total,) = state.read()
        total += x
        return total * 2

    assert add_up(torch.ones(3))[1]["state0"].tolist() == [1.0, 1.0, 1.0]
    assert add_up.compiled()(torch.ones(3))[1]["state0"].tolist() == [1.0, 1.0, 1.0]
    assert add_up.state["state0"].tolist() == [0.0, 0.0, 0.0]


def test_a_module_that_changes_nothing_gives_its_result_alone():
    plan = func2plan([(-1, 4)])(nn.BatchNorm1d(4).eval())
    assert plan.about.updates == () and isinstance(plan(torch.ones(2, 4)), torch.Tensor)


def test_state_that_changes_its_shape_is_refused():
    class Growing(fq.Plan):
        def __init__(self):
            super().__init__()
            self.register_buffer("all", torch.zeros(1))

        def forward(self, x):
            self.all = torch.cat([self.all, x])
            return x

    with pytest.raises(CannotRecord, match="shape or dtype of its state"):
        Growing().build(torch.ones(2))


def test_a_loaded_plan_keeps_what_it_updates_and_takes_new_state():
    plan, x = Counting(), torch.ones(5, 3)
    loaded = through_a_file(plan.build(x))
    assert loaded.about.updates == plan.about.updates
    out, new = loaded(x)
    assert torch.equal(out, plan(x)[0])
    loaded.load_state(new)
    assert loaded(x)[1]["calls"] == 2
    loaded.load_state_dict(plan.state_dict())
    assert loaded(x)[1]["calls"] == 1


def test_weights_go_to_safetensors_and_come_back(tmp_path):
    source, target = (func2plan([(-1, 3)])(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4).eval())) for _ in "ab")
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    target.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert target.id == source.id
    assert [n for n, _ in target.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert sum(p.numel() for p in target.parameters()) == 24


def test_state_of_another_shape_dtype_or_name_is_refused_and_nothing_changed():
    plan = func2plan([(-1, 3)])(nn.Linear(3, 4))
    before = copy.deepcopy(plan.state)
    for wrong in ({"weight": torch.ones(3)}, {"bias": torch.ones(4, dtype=torch.float64)}, {"w": torch.ones(1)}):
        with pytest.raises(UsageError):
            plan.load_state({"bias": torch.zeros(4), **wrong})
    same(plan.state, before)


def test_a_rebuilt_plan_that_can_not_be_recorded_stays_what_it_was():
    plan = func2plan([(3,)])(lambda x: x * 2 if x.dtype == torch.float32 or x.sum() > 0 else x)
    graph = plan.graph
    with pytest.raises(CannotRecord):
        plan.build(torch.ones(3, dtype=torch.float64))
    assert plan.graph is graph


WRITERS = {
    "in place": lambda x: x.add_(1),
    "a view": lambda x: x.view(-1)[:2].fill_(7) + x.sum(),
    "a row": lambda x: x.__setitem__(0, 5.0) or x * 1,
    "out": lambda x: torch.add(x, 1, out=x),
    "detached": lambda x: x.detach().mul_(3) + x,
    "its data": lambda x: x.data.add_(1) + x,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_stored_value_is_never_changed_by_a_replay(name, tmp_path):
    stored = torch.arange(6.0).view(3, 2)
    worker = fq.VirtualWorker("device_1", {"x": stored}, root=tmp_path)
    found = worker.find("x")
    plan = func2plan([(3, 2)])(lambda x: WRITERS[name](x.clone()))
    expected = WRITERS[name](stored.clone())
    for _ in range(2):
        assert torch.equal(plan.send(worker)(found).get(timeout_s=60), expected)
    identity = func2plan([(3, 2)])(lambda x: x * 1)
    assert torch.equal(identity.send(worker)(found).get(timeout_s=60), stored)
    worker.client.close()


def test_trained_state_is_sent_again_to_another_worker(tmp_path):
    net = func2plan([(-1, 3)])(nn.Linear(3, 2))
    x = torch.ones(4, 3)
    workers = [fq.VirtualWorker(f"device_{i}", {"x": x}, root=tmp_path / str(i)) for i in range(2)]
    first = net.send(workers[0])(workers[0].find("x")).get(timeout_s=60)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(x).square().sum().backward()
    optimizer.step()
    second = net.send(workers[1])(workers[1].find("x")).get(timeout_s=60)
    assert not torch.equal(first, second) and torch.allclose(second, net(x).detach())
    for worker in workers:
        worker.client.close()


@pytest.mark.parametrize(
    ("layers", "dtype"),
    [(torch.float32, torch.float64), (torch.float32, torch.float16), (torch.float16, torch.float16)],
)
def test_statistics_of_instances_are_in_the_inputs_dtype_as_eagers_are(layers, dtype):
    layer = nn.InstanceNorm2d(3, track_running_stats=True, affine=layers == dtype).to(layers)
    x = torch.randn(2, 3, 4, 4).to(dtype)
    plan = fq.func2plan()(layer).build(x)
    out, new = plan(x)
    made, there = workers.replayed(plan.file(), x)
    assert torch.equal(made, out)
    assert all(torch.equal(there[name], new[name]) for name in new)
