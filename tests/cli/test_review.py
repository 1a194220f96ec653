"""The owner's face at the terminal: what waits, what it would show, and the word; real commands, real workers."""

from __future__ import annotations

import dataclasses
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from fedq import fs
from fedq.client.session import Client
from fedq.device import review
from fedq.device.gate import Gate
from fedq.device.home import Home
from fedq.errors import Conflict
from fedq.plan.codec import RawTensor
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Action, Graph, Type, Var
from fedq.queue.message import Get, Message, OwnerRef, Ref, Run, SendPlan, encode_message
from tests.cli.conftest import FEDQ, Shell
from tests.rig import config_of, wait_until

DOUBLED = "tensor([[2., 5.],\n        [6., 8.]])"
ROWS = Type("f32", ("n", "m"))


def lie():
    """A whole table, claimed to be one number; its name looks like another plan."""
    graph = Graph((ROWS,), (Action("aten.alias", (Var(0),), {}, (Type("f32", ()),)),), Var(1), {"n": 0, "m": 0})
    return PlanFile(graph, {}, About("me\u0430n(%0: f32 [n]) -> %1", ("\u200f= aten.mean(%0)   stats.py:9",)))


def masked():
    """The sum of what a mask, which is state, picks out."""
    actions = (
        Action("aten.mul.Tensor", (Var(0), Var(1)), {}, (ROWS,)),
        Action("aten.sum", (Var(2),), {}, (Type("f32", ()),)),
    )
    graph = Graph((Type("f32", ("n", 2)),), actions, Var(3), {"n": 0}, state=(("m", Type("f32", (2,))),))
    return PlanFile(graph, {"m": RawTensor("f32", (2,), b"\0\0\0\0\0\0\x80\x3f")}, About("masked", ("", "tour.py:3")))


class User(Shell):
    """Another user of the same roots."""

    def __init__(self, root, name):
        super().__init__(root)
        self.environ |= {"FEDQ_USER": name, "FEDQ_HOME": str(root / f"home-{name}")}


@pytest.fixture
def ward(shell, plans):
    """A device that is not up, with private and open data, and plan files beside; ann owns it and asks it."""
    for name, plan in {**plans, "lie": lie(), "masked": masked()}.items():
        shell.plan(f"{name}.safetensors", plan)
    shell.file("rows.csv", "a,b\n1,-2.5\n3,-4\n")
    shell("device", "init", "ward")
    shell("data", "add", "ward", "rows.csv", "--tag", "readings")
    shell("data", "add", "ward", "rows.csv", "--tag", "free", "--release", "open")
    return shell


def ask(shell, plan="double_abs", *more):
    """The reference of a question that the device knows of."""
    ref = shell.out("run", f"{plan}.safetensors", "ward:readings", *more)
    shell("device", "step", "ward")
    return ref


def befriend(shell, name):
    """Another requester of the device."""
    other = User(shell.root, name)
    who, key = other.out("whoami").split()
    made = shell.json("device", "init", "ward", "--requester", who, "--key", key)
    other("device", "trust", "ward", made["key"])
    return other


# -- what waits --------------------------------------------------------------------------------


def test_a_question_is_a_line_with_all_an_owner_needs_to_know(ward):
    ref = ask(ward)
    (line,) = ward.out("review").splitlines()
    who = ward.out("whoami").split()[0]
    cells = re.split(r"  +", line)
    assert (cells[0], cells[2]) == (ref, who)
    assert re.fullmatch(r"double_abs [0-9a-f]{8}", cells[3])
    assert cells[4:] == ["reads #readings f32[2,2]", "leaves f32[2,2] 16 B", "double_abs(#readings)"]
    (row,) = ward.json("review", "ward", "--requester", who)
    assert (row["leaves"][0]["type"], row["leaves"][0]["bytes"], row["misses"]) == ("f32[2,2]", 16, [])
    assert row["claims"] == {"chain": ["double_abs(#readings)"]}
    assert ward.json("review", "--requester", "bob") == []


def test_a_chain_of_calls_is_one_question(ward):
    first = ward.out("run", "double_abs.safetensors", "ward:readings", "--keep")
    ward("run", "scaled.safetensors", first)
    ward("device", "step", "ward")
    product, total = ward.json("review")
    assert {product["leaves"][0]["type"], total["leaves"][0]["type"]} == {"f32[2,2]", "f32[]"}
    assert product["claims"]["chain"] == ["scaled(double_abs(#readings))"]


def test_a_message_that_was_not_read_yet_and_a_call_that_nobody_asks_for_are_counted(ward):
    ward("run", "double_abs.safetensors", "ward:readings", "--keep")
    shown = ward("review")
    assert (shown.stdout, "1 message not read yet" in shown.stderr) == ("", True)
    ward("device", "step", "ward")
    who = ward.out("whoami").split()[0]
    assert ward.out("review") == f"ward  1 private call of {who} that nobody asked for: it does not run"
    assert ward.json("review") == []


def test_types_are_found_by_the_device_and_names_cannot_look_like_the_form(ward):
    ref = ask(ward, "lie")
    (line,) = ward.out("review").splitlines()
    assert "leaves f32[2,2] 16 B" in line
    page = ward.out("review", ref)
    assert r"%1: f32[2,2] = aten.alias(%0)   claims \u{200f}\u{3d}\u{20}aten.mean" in page
    assert "f32[]" not in page
    assert all(c.isascii() and (c.isprintable() or c == "\n") for c in page)
    assert r"plan me\u{430}n\u{28}\u{25}0" in page
    assert r"me\u{430}n" in line


def test_a_one_hot_state_and_a_mask_that_came_along_are_flagged(ward):
    np.save(ward.root / "m.npy", np.array([[1.0, 0.0], [1.0, 1.0]], "f4"))
    actions = (Action("aten.mul.Tensor", (Var(0), Var(1)), {}, (ROWS,)),)
    ward.plan("mul.safetensors", PlanFile(Graph((ROWS, ROWS), actions, Var(2), {"n": 0, "m": 0}), {}, About("mul")))
    page = ward.out("review", ask(ward, "mul", "m.npy"))
    assert re.search(r"f32\[2,2\]  least 0\.0  largest 1\.0  3 of 4 not 0  1\.0 0\.0 1\.0 1\.0  0/1 mask", page)
    page = ward.json("review", ask(ward, "masked"))
    (own,) = page["own"]
    assert (own["type"], own["first"], own["flag"]) == ("f32[2]", [0.0, 1.0], "one-hot")


def test_what_does_not_flow_into_a_value_but_decides_whether_it_comes_is_told_apart(ward):
    ward("data", "add", "ward", "rows.csv", "--tag", "labels")
    graph = Graph((ROWS, ROWS), (Action("aten.abs", (Var(0),), {}, (ROWS,)),), Var(2), {"n": 0, "m": 0})
    ward.plan("first.safetensors", PlanFile(graph, {}, About("first")))
    page = ward.out("review", ask(ward, "first", "ward:labels"))
    assert "made from #readings; #labels does not flow in, but decides whether it comes to be" in page


def test_the_same_again_says_what_was_said_before_and_a_graph_is_new_once(ward):
    first = ask(ward)
    assert "is new to this device" in ward.out("review", first)
    ward("deny", first, "--why", "too few rows")
    second = ask(ward)
    (line,) = ward.out("review").splitlines()
    assert line.endswith("2nd time, denied today")
    assert "was seen before" in ward.out("review", second)
    assert "state     denied today" in ward.out("review", first)


def test_an_owners_own_value_that_is_asked_for_is_a_question_without_a_plan(ward):
    ward("get", "ward:readings", "--timeout", "100ms", code=7)
    ward("device", "step", "ward")
    (line,) = ward.out("review").splitlines()
    assert "no plan" in line
    assert "reads #readings f32[2,2]  leaves f32[2,2] 16 B  #readings" in line


# -- the word ----------------------------------------------------------------------------------


def test_a_look_shows_the_owner_alone_and_a_second_word_releases(ward):
    ref = ask(ward)
    assert ward.out("approve", ref, "--look", "--wait").endswith(DOUBLED)
    ward("get", ref, "--timeout", "100ms", code=6)
    assert "looked at" in ward.out("review")
    assert ward.out("review", ref).endswith(f"its outcome, which only you see:\n{ref}\n{DOUBLED}")
    ward("review", ref, "-o", "out.npy")
    assert np.load(ward.root / "out.npy").tolist() == [[2, 5], [6, 8]]
    assert not list((ward.root / "queue" / "ward").glob("*/out/*"))
    assert ward.out("approve", ref, "--wait").splitlines()[1:] == [f"{ref}  released  f32[2,2]"]
    assert ward.out("get", ref, "--timeout", "10s") == DOUBLED


def test_without_a_daemon_the_next_step_acts_on_a_word_and_approve_says_so(ward):
    ref = ask(ward)
    said = ward("approve", ref)
    assert said.stdout.startswith(f"{ref}  approved for ann-")
    assert "the next 'fedq device step ward' runs it" in said.stderr
    ward("device", "step", "ward")
    assert ward.out("get", ref, "--timeout", "10s") == DOUBLED


def test_a_daemon_that_is_up_acts_on_a_word_and_wait_waits_for_it(ward):
    ward("device", "up")
    try:
        ref = ward.out("run", "broken.safetensors", "ward:readings")
        wait_until(lambda: ward.json("review"))
        looked, _ = ward.start("approve", ref, "--look", "--wait", "--timeout", "60s").communicate(timeout=60)
        assert "failed, failed: plan 'broken': action 1 aten.reshape failed" in looked
        assert "  | RuntimeError: shape '[7, 11]' is invalid for input of size 4" in looked
        released = ward.out("approve", ref, "--wait")
        assert f"{ref}  released as failed: plan 'broken': action 1 aten.reshape failed" in released
        assert "2.5" not in released
        ward("get", ref, "--timeout", "30s", code=8)
    finally:
        ward("device", "down")


def test_filters_print_their_count_and_never_decide_unasked(ward):
    refs = sorted(ask(ward) for _ in range(2))
    other = ask(ward, "scaled").split()
    refused = ward("approve", "--requester", "ann", code=2)
    assert "4 questions of ann-" in refused.stderr and "--yes" in refused.stderr
    plan = ward.json("review")[0]["plans"][0]["id"]
    said = ward("approve", "ward", "--plan", plan[:8], "--yes")
    assert "2 questions" in said.stderr
    assert sorted(line.split()[0] for line in said.stdout.splitlines()) == refs
    assert {f"ward:{r['reply']}" for r in ward.json("review")} == set(other)
    assert len(ward.json("deny", *other)) == 2
    assert ward.json("review") == []
    assert "no question fits" in ward("deny", "--requester", "ann", "--yes", code=3).stderr


def test_the_word_for_the_next_question_on_the_same_is_said_once(ward):
    first = ask(ward)
    assert "still waits for you" in ward("approve", first, "--again", code=2).stderr
    ward("deny", first)
    ward("device", "step", "ward")
    assert "the next question of ann-" in ward.out("approve", first, "--again")
    second, third = ask(ward), ask(ward)
    assert ward.out("get", second, "--timeout", "10s") == DOUBLED
    assert [f"ward:{r['reply']}" for r in ward.json("review")] == [third]
    ward("get", first, "--timeout", "10s", code=5)


# -- bad input ---------------------------------------------------------------------------------


def test_what_was_answered_takes_no_second_word(ward):
    denied, replaced = ask(ward), ask(ward, "scaled").split()[0]
    ward("deny", denied, "--why", "no")
    assert "was denied: no" in ward("approve", denied, code=2).stderr
    ward("data", "add", "ward", "rows.csv", "--tag", "readings", "--replace")
    assert "was replaced" in ward("approve", replaced, code=2).stderr
    removed = ask(ward)
    ward("data", "rm", "ward", "readings")
    assert "was removed" in ward("approve", removed, code=2).stderr
    ward("device", "step", "ward")
    for ref, words in ((denied, "was denied"), (replaced, "was replaced"), (removed, "was removed")):
        assert words in ward("approve", ref, "--look", code=2).stderr
    assert "answered" not in ward.out("review")


def test_what_expired_takes_no_word(ward):
    ref = ask(ward)
    config = config_of(ward.root)
    late = time.time() + 31 * 86400
    gate_ = Gate(config, ["ward"], now=late)
    for n in range(48):  # a leap of the clock is believed after an hour
        gate_.step(late + n * 600)
    gate_.close()
    assert f"{ref} expired" in ward("approve", ref, code=2).stderr
    assert ward.json("review") == []


def test_what_is_incomplete_says_what_it_misses_and_can_be_denied(ward):
    promised, result = "cd" * 16, "ab" * 16
    post(ward, result, pair(), "readings", Ref(promised))
    ward("device", "step", "ward")
    (line,) = ward.out("review").splitlines()
    assert line.endswith(f"incomplete, misses {promised}")
    assert f"incomplete, misses {promised}" in ward("approve", f"ward:{result}", code=2).stderr
    assert "1 incomplete and left out" in ward("approve", "--requester", "ann", "--yes", code=3).stderr
    assert ward.out("deny", f"ward:{result}").startswith(f"ward:{result}  denied for ann-")


def pair():
    graph = Graph((ROWS, ROWS), (Action("aten.mul.Tensor", (Var(0), Var(1)), {}, (ROWS,)),), Var(2), {"n": 0, "m": 0})
    return PlanFile(graph, {}, About("pair"))


BAD = {
    "no reference": (("approve", "ward"), 2, "'ward' names no question"),
    "nothing named": (("deny",), 2, "no question is named"),
    "what is gone": (("approve", "ward:abcdef12"), 3, "ward was not asked 'abcdef12'"),
    "too few digits": (("approve", "ward:01"), 3, "ward was not asked '01'"),
    "a device that is not there": (("approve", "nowhere:abcdef12"), 3, "no device 'nowhere'"),
    "a plan that is no id": (("approve", "--plan", "mean"), 2, "'mean' is not the id of a plan"),
    "questions and a plan": (("approve", "ward:abcdef12", "--plan", "abcdef12"), 2, "not both"),
    "a reason that a terminal would obey": (("deny", "REF", "--why", "\x1b[2J"), 2, "printable"),
    "a timeout without waiting": (("approve", "ward:abcdef12", "--timeout", "1s"), 2, "goes with --wait"),
    "a duration that is none": (("approve", "ward:abcdef12", "--wait", "--timeout", "soon"), 2, "not a duration"),
    "an outcome that was not looked at": (("review", "REF", "-o", "x.npy"), 2, "was not looked at"),
    "a file for a list": (("review", "-o", "x.npy"), 2, "-o goes with one question"),
    "a policy word that nothing enforces": (
        ("data", "add", "ward", "rows.csv", "--tag", "t", "--release", "aggregate"), 2, "planned, not there yet",
    ),
    "a policy word that is none": (
        ("data", "add", "ward", "rows.csv", "--tag", "t", "--release", "sometimes"), 2, "release rule 'sometimes'",
    ),
}  # fmt: skip


def test_every_bad_input_is_told_in_words(ward):
    ref = ask(ward)
    for words, code, said in BAD.values():
        words = [ref if w == "REF" else w for w in words]
        assert said in ward(*words, code=code).stderr, words
    assert len(ward.json("review")) == 1


def test_of_two_owners_at_once_one_wins_and_the_other_is_told(ward):
    ref = ask(ward)
    config = config_of(ward.root)
    homes = [Home(config.devices / "ward", config) for _ in range(2)]
    shown = [review.find(home, ref.partition(":")[2]) for home in homes]
    review.decide(homes[0], [shown[0]], "deny", why="mine", by="ann")
    with pytest.raises(Conflict, match="was denied: mine"):
        review.decide(homes[1], [shown[1]], "approve", by="bob")
    words = [ward.start(*w) for w in (("approve", ask(ward)), ("deny", "--requester", "ann", "--yes"))]
    for process in words:
        process.communicate(timeout=60)
    assert sorted(p.returncode for p in words) in ([0, 0], [0, 2], [0, 3])
    for home in homes:
        home.close()


def post(shell, result, plan, tag, *args):
    """Send a run of a plan on a value of the device's and what else is given, and a get of its result, by hand."""
    who = {"home": Path(shell.environ["FEDQ_HOME"]), "user": shell.environ["FEDQ_USER"]}
    client = Client(dataclasses.replace(config_of(shell.root), **who))
    device, now = client.device("ward"), fs.clock()
    actions = (
        SendPlan(plan.id, plan.graph, (), plan.about),
        Run(plan.id, (OwnerRef(device.find(tag).id), *args), {}, (result,)),
        Get(result, (result,)),
    )
    message = Message(client.new_id(), client.name, device.address, now, now + 1e6, 1, actions)
    device.pair.carrier.put(device.pair.message_name(message.id), encode_message(message, {}, client.key))
    client.close()
    return message.sender


def test_a_reference_that_two_requesters_use_decides_nothing_without_a_name(ward):
    plan = PlanFile(Graph((ROWS,), (Action("aten.abs", (Var(0),), {}, (ROWS,)),), Var(1), {"n": 0, "m": 0}))
    ann, bob = (post(user, "ab" * 16, plan, "readings") for user in (ward, befriend(ward, "bob")))
    ward("device", "step", "ward")
    ref = f"ward:{'ab' * 16}"
    for words in (("approve", ref), ("deny", ref[:13]), ("review", ref)):
        said = ward(*words, code=3).stderr
        assert f"of {ann}" in said
        assert f"of {bob}" in said
        assert "--requester NAME" in said
    assert ward.json("deny", ref, "--requester", "ann")[0]["requester"] == ann
    ward("device", "step", "ward")
    assert "--requester NAME" in ward("approve", ref, code=3).stderr  # ann's is over, and still has this id
    assert ward.json("approve", ref, "--requester", bob)[0]["requester"] == bob


# -- at a terminal -----------------------------------------------------------------------------


def at_terminal(shell, *words, answers):
    """What a command prints at a terminal where a person types these answers, each once it was asked."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [FEDQ, *words], cwd=shell.root, env={**shell.environ, "NO_COLOR": "1"}, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    text, left = "", list(answers)
    while True:
        ready = select.select([master], [], [], 60)[0]
        assert ready, text
        try:
            text += os.read(master, 1 << 16).decode()
        except OSError:
            break
        if left and text.rstrip(" ").endswith(("?", ":", "(told to the requester; may be empty)", "(yes/no)")):
            os.write(master, f"{left.pop(0)}\n".encode())
            text += "\n"
    os.close(master)
    return process.wait(timeout=60), text.replace("\r", "")


def test_at_a_terminal_review_asks_and_in_a_pipe_it_never_does(ward):
    ref = ask(ward)
    code, text = at_terminal(ward, "review", ref, answers=["perhaps", "look", "deny", "too much"])
    assert code == 0
    assert "release, look, deny or later?" in text and "release, deny or later?" in text
    assert DOUBLED in text and "denied for ann-" in text
    assert ward.json("review") == []
    ward("device", "step", "ward")
    assert "too much" in ward("get", ref, "--timeout", "10s", code=5).stderr
    second = ask(ward)
    assert "later" not in ward("review", second).stdout
    code, text = at_terminal(ward, "review", second, answers=["later"])
    assert code == 0 and len(ward.json("review")) == 1
    code, text = at_terminal(ward, "approve", "--requester", "ann", answers=["no"])
    assert "1 question of ann-" in text and "nothing was said" in text
    assert len(ward.json("review")) == 1
    code, text = at_terminal(ward, "approve", "--requester", "ann", answers=["yes"])
    assert "approved for ann-" in text
