"""Operators on pointers: checked at once, sent as one plan, dropped with their pointers."""

from __future__ import annotations

import copy
import gc
import inspect
import operator
import subprocess
import sys
import threading

import pytest
import torch
from torch.nn import functional as F

import fedq as fq
from fedq.client.pending import Pending, Step
from fedq.errors import CannotRecord, SpecMismatch, Unreachable, UsageError
from fedq.local import VirtualWorker
from fedq.plan.codec import decode
from fedq.plan.graph import Action, Graph, Type, Var
from fedq.queue.message import Drop, Run, SendPlan, decode_message

X, Y = torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 4.0])


@pytest.fixture
def device(tmp_path):
    worker = VirtualWorker("device_1", {"x": X, "y": Y, "m": torch.arange(6.0).reshape(2, 3)}, root=tmp_path)
    yield worker
    worker.client.close()


@pytest.fixture
def x(device):
    return device.find("x")


@pytest.fixture
def y(device):
    return device.find("y")


def sent(device):
    """The messages that lie in the pair, oldest first."""
    carrier = device.pair.carrier
    files = [decode(memoryview(carrier.get(f"in/{n}"))) for n in sorted(carrier.list("in"))]
    return sorted(map(decode_message, files), key=lambda m: m.created)


def kinds(message):
    return [type(a).__name__ for a in message.actions]


OPERATIONS = {
    "add": lambda p, q: p + q,
    "with a number on the left": lambda p, q: 2 - p,
    "matmul": lambda p, q: p @ q,
    "negative": lambda p, q: -p,
    "power and remainder": lambda p, q: q**2 % 5,
    "compare": lambda p, q: (p < q) & (p != q),
    "equal": lambda p, q: p == 2,
    "item": lambda p, q: p[0],
    "slice": lambda p, q: p[1:],
    "new axis": lambda p, q: p[None, ..., 0],
    "by index": lambda p, q: p[torch.tensor([1, 0])],
    "a tensor on the left": lambda p, q: torch.ones(2) + p,
    "function": lambda p, q: torch.add(p, q, alpha=2),
    "functional": lambda p, q: torch.nn.functional.softmax(p, dim=0),
    "stack": lambda p, q: torch.stack([p, q]),
    "method": lambda p, q: p.reshape(2, 1).sum(),
    "property": lambda p, q: p.reshape(2, 1).mT,
    "where": lambda p, q: torch.where(p > 0, p, q),
    "both sides the same": lambda p, q: p * p,
    "cast": lambda p, q: p.to(torch.int64) + p.double(),
    "its own input": lambda p, q: p.contiguous(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_what_torch_gives(device, x, y, name):
    wanted, made = OPERATIONS[name](X, Y), OPERATIONS[name](x, y)
    assert (made.shape, made.dtype) == (tuple(wanted.shape), wanted.dtype)
    got = made.get(timeout_s=20)
    assert torch.equal(got, wanted) and got.dtype == wanted.dtype


def test_several_results_keep_their_structure(device, x):
    values, indices = x.sort(descending=True)
    a, b = x.split(1)
    assert [t.tolist() for t in fq.gather([values, indices, a, b], 20)] == [[2, -1], [1, 0], [-1], [2]]
    assert torch.equal(torch.stack(list(x)).get(20), X)


def test_nothing_is_sent_before_a_value_is_asked_for_and_then_one_message(device, x, y):
    total = x
    for _ in range(500):
        total = total + y
    assert sent(device) == []
    replies = device.ask([total])
    (message,) = sent(device)
    assert kinds(message) == ["SendPlan", "Run", "Get"] and list(replies.values()) == [total.id]
    assert len(message.actions[0].graph.actions) == 500
    assert torch.allclose(total.get(20), X + 500 * Y)


def test_every_pointer_still_in_use_becomes_an_output_and_nothing_else_is_computed(device, x, y):
    first = x + y
    second = (first * 2).abs()
    _unused = [first - 1]
    _unused.clear()
    device.flush()
    plan, run = sent(device)[0].actions
    assert [a.op for a in plan.graph.actions] == ["aten.add.Tensor", "aten.mul.Tensor", "aten.abs"]
    assert set(run.results) == {first.id, second.id}
    assert [t.tolist() for t in fq.gather([first, second], 20)] == [[2, 6], [4, 12]]


def test_the_same_operations_again_need_no_second_plan(device, x):
    assert (x * 2 + 1).get(20).tolist() == [-1, 5]
    assert (x * 2 + 1).get(20).tolist() == [-1, 5]
    assert len(device.catalog().plans) == 1


def test_a_result_goes_into_a_plan_in_one_message(device, x, y):
    plan = fq.func2plan(args_shape=[(-1,)])(lambda t: t.abs()).send(device)
    device.step()
    out = plan(x - y)
    assert [kinds(m) for m in sent(device)] == [["SendPlan", "Run", "Run"]]
    assert out.get(20).tolist() == [4, 2]


def test_reading_an_id_promises_it_and_printing_sends_nothing(device, x):
    out = x * 3
    assert "not sent yet" in repr(out) and f"device_1:{out.address}" in repr(out) and "f32[2]" in repr(out)
    assert sent(device) == []
    assert device.find(out.id).copy(20).tolist() == [-3, 6]
    assert "not sent yet" not in repr(out)


def test_a_batch_carries_them_and_a_token_makes_the_same_ids(device, x):
    ids = []
    for _ in range(2):
        with device.batch(token="nightly"):
            out = x + 1
            device.settle()
        ids.append(out.id)
    assert ids[0] == ids[1] and len([m for m in sent(device) if m.token]) == 1
    assert out.get(20).tolist() == [0, 3]


def test_a_message_that_could_not_be_sent_is_sent_with_the_next_question(device, x, tmp_path):
    out = x + 1
    mark = tmp_path / "queue" / ".fedq"
    kept = mark.read_bytes()
    mark.unlink()
    with pytest.raises(Unreachable):
        out.get(20)
    mark.write_bytes(kept)
    assert out.get(20).tolist() == [0, 3]


def test_shapes_and_dtypes_are_known_without_asking(device):
    m = device.find("m")
    assert (m.size(), m.dim(), m.numel(), len(m), m.is_floating_point()) == ((2, 3), 2, 6, 2, True)
    assert (m.T @ m).shape == (3, 3) and sent(device) == []


REFUSED = {
    "shapes that do not fit": (lambda x, y: x + torch.ones(3), SpecMismatch, r"add\(f32\[2\], f32\[3\]\): .*3.*2"),
    "an index out of range": (lambda x, y: x[5], SpecMismatch, r"getitem\(f32\[2\]\): index 5 is out of bounds"),
    "a wrong dtype": (lambda x, y: x @ torch.ones(2, dtype=torch.int64), SpecMismatch, "matmul.*same dtype"),
    "a mask": (lambda x, y: x[x > 0], CannotRecord, "the size of a result depends on data"),
    "a number of it": (lambda x, y: x.sum().item(), CannotRecord, "it gives a number"),
    "an array of it": (lambda x, y: x.numpy(), CannotRecord, "NumPy"),
    "a condition": (lambda x, y: 1 if x[0] > 0 else 2, CannotRecord, "needs the value of a pointer"),
    "int of it": (lambda x, y: int(x[0]), CannotRecord, "needs the value"),
    "float of it": (lambda x, y: float(x[0]), CannotRecord, "needs the value"),
    "as an index": (lambda x, y: [1, 2][x], CannotRecord, "needs the value"),
    "in place": (lambda x, y: x.add_(1), UsageError, "add_ would change a value"),
    "in place, a local tensor": (lambda x, y: torch.ones(2).mul_(x), UsageError, "mul_ would change"),
    "out=": (lambda x, y: torch.add(x, y, out=torch.ones(2)), UsageError, "out= of add"),
    "added in place": (lambda x, y: operator.iadd(x, y), UsageError, r"p \+= q would change"),
    "an item set": (lambda x, y: x.__setitem__(0, 1.0), UsageError, "never changed"),
    "what no plan may hold": (lambda x, y: torch.as_strided(x, (1,), (1,)), CannotRecord, "torch.as_strided"),
    "statistics": (lambda x, y: torch.nn.BatchNorm1d(1)(x[:, None]), UsageError, "batch_norm in training would change"),
    "a renormed table": (
        lambda x, y: torch.nn.functional.embedding(torch.tensor([0]), x[:, None], max_norm=1.0),
        UsageError,
        r"embedding\(.*\) would change what it is given",
    ),
    "statistics given by hand": (
        lambda x, y: torch.batch_norm(x[:, None], None, None, torch.zeros(1), torch.ones(1), True, 0.1, 0.1, False),
        UsageError,
        r"batch_norm\(.*\) would change what it is given",
    ),
    "a text": (lambda x, y: x.add("text"), SpecMismatch, "add.*must be Tensor, not str"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_done_is_refused_at_once_with_what_to_do(device, x, y, name):
    do, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text) as caught:
        do(x, y)
    assert caught.value.hint
    assert sent(device) == []


INPLACE = sorted(
    name
    for name, f in vars(F).items()
    if inspect.isfunction(f) and not name.startswith("_") and "inplace" in inspect.signature(f).parameters
)


@pytest.mark.parametrize("name", INPLACE)
def test_a_function_that_writes_to_its_argument_is_refused_and_without_that_right(device, x, name):
    function, more = getattr(F, name), (0.5, 1.0) if name == "threshold" else ()
    with pytest.raises(UsageError, match=f"{name} with inplace=True would change a value") as caught:
        function(x, *more, inplace=True, **({"training": True} if "dropout" in name else {}))
    assert f"torch.nn.functional.{name}" in caught.value.hint
    still = {"training": False} if "dropout" in name else {}
    shape = (1,) * (int(name[-2]) + 1) + (2,) if name.endswith("d") and name[-2].isdigit() else (2,)
    if name != "rrelu":  # which no plan holds
        made = function(x.reshape(shape), *more, **still)
        assert torch.equal(made.get(20), function(X.reshape(shape), *more, **still))
    assert torch.equal(x.copy(20), X)


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d(3), torch.nn.InstanceNorm1d(3, track_running_stats=True)])
def test_a_norm_in_training_is_refused_and_its_statistics_stay_after_eval_it_is_right(device, layer):
    m, values = device.find("m").reshape(1, 3, 2), torch.arange(6.0).reshape(1, 3, 2)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(UsageError, match="in training would change running statistics") as caught:
        layer(m)
    assert ".eval()" in caught.value.hint
    assert all(torch.equal(t, before[n]) for n, t in layer.state_dict().items())
    layer.eval()
    assert torch.allclose(layer(m).get(20), layer(values))
    assert all(torch.equal(t, before[n]) for n, t in layer.state_dict().items())


def test_a_model_after_eval_may_say_inplace_where_nothing_is_written(device, x):
    assert torch.equal(torch.nn.Dropout(inplace=True).eval()(x).get(20), X)


def test_p_at_q_into_p_is_a_new_value_as_with_tensors(device):
    m = square = device.send(torch.arange(4.0).reshape(2, 2))
    square @= m
    assert torch.equal(square.get(20), torch.tensor([[2.0, 3.0], [6.0, 11.0]])) and square is not m


def test_no_attribute_of_no_tensor_is_made_up(x):
    for name in ("bogus", "_private", "__array_interface__"):
        assert not hasattr(x, name)
    with pytest.raises(AttributeError, match="no 'bogus'"):
        x.bogus()


def test_values_of_two_devices_do_not_meet_by_themselves(device, x, tmp_path):
    other = VirtualWorker("device_2", {"z": Y}, root=tmp_path / "other")
    z = other.find("z")
    with pytest.raises(UsageError, match="add: one argument is on device_1, another on device_2") as caught:
        x + z
    assert "move(device_1)" in caught.value.hint
    assert (x + z.move(device)).get(20).tolist() == [2, 6]
    other.client.close()


def test_an_action_that_fails_there_names_the_users_line(device, x):
    index = device.send(torch.tensor([9]))
    out = torch.index_select(x, 0, index)
    with pytest.raises(fq.Failed, match=r"aten.index_select failed: index out of range   test_lazy.py:\d+"):
        out.get(20)


def test_what_was_taken_away_is_not_computed_with(device, x):
    out = x + 1
    out.get(20)
    with pytest.raises(UsageError, match="taken away"):
        out * 2


# -- values go with their pointers


def drops(device):
    return [v for m in sent(device) for a in m.actions if isinstance(a, Drop) for v in a.values]


def test_a_value_goes_with_its_pointer_by_the_next_message_and_deleting_does_no_io(device, x):
    plan = fq.func2plan(args_shape=[(-1,)])(lambda t: t * 2).send(device)
    out, kept = plan(x), plan(x)
    address = out.address
    before = len(sent(device))
    del out
    gc.collect()
    assert len(sent(device)) == before
    assert torch.equal((kept + 1).get(20), X * 2 + 1)
    assert device.gate.served["device_1"].journal.value(device.client.name, address) is None
    assert kept.copy(20).tolist() == [-2, 4]


def test_what_a_value_is_needed_for_is_done_before_it_goes(device, x):
    plan = fq.func2plan(args_shape=[(-1,)])(lambda t: t * 2).send(device)
    chained = plan(plan(plan(x)))
    final = plan(chained)
    del chained
    other = plan(x)
    assert len(drops(device)) == 3
    assert final.get(20).tolist() == [-16, 32] and other.get(20).tolist() == [-2, 4]


def test_what_somebody_may_have_noted_stays(device, x):
    plan = fq.func2plan(args_shape=[(-1,)])(lambda t: t * 2).send(device)
    read, printed, tagged, found = plan(x), plan(x), device.send(X, tag="mine"), device.find("x")
    ids = [read.id, repr(printed) and printed.address, tagged.address]
    del read, printed, tagged, found
    plan(x).get(20)
    assert drops(device) == []
    assert [device.find(i).taken for i in (*ids, "x", "mine")] == [False] * 5


def test_a_token_can_be_asked_again_though_its_pointers_are_gone(device, x):
    plan = fq.func2plan(args_shape=[(-1,)])(lambda t: t * 2).send(device)
    for _ in range(2):
        with device.batch(token="t"):
            out = plan(x)
        address = out.address
        del out
    plan(x).get(20)
    assert device.find(address).copy(20).tolist() == [-2, 4]


def test_copies_of_a_pointer_are_the_pointer(device, x):
    out = x + 1
    assert copy.copy(out) is copy.deepcopy([out])[0] is out
    assert {out: 1}[out] == 1 and out in [out] and (out is None) is False


def test_a_value_made_and_left_in_one_batch_goes_with_a_later_message(device, x):
    plan = fq.func2plan(args_shape=[(-1,)])(lambda t: t * 2).send(device)
    device.step()
    with device.batch():
        out = plan(plan(x))
    assert drops(device) == []
    again = plan(x)
    assert len(drops(device)) == 1
    assert out.get(20).tolist() == [-4, 8] and again.get(20).tolist() == [-2, 4]


# -- pending, by itself


class Alive:
    def __init__(self, address):
        self.address = address


VEC = Type("f32", (2,))


def step(given, result):
    graph = Graph((VEC,) * len(given), (Action("aten.relu", (Var(len(given) - 1),), {}, (VEC,)),), Var(len(given)))
    return Step(graph, tuple(given), (result,), "a.py:1")


def test_too_many_operations_for_one_plan_are_several_that_hand_on_their_values(monkeypatch):
    monkeypatch.setattr("fedq.client.pending.MAX_ACTIONS", 6)
    pending, source = Pending(), Alive("x")
    before = source
    for n in range(10):
        last = Alive(f"v{n}")
        pending.add(step([before.address if n else source], f"v{n}"), [last])
        before = last
    parts = pending.parts()
    assert [len(steps) for steps, _ in parts] == [3, 3, 3, 1]
    assert [outputs for _, outputs in parts] == [["v2"], ["v5"], ["v8"], ["v9"]]


def test_a_run_of_pending_operations_is_an_ordinary_message(device, x):
    out = x.relu()
    device.flush()
    (message,) = sent(device)
    assert [type(a) for a in message.actions] == [SendPlan, Run]
    assert message.actions[0].about.name == "operations" and message.actions[0].about.lines[0].startswith(
        "test_lazy.py:"
    )
    assert out.get(20).tolist() == [0, 2]


def test_a_process_that_ends_with_pointers_in_hand_ends_quietly(tmp_path):
    script = """
import threading, torch, fedq as fq
worker = fq.VirtualWorker(data={"x": torch.ones(2)})
x = worker.find("x")
plan = fq.func2plan(args_shape=[(-1,)])(lambda t: t + 1).send(worker)
made, waiting, cycle = plan(x), x * 2, []
cycle.append((cycle, plan(x)))
thread = threading.Thread(target=lambda box: box.clear(), args=([plan(x)],))
thread.start(); thread.join()
globals()["kept"] = [plan(x), x - 1]
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_pointers_may_be_deleted_in_any_thread_while_others_send(device, x):
    plan = fq.func2plan(args_shape=[(-1,)])(lambda t: t + 1).send(device)
    boxes = [[plan(x)] for _ in range(100)]
    threads = [threading.Thread(target=box.clear) for box in boxes]
    outs = []
    for thread in threads:
        thread.start()
        outs.append(plan(x))
    for thread in threads:
        thread.join()
    last = plan(x)
    assert len(set(drops(device))) == len(drops(device)) == 100
    assert [t.tolist() for t in fq.gather([*outs, last], 60)] == [[0, 3]] * 101
