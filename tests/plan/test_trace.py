"""Recording functions and modules: what comes out, what it admits, what is refused and why."""

from __future__ import annotations

import itertools
import random
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedq.errors import CannotRecord
from fedq.plan import replay
from fedq.plan.graph import Type, Var, flatten, show, unflatten
from fedq.plan.plan import Plan
from fedq.plan.trace import trace
from fedq.plan.verify import verify

ROW = [Type("f32", (-1,))]
TABLE = [Type("f32", (-1, -1))]
OUTSIDE = torch.ones(3)


def recorded(function, asked=ROW, **more):
    graph, about, _ = trace(lambda held, *args: function(*args), asked, name=function.__name__, **more)
    return graph, about


def double_abs(x):
    x = x + x
    return torch.abs(x)


def test_each_action_has_its_op_types_and_source_line():
    graph, about = recorded(double_abs)
    first = double_abs.__code__.co_firstlineno
    assert show(graph, about) == (
        "plan double_abs(%0: f32|f64|f16|bf16|i64|i32 [n]) -> %2\n"
        f"  %1: f32[n] = aten.add.Tensor(%0, %0)   test_trace.py:{first + 1}\n"
        f"  %2: f32[n] = aten.abs(%1)              test_trace.py:{first + 2}"
    )


def test_recording_twice_gives_the_same_graph_id():
    assert recorded(double_abs)[0].id == recorded(double_abs)[0].id


def test_sizes_become_actions_and_equal_sizes_share_a_letter():
    def mean_of_sum(x, y):
        s = x + y
        return s.sum(0) / s.shape[0]

    graph, _ = recorded(mean_of_sum, [Type("f32", (-1, 2)), Type("f32", (-1, 2))])
    assert [str(t) for t in graph.inputs] == ["f32[n,m]", "f32[n,m]"]
    assert [a.op for a in graph.actions] == ["aten.add.Tensor", "aten.sum.dim_IntList", "sym.size", "aten.div.Tensor"]


@pytest.mark.parametrize(
    ("asked", "types"),
    [
        (["f32[3]", "f32[3]"], ["f32[n]", "f32[n]"]),
        (["f32[1]", "f32[3]"], ["f32[1]", "f32[n]"]),
        (["f32[2,3]", "f32[3]"], ["f32[n,m]", "f32[m]"]),
        (["f32[]", "f32[0]"], ["f32[]", "f32[0]"]),
    ],
)
def test_a_size_written_as_a_number_is_free_if_that_changes_nothing(asked, types):
    graph, _ = recorded(lambda x, y: x + y, [Type.parse(t) for t in asked])
    assert [str(t) for t in graph.inputs] == types


def test_a_size_the_state_fixes_stays_fixed():
    plan = Plan(nn.Linear(2, 3)).build(torch.ones(4, 2))
    assert str(plan.graph.inputs[0]) == "f32[n,2]"


def test_a_size_that_must_be_free_but_is_not_is_refused_with_the_line_that_fixed_it():
    def over_rows(x):
        total = x[0]
        for i in range(x.shape[0]):
            total = total + x[i]
        return total

    with pytest.raises(CannotRecord, match=f"test_trace.py:{over_rows.__code__.co_firstlineno + 2}"):
        recorded(over_rows, [Type("f32", (-1, 2))])
    graph, _ = recorded(over_rows, [Type("f32", (3, 2))])
    assert graph.inputs[0].shape == (3, "n")


def one_by_one(x):
    return x * 2 if x.shape[0] == 1 and x.shape[1] == 1 else x * 3


def one_by_many(x):
    return x * 2 if x.shape[0] == 1 and x.shape[1] > 10 else x * 3


def double_and_large(x):
    return x * 2 if x.dtype == torch.float64 and x.shape[0] > 10 else x * 3


def many_in_all(x):
    return x * 2 if x.numel() > 10 else x * 3


def but_thirty(x):
    return x * 2 if x.shape[0] != 30 else x * 3


def every_37th(x):
    return x * 3 if x.shape[0] % 37 == 0 else x * 2


def below_three_thousand(x):
    return x * 2 if x.shape[0] < 3000 else x * 3


def up_to_two_rows(x):
    return x * x[:2].shape[0] + x.shape[1]


@pytest.mark.parametrize(
    ("function", "admits", "refuses"),
    [
        (one_by_one, [(2, 2), (1, 7), (1, 1)], []),
        (one_by_many, [(2, 20), (1, 5)], [(1, 20)]),
        (many_in_all, [(5, 5), (2, 6)], [(2, 5), (3, 3)]),
        (but_thirty, [(29, 2), (31, 2)], [(30, 2)]),
        (every_37th, [(36, 2), (38, 2)], [(37, 2), (74, 2)]),
        (below_three_thousand, [(2999, 1)], [(3000, 1)]),
        (up_to_two_rows, [(2, 0), (9, 1), (1, 3), (0, 3)], []),
    ],
)
def test_conditions_on_several_sizes_are_found(function, admits, refuses):
    plan = Plan(function).build_shapes([(-1, -1)])
    for shape in refuses:
        with pytest.raises(TypeError, match=r"test_trace\.py:"):
            _match(plan, torch.ones(shape))
    for shape in admits:
        _match(plan, torch.ones(shape))
        assert torch.equal(_replayed(plan, torch.ones(shape)), function(torch.ones(shape)))


def rows_of_integers(x):
    return x * 2 if x.is_floating_point() else x.unbind(0)[0] * 2


def test_a_loop_that_only_another_dtype_has_is_not_run_a_million_times():
    start = time.process_time()
    _, about = recorded(rows_of_integers)
    assert "i64" in about.refused
    assert time.process_time() - start < 10  # 0.2 s


def test_a_dtype_that_makes_python_look_at_sizes_is_refused():
    _, about = recorded(double_and_large, TABLE)
    assert about.refused["f64"].startswith("test_trace.py:")


def test_rows_of_dtypes_hold_the_dtypes_of_the_outputs():
    graph, _ = recorded(lambda x: (x / 2, x > 0), ROW)
    assert ("i64", "f32", "bool") in graph.dtypes
    assert ("f64", "f64", "bool") in graph.dtypes


def test_dtypes_that_only_fakes_accept_are_not_admitted():
    plan = Plan(nn.Linear(2, 3)).build_shapes([(-1, 2)])
    assert plan.graph.dtypes == ()


# -- numbers as arguments


@pytest.mark.parametrize(("value", "kind"), [(3, "int"), (1, "int"), (0, "int"), (-2, "int"), (2.5, "float")])
def test_a_number_that_is_only_computed_with_stays_free(value, kind):
    graph, _ = recorded(lambda x, k: x * k + (k * 2 + 1), [*ROW, Type(kind, None, value)])
    assert graph.inputs[1] == Type(kind)


def test_a_number_that_must_equal_a_size_is_fixed():
    graph, _ = recorded(lambda x, k: (x[:k] + x) * k, [Type("f32", (3,)), Type("int", None, 3)])
    assert [str(t) for t in graph.inputs] == ["f32[3]", "int=3"]
    with pytest.raises(CannotRecord, match="size 0 of input 0 was to be free"):
        recorded(lambda x, k: x.view(k) + x, [*ROW, Type("int", None, 5)])


def test_a_guard_that_divides_by_zero_somewhere_is_no_error():
    def every(x):
        return torch.cond(x.shape[0] > 3, lambda q: q.flip(0)[: 7 % x.shape[0]], lambda q: q[:1], (x,))

    recorded(every)


@pytest.mark.parametrize("value", [3, 2.5, "a", True])
def test_a_number_that_python_looks_at_is_fixed(value):
    graph, _ = recorded(
        lambda x, k: x * 2 if k in (3, 2.5, "a", True) else x, [*ROW, Type(type(value).__name__, None, value)]
    )
    assert graph.inputs[1].value == value


def test_arithmetic_on_floats_keeps_its_order():
    def scaled(x):
        return x.double() * (x.shape[0] * 0.1 * 3)

    plan = Plan(scaled).build_shapes([(-1,)])
    for n in (0, 1, 3, 7, 11):
        assert torch.equal(_replayed(plan, torch.ones(n)), scaled(torch.ones(n)))


# -- outputs, constants, writes


def test_outputs_keep_their_structure():
    plan = Plan(lambda x: {"sum": x.sum(), "rest": [x, (x.shape[0], 2.5 * x.shape[0], None)]}).build_shapes([(-1,)])
    out = _replayed(plan, torch.ones(4))
    assert out["sum"] == 4 and out["rest"][1] == (4, 10.0, None) and type(out["rest"][1][0]) is int


def test_tensors_made_of_numbers_become_state():
    plan = Plan(lambda x: x + torch.tensor([1.0, 2.0])).build(torch.ones(2))
    assert plan.graph.state == (("const0", Type("f32", (2,))),)
    assert torch.equal(plan.state_tensors()[0], torch.tensor([1.0, 2.0]))


def write_through_views(x):
    y = x.clone()
    row, turned = y[0], y.t()
    y.add_(1)
    row.mul_(2)
    turned[0].zero_()
    return y, row, turned


def write_to_a_copy(x):
    x = x.clone()
    x[0] = 5
    x += 1
    return x.relu_() * 2


def write_with_masks(x):
    y = torch.empty_like(x)
    y.copy_(x)
    y[y > 1] = -1.0
    y[:, 1:] *= 3
    return y.clamp_(max=4)


def write_to_parts(x):
    a, b = (x * 1).split([1, 1], 1)
    a += b
    b.fill_(7)
    return torch.stack([a, b])


def write_through_dropout(x):
    x = x.clone()
    y = F.dropout(x, 0.5, training=False).view(-1)
    x[0] = 7
    return y * 1, torch.dropout(y, p=0.0, train=True)


@pytest.mark.parametrize(
    "function", [write_through_views, write_to_a_copy, write_with_masks, write_to_parts, write_through_dropout]
)
def test_writes_give_what_eager_gives_and_no_action_writes(function):
    plan = Plan(function).build_shapes([(-1, 2)])
    assert not any(a.op.split(".")[1].endswith("_") for a in plan.actions)
    for n in (1, 2, 5):
        x = torch.arange(2.0 * n).reshape(n, 2)
        kept = x.clone()
        expected = flatten(function(x.clone()))
        assert all(torch.equal(a, b) for a, b in zip(flatten(_replayed(plan, x)), expected, strict=True))
        assert torch.equal(x, kept)


def test_dead_actions_are_dropped_but_random_ones_stay():
    def wasteful(x):
        x * 3
        torch.rand(2)
        return x + 1

    graph, _ = recorded(wasteful)
    assert [a.op for a in graph.actions] == ["aten.rand", "aten.add.Tensor"]


def test_random_draws_replay_in_order_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    plan = Plan(lambda x: torch.rand(2) + torch.rand_like(x).sum()).build_shapes([(-1,)])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    expected = plan(torch.ones(4))
    assert torch.equal(_replayed(plan, torch.ones(4), seed=3), expected)


def test_devices_and_uninitialised_memory_are_left_out():
    def roundabout(x):
        return x.cpu().to("cpu").to(x.device) + torch.empty(2, device="cpu").fill_(1).sum()

    graph, _ = recorded(roundabout)
    assert [a.op for a in graph.actions] == ["aten.zeros", "aten.fill.Scalar", "aten.sum", "aten.add.Tensor"]


# -- modules and gradients


class Convolution(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))


MODULES = [
    (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)).eval(),
        (-1, 4),
        [(1, 4), (9, 4)],
    ),
    (lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True), (-1, -1, 4), [(2, 5, 4), (3, 9, 4)]),
    (lambda: nn.GRU(4, 3), (-1, -1, 4), [(2, 5, 4), (3, 9, 4)]),
    (lambda: nn.RNN(4, 3), (-1, -1, 4), [(2, 5, 4)]),
    (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), (-1, -1, 8), [(2, 5, 8), (3, 9, 8)]),
    (lambda: nn.BatchNorm1d(3).eval(), (-1, 3), [(2, 3), (7, 3)]),
    (Convolution, (-1, 1, 8, 8), [(2, 1, 8, 8), (40, 1, 8, 8)]),
    (lambda: nn.Embedding(5, 3), None, [(2,), (7,)]),
]


@pytest.mark.parametrize(("make", "shape", "others"), MODULES)
def test_a_module_replays_as_eager_at_other_batch_sizes(make, shape, others):
    module = make()
    plan = Plan(module)
    plan = plan.build_shapes([shape]) if shape else plan.build(torch.tensor([0, 1, 2]))
    assert [name for name, _ in plan.graph.state] == [*dict(module.named_parameters()), *dict(module.named_buffers())]
    for other in others:
        x = torch.randn(other) if shape else torch.arange(other[0]) % 5
        expected = flatten(module(x))
        assert all(torch.equal(a, b) for a, b in zip(flatten(_replayed(plan, x)), expected, strict=True))


def gradient_step(x, w):
    w = w.detach().requires_grad_()
    loss = ((x @ w).relu() ** 2).mean()
    (gradient,) = torch.autograd.grad(loss, w)
    return w.detach() - 0.1 * gradient


def backward_step(x, w):
    w = w.detach().requires_grad_()
    F.mse_loss(x @ w, x.sum(1, keepdim=True)).backward()
    return w.grad


@pytest.mark.parametrize("function", [gradient_step, backward_step])
def test_a_gradient_inside_is_recorded_and_holds_at_other_batch_sizes(function):
    plan = Plan(function).build_shapes([(-1, 2), (2, 1)])
    for n in (2, 7):
        x, w = torch.randn(n, 2), torch.randn(2, 1)
        assert torch.allclose(_replayed(plan, x, w), function(x, w))


# -- refusals


class Counter:
    count = 0


def branches_on_values(x):
    if x.sum() > 0:  # here
        return x
    return -x


def loops_on_values(x):
    while x.sum() < 3:  # here
        x = x + 1
    return x


def asserts_on_values(x):
    assert x.min() > 0  # here
    return x


def takes_an_int(x):
    return x * int(x.sum())  # here


def makes_numpy(x):
    return torch.from_numpy(np.sin(x))  # here


def makes_a_list(x):
    return x * sum(x.sum().reshape(1).numpy())  # here


def prints(x):
    print(x)  # here
    return x


def uses_a_tensor_outside(x):
    return x + OUTSIDE  # here


def seeds(x):
    torch.manual_seed(3)  # here
    return x * torch.rand(1)


def draws_from_random(x):
    return x * random.random()  # here


def counts_calls(x):
    Counter.count += 1  # here
    return x * Counter.count


NUMBERS = itertools.count()


def draws_from_a_counter(x):
    return x * next(NUMBERS)  # here


def reads_the_clock(x):
    return x * time.perf_counter()  # here


def picks_values(x):
    return x[x > 0]  # here


def asks_for_a_gpu(x):
    return x.to("cuda")  # here


def raises(x):
    raise ValueError("no")  # here


def returns_a_set(x):
    return {x.sum()}


REFUSED = [
    (branches_on_values, "depends on the values", "torch.where"),
    (loops_on_values, "depends on the values", "torch.where"),
    (asserts_on_values, "depends on the values", "torch.where"),
    (takes_an_int, "depends on the values", "tensor"),
    (makes_numpy, "NumPy", "tensor"),
    (makes_a_list, "NumPy", "tensor"),
    (prints, "prints a tensor", "result"),
    (uses_a_tensor_outside, "from outside the function", "state="),
    (seeds, "seeds torch", "seed"),
    (draws_from_random, "draws from 'random'", "argument"),
    (counts_calls, "changes what the next call gives", "register_buffer"),
    (draws_from_a_counter, "another graph each time", "arguments"),
    (reads_the_clock, "another graph each time", "arguments"),
    (picks_values, "size of a result depends on data", "torch.where"),
    (asks_for_a_gpu, "another device", "devices"),
    (raises, "ValueError: no", ""),
    (returns_a_set, "returns a set", "tuples"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("function", "reason", "cure"), REFUSED, ids=lambda v: getattr(v, "__name__", ""))
def test_what_a_plan_can_not_hold_is_refused_with_line_and_cure(function, reason, cure):
    with pytest.raises(CannotRecord) as caught:
        recorded(function)
    assert reason in str(caught.value)
    assert cure in (caught.value.hint or "")
    marked = _marked_line(function)
    if marked:
        assert f"test_trace.py:{marked}" in str(caught.value)


def _marked_line(function):
    import inspect

    lines, first = inspect.getsourcelines(function)
    return next((first + i for i, line in enumerate(lines) if "# here" in line), None)


def test_refusing_leaves_the_seeds_of_the_process_alone():
    before = torch.get_rng_state(), random.getstate()
    for function in (seeds, draws_from_random):
        with pytest.raises(CannotRecord):
            recorded(function)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_numpys_random_numbers_are_refused():
    with pytest.raises(CannotRecord, match="numpy"):
        recorded(lambda x: x * np.random.rand())


# -- speed


def chain(x):
    for _ in range(50):
        x = x + x
        x = torch.abs(x)
    return x


def test_a_hundred_ops_are_recorded_as_a_hundred_actions():
    assert len(Plan(chain).build_shapes([(-1, 1)]).actions) == 100


# -- replay


def _match(plan, *inputs):
    from fedq.plan.spec import match
    from fedq.plan.tensors import type_of

    match(plan.graph, [type_of(x) for x in inputs], about=plan.about)


def _replayed(plan, *inputs, seed=0):
    _match(plan, *inputs)
    flat = replay.run(replay.compile(verify(plan.graph)), inputs, plan.state_tensors(), seed=seed)
    assert all(isinstance(v, Var) for v in flatten(plan.graph.outputs))
    return unflatten(plan.graph.outputs, iter(flat))
