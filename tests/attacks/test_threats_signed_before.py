"""What was signed before stands where something else is to go: a copy of it takes nobody's place."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from fedq import ids
from fedq.device.home import Home
from fedq.errors import BadFile
from fedq.queue.message import Get, Message, Put, encode_message
from fedq.queue.pair import Card, Catalog, Heartbeat
from fedq.trust.keys import Key
from tests.device.world import NAME, World, f32


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


def folder(device, name: str) -> Path:
    return Path(device.pair.carrier.path(name))


def put(device, id_: str, value: float) -> None:
    device.submit([Put(id_, "t0"), Get(id_, (id_,))], {"t0": f32(value)})


# -- at a reply's name


@pytest.mark.parametrize("stays", [True, False])
def test_a_reply_to_another_requester_under_the_same_id_takes_no_replys_place(stays, world):
    """Bob reads an id in Alice's message, is answered under it first, and plants his answer where hers is to be."""
    bob, id_ = world.requester("bob"), world.alice.client.new_id()
    put(world.alice, id_, 1.0)
    (sent,) = folder(world.alice, "in").iterdir()
    held = world.root / "held"
    shutil.move(sent, held)
    put(bob, id_, 66.0)
    world.step()
    place = folder(world.alice, "out") / f"{id_}.safetensors"
    shutil.copy(folder(bob, "out") / place.name, place)
    shutil.move(held, sent)
    world.step()
    if not stays:
        place.unlink()
        world.restart()
        world.step()
    assert (world.got(world.alice, id_), world.got(bob, id_)) == ([1.0], [66.0])


# -- in another's pair


def test_a_message_that_somebody_else_signed_is_not_done_in_this_pair(world):
    """A stranger signs one as Alice; Bob, who is trusted, has his own copied to her pair, or signs one from there."""
    bob = world.requester("bob")
    world.step()
    put(bob, ids.new_id(), 66.0)
    (his,) = folder(bob, "in").iterdir()
    shutil.move(his, folder(world.alice, "in") / his.name)
    for key in (Key.from_seed(b"s" * 32), bob.client.key):
        made = Message(
            ids.new_id(), world.alice.client.name, world.alice.address, world.now, world.now + 900.0, 7,
            (Put("a" * 32, "t0"), Get("a" * 32, ("a" * 32,))),
        )  # fmt: skip
        raw = b"".join(map(bytes, encode_message(made, {"t0": f32(1.0)}, key)))
        (folder(world.alice, "in") / f"{made.id}.safetensors").write_bytes(raw)
    world.step()
    world.now += 60
    world.step()
    assert list(folder(world.alice, "out").iterdir()) == [] and world.rows("messages") == 0
    assert {code for _, code in world.alice.sealed(Heartbeat).refused} == {"bad_signature"}
    assert len(world.alice.sealed(Heartbeat).refused) == 3


# -- at a message's name


def test_an_older_message_of_ones_own_takes_no_messages_place(world):
    """Names of later messages of a block follow from its token, which all can read in its first."""
    first = world.put(world.alice, 1.0)
    (older,) = folder(world.alice, "in").iterdir()
    new_id, client = world.alice.client.new_id, world.alice.client

    def told() -> str:
        id_ = new_id()
        if not (folder(world.alice, "in") / f"{id_}.safetensors").exists():
            shutil.copy(older, folder(world.alice, "in") / f"{id_}.safetensors")
        return id_

    client.new_id = told
    second = world.put(world.alice, 2.0)
    client.new_id = new_id
    world.step()
    assert (world.got(world.alice, first), world.got(world.alice, second)) == ([1.0], [2.0])


# -- a device's own numbers


@pytest.mark.parametrize("what", [Card, Catalog, Heartbeat])
@pytest.mark.parametrize("count", [(2**63, 0), (1, 2**63), (10**400, 1)])
def test_a_count_that_nobody_can_keep_is_a_malformed_file(what, count, world):
    world.step()
    home = Home(world.config.devices / NAME, world.config)
    me = home.trusted()[0]
    seen = world.alice.sealed(what)
    home.pair(me.name).write(dataclasses.replace(seen, count=count), home.key)
    home.close()
    with pytest.raises(BadFile, match="malformed"):
        world.alice.sealed(what)
