"""What a device makes of its messages: order, waiting, fairness, forgetting; a year in a second."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from fedq import fs, ids
from fedq.client import again, fetch, standing
from fedq.client.pointers import PointerTensor
from fedq.device.home import Home
from fedq.device.limits import Limits
from fedq.device.serve import MAX_TAKEN
from fedq.errors import AlreadyRunning, Conflict, DiskFull, UsageError
from fedq.plan.codec import decode
from fedq.queue.message import Cancel, Drop, Get, Put, Ref, Run, decode_reply
from tests.device.world import DAY_S, DOUBLE, NAME, START, World, f32


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    fs.FAILPOINTS.clear()
    made.close()


def hold_back(device) -> dict[Path, bytes]:
    """Take the files of ``in/`` away, as a slow carrier would; they are put back by `deliver`."""
    folder = device.pair.carrier.path("in")
    held = {folder / name: (folder / name).read_bytes() for name in os.listdir(folder)}
    for path in held:
        path.unlink()
    return held


def deliver(held: dict[Path, bytes]) -> None:
    for path, raw in held.items():
        path.write_bytes(raw)


def answer(device, id_: str) -> str:
    """The code of the error in a reply as it lies in ``out/``."""
    reply = decode_reply(decode(device.pair.carrier.get(f"out/{id_}.safetensors")))
    return reply.values[id_].code


# -- sending and taking ----------------------------------------------------------------------


def test_the_same_message_again_changes_nothing_and_other_bytes_under_its_id_are_refused(world):
    device = world.alice
    value = world.put(device, 1)
    (name,) = world.files(device, "in")
    raw = bytes(device.pair.carrier.get(f"in/{name}"))
    device.pair.carrier.put(f"in/{name}", [raw])
    with pytest.raises(Conflict, match="something else"):
        device.pair.carrier.put(f"in/{name}", [raw[:-1] + b"!"])
    world.step()
    device.pair.carrier.put(f"in/{name}", [raw])
    world.step()
    assert (world.got(device, value), world.files(device, "in")) == ([1.0], set())


def test_a_second_gate_refuses_and_says_who_runs(world):
    from fedq.device import gate

    fs.make_dir(gate.gate_dir(world.config))
    with fs.lock(gate.gate_dir(world.config) / "lock"), pytest.raises(AlreadyRunning, match=str(os.getpid())):
        gate.serve_waiting(world.config, [NAME])


def test_a_message_that_is_delivered_twice_is_done_once(world):
    device = world.alice
    value = world.put(device, 1)
    held = hold_back(device)
    deliver(held)
    world.step()
    before = world.files(device, "out")
    deliver(held)
    world.step()
    assert (world.files(device, "out"), world.rows("messages"), world.got(device, value)) == (before, 1, [1.0])


# -- fairness --------------------------------------------------------------------------------


def test_a_flood_of_one_requester_does_not_keep_another_waiting(world):
    bob = world.requester("bob")
    for n in range(1500):
        world.put(world.alice, n)
    value = world.put(bob, 7)
    for _ in range(2):
        world.gate.step(world.now)
    assert world.got(bob, value) == [7.0]
    assert len(world.files(world.alice, "in")) > 1000
    world.step()
    assert world.files(world.alice, "in") == set()


def test_what_is_heard_of_while_a_listing_is_worked_off_is_taken_without_another_word(world):
    gate, served = world.gate, world.gate.served[NAME]
    for n in range(MAX_TAKEN + 50):
        world.put(world.alice, n)
    gate.step(world.now, scan=True)
    world.put(world.alice, 7)
    gate.step(world.now, scan=True)  # hears of it, and has the rest of the first listing to do
    while served.nap_s == 0:
        gate.step(world.now, scan=False)
    assert world.files(world.alice, "in") == set()


def test_what_is_too_much_stays_where_it_is_and_is_taken_later(world):
    world.gate.served[NAME].home.limits = Limits(messages=10)
    missing = world.alice.client.new_id()
    results = [world.double(world.alice, missing) for _ in range(30)]
    for _ in range(5):
        world.now += 2
        world.gate.step(world.now)
    left = len(world.files(world.alice, "in"))
    assert 15 <= left < 30
    world.gate.served[NAME].home.limits = Limits(messages=1000)
    world.alice.submit([Put(missing, "t0")], {"t0": f32(1)})
    world.step()
    assert {tuple(world.got(world.alice, r)) for r in results} == {(2.0,)}


def test_ten_thousand_calls_that_wait_do_not_slow_a_step(world):
    """Counted in steps of fs, not in seconds: what waits is not touched."""
    missing = world.alice.client.new_id()
    actions = [Run(DOUBLE.id, (Ref(missing),), {}, (ids.derive("r", n),)) for n in range(9000)]
    world.alice.submit(actions)
    world.step()
    peer = next(iter(world.gate.served[NAME].peers.values()))
    looked = []
    peer.waiting.hopeless = lambda *_: looked.append(1)  # type: ignore[method-assign]
    value = world.put(world.alice, 1)
    world.step()
    assert (world.got(world.alice, value), looked) == ([1.0], [])


# -- waiting ---------------------------------------------------------------------------------


def test_messages_that_arrive_in_the_wrong_order_are_done_all_the_same(world):
    first = world.put(world.alice, 3)
    held = hold_back(world.alice)
    second = world.double(world.alice, first)
    third = world.double(world.alice, second)
    world.step()
    deliver(held)
    world.step()
    assert [world.got(world.alice, v) for v in (first, second, third)] == [[3.0], [6.0], [12.0]]


def test_a_chain_of_thousands_that_arrives_backwards_is_released_at_once(world):
    chain = [ids.derive("chain", n) for n in range(3001)]
    actions = [Run(DOUBLE.id, (Ref(chain[n]),), {}, (chain[n + 1],)) for n in reversed(range(3000))]
    world.alice.submit([*actions, Get(chain[-1], (chain[-1],))])
    world.step()
    world.double(world.alice, world.put(world.alice, 1))  # brings the plan
    world.alice.submit([Put(chain[0], "t0")], {"t0": f32(0)})
    world.step()
    assert world.got(world.alice, chain[-1]) == [0.0]


def test_a_call_on_itself_and_a_circle_are_answered_at_once(world):
    a, b, c = (world.alice.client.new_id() for _ in range(3))
    alone = [Run(DOUBLE.id, (Ref(a),), {}, (a,)), Get(a, (a,))]
    circle = [Run(DOUBLE.id, (Ref(c),), {}, (b,)), Run(DOUBLE.id, (Ref(b),), {}, (c,)), Get(c, (c,)), Get(b, (b,))]
    world.alice.submit(alone)
    world.alice.submit(circle)
    world.double(world.alice, world.put(world.alice, 1))
    world.step()
    assert [world.got(world.alice, v) for v in (a, b, c)] == ["missing_value"] * 3


def test_an_argument_that_never_comes_is_named_after_an_hour_and_after_expiry(world):
    missing = world.alice.client.new_id()
    result = world.double(world.alice, missing)
    world.double(world.alice, world.put(world.alice, 1))
    world.step()
    world.now += 3500
    world.step()
    assert world.got(world.alice, result) == "timed_out"
    world.now += 200
    world.step()
    (came,) = fetch.outcomes([PointerTensor(world.alice, result, None)], 0)
    assert (came.code, came.fields["id"]) == ("missing_value", missing)


def test_a_drop_waits_for_the_messages_it_names_though_they_come_later(world):
    x = world.put(world.alice, 5)
    world.step()
    user = world.double(world.alice, x)
    (message,) = (n.partition(".")[0] for n in world.files(world.alice, "in"))
    held = hold_back(world.alice)
    world.alice.submit([Drop((x,), (message,))])
    world.step()
    world.restart()
    world.step()
    deliver(held)
    world.step()
    assert world.got(world.alice, user) == [10.0]
    journal = world.gate.served[NAME].journal
    assert journal.value(world.alice.client.name, x) is None


def test_a_drop_waits_for_a_message_that_never_comes_until_it_expires(world):
    x = world.put(world.alice, 5)
    world.step()
    world.alice.submit([Drop((x,), (world.alice.client.new_id(),))], expires_s=7200)
    world.step()
    journal, me = world.gate.served[NAME].journal, world.alice.client.name
    assert journal.value(me, x) is not None
    world.now += 7300
    world.step()
    assert journal.value(me, x) is None


def test_a_cancellation_holds_for_a_message_that_comes_later(world):
    x = world.put(world.alice, 5)
    world.step()
    result = world.double(world.alice, x)
    (message,) = (n.partition(".")[0] for n in world.files(world.alice, "in"))
    held = hold_back(world.alice)
    world.alice.submit([Cancel((message,))])
    world.step()
    deliver(held)
    world.step()
    assert world.got(world.alice, result) == "cancelled"


def test_an_expired_message_has_no_effect_but_its_answer(world):
    value = world.put(world.alice, 5, expires_s=60)
    result = world.double(world.alice, value, expires_s=60)
    world.now += 100
    world.step()
    assert (answer(world.alice, value), answer(world.alice, result)) == ("expired", "expired")


def test_a_result_that_its_owner_never_judged_expires(world):
    home = Home(world.config.devices / NAME, world.config)
    private = home.add(f32(4), tag="private", release="review")
    home.close()
    result = world.double(world.alice, private, owners=True)
    world.step()
    world.now += 1
    world.step()
    assert world.got(world.alice, result) == "waiting_for_approval"
    for _ in range(31):
        world.now += 0.99 * DAY_S
        world.step()
    assert answer(world.alice, result) == "expired"


# -- publishing and forgetting ---------------------------------------------------------------


def test_a_reply_is_kept_before_it_is_acknowledged_and_can_be_fetched_again(world):
    value = world.put(world.alice, 1, 2)
    world.step()
    assert world.got(world.alice, value) == [1.0, 2.0]
    world.put(world.alice, 3)  # the acknowledgement rides along
    world.step()
    assert f"{value}.safetensors" not in world.files(world.alice, "out")
    assert world.got(world.alice, value) == [1.0, 2.0]
    assert world.got(world.again("alice"), value) == [1.0, 2.0]


def test_a_large_reply_is_kept_as_a_file(world):
    id_, data = world.alice.client.new_id(), struct.pack("<f", 1.5) * 100_000
    tensor = f32(0)
    world.alice.submit([Put(id_, "t0"), Get(id_, (id_,))], {"t0": type(tensor)("f32", (100_000,), data)})
    world.step()
    assert len(world.got(world.alice, id_)) == 100_000
    world.put(world.alice, 3)
    world.step()
    assert f"{id_}.safetensors" not in world.files(world.alice, "out")
    assert len(world.got(world.again("alice"), id_)) == 100_000


def test_a_reply_that_vanished_is_published_again_with_the_same_bytes_unless_it_was_acknowledged(world):
    value = world.put(world.alice, 1)
    world.step()
    path = world.alice.pair.carrier.path(f"out/{value}.safetensors")
    raw = path.read_bytes()
    path.unlink()
    world.now += 120
    world.step()
    assert path.read_bytes() == raw
    world.got(world.alice, value)
    world.put(world.alice, 2)
    world.step()
    world.now += 120
    world.step()
    assert not path.exists()


def test_a_year_of_use_leaves_no_more_than_a_fortnight_of_it(world):
    sizes = {}
    for day in range(365):
        value = world.put(world.alice, day)
        result = world.double(world.alice, value)
        world.step()
        if day % 3:
            world.got(world.alice, result)
        if day in (60, 364):
            sizes[day] = [world.rows(t) for t in ("messages", "vals", "replies", "published", "drops", "uses", "plans")]
            sizes[day].append(len(world.files(world.alice, "out")))
            world.alice.client.collect()
            outbox = world.alice.client.outbox
            sizes[day] += [
                outbox.first(f"SELECT count(*) FROM {t}", ())[0] for t in ("messages", "vals", "replies", "kept")
            ]
        world.now += DAY_S * 0.999
    assert all(late <= early * 1.1 + 2 for early, late in zip(sizes[60], sizes[364], strict=True)), sizes
    assert sizes[364][0] < 2 * 35
    assert sizes[364][6] == 1


def test_what_is_used_after_its_message_expired_is_there_while_it_is_needed(world):
    value = world.put(world.alice, 2, expires_s=DAY_S)
    world.step()
    missing = world.alice.client.new_id()
    plan_and_wait = world.double(world.alice, missing)
    world.alice.submit([Run(DOUBLE.id, (Ref(value),), {}, (missing,))])
    held = hold_back(world.alice)
    deliver(held)
    world.step()
    assert world.got(world.alice, plan_and_wait) == [8.0]


def test_a_tagged_value_stays_until_it_is_dropped(world):
    id_ = world.alice.client.new_id()
    world.alice.submit([Put(id_, "t0", "model")], {"t0": f32(9)})
    for _ in range(40):
        world.step()
        world.now += DAY_S * 0.999
    assert [e.id for e in world.alice.catalog().values] == [id_]


# -- the clock -------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_revives_nothing(world):
    value = world.put(world.alice, 1, expires_s=DAY_S)
    held = hold_back(world.alice)
    deliver(held)
    world.step()
    world.got(world.alice, value)
    world.put(world.alice, 2)
    for _ in range(20):
        world.now += DAY_S * 0.999
        world.step()
    assert world.rows("messages") <= 1
    world.now = START
    deliver(held)
    world.step()
    journal = world.gate.served[NAME].journal
    assert journal.value(world.alice.client.name, value).failure.code == "expired"


def test_a_leap_of_years_ahead_that_is_put_right_expires_nothing(world):
    result = world.double(world.alice, missing := world.alice.client.new_id())
    world.step()
    world.now += 3 * 365 * DAY_S
    world.step()
    world.now += 600
    world.step()
    world.now = START + 60
    world.alice.submit([Put(missing, "t0")], {"t0": f32(1)})
    world.step()
    assert world.got(world.alice, result) == [2.0]


def test_a_device_that_was_off_for_weeks_does_what_was_asked_of_it(world):
    world.put(world.alice, 1)
    world.step()
    result = world.put(world.alice, 2)
    world.restart()
    world.now += 20 * DAY_S
    world.step()
    assert f"{result}.safetensors" in world.files(world.alice, "out")
    assert world.gate.served[NAME].journal.value(world.alice.client.name, result).failure is None


def test_a_leap_back_of_years_keeps_nobody_waiting(world):
    world.step()
    world.now -= 5 * 365 * DAY_S
    value = world.put(world.alice, 1)
    world.step()
    assert world.got(world.alice, value) == [1.0]


# -- disks -----------------------------------------------------------------------------------


def test_a_full_disk_is_said_held_and_gone_on_from(world):
    def full(name, call, *args, **how):
        raise DiskFull("/private/disk: no space left")

    world.step()
    value = world.put(world.alice, 1)
    fs.FAILPOINTS["journal.begin"] = full
    world.now += 1
    world.gate.step(world.now)
    beat = fetch.heartbeat(world.alice)
    assert (beat.state, beat.trouble) == ("up", "disk_full")
    why, code, _ = fetch.reason(world.alice, value, value)
    assert ("its disk is full" in why, code) == (True, "timed_out")
    assert "/private" not in why
    fs.FAILPOINTS.clear()
    world.now += 1
    world.step()
    assert (world.got(world.alice, value), fetch.heartbeat(world.alice).trouble) == ([1.0], "")


@pytest.mark.parametrize("what", ["zero", "torn", "foreign", "link", "fifo", "folder", "conflict copy"])
def test_what_is_no_message_is_left_alone_and_harms_nothing(world, what):
    folder = world.alice.pair.carrier.path("in")
    odd = folder / f"{ids.new_id()}.safetensors"
    match what:
        case "zero":
            odd.write_bytes(b"")
        case "torn":
            odd.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
        case "foreign":
            (folder / ".DS_Store").write_bytes(b"?")
        case "link":
            odd.symlink_to("/etc/passwd")
        case "fifo":
            os.mkfifo(odd)
        case "folder":
            odd.mkdir()
        case "conflict copy":
            (folder / f"{odd.stem}.sync-conflict-20261122.safetensors").write_bytes(b"?")
    value = world.put(world.alice, 1)
    before = set(os.listdir(folder)) - {n for n in world.files(world.alice, "in") if n != odd.name}
    world.step()
    world.now += 2
    world.step()
    assert world.got(world.alice, value) == [1.0]
    assert set(os.listdir(folder)) == before


def test_a_file_that_grows_while_it_is_looked_at_is_taken_when_it_is_whole(world):
    value = world.put(world.alice, 1)
    ((path, raw),) = hold_back(world.alice).items()
    for size in (0, 10, len(raw) // 2, len(raw) - 1, len(raw)):
        path.write_bytes(raw[:size])
        world.now += 2
        world.step()
    assert world.got(world.alice, value) == [1.0]


# -- everyday --------------------------------------------------------------------------------


def test_what_was_sent_is_listed_with_where_it_stands(world):
    a, missing = world.put(world.alice, 1), world.alice.client.new_id()

    def stands():
        return {s.sent.value: (s.state, s.why) for s in standing.standing(world.alice.client)}

    assert stands()[a] == ("in the queue", "device_1 was never started")
    b = world.double(world.alice, missing)
    world.step()
    world.now += 1
    world.gate.step(world.now)
    assert stands()[a] == ("answered", "")
    assert stands()[b] == ("waiting", "it waits for its turn or its arguments")
    world.got(world.alice, a)
    world.alice.client.outbox.settle()
    assert stands()[a] == ("fetched", "")


def test_what_was_cancelled_can_be_sent_again_under_new_ids(world):
    x = world.put(world.alice, 5)
    world.step()
    missing = world.alice.client.new_id()
    result = world.double(world.alice, missing)
    world.step()
    pointer = PointerTensor(world.alice, result, None)
    with pytest.raises(UsageError, match="may still come"):
        again.retry(pointer)
    again.cancel([pointer])
    world.step()
    assert world.got(world.alice, result) == "cancelled"
    world.alice.client.outbox.settle()
    (new,) = again.retry(pointer)
    assert new.id != result
    world.alice.submit([Put(missing, "t0")], {"t0": f32(3)})
    world.step()
    assert (world.got(world.alice, new.id), world.got(world.alice, x)) == ([6.0], [5.0])
