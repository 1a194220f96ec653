"""The real commands, in a folder of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedq.plan.codec import RawTensor
from fedq.plan.file import PlanFile, encode_plan
from fedq.plan.graph import About, Action, Graph, Type, Var
from fedq.trust.keys import Key

FEDQ = Path(sys.executable).with_name("fedq")
LIMIT_S = 60


class Shell:
    """Types commands in one folder, as one user."""

    def __init__(self, root):
        self.root = Path(root)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FEDQ_") and k != "NO_COLOR"}
        self.environ = {**kept, "FEDQ_HOME": str(self.root / "me"), "FEDQ_USER": "ann", "FEDQ_DURABILITY": "none"}

    def __call__(self, *words, code=0, **environ):
        """The finished command; fails unless its exit code is this one."""
        done = self.start(*words, **environ)
        out, err = done.communicate(timeout=LIMIT_S)
        assert done.returncode == code, f"fedq {' '.join(words)}: {done.returncode}\n{out}\n{err}"
        assert "Traceback" not in out + err
        return subprocess.CompletedProcess(words, code, out, err)

    def out(self, *words, **environ):
        return self(*words, **environ).stdout.strip()

    def json(self, *words, code=0):
        """The envelope's data, or the whole envelope of an error."""
        envelope = json.loads(self(*words, "--json", code=code).stdout)
        assert (envelope["schema_version"], envelope["exit_code"]) == (1, code)
        assert envelope["status"] == ("error" if code else "ok")
        return envelope if code else envelope["data"]

    def start(self, *words, program=(FEDQ,), **options):
        environ = {**self.environ, **options.pop("environ", {})}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen([*program, *words], cwd=self.root, env=environ, text=True, **pipes)

    def file(self, name, text):
        (self.root / name).write_text(text)
        return name

    def plan(self, name, plan):
        key = Key.from_seed(b"k" * 32)
        (self.root / name).write_bytes(b"".join(encode_plan(plan, key)))
        return name


def double_abs():
    """|x + x| of a vector."""
    kind = Type("f32", ("n", "m"))
    actions = (
        Action("aten.add.Tensor", (Var(0), Var(0)), {}, (kind,)),
        Action("aten.abs", (Var(1),), {}, (kind,)),
    )
    graph = Graph(inputs=(kind,), sizes={"n": 0, "m": 0}, actions=actions, outputs=Var(2))
    return PlanFile(graph, {}, About("double_abs", ("tour.py:5", "tour.py:6"), ("x",)))


def scaled():
    """x * w of a vector of two, and its sum; w is state."""
    kind = Type("f32", ("n", 2))
    actions = (
        Action("aten.mul.Tensor", (Var(0), Var(1)), {}, (kind,)),
        Action("aten.sum", (Var(2),), {}, (Type("f32", ()),)),
    )
    graph = Graph(
        inputs=(kind,), sizes={"n": 0}, state=(("w", Type("f32", (2,))),), actions=actions, outputs=(Var(2), Var(3))
    )
    weights = RawTensor("f32", (2,), b"\0\0\x80\x3f\0\0\0\x40")  # 1 and 2
    return PlanFile(graph, {"w": weights}, About("scaled", ("tour.py:9", "tour.py:10"), ("x",)))


def broken():
    """A plan whose second action fails on every device: sizes do not fit."""
    kind = Type("f32", ("n", "m"))
    actions = (
        Action("aten.abs", (Var(0),), {}, (kind,)),
        Action("aten.reshape", (Var(1), [7, 11]), {}, (Type("f32", (7, 11)),)),
    )
    graph = Graph(inputs=(kind,), sizes={"n": 0, "m": 0}, actions=actions, outputs=Var(2))
    return PlanFile(graph, {}, About("broken", ("tour.py:13", "tour.py:14"), ("x",)))


@pytest.fixture(scope="session")
def plans():
    return {"double_abs": double_abs(), "scaled": scaled(), "broken": broken()}


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def open_shell(tmp_path_factory):
    """A shell for a whole module."""
    return lambda name: Shell(tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def town(open_shell, plans):
    """Two devices that are up, with open and reviewed data, and plan files beside."""
    shell = open_shell("town")
    for name, plan in plans.items():
        shell.plan(f"{name}.safetensors", plan)
    for n, device in enumerate(("device_1", "device_2"), 1):
        shell("device", "init", device)
        rows = shell.file(f"{device}.csv", f"a,b\n{n},-2.5\n3,-4\n")
        shell("data", "add", device, rows, "--tag", "input_data", "--release", "open")
        shell("data", "add", device, rows, "--tag", "private")
    shell("device", "up")
    yield shell
    shell("device", "down")
