"""Kill -9 in mid-call: requester, gate and worker. Nothing is lost, nothing needs a person."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from fedq.client.session import Client
from fedq.device import daemon
from fedq.device.home import Home
from fedq.errors import WorkerDied
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Action, Graph, Type, Var
from tests.rig import Rig, wait_until


def slow_plan(products: int) -> PlanFile:
    """A chain of matrix products, some 10 ms each, on f32[600,600]."""
    square = Type("f32", (600, 600))
    actions = tuple(Action("aten.mm", (Var(n), Var(0)), {}, (square,)) for n in range(products))
    return PlanFile(Graph((square,), actions, Var(products)), {}, About("slow"))


@pytest.fixture
def rig(tmp_path):
    with Rig(tmp_path, data={"x": torch.eye(600)}) as made:
        yield made


def children(pid: int) -> list[int]:
    path = f"/proc/{pid}/task/{pid}/children"
    with open(path) as file:
        return [int(n) for n in file.read().split()]


def begun(worker: int) -> bool:
    """Whether a worker is on its first call: it says so in the page that it shares with the gate."""
    try:
        words = Path(f"/proc/{worker}/cmdline").read_bytes().split(b"\0")
        with open(f"/proc/{worker}/fd/{int(words[-2])}", "rb") as page:
            return page.read(8) != bytes(8)
    except (OSError, ValueError, IndexError):  # it is not Python yet, or not any more
        return False


def run_slowly(rig, products=400):
    rig.start()
    out = rig.device.send_plan(slow_plan(products))(rig.device.find("x"))
    wait_until(lambda: rig.heartbeat().running)
    return out


def test_a_gate_that_is_stopped_in_mid_call_costs_no_attempt(rig):
    out = run_slowly(rig)
    daemon.stop(rig.config)
    home = Home(rig.config.devices / "device_1", rig.config)
    (message,) = home.journal.open_messages()
    assert message.attempts == 0
    home.close()
    rig.start()
    assert out.get(timeout_s=120).shape == (600, 600)


def test_a_gate_killed_in_mid_call_loses_nothing(rig):
    out = run_slowly(rig)
    os.kill(daemon.pid(rig.config), signal.SIGKILL)
    wait_until(lambda: daemon.pid(rig.config) is None)
    rig.start()
    assert torch.equal(out.get(timeout_s=120), torch.eye(600))


def test_a_worker_killed_in_mid_call_is_replaced(rig):
    out = run_slowly(rig)
    (worker,) = children(daemon.pid(rig.config))
    os.kill(worker, signal.SIGKILL)
    assert torch.equal(out.get(timeout_s=120), torch.eye(600))


def test_a_call_that_ends_its_worker_three_times_is_an_error_and_blocks_nobody(rig):
    out = run_slowly(rig, products=2000)
    killed = set()
    while len(killed) < 3:
        (worker,) = wait_until(lambda: set(children(daemon.pid(rig.config))) - killed)
        wait_until(lambda w=worker: begun(w))
        os.kill(worker, signal.SIGKILL)
        killed.add(worker)
    with pytest.raises(WorkerDied, match="3 times"):
        out.get(timeout_s=120)
    fine = rig.device.send_plan(slow_plan(1))(rig.device.find("x"))
    assert torch.equal(fine.get(timeout_s=60), torch.eye(600))


def test_no_worker_outlives_a_killed_gate(rig):
    run_slowly(rig)
    gate = daemon.pid(rig.config)
    (worker,) = children(gate)
    os.kill(gate, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{worker}"))


@pytest.mark.parametrize("where", ["put.unnamed", "put.write", "put.sync", "put.name", "put.sync_folder"])
def test_a_requester_killed_while_it_sends_finishes_at_its_next_start(rig, where):
    """The outbox knew the ids before the kill, so the next process sends the same bytes."""
    program = f"""
        import os, signal, sys
        from fedq import fs
        from tests.rig import client_of
        from tests.test_kill import slow_plan
        client = client_of(sys.argv[1])
        device = client.device("device_1")
        plan = device.send_plan(slow_plan(1))
        x = device.find("x")
        fs.FAILPOINTS[{where!r}] = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        plan.run([x], release=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(rig.root)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    again = Client(rig.config)
    device = again.device("device_1")
    (promised,) = [p for p in again.outbox.promised(device.number, "") if not p.state]
    rig.start()
    assert torch.equal(device.find(promised.id).get(timeout_s=60), torch.eye(600))
    again.close()
