"""Writes in place: right, on a worker process that just started, or refused; never lost in silence."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fedq as fq
from fedq.errors import CannotRecord, SpecMismatch, UsageError
from fedq.plan.graph import Type
from fedq.plan.plan import func2plan
from fedq.plan.spec import match
from tests.rig import Rig

X = torch.linspace(-2.0, 2.0, 12).view(3, 4)


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    with Rig(tmp_path_factory.mktemp("writes"), data={"x": X}) as rig:
        rig.start()
        yield rig.device


class Module(nn.Module):
    """Parameters, a buffer and a plain tensor; what it does is given."""

    def __init__(self, does):
        super().__init__()
        self.does = (does,)
        self.fc = nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(4))
        self.plain = torch.ones(4)
        nn.init.constant_(self.fc.weight, 3.0)

    def forward(self, x):
        out = self.does[0](self, x)
        return self.fc(x - self.seen) if out is None else out


def clamps_through_data(net, x):
    net.seen = 0.5 * net.seen.data + 0.5 * x.mean(0)
    for p in net.fc.parameters():
        p.data.clamp_(-0.5, 0.5)


def copies_through_data(net, x):
    net.fc.weight.data.copy_(x[:2] * 2)


def copies_without_grad(net, x):
    with torch.no_grad():
        net.fc.bias.copy_(x[0, :2])
        net.seen.mul_(2).add_(x.mean(0))


def replaces(net, x):
    net.seen = x.mean(0)
    net.fc.bias = nn.Parameter(x[0, :2] * 1)


def writes_to_a_row(net, x):
    net.seen[0] = x.sum()
    net.fc.weight.data[0] *= 2


def writes_to_a_plain_tensor(net, x):
    net.plain += x.mean(0)
    return x * net.plain


def replaces_a_plain_tensor(net, x):
    net.plain = 0.9 * net.plain + 0.1 * x.mean(0)
    return x - net.plain


def writes_to_what_it_made(net, x):
    y = x * 2
    y.data.add_(1)
    y.t()[0].zero_()
    F.relu(y, inplace=True)
    torch.mul(y, 3, out=y)
    return y


RIGHT = (
    clamps_through_data, copies_through_data, copies_without_grad, replaces, writes_to_a_row,
    writes_to_a_plain_tensor, replaces_a_plain_tensor, writes_to_what_it_made,
)  # fmt: skip


def state_of(net):
    return {**dict(net.named_parameters()), **dict(net.named_buffers()), "plain": net.plain}


@pytest.mark.parametrize("does", RIGHT)
def test_a_worker_gives_eagers_result_and_eagers_new_state(device, does):
    net = Module(does)
    eager, before = copy.deepcopy(net), copy.deepcopy(net)
    plan = func2plan()(net).build(torch.randn(3, 4))
    found = plan.send(device)(device.find("x"))
    out, new = found if plan.about.updates else (found, {})
    with torch.no_grad():
        expected = eager(X)
    assert torch.allclose(out.get(timeout_s=60), expected, atol=1e-6)
    changed = {n for n, t in state_of(eager).items() if not torch.equal(t, state_of(before)[n])}
    assert changed <= set(new)
    for name, pointer in new.items():
        assert torch.allclose(pointer.get(timeout_s=60), state_of(eager)[name], atol=1e-6)
    assert all(torch.equal(t, state_of(before)[n]) for n, t in state_of(net).items())


def p_data(net, x):
    net.fc.weight.data = x[:2] * 1  # here


def buffer_data(net, x):
    net.seen.data = x.mean(0)  # here


def result_data(net, x):
    y = x + 1
    y.data = x * 2  # here
    return y


def sets_a_parameter(net, x):
    net.fc.weight.data.set_(x[:2] * 1)  # here


def swaps(net, x):
    a, b = x + 1, x + 2
    torch.utils.swap_tensors(a, b)  # here
    return a


def adds(net, x):
    x.add_(1)  # here


def sets_an_item(net, x):
    x[0] = 1  # here
    return x * 1


def sets_by_mask(net, x):
    x[x > 0] = 0  # here


def multiplies_its_transpose(net, x):
    x.t().mul_(2)  # here


def writes_to_its_data(net, x):
    x.data.add_(1)  # here


def writes_to_what_may_be_it(net, x):
    x.contiguous().float().add_(1)  # here


def gives_it_as_out(net, x):
    torch.add(x, 1, out=x)  # here


def turns_it(net, x):
    x.t_()  # here
    return x * 1


def draws_into_it(net, x):
    x.uniform_()  # here


def normalizes_with_it(net, x):
    return F.batch_norm(x, x[0], x[1], training=True)  # here


def renormalizes_it(net, x):
    return F.embedding(torch.tensor([0]), x, max_norm=1.0)  # here


def writes_to_a_buffer_that_is_it(net, x):
    net.seen = x[0]
    net.seen.add_(1)  # here


def steps_on_it(net, x):
    w = x.detach().requires_grad_()
    (w**2).sum().backward()
    torch.optim.SGD([w], 0.1).step()  # here


MEMORY = (p_data, buffer_data, result_data, sets_a_parameter, swaps)
ARGUMENT = (
    adds, sets_an_item, sets_by_mask, multiplies_its_transpose, writes_to_its_data, writes_to_what_may_be_it,
    gives_it_as_out, turns_it, draws_into_it, normalizes_with_it, renormalizes_it, writes_to_a_buffer_that_is_it,
    steps_on_it,
)  # fmt: skip


def marked(function):
    lines = Path(__file__).read_text().splitlines()
    start = function.__code__.co_firstlineno
    return next(n for n in range(start, len(lines) + 1) if lines[n - 1].endswith("# here"))


@pytest.mark.parametrize("does", MEMORY)
def test_another_memory_behind_a_tensor_is_refused_at_the_line(does):
    with pytest.raises(CannotRecord, match="another memory behind a tensor") as caught:
        func2plan()(Module(does)).build(torch.randn(3, 4))
    assert f"test_writes.py:{marked(does)}" in str(caught.value) and "y.copy_" in caught.value.hint


@pytest.mark.parametrize("does", ARGUMENT)
def test_a_write_to_an_argument_is_refused_at_the_line(does):
    with pytest.raises(CannotRecord, match="writes to its argument") as caught:
        func2plan()(Module(does)).build(torch.randn(3, 4))
    assert f"test_writes.py:{marked(does)}" in str(caught.value) and "x = x.clone()" in caught.value.hint


def test_a_write_that_reaches_the_argument_with_some_dtypes_only_leaves_these_out():
    plan = func2plan([(3,)])(lambda x: x.double().add_(1))
    assert all(row[0] != "f64" for row in plan.graph.dtypes)
    x = torch.ones(3)
    assert torch.equal(plan.compiled()(x), torch.full((3,), 2.0, dtype=torch.float64)) and torch.equal(x, torch.ones(3))


def test_a_view_of_an_argument_may_be_turned():
    plan = func2plan([(2, 6)])(lambda x: x.view(3, 4).t_() * 1)
    x = torch.arange(12.0).view(2, 6)
    assert torch.equal(plan.compiled()(x), x.view(3, 4).t())


# -- what a module holds --------------------------------------------------------------------------


class Weighted(fq.Plan):
    """A tensor attribute is state, as in PySyft."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.w = torch.randn(2)
        self.last = torch.zeros(7)

    def forward(self, x):
        self.last = self.fc(x)
        return self.last + self.w


def test_a_tensor_attribute_is_state_and_one_that_is_only_written_is_none(device):
    net = Weighted()
    net.build(torch.randn(3, 4))
    assert list(net.state) == ["fc.weight", "fc.bias", "w"] and net.about.updates == ()
    assert torch.equal(net.last, torch.zeros(7))
    assert torch.allclose(net.send(device)(device.find("x")).get(timeout_s=60), net.fc(X) + net.w, atol=1e-6)
    net.w = torch.zeros(2)
    assert torch.allclose(net.send(device)(device.find("x")).get(timeout_s=60), net.fc(X), atol=1e-6)
    net.load_state({"w": torch.ones(2)})
    assert net.w.tolist() == [1, 1]
    net.w = None
    with pytest.raises(UsageError, match="'w' was a tensor when the plan was built"):
        net.send(device)


class Counting(fq.Plan):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


HELD = {
    "a function with state": lambda: func2plan(state=(X[0],))(lambda x, state: x * state.read()[0]),
    "a class plan": Counting,
    "a built class plan": lambda: Counting().build(X),
    "a plan of a module": lambda: func2plan()(nn.BatchNorm1d(4)),
    "a built plan of a module": lambda: func2plan([(-1, 4)])(nn.BatchNorm1d(4)),
}


@pytest.mark.parametrize("outside", [fq.Plan, nn.Module])
@pytest.mark.parametrize("name", HELD)
def test_a_stateful_plan_may_be_an_attribute(device, name, outside):
    class Outer(outside):
        def __init__(self):
            super().__init__()
            self.held = HELD[name]()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.held(self.fc(x))

    net = Outer()
    plan = (net if outside is fq.Plan else func2plan()(net)).build(torch.randn(3, 4))
    came = plan.send(device)(device.find("x"))
    here = plan(X)
    out, new = came if plan.about.updates else (came, {})
    expected = here[0] if plan.about.updates else here
    assert torch.allclose(out.get(timeout_s=60), expected, atol=1e-5)
    assert all(torch.allclose(p.get(timeout_s=60), here[1][n], atol=1e-6) for n, p in new.items())


def test_an_example_that_requires_a_gradient_says_that_one_is_taken(device):
    def slope(x):
        return torch.autograd.grad((x**3).sum(), x)[0]

    example = torch.randn(3, 4, requires_grad=True)
    plan = func2plan()(slope).build(example)
    assert torch.equal(plan.send(device)(device.find("x")).get(timeout_s=60), slope(X.clone().requires_grad_()))
    assert example.grad is None and torch.equal(func2plan()(lambda x: x * 2).build(example).compiled()(X), X * 2)


def test_bools_are_results(device):
    def looks(x):
        return {"long": x.shape[0] > 2, "literal": True, "float": x.is_floating_point(), "any": (x > 0).any()}

    plan = func2plan([(-1, 4)])(looks)
    came = plan.send(device)(device.find("x"))
    assert {k: p.get(timeout_s=60) for k, p in came.items()} == looks(X)
    for rows in (0, 1, 2, 3, 4):
        made, expected = plan.compiled()(X[:1].expand(rows, 4)), looks(X[:1].expand(rows, 4))
        assert made == expected and type(made["long"]) is bool


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: func2plan()(Counting), "Counting is a class"),
        (lambda: func2plan([(3, 4)])(nn.ReLU), "ReLU is a class"),
        (lambda: Counting.build(X), "called on a class"),
        (lambda: Counting.build_shapes([(3, 4)], [(3, 4)]), "called on a class"),
    ],
)
def test_a_class_is_no_plan_and_the_cure_is_an_instance(build, says):
    with pytest.raises(UsageError, match=says) as caught:
        build()
    assert "(...)" in caught.value.hint or "Net()" in caught.value.hint


def test_integers_are_told_to_be_converted():
    with pytest.raises(CannotRecord, match="takes no integers") as caught:
        func2plan()(lambda x: x.mean()).build(torch.arange(3))
    assert "x.float()" in caught.value.hint
    plan = func2plan()(lambda x: x.mean()).build(torch.ones(3))
    with pytest.raises(SpecMismatch) as mismatch:
        match(plan.graph, [Type("i64", (3,))], about=plan.about)
    assert "x.float()" in mismatch.value.hint and "rebuild" not in mismatch.value.hint
