"""torch.cond, while_loop, scan and map inside plans: equal to eager, printed, checked, refused."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._higher_order_ops import associative_scan, scan, while_loop
from torch._higher_order_ops import map as torch_map

import fedq
from fedq.errors import CannotRecord, SpecMismatch
from fedq.plan import replay
from fedq.plan.codec import decode
from fedq.plan.file import decode_plan
from fedq.plan.graph import flatten, unflatten
from fedq.plan.plan import Plan, from_file
from fedq.plan.spec import match
from fedq.plan.tensors import DTYPES, type_of
from fedq.plan.verify import verify
from fedq.trust.keys import Key

ROW, TABLE = [(-1,)], [(-1, -1)]


def replayed(plan, *inputs, seed=0):
    match(plan.graph, [type_of(x) for x in inputs], about=plan.about)
    flat = replay.run(replay.compile(verify(plan.graph)), inputs, plan.state_tensors(), seed=seed)
    return unflatten(plan.graph.outputs, iter(flat))


def eager(function, *inputs, seed=0):
    """What torch itself gives; without its compiler, which only takes longer."""
    torch.manual_seed(seed)
    with torch.compiler.set_stance("force_eager"):
        return function(*inputs)


def same(ours, theirs):
    ours, theirs = flatten(ours), flatten(theirs)
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) else type(a) is type(b) and a == b
        for a, b in zip(ours, theirs, strict=True)
    )


def zero():
    return torch.zeros((), dtype=torch.int64)


# -- functions ---------------------------------------------------------------------------------


def chooses(x):
    return torch.cond(x.sum() > 0, lambda a: a * 2, lambda a: a - 1, (x,))


def chooses_among_closures(x):
    y, k = x * 2, x.shape[0]
    return torch.cond(y.sum() > 0, lambda a: a + y.sum() * k, lambda a: a * y + k, (x,))


def chooses_structures(x):
    pair = torch.cond(
        x[0] > 0,
        lambda a: {"a": a + 1, "b": [a.sum(), (a * 2,)]},
        lambda a: {"a": a - 1, "b": [a.sum() * 2, (a * 3,)]},
        (x,),
    )
    return pair["a"] + pair["b"][0], pair["b"][1][0]


def chooses_with_a_constant(x):
    return torch.cond(x.sum() > 0, lambda a: a + torch.tensor(2.5), lambda a: a * torch.tensor([3.0]), (x,))


def gives_what_it_was_given(x):
    return torch.cond(x.sum() > 0, lambda a: a.clone(), lambda a: -a, (x,)) + x


def chooses_twice(x):
    def inner(a):
        return torch.cond(a[0] > 1, lambda b: b * 10 + x, lambda b: b - x.shape[0], (a,))

    return torch.cond(x.sum() > 0, inner, lambda a: a * a, (x,))


def counts(x):
    return while_loop(lambda i, a: i < 3, lambda i, a: (i + 1, a * 2 + x), (zero(), x))


def loops_on_values(x):
    return while_loop(lambda a: a.sum() < 40, lambda a: (a + 1 + x * x,), (x.abs() + 1,))[0]


def never_loops(x):
    return while_loop(lambda i, a: i > 3, lambda i, a: (i + 1, a * 2), (zero(), x + 1))


def loops_over_structures(x):
    return while_loop(
        lambda d: d["i"] < 2, lambda d: ({"i": d["i"] + 1, "x": [d["x"][0] * 2]},), ({"i": zero(), "x": [x]},)
    )


def chooses_in_a_loop(x):
    def body(i, a):
        return i + 1, torch.cond(a.sum() > 3, lambda b: b - x, lambda b: b + x.shape[0], (a,))

    return while_loop(lambda i, a: i < 4, body, (zero(), x * 1))[1]


def loops_in_a_loop(x):
    def body(i, a):
        return i + 1, while_loop(lambda j, b: j < i, lambda j, b: (j + 1, b + x * j), (torch.zeros_like(i), a))[1]

    return while_loop(lambda i, a: i < 4, body, (zero(), x * 1))[1]


def sums_up(x):
    return scan(lambda c, a: (c + a, c * a), torch.zeros(()), x)


def sums_up_backwards(x):
    return scan(lambda c, a: (c + a.sum(), a + c), x.new_zeros(()), x, dim=1, reverse=True)


def scans_pairs(x):
    return scan(lambda c, a: (c + a[0] * a[1], c - a[1]), x.new_zeros(()), (x, x * 2))[1]


def recurs(x):
    w = torch.full((x.shape[1], x.shape[1]), 0.1, dtype=x.dtype)
    return scan(lambda h, a: (torch.tanh(h @ w + a), (h * 1).clone()), x.new_zeros(x.shape[1]), x)


def maps(x):
    y = x + 1
    return torch_map(lambda a, b: a * b.sum() + y.shape[0], x, x * 2)


def maps_pairs(x):
    return torch_map(lambda a: {"sum": a[0] + a[1], "rows": (a[0] * a[1],)}, (x, x + 1))


def scans_in_a_map(x):
    return torch_map(lambda row: scan(lambda c, a: (c + a, c * a), row.new_zeros(()), row)[1], x)


def writes_beside(x):
    y = x.clone()
    v = y.view(-1)
    y.add_(1)
    z = torch.cond(y.sum() > 0, lambda a: (a * 2).mul_(3) + v, lambda a: a + y + v, (x,))
    z += 1
    return z, v


def writes_inside(x):
    def body(i, a):
        b = a.clone()
        b[0] = 5
        b += i
        return i + 1, b

    return while_loop(lambda i, a: i < 3, body, (zero(), x.clone()))


def loops_with_a_size(x):
    return while_loop(lambda i, a: i < x.shape[0], lambda i, a: (i + 1, a + i * x.shape[0]), (zero(), x + 0))


def counts_in_python(x):
    n, y = while_loop(lambda i, a: 2 * i < x.shape[0], lambda i, a: (i + 1, a + i * x.shape[0]), (0, x))
    return n, y * n


def counts_down(x):
    return while_loop(lambda i, j, a: i >= 1, lambda i, j, a: (i - 1, j * 2 - i, a + j), (x.shape[0], 1, x))[1:]


def chooses_integers(x):
    n, y = torch.cond(x.sum() > 0, lambda a: (1, a * 2), lambda a: (a.shape[0], a + 1), (x,))
    return n, y + n


ROWS = [
    chooses, chooses_among_closures, chooses_structures, chooses_with_a_constant, gives_what_it_was_given,
    chooses_twice, counts, loops_on_values, never_loops, chooses_in_a_loop, loops_in_a_loop,
    sums_up, scans_pairs, maps, maps_pairs, counts_in_python, counts_down, chooses_integers,
    writes_beside, writes_inside, loops_with_a_size,
]  # fmt: skip
TABLES = [chooses, loops_on_values, sums_up_backwards, recurs, scans_in_a_map, counts]
EMPTY = {loops_on_values: "would loop for ever on nothing"}


def _cases():
    for shapes, functions in ((ROW, ROWS), (TABLE, TABLES)):
        for function in functions:
            yield pytest.param(function, shapes, id=f"{function.__name__}-{len(shapes[0])}")


@pytest.mark.parametrize(("function", "shapes"), list(_cases()))
def test_it_replays_as_eager_at_other_sizes_values_and_dtypes(function, shapes):
    plan = Plan(function).build_shapes(shapes)
    ran = 0
    for size in (0, 1, 2, 3, 7):
        for dtype in ("f32", "f64", "i64"):
            for sign in (1, -1):
                base = torch.arange(size**0 * (size if len(shapes[0]) == 1 else size * 3)).sub(1) * sign
                x = base.to(DTYPES[dtype]).reshape((size,) if len(shapes[0]) == 1 else (size, 3))
                if not size and function in EMPTY:
                    continue
                try:
                    ours = replayed(plan, x)
                except SpecMismatch:
                    continue
                ran += 1
                kept = x.clone()
                assert same(ours, eager(function, x.clone())), (size, dtype, sign)
                assert torch.equal(x, kept)
    assert ran >= 6


@pytest.mark.parametrize("function", [chooses, counts, counts_in_python, sums_up, maps, loops_over_structures])
def test_it_replays_as_torch_with_its_compiler(function):
    plan = Plan(function).build_shapes(ROW)
    for x in (torch.randn(4), torch.randn(6)):
        assert same(replayed(plan, x), function(x))


def scales(x, k):
    return torch.cond(x.sum() > 0, lambda a: a * k, lambda a: a + k * 2, (x,))


def test_numbers_given_to_a_plan_reach_its_bodies():
    plan = Plan(scales).build(torch.ones(3), 4)
    assert [str(t) for t in plan.graph.inputs] == ["f32[n]", "int"]
    for x, k in ((torch.ones(2), 7), (-torch.ones(5), -3)):
        assert same(replayed(plan, x, k), eager(scales, x, k))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Linear(3, 3), nn.Linear(3, 3)
        self.register_buffer("limit", torch.tensor(0.5))

    def forward(self, x):
        chosen = torch.cond(x.mean() > self.limit, self.large, self.small, (x,))
        return scan(lambda h, a: (self.small(h) + a, h * self.limit), torch.zeros(3), chosen)


def test_parameters_and_buffers_used_inside_are_given_explicitly():
    module = Branching()
    plan = Plan(module).build_shapes([(-1, 3)])
    assert plan.graph.graphs[0].state == () and len(plan.graph.state) == 5
    for n in (2, 5):
        for sign in (1, -1):
            x = torch.rand(n, 3) * sign
            assert same(replayed(plan, x), eager(module, x))


def test_one_plan_file_holds_the_bodies_and_replays_them(tmp_path):
    plan = Plan(chooses_in_a_loop).build_shapes(ROW)
    path = tmp_path / "plan.safetensors"
    plan.save(path, signer=Key.from_seed(bytes(32)))
    loaded = from_file(decode_plan(decode(path.read_bytes())))
    assert (loaded.id, str(loaded)) == (plan.id, str(plan))
    x = torch.tensor([1.0, -2.0, 4.0])
    assert same(loaded(x), eager(chooses_in_a_loop, x))


def test_replaying_control_flow_loads_neither_sympy_nor_torchs_compiler(tmp_path):
    path = tmp_path / "plan.safetensors"
    Plan(chooses_in_a_loop).build_shapes(ROW).save(path, signer=Key.from_seed(bytes(32)))
    code = """
import sys, torch
from fedq.plan.codec import decode
from fedq.plan.file import decode_plan
from fedq.plan.plan import from_file
from_file(decode_plan(decode(open(sys.argv[1], "rb").read())))(torch.ones(3))
assert not {"sympy", "torch._dynamo"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)


def noisy(x):
    def body(i, a):
        return i + 1, torch.cond(a.sum() > 0, lambda b: b + torch.rand_like(b), lambda b: b - torch.randn(1), (a,))

    return while_loop(lambda i, a: i < 4, body, (zero(), x * 1))[1] + torch.rand(1)


def test_random_draws_inside_bodies_are_those_of_the_seed():
    plan = Plan(noisy).build_shapes(ROW)
    compiled = verify(plan.graph)
    assert compiled.random
    x = torch.ones(3)
    assert same(replayed(plan, x, seed=5), replayed(plan, x, seed=5))
    assert same(replayed(plan, x, seed=5), eager(noisy, x, seed=5))
    assert not same(replayed(plan, x, seed=5), replayed(plan, x, seed=6))


def draws_and_drops(x):
    torch.cond(x.sum() > 0, lambda a: a + torch.rand(1), lambda a: a * 2, (x,))
    torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a * 2, (x,))
    return x + torch.rand(1)


def test_what_nothing_needs_is_dropped_unless_it_draws():
    plan = Plan(draws_and_drops).build_shapes(ROW)
    assert [a.op for a in plan.actions].count("ctl.cond") == 1
    assert same(replayed(plan, torch.ones(3), seed=4), eager(draws_and_drops, torch.ones(3), seed=4))


def test_the_printed_form_shows_bodies_with_their_lines():
    first = inspect.getsourcelines(chooses)[1]
    plan = Plan(chooses).build_shapes(ROW)
    assert str(plan) == (
        "plan chooses(%0: f32|f64|f16|bf16|i64|i32 [n]) -> %3\n"
        f"  %1: f32[] = aten.sum(%0)                  test_control.py:{first + 1}\n"
        f"  %2: bool[] = aten.gt.Scalar(%1, 0)        test_control.py:{first + 1}\n"
        f"  %3: f32[n] = ctl.cond(%2, @0, @1, [%0])   test_control.py:{first + 1}\n"
        "  @0: plan body(%0: f32[n]) -> [%1]\n"
        f"    %1: f32[n] = aten.mul.Tensor(%0, 2)     test_control.py:{first + 1}\n"
        "  @1: plan body(%0: f32[n]) -> [%1]\n"
        f"    %1: f32[n] = aten.sub.Tensor(%0, 1)     test_control.py:{first + 1}"
    )


def test_what_fails_in_a_body_is_blamed_on_the_branch_or_loop():
    plan = Plan(lambda x: torch.cond(x.sum() > 0, lambda a: a[:, 3], lambda a: a[:, 0], (x,))).build_shapes([(-1, 5)])
    with pytest.raises(replay.ActionFailed) as caught:
        replay.run(replay.compile(verify(plan.graph)), [torch.ones(2, 2)], [], seed=0)
    assert caught.value.op == "ctl.cond"


def step(w, x):
    w = w.detach().requires_grad_()
    loss = ((x @ w) ** 2).mean()
    (gradient,) = torch.autograd.grad(loss, w)
    return w.detach() - 0.1 * gradient, loss.detach()


def test_steps_with_gradients_run_inside_a_loop():
    plan = Plan(lambda w, xs: scan(step, w, xs)).build_shapes([(3, 2), (-1, -1, 3)])
    for shape in ((4, 5, 3), (2, 7, 3)):
        w, xs = torch.randn(3, 2), torch.randn(shape)
        after, losses = replayed(plan, w, xs)
        for x, loss in zip(xs, losses, strict=True):
            w, expected = step(w, x)
            assert torch.equal(loss, expected)
        assert torch.equal(after, w)


def chooses_a_rate(w, x):
    w = w.detach().requires_grad_()
    loss = ((x @ w) ** 2).mean()
    loss.backward()
    rate = torch.cond(loss.detach() > 1, lambda: torch.tensor(0.1), lambda: torch.tensor(0.01))
    return w.detach() - rate * w.grad


def test_a_branch_beside_a_gradient_is_recorded():
    plan = Plan(chooses_a_rate).build_shapes([(3, 2), (-1, 3)])
    for size in (0.1, 3.0):
        w, x = torch.randn(3, 2), torch.randn(5, 3) * size
        assert same(replayed(plan, w, x), eager(chooses_a_rate, w, x))


def chooses_by_size(x):
    return torch.cond(x.shape[0] > 3, lambda a: a * 2, lambda a: a - 1, (x,))


def test_a_condition_on_a_size_alone_is_a_condition_of_the_plan():
    plan = Plan(chooses_by_size).build_shapes(ROW)
    assert "ctl.cond" not in [a.op for a in plan.actions]
    assert same(replayed(plan, torch.ones(9)), eager(chooses_by_size, torch.ones(9)))
    line = inspect.getsourcelines(chooses_by_size)[1] + 1
    with pytest.raises(SpecMismatch, match=rf"holds for .*n.* only; given n = 3 \(test_control.py:{line}\)"):
        replayed(plan, torch.ones(3))


def scans_as_a_tree(x):
    return associative_scan(lambda a, b: a * b + b, x, 0, combine_mode="generic")


def test_an_associative_scan_holds_for_the_size_it_was_built_with_and_is_refused_for_any_size():
    x = torch.randn(8)
    plan = Plan(scans_as_a_tree).build_shapes([(8,)])
    assert same(replayed(plan, x), scans_as_a_tree(x))
    with pytest.raises(CannotRecord, match="size 0 of input 0 was to be free"):
        Plan(scans_as_a_tree).build_shapes(ROW)


def test_a_device_runs_branches_and_loops():
    worker = fedq.VirtualWorker(id="device_1")
    x = torch.tensor([1.0, -2.0, 3.0, 5.0])
    plan = Plan(chooses_in_a_loop).build_shapes(ROW)
    result = plan.send(worker)(worker.send(x)).get()
    assert same(result, eager(chooses_in_a_loop, x))
