"""The worker that finds types for a look, replaced by a program that answers anything: there are none, says a look."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedq.device import foreseen
from fedq.device.foreseen import Typist
from fedq.errors import SpecMismatch
from fedq.local import VirtualWorker
from fedq.plan.graph import Action, Graph, Type, Var

ANSWERS = {
    "no JSON": b"{[\n",
    "another kind": b'"f32[3]"\n',
    "no types": b"[0]\n",
    "a variant that is not there": b'[7, [["f32[3]"], ["f32[3]"]]]\n',
    "a truth for a number": b'[false, [["f32[3]"], ["f32[3]"]]]\n',
    "types of more actions": b'[0, [["f32[3]"], ["f32[3]", "f32[3]"]]]\n',
    "types of no action": b'[0, [["f32[3]"], []]]\n',
    "types that are none": b"[0, [[3], [{}]]]\n",
    "texts for lists": b'[0, ["f32[3]", "f32[3]"]]\n',
    "nested without end": b"[" * 100_000 + b"\n",
    "a number without end": b"9" * 10_000 + b"\n",
    "an escape in a reason": b'{"refused": "\\u001b[2J"}\n',
    "a long reason": b'{"refused": "' + b"x" * 100_000 + b'"}\n',
    "nothing": b"",
    "half a line": b"[0, ",
}
GIVEN = [Type("f32", (3,))]


def graph(actions: int = 1) -> Graph:
    rows = Type("f32", ("n",))
    made = tuple(Action("aten.abs", (Var(n),), {}, (rows,)) for n in range(actions))
    return Graph((rows,), made, Var(actions), sizes={"n": 0})


def enemy(monkeypatch, program: str) -> None:
    def started() -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, "-c", program], bufsize=0, **pipes)

    monkeypatch.setattr(foreseen, "_started", started)


@pytest.fixture(scope="module")
def home():
    return VirtualWorker(id="device_1").home


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_that_is_none_is_said_to_be_none(kind, home, monkeypatch):
    then = "" if kind == "nothing" else "time.sleep(60)"
    said = ANSWERS[kind].decode()
    enemy(
        monkeypatch,
        f"import sys, time; sys.stdin.readline(); sys.stdout.write({said!r}); sys.stdout.flush(); {then}",
    )
    with Typist(home, patience_s=5 if "half" not in kind else 0.5) as typist, pytest.raises(SpecMismatch) as caught:
        typist.types(graph(1 + list(ANSWERS).index(kind)), GIVEN, "ann")
    assert len(str(caught.value)) < 1100


def test_one_that_writes_without_end_or_reads_nothing_ends_in_time_and_takes_no_memory(home, monkeypatch):
    monkeypatch.setattr(foreseen, "MOST_BYTES", 1 << 20)
    for program in ("import os\nwhile True: os.write(1, b'x' * 65536)", "import time; time.sleep(60)"):
        enemy(monkeypatch, program)
        with Typist(home, patience_s=0.5) as typist, pytest.raises(SpecMismatch, match=r"not found in 0\.5 s"):
            typist.types(graph(3000 + len(program)), GIVEN, "ann")  # more than a pipe takes at once


def test_one_that_a_sender_took_over_says_nothing_of_anothers_graphs(home, monkeypatch):
    real = foreseen._started
    enemy(
        monkeypatch,
        """import sys
for _ in sys.stdin:
    print('[0, [["f32[3]"], ["f32[77]"]]]', flush=True)""",
    )
    with Typist(home) as typist:
        assert str(typist.types(graph(), GIVEN, "enemy").actions[0].types[0]) == "f32[77]"
        monkeypatch.setattr(foreseen, "_started", real)
        rows = [Type("f32", (5,))]
        assert str(typist.types(graph(), rows, "cleo").actions[0].types[0]) == "f32[5]"
        assert str(typist.types(graph(), GIVEN, "cleo").actions[0].types[0]) == "f32[3]"
        assert str(typist.types(graph(), [Type("f32", (6,))], "enemy").actions[0].types[0]) == "f32[77]"
