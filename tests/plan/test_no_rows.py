"""Batches without rows: a plan takes them where its ops do, and says so where they do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fedq as fq
from fedq.errors import SpecMismatch
from fedq.plan import params
from fedq.plan.spec import match
from fedq.plan.tensors import type_of

CASES = {
    "BatchNorm2d": (nn.BatchNorm2d(3), (torch.randn(2, 3, 4, 4),)),
    "RNN": (nn.RNN(8, 4, batch_first=True), (torch.randn(2, 3, 8),)),
    "LSTM": (nn.LSTM(8, 4, batch_first=True), (torch.randn(2, 3, 8),)),
    "GRU": (nn.GRU(8, 4, batch_first=True), (torch.randn(2, 3, 8),)),
    "EmbeddingBag": (nn.EmbeddingBag(10, 3), (torch.tensor([[1, 2, 0], [3, 9, 1]]),)),
    "multi_margin_loss": (F.multi_margin_loss, (torch.randn(3, 5), torch.tensor([0, 1, 3]))),
    "FractionalMaxPool2d": (nn.FractionalMaxPool2d(2, output_size=(2, 2)), (torch.randn(2, 3, 8, 8),)),
}


@pytest.mark.parametrize("name", CASES)
def test_no_rows_are_refused_before_anything_runs_where_the_op_takes_none(name):
    function, args = CASES[name]
    plan = fq.func2plan()(function).build(*args)
    none = [a[:0] for a in args]
    inputs = params.bind(plan.graph, none, {}, about=plan.about)
    with pytest.raises(SpecMismatch, match="expected"):
        match(plan.graph, [type_of(a) for a in inputs], about=plan.about)


def test_no_rows_are_taken_by_a_layer_that_takes_none_in_eager():
    plan = fq.func2plan()(nn.Linear(3, 2)).build(torch.randn(4, 3))
    assert plan.compiled()(torch.randn(0, 3)).shape == (0, 2)
