"""Waiting for replies: whose are believed, what is said while nothing comes, what errors tell."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from fedq.errors import Failed, TimedOut, UnknownValue, WaitingForApproval
from fedq.plan.graph import Type
from fedq.queue.message import Failure, Get, Number
from fedq.queue.pair import Entry
from fedq.trust.keys import Key
from tests.client.world import TO, double_abs, f32, floats

X = "aaaaaa" + "0" * 26


@pytest.fixture
def out(side, device):
    side.catalog(Entry(X, "input_data", Type("f32", (2,)), "open"))
    plan = device.send_plan(double_abs())
    result = plan(device.find("input_data"))
    side.take()
    return result


def get(pointer, timeout_s=0.0, **how):
    (found,) = pointer.device.client.outcomes([pointer], timeout_s, **how)
    return found


def test_a_get_of_its_own_asks_under_a_fresh_id_and_only_once(out, side):
    assert isinstance(get(out), TimedOut)
    (action,) = side.only().actions
    assert action.values == (out.id,) and action.reply != out.id
    side.reply(action.reply, {out.id: f32(2, 4)})
    assert floats(get(out)) == [2, 4]
    assert side.take() == []


def test_another_process_reads_the_reply_that_was_asked_for(world, out, side, device):
    get(out)
    side.reply(side.only().actions[0].reply, {out.id: f32(2, 4)})
    assert floats(get(world.client().find(f"device_1:{out.id[:10]}"))) == [2, 4]
    assert side.take() == []


def test_an_expired_request_is_made_again(world, out, side):
    get(out)
    side.take()
    world.now += 15 * 86400
    get(out)
    assert isinstance(side.only().actions[0], Get)


def test_many_values_are_asked_for_with_one_action_per_device(world, out, side, device):
    plan = device.plan("double_abs")
    with device.batch():
        more = [plan(out) for _ in range(3)]
    side.take()
    world.clients[0].outcomes([*more, out], 0)
    (action,) = side.only().actions
    assert action.values == tuple(p.id for p in (*more, out))
    side.reply(action.reply, {p.id: f32(n) for n, p in enumerate((*more, out))})
    assert [floats(v) for v in world.clients[0].outcomes([out, *more], 0)] == [[3], [0], [1], [2]]


def test_a_waiting_get_wakes_up_when_the_reply_comes(out, side):
    get(out)
    reply = side.only().actions[0].reply
    later = threading.Timer(0.05, side.reply, (reply, {out.id: Number(7)}))
    later.start()
    assert get(out, 10) == Number(7)
    later.join()


FOREIGN = {
    "signed by another key": {"key": Key.from_seed(b"m" * 32)},
    "meant for another requester": {"to": replace(TO, name="bob-00000000")},
    "meant for another key with the same digits": {"to": replace(TO, key=TO.key[:8] + "0" * 56)},
    "meant for another queue root": {"to": replace(TO, root="f" * 32)},
}


@pytest.mark.parametrize("how", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_file_is_no_reply_and_the_wait_goes_on(out, side, how):
    get(out)
    reply = side.only().actions[0].reply
    side.reply(reply, {out.id: f32(0, 0)}, **how)
    assert isinstance(get(out), TimedOut)
    side.pair.carrier.delete(f"out/{reply}.safetensors")
    side.reply(reply, {out.id: f32(2, 4)})
    assert floats(get(out)) == [2, 4]


def test_a_reply_under_another_ones_name_is_no_reply(out, side):
    get(out)
    reply = side.only().actions[0].reply
    side.reply("b" * 32, {out.id: f32(0, 0)})
    side.pair.carrier.path(f"out/{'b' * 32}.safetensors").rename(side.pair.carrier.path(f"out/{reply}.safetensors"))
    assert isinstance(get(out), TimedOut)


def test_a_failure_is_raised_as_what_it_names(out, side):
    get(out)
    reply = side.only().actions[0].reply
    text, fields = "plan 'double_abs': action 1 aten.abs (tour.py:10) failed", {"action": 1, "line": "tour.py:10"}
    side.reply(reply, {out.id: Failure("failed", text, fields)})
    with pytest.raises(Failed, match=r"action 1 aten\.abs \(tour\.py:10\) failed \(on device_1\)") as caught:
        out.get(timeout_s=0)
    assert caught.value.fields["line"] == "tour.py:10"
    get(out)
    assert side.take() == []


def test_a_value_that_was_gone_is_asked_for_again_and_a_denial_stands(out, side):
    get(out)
    side.reply(side.only().actions[0].reply, {out.id: Failure("missing_value", "it was dropped", {})})
    assert get(out).code == "missing_value"
    get(out)
    side.reply(next(a.reply for a in side.only().actions if isinstance(a, Get)), {out.id: Failure("denied", "no", {})})
    assert [get(out).code, get(out).code] == ["denied", "denied"]
    assert not side.take()


def test_a_timeout_says_for_whom_and_why(world, out, side):
    assert "device_1: device_1 was never started" in str(get(out))
    message = side.only()
    side.beat(world.now, "down")
    assert "device_1 is not running, last seen 2026-11-21 22:26:40 UTC" in str(get(out))
    side.beat(world.now - 31)
    assert "is not running" in str(get(out))
    side.beat(world.now, running=(message.id,))
    assert "it is running" in str(get(out))
    side.beat(world.now, waiting=(message.id,))
    assert "waits for its turn" in str(get(out))
    side.beat(world.now)
    assert "runs and has not answered" in str(get(out))


def test_a_held_result_is_waiting_for_approval_when_time_is_up(world, out, side):
    get(out)
    reply = next(a.reply for m, _ in side.take() for a in m.actions if isinstance(a, Get))
    side.beat(world.now, held=((reply, "asked"),))
    found = get(out)
    assert isinstance(found, WaitingForApproval)
    assert found.hint == f"its owner says: fedq review device_1:{reply}"


def test_the_reason_is_told_once_while_waiting(out):
    told = []
    get(out, 2.5, on_wait=told.append)
    assert told == ["waiting for device_1: device_1 was never started"]


def test_a_pump_does_the_devices_work_while_waiting(world, side):
    def pump():
        for message, tensors in side.take():
            for action in message.actions:
                if isinstance(action, Get):
                    side.reply(action.reply, {action.values[0]: tensors["t0"]})

    device = world.client(pump=pump).device("device_1")
    with device.batch():
        mine = device.send(f32(5))
        assert floats(get(mine, 5)) == [5]


def test_an_owners_value_is_never_dropped(out, side, device):
    x = device.find("input_data")
    device.client.outcomes([x], 0)
    side.reply(side.only().actions[0].reply, {X: f32(1, 2)})
    assert floats(get(x, take=True)) == [1, 2]
    device.send(f32(1))
    assert [type(a).__name__ for a in side.only().actions] == ["Put", "Ack"]
    get(x)
    assert isinstance(side.only().actions[0], Get)


def test_nothing_is_taken_away_unless_all_came(out, side, device):
    other = device.plan("double_abs")(out)
    side.take()
    device.client.outcomes([out, other], 0)
    side.reply(side.only().actions[0].reply, {out.id: f32(1), other.id: Failure("failed", "no", {})})
    device.client.outcomes([out, other], 0, take=True)
    device.send(f32(1))
    assert [type(a).__name__ for a in side.only().actions] == ["Put"]


def test_a_value_of_nowhere_is_an_error_at_once(device):
    from fedq.client.pointers import PointerTensor

    with pytest.raises(UnknownValue, match="never promised by device_1"):
        PointerTensor(device, "c" * 32, None).get()
