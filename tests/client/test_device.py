"""A device handle: what it finds, what its messages hold, when they are sent."""

from __future__ import annotations

import errno
import gc
from contextlib import suppress

import pytest

from fedq import fs, ids
from fedq.errors import Ambiguous, Conflict, SpecMismatch, UnknownPlan, UnknownValue, Unreachable, UsageError
from fedq.plan.codec import RawTensor
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Graph, Type, Var
from fedq.queue.message import Ack, Drop, Get, Inline, OwnerRef, Put, Ref, Run, SendPlan
from fedq.queue.pair import Entry
from fedq.trust.keys import Key
from tests.client.world import ROOT, double_abs, f32, floats

X, Y, Z = "aaaaaa" + "0" * 26, "aaaaab" + "0" * 26, "aaaaab" + "1" * 26
VEC = Type("f32", (2,))


@pytest.fixture
def x(side, device):
    side.catalog(Entry(X, "input_data", VEC, "open", "made by hand"), Entry(Y, "twice", VEC, "open"),
                 Entry(Z, "twice", VEC, "review"))  # fmt: skip
    return device.find("input_data")


def test_a_tag_or_an_id_or_its_beginning_finds_the_one_value(device, x):
    assert (x.id, x.type, x.shape) == (X, VEC, (2,))
    assert [device.find(r).id for r in ("#input_data", X, "aaaaaa", Z)] == [X, X, X, Z]
    assert repr(x) == f"PointerTensor(device_1:{X}, f32[2], tag 'input_data')"


def test_a_tag_that_fits_several_values_lists_them(device, x):
    with pytest.raises(Ambiguous, match=f"'twice' fits 2 values on device_1: {Y}, {Z}"):
        device.find("twice")
    with pytest.raises(Ambiguous, match="fits 2 values"):
        device.find("aaaaab")


def test_an_unknown_tag_lists_the_tags_and_an_unknown_id_says_it_was_never_promised(device, x):
    with pytest.raises(UnknownValue, match=r"no value 'no' on device_1 \(tags there: input_data, twice\)"):
        device.find("no")
    with pytest.raises(UnknownValue, match="never promised"):
        device.find("c" * 32)


def test_search_looks_in_tags_and_notes(device, x):
    assert [p.id for p in device.search("TWI")] == [Y, Z]
    assert [p.id for p in device.search("#input")] == [p.id for p in device.search("hand")] == [X]
    assert len(device.search()) == 3


def test_a_changed_catalog_is_seen_and_one_of_another_key_is_refused(device, side, x):
    side.catalog()
    assert device.search() == []
    side.key = Key.from_seed(b"m" * 32)
    side.catalog()
    with pytest.raises(Exception, match="signed by another key"):
        device.catalog()


def test_a_plan_is_sent_at_once_and_only_once(device, side):
    file = double_abs()
    pointer = device.send_plan(file)
    message = side.only()
    assert [type(a) for a in message.actions] == [SendPlan]
    assert message.actions[0].id == pointer.id == file.id
    assert device.send_plan(double_abs()).id == file.id
    assert side.take() == []


def test_a_plan_is_known_to_another_process_by_its_name_and_id(world, device, side):
    device.send_plan(double_abs())
    again = world.client().device("device_1").plan("double_abs")
    assert again.graph == double_abs().graph and again.about == double_abs().about
    assert device.plan(again.id).id == device.plan(again.id[:8]).id == again.id
    side.catalog(plans=[(again.id, "double_abs")])
    with pytest.raises(UnknownPlan, match=r"no plan 'mean' was sent to device_1 \(plans there: double_abs\)"):
        device.plan("mean")


def test_a_call_is_sent_at_once_with_the_id_chosen_here(device, side, x):
    plan = device.send_plan(double_abs())
    side.take()
    out = plan(x)
    again = plan(out)
    first, second = side.take()
    assert first[0].actions == (Run(plan.id, (OwnerRef(X),), {}, (out.id,)),)
    assert second[0].actions == (Run(plan.id, (Ref(out.id),), {}, (again.id,)),)
    assert (again.type, first[0].seed) == (VEC, int(ids.derive("seed", first[0].id)[:15], 16))
    assert first[0].expires - first[0].created == 14 * 86400


def test_wrong_arguments_are_refused_before_anything_is_sent(device, side, x):
    plan = device.send_plan(double_abs())
    side.take()
    with pytest.raises(SpecMismatch, match="requires 1 argument, received 2"):
        plan(x, x)
    with pytest.raises(SpecMismatch, match=r"input 0: f32\[n\] expected, f32\[1,2\] given"):
        plan(RawTensor("f32", (1, 2), bytes(8)))
    with pytest.raises(SpecMismatch, match=r"x: f32\[n\] expected, a list of 1 given"):
        plan([1.0])
    assert side.take() == []


def test_a_local_tensor_is_sent_along(device, side):
    plan = device.send_plan(double_abs())
    side.take()
    plan(f32(1, -2))
    ((message, tensors),) = side.take()
    assert message.actions[0].args == (Inline("t0"),)
    assert floats(tensors["t0"]) == [1, -2]


def test_a_pointer_of_another_device_is_refused(world, device, x):
    world.device("device_2")
    plan = world.clients[0].device("device_2").send_plan(double_abs())
    with pytest.raises(UsageError, match="the plan is on device_2, argument x on device_1"):
        plan(x)


def test_a_batch_is_one_message_sent_at_its_end(device, side, x):
    tensor = bytearray(f32(3).data)
    with device.batch():
        plan = device.send_plan(double_abs())
        assert device.send_plan(double_abs()).id == plan.id
        mine = device.send(RawTensor("f32", (1,), tensor), tag="#mine")
        tensor[:] = bytes(4)
        out = plan(plan(x))
        with device.batch():
            device.ask([out])
        assert side.messages() == {}
    ((message, tensors),) = side.take()
    assert [type(a) for a in message.actions] == [SendPlan, Put, Run, Run, Get]
    assert message.actions[1] == Put(mine.id, "t0", "mine")
    assert floats(tensors["t0"]) == [3]
    assert message.actions[4] == Get(out.id, (out.id,))


def test_a_batch_that_ends_in_an_error_is_not_sent(device, side, x):
    plan = device.send_plan(double_abs())
    side.take()
    with pytest.raises(ZeroDivisionError), device.batch():
        out = plan(x)
        raise ZeroDivisionError
    assert side.take() == []
    with pytest.raises(UnknownValue, match="was never promised"):
        out.get(timeout_s=0)
    plan(x)
    assert len(side.take()) == 1


def test_a_batch_larger_than_a_message_is_split(device, side):
    with device.batch():
        for n in range(5000):
            device.send(f32(n))
    found = side.take()
    assert sorted(len(m.actions) for m, _ in found) == [2500, 2500]
    assert sorted(v for _, tensors in found for t in tensors.values() for v in floats(t)) == list(range(5000))


def test_the_same_request_under_a_token_gives_the_same_ids_and_sends_nothing_new(world, device, side, x):
    def ask(client):
        with client.device("device_1").batch(token="nightly"):
            plan = client.device("device_1").send_plan(double_abs())
            (out,) = plan.run([client.device("device_1").find("input_data")], release=True)
        return out.id

    first = ask(world.clients[0])
    message = side.only()
    assert message.id == ids.derive("message", "nightly", ROOT, "device_1", message.sender)
    assert message.token == "nightly"
    world.now += 100
    assert ask(world.clients[0]) == ask(world.client()) == first == message.actions[1].results[0]
    assert side.take() == []


def test_a_token_knows_a_request_again_whether_or_not_its_plan_was_sent_along(world, device, side):
    graph = Graph((VEC,), (), Var(1), state=(("w", VEC),))
    plan, ids_ = PlanFile(graph, {"w": f32(1, 1)}, About("state")), []
    for _ in range(2):
        with device.batch(token="nightly"):
            ids_.append(device.send_plan(plan)(f32(2, 2)).id)
    assert ids_[0] == ids_[1]
    ((message, tensors),) = side.take()
    assert message.actions[0].tensors == ("p0.0",) and floats(tensors["t0"]) == [2, 2]


def test_another_request_under_a_token_is_a_conflict(device, side, x):
    plan = device.send_plan(double_abs())
    with device.batch(token="nightly"):
        plan(x)
    with pytest.raises(Conflict, match="token 'nightly' stands for another request"), device.batch(token="nightly"):
        plan(device.find(Y))


def test_nothing_is_written_below_a_root_that_is_not_mounted(world, device, side):
    (world.config.queue / ".fedq").unlink()
    with pytest.raises(Unreachable, match="no queue root in /"):
        device.send(f32(1))
    assert side.messages() == {}


def test_a_send_that_failed_is_not_sent_later(world, device, side):
    side.pair.carrier.path("in").rename(world.config.queue / "away")
    with pytest.raises(Unreachable):
        device.send(f32(1))
    (world.config.queue / "away").rename(side.pair.carrier.path("in"))
    world.client()
    assert side.messages() == {}


def test_what_was_taken_away_is_dropped_and_acknowledged_by_the_next_message(device, side, x):
    plan = device.send_plan(double_abs())
    with device.batch():
        out = plan(x)
        device.ask([out])
    user = plan(out)
    using = side.take()[-1][0]
    assert out.id in {a.id for a in using.actions[0].args}
    side.reply(out.id, {out.id: f32(2, 4)})
    device.client.outcomes([out], 0, take=True)
    assert side.take() == []
    first = device.send(f32(1))
    _, drop, ack = side.only().actions
    assert drop.values == (out.id,) and using.id in drop.after
    assert ack == Ack((out.id,))
    device.send(f32(1))
    assert len(side.only().actions) == 1
    with pytest.raises(UnknownValue, match="taken away"):
        device.find(out.id)
    with pytest.raises(UnknownValue, match="taken away"):
        device.client.outcomes([out], 0)
    assert user.id and first.id and isinstance(drop, Drop)


def test_a_device_that_is_much_used_lets_go_of_as_much_as_it_makes(device, side, x):
    plan = device.send_plan(double_abs())
    for _ in range(3):
        with device.batch():
            outs = [plan(x) for _ in range(6000)]
        made = {p.address for p in outs}
        side.take()
        del outs
    with device.batch():
        _ = [plan(x) for _ in range(6000)]
    dropped = [
        v for message, _ in side.take() for verb in message.actions if isinstance(verb, Drop) for v in verb.values
    ]
    assert set(dropped) == made


@pytest.mark.parametrize("ends", ["well", "in an error"])
def test_the_collector_rests_in_a_large_batch_and_goes_on_after_it(device, side, x, ends):
    plan = device.send_plan(double_abs())
    with suppress(ZeroDivisionError), device.batch():
        assert gc.isenabled()
        _ = [plan.run([x], release=True) for _ in range(800)]
        assert not gc.isenabled()
        len(side.name) / (ends == "well")
    assert gc.isenabled()


def test_of_a_batch_of_several_messages_what_came_before_a_failure_is_sent_and_the_rest_is_not(device, side):
    left = [2]

    def fail_third(name, call, *args, **how):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, "failed")
        return call(*args, **how)

    try:
        with pytest.raises(Unreachable), device.batch():
            addresses = [device.send(f32(n)).address for n in range(9000)]
            fs.FAILPOINTS["put.name"] = fail_third
    finally:
        fs.FAILPOINTS.clear()
    sent = {action.id for message, _ in side.messages().values() for action in message.actions}
    assert sent == set(addresses[: len(sent)])
    assert 0 < len(sent) < 9000
    assert device.client.outbox.own(device.number, addresses) == sent
