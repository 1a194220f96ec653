"""Who asks: roots, trust, names, runs; and that none of it loads torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fedq
from fedq.client import session
from fedq.client.session import Client, trust_device
from fedq.errors import Ambiguous, UnknownDevice, UnknownValue, Unreachable
from tests.client.world import ALICE, NAME, ROOT, World, double_abs, f32


def test_importing_fedq_and_its_client_loads_no_torch():
    code = (
        "import fedq, fedq.client.session, sys; fedq.Device, fedq.NotBuilt, fedq.gather; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_every_name_of_the_door_can_be_had_and_no_other():
    for name in (*fedq._FROM, "FedqError", "NotBuilt", "TimedOut"):
        assert getattr(fedq, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = fedq.nothing


def test_a_missing_root_is_said_with_its_path_and_nothing_is_written(world):
    (world.config.queue / ".fedq").unlink()
    before = sorted(world.config.home.iterdir())
    with pytest.raises(Unreachable, match=f"no queue root in {world.config.queue}"):
        Client(world.config)
    assert sorted(world.config.home.iterdir()) == before


def test_another_root_mounted_in_its_place_is_noticed(world, device, tmp_path):
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other")
    mark = (other.config.queue / ".fedq").read_text().replace(ROOT, "1" * 32)
    (world.config.queue / ".fedq").write_text(mark)
    with pytest.raises(Unreachable, match="is another queue root than before"):
        device.send(f32(1))


def test_the_requester_is_named_by_user_and_key(world):
    client = world.client()
    assert (client.name, client.key.public) == (NAME, ALICE.public)


def test_an_unknown_device_lists_those_that_are_there(world, side):
    world.device("device_2")
    client = world.client()
    assert client.devices() == ["device_1", "device_2"]
    with pytest.raises(UnknownDevice, match=rf"'device_3' in {world.config.queue} \(there: device_1, device_2\)"):
        client.device("device_3")


def test_a_device_whose_key_is_not_known_here_is_not_believed(world, side):
    assert world.trust_file("device_1")["key"] == side.key.public.hex()
    (world.config.home / "trust" / ROOT / "device_1.json").unlink()
    with pytest.raises(UnknownDevice, match="is not trusted"):
        world.client().device("device_1")
    trust_device(world.config, "device_1", "no key", replace=True)
    with pytest.raises(UnknownDevice, match="is not of the form"):
        world.client().device("device_1")


def test_a_run_id_stands_for_results_at_several_devices(world, side):
    world.device("device_2")
    client = world.client()
    results = [client.device(name).send_plan(double_abs())(f32(1)) for name in ("device_1", "device_2")]
    run = client.name_run(results)
    assert [(p.device.name, p.id) for p in world.client().run(run[:8])] == [(p.device.name, p.id) for p in results]
    with pytest.raises(UnknownValue, match="no run"):
        client.run("f" * 32)
    client.name_run(results, run[:31] + ("0" if run[31] != "0" else "1"))
    with pytest.raises(Ambiguous, match="fits the runs"):
        client.run(run[:8])


def test_a_reference_without_a_device_says_how_to_write_it(world):
    with pytest.raises(UnknownValue, match="names no device"):
        world.client().find("input_data")


def test_a_handle_made_by_name_uses_the_roots_found_from_here(world, side, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDQ_HOME", str(world.config.home))
    monkeypatch.setenv("FEDQ_USER", "alice")
    device = fedq.Device("device_1")
    assert device.client is session.here() and device == fedq.Device("device_1")
    device.send(f32(1))
    assert len(side.take()) == 1
    device.client.close()
    session._client.cache_clear()
