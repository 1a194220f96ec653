"""``build(..., check=True)`` and ``fedq build --check``: a worker that was just started gives what eager gives."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import fedq as fq
from fedq.errors import CannotRecord
from tests.marks import more

PLAN = """
import fedq as fq
import torch

@fq.func2plan(args_shape=[(-1, 3)])
def noisy(x):
    return torch.nn.functional.dropout(x.clamp(0.0, 1.0), 0.5) + torch.rand_like(x) * 0.5

pick = fq.func2plan()(lambda table, rows: table[rows] * 2.0)
pick.build(torch.rand(4, 2), torch.tensor([3, 3]))

def knowing(x):
    return x * 2 if hasattr(x, "fake_mode") else x * 3

knowing = fq.func2plan()(knowing)
knowing.build(torch.ones(3))
"""


def test_a_checked_plan_gives_eagers_value_in_a_fresh_worker_random_ops_and_state_too():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    plan = fq.func2plan()(net).build(torch.randn(6, 4), check=True)
    assert plan.is_built and len(plan.about.updates) == 3
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())


def test_a_function_that_acts_otherwise_while_it_is_recorded_is_found_by_the_check():
    def knowing(x):
        return x * 2 if hasattr(x, "fake_mode") else x * 3

    fq.func2plan()(knowing).build(torch.ones(3))
    with pytest.raises(CannotRecord, match="another value than its function: result 0: values differ") as refused:
        fq.func2plan()(knowing).build(torch.ones(3), check=True)
    assert "whether it is recorded" in refused.value.hint


def test_a_check_that_fails_in_the_worker_names_the_line():
    def pick(table, rows):
        return table[rows]

    with pytest.raises(CannotRecord, match=r"a worker failed on the example: .* failed.*: test_checking.py:\d+"):
        fq.func2plan()(pick).build(torch.rand(4, 2), torch.tensor([7]), check=True)


@pytest.mark.parametrize(
    ("name", "words", "code"),
    [
        ("noisy", [], 0),
        pytest.param("noisy", ["--args-shape", "(-1,7)"], 0, marks=more),
        pytest.param("pick", [], 0, marks=more),
        ("knowing", [], 4),
    ],
)
def test_the_command_checks_on_what_the_plan_was_built_on(tmp_path, name, words, code):
    (tmp_path / "made.py").write_text(PLAN)
    command = [
        sys.executable,
        "-c",
        "from fedq.cli import main; main()",
        "build",
        f"made.py:{name}",
        "-o",
        "p.safetensors",
        "--check",
        *words,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "p.safetensors").exists() == (code == 0)
