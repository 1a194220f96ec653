"""A folder of a pair that became a link: nothing behind it is written, read or swept away, by neither side."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fedq import fs
from fedq.errors import Unreachable
from tests.device.world import DAY_S, NAME, World


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def private(tmp_path):
    """A folder of the owner's own, with what somebody else's program left there long ago."""
    folder = tmp_path / "private"
    (folder / ".tmp-folder").mkdir(parents=True)
    for name in (".tmp-mine", f"{'a' * 32}.safetensors", "card.json"):
        (folder / name).write_text("mine")
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    return folder


def there(folder: Path) -> list[tuple[str, str]]:
    return sorted((p.name, "" if p.is_dir() else p.read_text()) for p in folder.iterdir())


@pytest.mark.parametrize("name", ["in", "out", "blobs"])
def test_nothing_behind_a_folder_that_became_a_link_is_swept_or_written(name, world, private):
    world.step()
    before, pair = there(private), Path(world.alice.pair.carrier.path(""))
    (pair / name).rename(pair / "was")
    (pair / name).symlink_to(private)
    for _ in range(3):
        world.now += 0.9 * DAY_S
        world.gate.step(world.now)
    world.restart()
    world.gate.step(world.now)
    world.again("alice").client.collect()
    assert there(private) == before
    (pair / name).unlink()
    (pair / "was").rename(pair / name)
    value = world.put(world.alice, 1.0)
    for _ in range(3):
        world.now += 61
        world.step()
    assert world.got(world.alice, value) == [1.0]


def test_temporary_files_of_a_pair_whose_folder_is_a_link_are_swept_elsewhere(world, private):
    bob = world.requester("bob")
    world.step()
    pair = Path(world.alice.pair.carrier.path(""))
    (pair / "in").rename(pair / "was")
    (pair / "in").symlink_to(private)
    left = Path(bob.pair.carrier.path("in")) / ".tmp-left"
    left.write_text("")
    os.utime(left, (1e9, 1e9))
    for _ in range(3):
        world.now += 0.9 * DAY_S
        world.gate.step(world.now)
    assert not left.exists() and (private / ".tmp-mine").exists()


def test_a_folder_that_is_swapped_for_a_link_while_a_device_is_removed_leads_nowhere(world, private):
    """At each step at which somebody with a right to the pair could do it."""
    pair = Path(world.alice.pair.carrier.path(""))
    (private / "in").mkdir()
    (private / "in" / "x").write_text("mine")
    before = there(private)
    for target in (pair / "in", pair):
        for nth in range(12):
            (pair / "in").mkdir(parents=True, exist_ok=True)
            (pair / "in" / "x").write_text("theirs")
            steps: list[str] = []

            def swap(name, call, *args, target=target, nth=nth, steps=steps, **how):
                steps.append(name)
                if len(steps) == nth + 1 and target.is_dir():
                    target.rename(pair.parent.parent / f"{target.name}-{nth}")
                    target.symlink_to(private)
                return call(*args, **how)

            fs.FAILPOINTS["*"] = swap
            try:
                fs.remove(pair.parent)
            except Unreachable:
                pass
            finally:
                fs.FAILPOINTS.clear()
            assert there(private) == before and there(private / "in") == [("x", "mine")], (target, nth, steps)
            fs.remove(pair.parent)
            assert not pair.parent.exists()


def test_folders_in_each_other_without_end_are_left_and_told(world):
    pair = Path(world.alice.pair.carrier.path(""))
    at = os.open(pair, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=at)
        deeper = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = deeper
    os.close(at)
    with pytest.raises(Unreachable, match="more than 100 deep"):
        fs.remove(world.config.queue / NAME)
    subprocess.run(["rm", "-rf", pair / "d"], check=True)  # what pytest deletes with is recursive
    assert fs.remove(world.config.queue / NAME) and not fs.remove(world.config.queue / NAME)
