"""What a function asks about gradients and parameters is answered as eager answers it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fedq as fq
from fedq.errors import CannotRecord
from tests import workers


class Penalized(nn.Module):
    """Weights that are trained, and weights that are not."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 2).requires_grad_(False)

    def forward(self, x):
        trained = [p for p in self.parameters() if p.requires_grad]
        return self.second(self.first(x)).sum() + 0.01 * sum(p.pow(2).sum() for p in trained)


class Listed(Penalized):
    def forward(self, x):
        found = [
            v for part in self.modules() for v in vars(part)["_parameters"].values() if isinstance(v, nn.Parameter)
        ]
        return x * len(found)


class Asking(Penalized):
    def forward(self, x):
        y = self.first(x)
        y = y.clone()
        y[0] = 0.0
        return y if y.requires_grad and y.grad_fn is not None and self.first.weight.is_leaf else -y


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        y = self.norm(x)
        return y * 2 if y.requires_grad and isinstance(self.norm.weight, nn.Parameter) else y * 3


def agrees(plan, *args):
    made = workers.replayed(plan.file(), *args)
    for got, want in zip(*map(torch.utils._pytree.tree_leaves, (made, plan(*args))), strict=True):
        torch.testing.assert_close(got, want.detach())


@pytest.mark.parametrize("kind", [Penalized, Listed, Asking, Normed])
def test_a_module_that_asks_which_weights_are_trained_gets_eagers_answer(kind):
    plan = fq.func2plan()(kind()).build(torch.randn(4, 5))
    agrees(plan, torch.randn(4, 5))
    agrees(plan, torch.randn(7, 5))


ASKS = {
    "requires_grad": lambda x: x * 2 if x.requires_grad else x * 3,
    "of a result": lambda x: x * 2 if (x + 1).requires_grad else x * 3,
    "grad_fn": lambda x: x * 2 if (x + 1).grad_fn is not None else x * 3,
    "is_leaf": lambda x: x * 2 if not (x + 1).is_leaf else x * 3,
    "isinstance": lambda x: x * 2 if isinstance(x, nn.Parameter) else x * 3,
    "type": lambda x: x * 2 if type(x) is nn.Parameter else x * 3,
    "no op of its own": lambda x: x if x.requires_grad else -x,
}


@pytest.mark.parametrize("what", ASKS)
def test_a_function_that_treats_an_example_otherwise_than_a_devices_tensor_is_refused_and_the_cure_works(what):
    plan = fq.func2plan()(ASKS[what])
    with pytest.raises(CannotRecord, match=r"(?s)requires a gradient or is a parameter.*test_flags.py:\d+") as caught:
        plan.build(nn.Parameter(torch.ones(3)))
    assert "x.detach()" in caught.value.hint
    plan.build(nn.Parameter(torch.ones(3)).detach())
    x = torch.tensor([1.0, 2.0, -3.0])
    with workers.fresh() as worker:
        assert torch.equal(workers.replayed(plan.file(), x, worker=worker), ASKS[what](x))


def test_an_example_that_requires_a_gradient_says_so_to_a_function_that_takes_one():
    function = lambda x: torch.autograd.grad((x * x).sum(), x)[0] * (2 if x.requires_grad else 3)  # noqa: E731
    plan = fq.func2plan()(function).build(torch.ones(3, requires_grad=True))
    assert workers.replayed(plan.file(), torch.ones(3)).tolist() == [4, 4, 4]
    plan = fq.func2plan()(lambda x: x * 2).build(nn.Parameter(torch.ones(3)))
    assert workers.replayed(plan.file(), torch.ones(3)).tolist() == [2, 2, 2]


def test_where_nothing_requires_a_gradient_asking_changes_nothing_of_the_plan():
    plan = fq.func2plan()(lambda x: -x if x.requires_grad else torch.nn.functional.linear(x, x)).build(torch.ones(3, 4))
    assert [a.op for a in plan.actions] == ["aten.linear"]


def test_the_check_gives_the_function_parameters_where_it_has_them():
    plan = fq.func2plan()(Listed()).build(torch.randn(4, 5))
    assert plan.eager((torch.ones(2, 5),), {}, seed=0).unique().tolist() == [4]


def test_the_check_gives_the_function_its_example_in_memory_as_a_device_holds_it():
    plan = fq.func2plan()(lambda x: x * 2 if x.is_contiguous() else x * 3)
    assert plan.build(torch.randn(4, 3).T, check=True).is_built
