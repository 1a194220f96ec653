"""What a plan costs: floating-point operations, peak memory, parameters, told without data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedq.errors import SpecMismatch, UsageError
from fedq.plan.plan import Plan
from fedq.plan.preflight import cost


def test_a_linear_layer_costs_two_operations_per_weight_and_row():
    plan = Plan(nn.Linear(10, 20)).build_shapes([(-1, 10)])
    made = cost(plan.graph, {"n": 7})
    assert (made.elements, made.state_bytes, made.flops) == (220, 880, 2 * 7 * 10 * 20)
    assert made.peak_bytes == 880 + 4 * 7 * 10 + 4 * 7 * 20
    assert cost(plan.graph).sizes == {"n": 32}


def test_memory_is_let_go_of_after_its_last_use_and_views_take_none():
    chain = Plan(lambda x: (((x + 1) * 2).t() - 3).abs()).build_shapes([(-1, 4)])
    assert cost(chain.graph, {"n": 100, "m": 4}).peak_bytes == 3 * 1600


def test_a_scan_counts_its_body_once_per_element():
    from torch._higher_order_ops import scan

    def run(x, w):
        return scan(lambda c, row: (torch.tanh(c @ w + row), c.sum()), torch.zeros(3), x)[0]

    graph = Plan(run).build_shapes([(-1, 3), (3, 3)]).graph
    assert cost(graph, {"n": 11}).flops == 11 * 2 * 9
    assert cost(graph, {"n": 22}).flops == 2 * cost(graph, {"n": 11}).flops


def test_attention_and_convolutions_are_counted():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    small = cost(Plan(encoder).build_shapes([(-1, 5, 8)]).graph, {"n": 1 + 1})
    assert small.flops > 2 * 2 * 5 * (8 * 24 + 8 * 8 + 2 * 8 * 16)
    conv = cost(Plan(nn.Conv2d(1, 2, 3)).build_shapes([(-1, 1, 8, 8)]).graph, {"n": 4})
    assert conv.flops == 2 * 4 * 36 * 9 * 2


def test_the_variant_that_fits_is_the_one_that_is_told():
    plan = Plan(lambda x, w: x @ w if x.shape[0] > 1 else x * 2).build_shapes([(-1, 3), (3, 3)])
    sizes = {"m": 3, "k": 3}
    assert cost(plan.graph, {"n": 5, **sizes}).flops == 2 * 5 * 9 and cost(plan.graph, {"n": 1, **sizes}).flops == 0


def test_sizes_that_do_not_fit_are_refused():
    plan = Plan(nn.Linear(2, 2)).build_shapes([(-1, 2)])
    with pytest.raises(UsageError, match="no size 'k'"):
        cost(plan.graph, {"k": 3})
    many = Plan(lambda x: x * 2 if x.shape[0] > 40 else x * 3).build_shapes([(-1,)])
    with pytest.raises(SpecMismatch):
        cost(many.graph, {"n": 41})


def test_no_data_is_made():
    plan = Plan(lambda x: x @ x.t()).build_shapes([(-1, -1)])
    assert cost(plan.graph, {"n": 1 << 20, "m": 1 << 10}).peak_bytes > 1 << 42
