"""The first call of a process that never built anything gives what it gave where the plan was built.

torch's C++ loads modules at the first float, comparison or error of a process, and asks the plan's compiled
code for them; an in-process device that has recorded something before hides whether that works.
"""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fedq as fq
from tests import workers
from tests.marks import rows

X = torch.tensor([[-1.5, 0.25, 2.0], [0.75, -0.5, 3.0]])
FIRST = {
    "clamp to floats": lambda x: x.clamp(0.0, 1.0),
    "a scaled sum": lambda x: torch.add(x, x, alpha=2.0),
    "a comparison with a float": lambda x: x > 0.5,
    "a mask filled": lambda x: x.masked_fill(x > 0.5, 0.25),
    "a leaky slope": lambda x: F.leaky_relu(x, 0.1),
    "dropout": lambda x: F.dropout(x, 0.5),
    "a complex factor": lambda x: (x * 2j).abs(),
    "arithmetic on sizes": lambda x: x * (x.shape[0] / 3) + x.shape[1] ** 0.5,
    "a text": lambda x: torch.einsum("ij,kj->ik", x, x),
}


@pytest.mark.scaled
def test_a_workers_first_call_gives_eagers_value():
    for what in FIRST if os.environ.get("FEDQ_MORE") else ("clamp to floats", "dropout"):
        function = FIRST[what]
        plan = fq.func2plan()(function).build(X)
        with workers.fresh() as worker:
            got = workers.replayed(plan.file(), X, seed=7, worker=worker)
        torch.testing.assert_close(got, plan.eager((X,), {}, seed=7), rtol=0, atol=0, msg=what)


def test_a_workers_first_training_step_gives_eagers_value():
    model = nn.Linear(3, 2)
    target = torch.tensor([0, 1])
    plan = fq.training_plan(model, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1), X, target)
    with workers.fresh() as worker:
        (got, _) = workers.replayed(plan.file(), plan.carry(), X, target, worker=worker)
    (want, _) = plan.step(plan.carry(), X, target)
    assert all(torch.equal(got["params"][name], p) for name, p in want["params"].items())


PLAIN = """
import sys, torch
torch.set_num_threads(1)
import fedq as fq
x = torch.tensor([[-1.5, 0.25, 2.0], [0.75, -0.5, 3.0]])
for name in sys.argv[1:]:
    plan = fq.load(f"{name}.safetensors")
    assert "sympy" not in sys.modules
    assert torch.equal(plan(x), torch.load(f"{name}.pt")), name
    device = fq.VirtualWorker(id=f"device_{name}", data={"x": x})
    assert torch.equal(plan.send(device)(device.find("x")).get(timeout_s=60), torch.load(f"{name}.pt")), name
"""


@pytest.mark.parametrize("first", rows(["clamp to floats", "a comparison with a float"], ["clamp to floats"]))
def test_a_loaded_plan_and_an_inline_device_give_it_in_a_process_that_built_nothing(tmp_path, monkeypatch, first):
    monkeypatch.setenv("FEDQ_HOME", str(tmp_path / "home"))
    names = [first, *(what for what in FIRST if what not in (first, "dropout"))]
    for n, what in enumerate(names):
        fq.func2plan()(FIRST[what]).build(X).save(tmp_path / f"p{n}.safetensors")
        torch.save(FIRST[what](X), tmp_path / f"p{n}.pt")
    words = [f"p{n}" for n in range(len(names))]
    command = [sys.executable, "-c", textwrap.dedent(PLAIN), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
