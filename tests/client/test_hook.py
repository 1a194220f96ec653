"""PySyft's words on torch.Tensor, and a device made with them."""

from __future__ import annotations

import pytest
import torch

import fedq as sy
from fedq.device.home import Requester
from fedq.errors import Conflict, UnknownPlan, UnknownValue, UsageError
from fedq.local import VirtualWorker
from fedq.queue.message import Get, Ref, Run
from fedq.trust.keys import Key
from tests.client.world import double_abs


@pytest.fixture
def hook():
    with sy.TorchHook(torch) as hook:
        yield hook


@pytest.fixture
def workers(hook, tmp_path):
    made = []

    def make(id, data=(), **how):
        made.append(VirtualWorker(hook, id=id, data=data, root=tmp_path / id, **how))
        return made[-1]

    yield make
    for worker in made:
        worker.client.close()


def test_torch_is_untouched_without_a_hook_and_after_it():
    before = dict(torch.Tensor.__dict__)
    hook = sy.TorchHook(torch)
    assert torch.Tensor.__dict__.keys() - before.keys() == {
        "tag", "describe", "private_tensor", "send", "tags", "description",
    }  # fmt: skip
    assert sy.TorchHook(torch).torch is torch
    hook.restore()
    hook.unhook()
    assert dict(torch.Tensor.__dict__) == before
    assert not hasattr(torch.ones(1), "tag")


def test_a_word_that_another_library_put_there_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "tag", "theirs", raising=False)
    with pytest.raises(Conflict, match=r"torch.Tensor.tag is another library's"):
        sy.TorchHook(torch)
    assert torch.Tensor.tag == "theirs" and not hasattr(torch.Tensor, "describe")


def test_tags_come_with_and_without_their_sign_and_belong_to_one_tensor(hook):
    x = torch.tensor([-1, 2.0]).tag("input_data", "#fun").tag("#input_data", "more").describe(" two\nnumbers ")
    assert (x.tags, x.description) == (("input_data", "fun", "more"), "two numbers")
    assert (x + 1).tags == () and torch.nn.Parameter(torch.ones(1)).tag("w").tags == ("w",)


WRONG = {
    "tag with a space": (lambda x: x.tag("two words"), "'two words' can not be a tag"),
    "no text": (lambda x: x.tag(3), "3 can not be a tag"),
    "only a sign": (lambda x: x.tag("#"), "'#' can not be a tag"),
    "long description": (lambda x: x.describe("x" * 801), "at most 800"),
    "one name for many": (lambda x: x.private_tensor("alice"), r"allowed_users='alice' is one text"),
    "sent to nobody": (lambda x: x.send(), "takes devices"),
    "sent to a name": (lambda x: x.send("device_1"), "takes devices"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words_are_refused(hook, name):
    do, text = WRONG[name]
    with pytest.raises(UsageError, match=text):
        do(torch.ones(1))


def test_a_worker_holds_tagged_tensors_in_pysyfts_order_of_arguments(hook, workers, tmp_path):
    hook.local_worker.is_client_worker = False
    x1 = torch.tensor([-1, 2.0]).tag("input_data").describe("of the north")
    x2 = torch.tensor([[1.0]]).tag("#labels", "#mnist")
    device = workers("device_1", (x1, x2))
    found = device.search("input_data")[0]
    assert (found.tag, found.shape, found.location.name) == ("input_data", (2,), "device_1")
    assert device.find("mnist").id == device.search("#labels", "mnist")[0].id
    assert [p.tag for p in device.search("NORTH")] == ["input_data"]
    for n, given in enumerate([(hook, "d", (x1,)), ("d", {"input_data": x1}), (hook, "d", {"input_data": x1})]):
        other = VirtualWorker(*given, root=tmp_path / f"other{n}")
        assert (other.name, other.find("input_data").shape) == ("d", (2,))
        other.client.close()


def test_data_that_nobody_could_find_is_refused(hook, workers):
    with pytest.raises(UsageError, match=r"data\[1\] has no tag") as caught:
        workers("device_1", (torch.ones(1).tag("x"), torch.ones(1)))
    assert "x.tag(" in caught.value.hint
    with pytest.raises(UsageError, match="takes a hook, an id and data"):
        VirtualWorker(hook, "a", (), "more")


def test_a_sent_tensor_is_found_by_all_its_tags_and_its_description(workers):
    device = workers("device_1")
    pointer = torch.ones(2).tag("mine", "second").describe("made here").send(device)
    device.step()
    assert [device.find(t).id for t in ("mine", "second")] == [pointer.id] * 2
    assert device.search("made here")[0].id == pointer.id
    assert pointer.copy(20).tolist() == pointer.get(20).tolist() == [1, 1]
    with pytest.raises(sy.FedqError, match="taken away"):
        pointer.get(20)


def test_a_plan_at_several_devices_runs_where_its_arguments_are(workers):
    one, two = workers("device_1"), workers("device_2")
    plan = sy.func2plan(args_shape=[(-1,), (-1,)])(lambda x, y: x - y)
    both = plan.send(one, two)
    x, y = torch.tensor([1.0, 2.0]).send(one, two), torch.tensor([3.0])[0:1].send(two)
    assert both(x, x)[0].get(20).tolist() == [0, 0]
    assert both(x[1], x[1]).location is two and both(y, torch.ones(1)).get(20).tolist() == [2]
    assert [p.get(20).tolist() for p in both(torch.ones(1), torch.ones(1))] == [[0], [0]]
    assert [r.location.name for r in both(x, torch.ones(2))] == ["device_1", "device_2"]
    assert [t.tolist() for t in x.copy(20)] == [[1, 2]] * 2
    other = workers("device_3")
    with pytest.raises(UsageError, match="sent to device_1, device_2, the argument is on device_3"):
        both(torch.ones(1).send(other), 1)
    with pytest.raises(UsageError, match="the plan is on device_1, and none"):
        both.on(one) and both(torch.ones(2).send(two, other), torch.ones(2))


def test_sending_twice_is_one_send_and_building_anew_makes_a_new_plan(workers):
    device = workers("device_1")
    plan = sy.func2plan()(lambda x: x * 2)
    with pytest.raises(RuntimeError, match="is not built"):
        plan.send(device)
    with pytest.raises(UsageError, match="sent to no device"):
        plan.send()
    plan.build(torch.ones(2))
    first = plan.send(device)
    assert plan.send(device) is first
    plan.build(torch.ones(2, 2, dtype=torch.float64))
    assert plan.send(device).id != first.id
    assert plan.copy().id == plan.id and plan.copy() is not plan


def test_training_a_copy_leaves_the_plan_alone():
    class Net(sy.Plan):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(2, 1)

        def forward(self, x):
            return self.fc(x)

    net = Net()
    net.build(torch.ones(1, 2))
    other, before = net.copy(), net.id
    assert other.id == before and other.is_built and [p.shape for p in net.parameters()] == [(1, 2), (1,)]
    with torch.no_grad():
        other.fc.weight.add_(1)
    assert other.id != before and net.id == before
    bias = sy.func2plan(state=(torch.ones(1),))(lambda x, state: x + state.read()[0])
    assert [t.tolist() for t in bias.parameters()] == [[1]]


# -- plans come back


def test_a_plan_comes_back_with_its_state_and_stays(workers):
    device = workers("device_1")
    net = sy.func2plan(args_shape=[(-1, 2)])(torch.nn.Linear(2, 1))
    pointer = net.send(device)
    for back in (pointer.get(20), pointer.copy(20)):
        assert back.id == net.id and torch.equal(back(torch.ones(3, 2)), net(torch.ones(3, 2)))
    assert pointer(torch.ones(1, 2)).get(20).shape == (1, 1)


def test_a_plan_that_the_device_refused_or_never_got_comes_back_as_that_error(workers):
    device = workers("device_1")
    bad = sy.func2plan(args_shape=[(-1,)])(lambda x: x.relu()).send(device)
    device.pending.steps.clear()
    never = sy.PointerPlan(device, "0" * 64, bad.graph, bad.about)
    reply = device.ask_plan(never.id)
    with pytest.raises(sy.TimedOut, match="plan 000000000000 did not come"):
        never.get(0.0)
    assert reply
    device._clock = lambda: sy.fs.clock() + 7200
    with pytest.raises(UnknownPlan, match=r"plan 000000000000 is not on the device \(on device_1\)"):
        never.get(20)


# -- values for named requesters


def test_a_value_is_shown_to_those_it_is_allowed_to_and_to_nobody_else(workers, hook):
    device = workers("device_1")
    me, bob = device.client.name, f"bob-{Key.from_seed(b'b' * 32).fingerprint}"
    ours = device.add(torch.ones(2), tag="ours", allow=[me, bob])
    theirs = device.add(torch.ones(2), tag="theirs", allow=[bob])
    assert [p.tag for p in device.search()] == ["ours"] and device.find(ours).shape == (2,)
    with pytest.raises(UnknownValue, match=r"no value 'theirs' on device_1 \(tags there: ours\)"):
        device.find("theirs")
    with pytest.raises(UnknownValue, match="never promised"):
        device.find(theirs)
    trusted = Requester(bob, Key.from_seed(b"b" * 32).public.hex())
    device.home.trust(trusted)
    assert {e.tag for e in device.home.catalog(trusted).values} == {"ours", "theirs"}


def test_a_reference_to_a_value_of_others_is_to_nothing(workers):
    device = workers("device_1")
    secret = device.add(torch.tensor([41.0, 42.0]), tag="secret", allow=["bob-00000000"])
    never = "f" * 32
    device.send_plan(double_abs())
    answers = []
    for id_ in (secret, never):
        made, reply = device.client.new_id(), device.client.new_id()
        device.submit([Run(double_abs().id, (Ref(id_),), {}, (made,)), Get(reply, (id_,))], types={made: None})
        answers.append((made, reply))
    device.step()
    assert device.pair.carrier.list("out") == []
    device._clock = lambda: sy.fs.clock() + 7200
    device.step()
    texts = [str(device.client.outcomes([device.find(made)], 0)[0]) for made, _ in answers]
    assert texts[0].replace(secret, "ID") == texts[1].replace(never, "ID") and "never came" in texts[0]
    assert all(b"\x00\x00\x24\x42" not in device.pair.carrier.get(f"out/{n}") for n in device.pair.carrier.list("out"))


def test_a_name_without_its_key_is_not_enough(workers, hook):
    device = workers("device_1")
    name = device.client.name.partition("-")[0]
    with pytest.raises(UsageError, match=f"'{name}' can not be allowed") as caught:
        device.load_data([torch.ones(1).tag("x").private_tensor(allowed_users=[name])])
    assert device.client.name in caught.value.hint
    device.load_data([torch.ones(1).tag("x").private_tensor(allowed_users=[device.client.name])])
    assert device.find("x").shape == (1,)


def test_what_is_sent_is_ones_own_and_can_not_be_shown_to_others(workers):
    device = workers("device_1")
    mine = torch.ones(1).private_tensor(allowed_users=[device.client.name]).send(device)
    assert mine.get(20).tolist() == [1]
    with pytest.raises(UsageError, match="yours alone; it can not be shown to bob-00000000") as caught:
        torch.ones(1).private_tensor(allowed_users=["bob-00000000"]).send(device)
    assert "--allow bob-00000000" in caught.value.hint
