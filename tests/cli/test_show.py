"""Tensors print as torch prints them; tables line up."""

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedq.cli import show
from fedq.plan.tensors import DTYPES, to_raw


def printed(tensor):
    return show.tensor(to_raw(tensor))


CASES = {
    "whole floats": torch.tensor([2.0, 4.0]),
    "scalar": torch.tensor(2.5),
    "fractions": torch.tensor([[1.5, -2.25], [3.0, 1e-3]]),
    "powers": torch.tensor([1e9, 1e-9]),
    "integers": torch.tensor([[1, -20], [300, 4]]),
    "truth": torch.tensor([True, False]),
    "empty": torch.zeros(0),
    "empty of two sizes": torch.zeros(0, 3, dtype=torch.int64),
    "not finite": torch.tensor([math.nan, math.inf, -math.inf, 1.0]),
    "only nan": torch.tensor([math.nan, 0.0]),
    "complex": torch.tensor([1 + 2j, -3.5 - 1j]),
    "three dimensions": torch.arange(24.0).reshape(2, 3, 4),
    "long": torch.arange(5000),
    "long and wide": torch.randn(200, 64),
    "long in three dimensions": torch.arange(16000.0).reshape(2, 80, 100),
    "a line that wraps": torch.randn(50),
    "zeros that wrap": torch.zeros(90),
    "a dtype that does not fit the line": torch.arange(14, dtype=torch.float64) + 0.5,
}


@pytest.mark.parametrize("tensor", CASES.values(), ids=CASES.keys())
def test_a_tensor_prints_as_torch_prints_it(tensor):
    assert printed(tensor) == str(tensor)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_every_dtype_prints_as_torch_prints_it(dtype):
    tensor = torch.tensor([0.0, 1.0, 1.5, 96.0]).to(dtype)
    assert printed(tensor) == str(tensor)


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=9), elements=st.floats(width=32)))
def test_any_floats_print_as_torch_prints_them(array):
    tensor = torch.from_numpy(array)
    assert printed(tensor) == str(tensor)


def test_columns_line_up_without_trailing_spaces():
    assert show.table([("a", 10), ("bcd", 1)]) == "a    10\nbcd  1"
    assert show.table([]) == ""


def test_times_are_in_utc_and_ages_in_one_unit():
    assert show.when(0.0) == "1970-01-01 00:00:00 UTC"
    assert [show.ago(s) for s in (3, 119, 600, 7200, 1e6)] == ["3 s", "119 s", "10 min", "2 h", "12 days"]
