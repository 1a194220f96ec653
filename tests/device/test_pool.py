"""What a gate believes of a worker: its time, its rows, its facts, its end."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest

from fedq.client import fetch
from fedq.client.pointers import PointerTensor
from fedq.device import batch, kinds
from fedq.device.batch import well_formed
from fedq.device.gate import Gate
from fedq.device.pool import PAGE, START_S, Answer, Clock, Died, Held, ProcessWorker
from fedq.plan.codec import RawTensor
from tests.device.world import NAME, World
from tests.rig import wait_until


def page(call: int, step: int = 0, ready: int = 1) -> bytes:
    return PAGE.pack(call, step, 1 << 40, ready)


# -- time


def test_time_begins_with_the_call_and_a_folds_steps_give_no_more_of_it():
    clock = Clock(10.0, 0.0)
    clock.start(1, 0.0)
    for n in range(20):
        clock.look(page(1, step=n), 1.0 + n / 2)
    assert clock.late(10.9) == ""
    assert clock.late(11.1) == "took more than 10 s"


def test_a_workers_start_has_a_limit_of_its_own():
    clock = Clock(1.0, 0.0)
    clock.start(1, 0.0)
    clock.look(page(0, ready=0), 5.0)
    assert clock.late(START_S - 1) == ""
    assert clock.late(START_S + 1) == f"took more than {START_S:.0f} s before its first call"
    clock.look(page(0), 20.0)
    assert clock.late(20.9) == ""
    assert clock.late(21.1) == "took more than 1 s before its first call"


def test_each_call_of_a_batch_has_its_own_time():
    clock = Clock(1.0, 0.0)
    clock.look(page(0), 5.0)
    clock.start(50, 10.0)
    for n in range(1, 51):
        clock.look(page(n), 10.0 + 0.9 * n)
        assert clock.late(10.0 + 0.9 * n + 0.9) == ""
    assert clock.late(10.0 + 0.9 * 50 + 1.1)


def test_a_second_batch_begins_at_its_own_time():
    clock = Clock(1.0, 0.0)
    clock.look(page(0), 1.0)
    for began in (100.0, 200.0):
        clock.start(2, began)
        assert clock.late(began + 0.9) == ""
        clock.look(page(2), began + 0.5)
        assert clock.late(began + 1.6)


@pytest.mark.parametrize("say", [lambda n: n, lambda n: n % 7, lambda n: 1 << 63, lambda n: n * 10**6])
def test_a_worker_that_counts_on_for_ever_has_as_many_deadlines_as_calls_and_one(say):
    clock, now = Clock(1.0, 0.0), 0.0
    clock.look(page(0), 0.0)
    clock.start(10, 0.0)
    for n in range(1000):
        now += 0.5
        clock.look(page(say(n)), now)
        if clock.late(now):
            break
    assert now <= 11.5


# -- rows


@pytest.mark.parametrize(
    "row",
    [["ok", []], ["ok", [0, 1, {"n": 1.5}]], ["e", "failed", "x", {}], ["e", "failed", "x", {}, "Traceback"]],
)
def test_a_workers_rows_are_results_that_are_there_or_failures_in_words(row):
    assert well_formed(row, 2)


@pytest.mark.parametrize(
    "row",
    [
        None, [], "ok", ["ok"], ["ok", [2]], ["ok", [-1]], ["ok", [True]], ["ok", [{"n": "text"}]], ["ok", [{"m": 0}]],
        ["ok", [[0]]], ["ok", {}], ["e"], ["e", "failed", "x"], ["e", 1, "x", {}], ["e", "failed", None, {}],
        ["e", "failed", "x", []], ["e", "failed", "x", {}, 1], ["x", "failed", "x", {}],
        ["e", "failed", "x", {}, "", ""],
    ],
    ids=repr,
)  # fmt: skip
def test_anything_else_is_no_row(row):
    assert not well_formed(row, 2)


class Liar:
    """A worker that answers each call with this row."""

    pid, busy, spoke, idle_s, progress = 0, False, False, 0.0, (0, 0)

    def __init__(self, row: object) -> None:
        self.held, self._row, self._answer = Held(), row, None

    def fileno(self) -> int:
        return -1

    def start(self, head, tensors) -> None:
        self._answer = Answer([self._row for _ in head["calls"]], [])

    def poll(self):
        answer, self._answer = self._answer, None
        return answer

    def close(self) -> None:
        pass


def failure(tmp_path, row):
    """What a requester is told when its worker sends this."""
    world = World(tmp_path)
    world._gate = Gate(world.config, [NAME], worker=partial(Liar, row), now=world.now)
    result = world.double(world.alice, world.put(world.alice, 1))
    world.step()
    (came,) = fetch.outcomes([PointerTensor(world.alice, result, None)], 0, on_wait=lambda _: None)
    world.close()
    return came


def test_what_a_worker_says_of_a_failure_is_not_believed(tmp_path):
    facts = {"kind": "the value is 4711", "op": "aten.4711", "step": "4711", "id": "4711", "action": 0, "line": "4711"}
    came = failure(tmp_path, ["e", "waiting_for_approval", "4711", facts, "4711"])
    assert came.code == "failed"
    assert str(came) == "plan 'double': action 0 aten.add.Tensor failed   tour.py:9 (on device_1)"
    assert dict(came.fields) == {"action": 0, "op": "aten.add.Tensor", "kind": "other", "line": "tour.py:9"}


def test_a_kind_of_the_list_has_its_words_and_hint(tmp_path):
    came = failure(tmp_path, ["e", "failed", "", {"action": 0, "kind": "shape"}, "text"])
    assert str(came) == "plan 'double': action 0 aten.add.Tensor failed: sizes do not fit   tour.py:9 (on device_1)"
    assert came.hint == kinds.HINTS["shape"]


def test_a_fold_that_met_a_number_that_is_not_finite_has_a_code_of_its_own(tmp_path):
    facts = {"hint": "4711", "names": "4711", "step": 7, "steps": 9}
    came = failure(tmp_path, ["e", "not_finite", "4711 is nan", facts, "text"])
    assert (came.code, came.fields["kind"], came.hint) == ("not_finite", "not_finite", kinds.HINTS["not_finite"])
    assert str(came) == "plan 'double': a result is not finite in step 7 of 9 (on device_1)"


@pytest.mark.parametrize("code", batch.CODES)
def test_no_word_of_a_worker_reaches_a_requester(tmp_path, code):
    said = "\x1b[31m4711\u202e"
    facts = {"hint": said, "names": said, "id": said, "line": said, "input": 1, "outputs": [said, 4711]}
    came = failure(tmp_path, ["e", code, said, facts, said])
    assert "4711" not in f"{came} {came.hint} {dict(came.fields)}" and came.code == code


@pytest.mark.parametrize("row", [None, ["ok", [5]], ["e", "failed"], ["ok", [{"n": []}]]])
def test_a_worker_that_sends_what_is_no_answer_is_ended_and_its_call_charged(tmp_path, row):
    came = failure(tmp_path, row)
    assert (came.code, came.fields["attempts"], came.fields["kind"]) == ("worker_died", 3, "other")


# -- its end


@pytest.mark.parametrize("size_bytes", [0, 100_000], ids=["nothing to read", "a batch to read"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=["SIGKILL", "SIGSEGV"])
def test_a_worker_that_is_killed_while_it_starts_is_told_so_with_the_signal(number, size_bytes):
    """It has read nothing then, so that the socket says that the connection was reset."""
    worker = ProcessWorker(threads=1)
    os.kill(worker.pid, signal.SIGSTOP)  # it is not ready, and does not become so
    worker.start(
        {"plans": [], "give": [], "forget": [], "calls": []}, [RawTensor("u8", (size_bytes,), bytes(size_bytes))]
    )
    os.kill(worker.pid, number)
    os.kill(worker.pid, signal.SIGCONT)
    died = wait_until(worker.poll)
    assert isinstance(died, Died) and (died.at, died.kind, died.signal) == (0, "killed", number.name)
    assert died.why == f"worker {worker.pid} was killed by {number.name} while it started"


def test_a_worker_that_ends_while_it_starts_is_told_so_with_its_status(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = ProcessWorker(threads=1)
    worker.start({"plans": [], "give": [], "forget": [], "calls": []}, [])
    died = wait_until(worker.poll)
    assert isinstance(died, Died) and died.kind == "other"
    assert died.why.startswith(f"worker {worker.pid} ended while it started, exit status ")
