"""What a fold gives: metrics as they were asked for, and what it does about values that are not finite."""

from __future__ import annotations

import os
import signal

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedq as fq
from fedq.device import daemon, finite, folding
from fedq.errors import Failed, NotFinite, SpecMismatch, UsageError
from fedq.ids import derive_seed
from fedq.plan.codec import decode
from fedq.plan.fold import METRICS, Batches, Loop
from fedq.plan.graph import flatten
from fedq.queue.message import Fold, decode_message
from tests.rig import Rig, wait_until
from tests.test_fold import batches_by_hand, in_worker
from tests.test_kill import children

ROWS = 11
X = torch.sin(torch.arange(ROWS * 2.0)).reshape(ROWS, 2)


def measure(c, x):
    return c + x.sum(), x.sum(), (x > 0).sum(), x.max(0).values, (x > 0).any()


@pytest.fixture(scope="module")
def measuring():
    return fq.func2plan()(measure).build(torch.tensor(0.0), X[:4])


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Rig(tmp_path_factory.mktemp("served"), data={"x": X}) as rig:
        rig.start()
        yield rig


def by_hand(rows, sizes, word, b, rows_in_all):
    """Of one metric, a row for each step, what a fold gives."""
    if word == "steps":
        return rows
    if word == "last":
        return rows[-1]
    if word == "sum":
        return rows.double().sum(0).to(rows.dtype if rows.is_floating_point() else torch.int64)
    if word == "epochs":
        per = b.steps(rows_in_all)
        each = zip(rows.split(per), sizes.split(per), strict=True)
        return torch.stack([by_hand(r, s, "mean", b, rows_in_all) for r, s in each])
    weights = sizes.reshape(-1, *[1] * (rows.dim() - 1)).double()
    return ((rows * weights).sum(0) / sizes.sum()).to(rows.dtype if rows.is_floating_point() else torch.float64)


CUTS = [Batches(4, 3), Batches(4, 2, True), Batches(4, 2, drop_last=True), Batches(20)]


@pytest.mark.parametrize("word", METRICS)
@pytest.mark.parametrize("b", CUTS, ids=str)
def test_metrics_are_what_was_asked_for(measuring, word, b, monkeypatch):
    cut = [X[numbers] for numbers in batches_by_hand(ROWS, b, 7)]
    sizes = torch.tensor([len(batch) for batch in cut])
    columns = [
        torch.stack(some) for some in zip(*(measure(torch.tensor(0.0), batch)[1:] for batch in cut), strict=True)
    ]
    results = []
    for block in (1, 2, 256):
        monkeypatch.setattr(folding, "BLOCK", block)
        results.append(in_worker(measuring, [torch.tensor(0.0), X], Loop(1, 1, b, word)))
    for ours, column in zip(results[0][1:], columns, strict=True):
        expected = by_hand(column, sizes, word, b, ROWS)
        assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
        assert torch.allclose(ours, expected)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("word", METRICS)
def test_a_real_worker_gives_metrics_of_the_types_that_were_promised(served, measuring, word):
    out = measuring.send(served.device).fold(torch.tensor(0.0), served.device.find("x"), batch_size=4, metrics=word)
    for pointer in out:
        value = pointer.copy(timeout_s=60)
        assert (value.dtype, tuple(value.shape)) == (pointer.dtype, pointer.shape)


def test_words_that_a_fold_does_not_know_are_refused_with_those_it_does(served, measuring):
    there = measuring.send(served.device)
    with pytest.raises(UsageError, match="metrics='average' is unknown") as caught:
        there.fold(torch.tensor(0.0), served.device.find("x"), batch_size=4, metrics="average")
    assert "'mean'" in caught.value.hint
    with pytest.raises(UsageError, match="nonfinite=None is unknown"):
        there.fold(torch.tensor(0.0), served.device.find("x"), batch_size=4, nonfinite=None)


# -- not finite


def growing(c, x):
    """Its metric is not finite where the data is not; its carry where it grew too large."""
    return c * x.abs().max(), (x - 1).mean(), x.numel()


GROW = fq.func2plan()(growing).build(torch.tensor(1.0), X[:4])
FINE = torch.ones(40, 2)


def with_nan_at(row, value=float("nan")):
    data = FINE.clone()
    data[row, 1] = value
    return data


def folded(device, data, **how):
    return GROW.send(device).fold(torch.tensor(1.0), data, batch_size=4, **how)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", [0, 13, 39])
def test_a_fold_stops_at_the_first_step_that_is_not_finite_and_says_which(served, row, value):
    carry, metric, count = folded(served.device, with_nan_at(row, value))
    step = row // 4 + 1
    for pointer in (metric, count):
        with pytest.raises(NotFinite, match=rf"carry 0, output 1 are not finite in step {step} of 10") as caught:
            pointer.copy(timeout_s=60)
    assert "nonfinite='keep'" in caught.value.hint and isinstance(caught.value, Failed)
    assert caught.value.fields["step"] == step and caught.value.fields["kind"] == "not_finite"
    assert carry.get(timeout_s=60) == 1.0


def test_an_error_is_what_all_results_are_if_that_is_asked_for(served):
    for pointer in folded(served.device, with_nan_at(13), nonfinite="error"):
        with pytest.raises(NotFinite, match="in step 4 of 10"):
            pointer.copy(timeout_s=60)


def test_a_fold_goes_on_if_that_is_asked_for(served):
    carry, metric, _ = folded(served.device, with_nan_at(13), nonfinite="keep")
    assert carry.get(timeout_s=60).isnan()
    assert metric.get(timeout_s=60).isnan().tolist() == [n == 3 for n in range(10)]


def test_a_carry_that_overflows_is_noticed_though_the_metrics_are_finite(served):
    data = torch.full((40, 2), 1e10)
    carry, metric, _ = folded(served.device, data)
    with pytest.raises(NotFinite, match="carry 0 is not finite in step 4 of 10"):
        metric.copy(timeout_s=60)
    assert carry.get(timeout_s=60) == torch.tensor(1e30)


def test_a_fold_without_metrics_that_stops_is_an_error(served):
    plan = fq.func2plan()(lambda c, x: c + x.sum()).build(torch.tensor(1.0), X[:4])
    with pytest.raises(NotFinite, match="in step 4 of 10"):
        plan.send(served.device).fold(torch.tensor(1.0), with_nan_at(13), batch_size=4).get(timeout_s=60)


def test_what_uses_a_carry_that_stopped_goes_on_and_what_uses_a_metric_is_told_why(served):
    carry, metric, _ = folded(served.device, with_nan_at(13))
    again = GROW.send(served.device).fold(carry, FINE, batch_size=4)
    assert again[0].get(timeout_s=60) == 1.0
    double = fq.func2plan()(lambda x: x + x).build(torch.ones(3)).send(served.device)
    with pytest.raises((NotFinite, SpecMismatch), match="not finite in step 4"):
        double(metric).get(timeout_s=60)


@pytest.mark.parametrize("at", [0, 1, 62, 63, 64, 65, 199])
def test_the_step_is_the_right_one_wherever_in_a_block_it_is(at):
    data = torch.ones(400, 2)
    data[at * 2] = float("nan")
    made = in_worker(GROW, [torch.tensor(1.0), data], Loop(1, 1, Batches(2), nonfinite="error"))
    assert made[1] == "not_finite" and made[3]["step"] == at + 1 and made[3]["steps"] == 200


def test_dropout_is_drawn_again_as_it_was_when_the_step_is_looked_for():
    def step(c, x):
        c = c + F.dropout(x, 0.5).sum()
        return c, c.log()

    plan = fq.func2plan()(step).build(torch.tensor(0.0), torch.ones(2, 4))
    data = torch.cat([torch.ones(60, 4), torch.full((140, 4), -1.0)])
    loop = Batches(2, shuffle=True)
    kept = in_worker(plan, [torch.tensor(5.0), data], Loop(1, 1, loop), seed=11)
    bad = int((~kept[1].isfinite()).nonzero()[0]) + 1
    made = in_worker(plan, [torch.tensor(5.0), data], Loop(1, 1, loop, nonfinite="error"), seed=11)
    assert bad > 1 and made[3]["step"] == bad


def test_integers_are_always_finite_and_sums_that_overflow_are_looked_at_closely():
    big = torch.full((8,), 3e38)
    assert finite.all_of([big, torch.tensor([1, 2]), 3, True, torch.full((9,), 60000.0, dtype=torch.float16)])
    assert finite.is_finite(big) and not finite.is_finite(float("nan"))
    for dtype in (
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.complex64,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    ):
        assert finite.is_finite(torch.ones(3).to(dtype))
        assert not finite.is_finite(torch.tensor([1.0, float("nan")]).to(dtype))
        assert not finite.all_of([torch.tensor([1.0, float("nan")]).to(dtype)])


# -- training on a real worker


def mlp(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 32), *more, nn.ReLU(), nn.Linear(32, 3))


def training(model, rows):
    x = torch.sin(torch.arange(rows * 2.0)).reshape(rows, 2)
    y = torch.arange(rows) % 3
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    return fq.training_plan(model, F.cross_entropy, optimizer, x[:4], y[:4]), x, y


def test_a_training_that_was_killed_in_mid_fold_gives_the_same_bits(tmp_path):
    plan, x, y = training(mlp(nn.Dropout(0.5)).train(), 12_000)
    with Rig(tmp_path, data={"x": x, "y": y}) as rig:
        there = plan.send(rig.device)
        carry, metrics = there.fold(
            plan.carry(), [rig.device.find("x"), rig.device.find("y")], batch_size=2, shuffle=True
        )
        rig.device.ask([metrics["loss"], carry["params"]["0.weight"]])
        rig.device.flush()
        sent = [rig.device.pair.carrier.get(f"in/{name}") for name in rig.device.pair.carrier.list("in")]
        messages = [decode_message(decode(memoryview(raw))) for raw in sent]
        ((message, fold),) = [(m, v) for m in messages for v in m.actions if isinstance(v, Fold)]
        rig.start()
        killed = set()
        for step in (300, 900):
            wait_until(lambda step=step: any(at >= step for _, at, _ in rig.heartbeat().progress))
            (worker,) = children(daemon.pid(rig.config))
            assert worker not in killed
            os.kill(worker, signal.SIGKILL)
            killed.add(worker)
            wait_until(lambda worker=worker: worker not in children(daemon.pid(rig.config)))
            wait_until(lambda step=step: all(at < step for _, at, _ in rig.heartbeat().progress))
        losses, weight = metrics["loss"].get(timeout_s=120), carry["params"]["0.weight"].get(timeout_s=60)
    inputs = [*flatten(plan.carry()), x, y]
    loop = Loop(len(inputs) - 2, 2, Batches(2, shuffle=True))
    expected = in_worker(plan, inputs, loop, seed=derive_seed(message.seed, fold.results[0]))
    assert torch.equal(losses, expected[-1]) and torch.equal(weight, expected[0])


def test_labels_out_of_range_fail_at_their_step(tmp_path):
    plan, x, y = training(mlp(), 12)
    y[9] = 7
    with Rig(tmp_path, data={"x": x, "y": y}) as rig:
        rig.start()
        _, metrics = plan.send(rig.device).fold(
            plan.carry(), [rig.device.find("x"), rig.device.find("y")], batch_size=4
        )
        with pytest.raises(Failed, match=r"nll_loss.*: index out of range .*in step 3 of 3") as caught:
            metrics["loss"].get(timeout_s=60)
    assert caught.value.fields["kind"] == "index_out_of_range" and "label" in caught.value.hint


NORMED = "batch[0]: n >= 2 expected, n = 1 given"
ROWS_REFUSED = {
    "a last batch of one": (9, {}, f"the last batch of 9 rows would have 1, not 4: {NORMED}", "drop_last"),
    "fewer rows than a batch": (
        1,
        {},
        f"the data has 1 row, fewer than a batch of 4: {NORMED}",
        "leave this device out",
    ),
    "no full batch": (3, {"drop_last": True}, "no full batch of 4 in 3 rows", "smaller batch_size"),
    "no rows": (0, {}, "the data has no rows", "leave this device out"),
}


def test_rows_that_do_not_make_batches_are_refused_in_words_before_anything_is_sent(served):
    plan, x, y = training(mlp(nn.BatchNorm1d(32)).train(), 12)
    there = plan.send(served.device)
    served.device.flush()
    before = set(served.device.pair.carrier.list("in"))
    for rows, options, message, hint in ROWS_REFUSED.values():
        with pytest.raises(SpecMismatch) as caught:
            there.fold(plan.carry(), [x[:rows], y[:rows]], batch_size=4, **options)
        assert message in str(caught.value) and hint in caught.value.hint and "()" not in str(caught.value)
    carry = plan.carry()
    carry["buffers"]["1.num_batches_tracked"] = torch.tensor(2.5)
    with pytest.raises(SpecMismatch, match=r"carry\.buffers\.1\.num_batches_tracked: i64 expected, f32\[\] given"):
        there.fold(carry, [x, y], batch_size=4)
    carry = plan.carry()
    carry["params"]["0.weight"] = torch.ones(3)
    with pytest.raises(SpecMismatch, match=r"carry\.params\.0\.weight: f32\[32,2\] expected, f32\[3\] given") as caught:
        there.fold(carry, [x, y], batch_size=4)
    assert "args_shape" not in caught.value.hint
    assert before.issuperset(served.device.pair.carrier.list("in"))
