"""Calls of plans on a device with structures, names, defaults and numbers, end to end."""

from __future__ import annotations

import pytest
import torch

import fedq as fq
from fedq.cli.ask import in_order
from fedq.client.pointer_plans import _scalar
from fedq.plan.graph import Type
from fedq.queue.message import Drop


def step(batch, rate=0.5, *, flag=True):
    return {"new": (batch["x"] - batch["y"][0]) * rate if flag else batch["x"], "size": [batch["x"].shape[0]]}


@pytest.fixture(scope="module")
def device():
    return fq.VirtualWorker("device_1", {"x": torch.arange(4.0)})


@pytest.fixture(scope="module")
def plan():
    return fq.Plan(step).build({"x": torch.ones(3), "y": [torch.ones(3)]}, flag=True)


def test_structures_of_pointers_tensors_and_numbers_are_run_where_the_data_is(device, plan):
    there, x = plan.send(device), device.find("x")
    batch = {"y": [torch.ones(4)], "x": x}
    for how, rate in (({}, 0.5), ({"rate": 2.0}, 2.0), ({"rate": 0.25, "flag": True}, 0.25)):
        out = there(batch, **how)
        assert torch.equal(out["new"].get(), (torch.arange(4.0) - 1) * rate) and out["size"][0].get() == 4


def test_what_differs_is_refused_before_anything_is_sent(device, plan):
    there, x = plan.send(device), device.find("x")
    for args, kwargs, message in (
        (({"x": x},), {}, r"batch: key 'y' is missing"),
        (({"x": x, "y": x},), {}, r"batch\['y'\]: a list of 1 expected, a PointerTensor given"),
        (({"x": x, "y": [x]},), {"flag": False}, r"flag: bool=true expected, bool=false given"),
        (({"x": x, "y": [x]}, 2), {}, r"rate: float expected, int=2 given"),
        ((), {}, "requires 1 argument, received 0: 'batch' missing"),
    ):
        with pytest.raises(fq.SpecMismatch, match=message):
            there(*args, **kwargs)


def test_an_argument_that_cannot_be_sent_is_named_by_its_path(device, plan):
    there, x, taken = plan.send(device), device.find("x"), device.send(torch.ones(4))
    taken.get()
    for args, message in (
        (({"x": x, "y": ["four"]},), r"^batch\.y\[0\]: a str cannot be sent"),
        (({"x": taken, "y": [x]},), r"^argument batch\.x \(\w{12}\) was taken away"),
        (({"x": fq.VirtualWorker("other", {"x": torch.ones(4)}).find("x"), "y": [x]},), "argument batch.x on other"),
    ):
        with pytest.raises(fq.UsageError, match=message):
            there(*args)


def test_a_device_names_the_argument_that_failed_or_is_gone_by_its_path(device, plan):
    there, x = plan.send(device), device.find("x")
    chosen = fq.func2plan()(lambda t, i: t[i]).build(torch.ones(3), torch.zeros(2, dtype=torch.int64))
    failed = chosen.send(device)(x, torch.tensor([9, 9, 9, 9]))
    with pytest.raises(fq.FedqError, match=r"^argument batch\.y\[0\] \(\w{12}\): plan '.*': action 0 .* failed: index"):
        there({"x": x, "y": [failed]})["new"].get()
    gone = device.send(torch.ones(4))
    device.submit([Drop((gone.id,))])
    x.copy()
    with pytest.raises(fq.FedqError, match=r"argument batch\.y\[0\] \(\w{32}\) was dropped"):
        there({"x": x, "y": [gone]})["new"].get()


def test_a_command_line_gives_single_inputs_by_path(device, plan):
    there = plan.send(device)
    assert in_order(there, ["x", "y"], {"flag": True}) == ["x", "y", 0.5, True]
    assert in_order(there, [], {"flag": True, "rate": 1.0, "batch['y'][0]": "y", "batch['x']": "x"}) == [
        "x",
        "y",
        1.0,
        True,
    ]
    with pytest.raises(fq.SpecMismatch, match=r"requires 2 arguments, received 2: \"batch\['y'\]\[0\]\" missing"):
        in_order(there, ["x"], {"flag": True})


@pytest.mark.parametrize(
    ("type_", "number", "sent"),
    [("f32[]", 2, b"\0\0\0\x40"), ("f32[]", 0.5, b"\0\0\0\x3f"), ("i32[]", 3, b"\3\0\0\0"), ("bool[]", True, b"\1")],
)
def test_a_number_is_a_tensor_without_dimensions_where_the_plan_has_one(type_, number, sent):
    made = _scalar(number, Type.parse(type_))
    assert made is not None
    assert (f"{made.dtype}[]", made.shape, made.data) == (type_, (), sent)


@pytest.mark.parametrize(
    ("type_", "number"), [("i32[]", 0.5), ("i8[]", 300), ("bool[]", 1), ("f32[]", True), ("f32[1]", 1)]
)
def test_a_number_that_would_be_changed_by_it_is_none(type_, number):
    assert _scalar(number, Type.parse(type_)) is None
