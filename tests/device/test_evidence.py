"""What is shown before a word: types are found by a worker without data, whoever sent the graph."""

from __future__ import annotations

import os
import signal

import pytest
import torch

import fedq as fq
from fedq.device.evidence import Reader
from fedq.device.foreseen import Typist
from fedq.errors import SpecMismatch
from fedq.plan.graph import Action, Graph, Type, Var
from fedq.plan.typed import UNKNOWN

ROWS = Type("f32", ("n",))
GIVEN = [Type("f32", (3,))]


def graph(op="aten.abs"):
    return Graph((ROWS,), (Action(op, (Var(0),), {}, (Type("f32", ()),)),), Var(1), {"n": 0})


@pytest.fixture
def device(tmp_path):
    return fq.VirtualWorker(id="ward", data={"x": torch.ones(10, 2)}, release="review", root=tmp_path)


def test_what_was_found_once_is_kept_and_no_worker_is_asked_for_it_again(device):
    with Typist(device.home) as typist:
        assert str(typist.types(graph(), GIVEN, "ann").types[1]) == "f32[3]"
    with Typist(device.home, patience_s=0) as typist:
        assert str(typist.types(graph(), GIVEN, "ann").types[1]) == "f32[3]"


def test_a_graph_that_takes_too_long_costs_its_senders_other_graphs_and_nobody_elses(device):
    with Typist(device.home, patience_s=0.001) as typist:
        with pytest.raises(SpecMismatch, match=r"not found in 0.001 s"):
            typist.types(graph(), GIVEN, "mallory")
        with pytest.raises(SpecMismatch, match="another graph of its sender"):
            typist.types(graph("aten.neg"), GIVEN, "mallory")
        typist._patience_s = 60.0
        assert str(typist.types(graph("aten.neg"), GIVEN, "ann").types[1]) == "f32[3]"
    with Typist(device.home) as typist, pytest.raises(SpecMismatch, match=r"not found in 0.001 s"):
        typist.types(graph(), GIVEN, "mallory")  # it is not tried twice


def test_a_worker_that_ends_is_an_answer_too_and_the_next_graph_has_another(device):
    with Typist(device.home) as typist:
        typist.types(graph(), GIVEN, "ann")
        os.kill(typist._processes["ann"].pid, signal.SIGKILL)
        typist._processes["ann"].wait()
        with pytest.raises(SpecMismatch, match="not found"):
            typist.types(graph("aten.neg"), GIVEN, "ann")
        assert str(typist.types(graph("aten.exp"), GIVEN, "bob").types[1]) == "f32[3]"


def test_a_fold_tells_the_types_of_its_carry_and_of_its_metrics(device):
    @fq.func2plan()
    def step(w, x):
        return w + x.mean(0), x.sum()

    step.build(torch.zeros(2), torch.ones(4, 2))
    w, loss = step.send(device).fold(carry=[torch.zeros(2)], data=[device.find("x")], batch_size=4)
    device.ask([w, loss])
    device.flush()
    (row,) = device.review()
    with Typist(device.home) as typist:
        found = Reader(device.home, typist).of(row)
    assert [str(v.type) for v in found.leaves] == ["f32[2]", "f32[3]"]
    assert all(v.sources == v.private == frozenset(row.about["reads"]) for v in found.leaves)
    assert [str(t) for t in found.steps[0].graph.inputs] == ["f32[2]", "f32[4,2]"]


def test_without_a_worker_nothing_is_claimed(device):
    plan = fq.func2plan(args_shape=[(-1, 2)])(lambda x: x.abs())
    device.ask([plan.send(device)(device.find("x"))])
    device.flush()
    (row,) = device.review()
    assert Reader(device.home, None).of(row).leaves[0].type == UNKNOWN
