"""``fedq show --cost``, ``show --graph`` and ``diff``."""

import shutil
from dataclasses import replace

import pytest

from fedq.plan.codec import RawTensor
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Action, Graph, Type, Var
from tests.marks import more

ROW, WEIGHT = Type("f32", ("n", 4)), Type("f32", (4, 3))


def product(weight=b"\0\0\x80\x3f" * 12):
    out = Type("f32", ("n", 3))
    actions = (Action("aten.mm", (Var(0), Var(1)), {}, (out,)), Action("aten.relu", (Var(2),), {}, (out,)))
    graph = Graph((ROW,), actions, Var(3), sizes={"n": 0}, state=(("w", WEIGHT),))
    return PlanFile(graph, {"w": RawTensor("f32", (4, 3), weight)}, About("product", ("a.py:1", "a.py:2"), ("x",)))


@pytest.fixture(scope="module")
def desk(open_shell):
    shell = open_shell("desk")
    shell.plan("a.safetensors", product())
    shell.plan("trained.safetensors", product(bytes(48)))
    other = product()
    action = replace(other.graph.actions[1], op="aten.abs")
    graph = replace(other.graph, actions=(other.graph.actions[0], action))
    shell.plan("other.safetensors", replace(other, graph=graph))
    return shell


def test_the_cost_follows_the_printed_form(desk):
    text = desk.out("show", "a.safetensors", "--cost", "--at", "n=10")
    assert text.startswith(desk.out("show", "a.safetensors"))
    assert text.splitlines()[-1] == (
        "cost at n = 10: 240 FLOPs, 448 B at most at once, 12 parameters and constants (48 B)"
    )
    assert desk.json("show", "a.safetensors", "--cost")["cost"]["sizes"] == {"n": 32}


@more
def test_sizes_for_the_cost_are_checked(desk):
    assert "no size 'k'" in desk("show", "a.safetensors", "--cost", "--at", "k=1", code=2).stderr
    assert "n=32" in desk("show", "a.safetensors", "--cost", "--at", "n=x", code=2).stderr
    assert "--cost" in desk("show", "a.safetensors", "--at", "n=3", code=2).stderr


def test_a_graph_is_written_as_text_for_graphviz(desk):
    assert desk.out("show", "a.safetensors", "--graph", "a.dot") == "a.dot"
    text = (desk.root / "a.dot").read_text()
    assert text.startswith('digraph "product" {') and "aten.mm" in text and "a.py:2" in text
    assert "x: f32[n,4]" in text and "w: f32[4,3]" in text and text.count(" -> ") == 4


def test_a_picture_needs_dot_and_says_so(desk):
    if shutil.which("dot"):
        desk("show", "a.safetensors", "--graph", "a.svg")
        assert "<svg" in (desk.root / "a.svg").read_text()
    else:
        error = desk("show", "a.safetensors", "--graph", "a.svg", code=2).stderr
        assert "'dot'" in error and "--graph a.dot" in error
    assert "ends in .svg" in desk("show", "a.safetensors", "--graph", "a.txt", code=2).stderr


def test_two_plans_are_compared_line_by_line(desk):
    assert desk.out("diff", "a.safetensors", "a.safetensors") == ""
    assert desk.out("diff", "a.safetensors", "trained.safetensors") == "state w: other values"
    lines = desk.out("diff", "a.safetensors", "other.safetensors").splitlines()
    assert lines[:2] == ["--- a.safetensors", "+++ other.safetensors"]
    assert [line.split()[0] for line in lines if line[:2] in ("- ", "+ ")] == ["-", "+"]
    assert desk.json("diff", "a.safetensors", "trained.safetensors") == {
        "same": False, "same_graph": True, "diff": ["state w: other values"],
    }  # fmt: skip
