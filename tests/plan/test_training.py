"""Gradients inside plans, and whole training steps: equal to eager, with the state in and out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

import fedq as fq
from fedq.errors import CannotRecord, SpecMismatch, UsageError
from fedq.plan import replay
from fedq.plan.graph import Type, flatten
from fedq.plan.plan import func2plan
from fedq.plan.training import training_plan
from fedq.plan.verify import verify
from tests import workers
from tests.marks import rows
from tests.rig import Rig

ROWS, CLASSES = 6, 4


class Last(nn.Module):
    """A recurrent layer, and a linear one over its last step."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.out(self.layer(x)[0][:, -1])


class Mean(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(self.layer(x).mean(1))


def transformer(**more):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **more)
    return Mean(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))


FLAT, STEPS, IMAGE = (ROWS, 8), (ROWS, 3, 8), (ROWS, 1, 8, 8)
MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, CLASSES)), FLAT),
    "cnn": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                                  nn.Linear(36, CLASSES)), IMAGE),
    "layer norm": (lambda: nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, CLASSES)), FLAT),
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                                         nn.Linear(144, CLASSES)), IMAGE),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.AdaptiveAvgPool2d(2),
                                         nn.Flatten(), nn.Linear(16, CLASSES)), IMAGE),
    "embedding": (lambda: nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(40, CLASSES)), None),
    "lstm": (lambda: Last(nn.LSTM(8, 16, batch_first=True)), STEPS),
    "gru": (lambda: Last(nn.GRU(8, 16, batch_first=True)), STEPS),
    "transformer": (lambda: transformer(dropout=0.0), STEPS),
}  # fmt: skip
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, 0.5),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
}


def batch(shape, rows, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 10, (rows, 5), generator=g) if shape is None else torch.randn(rows, *shape[1:], generator=g)
    return x, torch.randint(0, CLASSES, (rows,), generator=g)


def made(name="mlp", optimizer="adam"):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make()
    return model, OPTIMIZERS[optimizer](model.parameters()), shape


def eager_step(model, optimizer, loss, x, y):
    optimizer.zero_grad()
    value = loss(model(x), y)
    value.backward()
    optimizer.step()
    return value.detach()


def close(a, b, exact):
    return torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A real daemon with a worker process, for all rows of this file."""
    x, y = batch(FLAT, 64)
    with Rig(tmp_path_factory.mktemp("served"), data={"x": x, "y": y}) as rig:
        rig.start()
        yield rig.device


def check_served(device, plan, shape, *, exact=True):
    """A fold on a real worker goes on as eager training does, from what the plan's model and optimizer have now."""
    x, y = batch(shape, 20, seed=7)
    carry, metrics = plan.send(device).fold(plan.carry(), [x, y], batch_size=8)
    batches = zip(x.split(8), y.split(8), strict=True)
    losses = [eager_step(plan.model, plan.optimizer, F.cross_entropy, *b) for b in batches]
    assert close(metrics["loss"].get(timeout_s=60), torch.stack(losses), exact)
    after = fq.gather(flatten(carry), timeout_s=60)
    assert all(close(a, b, exact) for a, b in zip(after, flatten(plan.carry()), strict=True))


def check(model, optimizer, shape, loss=F.cross_entropy, *, exact=True, rows=(4, 6, 3)):
    plan = training_plan(model, loss, optimizer, *batch(shape, ROWS))
    verify(plan.graph)
    step, carry = plan.compiled(), plan.carry()
    for i, n in enumerate(rows):
        x, y = batch(shape, n, seed=i)
        carry, metrics = step(carry, x, y)
        assert close(metrics["loss"], eager_step(model, optimizer, loss, x, y), exact)
    now = plan.carry()
    assert all(close(a, b, exact) for a, b in zip(flatten(carry), flatten(now), strict=True))
    return plan, carry


@pytest.mark.parametrize("name", rows(MODELS, ("mlp", "cnn", "batch norm", "transformer")))
def test_a_step_of_each_model_is_eagers_at_other_batch_sizes_and_on_a_real_worker(served, name):
    model, optimizer, shape = made(name)
    plan, carry = check(model, optimizer, shape, exact=name not in ("lstm", "gru"))
    check_served(served, plan, shape, exact=name in ("mlp", "embedding"))
    if name in BATCHES_OF_ONE:
        assert len(plan.graph.variants) == BATCHES_OF_ONE[name]
        x, y = batch(shape, 1)
        carry, _ = plan.compiled()(plan.carry(), x, y)
        eager_step(model, optimizer, F.cross_entropy, x, y)
        now = plan.carry()["params"]
        assert all(torch.allclose(now[name], value, atol=1e-6) for name, value in carry["params"].items())


BATCHES_OF_ONE = {"mlp": 0, "cnn": 0, "embedding": 0, "transformer": 1, "lstm": 1, "batch norm": 0}
"""Models that also take one row, and the graphs of its own that this needs."""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_of_each_optimizer_is_eagers_from_the_first_on_and_on_a_real_worker(served, name):
    model, optimizer, shape = made("mlp", name)
    plan, _ = check(model, optimizer, shape)
    check_served(served, plan, shape)


CHOOSING = {
    "asgd": lambda p: torch.optim.ASGD(p, 0.1, t0=2, weight_decay=0.1),
    "asgd, never averaged": lambda p: torch.optim.ASGD(p, 0.1, maximize=True),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "radam, decoupled": lambda p: torch.optim.RAdam(p, 0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "radam, never rectified": lambda p: torch.optim.RAdam(p, 0.01, betas=(0.5, 0.6), weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.1, weight_decay=0.1),
    "adafactor, clipped": lambda p: torch.optim.Adafactor(p, 0.5, d=1.5, eps=(1e-8, 0.5), maximize=True),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
}
"""Those that go another way after some steps, or by what the parameters are; or start with other than zeros."""


@pytest.mark.parametrize("name", rows(CHOOSING, ("asgd", "radam", "adafactor")))
def test_an_optimizer_that_chooses_by_its_own_numbers_takes_eagers_steps_in_a_worker_that_just_started(name):
    model, _, shape = made("mlp")
    optimizer = CHOOSING[name](model.parameters())
    plan = training_plan(model, F.cross_entropy, optimizer, *batch(shape, ROWS))
    file, carry = plan.file(), plan.carry()
    with workers.fresh() as worker:
        for i in range(9):
            x, y = batch(shape, 3 + i, seed=i)
            carry, _ = workers.replayed(file, carry, x, y, worker=worker)
            eager_step(model, optimizer, F.cross_entropy, x, y)
    assert all(torch.equal(a, b) for a, b in zip(flatten(carry), flatten(plan.carry()), strict=True))
    plan.load_carry(carry)
    assert all(torch.equal(a, b) for a, b in zip(flatten(carry), flatten(plan.carry()), strict=True))


def test_a_batch_norm_that_averages_all_batches_is_trained_as_in_eager_in_a_worker_that_just_started():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, momentum=None), nn.Linear(16, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plan = training_plan(model, F.cross_entropy, optimizer, *batch(FLAT, ROWS))
    file, carry = plan.file(), plan.carry()
    with workers.fresh() as worker:
        for i in range(4):
            x, y = batch(FLAT, 3 + i, seed=i)
            carry, _ = workers.replayed(file, carry, x, y, worker=worker)
            eager_step(model, optimizer, F.cross_entropy, x, y)
    assert all(torch.equal(a, b) for a, b in zip(flatten(carry), flatten(plan.carry()), strict=True))


def test_a_regression_is_learned_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plan = training_plan(model, F.mse_loss, optimizer, torch.randn(6, 8), torch.randn(6, CLASSES))
    x, y = torch.randn(9, 8), torch.randn(9, CLASSES)
    carry, metrics = plan.compiled()(plan.carry(), x, y)
    assert torch.equal(metrics["loss"], eager_step(model, optimizer, F.mse_loss, x, y))
    assert torch.equal(carry["params"]["0.weight"], model[0].weight)


def test_a_norm_over_rows_needs_two_of_them_and_says_so_at_build():
    model = nn.Sequential(nn.Linear(8, CLASSES), nn.BatchNorm1d(CLASSES))
    plan = training_plan(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.1), *batch(FLAT, ROWS))
    assert "n=1" in plan.about.refused and "n >= 2" in str(plan)
    with pytest.raises(SpecMismatch, match="n >= 2 expected"):
        plan._replay([*flatten(plan.carry()), *batch(FLAT, 1)])


def test_what_the_step_changes_comes_out_as_it_went_in_and_the_model_stays():
    model, optimizer, shape = made("batch norm")
    plan = training_plan(model, F.cross_entropy, optimizer, *batch(shape, ROWS))
    before = copy.deepcopy((model.state_dict(), plan.carry()))
    carry = plan.carry()
    (after, metrics) = plan.compiled()(carry, *batch(shape, 5))
    assert [*after] == [*carry] == ["params", "buffers", "optimizer"]
    assert [*after["params"]] == [n for n, _ in model.named_parameters()] and metrics.keys() == {"loss"}
    assert after["buffers"]["1.num_batches_tracked"] == 1 and after["optimizer"]["0.weight"]["step"] == 1
    for given, kept in zip(
        flatten([model.state_dict(), plan.carry(), carry]), flatten([*before, before[1]]), strict=True
    ):
        assert torch.equal(given, kept)
    here, _ = plan(carry, *batch(shape, 5))
    assert all(torch.equal(a, b) for a, b in zip(flatten(here), flatten(after), strict=True))


def test_a_trained_carry_goes_back_and_eager_training_goes_on():
    plan, carry = check(*made("batch norm"))
    other, _, shape = made("batch norm")
    optimizer = torch.optim.Adam(other.parameters(), 0.01, weight_decay=0.1)
    again = training_plan(other, F.cross_entropy, optimizer, *batch(shape, ROWS))
    again.load_carry(carry)
    x, y = batch(shape, 8, seed=9)
    for model, optim in ((plan.model, plan.optimizer), (other, optimizer)):
        eager_step(model, optim, F.cross_entropy, x, y)
    assert all(torch.equal(a, b) for a, b in zip(plan.model.parameters(), other.parameters(), strict=True))
    assert again.graph.id == plan.graph.id


def test_frozen_parameters_and_still_buffers_are_state():
    model, _, shape = made("batch norm")
    model[1].eval()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[4].parameters(), 0.1)
    plan, _ = check(model, optimizer, shape)
    assert [*plan.carry()["params"]] == ["4.weight", "4.bias"] and plan.carry()["buffers"] == {}
    assert {"0.weight", "1.weight", "1.running_mean"} <= {name for name, _ in plan.graph.state}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_frozen_parameter_that_the_optimizer_has_is_not_trained(served, optimizer):
    model, _, shape = made("mlp")
    model[0].weight.requires_grad_(False)
    plan, _ = check(model, OPTIMIZERS[optimizer](model.parameters()), shape)
    assert "0.weight" not in plan.carry()["params"] and "0.weight" in dict(plan.graph.state)
    check_served(served, plan, shape)


def test_an_optimizer_whose_parameters_are_all_frozen_is_refused():
    model, optimizer, shape = made("mlp")
    model.requires_grad_(False)
    with pytest.raises(UsageError, match="trains nothing") as caught:
        training_plan(model, F.cross_entropy, optimizer, *batch(shape, ROWS))
    assert "requires_grad" in caught.value.hint


def test_groups_of_parameters_keep_their_own_numbers():
    model, _, shape = made()
    groups = [{"params": model[2].parameters(), "lr": 0.5}, {"params": model[0].parameters(), "weight_decay": 0.1}]
    check(model, torch.optim.AdamW(groups, lr=0.01), shape)


def test_a_scheduler_and_tensors_of_numbers_do_no_harm():
    model, _, shape = made()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01), foreach=False)
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    training_plan(model, F.cross_entropy, optimizer, *batch(shape, ROWS))


def test_an_optimizer_that_was_used_goes_on_from_its_state():
    model, _, shape = made()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, dampening=0.5)
    with pytest.raises(CannotRecord, match="first step of SGD") as caught:
        check(model, optimizer, shape)
    assert "one step" in caught.value.hint
    eager_step(model, optimizer, F.cross_entropy, *batch(shape, ROWS))
    check(model, optimizer, shape, exact=False)


def test_a_start_that_depends_on_a_given_number_is_refused_and_the_cure_works():
    model, _, shape = made()
    optimizer = torch.optim.ASGD(model.parameters(), 0.1)
    with pytest.raises(CannotRecord, match="first step of ASGD") as caught:
        training_plan(model, F.cross_entropy, optimizer, *batch(shape, ROWS), given={"lr": None})
    assert "one step" in caught.value.hint
    eager_step(model, optimizer, F.cross_entropy, *batch(shape, ROWS))
    plan = training_plan(model, F.cross_entropy, optimizer, *batch(shape, ROWS), given={"lr": None})
    optimizer.param_groups[0]["lr"] = 0.03
    given = {"lr": torch.tensor(plan.given()["lr"], dtype=torch.float64)}
    carry, _ = workers.replayed(plan.file(), plan.carry(), *batch(shape, ROWS), given=given)
    eager_step(model, optimizer, F.cross_entropy, *batch(shape, ROWS))
    assert all(torch.equal(carry["params"][name], p) for name, p in model.named_parameters())


def test_an_optimizer_that_calls_the_model_itself_is_refused():
    model, _, shape = made()
    with pytest.raises(CannotRecord, match="LBFGS"):
        training_plan(model, F.cross_entropy, torch.optim.LBFGS(model.parameters()), *batch(shape, ROWS))


def test_further_metrics_and_losses_of_more_than_the_target_are_held():
    model, optimizer, shape = made()
    x, y = batch(shape, ROWS)

    def loss(out, target, weight):
        each = F.cross_entropy(out, target, reduction="none") * weight
        return each.mean(), {"accuracy": (out.argmax(-1) == target).float().mean()}

    plan = training_plan(model, loss, optimizer, x, y, torch.ones(ROWS), inputs=1)
    _, metrics = plan.compiled()(plan.carry(), x, y, torch.ones(ROWS))
    assert metrics.keys() == {"loss", "accuracy"} and 0 <= metrics["accuracy"] <= 1
    with pytest.raises(UsageError, match="scalar"):
        training_plan(model, lambda out, y: out, optimizer, x, y)
    with pytest.raises(UsageError, match="does not have"):
        training_plan(model, loss, torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1), x, y)


def test_tied_weights_are_trained_as_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    plan, carry = check(model, torch.optim.SGD(model.parameters(), 0.1), FLAT)
    assert [*carry["params"]] == ["0.weight", "0.bias", "2.bias"] and plan.graph.state == ()


def test_a_plan_names_no_profiler_and_nothing_uninitialised():
    model, optimizer, shape = made()
    ops = {a.op for a in training_plan(model, F.cross_entropy, optimizer, *batch(shape, ROWS)).actions}
    assert not {op for op in ops if "profiler" in op or "record" in op or "empty" in op or "foreach" in op}


# -- on devices


@pytest.fixture(params=["in this process", "served"])
def worker(request, tmp_path):
    if request.param == "served":
        yield request.getfixturevalue("served")
        return
    x, y = batch(FLAT, 64)
    made = fq.VirtualWorker("device_1", {"x": x, "y": y}, root=tmp_path)
    yield made
    made.client.close()


def test_one_step_at_a_device_is_eagers(worker):
    model, optimizer, shape = made()
    x, y = batch(FLAT, 64)
    plan = training_plan(model, F.cross_entropy, optimizer, *batch(shape, ROWS))
    carry, metrics = plan.send(worker)(plan.carry(), worker.find("x"), worker.find("y"))
    assert torch.equal(metrics["loss"].get(timeout_s=60), eager_step(model, optimizer, F.cross_entropy, x, y))
    assert torch.equal(carry["params"]["0.weight"].get(timeout_s=60), model[0].weight)


def test_folding_it_over_the_data_is_eagers_loop(worker):
    model, optimizer, shape = made()
    x, y = batch(FLAT, 64)
    plan = training_plan(model, F.cross_entropy, optimizer, *batch(shape, ROWS))
    data = [worker.find("x"), worker.find("y")]
    carry, metrics = plan.send(worker).fold(plan.carry(), data, batch_size=10, epochs=2)
    losses = [
        eager_step(model, optimizer, F.cross_entropy, *b)
        for _ in range(2)
        for b in zip(x.split(10), y.split(10), strict=True)
    ]
    assert torch.equal(metrics["loss"].get(timeout_s=60), torch.stack(losses))
    assert torch.equal(carry["params"]["0.weight"].get(timeout_s=60), model[0].weight)


def test_dropout_in_training_is_told_by_the_seed():
    torch.manual_seed(0)
    model = transformer(dropout=0.2)
    plan = training_plan(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.1), *batch(STEPS, ROWS))
    compiled = replay.compile(verify(plan.graph))
    given = [*flatten(plan.carry()), *batch(STEPS, 5)]
    runs = [replay.run(compiled, given, plan.state_tensors(), seed=s) for s in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs[:2], strict=True))
    assert not torch.equal(runs[0][-1], runs[2][-1])
    torch.manual_seed(1)
    assert torch.allclose(plan(plan.carry(), *batch(STEPS, 5))[1]["loss"], runs[0][-1])


# -- gradients that a function takes itself


def squares(x):
    return (x.sin() ** 2).sum(1)


def wanting(x):
    return x.detach().requires_grad_()


def by_backward(x):
    x = wanting(x)
    squares(x).sum().backward()
    return x.grad


def twice(x):
    x = wanting(x)
    (first,) = torch.autograd.grad(squares(x).sum(), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), x)[0]


def clipped(x):
    x = wanting(x)
    squares(x).sum().backward()
    torch.nn.utils.clip_grad_norm_([x], 0.5)
    return x.grad


def hooked(x):
    x = wanting(x)
    y = x * 2
    y.register_hook(lambda g: g * 3)
    return torch.autograd.grad(squares(y).sum(), x)[0]


def checkpointed(x):
    x = wanting(x)
    out = torch.utils.checkpoint.checkpoint(squares, x, use_reentrant=False)
    return torch.autograd.grad(out.sum(), x)[0]


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * g * ctx.saved_tensors[0] ** 2


GRADIENTS = {
    "backward": by_backward,
    "autograd.grad": lambda x: torch.autograd.grad(squares(y := wanting(x)).sum(), y)[0],
    "func.grad": lambda x: grad(lambda y: squares(y).sum())(x),
    "vmap": vmap(lambda row: (row * row).sum()),
    "per example": vmap(grad(lambda row: (row.sin() ** 2).sum())),
    "jacrev": jacrev(squares),
    "twice": twice,
    "clipped": clipped,
    "hooked": hooked,
    "checkpointed": checkpointed,
    "own function": lambda x: torch.autograd.grad(Cube.apply(y := wanting(x)).sum(), y)[0],
    "no_grad": torch.no_grad()(lambda x: x * 2),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_inside_a_function_is_eagers_at_other_sizes(name):
    function = GRADIENTS[name]
    plan = func2plan([(-1, 3)])(lambda x: function(x))
    verify(plan.graph)
    for count in (5, 2):
        x = torch.randn(count, 3)
        assert torch.allclose(plan.compiled()(x), function(x), atol=1e-6)


def per_example(model, loss):
    names = [name for name, _ in model.named_parameters()]

    def one(params, x, y):
        return loss(functional_call(model, params, (x[None],)), y[None])

    def all_(*given):
        *params, x, y = given
        return list(vmap(grad(one), in_dims=(None, 0, 0))(dict(zip(names, params, strict=True)), x, y).values())

    return all_


@pytest.mark.parametrize("name", ["mlp", "cnn", "layer norm", "embedding"])
def test_gradients_per_example_are_held_at_the_batch_size_they_are_built_with(name):
    model, _, shape = made(name)
    function = per_example(model, F.cross_entropy)
    given = [*(p.detach() for p in model.parameters()), *batch(shape, ROWS)]
    plan = func2plan()(function).build(*given)
    verify(plan.graph)
    expected = function(*given)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plan.compiled()(*given), expected, strict=True))
    with pytest.raises(SpecMismatch):
        plan._replay([*given[:-2], *batch(shape, 9)])


def test_a_size_that_vmap_fixes_is_refused_with_what_to_write():
    model, _, _ = made("mlp")
    function = per_example(model, F.cross_entropy)
    types = [Type("f32", tuple(p.shape)) for p in model.parameters()]
    with pytest.raises(CannotRecord, match="fixed to") as caught:
        func2plan()(function).build(*types, Type("f32", (-1, 8)), Type("i64", (-1,)))
    assert "vmap" in caught.value.hint and "autograd.grad" in caught.value.hint


def test_autocast_is_recorded_as_the_casts_it_makes():
    def mixed(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x.T

    plan = func2plan([(-1, 3)])(mixed)
    x = torch.randn(4, 3)
    assert torch.equal(plan.compiled()(x), mixed(x)) and mixed(x).dtype == torch.bfloat16


# -- training written by hand


class ByHand(fq.Plan):
    """Writes to its own parameters."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x, y):
        loss = F.cross_entropy(self.fc(x), y)
        grads = torch.autograd.grad(loss, list(self.parameters()))
        with torch.no_grad():
            for p, g in zip(self.parameters(), grads, strict=True):
                p -= 0.1 * g
        return loss.detach()


class ByOptimizer(ByHand):
    def forward(self, x, y):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        loss = F.cross_entropy(self.fc(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()


@pytest.mark.parametrize("kind", [ByHand, ByOptimizer])
def test_a_module_that_trains_itself_gives_its_new_parameters(kind):
    torch.manual_seed(0)
    plan = kind()
    eager = copy.deepcopy(plan.fc)
    x, y = batch(FLAT, ROWS)
    plan.build(x, y)
    assert plan.about.updates == ("fc.weight", "fc.bias")
    loss, new = plan.compiled()(*batch(FLAT, 9))
    _, here = plan(*batch(FLAT, 9))
    assert torch.equal(plan.fc.weight, eager.weight)
    assert torch.equal(
        loss, eager_step(eager, torch.optim.SGD(eager.parameters(), 0.1), F.cross_entropy, *batch(FLAT, 9))
    )
    assert torch.equal(new["fc.weight"], eager.weight) and torch.equal(here["fc.weight"], eager.weight)


def steps_by_hand(w, x, y):
    w = wanting(w.clone())
    optimizer = torch.optim.SGD([w], 0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(x @ w, y).backward()
        optimizer.step()
    return w.detach()


def test_an_optimizer_inside_a_function_is_recorded():
    w = torch.randn(8, CLASSES)
    plan = func2plan()(steps_by_hand).build(w, *batch(FLAT, ROWS))
    verify(plan.graph)
    assert torch.equal(plan.compiled()(w, *batch(FLAT, 9)), steps_by_hand(w, *batch(FLAT, 9)))


def test_a_foreach_form_is_refused_with_what_to_write():
    def step(w):
        w = wanting(w)
        optimizer = torch.optim.Adam([w], foreach=True)
        w.sum().backward()
        optimizer.step()
        return w.detach()

    with pytest.raises(CannotRecord, match="foreach") as caught:
        func2plan([(3,)])(step)
    assert "foreach=False" in caught.value.hint
