"""The requester's side of a folder in strangers' hands."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from fedq import fs
from fedq.client import fetch, sending
from fedq.client.pointers import PointerTensor
from fedq.errors import Conflict, Quota
from fedq.plan.codec import RawTensor
from fedq.queue.message import Get, Put
from tests.attacks.test_folder import copied, ones, plant, sparse
from tests.device.world import World, f32, floats


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    fs.FAILPOINTS.clear()
    made.close()


def got(world: World, id_: str):
    (came,) = fetch.outcomes([PointerTensor(world.alice, id_, None)], 0, on_wait=lambda _: None)
    return came


@pytest.mark.parametrize("kind", ["folder", "full folder", "FIFO", "link", "file"])
def test_what_is_planted_at_a_messages_name_is_cleared_and_the_message_goes_out(kind, world):
    new_id, client = world.alice.client.new_id, world.alice.client

    def told() -> str:
        """Every id is known beforehand: a stranger stands at each name."""
        id_ = new_id()
        plant(world.alice.pair.carrier.path(f"in/{id_}.safetensors"), kind)
        return id_

    client.new_id = told
    id_ = world.put(world.alice, 1, 2)
    client.new_id = new_id
    world.step()
    assert floats(got(world, id_)) == [1.0, 2.0]


def test_what_the_requester_signed_itself_is_a_conflict_still(world):
    id_ = world.alice.client.new_id()
    message = world.alice.submit([Put(id_, "t0")], {"t0": f32(1)})
    with pytest.raises(Conflict):
        sending._put(world.alice, message.id, [b"something else"])


def test_a_file_at_a_replys_name_is_read_once_and_again_when_it_changes(world):
    world.step()
    id_ = world.put(world.alice, 1, 2)
    path = world.alice.pair.carrier.path(f"out/{id_}.safetensors")
    read: list[int] = []
    copied(read)
    key = world.alice.key + bytes(64)
    sparse(path, 10 << 20)
    assert got(world, id_).code == "timed_out" and sum(read) < 10_000  # the heartbeat
    sparse(path, 10 << 20, key)
    for _ in range(5):
        assert "is not taken for it" in str(got(world, id_))
    assert 10 << 20 <= sum(read) < (10 << 20) + 10_000
    fs.FAILPOINTS.clear()
    world.step()
    assert floats(got(world, id_)) == [1.0, 2.0]


def test_a_reply_larger_than_what_is_read_is_told_with_what_to_set(world):
    config = dataclasses.replace(world.alice.client.config, reply_bytes=2_000)
    world.alice.client.config = config
    id_ = world.alice.client.new_id()
    world.alice.submit([Put(id_, "t0"), Get(id_, (id_,))], {"t0": ones(1_000)})
    world.step()
    error = got(world, id_)
    assert error.code == "timed_out" and "at most 2000 are read" in str(error) and "reply_bytes" in str(error)
    world.alice.client.config = dataclasses.replace(config, reply_bytes=5_000)
    world.alice.pair.carrier.path(f"out/{id_}.safetensors").touch()
    assert len(floats(got(world, id_))) == 1_000


def test_a_message_larger_than_the_device_takes_is_refused_before_it_is_promised(world):
    world.alice._most = world.alice.pair.carrier.mark("card.json"), 2_000  # as a card says it
    id_ = world.alice.client.new_id()
    with pytest.raises(Quota, match="takes at most 2,000") as refused:
        world.alice.submit([Put(id_, "t0")], {"t0": ones(1_000)})
    assert "message_bytes" in refused.value.hint and "nothing was sent" in refused.value.hint
    assert world.files(world.alice, "in") == set()
    raw = RawTensor("f32", (3,), struct.pack("<3f", 1, 2, 3))
    world.alice.submit([Put(id_, "t0")], {"t0": raw})
    assert len(world.files(world.alice, "in")) == 1
