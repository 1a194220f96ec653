"""What a training plan is given with each fold, what it notices when it changes, and what goes back into a model."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedq as fq
from fedq.errors import CannotRecord, SpecMismatch, UsageError
from fedq.plan import params
from fedq.plan.graph import flatten
from fedq.plan.tensors import to_raw
from tests.rig import Rig

CLASSES = 4
X, Y = (
    torch.randn(24, 8, generator=torch.Generator().manual_seed(3)),
    torch.arange(24).remainder(CLASSES),
)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, CLASSES))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A real daemon with a worker process, for all rows of this file."""
    with Rig(tmp_path_factory.mktemp("served"), data={"x": X, "y": Y}) as rig:
        rig.start()
        yield rig


def data(device):
    return [device.find("x"), device.find("y")]


def got(structure):
    return {name: p.get(timeout_s=60) for name, p in structure.items()}


def same(trained, model):
    return all(torch.equal(trained[name], p) for name, p in model.named_parameters())


def eager(model, optimizer, loss, x, y):
    optimizer.zero_grad()
    value = loss(model(x), y)
    value.backward()
    optimizer.step()
    return value.detach()


ROWS = {
    "sgd": (lambda p: torch.optim.SGD(p, 0.1), ["lr"]),
    "momentum": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
                 ["lr", "momentum", "weight_decay"]),
    "adam": (lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1), ["lr", "betas", "eps", "weight_decay"]),
    "amsgrad": (lambda p: torch.optim.Adam(p, 0.01, amsgrad=True), ["lr"]),
    "adamw": (lambda p: torch.optim.AdamW(p, 0.01), ["lr", "weight_decay"]),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5), ["lr", "alpha", "momentum", "eps"]),
    "adagrad": (lambda p: torch.optim.Adagrad(p, 0.01, lr_decay=0.1), ["lr", "lr_decay"]),
    "adadelta": (lambda p: torch.optim.Adadelta(p, 0.5), ["lr", "rho"]),
    "adamax": (lambda p: torch.optim.Adamax(p, 0.01), ["lr", "betas"]),
    "radam": (lambda p: torch.optim.RAdam(p, 0.01, weight_decay=0.1), ["lr", "betas", "eps", "weight_decay"]),
    "adafactor": (lambda p: torch.optim.Adafactor(p, 0.1, weight_decay=0.1), ["lr", "weight_decay", "d"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_schedule_of_each_number_is_bit_for_bit_eagers_on_a_real_worker(served, name):
    make, numbers = ROWS[name]
    model, other = mlp(), mlp()
    optimizer, theirs = make(model.parameters()), make(other.parameters())
    plan = fq.training_plan(model, F.cross_entropy, optimizer, X[:6], Y[:6], given=dict.fromkeys(numbers))
    graph, carry = plan.graph.id, plan.carry()
    for factor in (1.0, 0.5, 0.9):
        for group in (*optimizer.param_groups, *theirs.param_groups):
            for key in numbers:
                v = group[key]
                group[key] = tuple(n * factor for n in v) if isinstance(v, tuple) else v * factor
        there = plan.send(served.device)
        carry, metrics = there.fold(carry, data(served.device), batch_size=8)
        losses = [eager(other, theirs, F.cross_entropy, *b) for b in zip(X.split(8), Y.split(8), strict=True)]
        assert torch.equal(metrics["loss"].get(timeout_s=60), torch.stack(losses))
        assert plan.graph.id == there.graph.id == graph
    assert same(got(carry["params"]), other)


def proximal(out, target, *, params, mu, anchor):
    near = sum(((p - anchor[name]) ** 2).sum() for name, p in params.items())
    return F.cross_entropy(out, target) + mu / 2 * near


def controlled(grads, params, *, ours, all_):
    return {name: grad - ours[name] + all_[name] for name, grad in grads.items()}


def structures(seed, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(p.shape, generator=g) for name, p in mlp().named_parameters()}


@pytest.mark.parametrize("given", [{"lr": None}, None], ids=["given", "fixed"])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_a_rate_that_is_a_tensor_is_bit_for_bit_eagers_with_the_number_that_it_holds(served, make, given):
    """Not with the tensor: from that, eager computes Adam's step size in f32."""
    rate = torch.tensor(0.01)
    model, other, third = mlp(), mlp(), mlp()
    theirs, tensors = make(other.parameters(), rate.item()), make(third.parameters(), rate)
    plan = fq.training_plan(model, F.cross_entropy, make(model.parameters(), rate), X[:6], Y[:6], given=given)
    new, _ = plan.send(served.device).fold(plan.carry(), data(served.device), batch_size=6)
    for at in range(0, 24, 6):
        eager(other, theirs, F.cross_entropy, X[at : at + 6], Y[at : at + 6])
        eager(third, tensors, F.cross_entropy, X[at : at + 6], Y[at : at + 6])
    trained = got(new["params"])
    assert same(trained, other)
    assert all(torch.allclose(trained[name], p, rtol=0, atol=2e-7) for name, p in third.named_parameters())


def test_fedprox_and_control_variates_need_no_new_graph(served):
    model, other = mlp(), mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    start = {
        "lr": None,
        "mu": 0.01,
        "anchor": dict(model.named_parameters()),
        "ours": structures(1),
        "all_": structures(2),
    }
    plan = fq.training_plan(model, proximal, optimizer, X[:6], Y[:6], given=start, gradient=controlled)
    now = {"lr": 0.05, "mu": 0.3, "anchor": structures(3), "ours": structures(4, 0.1), "all_": structures(5, 0.1)}
    new, metrics = plan.send(served.device).fold(plan.carry(), data(served.device), given=now, batch_size=8)

    theirs = torch.optim.SGD(other.parameters(), 0.05)
    losses = []
    for x, y in zip(X.split(8), Y.split(8), strict=True):
        theirs.zero_grad()
        loss = proximal(other(x), y, params=dict(other.named_parameters()), mu=0.3, anchor=now["anchor"])
        loss.backward()
        for name, p in other.named_parameters():
            p.grad = p.grad - now["ours"][name] + now["all_"][name]
        theirs.step()
        losses.append(loss.detach())
    assert torch.equal(metrics["loss"].get(timeout_s=60), torch.stack(losses))
    assert same(got(new["params"]), other)


def test_other_numbers_are_the_same_graph_with_nothing_new_to_review():
    graphs = set()
    for lr, mu in ((0.1, 0.01), (0.7, 0.9)):
        model = mlp()
        given = {"lr": None, "mu": mu, "anchor": dict(model.named_parameters())}
        optimizer = torch.optim.SGD(model.parameters(), lr)
        graphs.add(fq.training_plan(model, proximal, optimizer, X[:6], Y[:6], given=given).graph.id)
    assert len(graphs) == 1


def test_each_group_has_its_own_number():
    model, other = mlp(), mlp()
    optimizers = [
        torch.optim.SGD([{"params": m[0].parameters(), "lr": 0.5}, {"params": m[2].parameters()}], lr=0.1)
        for m in (model, other)
    ]
    plan = fq.training_plan(model, F.cross_entropy, optimizers[0], X[:6], Y[:6], given={"lr": None})
    assert plan.given() == {"lr": [0.5, 0.1]}
    carry, _ = plan(plan.carry(), X, Y, given={"lr": [0.25, 0.2]})
    for group, lr in zip(optimizers[1].param_groups, (0.25, 0.2), strict=True):
        group["lr"] = lr
    eager(other, optimizers[1], F.cross_entropy, X, Y)
    assert same(carry["params"], other)
    with pytest.raises(UsageError, match="'lr' has 3 numbers, and the optimizer 2 groups of parameters"):
        fq.training_plan(model, F.cross_entropy, optimizers[0], X[:6], Y[:6], given={"lr": [1.0, 2.0, 3.0]})


def momentum_plan(**given):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return fq.training_plan(model, F.cross_entropy, optimizer, X[:6], Y[:6], given=given or {"momentum": None})


def test_a_number_that_torch_branches_on_takes_only_what_it_was_recorded_for(served):
    plan = momentum_plan()
    assert "given['momentum'] > 0" in str(plan)
    there, device = plan.send(served.device), served.device
    before = set(device.pair.carrier.list("in"))
    for zero in (0.0, 0, -0.5, torch.tensor(0.0), float("nan")):
        with pytest.raises(SpecMismatch, match=r"given\.momentum: a number above 0") as caught:
            there.fold(plan.carry(), data(device), given={"momentum": zero}, batch_size=8)
        assert "build another one" in caught.value.hint
    assert before.issuperset(device.pair.carrier.list("in"))
    with pytest.raises(SpecMismatch, match="momentum"):
        plan(plan.carry(), X, Y, given={"momentum": 0.0})
    hidden = device.send(torch.tensor(0.0, dtype=torch.float64))
    _, metrics = there.fold(plan.carry(), data(device), given={"momentum": hidden}, batch_size=8)
    with pytest.raises(SpecMismatch, match=r"given\.momentum: a number above 0"):
        metrics["loss"].get(timeout_s=60)


def branching(out, target, *, mu):
    loss = F.cross_entropy(out, target)
    return loss * mu if mu > 0 else loss


def test_a_loss_that_branches_on_a_number_is_recorded_for_its_branch():
    model = mlp()
    plan = fq.training_plan(model, branching, torch.optim.SGD(model.parameters(), 0.1), X[:6], Y[:6], given={"mu": 0.5})
    assert "given['mu'] > 0" in str(plan)
    assert torch.equal(plan(plan.carry(), X, Y, given={"mu": 2.0})[1]["loss"], 2 * F.cross_entropy(model(X), Y))
    with pytest.raises(SpecMismatch, match="mu"):
        plan(plan.carry(), X, Y, given={"mu": -1.0})


def asking(out, target, *, mu):
    return F.cross_entropy(out, target) * (mu if mu < 0.5 else 1)


def rounding(out, target, *, mu):
    return F.cross_entropy(out, target) * float(mu)


REFUSED = {
    "a number at 0": (F.cross_entropy, {"weight_decay": None}, CannotRecord, r"given\['weight_decay'\] is 0"),
    "a flag": (F.cross_entropy, {"nesterov": True}, UsageError, "'nesterov' of SGD is no number"),
    "maximize": (F.cross_entropy, {"maximize": None}, UsageError, "'maximize' of SGD is no number"),
    "dampening": (F.cross_entropy, {"dampening": None}, CannotRecord, "the first step of SGD is unlike its others"),
    "nobody takes it": (F.cross_entropy, {"mu": 0.1}, UsageError, "nobody takes 'mu'"),
    "None of a loss": (proximal, {"mu": None, "anchor": {}}, UsageError, "'mu' is no number of SGD"),
    "a text": (F.cross_entropy, {"reduction": "sum"}, UsageError, "given 'reduction' is 'sum'"),
    "params": (proximal, {"params": 1.0}, UsageError, "'params' are not given"),
    "another shape of number": (F.cross_entropy, {"lr": (0.1, 0.2)}, UsageError, "'lr' is 0.1, not"),
    "a value as Python's": (rounding, {"mu": 0.1}, CannotRecord, r"takes the value of given\['mu'\]"),
    "a value in torch": (F.cross_entropy, {"label_smoothing": 0.1}, CannotRecord, "cross_entropy reads values"),
    "a loss that asks for more": (asking, {"mu": 0.1}, CannotRecord, r"asks whether given\['mu'\] is 0.5"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_given_is_refused_by_name(why):
    loss, given, kind, message = REFUSED[why]
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with pytest.raises(kind, match=message) as caught:
        fq.training_plan(model, loss, optimizer, X[:6], Y[:6], given=given)
    assert caught.value.hint or why == "params"
    assert why != "a value in torch" or "'label_smoothing'" in caught.value.hint


def test_a_correction_that_gives_other_gradients_is_refused():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(UsageError, match="other names"):
        fq.training_plan(model, F.cross_entropy, optimizer, X[:6], Y[:6], gradient=lambda grads, params: {})
    with pytest.raises(UsageError, match=r"gives f32\[\] for '0.weight'"):
        fq.training_plan(
            model, F.cross_entropy, optimizer, X[:6], Y[:6],
            gradient=lambda grads, params: {n: g.sum() for n, g in grads.items()},
        )  # fmt: skip


def test_what_is_given_to_a_fold_is_told_by_its_path(served):
    plan = momentum_plan(lr=None, momentum=None)
    there = plan.send(served.device)
    with pytest.raises(SpecMismatch, match="key 'rate' is not among those") as caught:
        there.fold(plan.carry(), data(served.device), given={"rate": 1.0}, batch_size=8)
    assert "'lr', 'momentum'" in caught.value.hint
    with pytest.raises(SpecMismatch, match=r"given\.lr: a number expected, f32\[2\] given"):
        there.fold(plan.carry(), data(served.device), given={"lr": torch.ones(2)}, batch_size=8)


def test_a_pointer_that_does_not_know_the_plan_asks_for_all_that_is_given(served):
    plan = momentum_plan(lr=None, momentum=None)
    plan.send(served.device)
    there = served.device.plan(plan.id)
    with pytest.raises(SpecMismatch, match="the plan is given 'lr', 'momentum' with each call") as caught:
        there.fold(plan.carry(), data(served.device), batch_size=8)
    assert "given=" in caught.value.hint
    with pytest.raises(SpecMismatch, match="key 'momentum' is missing"):
        there.fold(plan.carry(), data(served.device), given={"lr": 0.1}, batch_size=8)
    _, metrics = there.fold(plan.carry(), data(served.device), given={"lr": 0.1, "momentum": 0.5}, batch_size=8)
    assert metrics["loss"].get(timeout_s=60).shape == (3,)


def test_a_command_line_names_what_is_given_by_either_path():
    plan = momentum_plan(lr=None, momentum=None)
    flat = [*flatten(plan.carry()), X, Y]
    for named in ({"given.lr": 0.1, "given.momentum": 0.5}, {"given['momentum']": 0.5, "given['lr']": 0.1}):
        assert params.bind_flat(plan.graph, flat, named, about=plan.about)[-2:] == [0.1, 0.5]


# -- what changed


def plain_plan(**given):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return fq.training_plan(model, F.cross_entropy, optimizer, X[:6], Y[:6], given=given or None)


def set_lr(plan):
    torch.optim.lr_scheduler.StepLR(plan.optimizer, 1, 0.1)
    plan.optimizer.param_groups[0]["lr"] = 0.01


CHANGES = {
    "a scheduler": (set_lr, r"lr is 0.01 now, and the plan was recorded with 0.1"),
    "a flag": (lambda plan: plan.optimizer.param_groups[0].update(maximize=True), "maximize is True now"),
    "a parameter's hook": (lambda plan: plan.model[0].weight.register_hook(lambda g: g * 2),
                           "hooks of parameter '0.weight'"),
    "a module's hook": (lambda plan: plan.model[1].register_forward_hook(lambda *a: None), "hooks of module '1'"),
    "the optimizer's hook": (lambda plan: plan.optimizer.register_step_post_hook(lambda *a: None),
                             "hooks of the optimizer"),
    "another group": (lambda plan: plan.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]}),
                      "trains other parameters"),
    "a parameter that is frozen": (lambda plan: plan.model[0].weight.requires_grad_(False),
                                   "parameter '0.weight' is frozen now, and was trained"),
    "another layer": (lambda plan: plan.model.__setitem__(1, nn.Sigmoid()), "module '1' is another one"),
    "another parameter": (lambda plan: plan.model.load_state_dict(plan.model.state_dict(), assign=True),
                          "parameter '0.weight' is another one"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_since_the_plan_was_built_is_noticed_and_never_ignored(served, what):
    change, message = CHANGES[what]
    plan = plain_plan()
    carry, there = plan.carry(), plan.send(served.device)
    change(plan)
    for use in (
        plan.carry, plan.file, plan.compiled,
        lambda: plan(carry, X, Y),
        lambda: plan.send(served.device),
        lambda: there(carry, *data(served.device)),
        lambda: there.fold(carry, data(served.device), batch_size=8),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message) as caught:
            use()
        assert "build another plan" in caught.value.hint
    if what == "a scheduler":
        assert "given={'lr': None}" in caught.value.hint


def test_a_scheduler_between_rounds_needs_nothing_more_where_the_rate_is_given(served):
    plan = plain_plan(lr=None)
    there, carry = plan.send(served.device), plan.carry()
    schedule = torch.optim.lr_scheduler.StepLR(plan.optimizer, 1, 0.5)
    other = mlp()
    for lr in (0.1, 0.05, 0.025):
        new, _ = there.fold(carry, data(served.device), batch_size=24)
        plan.load_carry({**carry, "params": got(new["params"])})
        eager(other, torch.optim.SGD(other.parameters(), lr), F.cross_entropy, X, Y)
        schedule.step()
        carry = plan.carry()
    assert same(carry["params"], other)


HOOKS = {
    "a gradient": lambda m: m[0].weight.register_hook(lambda g: g * 0.5),
    "forward": lambda m: m[0].register_forward_hook(lambda module, given, out: out * 2),
    "before forward": lambda m: m[0].register_forward_pre_hook(lambda module, given: (given[0] * 2,)),
    "backward": lambda m: m[2].register_full_backward_hook(lambda module, into, out: tuple(g * 3 for g in into)),
    "before backward": lambda m: m[2].register_full_backward_pre_hook(lambda module, out: (out[0] * 3,)),
}


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_that_was_there_is_applied_as_eager_does(name):
    model, other = mlp(), mlp()
    HOOKS[name](model), HOOKS[name](other)
    plan = fq.training_plan(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.1), X[:6], Y[:6])
    carry, metrics = plan.compiled()(plan.carry(), X, Y)
    assert torch.equal(metrics["loss"], eager(other, torch.optim.SGD(other.parameters(), 0.1), F.cross_entropy, X, Y))
    assert same(carry["params"], other)


def test_hooks_that_a_recorded_step_cannot_run_are_refused_at_build():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    handle = optimizer.register_step_pre_hook(lambda *a: None)
    with pytest.raises(CannotRecord, match="around its step") as caught:
        fq.training_plan(model, F.cross_entropy, optimizer, X[:6], Y[:6])
    assert "gradient=" in caught.value.hint
    handle.remove()
    model[0].bias.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(CannotRecord, match=r"'0\.bias'") as caught:
        fq.training_plan(model, F.cross_entropy, optimizer, X[:6], Y[:6])
    assert "gradient=" in caught.value.hint


# -- back into the model


def put(carry, *path, value):
    part = carry
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return carry


LOADS = {
    "a scalar for a matrix": (("params", "0.weight"), torch.tensor(1.0),
                              r"carry.params.0.weight is f32\[\], and f32\[16,8\]"),
    "a float for a counter": (("buffers", "1.num_batches_tracked"), torch.tensor(2.6),
                              "num_batches_tracked is f32.*i64"),
    "another dtype": (("params", "0.bias"), torch.zeros(16, dtype=torch.float64), r"0.bias is f64\[16\]"),
    "a number": (("optimizer", "0.bias", "step"), 3.0, "carry.optimizer.0.bias.step is a float, not a tensor"),
    "an unknown name": (("params", "9.weight"), torch.ones(2), "carry.params.9.weight is not known"),
    "an unknown part": (("more",), {}, "carry.more is not known"),
    "no dict": (("params",), [torch.ones(2)], "carry.params is a list"),
}  # fmt: skip


@cache
def normed_plan():
    """Not trained: whoever uses it leaves it so."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, CLASSES))
    return fq.training_plan(model, F.cross_entropy, torch.optim.Adam(model.parameters()), X[:6], Y[:6])


@pytest.mark.parametrize("why", LOADS)
def test_a_carry_that_does_not_fit_is_refused_whole(why):
    path, value, message = LOADS[why]
    plan = normed_plan()
    trained, _ = plan(plan.carry(), X, Y)
    before = {name: t.clone() for name, t in plan.model.state_dict().items()}
    with pytest.raises(UsageError, match=message):
        plan.load_carry(put(trained, *path, value=value))
    assert all(torch.equal(before[name], t) for name, t in plan.model.state_dict().items())
    assert not plan.optimizer.state


def test_a_carry_with_a_name_missing_or_a_pointer_is_refused_whole(served):
    plan = normed_plan()
    trained, _ = plan(plan.carry(), X, Y)
    del trained["params"]["2.bias"]
    with pytest.raises(UsageError, match=r"2\.bias is missing"):
        plan.load_carry(trained)
    pointers, _ = plan.send(served.device)(plan.carry(), *data(served.device))
    with pytest.raises(UsageError, match="is a PointerTensor, not a tensor") as caught:
        plan.load_carry(pointers)
    assert ".get()" in caught.value.hint


def test_state_is_loaded_from_tensors_only():
    norm = fq.func2plan(args_shape=[(-1, 4)])(nn.BatchNorm1d(4))
    with pytest.raises(UsageError, match="num_batches_tracked"):
        norm.load_state({"num_batches_tracked": 2})
    assert to_raw(norm.state["num_batches_tracked"]).shape == ()
