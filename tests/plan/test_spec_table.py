"""What a plan admits gives eager's value and dtype: functions x sizes x dtypes, each cell checked.

Every function is built once, at f32, with its sizes free where it allows that. A cell is eager's
value and dtype, or a refusal that names the line.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from fedq.errors import CannotRecord, SpecMismatch
from fedq.plan import replay
from fedq.plan.graph import unflatten
from fedq.plan.plan import Plan
from fedq.plan.spec import match, output_types
from fedq.plan.tensors import DTYPES, type_of
from fedq.plan.verify import verify

pytestmark = pytest.mark.filterwarnings("ignore:std")
SIZES = (0, 1, 2, 3, 7)
CELL_DTYPES = ("f32", "f64", "i64")
ROW, PAIR, TABLE = [(-1,)], [(-1,), (-1,)], [(-1, 2)]


def double_abs(x):
    x = x + x
    return torch.abs(x)


def triple_unless_many(x):
    return x * 2 if x.shape[0] > 1 else x * 3


def nothing_if_empty(x):
    return x + 1 if x.shape[0] == 0 else x * 2


def many_or_few(x):
    return x * 2 if x.shape[0] > 5 else x * 3


def times_size(x):
    return x * x.shape[0]


def size_itself(x):
    return x.shape[0], x + 0


def half_size(x):
    return x * (x.shape[0] * 0.5)


def zeros_like_dtype(x):
    return x + torch.zeros(3, dtype=x.dtype).sum()


def plus_eps(x):
    return x + torch.finfo(x.dtype).eps


def mean(x):
    return x.mean()


def mean_by_hand(x):
    return x.sum() / x.shape[0]


def mean_of_sum(x, y):
    s = x + y
    return s.sum(0) / s.shape[0]


def pair_product(x, y):
    return (x * y).sum()


def plus_positions(x):
    return x + torch.arange(x.shape[0])


def as_row(x):
    return x.view(1, -1)


def by_two(x):
    return x.reshape(-1, 2) + 1


def twice(x):
    return torch.cat([x, x + 1])


def softmax(x):
    return x.softmax(0)


def soft_rows(x):
    return torch.softmax(x.float(), -1)


def positive(x):
    return x[x > 0]


def positive_mean(x):
    return x[x > 0].float().mean()


def masked(x):
    return torch.where(x > 0, x, -x)


def floor_divide(x):
    return x // 2


def three_times(x):
    for _ in range(3):
        x = x + 1
    return x


def over_size(x):
    total = x.sum() * 0
    for i in range(x.shape[0]):
        total = total + x[i] * i
    return total


def to_float(x):
    return x.float() * 2


def deviation(x):
    return x.std(0)


def largest_and_place(x):
    values, indices = x.max(0)
    return values, indices


def smallest(x):
    return x.min()


def first_and_last(x):
    return x[0] + x[-1]


def without_first(x):
    return x[1:]


def first_two(x):
    return x[:2] * x[:2].shape[0]


def picked(x):
    return x[torch.tensor([0, 1, 0])]


def added_in_place(x):
    y = x.clone()
    y += 1
    y.mul_(2)
    return y


def view_written(x):
    y = x * 1
    y[0] = 7
    return y.sum()


def rows_written(x):
    y = x.clone()
    row = y[:, 0]
    row += 1
    return y, row


def input_written(x):
    x = x.clone()
    x.add_(1)
    return x * 2


def sorted_down(x):
    return torch.sort(x, descending=True)[0]


def cumulative(x):
    return x.cumsum(0).roll(1, 0)


def root_of_size(x):
    return x / math.sqrt(x.shape[0])


def if_positive(x):
    return x if x.sum() > 0 else -x


def length_as_int(x):
    return x * int(x.shape[0])


def isinstance_of_int(x):
    return x * 2 if isinstance(x.shape[0], int) else x * 3


def dtype_branch(x):
    return x + 1 if x.dtype == torch.float64 else x + 2


def outer(x, y):
    return x[:, None] * y[None, :]


def matrix(x):
    return x @ torch.ones(2, 3)


def stacked_pairs(x):
    return torch.stack([x, x * 2], 1).flatten()


def counts(x):
    return (x > 0).sum(), x.numel()


def split_half(x):
    return x[: x.shape[0] // 2], x[x.shape[0] // 2 :]


TABLE_OF_FUNCTIONS = [
    (double_abs, ROW), (triple_unless_many, ROW), (nothing_if_empty, ROW), (many_or_few, ROW), (times_size, ROW),
    (size_itself, ROW), (half_size, ROW), (zeros_like_dtype, ROW), (plus_eps, ROW), (mean, ROW), (mean_by_hand, ROW),
    (mean_of_sum, PAIR), (pair_product, PAIR), (plus_positions, ROW), (as_row, ROW), (by_two, TABLE), (twice, ROW),
    (softmax, ROW), (soft_rows, TABLE), (positive, ROW), (positive_mean, ROW), (masked, ROW), (floor_divide, ROW),
    (three_times, ROW),
    (over_size, ROW), (to_float, ROW), (deviation, ROW), (largest_and_place, TABLE), (smallest, ROW),
    (first_and_last, ROW), (without_first, ROW), (first_two, ROW), (picked, ROW), (added_in_place, ROW),
    (view_written, ROW), (rows_written, TABLE), (input_written, ROW), (sorted_down, ROW), (cumulative, ROW),
    (root_of_size, ROW), (if_positive, ROW), (length_as_int, ROW), (isinstance_of_int, ROW), (dtype_branch, ROW),
    (outer, PAIR), (matrix, TABLE), (stacked_pairs, ROW), (counts, ROW), (split_half, ROW),
]  # fmt: skip
REFUSED_AT_BUILD = [positive, over_size, root_of_size, if_positive, length_as_int, isinstance_of_int]
"""What no plan can hold with its size free."""


@dataclass(frozen=True)
class Built:
    plan: Plan | None
    refusal: str


@cache
def built(function) -> Built:
    """The function's plan; once in a process."""
    try:
        return Built(Plan(function).build_shapes(SHAPES[function]), "")
    except CannotRecord as error:
        return Built(None, str(error))


SHAPES = dict(TABLE_OF_FUNCTIONS)


def _inputs(shapes, sizes, dtype):
    made = []
    for shape, size in zip(shapes, sizes, strict=True):
        dims = [size if n == -1 else n for n in shape]
        count = math.prod(dims)
        made.append(((torch.arange(count) * 7 % 5) - 1.5).reshape(dims).to(DTYPES[dtype]))
    return made


def _eager(function, inputs):
    try:
        return function(*(x.clone() for x in inputs)), None
    except Exception as error:
        return None, error


def _replayed(plan, inputs):
    compiled = replay.compile(verify(plan.graph))
    flat = replay.run(compiled, inputs, plan.state_tensors(), seed=0)
    return unflatten(plan.graph.outputs, iter(flat))


def _same(a, b) -> bool:
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return same and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    return type(a) is type(b) and a == b


def _names_a_line(text: str) -> bool:
    return "test_spec_table.py:" in text


def _cell(function, shapes, one: Built, sizes, dtype) -> str:
    """``value`` or ``refused``; raises if it is neither as it should be."""
    inputs = _inputs(shapes, sizes, dtype)
    if one.plan is None:
        assert _names_a_line(one.refusal), one.refusal
        return "refused"
    expected, failure = _eager(function, inputs)
    types = [type_of(x) for x in inputs]
    try:
        match(one.plan.graph, types, about=one.plan.about)
    except SpecMismatch as error:
        if len(set(sizes)) == 1:
            assert _names_a_line(str(error)), error
        return "refused"
    if failure is not None:
        with pytest.raises(replay.ActionFailed):
            _replayed(one.plan, inputs)
        return "fails as eager"
    given = _replayed(one.plan, inputs)
    assert _same(expected, given), f"{function.__name__}{types}: {given} is not {expected}\n{one.plan}"
    promised = [t.dtype for t in output_types(one.plan.graph, types)]
    flat = given if isinstance(given, tuple) else (given,)
    assert promised == [type_of(v).dtype for v in flat]
    return "value"


def _sizes(shapes):
    """Equal sizes for all, and for pairs some unequal ones, which a plan must refuse or do as eager."""
    yield from ((n,) * len(shapes) for n in SIZES)
    if len(shapes) == 2:
        yield from ((1, 3), (3, 1), (0, 1), (2, 3))


@pytest.mark.parametrize("dtype", CELL_DTYPES)
@pytest.mark.parametrize("function", SHAPES, ids=lambda f: f.__name__)
def test_a_cell_is_eagers_value_and_dtype_or_a_refusal_that_names_the_line(function, dtype):
    assert (built(function).plan is None) == (function in REFUSED_AT_BUILD)
    for sizes in _sizes(SHAPES[function]):
        _cell(function, SHAPES[function], built(function), sizes, dtype)


def test_honest_functions_are_mostly_values():
    kinds = {"value": 0, "refused": 0, "fails as eager": 0}
    for function, shapes in TABLE_OF_FUNCTIONS:
        for dtype in CELL_DTYPES:
            for n in SIZES:
                kinds[_cell(function, shapes, built(function), (n,) * len(shapes), dtype)] += 1
    assert len(TABLE_OF_FUNCTIONS) >= 40
    assert kinds["value"] > 2 * kinds["refused"], kinds


@pytest.mark.parametrize("function", REFUSED_AT_BUILD, ids=lambda f: f.__name__)
def test_what_needs_a_size_as_a_python_number_is_refused_at_build_with_its_source_line(function):
    first = inspect.getsourcelines(function)[1]
    lines = range(first, first + len(inspect.getsource(function).splitlines()))
    text = built(function).refusal
    assert any(f"test_spec_table.py:{n}" in text for n in lines), text
