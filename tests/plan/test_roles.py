"""What is refused before a training plan is recorded, and how a step is called: no raw error of Python or torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedq as fq
from fedq.errors import CannotRecord, FedqError, SpecMismatch, UsageError
from tests.rig import Rig

X, Y = torch.randn(6, 3), torch.arange(6) % 4
MODEL = nn.Sequential(nn.Linear(3, 4))
SGD = torch.optim.SGD(MODEL.parameters(), 0.1)
CE = F.cross_entropy


def with_(metrics):
    return lambda out, y: (CE(out, y), metrics)


ROLES = {
    "given is a text": ((MODEL, CE, SGD, X, Y), {"given": "lr"}, "given= is a str, not a dict"),
    "given is a list": ((MODEL, CE, SGD, X, Y), {"given": ["lr"]}, "given= is a list, not a dict"),
    "given is a number": ((MODEL, CE, SGD, X, Y), {"given": 0.1}, "given= is a float, not a dict"),
    "None among tensors": (
        (MODEL, lambda out, y, *, near: CE(out, y), SGD, X, Y), {"given": {"near": {"w": None}}}, "'near' holds None"
    ),
    "the loss asks for more": (
        (MODEL, lambda out, y, *, mu: CE(out, y) * mu, SGD, X, Y), {}, "the loss asks for 'mu', which is not given"
    ),
    "by position": (
        (MODEL, lambda out, y, mu: CE(out, y) * mu, SGD, X, Y), {}, "the loss asks for 'mu', which is not given"
    ),
    "one of two is given": (
        (MODEL, lambda out, y, *, mu, nu: CE(out, y) * mu * nu, SGD, X, Y), {"given": {"mu": 1.0}}, "asks for 'nu'"
    ),
    "the loss takes less": ((MODEL, lambda out: out.sum(), SGD, X, Y), {}, "the loss takes 1 argument; it gets the"),
    "the correction asks": (
        (MODEL, CE, SGD, X, Y), {"gradient": lambda grads, params, *, ours: grads}, "gradient= asks for 'ours'"
    ),
    "the correction takes less": ((MODEL, CE, SGD, X, Y), {"gradient": lambda grads: grads}, "gradient= takes 1 arg"),
    "no function": ((MODEL, CE, SGD, X, Y), {"gradient": 3}, "gradient= is an int, which cannot be called"),
    "metrics in a list": ((MODEL, with_([1]), SGD, X, Y), {}, "the loss gives a list of metrics, not a dict"),
    "one metric": ((MODEL, with_(0.5), SGD, X, Y), {}, "the loss gives a float of metrics"),
    "a number as metric": ((MODEL, with_({"accuracy": 0.5}), SGD, X, Y), {}, "metric 'accuracy' is a float"),
    "metrics in metrics": ((MODEL, with_({"a": {}}), SGD, X, Y), {}, "metric 'a' is a dict"),
    "a metric without name": ((MODEL, lambda out, y: (CE(out, y), {1: out.sum()}), SGD, X, Y), {}, "named by an int"),
    "three results": ((MODEL, lambda out, y: (CE(out, y), {}, 1), SGD, X, Y), {}, "the loss is no scalar"),
    "a loss of integers": ((MODEL, lambda out, y: out.argmax(), SGD, X, Y), {}, r"the loss is i64\[\], which has no"),
    "a loss of nothing": ((MODEL, lambda out, y: out.detach().sum(), SGD, X, Y), {}, "depends on no parameter"),
    "swapped": ((MODEL, SGD, CE, X, Y), {}, "loss and optimizer are in each other's place"),
    "a loss class": ((MODEL, nn.CrossEntropyLoss, SGD, X, Y), {}, "the loss is a class: CrossEntropyLoss"),
    "an optimizer class": ((MODEL, CE, torch.optim.SGD, X, Y), {}, "the optimizer is the class SGD"),
    "a scheduler": ((MODEL, CE, torch.optim.lr_scheduler.StepLR(SGD, 1), X, Y), {}, "the optimizer is a StepLR"),
    "no optimizer": ((MODEL, CE, None, X, Y), {}, "the optimizer is None"),
    "no model": ((lambda x: x, CE, SGD, X, Y), {}, "the model is the function <lambda>, not an nn.Module"),
    "a model class": ((nn.Linear, CE, SGD, X, Y), {}, "the model is the class Linear"),
    "a plan": ((fq.func2plan()(MODEL), CE, SGD, X, Y), {}, "the model is a plan"),
    "no batch": ((MODEL, CE, SGD), {}, "there is no example of a batch"),
    "one tensor": ((MODEL, CE, SGD, X), {}, "the model asks for 'input', too; it gets no tensors of the batch"),
    "a batch in a tuple": ((MODEL, CE, SGD, (X, Y)), {}, r"batch\[0\] is a tuple, not a tensor"),
    "arrays": ((MODEL, CE, SGD, X.numpy(), Y.numpy()), {}, r"batch\[0\] is a ndarray, not a tensor"),
    "no rows": ((MODEL, CE, SGD, X, torch.tensor(1)), {}, r"batch\[1\] is i64\[\], which has no rows"),
    "all for the model": ((MODEL, CE, SGD, X, Y), {"inputs": 2}, "the model takes 1 argument; it gets 2 tensors"),
    "too many inputs": ((MODEL, CE, SGD, X, Y), {"inputs": 3}, "inputs=3 of a batch of 2 tensors"),
    "inputs as a text": ((MODEL, CE, SGD, X, Y), {"inputs": "1"}, "inputs='1' of a batch"),
}  # fmt: skip


@pytest.mark.parametrize("why", ROLES)
def test_what_is_no_part_of_a_training_plan_is_refused_by_its_name_with_a_cure(why):
    args, named, message = ROLES[why]
    with pytest.raises(UsageError, match=message) as caught:
        fq.training_plan(*args, **named)
    assert caught.value.hint


BCE, ONES = F.binary_cross_entropy_with_logits, torch.ones(6, 4, dtype=torch.int64)
DTYPES = {
    "labels of u8": (CE, X, Y.to(torch.uint8), r"batch\[1\] is u8, where the step takes i64", "batch[1].long()"),
    "labels of i32": (CE, X, Y.int(), r"batch\[1\] is i32, where the loss takes i64", "batch[1].long()"),
    "labels of i16": (CE, X, Y.short(), r"batch\[1\] is i16, where the loss takes i64", "batch[1].long()"),
    "labels of bools": (CE, X, Y > 1, r"batch\[1\] is bool, where the loss takes i64", "batch[1].long()"),
    "labels of floats": (CE, X, Y.float(), r"batch\[1\] is f32, where the loss takes i64", "batch[1].long()"),
    "labels of f64": (F.nll_loss, X, Y.double(), r"batch\[1\] is f64, where the loss takes i64", "batch[1].long()"),
    "rows of f64": (CE, X.double(), Y, r"batch\[0\] is f64, where the model takes f32", "batch[0].float()"),
    "rows of i64": (CE, X.long(), Y, r"batch\[0\] is i64, where the model takes f32", "batch[0].float()"),
    "targets of i64": (BCE, X, ONES, r"batch\[1\] is i64, where the loss takes f32", "batch[1].float()"),
    "rows of another width": (CE, torch.ones(6, 5), Y, r"the model does not take .* batch\[0\] f32\[6,5\]", "model(*"),
    "labels of two dimensions": (CE, X, Y[:, None], r"the loss does not take .* batch\[1\] i64\[6,1\]", "loss(model("),
}


@pytest.mark.parametrize("why", DTYPES)
def test_a_part_of_the_batch_that_does_not_fit_is_named_and_none_of_torchs_text(why):
    loss, x, y, message, hint = DTYPES[why]
    with pytest.raises(CannotRecord, match=message) as caught:
        fq.training_plan(MODEL, loss, SGD, x, y)
    assert hint in caught.value.hint and "Expected" not in str(caught.value) and "Error" not in str(caught.value)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.calls, self.seen = nn.Linear(3, 4), nn.BatchNorm1d(4), 0, []

    def forward(self, x):
        self.calls += 1
        self.seen.append(x)
        return self.norm(self.inner(x)) + torch.rand(4)


def test_finding_who_is_to_blame_leaves_model_and_generator_as_they_were():
    model = Counting()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    before = torch.get_rng_state()
    with pytest.raises(CannotRecord, match=r"batch\[1\] is f32, where the loss takes i64"):
        fq.training_plan(model, CE, torch.optim.SGD(model.parameters(), 0.1), X, Y.float())
    assert (model.calls, model.seen) == (0, []) and torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


GIVEN = {
    "a text": ({"lr": "x"}, r"given\.lr: a number expected, 'x' given"),
    "a list": ({"lr": [0.1]}, r"given\.lr: a number expected, a list given"),
    "two numbers": ({"lr": torch.ones(2)}, r"given\.lr: a number expected, f32\[2\] given"),
    "an unknown name": ({"rate": 1.0}, "key 'rate' is not among those it was built with"),
    "no dict": (["lr"], "given: a dict expected, a list given"),
    "no tensor": ({"anchor": {"w": 1.0}}, r"given\.anchor\.w: a tensor expected, 1\.0 given"),
    "a name missing": ({"anchor": {}}, r"given\.anchor: a dict of 'w' expected, a dict given"),
}


def anchored(out, target, *, anchor):
    return CE(out, target) + anchor["w"].sum()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Rig(tmp_path_factory.mktemp("served"), data={"x": X, "y": Y}) as rig:
        rig.start()
        yield rig


@pytest.mark.parametrize("why", GIVEN)
def test_what_is_given_is_refused_alike_here_and_at_a_device(served, why):
    given, message = GIVEN[why]
    plan = fq.training_plan(MODEL, anchored, SGD, X, Y, given={"lr": None, "anchor": {"w": torch.ones(2)}})
    both = [served.device.find("x"), served.device.find("y")]
    calls = [
        lambda: plan(plan.carry(), X, Y, given=given),
        lambda: plan.send(served.device).fold(plan.carry(), both, given=given, batch_size=2),
    ]
    for call in calls:
        with pytest.raises(SpecMismatch, match=message) as caught:
            call()
        assert caught.value.hint


def test_none_is_the_optimizers_own_number_in_each_fold_and_each_group():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[1].parameters(), "lr": 0.25}]
    plan = fq.training_plan(model, CE, torch.optim.SGD(groups, lr=1.0), X, Y, given={"lr": [None, 0.125]})
    assert plan.given() == plan.given(lr=None) == {"lr": [0.5, 0.125]}


CALLS = {
    "no carry": (lambda plan: plan(X, Y), "carry is a Tensor, not a dict"),
    "None": (lambda plan: plan(None, X, Y), "carry is a NoneType, not a dict"),
    "half a carry": (
        lambda plan: plan({"params": {}}, X, Y),
        "carry.buffers is missing",
    ),
    "a list for a tensor": (lambda plan: plan(plan.carry(), X.tolist(), Y), r"batch\[0\] is a list"),
    "no batch": (lambda plan: plan(plan.carry()), "there is no example of a batch"),
}


@pytest.mark.parametrize("why", CALLS)
def test_a_step_that_is_called_otherwise_is_refused_by_path(why):
    call, message = CALLS[why]
    with pytest.raises(FedqError, match=message):
        call(fq.training_plan(MODEL, CE, SGD, X, Y))


def test_a_batch_of_one_row_with_a_norm_over_rows_is_told_which_batch_size_would_do(served):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    plan = fq.training_plan(model, CE, torch.optim.SGD(model.parameters(), 0.1), X, Y)
    there, both = plan.send(served.device), [served.device.find("x"), served.device.find("y")]
    with pytest.raises(SpecMismatch, match=r"batches of 1: batch\[0\]: n >= 2 expected") as caught:
        there.fold(plan.carry(), both, batch_size=1)
    assert caught.value.hint == "take a batch_size of 2 or more; drop_last leaves out a last batch of fewer"
    _, metrics = there.fold(plan.carry(), both, batch_size=2)
    assert metrics["loss"].get(timeout_s=60).shape == (3,)
