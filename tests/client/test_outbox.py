"""The requester's record over crashes, between processes, and when the disk says no."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedq import fs
from fedq.client.draft import Sent
from fedq.client.outbox import SPOOL_ABOVE_BYTES, Outbox
from fedq.errors import Conflict, DiskFull
from tests.client.world import World, f32

SEND = """
import os, signal, sys
from pathlib import Path
from fedq import fs
from tests.client.world import World, f32
from fedq.plan.codec import RawTensor
world, step, nth, size = World(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
device = world.client().device("device_1")
def die(name, call, *args, **how):
    global nth
    if (nth := nth - 1) == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(*args, **how)
if step:
    fs.FAILPOINTS[step] = die
for n in range(20):
    print(device.send(RawTensor("u8", (size,), bytes(size))).id, flush=True)
"""


def sender(world: World, step: str = "", nth: int = 1, size: int = 4) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SEND, str(world.config.home.parent), step, str(nth), str(size)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)


def promised(side) -> list[str]:
    return [action.id for message, _ in side.messages().values() for action in message.actions]


@pytest.mark.parametrize("size", [4, SPOOL_ABOVE_BYTES + 1], ids=["in the outbox", "spooled"])
@pytest.mark.parametrize("step", ["outbox.begin", "outbox.insert", "outbox.commit", "put.write", "put.name"])
def test_a_send_that_returned_is_there_and_one_cut_off_is_finished_or_never_was(world, side, step, size):
    killed = sender(world, step, 3, size)
    returned = killed.communicate()[0].split()
    assert killed.returncode == -9
    client = world.client()
    there = promised(side)
    assert set(returned) <= set(there)
    known = {p.id for id_ in there for p in client.outbox.promised(client.device("device_1").number, id_)}
    assert known == set(there)
    assert not {n.partition("-")[0] for n in fs.names(client.config.home / "spool")} & side.messages().keys()
    world.client()
    assert sorted(promised(side)) == sorted(there)


def test_two_processes_share_one_outbox(world, side):
    both = [sender(world), sender(world)]
    returned = [id_ for p in both for id_ in p.communicate()[0].split()]
    assert [p.returncode for p in both] == [0, 0]
    assert sorted(promised(side)) == sorted(returned) and len(returned) == 40


def test_what_was_put_is_not_put_again(world, side, device):
    device.send(f32(1))
    side.take()
    device.client.close()
    world.clients.clear()
    world.client()
    assert side.take() == []


def test_a_full_disk_is_said_and_nothing_is_sent(device, side, monkeypatch):
    def full(name, call, *args, **how):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setitem(fs.FAILPOINTS, "outbox.commit", full)
    with pytest.raises(DiskFull, match="the outbox can not be written"):
        device.send(f32(1))
    monkeypatch.undo()
    assert side.take() == []
    device.send(f32(2))
    assert len(side.take()) == 1


def test_the_home_is_private(world, device):
    assert world.config.home.stat().st_mode & 0o777 == 0o700
    assert (world.config.home / "outbox.sqlite").stat().st_mode & 0o077 == 0


@pytest.fixture
def outbox(tmp_path):
    box = Outbox(tmp_path / "outbox.sqlite", durable=False)
    yield box
    box.close()


def sent(id_: str, **promises) -> Sent:
    return Sent(id_, "d", 0.0, 100.0, [b"bytes"], **promises)


def test_one_id_is_promised_once_and_all_or_nothing(outbox):
    pair = outbox.pair("r", "device_1", "k")
    outbox.commit(pair, [sent("m1", values={"v1": "f32[2]"})])
    with pytest.raises(Conflict, match="promised before"):
        outbox.commit(pair, [sent("m2", values={"v2": None}), sent("m3", values={"v1": None})])
    assert outbox.own(pair, ["v1", "v2"]) == {"v1"}
    assert [id_ for id_, _ in outbox.unput(pair, 0.0)] == ["m1"]


def test_a_device_made_anew_is_another_device(outbox):
    first, second = outbox.pair("r", "device_1", "old"), outbox.pair("r", "device_1", "new")
    assert first != second == outbox.pair("r", "device_1", "new")
    outbox.commit(first, [sent("m1", values={"v1": None})])
    assert not outbox.own(second, ["v1"])


def test_an_expired_message_is_not_sent_late(outbox):
    pair = outbox.pair("r", "device_1", "k")
    outbox.commit(pair, [sent("m1")])
    assert outbox.interrupted("r", 99.0) == ["device_1"] and outbox.unput(pair, 99.0)
    assert not outbox.interrupted("r", 100.0) and not outbox.unput(pair, 100.0)


@given(st.lists(st.sampled_from("abcd"), max_size=20), st.integers(1, 5))
def test_everything_taken_away_is_dropped_exactly_once(taken, every):
    with tempfile.TemporaryDirectory() as home:
        box = Outbox(Path(home, "outbox.sqlite"), durable=False)
        dropped = drop_all(box, taken, every)
        box.close()
    assert sorted(dropped) == sorted(set(taken))


def drop_all(box, taken, every):
    pair = box.pair("r", "device_1", "k")
    box.commit(pair, [sent("m", values=dict.fromkeys("abcd"), uses=set("ab"))])
    dropped = []
    for n, value in enumerate(taken):
        box.take(pair, box.own(pair, [value]), [])
        if n % every == 0:
            box.settle()
        if n % 2:
            values, after, _ = box.to_forget(pair, 10)
            assert after == (["m"] if values else [])  # which made them all
            box.commit(pair, [sent(f"m{n}", drops=values)])
            dropped += values
    return dropped + box.to_forget(pair, 10)[0]


@given(st.lists(st.tuples(st.sampled_from(["make", "ask", "take", "ack", "use", "drop"]), st.sampled_from("abcd"))))
def test_what_a_process_remembers_is_what_its_file_says(done):
    with tempfile.TemporaryDirectory() as home:
        path = Path(home, "outbox.sqlite")
        box = Outbox(path, durable=False)
        pair, made = box.pair("r", "device_1", "k"), set()
        for n, (what, value) in enumerate(done):
            if what == "make" and value not in made:
                made.add(value)
                box.commit(pair, [sent(f"m{n}", values={value: None})])
            elif what == "ask":
                box.commit(pair, [sent(f"m{n}", replies={value: f"r{n}"})])
            elif what == "take":
                replies = box.replies(pair, [value], 0.0).values()
                box.take(pair, box.own(pair, [value]), replies)
            elif what == "ack":
                box.acknowledge(pair, f"r{value}")
            elif what == "use" and box.used(pair, [value]):
                box.commit(pair, [sent(f"m{n}", uses={value})])
            elif what == "drop":
                values, _, replies = box.to_forget(pair, 2)
                box.commit(pair, [sent(f"m{n}", drops=values, acks=replies)])
            assert_same(box, path, pair)
        box.close()


def assert_same(box, path, pair):
    remembered, (_, after, _) = answers(box, pair), box.to_forget(pair, 10)
    box.settle()
    fresh = Outbox(path, durable=False)
    assert remembered == answers(box, pair) == answers(fresh, pair)
    then = box.to_forget(pair, 10)[1]
    assert then == fresh.to_forget(pair, 10)[1] and set(then) <= set(after)  # who was answered is not waited for
    fresh.close()


def answers(box, pair):
    values, _, replies = box.to_forget(pair, 10)
    return [box.own(pair, "abcd"), box.used(pair, "abcd"), box.replies(pair, "abcd", 0.0), values, replies]
