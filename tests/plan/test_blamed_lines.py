"""The line of a refusal is one of the user's own: none of Python's library, and none at all is the last resort."""

from __future__ import annotations

import inspect
import random

import numpy as np
import pytest
import torch
from torch import nn

import fedq as fq


def by_numpy(x):
    return x * np.random.rand()


def by_python(x):
    return x * random.choice([1, 2])


class Counting(nn.Module):
    seen = 0

    def forward(self, x):
        self.seen += 1
        return x * self.seen


def number(function, offset):
    return f"test_blamed_lines.py:{inspect.getsourcelines(function)[1] + offset}"


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (by_numpy, number(by_numpy, 1)),
        (by_python, number(by_python, 1)),
        (Counting(), number(Counting.forward, 1)),
    ],
)
def test_a_refusal_names_the_users_line_and_no_line_of_pythons_library(function, line):
    with pytest.raises(fq.CannotRecord) as refused:
        fq.func2plan()(function).build(torch.randn(3))
    assert refused.value.fields["line"] == line


def test_what_torch_says_alone_has_a_cure_too():
    with pytest.raises(fq.CannotRecord) as refused:
        fq.func2plan()(lambda x: torch.testing.assert_close(x, x)).build(torch.randn(3))
    assert refused.value.hint


def branching(x: torch.Tensor) -> torch.Tensor:
    if bool(x.sum() > 0):
        return x * 2
    return -x


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("scripted", "cure"),
    [(nn.Linear(3, 2), "build the module that was given to torch.jit.script"), (branching, "torch.cond")],
)
def test_what_torch_jit_made_says_what_to_build_instead(scripted, cure):
    with pytest.raises(fq.CannotRecord, match=r"torch\.jit") as refused:
        fq.func2plan()(torch.jit.script(scripted)).build(torch.randn(4, 3))
    assert cure in refused.value.hint


def test_a_tensor_sent_to_the_meta_device_is_refused():
    with pytest.raises(fq.CannotRecord, match="another device") as refused:
        fq.func2plan()(lambda x: x.to("meta") * 2).build(torch.randn(3))
    assert refused.value.hint


class _Thing:
    pass


@pytest.mark.parametrize("given", ["text", {1, 2}, _Thing()])
def test_a_refusal_that_no_line_of_the_function_is_to_blame_for_names_the_line_that_builds_it(given):
    with pytest.raises(fq.CannotRecord, match=r"it returns a \w+\n.* test_blamed_lines.py:\d+$") as refused:
        fq.func2plan()(lambda x: given).build(torch.ones(2))
    assert refused.value.hint and refused.value.fields["line"]


def test_a_layer_of_torchs_own_that_reads_values_is_refused_at_the_line_that_builds_it():
    x = torch.ones(3, 2)
    with pytest.raises(fq.CannotRecord, match=r"gaussian_nll_loss reads values.*\n.* test_blamed_lines.py:\d+$"):
        fq.func2plan()(nn.GaussianNLLLoss()).build(x, x, x)
