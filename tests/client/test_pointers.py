"""The Python face with real tensors: calls, results, gathering, plans saved and loaded."""

from __future__ import annotations

import pytest
import torch

import fedq as fq
from fedq.client import pointers
from fedq.plan.file import PlanFile, encode_plan
from fedq.plan.graph import About, Action, Graph, Type, Var
from fedq.plan.tensors import from_raw, to_raw
from fedq.queue.message import Failure, Get, Number, Put, Run
from fedq.queue.pair import Entry
from tests.client.world import ALICE, double_abs

X = "aaaaaa" + "0" * 26


@pytest.fixture
def x(side, device):
    side.catalog(Entry(X, "input_data", Type("f32", (2,)), "open"))
    return device.find("input_data")


def answer(side, *values):
    """Reply to the one get that lies there, with these values in order."""
    ((message, tensors),) = side.take()
    (get,) = [a for a in message.actions if isinstance(a, Get)]
    raw = [to_raw(v) if isinstance(v, torch.Tensor) else v for v in values]
    side.reply(get.reply, dict(zip(get.values, raw, strict=True)))
    return message, tensors


class Answering:
    """Replies as soon as somebody waits."""

    def __init__(self, side, *values):
        self.side, self.values = side, values

    def __call__(self):
        if self.side.messages():
            self.seen = answer(self.side, *self.values)


def test_pointers_tell_shape_and_dtype(device, x):
    out = device.send_plan(double_abs())(x)
    assert (out.shape, out.dtype, str(out.type)) == ((2,), torch.float32, "f32[2]")
    assert pointers.PointerTensor(device, "b" * 32, None).dtype is None


def test_a_tensor_is_sent_and_comes_back_equal(device, side):
    tensor = torch.arange(6.0).reshape(2, 3).t()
    device.client.pump = Answering(side, tensor)
    with device.batch():
        pointer = device.send(tensor, tag="mine")
        assert torch.equal(pointer.get(timeout_s=5), tensor)
    message, tensors = device.client.pump.seen
    assert message.actions == (Put(pointer.id, "t0", "mine"), Get(pointer.id, (pointer.id,)))
    assert torch.equal(from_raw(tensors["t0"]), tensor)


def test_get_takes_away_and_copy_leaves(device, side, x):
    out = device.send_plan(double_abs())(x)
    side.take()
    device.client.pump = Answering(side, torch.tensor([2.0, 4.0]))
    assert out.copy(5).tolist() == out.copy(5).tolist() == out.get(5).tolist() == [2, 4]
    for use in (out.get, out.copy, lambda: device.plan("double_abs")(out)):
        with pytest.raises(fq.FedqError, match=r"taken away by \.get\(\)"):
            use()


def test_gather_asks_once_and_keeps_the_order_over_devices(world, device, side, x):
    other = world.device("device_2")
    there = device.client.device("device_2")
    a, b, c = device.send_plan(double_abs())(x), there.send(torch.ones(1)), device.plan("double_abs")(x)
    side.take(), other.take()
    here_answers, there_answers = Answering(side, torch.tensor(1), torch.tensor(3)), Answering(other, torch.tensor(2))
    device.client.pump = lambda: (here_answers(), there_answers())
    assert fq.gather([a, b, c], 5) == [1, 2, 3]


def test_a_number_comes_back_as_a_number_and_a_structure_as_it_was(device, side):
    vector = Type("f32", ("n",))
    actions = (Action("sym.size", (Var(0), 0), {}, (Type("int"),)),)
    graph = Graph((vector,), actions, {"n": Var(1), "rest": [(Var(0), None)]}, sizes={"n": 0})
    plan = device.send_plan(PlanFile(graph, {}, About("sizes")))
    side.take()
    out = plan(torch.ones(3))
    assert out["rest"][0][1] is None and isinstance(out["rest"], list)
    assert str(out["n"].type) == "int" and out["n"].shape is None
    side.take()
    device.client.pump = Answering(side, Number(3))
    assert out["n"].get(5) == 3


def test_numbers_travel_as_numbers(device, side):
    graph = Graph((Type("int"), Type("float")), (), (Var(0), Var(1)))
    plan = device.send_plan(PlanFile(graph, {}, About("pair")))
    side.take()
    plan(3, 0.5)
    assert side.only().actions[0].args == (3, 0.5)
    with pytest.raises(fq.SpecMismatch, match="input 1"):
        plan(3, True)


def test_a_failure_is_raised_and_nothing_is_taken(device, side, x):
    plan = device.send_plan(double_abs())
    out, bad = plan(x), plan(x)
    side.take()
    device.client.pump = Answering(side, torch.ones(1), Failure("failed", "no", {}))
    with pytest.raises(fq.Failed, match=r"no \(on device_1\)"):
        fq.gather([out, bad], 5)
    assert out.copy(5) == 1


def test_a_value_of_unknown_type_is_checked_by_the_device(device, side):
    plan = device.send_plan(double_abs())
    side.take()
    out = plan(pointers.PointerTensor(device, "b" * 32, None))
    assert out.type is None and out.shape is None
    assert isinstance(side.only().actions[0], Run)
    with pytest.raises(fq.SpecMismatch, match="requires 1 argument, received 2"):
        plan(out, out)


def test_what_is_no_tensor_is_refused_with_what_to_pass(device):
    with pytest.raises(fq.UsageError, match="str can not be sent") as caught:
        device.send("text")
    assert "torch.as_tensor" in caught.value.hint


def test_a_plan_is_saved_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDQ_HOME", str(tmp_path / "home"))
    plan = fq.func2plan(args_shape=[(-1,)])(lambda x: x * 2)
    plan.save(tmp_path / "twice.safetensors")
    loaded = fq.load(tmp_path / "twice.safetensors")
    assert loaded.id == plan.id and loaded.graph == plan.graph
    assert loaded(torch.tensor([3.0])).tolist() == [6]


def test_a_plan_file_that_cannot_be_believed_is_refused_by_name(tmp_path):
    with pytest.raises(fq.FileMissing, match="no file nowhere"):
        fq.load("nowhere.safetensors")
    (tmp_path / "cut").write_bytes(b"".join(encode_plan(double_abs(), ALICE))[:-9])
    with pytest.raises(fq.BadSignature, match=r"cut: not a signed fedq plan"):
        fq.load(tmp_path / "cut")
    bad = PlanFile(Graph((), (Action("aten.from_file", ("/etc/passwd",), {}, (Type("u8", (1,)),)),), Var(0)))
    (tmp_path / "bad").write_bytes(b"".join(encode_plan(bad, ALICE)))
    with pytest.raises(fq.NotAllowed, match=r"aten\.from_file"):
        fq.load(tmp_path / "bad")


def test_state_is_read_when_sent_and_a_batch_keeps_a_copy(device, side):
    weight = torch.ones(2)
    graph = Graph((), (), Var(0), state=(("w", Type("f32", (2,))),))

    def plan() -> PlanFile:
        return PlanFile(graph, {"w": to_raw(weight)}, About("state"))

    with device.batch():
        first = device.send_plan(plan())
        weight += 1
        second = device.send_plan(plan())
    ((message, tensors),) = side.take()
    assert first.id != second.id
    assert [from_raw(tensors[a.tensors[0]]).tolist() for a in message.actions] == [[1, 1], [2, 2]]
