"""Folds: a plan of one step over mini-batches. The same bytes from both devices, equal to a loop written out."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedq as fq
from fedq.cli import background
from fedq.client import fetch
from fedq.device import daemon, folding
from fedq.device.fold import to_json
from fedq.device.worker import Replayer, do
from fedq.errors import Failed, SpecMismatch, UsageError, WaitingForApproval
from fedq.local import VirtualWorker
from fedq.plan import fold
from fedq.plan.file import PlanFile
from fedq.plan.fold import Batches, Loop
from fedq.plan.graph import About, Action, Graph, Type, Var, graph_to_json
from fedq.plan.tensors import from_raw, to_raw
from tests.rig import Rig, wait_until
from tests.test_conformance import Subject, counter
from tests.test_kill import children

I64 = Type("i64", ())


@pytest.fixture(autouse=True)
def alice(monkeypatch):
    monkeypatch.setenv("FEDQ_USER", "alice")


def plan_of(function, *examples):
    return fq.func2plan()(function).build(*examples)


class Later:
    """A plan that is built when it is first asked for, so that collecting the tests builds none."""

    def __init__(self, function, *examples):
        self._plan, self._examples = fq.func2plan()(function), examples

    def __call__(self):
        return self._plan if self._plan.is_built else self._plan.build(*self._examples)


def _trace(seen, x):
    """What tells the order of rows, within batches and of batches; and how a batch began."""
    seen = seen * 31 + x.cumsum(0).sum()
    return seen, x.sum()


TRACE = Later(_trace, torch.tensor(0), torch.arange(4))


def _train(w, b, x, y):
    w, b = w.requires_grad_(), b.requires_grad_()
    loss = torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, w, b), y)
    dw, db = torch.autograd.grad(loss, [w, b])
    return w - 0.1 * dw, b - 0.1 * db, loss


WEIGHTS = torch.linspace(-1, 1, 20).reshape(4, 5), torch.zeros(4)
ROWS = torch.sin(torch.arange(185.0)).reshape(37, 5), torch.arange(37) % 4
TRAIN = Later(_train, *WEIGHTS, ROWS[0][:8], ROWS[1][:8])


def batches_by_hand(rows: int, b: Batches, seed: int):
    for epoch in range(b.epochs):
        numbers = fold.order(rows, seed, epoch).tolist() if b.shuffle else list(range(rows))
        for at in range(0, rows, b.size):
            batch = numbers[at : at + b.size]
            if len(batch) == b.size or not b.drop_last:
                yield batch


def in_worker(plan, inputs, loop: Loop, *, seed=7, replayer=None):
    """The fold alone, without a gate: what came, or the row of its failure."""
    file = plan if isinstance(plan, PlanFile) else plan.file()
    raws = [to_raw(t) for t in inputs]
    first = [f"c{i}" for i in range(loop.carry)]
    data = [{"m": i} for i in range(loop.carry, loop.carry + loop.data)]
    results = [f"r{i}" for i in range(len(file.graph.output_vars))]
    row = to_json(loop)
    head = {
        "plans": [["p", graph_to_json(file.graph), [], []]],
        "give": [[name, i] for i, name in enumerate(first)],
        "calls": [["p", [*first, *data], results, seed, row]],
    }
    rows, made = do(replayer or Replayer(fork_rng=True), head, raws, [0, 0, 0])
    return [from_raw(m) for m in made] if rows[0][0] == "ok" else rows[0]


some_batches = st.builds(Batches, st.integers(1, 12), st.integers(1, 3), st.booleans(), st.booleans())


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 40), some_batches, st.integers(0, 1 << 62), st.integers(1, 4))
def test_batches_are_those_of_a_loop_written_out(rows, b, seed, block):
    expected = list(batches_by_hand(rows, b, seed))
    before, folding.BLOCK = folding.BLOCK, block
    try:
        made = in_worker(TRACE(), [torch.tensor(0), torch.arange(rows)], Loop(1, 1, b), seed=seed)
    finally:
        folding.BLOCK = before
    if not expected:
        assert made[1] == "spec_mismatch"
        return
    seen = 0
    for batch in expected:
        seen = seen * 31 + sum(sum(batch[: n + 1]) for n in range(len(batch)))
    assert int(made[0]) == (seen + (1 << 63)) % (1 << 64) - (1 << 63)
    assert made[1].tolist() == [sum(batch) for batch in expected]


@pytest.mark.parametrize("rows", [1, 2, 1797])
def test_an_epoch_is_a_permutation_of_its_own(rows):
    orders = [fold.order(rows, seed, epoch).tolist() for seed in (0, 1, (1 << 63) - 1) for epoch in (0, 1)]
    assert all(sorted(o) == list(range(rows)) for o in orders)
    assert rows < 3 or len(set(map(tuple, orders))) == len(orders)


def test_the_order_is_the_one_the_format_says():
    assert fold.order(6, 81207, 0).tolist() == order_by_hand(6, 81207, 0)
    assert fold.order(100, 5, 3).tolist() == order_by_hand(100, 5, 3)


def order_by_hand(rows, seed, epoch):
    from fedq.ids import derive_seed

    def key(row):
        z = (derive_seed(seed, epoch) + (row + 1) * 0x9E3779B97F4A7C15) % (1 << 64)
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
        z = (z ^ z >> 27) * 0x94D049BB133111EB % (1 << 64)
        return z ^ z >> 31

    return sorted(range(rows), key=key)


@pytest.mark.parametrize(
    "b", [Batches(8, 3), Batches(8, 3, shuffle=True), Batches(8, 2, True, True), Batches(64)], ids=str
)
def test_training_is_what_a_plain_loop_does(b):
    w, b_, losses = in_worker(TRAIN(), [*WEIGHTS, *ROWS], Loop(2, 2, b))
    w2, b2 = (t.clone() for t in WEIGHTS)
    plain = []
    for batch in batches_by_hand(37, b, 7):
        w2, b2, loss = (t.detach() for t in _train(w2, b2, ROWS[0][batch], ROWS[1][batch]))
        plain.append(loss)
    for ours, theirs in ((w, w2), (b_, b2), (losses, torch.stack(plain))):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_random_plan_draws_the_same_again():
    def step(c, x):
        return c + torch.nn.functional.dropout(x, 0.5).sum(0)

    plan = plan_of(step, torch.zeros(5), ROWS[0][:8])
    one, again, other = (
        in_worker(plan, [torch.zeros(5), ROWS[0]], Loop(1, 1, Batches(8, shuffle=True)), seed=s) for s in (3, 3, 4)
    )
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])


DTYPES = [
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bfloat16, torch.float8_e4m3fn,
    torch.complex64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_dtype_is_cut_and_gathered(dtype, shuffle):
    whole = torch.tensor([0, 1, 1, 0, 1, 0]).to(dtype)
    row = Type(to_raw(whole).dtype, (2,))
    pick = Action("aten.view", (Var(0), [2]), {}, (row,))
    plan = PlanFile(Graph((row,), (pick,), Var(1)), {}, About("keep"))
    (kept,) = in_worker(plan, [whole], Loop(0, 1, Batches(2, shuffle=shuffle)))
    numbers = fold.order(6, 7, 0).tolist() if shuffle else range(6)
    assert kept.dtype == dtype
    assert kept.shape == (3, 2)
    assert bytes(to_raw(kept).data) == bytes(to_raw(torch.stack([whole[n] for n in numbers])).data)


# -- what flows where ------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.frozensets(st.integers(0, 5)), min_size=3, max_size=5))
def test_what_reaches_a_result_is_closed_over_all_steps(once):
    loop = Loop(3, 1, Batches(1))
    flows = [frozenset([n]) for n in range(6)]
    seen = [frozenset[int]()] * len(once)
    for _ in range(8):
        made = [frozenset[int]().union(*(flows[n] for n in reach)) for reach in once]
        seen = [a | b for a, b in zip(seen, made, strict=True)]
        flows[:3] = made[:3]
    for ours, unrolled in zip(fold.reaches(once, loop), seen, strict=True):
        assert ours >= unrolled | {3}


def test_what_is_carried_out_of_reviewed_data_waits_for_its_owner(tmp_path):
    worker = VirtualWorker("device_1", {"x": torch.arange(6)}, release="review", root=tmp_path)
    seen, sums = TRACE().send(worker).fold([torch.tensor(0)], [worker.find("x")], batch_size=2)
    for out in (seen, sums):
        with pytest.raises(WaitingForApproval):
            out.copy(timeout_s=0.3)
    worker.approve(sums)
    assert sums.copy(timeout_s=60).tolist() == [1, 5, 9]
    worker.client.close()


def test_a_metric_of_nothing_private_tells_how_many_rows_there_are_so_it_waits_too(tmp_path):
    worker = VirtualWorker("device_1", {"x": torch.arange(6)}, release="review", root=tmp_path)
    plan = plan_of(lambda c, x: (c + 1, c * 2), torch.tensor(0), torch.arange(2))
    _, metric = plan.send(worker).fold([torch.tensor(0)], [worker.find("x")], batch_size=2)
    with pytest.raises(WaitingForApproval):
        metric.copy(timeout_s=0.3)
    worker.client.close()


# -- both devices ----------------------------------------------------------------------------


def test_both_devices_leave_the_same_bytes(tmp_path):
    left = {}
    for kind in ("virtual", "daemon"):
        subject = Subject(kind, tmp_path / kind)
        try:
            device = subject.device
            x, y = (device.send(t) for t in ROWS)
            out = TRAIN().send(device).fold(WEIGHTS, [x, y], batch_size=8, epochs=3, shuffle=True)
            device.ask(out)
            device.flush()
            messages = subject.files("in")
            subject.serve()
            values = [p.copy(timeout_s=60) for p in out]
            left[kind] = messages, subject.files("out"), values
        finally:
            subject.close()
    assert left["virtual"][:2] == left["daemon"][:2]
    assert [v.shape for v in left["daemon"][2]] == [(4, 5), (4,), (15,)]
    assert left["daemon"][2][2][-1] < left["daemon"][2][2][0]


def test_the_carry_goes_on_in_a_second_fold_and_a_structure_is_kept(tmp_path):
    worker = VirtualWorker("device_1", {"x": ROWS[0], "y": ROWS[1]}, root=tmp_path, new_id=counter(0))

    def step(params, batch, rate):
        w, b, loss = _train(params["w"], params["b"], *batch)
        return {"w": w, "b": b}, {"loss": loss * rate}

    params = dict(zip("wb", WEIGHTS, strict=True))
    plan = plan_of(step, params, (ROWS[0][:8], ROWS[1][:8]), torch.tensor(1.0))
    pointer, data = plan.send(worker), (worker.find("x"), worker.find("y"))
    with worker.batch():
        carried, _ = pointer.fold([params], [data], [torch.tensor(2.0)], batch_size=8)
        twice, metrics = pointer.fold([carried], [data], [torch.tensor(2.0)], batch_size=8)
    whole = in_worker(TRAIN(), [*WEIGHTS, *ROWS], Loop(2, 2, Batches(8, 2)))
    assert torch.allclose(twice["w"].get(timeout_s=60), whole[0], atol=1e-6)
    assert torch.allclose(metrics["loss"].get(timeout_s=60), 2 * whole[2][5:], atol=1e-6)
    worker.client.close()


# -- what does not fit -----------------------------------------------------------------------


def _grows(c, x):
    return torch.cat([c, x])


REFUSED = {
    "no rows": (TRACE, [torch.tensor(0)], [torch.arange(0)], {}, "no rows"),
    "no full batch": (TRACE, [torch.tensor(0)], [torch.arange(3)], {"drop_last": True}, "no full batch of 4 in 3 rows"),
    "rows differ": (TRAIN, WEIGHTS, [ROWS[0], ROWS[1][:5]], {}, "37, 5 rows"),
    "no rows to cut": (TRACE, [torch.tensor(0)], [torch.tensor(3)], {}, "no first dimension"),
    "the carry changes": (
        Later(_grows, torch.arange(3), torch.arange(4)), [torch.arange(3)], [torch.arange(8)], {},
        "carry 0 is i64.3., but",
    ),
    "a metric changes": (
        Later(lambda c, x: (c, x * 2), torch.tensor(0), torch.arange(4)),
        [torch.tensor(0)], [torch.arange(6)], {}, "output 1 is i64.4. for batches of 4 and i64.2. for the last one",
    ),
    "the last batch is too small": (
        Later(lambda c, x: c + x.reshape(2, 2).sum(), torch.tensor(0), torch.arange(4)),
        [torch.tensor(0)], [torch.arange(5)], {}, "the last batch of 5 rows would have 1, not 4",
    ),
    "too few arguments": (TRAIN, WEIGHTS, ROWS[:1], {}, "requires 4 arguments, received 3"),
    "another dtype": (TRAIN, [w.double() for w in WEIGHTS], ROWS, {}, "f32 expected, f64"),
}  # fmt: skip


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    os.environ["FEDQ_USER"] = "alice"
    worker = VirtualWorker("device_1", root=tmp_path_factory.mktemp("quiet"))
    yield worker
    worker.client.close()


@pytest.mark.parametrize("why", REFUSED)
def test_what_does_not_fit_is_refused_before_it_is_sent(quiet, why):
    plan, carry, data, options, message = REFUSED[why]
    pointer = plan().send(quiet)
    before = quiet.pair.carrier.list("in")
    with pytest.raises(SpecMismatch, match=message):
        pointer.fold(carry, data, batch_size=4, **options)
    assert quiet.pair.carrier.list("in") == before


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2.0}, {"batch_size": 2, "epochs": 0}])
def test_a_count_that_is_none_is_refused(quiet, options):
    with pytest.raises(UsageError, match="is no count"):
        TRACE().send(quiet).fold([torch.tensor(0)], [torch.arange(8)], **options)


@pytest.mark.parametrize("options", [{"shuffle": "no"}, {"drop_last": 0}, {"drop_last": None}])
def test_a_word_for_yes_or_no_is_refused(quiet, options):
    with pytest.raises(UsageError, match="neither yes nor no"):
        TRACE().send(quiet).fold([torch.tensor(0)], [torch.arange(8)], batch_size=4, **options)


def test_the_device_refuses_what_the_requester_could_not_know(quiet):
    later = plan_of(lambda x: x[x > 2].sum().reshape(1).repeat(3), torch.arange(6)).send(quiet)(torch.arange(6))
    later.type = None
    out = TRACE().send(quiet).fold([later], [torch.arange(8)], batch_size=4)
    with pytest.raises(SpecMismatch):
        out[0].get(timeout_s=60)


def test_a_step_that_fails_is_named_with_its_action_and_line(quiet):
    pick = Action("aten.index_select", (Var(0), 0, Var(1)), {}, (Type("f32", (2,)),))
    graph = Graph((Type("f32", (2,)), Type("i64", (2,))), (pick,), Var(2))
    pointer = quiet.send_plan(PlanFile(graph, {}, About("pick", ("pick.py:7",))))
    out = pointer.fold([torch.ones(2)], [torch.tensor([0, 1, 1, 9])], batch_size=2)
    with pytest.raises(Failed, match=r"'pick'.*index_select.*pick.py:7.*in step 2 of 2") as caught:
        out.get(timeout_s=60)
    assert "9" not in str(caught.value)


# -- long ones -------------------------------------------------------------------------------


def slow(views: int) -> PlanFile:
    """The carry plus the sum of the batch, after views that nobody uses: a µs each, and no other core."""
    square, row = Type("f32", (64, 64)), Type("f32", ("n",))
    actions = [Action("aten.t", (Var(0),), {}, (square,)) for _ in range(views)]
    total = Action("aten.sum", (Var(1),), {}, (Type("f32", ()),))
    added = Action("aten.add.Tensor", (Var(0), Var(2 + views)), {}, (square,))
    outputs = (Var(3 + views), Var(2 + views))
    return PlanFile(Graph((square, row), (*actions, total, added), outputs, sizes={"n": 1}), {}, About("slow"))


@pytest.fixture
def rig(tmp_path):
    with Rig(tmp_path, data={"zeros": torch.zeros(64, 64), "x": torch.zeros(1000)}) as made:
        yield made


def fold_slowly(rig, rows):
    rig.start()
    pointer = rig.device.send_plan(slow(4000))
    data = rig.device.send(torch.ones(rows))
    out = pointer.fold([rig.device.find("zeros")], [data], batch_size=2)
    return out, wait_until(lambda: rig.heartbeat().running)


def test_progress_is_seen_by_whoever_waits_and_by_the_owner(rig):
    rows = 200_000  # minutes of steps: it runs still when the test has seen enough
    (_, sums), (running,) = fold_slowly(rig, rows)
    ((message, step, steps),) = wait_until(lambda: rig.heartbeat().progress)
    assert (message, steps) == (running, rows // 2)
    assert 0 <= step <= steps
    wait_until(lambda: rig.heartbeat().progress != ((message, step, steps),))
    why, code, _ = fetch.reason(rig.device, rig.device.ask([sums])[sums.id], sums.id)
    assert code == "timed_out"
    assert re.fullmatch(r"it is running: step \d+ of 100000", why)
    assert background.state(rig.config, "device_1")["progress"][0][2] == steps


def test_a_fold_whose_worker_is_killed_starts_again(rig):
    (carried, sums), _ = fold_slowly(rig, rows=1600)
    (worker,) = children(daemon.pid(rig.config))
    os.kill(worker, signal.SIGKILL)
    assert sums.get(timeout_s=120).tolist() == [2.0] * 800
    assert torch.equal(carried.get(timeout_s=60), torch.full((64, 64), 1600.0))
    wait_until(lambda: not (rig.heartbeat().progress or rig.heartbeat().running))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("shuffle", [False, True])
def test_neither_gate_nor_worker_ever_holds_the_data(tmp_path, shuffle):
    rows, width = 30_000, 2048
    step = plan_of(lambda c, x: (c + x.sum(0), x.sum()), torch.zeros(width), torch.ones(32, width))
    with Rig(tmp_path, data={"large": torch.ones(rows, width), "small": torch.ones(64, width)}) as rig:
        rig.start()
        pointer, start = step.send(rig.device), torch.zeros(width)
        pointer.fold([start], [rig.device.find("small")], batch_size=32, shuffle=shuffle)[0].get(timeout_s=60)
        pids = daemon.pid(rig.config), *children(daemon.pid(rig.config))
        before = sum(map(held_bytes, pids))
        sums = pointer.fold([start], [rig.device.find("large")], batch_size=512, shuffle=shuffle)[0]
        out = rig.device.pair.carrier.path(f"out/{rig.device.ask([sums])[sums.id]}.safetensors")
        held = []
        wait_until(lambda: held.append(sum(map(held_bytes, pids))) or out.exists())
        assert sums.get(timeout_s=60)[0] == rows
        assert max(held) - before < rows * width * 4 // 2


def held_bytes(pid: int) -> int:
    """Memory that the system could not take back: not that of files, which are mapped only."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [x for x in lines if x.startswith("RssAnon")]
    return int(line.split()[1]) * 1024
