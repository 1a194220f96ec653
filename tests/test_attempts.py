"""What a call is charged for, how long it may take, what ends it, and in which words: real gates, real workers."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch

from fedq.cli import background
from fedq.client import again, fetch, standing
from fedq.device import daemon, kinds
from fedq.device.journal import Ends
from fedq.errors import Cancelled, Failed, UnknownValue, UsageError, WaitingForApproval, WorkerDied
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Action, Graph, Type, Var
from tests.marks import more, rows
from tests.rig import Rig, wait_until
from tests.test_kill import begun, children, slow_plan
from tests.test_workers import deadline, other

ENDLESS = 1 << 20


@pytest.fixture
def rig(tmp_path):
    with Rig(tmp_path, data={"x": torch.eye(600), "rows": torch.ones(1000, 4)}) as made:
        yield made


def plan(op: str, args, *inputs: str, result: str) -> PlanFile:
    """A plan of one action at pick.py:7."""
    types = tuple(map(Type.parse, inputs))
    action = Action(op, tuple(args), {}, (Type.parse(result),))
    sizes = {n: 0 for n in "nm" if n in result}
    return PlanFile(Graph(types, (action,), Var(len(types)), sizes=sizes), {}, About("pick", ("pick.py:7",)))


def summed(plan: PlanFile) -> PlanFile:
    """The same, of whose result the sum alone is given: no quota refuses it for its size."""
    graph = plan.graph
    total = Action("aten.sum", (graph.outputs,), {}, (Type("f32", ()),))
    more = replace(graph, actions=(*graph.actions, total), outputs=Var(graph.outputs.number + 1))
    return PlanFile(more, {}, About("pick", ("pick.py:7", "pick.py:8")))


def step() -> PlanFile:
    """A fold's step: the carry plus the sum of the batch."""
    scalar, rows = Type("f32", ()), Type("f32", ("n", 4))
    actions = (
        Action("aten.sum", (Var(1),), {}, (scalar,)),
        Action("aten.add.Tensor", (Var(0), Var(2)), {}, (scalar,)),
    )
    return PlanFile(Graph((scalar, rows), actions, (Var(3), Var(2)), sizes={"n": 1}), {}, About("endless"))


def fold_for_ever(rig, device=None):
    """A fold of a thousand million steps."""
    device = device or rig.device
    data = device.find("rows")
    return device.send_plan(step()).fold([torch.tensor(0.0)], [data], batch_size=1, epochs=ENDLESS)[0]


def beats_after(rig, since: float):
    """The heartbeat of a gate that started since, when something runs."""
    return (beat := rig.heartbeat()).time > since and beat.running


def kill_gate(rig) -> None:
    """Start the gate, and kill it while it runs something."""
    since = time.time()
    rig.start()
    wait_until(lambda: beats_after(rig, since))
    os.kill(daemon.pid(rig.config), signal.SIGKILL)
    wait_until(lambda: daemon.pid(rig.config) is None)


def ends_of(rig) -> list[Ends]:
    home = rig.home()
    try:
        return list(home.journal.ends().values())
    finally:
        home.close()


def log_of(rig) -> str:
    return "\n".join(background.log_lines(rig.config, rig.name, 500))


# -- a gate's death, a worker's death --------------------------------------------------------


def test_a_gate_that_is_killed_four_times_in_mid_call_costs_the_call_nothing(rig):
    out = rig.device.send_plan(slow_plan(300))(rig.device.find("x"))
    for _ in range(4):
        kill_gate(rig)
    rig.start()
    wait_until(lambda: ends_of(rig))
    assert torch.equal(out.get(timeout_s=120), torch.eye(600))
    assert ends_of(rig) == []


def test_a_call_is_held_when_the_gate_ended_five_times_while_it_ran_and_blocks_nobody(rig):
    with rig.device.batch():
        slow = rig.device.send_plan(slow_plan(400))
        out = slow(rig.device.find("x"))
        after = slow(out)
    for killed in range(5):
        counted = [(e.workers, e.gates) for e in ends_of(rig)]
        assert max(counted, default=(0, 0)) == (0, max(0, killed - 1))  # the last is counted at the next start
        kill_gate(rig)
    rig.start()
    fine = rig.device.send_plan(slow_plan(1))(rig.device.find("x"))
    assert torch.equal(fine.get(timeout_s=60), torch.eye(600))
    with pytest.raises(WaitingForApproval, match="held: the device's daemon ended five times while it ran") as caught:
        out.get(timeout_s=2)
    assert "fedq device resume device_1" in caught.value.hint
    (stands,) = standing.of(rig.device, [out.id])
    assert (stands.state, stands.why) == ("held", fetch.HELD)
    the_owner_is_told(rig)
    sixth(rig)
    home = rig.home()
    with pytest.raises(UnknownValue):
        home.resume("abcdef")
    assert len(home.resume()) == 1
    home.close()
    assert torch.equal(after.get(timeout_s=120), torch.eye(600))
    assert background.failed(rig.config, [rig.name]) == []


def the_owner_is_told(rig) -> None:
    assert background.state(rig.config, rig.name)["held"] == 1
    (row,) = background.failed(rig.config, [rig.name])
    assert "held: the gate ended five times while it ran; fedq device resume device_1" in row["reason"]
    assert "is held: the device's daemon ended five times while it ran" in log_of(rig)


def sixth(rig) -> None:
    """One that is held does not run, so it is not counted again; it stays held."""
    os.kill(daemon.pid(rig.config), signal.SIGKILL)
    wait_until(lambda: daemon.pid(rig.config) is None)
    rig.start()
    wait_until(lambda: rig.heartbeat().held)
    assert not rig.heartbeat().running
    assert max(e.gates for e in ends_of(rig)) == 5


def test_a_held_call_can_be_cancelled_by_its_sender(rig):
    out = rig.device.send_plan(slow_plan(400))(rig.device.find("x"))
    for _ in range(5):
        kill_gate(rig)
    rig.start()
    again.cancel([out])
    with pytest.raises(Cancelled):
        out.get(timeout_s=60)
    assert background.failed(rig.config, [rig.name]) == ends_of(rig) == []


@more
def test_deaths_of_gate_and_worker_are_counted_apart(rig):
    out = rig.device.send_plan(slow_plan(400))(rig.device.find("x"))
    for _ in range(2):
        kill_gate(rig)
    rig.start()
    (worker,) = wait_until(lambda: children(daemon.pid(rig.config)))
    wait_until(lambda: begun(worker))
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: [(e.workers, e.gates, e.kind) for e in ends_of(rig)] == [(1, 2, "killed SIGKILL")])
    assert torch.equal(out.get(timeout_s=120), torch.eye(600))


def test_a_call_whose_worker_is_killed_three_times_says_by_what(rig):
    rig.start()
    out = rig.device.send_plan(slow_plan(2000))(rig.device.find("x"))
    killed = set()
    while len(killed) < 3:
        (worker,) = wait_until(lambda: set(children(daemon.pid(rig.config))) - killed)
        wait_until(lambda w=worker: begun(w))
        os.kill(worker, signal.SIGSEGV)
        killed.add(worker)
    with pytest.raises(WorkerDied, match="3 times while it did this: its process was killed by SIGSEGV") as caught:
        out.get(timeout_s=60)
    assert (caught.value.fields["kind"], caught.value.fields["signal"]) == ("killed", "SIGSEGV")
    assert caught.value.hint == kinds.HINTS["killed"]


# -- deadlines -------------------------------------------------------------------------------


def test_a_fold_without_an_end_is_ended_by_its_deadline_though_it_goes_on_and_on(rig):
    deadline(rig, 1)
    rig.start()
    out = fold_for_ever(rig)
    with pytest.raises(WorkerDied, match="3 times while it did this: it took too long") as caught:
        out.get(timeout_s=90)
    assert caught.value.fields["kind"] == "deadline"
    (row,) = background.failed(rig.config, [rig.name])
    assert "took more than 1 s" in row["reason"]


def test_a_new_deadline_holds_on_a_device_that_is_up(rig):
    rig.start()
    assert rig.device.send(torch.ones(2)).copy(timeout_s=60).tolist() == [1, 1]
    fine = rig.device.send_plan(slow_plan(1))(rig.device.find("x"))
    assert fine.get(timeout_s=60) is not None
    deadline(rig, 1)
    with pytest.raises(WorkerDied, match="it took too long"):
        fold_for_ever(rig).get(timeout_s=120)


def test_a_deadline_of_no_time_is_refused(rig):
    with pytest.raises(UsageError, match="lets no call run"):
        deadline(rig, 0)


@more
def test_each_call_of_a_batch_has_its_own_time_and_the_start_of_a_worker_is_nobodys(rig):
    """Together they take longer than the deadline, and so does loading torch."""
    one = slow_plan(40)
    rig.start()
    warm = rig.device.send_plan(one)
    began = time.monotonic()
    warm(rig.device.find("x")).get(timeout_s=60)
    warm(rig.device.find("x")).get(timeout_s=60)
    took_s = min(time.monotonic() - began, 3.0)
    rig.stop()
    deadline(rig, max(0.8, took_s))
    with rig.device.batch():
        outs = [warm(rig.device.find("x")) for _ in range(30)]
    rig.start()
    for out in outs:
        assert torch.equal(out.get(timeout_s=120), torch.eye(600))


# -- cancel ----------------------------------------------------------------------------------


def test_cancel_ends_a_fold_that_runs_within_a_second_and_others_go_on(rig):
    rig.start()
    bob = other(rig, "bob")
    theirs = bob.device(rig.name)
    slow = theirs.send_plan(slow_plan(20))
    slow(theirs.find("x")).get(timeout_s=60)
    (bobs_worker,) = children(daemon.pid(rig.config))
    out = fold_for_ever(rig)
    wait_until(lambda: rig.heartbeat().progress)
    going_on = [slow.run([theirs.find("x")], release=True)[0] for _ in range(20)]
    began = time.monotonic()
    again.cancel([out])
    with pytest.raises(Cancelled):
        out.get(timeout_s=10)
    assert time.monotonic() - began < 1.5
    assert wait_until(lambda: children(daemon.pid(rig.config)) == [bobs_worker])
    for value in going_on:
        assert torch.equal(value.get(timeout_s=60), torch.eye(600))
    wait_until(lambda: not rig.heartbeat().running)
    assert ends_of(rig) == []
    bob.close()


@more
def test_what_shares_a_batch_with_a_cancelled_call_is_done_and_what_needs_it_says_why(rig):
    rig.start()
    square = "f32[600,600]"
    quick = rig.device.send_plan(plan("aten.mul.Tensor", (Var(0), Var(0)), square, result=square))
    slow, x = rig.device.send_plan(slow_plan(400)), rig.device.find("x")
    for _ in range(3):  # the pace of the last batch decides how many calls are in the next
        quick(x).get(timeout_s=60)
    os.kill(daemon.pid(rig.config), signal.SIGSTOP)
    first = quick.run([x], release=True)[0]
    long = slow.run([x], release=True)[0]
    needs = quick.run([long], release=True)[0]
    fine = quick.run([x], release=True)[0]
    os.kill(daemon.pid(rig.config), signal.SIGCONT)
    wait_until(lambda: len(rig.heartbeat().running) == 4)
    again.cancel([long])
    with pytest.raises(Cancelled):
        long.get(timeout_s=60)
    with pytest.raises(Cancelled, match="argument"):
        needs.get(timeout_s=60)
    for value in (first, fine):
        assert torch.equal(value.get(timeout_s=60), torch.eye(600))
    assert ends_of(rig) == []


def test_a_requester_can_not_cancel_what_is_another_ones(rig):
    rig.start()
    out = rig.device.send_plan(slow_plan(150))(rig.device.find("x"))
    (message,) = wait_until(lambda: rig.heartbeat().running)
    bob = other(rig, "bob")
    from fedq.queue.message import Cancel

    bob.device(rig.name).submit([Cancel((message,))])
    assert torch.equal(out.get(timeout_s=60), torch.eye(600))
    bob.close()


# -- kinds -----------------------------------------------------------------------------------

FAILING = {
    "index_out_of_range": (
        plan("aten.index_select", (Var(0), 0, Var(1)), "f32[3]", "i64[1]", result="f32[1]"),
        (torch.tensor([1.5, 2.5, 3.5]), torch.tensor([77771])), "index out of range", "in self",
    ),
    "an index of a gather": (
        plan("aten.gather", (Var(0), 0, Var(1)), "f32[3]", "i64[1]", result="f32[1]"),
        (torch.tensor([1.5, 2.5, 3.5]), torch.tensor([77771])), "index out of range", "77771",
    ),
    "out_of_memory": (
        summed(plan("aten.div.Tensor", (Var(0), Var(1)), "u8[n,1]", "u8[1,m]", result="f32[n,m]")),
        (torch.ones(1 << 23, 1, dtype=torch.uint8), torch.ones(1, 1 << 22, dtype=torch.uint8)),
        "out of memory", "allocate",
    ),
    "shape": (
        plan("aten.mm", (Var(0), Var(1)), "f32[2,3]", "f32[2,3]", result="f32[2,3]"),
        (torch.ones(2, 3), torch.ones(2, 3)), "sizes do not fit", "mat1 and mat2",
    ),
    "contract": (
        plan("aten.scaled_dot_product_attention", (Var(0), Var(0), Var(1)), "f32[1,1,2,4]", "f32[1,1,1,4]",
             result="f32[1,1,2,4]"),
        (torch.ones(1, 1, 2, 4), torch.ones(1, 1, 1, 4)), "its arguments do not belong together", "Broken",
    ),
    "an index that a contract finds": (
        plan("aten.embedding_dense_backward", (Var(0), Var(1), 5, -1, True), "f32[2,3]", "i64[2]", result="f32[5,3]"),
        (torch.ones(2, 3), torch.tensor([0, 5])), "index out of range", "Broken",
    ),
    "not_finite": (
        plan("aten.linalg_svdvals", (Var(0),), "f32[2,2]", result="f32[2]"),
        (torch.full((2, 2), float("nan")),), "not finite", "non-finite",
    ),
    "value": (
        plan("aten.floor_divide", (Var(0), Var(0)), "i64[2]", result="i64[2]"),
        (torch.tensor([0, 1]),), "a value that it does not take", "ZeroDivisionError",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", rows(FAILING, ("an index that a contract finds", "not_finite")))
def test_a_failure_names_its_kind_and_line_and_torchs_words_are_the_owners(rig, kind):
    """On a worker that just started. What torch says echoes values: it is in the log, not in the reply."""
    failing, args, words, theirs = FAILING[kind]
    rig.start()
    out = rig.device.send_plan(failing)(*args)
    with pytest.raises(Failed) as caught:
        out.get(timeout_s=60)
    op = failing.graph.actions[0].op
    assert str(caught.value) == f"plan 'pick': action 0 {op} failed: {words}   pick.py:7 (on device_1)"
    found = caught.value.fields["kind"]
    assert kinds.KINDS[found] == words
    assert caught.value.hint == kinds.HINTS[found]
    raw = bytes(rig.device.pair.carrier.get(rig.device.pair.reply_name(rig.device.ask([out])[out.id])))
    assert theirs.encode() not in raw
    assert b"Traceback" not in raw
    assert theirs in log_of(rig)
    assert "Traceback" in log_of(rig)
    (said,) = [line for line in log_of(rig).splitlines() if " of message " in line]
    assert said.endswith(f" failed: {op}") and said.count("failed") == 1


@more
def test_the_log_has_it_also_where_cron_serves_a_device(rig):
    failing, args, *_ = FAILING["shape"]
    out = rig.device.send_plan(failing)(*args)
    rig.device.ask([out])
    rig.device.flush()
    rig.step()
    assert "mat1 and mat2" in log_of(rig)
    with pytest.raises(Failed, match="sizes do not fit"):
        out.get(timeout_s=5)


def test_a_failure_in_the_middle_of_a_fold_names_step_and_kind(rig):
    scalar, rows = Type("f32", ()), Type("i64", ("n",))
    pick = Action("aten.index_select", (Var(1), 0, Var(1)), {}, (rows,))
    total = Action("aten.sum", (Var(2),), {}, (Type("i64", ()),))
    graph = Graph((scalar, rows), (pick, total), (Var(0), Var(3)), sizes={"n": 1})
    plan = PlanFile(graph, {}, About("pick", ("pick.py:7", "pick.py:8")))
    rig.start()
    data = rig.device.send(torch.tensor([0, 0, 0, 0, 1, 5]))
    _, sums = rig.device.send_plan(plan).fold([torch.tensor(0.0)], [data], batch_size=2)
    with pytest.raises(Failed, match=r"failed: index out of range   pick\.py:7, in step 3 of 3") as caught:
        sums.get(timeout_s=60)
    assert (caught.value.fields["step"], caught.value.fields["kind"]) == (3, "index_out_of_range")


def test_a_log_is_not_filled_and_no_terminal_is_driven_by_what_a_worker_says():
    scribe = kinds.Scribe()
    (line,) = scribe.lines("\x1b[2Ja\u202e\ud800b", 1.0)
    assert line == "\\x1b[2Ja\\u202e\\ud800b"
    assert sum(len(x) for x in scribe.lines("y" * 10**6, 2.0)) == kinds.MOST_TEXT
    for n in range(200):
        list(scribe.lines("y\n" * 10**5, 3.0 + n / 100))
    assert list(scribe.lines("y", 6.0)) == ["(more of this than a log should hold in an hour)"]
    assert list(scribe.lines("y", 4000.0)) == ["y"]
    assert list(scribe.lines(None, 4000.0)) == list(scribe.lines("", 4000.0)) == []


def test_a_worker_can_not_name_a_kind_that_is_not_one():
    assert [kinds.checked(k) for k in ("shape", "killed", "x" * 99, None, 3, {})] == ["shape"] + ["other"] * 5
    assert json.dumps(dict(kinds.HINTS)).isascii()
    assert kinds.HINTS.keys() == kinds.KINDS.keys() - {"other"}
    assert all(len(hint) <= 300 for hint in kinds.HINTS.values())
