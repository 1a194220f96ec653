"""A folder of a pair that became a link: nothing behind it is written, read or swept away, by neither side."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.device.world import DAY_S, World


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
