"""Calls without an end: whoever has them, another requester gets a worker, and what is cancelled ends."""

from __future__ import annotations

import contextlib

import pytest
import torch

from fedq.client import fetch
from fedq.device import daemon, gate
from fedq.plan.codec import RawTensor
from fedq.plan.file import PlanFile
from fedq.plan.fold import MAX_EPOCHS, Batches
from fedq.plan.graph import About, Action, Graph, Type, Var
from fedq.queue.message import Cancel, Fold, Get, Inline, OwnerRef, Run, SendPlan
from tests.device.world import DOUBLE, f32
from tests.marks import more
from tests.rig import Rig, wait_until
from tests.test_kill import children
from tests.test_workers import other

NUMBER, ROWS = Type("f32", ()), Type("f32", ("n", 2))
ADD_UP = PlanFile(
    Graph(
        (NUMBER, ROWS),
        (Action("aten.sum", (Var(1),), {}, (NUMBER,)), Action("aten.add.Tensor", (Var(0), Var(2)), {}, (NUMBER,))),
        Var(3),
        sizes={"n": 0},
    ),
    {},
    About("add_up"),
)


@pytest.fixture
def rig(tmp_path):
    with Rig(tmp_path, data={"x": torch.ones(1000, 2)}) as made:
        yield made


def endless(device, x: str) -> str:
    """A fold of a thousand million steps; its message."""
    fold = Fold(ADD_UP.id, (Inline("t0"),), (OwnerRef(x),), Batches(1, MAX_EPOCHS), (device.client.new_id(),))
    plan = SendPlan(ADD_UP.id, ADD_UP.graph, (), ADD_UP.about)
    return device.submit([plan, fold], {"t0": RawTensor("f32", (), bytes(4))}).id


def answered(device, x: str) -> bool:
    """Whether a call comes to its end, however long it takes."""
    id_ = device.client.new_id()
    run = [SendPlan(DOUBLE.id, DOUBLE.graph, (), DOUBLE.about), Run(DOUBLE.id, (Inline("t0"),), {}, (id_,))]
    device.submit([*run, Get(id_, (id_,))], {"t0": f32(1)})
    return bool(wait_until(device.pair.carrier.path(f"out/{id_}.safetensors").exists, 120))


def running(device) -> bool:
    beat = fetch.heartbeat(device)
    return beat is None or bool(beat.running)


@more
@pytest.mark.parametrize("who", ["four requesters", "one requester"])
def test_four_endless_folds_hold_up_no_fifth_call_and_cancelled_they_end(rig, who):
    gate.set_workers(rig.config, 4)
    names = [f"r{n}" for n in range(4 if who == "four requesters" else 1)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(other(rig, name))) for name in (*names, "bob")]
        *theirs, bob = [client.device(rig.name) for client in clients]
        rig.start()
        x = rig.device.find("x").id
        sent = [(device, endless(device, x)) for device in (theirs * 4)[:4]]
        wait_until(lambda: len(children(daemon.pid(rig.config))) >= 4, 60)
        assert answered(bob, x)
        for device, message in sent:
            device.submit([Cancel((message,))])
        wait_until(lambda: not any(running(device) for device, _ in sent), 60)
