"""Copies of a device: a backup that was restored, a home that was copied, two gates. One goes on, the others hold."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

import fedq as fq
from fedq import fs
from fedq.cli import background
from fedq.config import Config
from fedq.device import boots, daemon, gate
from fedq.device.gate import Gate
from fedq.device.home import Home
from fedq.device.pool import InlineWorker
from fedq.errors import OldCopy
from fedq.plan.codec import RawTensor
from fedq.queue.pair import Heartbeat
from tests.device.world import NAME, World
from tests.rig import Rig, wait_until


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


def copied(config: Config, name: str) -> Config:
    """All homes, copied beside the others; the queue is the same."""
    other = dataclasses.replace(config, devices=config.devices.with_name(name))
    shutil.copytree(config.devices, other.devices, ignore=shutil.ignore_patterns("poke", "lock"))
    return other


def beaten(world: World) -> None:
    world.step()
    world.now += 10
    world.gate.step(world.now)


# -- backups


def test_a_restored_backup_holds_says_so_and_goes_on_by_the_owners_word(world):
    beaten(world)
    world.restart()
    backup = copied(world.config, "backup")
    beaten(world)
    id_ = world.put(world.alice, 3)
    (sent,) = Path(world.alice.pair.carrier.path("in")).iterdir()
    message = sent.read_bytes()
    beaten(world)
    assert world.got(world.alice, id_) == [3.0]
    world.restart()
    world.now = max(world.now, fs.clock()) + 100  # it says that it is down by the clock of the machine
    shutil.rmtree(world.config.devices)
    shutil.copytree(backup.devices, world.config.devices)

    before = {p: p.read_bytes() for p in world.config.queue.rglob("*") if p.is_file()}
    with pytest.raises(OldCopy, match="device_1 was seen elsewhere, or later") as caught:
        Gate(world.config, [NAME], worker=InlineWorker, now=world.now)
    assert "--after-restore" in str(caught.value.hint)
    owner = Home(world.config.devices / NAME, world.config)
    for change in (owner.tell, lambda: owner.remove("x"), lambda: owner.add(_one(), tag="x")):
        with pytest.raises(OldCopy):
            change()
    assert {p: p.read_bytes() for p in world.config.queue.rglob("*") if p.is_file()} == before

    boots.after_restore(owner)
    sent.write_bytes(message)  # whoever kept it sends it again
    late = world.put(world.alice, 4)
    world.now += 1
    beaten(world)
    assert world.got(world.alice, late) == [4.0]
    (again,) = owner.journal.find(id_)
    assert "expired" in str(again) and "restored from a backup" in str(again)
    assert "restored" in [event.kind for event in owner.journal.events()]
    owner.close()


def _one():
    return RawTensor("f32", (1,), b"\0\0\0\0")


def test_a_message_that_waits_while_a_backup_is_restored_is_done(world):
    beaten(world)
    world.restart()
    backup = copied(world.config, "backup")
    beaten(world)
    world.restart()
    id_ = world.put(world.alice, 3)
    shutil.rmtree(world.config.devices)
    shutil.copytree(backup.devices, world.config.devices)
    owner = Home(world.config.devices / NAME, world.config)
    boots.after_restore(owner)
    owner.close()
    world.now += 1
    beaten(world)
    assert world.got(world.alice, id_) == [3.0]


@pytest.mark.parametrize("gone", ["the pairs' files", "what stands beside the homes"])
def test_either_place_outside_the_home_is_enough(world, gone):
    beaten(world)
    world.restart()
    backup = copied(world.config, "backup")
    for _ in range(2):
        beaten(world)
        world.restart()
    beside = world.config.devices / ".gate" / "boots"
    kept = beside.with_name("kept")
    shutil.copytree(beside, kept)
    shutil.rmtree(world.config.devices / NAME)
    shutil.copytree(backup.devices / NAME, world.config.devices / NAME)
    if gone == "the pairs' files":
        for path in world.config.queue.rglob("*.json"):
            path.unlink()
    else:
        shutil.rmtree(beside)
    with pytest.raises(OldCopy):
        Gate(world.config, [NAME], worker=InlineWorker, now=world.now)


# -- copies that run


def test_of_two_gates_the_one_that_started_last_goes_on(world):
    beaten(world)
    other = copied(world.config, "copy")
    second = Gate(other, [NAME], worker=InlineWorker, now=world.now)
    world.now += 6
    second.step(world.now)
    id_ = world.put(world.alice, 3)
    world.now += 6
    world.gate.step(world.now)
    with pytest.raises(OldCopy):
        world.gate.refresh(world.now)
    assert not world.gate.served
    for _ in range(20):
        second.step(world.now)
    assert world.got(world.alice, id_) == [3.0]
    with pytest.raises(OldCopy):
        world.gate.refresh(world.now)
    owner = Home(world.config.devices / NAME, world.config)
    boots.after_restore(owner)  # the owner says that this is the one
    owner.close()
    world.gate.refresh(world.now)
    world.now += 6
    world.gate.step(world.now)
    world.now += 6
    second.step(world.now)
    assert second.served[NAME].twin is not None and list(world.gate.served) == [NAME]
    second.close()


def test_two_copies_that_start_under_one_number_are_told_apart(world):
    world.gate.step(world.now)
    boot = Home(world.config.devices / NAME, world.config).journal.count()[0]
    other = copied(world.config, "copy")
    twin = Home(other.devices / NAME, other)
    me = twin.trusted()[0]
    beat = Heartbeat(NAME, twin.to(me), (boot, 1), "f" * 16, world.now, "up")
    twin.pair(me.name).write(beat, twin.key)
    world.now += 6
    world.gate.step(world.now)
    assert isinstance(world.gate.served[NAME].twin, OldCopy)


def test_an_old_heartbeat_that_somebody_puts_back_holds_nothing_up(world):
    """Neither a kill, nor a start, nor a file that the device wrote itself."""
    path = Path(world.alice.pair.carrier.path("heartbeat.json"))
    beaten(world)
    old = path.read_bytes()
    for _ in range(3):
        world.restart()
        path.write_bytes(old)
        beaten(world)
        path.write_bytes(old)
        beaten(world)
        id_ = world.put(world.alice, 3)
        beaten(world)
        assert world.got(world.alice, id_) == [3.0]
    for rubbish in (b"", b"{}", old[:-300], os.urandom(500)):
        path.write_bytes(rubbish)
        beaten(world)
        assert world.gate.served[NAME].twin is None


# -- with daemons


@fq.func2plan(args_shape=[(-1,)])
def twice(x):
    return x + x


def test_a_daemon_on_a_copied_home_takes_over_and_the_first_one_says_why_it_holds(tmp_path):
    with Rig(tmp_path, data={"x": torch.tensor([1.0, 2.0])}) as rig:
        rig.start()
        pointer, x = twice.send(rig.device), rig.device.find("x")
        assert pointer(x).get(timeout_s=60).tolist() == [2.0, 4.0]
        other = copied(rig.config, "copy")
        gate.mark(other, rig.name, up=True)
        daemon.start(other)
        try:
            wait_until(lambda: "was seen elsewhere, or later" in daemon.log_file(rig.config).read_text())
            assert pointer(x).get(timeout_s=60).tolist() == [2.0, 4.0]
            assert background.state(rig.config, rig.name)["trouble"] == "old_copy"
            assert background.state(other, rig.name)["trouble"] == ""
        finally:
            daemon.stop(other)


def test_a_daemon_that_is_killed_and_started_again_is_no_copy(tmp_path):
    with Rig(tmp_path, data={"x": torch.tensor([1.0, 2.0])}) as rig:
        pointer, x = twice.send(rig.device), rig.device.find("x")
        for _ in range(3):
            pid = rig.start()
            assert pointer(x).get(timeout_s=60).tolist() == [2.0, 4.0]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: daemon.pid(rig.config) is None)
        assert rig.heartbeat().count[0] == 3
