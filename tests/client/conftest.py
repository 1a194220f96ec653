from __future__ import annotations

import pytest

from tests.client.world import World


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    for client in world.clients:
        client.close()


@pytest.fixture
def side(world):
    return world.device("device_1")


@pytest.fixture
def device(world, side):
    return world.client().device("device_1")
