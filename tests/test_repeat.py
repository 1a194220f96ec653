"""A block with a token, done again by another process: the same ids and values, nothing sent twice.

Requester and device are real processes. A twin of the folder, same root and keys, does each block
without a kill: what the killed one and its successor give must be the same. FEDQ_KILLS=1 kills at
every line and every durable step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedq.device import daemon, gate
from fedq.plan import arrays
from fedq.plan.codec import RawTensor
from fedq.plan.file import encode_plan
from fedq.trust.keys import Key
from tests.marks import more
from tests.repeat import Runner, plans
from tests.rig import Rig, client_of, config_of

EVERY = os.environ.get("FEDQ_KILLS") == "1"
LINES, STEPS = (1, 1) if EVERY else (7, 47)


class Town:
    """One folder with its daemon, and the processes that ask it."""

    def __init__(self, root: Path) -> None:
        self.config = config_of(root)
        for name in ("device_1", "device_2"):
            gate.mark(self.config, name, up=True)
        daemon.start(self.config)
        self.run = Runner(root)
        self.sent = 0

    def __call__(self, token: str) -> tuple[dict[str, Any], int]:
        """What a process says that does the block to its end, and how many messages there are more since."""
        return self._counted(self.run(token))

    def command(self, *words: str) -> tuple[dict[str, Any], int]:
        """The same of a command."""
        return self._counted(self.run.command(*words))

    def _counted(self, came: dict[str, Any]) -> tuple[dict[str, Any], int]:
        assert "error" not in came, came["error"]
        before, self.sent = self.sent, came["messages"]
        return came, self.sent - before

    def close(self) -> None:
        self.run.close()
        daemon.stop(self.config)


@pytest.fixture(scope="module")
def towns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Town, Town]]:
    """A folder and its twin; in the twin the plans were sent before, on their own."""
    here, twin = (tmp_path_factory.mktemp("repeat") / name for name in ("here", "twin"))
    here.mkdir()
    (here / "fedq.toml").write_text('durability = "none"\n')
    data = {"x": torch.tensor([-1.0, 2.0]), "rows": torch.arange(7.0)}
    for name in ("device_1", "device_2"):
        with Rig(here, data=data, name=name):
            pass
    for name, plan in plans().items():
        key = Key.from_seed(b"k" * 32)
        (here / f"{name}.safetensors").write_bytes(b"".join(encode_plan(plan.file(), key)))
    shutil.copytree(here, twin)
    made = Town(here), Town(twin)
    yield made
    for town in made:
        town.close()


def test_another_process_gives_the_same_and_sends_nothing(towns):
    here, _ = towns
    first, sent = here("again")
    assert sent > 3
    for _ in range(2):
        again, sent = here("again")
        assert (again["said"], sent) == (first["said"], 0)


def test_a_call_draws_the_same_whether_or_not_its_plan_rides_along(towns):
    here, twin = towns
    twin.run.send_plans()
    assert here("rides")[0]["said"] == twin("rides")[0]["said"]


def test_a_block_killed_at_any_line_and_step_ends_as_one_that_was_not(towns):
    here, twin = towns
    whole, _ = here("whole")
    twin("whole")
    for kind, most, every in (("line", whole["lines"], LINES), ("step", whole["steps"], STEPS)):
        for n in range(1, most + 1, every):
            token = f"{kind} {n}"
            killed = here.run(token, (kind, n))
            assert killed["code"] == -9 or kind == "step", killed
            ended, expected = here(token), twin(token)
            assert (ended[0]["said"], ended[1]) == (expected[0]["said"], expected[1]), token


@more
def test_a_block_killed_again_and_again_ends_as_one_that_was_not(towns):
    here, twin = towns
    for n in (3, 9, 14, 19, 24):
        assert here.run("often", ("line", n))["code"] == -9
        assert here.run("often", ("step", 5 * n))["code"] in (-9, 0)
    assert here("often")[0]["said"] == twin("often")[0]["said"]


@more
def test_two_processes_that_do_the_same_at_the_same_time_send_it_once(towns):
    here, twin = towns
    other = Runner(here.config.home.parent)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda run: run("together"), (here.run, other)))
    other.close()
    expected, _ = twin("together")
    assert [one.get("said", one) for one in both] == [expected["said"]] * 2
    assert here("together")[0]["said"] == expected["said"]


def test_what_was_told_of_an_earlier_block_can_be_taken_by_its_id_and_still_comes_again(towns):
    here, _ = towns
    first, _ = here("told")
    client = client_of(here.config.home.parent)
    device = client.device("device_1")
    for id_ in first["said"]["ids"]:
        device.find(id_).get(timeout_s=60)
    device.send(torch.ones(1))  # carries what was taken away, if anything was
    client.close()
    assert here("told")[0]["said"] == first["said"]


COMMANDS = {
    "run": ("run", "noisy.safetensors", "x", "--on", "device_1,device_2", "--wait", "--timeout", "1min"),
    "fold": ("fold", "step.safetensors", "--carry", "zero.npy", "--data", "device_1:rows", "--batch-size", "3",
             "--epochs", "2", "--shuffle", "--wait", "--timeout", "1min"),
    "one": ("run", "noisy", "device_1:x"),
}  # fmt: skip


@more
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_any_step_ends_as_one_that_was_not(towns, name):
    here, twin = towns
    for town in towns:
        arrays.write(str(town.config.home.parent / "zero.npy"), {"zero": RawTensor("f32", (), bytes(4))})
        town.run.send_plans()
    (first, _), _ = (town.command(*COMMANDS[name], "--token", name) for town in towns)
    for n in range(1, first["steps"] + 1, 1 if EVERY else 25):
        words = (*COMMANDS[name], "--token", f"{name} {n}", *(["-o", f"{name}{n}.npz"] if name == "run" else []))
        here.run.command(*words, kill=("step", n))
        ended, expected = here.command(*words), twin.command(*words)
        assert ended[0]["said"]["code"] == 0, ended
        assert (ended[0]["said"]["out"], ended[1]) == (expected[0]["said"]["out"], expected[1]), words
        again, sent = here.command(*words)
        assert (again["said"]["out"], sent) == (ended[0]["said"]["out"], 0), again
        if name == "run":
            files = [dict(np.load(town.config.home.parent / words[-1])) for town in towns]
            assert str(files[0]) == str(files[1]) and len(files[0]) == 2
