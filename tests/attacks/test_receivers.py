"""Whoever holds the folder copies and brings back what others signed: it is for one receiver, and the latest counts."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from fedq.client import fetch
from fedq.client.session import Client, trust_device
from fedq.device import home
from fedq.device.gate import Gate
from fedq.device.home import Home, Requester
from fedq.device.pool import InlineWorker
from fedq.errors import BadFile, BadSignature, Conflict, TimedOut
from fedq.plan.codec import RawTensor
from fedq.queue.pair import Card, Catalog, Heartbeat, open_json
from fedq.trust import keys
from tests.device.world import NAME, World

SEALED = (Card, Catalog, Heartbeat)


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


def device_too(world: World, name: str) -> Home:
    """Another device of the same owner that trusts the same requester."""
    me = Requester(world.alice.client.name, world.alice.client.key.public.hex())
    return home.init(world.config, name, requester=me)


def served(config, name: str, now: float) -> Gate:
    gate = Gate(config, [name], worker=InlineWorker, now=now)
    for _ in range(300):
        if not gate.step(now) and gate.idle:
            return gate
    raise AssertionError("it does not come to rest")


def place(folder: Path, what: type) -> Path:
    return folder / f"{what.KIND}.json"


# -- messages and replies


def test_a_message_that_is_copied_to_another_device_is_refused_there(world):
    device_too(world, "device_2").close()
    world.put(world.alice, 3)
    pair = Path(world.alice.pair.carrier.path(""))
    other = world.config.queue / "device_2" / pair.name
    (sent,) = (pair / "in").iterdir()
    shutil.copy(sent, other / "in" / sent.name)
    gate = served(world.config, "device_2", world.now)
    gate.step(world.now + 6)
    there = gate.served["device_2"].journal
    beat = Heartbeat.from_json(_body(other / "heartbeat.json"))
    assert beat.refused == ((sent.stem, "bad_file"),) and (other / "in" / sent.name).exists()
    assert there.seen(pair.name, sent.stem) is None
    gate.close()


def test_a_message_that_is_copied_to_another_root_with_the_same_device_is_refused_there(world):
    """A home that was copied, and a queue root made for it: same name, same key, another root."""
    id_ = world.put(world.alice, 3)
    (sent,) = Path(world.alice.pair.carrier.path("in")).iterdir()
    other = dataclasses.replace(world.config, queue=world.root / "queue2", devices=world.root / "devices2")
    shutil.copytree(world.config.devices / NAME, other.devices / NAME)
    me = Requester(world.alice.client.name, world.alice.client.key.public.hex())
    there = home.init(other, NAME, requester=me)
    assert there.key.public == world.alice.key and there.address.root != world.alice.address.root
    there.close()
    pair = other.queue / NAME / me.name
    shutil.copy(sent, pair / "in" / sent.name)
    gate = served(other, NAME, world.now)
    assert (gate.served[NAME].journal.seen(me.name, sent.stem), list((pair / "out").iterdir())) == (None, [])
    gate.close()
    world.step()
    assert world.got(world.alice, id_) == [3.0]


def test_a_reply_from_another_root_is_no_reply_here(world):
    """The same requester and the same device, in two roots: what came in one is not believed in the other."""
    other = dataclasses.replace(world.config, queue=world.root / "queue2", home=world.root / "alice")
    shutil.copytree(world.config.queue, other.queue)
    (other.queue / ".fedq").write_bytes(
        (other.queue / ".fedq").read_bytes().replace(world.alice.client.root.encode(), b"f" * 32)
    )
    trust_device(other, NAME, world.alice.key.hex(), replace=True)
    client = Client(other, now=world.clock)
    theirs = client.device(NAME)
    id_ = world.put(theirs, 5)
    reply = theirs.pair.reply_name
    mine = world.put(world.alice, 7)
    world.step()
    came = Path(world.alice.pair.carrier.path("out")) / Path(reply(mine)).name
    assert world.got(world.alice, mine) == [7.0]
    shutil.copy(came, Path(theirs.pair.carrier.path("out")) / Path(reply(id_)).name)
    assert world.got(theirs, id_) == TimedOut.code
    client.close()


def test_a_reply_to_another_key_of_the_same_digits_is_no_reply(world):
    id_ = world.put(world.alice, 3)
    world.step()
    client = world.alice.client
    client.address = dataclasses.replace(client.address, key=client.address.key[:8] + "0" * 56)
    assert world.got(world.alice, id_) == TimedOut.code


# -- cards, catalogs, heartbeats


def _body(path: Path) -> dict:
    return open_json(path.name.partition(".")[0], path.read_bytes(), keys.verify)[0]


@pytest.mark.parametrize("what", SEALED)
def test_what_is_for_another_requester_or_of_another_device_is_not_believed(world, what):
    bob = world.requester("bob")
    device_too(world, "device_2").close()
    world.step()
    served(world.config, "device_2", world.now).close()
    mine = place(Path(world.alice.pair.carrier.path("")), what)
    for other in (Path(bob.pair.carrier.path("")), world.config.queue / "device_2" / world.alice.client.name):
        shutil.copy(place(other, what), mine)
        with pytest.raises(BadFile) as caught:
            world.again("alice").sealed(what)
        assert "bob" in str(caught.value) or isinstance(caught.value, BadSignature)


@pytest.mark.parametrize("what", SEALED)
def test_an_older_one_is_ignored_and_told_in_this_process_and_in_others(world, what, caplog):
    device = world.alice
    path = place(Path(device.pair.carrier.path("")), what)
    world.step()
    world.gate.served[NAME].beat(world.now)
    old = path.read_bytes()
    first = device.sealed(what)
    world.restart()
    world.now += 60
    owner = Home(world.config.devices / NAME, world.config)
    owner.add(_one(), tag="new")
    owner.close()
    world.step()
    world.gate.served[NAME].beat(world.now)
    newer = device.sealed(what)
    assert newer.count > first.count
    path.write_bytes(old)
    for reader in (device, world.again("alice")):
        with pytest.raises(BadFile, match="older than one read before"):
            reader.sealed(what)
    if what is Heartbeat:
        assert fetch.heartbeat(device) is None and "is not believed" in caplog.text


def _one():
    return RawTensor("f32", (1,), b"\0\0\0\0")


def test_counts_rise_with_every_file_and_every_start_whoever_writes(world):
    path = Path(world.alice.pair.carrier.path(""))
    seen: dict[str, list[tuple[int, int]]] = {what.KIND: [] for what in SEALED}
    for number in range(4):
        world.step()
        world.gate.served[NAME].beat(world.now)
        owner = Home(world.config.devices / NAME, world.config)  # another process, as it were, beside the gate
        owner.add(_one(), tag=f"tag{number}")
        owner.close()
        for what in SEALED:
            seen[what.KIND].append(tuple(_body(place(path, what))["count"]))
        world.now += 60
        if number % 2:
            world.restart()
    for counts in seen.values():
        assert counts == sorted(counts)
    assert len(set(seen["catalog"])) == len(set(seen["heartbeat"])) == 4


# -- keys


def test_a_second_key_with_the_same_digits_is_a_conflict_and_never_a_replacement(world):
    client = world.alice.client
    twin = Requester(client.name, client.key.public.hex()[:8] + "0" * 56)
    with pytest.raises(Conflict, match="is, or was, somebody else here") as caught:
        home.init(world.config, NAME, requester=twin)
    assert client.key.public.hex() in str(caught.value) and twin.key in str(caught.value)
    owner = Home(world.config.devices / NAME, world.config)
    owner.untrust(client.name)
    with pytest.raises(Conflict):  # what is stored here under that name is still the other one's
        owner.trust(twin)
    owner.trust(Requester(client.name, client.key.public.hex()))
    assert [r.key for r in owner.trusted()] == [client.key.public.hex()]
    owner.close()


def test_a_device_key_that_contradicts_what_was_trusted_or_the_card_needs_to_be_meant(world):
    alice = world.alice.client
    stranger, right = "0" * 64, world.alice.key.hex()
    file = alice.config.home / "trust" / alice.root / f"{NAME}.json"
    before = file.read_bytes()
    with pytest.raises(Conflict, match="was trusted with another key") as caught:
        trust_device(alice.config, NAME, stranger)
    assert "--replace" in str(caught.value.hint) and file.read_bytes() == before
    file.unlink()
    with pytest.raises(Conflict, match=r"the card of device_1 .* is signed by"):
        trust_device(alice.config, NAME, stranger)
    assert not file.exists()
    trust_device(alice.config, NAME, right)
    trust_device(alice.config, NAME, right)
    trust_device(alice.config, NAME, stranger, replace=True)
    with pytest.raises(BadSignature):
        world.again("alice").sealed(Card)
