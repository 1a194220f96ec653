"""What ``type(x)`` and ``x.__class__`` say while a function is recorded is what they say when it runs.

Each function gives twice its argument where it is answered as eager answers it.
"""

from __future__ import annotations

import abc
import builtins
import functools
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

import fedq as fq
from tests import workers

X = torch.tensor([1.0, -2.0, 3.0])
kind_of = type
BY_TYPE = {torch.Tensor: lambda x: x * 2, nn.Parameter: lambda x: x * 3}
BY_NAME = {"Tensor": 2, "Parameter": 3}
HELD = SimpleNamespace(kind=type, kinds=[type])


@functools.singledispatch
def handled(x):
    return x * 5


@handled.register(torch.Tensor)
def _(x):
    return x * 2


@handled.register(nn.Parameter)
def _(x):
    return x * 3


class Weights(metaclass=abc.ABCMeta):  # noqa: B024
    """A class that parameters are declared to be."""


Weights.register(nn.Parameter)


def is_plain(x):
    return type(x) is torch.Tensor


def matched(x):
    match type(x):
        case torch.Tensor:
            return x * 2
    return x * 3


def matched_by_class(value):
    match value:
        case type():
            return 2
    return 3


def written(x):
    y = x + 1
    y.sub_(1)
    return y * 2 if is_plain(y) and y.__class__ is torch.Tensor else y * 3


def gradient(x):
    y = x.detach().requires_grad_()
    z = y * y if type(y) is torch.Tensor else y
    return torch.autograd.grad(z.sum(), y)[0]


def in_a_default(x, kind=type):
    return x * 2 if kind(x) is torch.Tensor else x * 3


def in_a_closure(kind):
    return lambda x: x * 2 if kind(x) is torch.Tensor else x * 3


def evaluated(x):
    return eval("x * 2 if type(x) is torch.Tensor else x * 3")


ASKED = {
    "is": lambda x: x * 2 if type(x) is torch.Tensor else x * 3,
    "is not": lambda x: x * 3 if type(x) is not torch.Tensor else x * 2,
    "equals": lambda x: x * 2 if type(x) == torch.Tensor else x * 3,  # noqa: E721
    "in a tuple": lambda x: x * 2 if type(x) in (torch.Tensor, nn.Parameter) else x * 3,
    "in a set": lambda x: x * 2 if type(x) in {torch.Tensor} else x * 3,
    "not a parameter": lambda x: x * 2 if type(x) is not nn.Parameter else x * 3,
    "__class__": lambda x: x * 2 if x.__class__ is torch.Tensor else x * 3,
    "getattr": lambda x: x * 2 if getattr(x, "__class__") is torch.Tensor else x * 3,  # noqa: B009
    "its name": lambda x: x * BY_NAME.get(type(x).__name__, 5),
    "the name of __class__": lambda x: x * BY_NAME.get(x.__class__.__name__, 5),
    "as a text": lambda x: x * 2 if f"{type(x)}" == "<class 'torch.Tensor'>" else x * 3,
    "its module": lambda x: x * 2 if type(x).__module__ == "torch" else x * 3,
    "a dict by type": lambda x: BY_TYPE[type(x)](x),
    "singledispatch": lambda x: handled(x),
    "a helper": lambda x: x * 2 if is_plain(x) else x * 3,
    "map": lambda x: x * 2 if list(map(type, [x])) == [torch.Tensor] else x * 3,
    "a comprehension": lambda x: x * 2 if {type(a) for a in (x, x + 1)} == {torch.Tensor} else x * 3,
    "the type of another": lambda x: x * 2 if type(x) is type(x + 1) is type(torch.ones(2)) else x * 3,
    "isinstance of the type": lambda x: x * 2 if isinstance(x + 1, type(x)) else x * 3,
    "what it inherits": lambda x: x * 2 if type(x).__mro__[0] is torch.Tensor else x * 3,
    "a new parameter": lambda x: x * 2 if type(nn.Parameter(x)) is nn.Parameter else x * 3,
    "a result": lambda x: x * 2 if type(x.sum()) is torch.Tensor else x * 3,
    "torch.typename": lambda x: x * 2 if torch.typename(x) == "torch.FloatTensor" else x * 3,
    "match": matched,
    "written to": written,
    "under a gradient": gradient,
    "another name": lambda x: x * 2 if kind_of(x) is torch.Tensor else x * 3,
    "builtins.type": lambda x: x * 2 if builtins.type(x) is torch.Tensor else x * 3,
    "an attribute": lambda x: x * 2 if HELD.kind(x) is torch.Tensor is HELD.kinds[0](x) else x * 3,
    "a default": in_a_default,
    "a closure": in_a_closure(type),
    "eval": evaluated,
    "a declared class": lambda x: x * 3 if isinstance(x, Weights) else x * 2,
    "types of classes": lambda x: x * 2 if type(torch.Tensor) is not type and type(Weights) is abc.ABCMeta else x * 3,
    "the type of type": lambda x: x * 2 if type(int) is type and isinstance(int, type) else x * 3,
    "a pattern": lambda x: x * matched_by_class(int),
    "a class pattern": lambda x: x * matched_by_class(Weights),
    "a new class": lambda x: x * type("Two", (), {"two": 2}).two,
    "other types": lambda x: x * 2 if (type([x]), type(x.shape)) == (list, torch.Size) else x * 3,
}


def test_a_worker_that_just_started_gives_what_eager_gives_however_the_type_was_asked():
    with workers.fresh() as worker:
        for what, function in ASKED.items():
            plan = fq.func2plan()(function).build(X)
            assert torch.equal(function(X), X * 2), what
            assert torch.equal(workers.replayed(plan.file(), X, worker=worker), X * 2), what


class Net(nn.Module):
    """Asks for the types of its parameters and buffers, and writes to a buffer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros(3))
        self.kind = type

    def forward(self, x):
        self.seen.add_(1)
        right = (
            type(self.weight) is nn.Parameter,
            self.fc.weight.__class__ is nn.Parameter,
            self.kind(self.weight).__name__ == "Parameter",
            type(self.weight.float()) is nn.Parameter,
            type(self.seen) is torch.Tensor,
            type(self.weight * 1) is torch.Tensor,
            type(self.weight.data) is torch.Tensor,
            isinstance(self.weight, Weights) and not isinstance(self.seen, Weights),
            all(type(p) is nn.Parameter for p in self.parameters()),
        )
        return self.fc(x) * sum(2**i for i, yes in enumerate(right) if yes) + handled(self.weight)


@pytest.mark.parametrize("frozen", [False, True])
def test_parameters_and_buffers_are_of_the_classes_they_have_in_eager(frozen):
    net = Net().requires_grad_(not frozen)
    plan = fq.func2plan()(net).build(X)
    with workers.fresh() as worker:
        got, new = workers.replayed(plan.file(), X, worker=worker)
    assert torch.equal(got, plan.eager((X,), {}, seed=0)[0])
    assert torch.equal(got, net(X)) and torch.equal(new["seen"], net.seen)


def test_a_module_imported_while_recording_is_answered_as_well(tmp_path, monkeypatch):
    (tmp_path / "lately_imported.py").write_text(
        textwrap.dedent(
            """
            import torch

            def factor(x):
                return 2 if type(x) is torch.Tensor else 3
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)

    def lately(x):
        from lately_imported import factor

        return x * factor(x)

    try:
        plan = fq.func2plan()(lately).build(X)
        assert "type" not in vars(sys.modules["lately_imported"])
    finally:
        sys.modules.pop("lately_imported", None)
    assert torch.equal(workers.replayed(plan.file(), X), X * 2)


def failing(x):
    raise ValueError(f"{kind_of(x)}")


@pytest.mark.parametrize("function", [ASKED["is"], in_a_default, ASKED["an attribute"], failing])
def test_after_a_build_type_is_pythons_again(function):
    bases = FakeTensor.__bases__, FunctionalTensor.__bases__
    try:
        fq.func2plan()(function).build(X)
    except fq.CannotRecord as error:
        assert "<class 'torch.Tensor'>" in str(error)
    assert "type" not in globals() and globals()["builtins"].type is kind_of
    assert all(a is kind_of for a in (*in_a_default.__defaults__, HELD.kind, *HELD.kinds))
    assert (FakeTensor.__bases__, FunctionalTensor.__bases__) == bases


def test_a_plan_called_within_a_plan_asks_as_it_does_alone():
    inner = fq.func2plan()(ASKED["is"])
    plan = fq.func2plan()(lambda x: inner(x) + handled(x)).build(X)
    assert torch.equal(workers.replayed(plan.file(), X), X * 4)
