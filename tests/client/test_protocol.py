"""Protocols: plans on several devices, started in one go, gone on with from any process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import fedq as fq
from fedq.client.session import Client
from fedq.device.gate import serve_waiting
from fedq.device.home import Home
from fedq.errors import NotBuilt, SpecMismatch, UnknownValue, UsageError, WaitingForApproval
from fedq.local import introduce
from fedq.plan.tensors import to_raw
from tests.rig import config_of


@fq.func2plan()
def twice(x):
    return x * 2


@fq.func2plan()
def plus_one(x):
    return x + 1


@fq.func2plan()
def both(x, y):
    return x + y, x - y


@fq.func2plan()
def split(x):
    return {"left": x, "right": x.sum(0, keepdim=True)}


@pytest.fixture(autouse=True, scope="module")
def built():
    for plan in (twice, plus_one, split):
        plan.build(torch.ones(3))
    both.build(torch.ones(3), torch.ones(3))


@pytest.fixture
def workers(tmp_path):
    made = [fq.VirtualWorker(f"device_{n}", {"x": torch.tensor([n, 2.0])}, root=tmp_path / str(n)) for n in (1, 2, 3)]
    yield made
    for worker in made:
        worker.client.close()


def test_a_value_goes_through_the_plans_of_several_devices(workers):
    one, two, three = workers
    protocol = fq.Protocol([("a", twice), ("a", plus_one), ("b", twice), ("c", split)])
    assert (protocol.roles, repr(protocol)) == (["a", "b", "c"], "Protocol(a: twice, a: plus_one, b: twice, c: split)")
    assert protocol.deploy(one, two, three) is protocol
    result = protocol.run(one.find("x"))
    assert repr(result) == f"ProtocolResult({result.id}, hop 1 of 3, on device_1)"
    got = result.copy(20)
    assert {k: v.tolist() for k, v in got.items()} == {"left": [6, 10], "right": [16]}
    assert "hop 3 of 3, on device_3" in repr(result)
    assert result.get(20)["right"].tolist() == [16]
    with pytest.raises(UnknownValue, match="taken away"):
        result.get(20)


def test_one_device_may_have_all_roles_and_then_nothing_leaves_it_between(workers):
    device = workers[0]
    protocol = fq.Protocol([("a", twice), ("b", plus_one), ("a", split)]).deploy(device, device)
    before = len(device.pair.carrier.list("in"))
    result = protocol.run(torch.tensor([1.0]))
    assert len(device.pair.carrier.list("in")) == before + 1 and len(result.hops) == 1
    assert result.get(20)["left"].tolist() == [3]
    assert len(device.pair.carrier.list("out")) == 2  # the two values of the last plan


def test_several_values_are_handed_on_in_order(workers):
    one, two, _ = workers
    result = fq.Protocol([("a", both), ("b", both)]).deploy(one, two).run(one.find("x"), 2 * torch.ones(2))
    assert [t.tolist() for t in result.get(20)] == [[2, 4], [4, 4]]


REFUSED = {
    "no steps": (lambda w: fq.Protocol([]), UsageError, "without steps"),
    "no roles": (lambda w: fq.Protocol([twice]), UsageError, r"step 0 is not \(role, plan\)"),
    "an unbuilt plan": (
        lambda w: fq.Protocol([("a", fq.func2plan()(lambda x: x))]), NotBuilt, "of 'a' is not built"),
    "too few values": (
        lambda w: fq.Protocol([("a", twice), ("b", both)]), SpecMismatch,
        "twice of 'a' gives 1 values, both of 'b' takes 2"),
    "too few devices": (
        lambda w: fq.Protocol([("a", twice), ("b", twice)]).deploy(w[0]), UsageError,
        r"2 roles \(a, b\), 1 devices given"),
    "not deployed": (lambda w: fq.Protocol([("a", twice)]).run(torch.ones(1)), UsageError, "on no device"),
    "too few arguments": (
        lambda w: fq.Protocol([("a", both)]).deploy(w[0]).run(torch.ones(1)), SpecMismatch, "requires 2 arguments"),
    "a shape that the first refuses": (
        lambda w: fq.Protocol([("a", twice)]).deploy(w[0]).run(torch.ones(1, 1)), SpecMismatch,
        "'twice' of 'a': input 0"),
    "a shape that a later one refuses": (
        lambda w: fq.Protocol([("a", split), ("b", both)]).deploy(*w[:2]).run(torch.ones(3)), SpecMismatch,
        "'both' of 'b': input 1"),
    "an argument elsewhere": (
        lambda w: fq.Protocol([("a", twice)]).deploy(w[0]).run(w[1].find("x")), UsageError, "on device_1, argument"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_work_is_refused_before_anything_runs(workers, name):
    do, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text):
        do(workers)
    for worker in workers:
        worker.step()
        assert worker.pair.carrier.list("out") == []


def test_a_plan_that_fails_on_the_way_is_told_with_its_device(workers):
    one, two, _ = workers
    pick = fq.func2plan()(lambda x, i: x.index_select(0, i))
    pick.build(torch.ones(4), torch.tensor([1, 2]))
    result = fq.Protocol([("a", pick), ("b", twice)]).deploy(one, two).run(one.find("x"), torch.tensor([7, 9]))
    for _ in range(2):
        with pytest.raises(fq.Failed, match=r"index_select.*\(on device_1\)"):
            result.get(20)


def test_a_hop_waits_for_its_owner_and_goes_on_afterwards(workers, tmp_path):
    held = fq.VirtualWorker("held", {"x": torch.tensor([1.0, 2.0])}, release="review", root=tmp_path / "held")
    result = fq.Protocol([("a", twice), ("b", plus_one)]).deploy(held, workers[1]).run(held.find("x"))
    with pytest.raises(WaitingForApproval) as caught:
        result.get(2)
    held.approve(caught.value.fields["id"])
    assert result.get(20).tolist() == [3, 5]
    held.client.close()


# -- over folders, by several processes of one requester


@pytest.fixture
def config(tmp_path):
    made = config_of(tmp_path)
    for name in ("north", "south"):
        introduce(made, name)
        home = Home(made.devices / name, made)
        home.add(to_raw(torch.tensor([1.0, 2.0])), tag="x", release="open")
        home.close()
    return made


def serve(config):
    serve_waiting(config, ["north", "south"])


def test_another_process_goes_on_and_every_hop_is_sent_once(config):
    first = Client(config)
    protocol = fq.Protocol([("n", twice), ("s", plus_one), ("n", twice)])
    run = protocol.deploy(first.device("north"), first.device("south")).run(first.find("north:x")).id
    with pytest.raises(fq.TimedOut):
        fq.Protocol.result(run, first).get(0.0)
    first.close()
    with pytest.raises(UnknownValue, match="no protocol run"):
        fq.Protocol.result("0" * 32, Client(config))
    for hop in range(3):
        serve(config)
        client = Client(config)
        result = fq.Protocol.result(run, client)
        assert f"hop {hop + 1} of 3" in repr(result)
        if hop < 2:
            with pytest.raises(fq.TimedOut):
                result.get(0.0)
        else:
            assert result.copy(20).tolist() == [6, 10]
            assert [p.device.name for p in client.run(run)] == ["north"]
        client.close()


def test_the_terminal_goes_on_with_a_run_and_prints_its_value(config):
    client = Client(config)
    protocol = fq.Protocol([("n", twice), ("s", plus_one)]).deploy(client.device("north"), client.device("south"))
    run = protocol.run(client.find("north:x")).id
    client.close()
    roots = {"FEDQ_QUEUE": config.queue, "FEDQ_DEVICES": config.devices, "FEDQ_HOME": config.home}
    env = {**os.environ, **{k: str(v) for k, v in roots.items()}, "FEDQ_USER": "alice"}
    told = []
    for _ in range(3):
        line = [sys.executable, "-c", "from fedq.cli import main; main()", "get", run, "--timeout", "10ms"]
        told.append(subprocess.run(line, env=env, capture_output=True, text=True, timeout=60))
        serve(config)
    assert [t.returncode for t in told] == [7, 7, 0]
    assert "did not come from north" in told[0].stderr and "from south" in told[1].stderr
    assert told[2].stdout == "tensor([3., 5.])\n"


def test_a_hop_that_was_sent_and_not_noted_is_not_sent_twice(config):
    client = Client(config)
    protocol = fq.Protocol([("n", twice), ("s", plus_one)])
    result = protocol.deploy(client.device("north"), client.device("south")).run(client.find("north:x"))
    serve(config)
    result.pointers(20)
    with client.outbox.transaction() as db:  # as after a crash between the two
        db.execute("DELETE FROM runs WHERE run=?", (result.id,))
    there = client.device("south").pair.carrier
    before = sorted(there.list("in"))
    again = fq.Protocol.result(result.id, client)
    with pytest.raises(UnknownValue, match="taken away"):
        again.pointers(20)
    assert sorted(there.list("in")) == before
    client.close()


def test_devices_of_requesters_with_different_keys_have_no_common_record(workers):
    result = fq.Protocol([("a", twice), ("b", twice)]).deploy(*workers[:2]).run(torch.ones(1))
    with pytest.raises(UnknownValue):
        fq.Protocol.result(result.id, workers[0].client)
