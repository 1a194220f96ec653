"""Building plans from users' files: what is in them, and what is wrong with them, in their words."""

import pytest

from tests.marks import rows

TOUR = """
import torch

import fedq as fq

print("importing the tour")


@fq.func2plan(args_shape=[(-1, 1)])
def double_abs(x):
    x = x + x
    return torch.abs(x)
"""
MORE = """
from torch import nn

import fedq as fq


def plain(x):
    return x * 2


class Net(fq.Plan):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x)


@fq.func2plan()
def later(x):
    return x * 3


line = nn.Linear(3, 1)
number = 3


def branches(x):
    if x.sum() > 0:
        return x
    return -x


def misspelled(x):
    return x + undefined_name
"""


@pytest.fixture(scope="module")
def desk(open_shell):
    shell = open_shell("desk")
    shell.file("tour.py", TOUR)
    shell.file("more.py", MORE)
    return shell


def test_a_plan_that_is_built_in_the_file_is_written(desk):
    done = desk("build", "tour.py:double_abs", "-o", "double_abs.safetensors")
    assert done.stdout.startswith("double_abs.safetensors  double_abs  2 actions  ")
    assert "importing the tour" in done.stderr
    shown = desk.out("show", "double_abs.safetensors")
    assert shown.splitlines()[0].startswith("plan double_abs(%0: f32")
    assert shown.splitlines()[-1].endswith("tour.py:12")


BUILT = {
    "plain": ("(-1,)", "plain"), "later": ("(-1,)", "later"), "Net": ("(-1,3)", "Net"), "line": ("(-1,3)", "Linear"),
}  # fmt: skip


@pytest.mark.parametrize("name", rows(BUILT, ("Net",)))
def test_functions_classes_and_modules_are_built_with_shapes(name, desk):
    shape, called = BUILT[name]
    row = desk.json("build", f"more.py:{name}", "-o", "out.safetensors", "--args-shape", shape)
    assert (row["file"], row["name"]) == ("out.safetensors", called)
    assert len(row["id"]) == 64
    assert desk.json("show", "out.safetensors")["id"] == row["id"]


REFUSED = {
    "not built": ("plain", (), 2, "'plain' in more.py is not built there"),
    "not there": ("nothing", (), 3, "more.py has no 'nothing'"),
    "not a function": ("number", (), 2, "'number' in more.py is a int, not a function"),
    "a branch on data": ("branches", ("--args-shape", "(-1,)"), 4, "if x.sum() > 0:        more.py:30"),
    "a mistake": ("misspelled", ("--args-shape", "(-1,)"), 4, "return x + undefined_name        more.py:36"),
}


@pytest.mark.parametrize("what", rows(REFUSED, ("not built", "a branch on data")))
def test_what_can_not_be_built_says_why_with_the_users_line(what, desk):
    name, more, code, said = REFUSED[what]
    refused = desk("build", f"more.py:{name}", "-o", "no.safetensors", *more, code=code)
    assert said in refused.stderr
    assert "fedq/" not in refused.stderr
    assert not (desk.root / "no.safetensors").exists()


BROKEN = {
    "a syntax error": ("x = (\n", "SyntaxError: '(' was never closed\n  x = (        broken.py:1"),
    "an error": (
        "def h():\n    return 1 / 0\n\nh()\n",
        "ZeroDivisionError: division by zero\n  return 1 / 0        broken.py:2",
    ),
    "a missing module": ("import nothing_like_it\n", "ModuleNotFoundError: No module named 'nothing_like_it'"),
    "an exit": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
}


@pytest.mark.parametrize("what", rows(BROKEN, ("an error",)))
def test_a_file_that_does_not_run_is_told_with_its_own_line(what, desk):
    text, said = BROKEN[what]
    desk.file("broken.py", text)
    refused = desk("build", "broken.py:f", "-o", "no.safetensors", code=4)
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_plan_file_has_its_suffix(desk):
    assert "ends in .safetensors" in desk("build", "tour.py:double_abs", "-o", "plan.bin", code=2).stderr
