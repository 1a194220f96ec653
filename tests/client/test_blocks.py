"""A block with a token: what it asks for is what its lines say, whatever the process that does it has in memory."""

from __future__ import annotations

import time

import pytest
import torch

import fedq as fq
from fedq import ids
from fedq.client.draft import Draft, Envelope, seal
from fedq.client.session import Client
from fedq.errors import Conflict, Denied, FedqError, UnknownPlan, UnknownValue, UsageError, WaitingForApproval
from fedq.local import VirtualWorker
from fedq.plan.codec import decode
from fedq.queue.message import Address, Drop, Run, SendPlan, decode_message
from fedq.trust.keys import Key
from tests import second_reader

X = torch.tensor([-1.0, 2.0])


@pytest.fixture
def worker(tmp_path):
    made = VirtualWorker("device_1", {"x": X, "rows": torch.arange(7.0)}, root=tmp_path)
    yield made
    made.client.close()


@pytest.fixture
def again(worker):
    """The same device in what could be another process: nothing but the files is the same."""
    clients = []

    def other():
        clients.append(Client(worker.client.config, pump=worker.step))
        return clients[-1].device("device_1")

    yield other
    for client in clients:
        client.close()


def doubled():
    return fq.func2plan(args_shape=[(-1,)])(lambda t: t * 2)


def noisy(n=2):
    return fq.func2plan()(lambda t: t + torch.rand_like(t)).build(torch.ones(n))


def messages(device):
    """All that this requester ever promised to send."""
    rows = device.client.outbox.all("SELECT id FROM messages WHERE pair=? ORDER BY rowid", (device.number,))
    return [row[0] for row in rows]


def test_values_may_be_waited_for_inside_and_come_again_in_another_process(worker, again):
    def night(device):
        with device.batch(token="nightly"):
            out = doubled().send(device)(device.find("x"))
            first = out.get(20)
            total = (out + 1).sum()
            second = fq.gather([total, out, device.find("x")], 20)
            third = total.get(20)
        return out.address, first.tolist(), [v.tolist() for v in second], third, out.copy(20).tolist()

    first = night(worker)
    sent = messages(worker)
    assert len(sent) == 2
    assert night(worker) == night(again()) == first
    assert messages(worker) == sent


def test_which_pointers_are_still_in_use_makes_no_other_request(worker, again):
    def night(device, held):
        with device.batch(token="nightly"):
            y = device.find("x")
            for n in range(5):
                y = y * (n + 1) + device.send(torch.ones(2))
                held.append(y)
                if n == 2:
                    held.append(y.copy(20))
            plan = doubled().send(device)
            return plan(y), plan(torch.ones(2))

    class Nothing(list):
        def append(self, _):
            pass

    ends = night(worker, Nothing()), night(again(), [])
    first, second = ([p.address for p in end] for end in ends)
    assert first == second
    assert [p.get(20).tolist() for p in ends[0]] == [p.get(20).tolist() for p in ends[1]]


def test_a_block_that_ended_in_an_error_can_be_done_again_in_the_same_process(worker):
    held = []

    def night(wrong):
        with worker.batch(token="nightly"):
            held.append(worker.find("x") + 1)
            held[-1].copy(20)
            held.append(held[-1] * 2)
            if wrong:
                raise ZeroDivisionError
            return held[-1]

    with pytest.raises(ZeroDivisionError):
        night(wrong=True)
    sent = messages(worker)
    assert night(wrong=False).get(20).tolist() == [0, 6]
    assert messages(worker)[: len(sent)] == sent and len(messages(worker)) == len(sent) + 2


def test_what_a_call_draws_is_told_by_the_messages_seed_and_its_first_result(worker):
    plan = noisy(4)
    with worker.batch():
        outs = [worker.send_plan(plan)(torch.ones(4)) for _ in range(2)]
    (name,) = worker.pair.carrier.list("in")
    seed = decode_message(decode(memoryview(worker.pair.carrier.get(f"in/{name}")))).seed
    for out in outs:
        with torch.random.fork_rng():
            torch.manual_seed(second_reader.call_seed(seed, [out.address]))
            drawn = 1 + torch.rand(4)
        assert torch.equal(out.get(20), drawn)


@pytest.mark.parametrize("count", [10, 4000, 9000])
def test_a_large_block_has_one_seed_however_it_is_cut(count):
    """And calls draw by it and their results' ids: whether plans ride along moves a call to another message."""
    key, plan = Key.from_seed(b"a" * 32), doubled().build(X).file()
    sent, to = [], Address("device_1", "d" * 64, "e" * 32)
    for first in ((), (SendPlan(plan.id, plan.graph, (), plan.about),) * 2):
        draft = Draft("a" * 32, ids.new_id, "nightly", block="a" * 32)
        draft.actions = [*first, *(Run(plan.id, (1.0,), {}, (draft.new_id(),)) for _ in range(count))]
        sent.append([message for message, _ in seal(draft, Envelope("alice-00000000", to, 0.0, 1.0, key))])
    drawn = [{a.results: m.seed for m in parts for a in m.actions if isinstance(a, Run)} for parts in sent]
    assert drawn[0] == drawn[1] and len(set(drawn[0].values())) == 1
    assert [len(parts) for parts in sent] == {10: [1, 1], 4000: [1, 2], 9000: [4, 4]}[count]


def call(plan=None, arg=None, **more):
    def block(device):
        x = device.find(more.get("tag", "x"))
        there = (plan or doubled)().send(device)
        there(x if arg is None else arg)
        for line in more.get("then", ()):
            line(device, x)

    return block


OTHERS = {
    "another plan": (call(noisy), r"its step 1 called .*, and calls .* now"),
    "another tag": (call(tag="y"), "its step 1, a call of .* has another value as argument t than before"),
    "a tensor": (call(arg=torch.ones(2)), "has another tensor as argument t than before"),
    "one call more": (call(then=[lambda d, x: doubled().send(d)(x)]), "its step 2, a call, was asked for only now"),
    "a tensor more": (call(then=[lambda d, x: d.send(X)]), "its step 2, a tensor sent, was asked for only now"),
    "an operation": (call(then=[lambda d, x: x + 1]), "its step 2, an operation, was asked for only now"),
    "a question": (call(then=[lambda d, x: d.ask([x])]), "its step 2, a question, was asked for only now"),
    "nothing but an operation": (lambda d: d.find("x") + 1, "its step 1 was a call, and is an operation now"),
    "waited for": (call(then=[lambda d, x: x.get(20)]), "its step 2, a question, was asked for only now"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_request_is_told_by_where_it_differs_and_how_to_ask_it(worker, again, other):
    worker.add(X, tag="y")
    block, words = OTHERS[other]
    with worker.batch(token="nightly"):
        call()(worker)
    sent = messages(worker)
    with pytest.raises(Conflict, match=words) as caught, again().batch(token="nightly") as device:
        block(device)
    assert "stands for another request to device_1" in str(caught.value)
    assert "another token, such as 'nightly-2'" in caught.value.hint
    assert messages(worker) == sent


def test_a_plan_whose_parameters_changed_is_told_by_its_name(worker, again):
    net = fq.func2plan()(torch.nn.Linear(2, 1)).build(X)
    with worker.batch(token="nightly"):
        net.send(worker)(worker.find("x"))
    net.load_state_dict({name: tensor + 1 for name, tensor in net.state_dict().items()})
    words = r"its step 1 called Linear \w+, and calls Linear \w+ now"
    with pytest.raises(Conflict, match=words) as caught, again().batch(token="nightly") as device:
        net.send(device)(device.find("x"))
    assert caught.value.hint.startswith("a plan whose parameters or code changed is another one; the same token means")


def test_an_argument_that_differs_is_named_by_its_path_in_a_structure(worker, again):
    def mixed(batch, rate):
        return batch["x"] * rate + batch["y"][0]

    def night(device, y, rate):
        with device.batch(token="nightly"):
            plan.send(device)({"x": device.find("x"), "y": [y]}, rate)

    plan = fq.func2plan()(mixed).build({"x": X, "y": [X]}, 0.5)
    night(worker, X, 0.5)
    for y, rate, words in (
        (X + 1, 0.5, "another tensor as argument batch.y[0]"),
        (X, 2.0, "another number as argument rate"),
    ):
        with pytest.raises(Conflict) as caught:
            night(again(), y, rate)
        assert f"a call of mixed {plan.id[:12]}, has {words} than before" in str(caught.value)


def test_an_argument_beyond_those_that_are_remembered_is_not_said_to_be_another_step(worker, again):
    def total(many):
        return sum(many)

    def night(device, last):
        with device.batch(token="nightly"):
            plan.send(device)([*(X for _ in range(59)), last])

    plan = fq.func2plan()(total).build([X] * 60)
    night(worker, X)
    with pytest.raises(Conflict, match="it differs in an argument of its step 1 beyond the first 38, or after"):
        night(again(), X + 1)


def test_a_tensor_that_is_drawn_anew_is_told(worker, again):
    for draw, device in enumerate((worker, again())):
        try:
            with device.batch(token="nightly"):
                (device.find("x") + torch.full((2,), float(draw))).get(20)
        except Conflict as error:
            assert "its step 2, an operation, has another tensor as argument 1 than before" in str(error)
            assert error.hint.startswith("a tensor that is drawn or read anew is another one; ")
            return
    pytest.fail("no conflict")


def test_plans_alone_are_sent_if_they_are_not_there_and_are_no_request(worker, again):
    plan = doubled()
    for device in (worker, again(), again()):
        with device.batch(token="plans"):
            plan.send(device)
    assert len(messages(worker)) == 1
    with worker.batch(token="plans"):
        out = plan.send(worker)(worker.find("x"))
    assert out.get(20).tolist() == [-2, 4]


def test_a_plan_that_the_device_let_go_of_since_is_sent_again_and_the_request_is_not(worker, again):
    plan = doubled()

    def night(device):
        with device.batch(token="nightly"):
            there = plan.send(device)
            first = there(device.find("x")).get(20)
            return first, there(first)

    with pytest.raises(ZeroDivisionError), worker.batch(token="nightly"):
        plan.send(worker)(worker.find("x")).get(20)
        raise ZeroDivisionError
    device = again()
    with device.client.outbox.transaction() as db:
        db.execute("DELETE FROM plans")
    first, second = night(device)
    assert first.tolist() == [-2, 4] and second.get(20).tolist() == [-4, 8]


def test_a_plan_that_never_came_to_the_device_is_sent_again_once_it_said_so(tmp_path):
    now = [time.time()]
    device = VirtualWorker("device_1", {"x": X}, root=tmp_path / "late", clock=lambda: now[0])
    plan, said = doubled(), []
    plan.send(device)
    for name in device.pair.carrier.list("in"):
        device.pair.carrier.delete(f"in/{name}")
    for token in ("first", "first", "second"):
        with device.batch(token=token):
            out = plan.send(device)(device.find("x"))
        device.step()
        now[0] += 7200
        try:
            said.append(out.get(20).tolist())
        except UnknownPlan:
            said.append("unknown")
    assert said == ["unknown", "unknown", [-2, 4]]
    device.client.close()


def test_a_question_is_waited_for_again_and_a_denial_stands(tmp_path, again, worker):
    device = VirtualWorker("device_2", {"x": X}, release="review", root=tmp_path / "two")

    def night(token="nightly"):
        with device.batch(token=token):
            return doubled().send(device)(device.find("x")).get(0.2)

    for _ in range(2):
        with pytest.raises(WaitingForApproval):
            night()
    (asked,) = device.review()
    device.deny(asked.reply)
    for _ in range(3):
        with pytest.raises(Denied):
            night()
    with pytest.raises(WaitingForApproval):
        night("nightly-2")
    (asked,) = device.review()
    device.approve(asked.reply)
    assert night("nightly-2").tolist() == [-2, 4]
    device.client.close()


def test_a_failure_comes_again_as_it_was(worker, again):
    plan = fq.func2plan()(lambda t, n: t[n]).build(X, torch.tensor([1]))
    said = []
    for device in (worker, worker, again()):
        with pytest.raises(FedqError) as caught, device.batch(token="nightly"):
            plan.send(device)(device.find("x"), torch.tensor([9])).get(20)
        said.append(str(caught.value))
    assert len(set(said)) == 1 and len(messages(worker)) == 1


def test_two_devices_may_be_asked_in_one_block_each(worker, again, tmp_path):
    other = VirtualWorker("device_2", {"x": X + 1}, root=tmp_path / "two")

    def night(device):
        with device.batch(token="t"), other.batch(token="t"):
            outs = [doubled().send(d)(d.find("x")) for d in (device, other)]
            values = fq.gather(outs, 20)
            moved = outs[0].move(other) + 1
        return [v.tolist() for v in values], moved.get(20).tolist()

    first = night(worker)
    sent = messages(worker), messages(other)
    assert night(again()) == first and (messages(worker), messages(other)) == sent
    other.client.close()


def test_a_value_with_a_tag_of_ones_own_is_not_taken_away_by_a_block(worker, again):
    worker.send(X, tag="mine")
    worker.step()
    for device in (worker, again()):
        with device.batch(token="nightly"):
            value = device.find("mine").get(20)
        assert value.tolist() == X.tolist()


def test_outside_of_blocks_what_was_got_is_taken_away_as_ever(worker, again):
    plan = doubled().send(worker)
    out = plan(worker.find("x"))
    with worker.batch(token="nightly"):
        lasting = plan(worker.find("x"))
    both = fq.gather([out, lasting], 20)
    assert torch.equal(*both) and out.taken and not lasting.taken
    plan(worker.find("x")).get(20)
    with pytest.raises(UnknownValue, match="taken away"):
        again().find(out.address)
    assert again().find(lasting.address).get(20).tolist() == [-2, 4]


def test_a_block_in_a_block_has_no_token_of_its_own(worker):
    with worker.batch(), pytest.raises(UsageError, match="cannot stand inside another"), worker.batch(token="inner"):
        pass
    outer, refused = worker.batch(token="outer"), pytest.raises(UsageError, match="cannot stand inside another")
    with outer, refused, worker.once("inner"):
        pass


def test_a_plan_can_be_got_inside(worker, again):
    plan = doubled().build(X)
    for device in (worker, again(), again()):
        with device.batch(token="nightly"):
            there = plan.send(device)
            assert there.get(20).file().id == plan.file().id
            out = there(device.find("x"))
        assert out.get(20).tolist() == [-2, 4]
    assert len(messages(worker)) == 3


def test_no_message_of_a_block_drops_anything(worker):
    for _ in range(2):
        with worker.batch(token="nightly"):
            doubled().send(worker)(worker.find("x")).get(20)
    carrier = worker.pair.carrier
    there = [decode_message(decode(memoryview(carrier.get(f"in/{n}")))) for n in carrier.list("in")]
    assert not any(isinstance(a, Drop) for m in there for a in m.actions)
