"""Workers that were taken over: whatever they send, another requester's calls go on, and the gate lives.

A real gate, real workers, and for one requester a process that answers as it likes (`hostile`).
``FEDQ_ANSWERS=10000`` is how many answers it gives; `make fuzz` asks for those.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fedq import fs
from fedq.device import pool, wire
from fedq.device.gate import Gate
from fedq.device.pool import Answer, Died, ProcessWorker
from fedq.plan.codec import RawTensor, decode
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Action, Dtype, Graph, Type, Var
from fedq.queue.message import Get, OwnerRef, Run, SendPlan, decode_reply
from tests.attacks import hostile
from tests.device.world import DOUBLE
from tests.rig import Rig, wait_until
from tests.test_workers import other
from tests.workers import fresh

HOSTILE = Path(hostile.__file__)
ANSWERS = int(os.environ.get("FEDQ_ANSWERS", "150"))
DEADLINE_S = 1.0
MOST_MEMORY = 1 << 30
"""What a gate may take more than it had, at its height."""


class Taken(ProcessWorker):
    """A worker process that is the enemy's from its start."""

    program = (str(HOSTILE), "any", "0")


@pytest.fixture
def taken(monkeypatch):
    """Starts one that answers in one way."""
    made = []

    def start(kind, seed=0, calls=1):
        monkeypatch.setattr(Taken, "program", (str(HOSTILE), kind, str(seed)))
        made.append(Taken(threads=1, deadline_s=DEADLINE_S))
        made[-1].start(head(calls), [])
        return made[-1]

    yield start
    for worker in made:
        worker.close()


def head(calls: int):
    rows = [["plan", [], [f"r{n}"], 0, None] for n in range(calls)]
    return {"plans": [], "give": [], "forget": [], "calls": rows}


def said(worker):
    return wait_until(worker.poll, 30)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "kind",
    ["deep", "many", "odd_head", "random_bytes", "truncated", "flood", "unsealed_body", "descriptors", "odd_layout"],
)
def test_what_is_no_answer_ends_its_worker_and_leaves_nothing_behind(kind, taken):
    before, height = descriptors(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(3):
        worker = taken(kind, seed)
        assert isinstance(said(worker), Died), (kind, seed)
        worker.close()
    assert descriptors() == before
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - height) << 10 < MOST_MEMORY


def test_memory_that_can_still_be_changed_is_not_mapped():
    """All combinations of seals: a gate maps what has every one of them."""
    for mask in range(16):
        left, right = socket.socketpair()
        names = [name for i, name in enumerate(wire.SEALS) if mask >> i & 1]
        fd = hostile.memory(bytes(2 << 20), names)
        body = b'[[["ok",[0]]],[["u8",[%d],0,0]]]' % (2 << 20)
        with left, right:
            socket.send_fds(left, [wire._FRAME.pack(len(body), 1, 0, False) + body], [fd])
            reader = wire.Reader(right)
            reader.expect(wire.Limits(1000, 100, 1, 4 << 20))
            reader.receive()
            if mask == 15:
                _, (tensor,) = reader.frame()
                with pytest.raises(OSError):
                    os.ftruncate(fd, 0)
                assert bytes(tensor.data[-4:]) == bytes(4)
            else:
                with pytest.raises(wire.BadFile, match="can still be changed"):
                    reader.frame()
        os.close(fd)


def test_what_a_gate_hands_over_cannot_be_changed_by_who_got_it(tmp_path):
    """The owner's file stays as it is, and so does what was read of a message; the page stays as long as it is."""
    path = tmp_path / "value"
    path.write_bytes(bytes(3 << 20))
    stored = RawTensor("u8", (3 << 20,), bytes(3 << 20))
    left, right = socket.socketpair()
    with left, right:
        wire.send(left, [], [wire.Stored(stored, lambda: fs.descriptor(path), 0), stored])
        _, fds, _, _ = socket.recv_fds(right, 1 << 16, 10)
    page = wire.page(32)
    for fd in [*fds, page]:
        for attack in (lambda fd=fd: os.ftruncate(fd, 0), lambda fd=fd: os.ftruncate(fd, 1 << 30)):
            with pytest.raises(OSError):
                attack()
    for fd in fds:
        with pytest.raises(OSError):
            os.pwrite(fd, b"x", 0)
    assert path.read_bytes() == stored.data
    for fd in [*fds, page]:
        os.close(fd)


def test_an_answer_that_nobody_asked_for_ends_the_worker_before_it_is_asked_again(taken):
    worker = taken("answer")
    assert isinstance(said(worker), Answer) and not worker.spoke
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: worker.spoke)
    worker = taken("surplus", seed=next(s for s in range(99) if hostile.random.Random(s).randrange(4) == 2))
    assert isinstance(said(worker), Answer | Died)
    assert not worker.busy and (worker._page < 0 or wait_until(lambda: worker.spoke))


def test_a_worker_that_takes_nothing_in_holds_no_gate_up(taken):
    """It answers what it did not read; what is sent to it then does not fit any more."""
    worker = taken("answer")
    assert isinstance(said(worker), Answer)
    os.kill(worker.pid, signal.SIGSTOP)
    for _ in range(20):
        worker.start({**head(1), "plans": ["x" * 60_000]}, [])  # would wait for ever, if it waited
        worker.busy = False  # as if it had answered
        if worker._process.poll() is not None:
            break
    assert worker._process.wait(30) == -signal.SIGKILL


def test_what_a_worker_writes_to_its_standard_error_is_kept_in_part_and_shown_as_lines(taken):
    worker = taken("noisy", seed=next(s for s in range(99) if _ends(s)))
    died = said(worker)
    assert isinstance(died, Died) and 0 < len(died.said) <= pool.HEARD_BYTES and "\x1b" in died.said


def _ends(seed: int) -> bool:
    rng = hostile.random.Random(seed)
    return rng.choice((1, 30)) == 30 and rng.choice((0, 1)) == 1


# -- results that no file can hold


def result_of(*actions: Action, types: tuple[Type, ...]) -> PlanFile:
    return PlanFile(Graph(types, actions, Var(len(types) + len(actions) - 1)), {}, About("odd", ("odd.py:1",)))


F32 = Type("f32", (2,))
UNFIT = {
    "65 dimensions": result_of(
        Action("aten.reshape", (Var(0), [1] * 64 + [2]), {}, (Type("f32", (*[1] * 64, 2)),)), types=(F32,)
    ),
    "a size beyond 2**60": result_of(
        Action("aten.new_zeros", (Var(0), [0, 1 << 30, 1 << 30]), {}, (Type("f32", (0, 1 << 30, 1 << 30)),)),
        types=(F32,),
    ),
    "a complex number": result_of(
        Action("aten._to_copy", (Var(0),), {"dtype": Dtype("c64")}, (Type("c64", (2,)),)),
        Action("aten.sum", (Var(1),), {}, (Type("c64", ()),)),
        Action("aten._local_scalar_dense", (Var(2),), {}, (Type("float"),)),
        types=(F32,),
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_result_that_no_file_can_hold_fails_its_call_alone(name, one_worker):
    plan = UNFIT[name]
    calls = [
        [DOUBLE.id, ["x"], ["a"], 0, None],
        [plan.id, ["x"], ["b"], 0, None],
        [DOUBLE.id, ["a"], ["c"], 0, None],
        [DOUBLE.id, ["b"], ["d"], 0, None],
    ]
    plans = [[p.id, fq_json(p), [], [], []] for p in (DOUBLE, plan)]
    given = RawTensor("f32", (2,), bytes(8))
    one_worker.start({"plans": plans, "give": [["x", 0]], "forget": [], "calls": calls}, [given])
    answer = wait_until(one_worker.poll)
    assert isinstance(answer, Answer), answer
    assert [row[0] for row in answer.rows] == ["ok", "e", "ok", "e"]
    assert (answer.rows[1][1], answer.rows[3][1]) == ("cannot_record", "missing_value")


def fq_json(plan: PlanFile):
    from fedq.plan.graph import graph_to_json

    return graph_to_json(plan.graph)


@pytest.fixture
def one_worker():
    with fresh() as worker:
        yield worker


# -- ten thousand answers


class Zygote:
    """Forks enemies: a `subprocess.Popen` for `Forked` workers."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "zygote")
        self._process = subprocess.Popen([sys.executable, HOSTILE, "zygote", self.path], stdout=subprocess.PIPE)
        assert self._process.stdout and self._process.stdout.readline() == b"ready\n"

    def fork(self, kind: str, seed: int, *fds: int) -> Forked:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.path)
            socket.send_fds(sock, [f"{kind} {seed}".encode()], list(fds))
            pid, held, _, _ = socket.recv_fds(sock, 20, 1)
        return Forked(int(pid), held[0])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Forked:
    returncode = -9

    def __init__(self, pid: int, fd: int) -> None:
        self.pid, self._fd = pid, fd

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # as `subprocess.Popen` does
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        return self.returncode


class Stage:
    """A gate in this process, an enemy's workers, and another requester whose calls are timed."""

    def __init__(self, root: Path, monkeypatch) -> None:
        (root / "fedq.toml").write_text('durability = "none"\n')
        self.rig = Rig(root, data={"x": torch.arange(3.0)})
        self.bob = other(self.rig, "bob")
        self.device, self.enemy = self.bob.device(self.rig.name), self.rig.device
        self.x = self.enemy.find("x").id
        self.zygote, self.asked, self.seed = Zygote(root), 0, 0
        self.gate = Gate(self.rig.config, [self.rig.name])
        self.latencies: list[float] = []
        self.reply, self.sent, self.left, self.end = "", 0.0, 0, 0
        self._make_enemies(monkeypatch)

    def _make_enemies(self, monkeypatch) -> None:
        stage, crew, started = self, self.gate.crew, pool._started

        class Enemys(ProcessWorker):
            program = ("enemy",)

            def start(self, head, tensors):
                stage.asked += 1
                super().start(head, tensors)

        def begin(owner, *args, honest=crew._make, begin=crew._begin):
            is_enemy = owner.name.startswith("alice")
            crew._make = (lambda _: Enemys(threads=1, deadline_s=DEADLINE_S)) if is_enemy else honest
            return begin(owner, *args)

        def start(program, sock, page, mouth, threads):
            if program != Enemys.program:
                return started(program, sock, page, mouth, threads)
            self.seed += 1
            return self.zygote.fork("any", self.seed, sock, page, mouth)

        monkeypatch.setattr(crew, "_begin", begin)
        monkeypatch.setattr(pool, "_started", start)

    def run(self, answers: int) -> None:
        self.end = self.asked + answers
        self.gate.serve(self._turn)

    def _turn(self) -> bool:
        """What requesters do between two steps of the gate; whether it was enough."""
        if not self.reply:
            self.reply = self._call(self.device, 1)
            self.sent = time.monotonic()
        elif (found := self.device.pair.carrier.path(f"out/{self.reply}.safetensors")).exists():
            self.latencies.append(time.monotonic() - self.sent)
            (value,) = decode(found.read_bytes()).tensors.values()
            assert bytes(value.data) == (2 * torch.arange(3.0)).numpy().tobytes()
            self.reply = ""
        peer = next((p for p in self._served.peers.values() if p.name.startswith("alice")), None)
        if peer is not None and self.asked < self.end and not peer.queue and not peer.running:
            self._call(self.enemy, 20)
        return self.asked >= self.end and not self.reply and len(self.latencies) > 5

    @property
    def _served(self):
        return next(iter(self.gate.served.values()))

    def _call(self, device, calls: int) -> str:
        ids = [device.client.new_id() for _ in range(calls)]
        runs = [Run(DOUBLE.id, (OwnerRef(self.x),), {}, (id_,)) for id_ in ids]
        device.submit([SendPlan(DOUBLE.id, DOUBLE.graph, (), DOUBLE.about), *runs, Get(ids[0], (ids[0],))])
        return ids[0]

    def close(self) -> None:
        self.gate.close()
        self.zygote.close()
        self.bob.close()
        self.rig.client.close()


@pytest.fixture
def stage(tmp_path, monkeypatch):
    made = Stage(tmp_path, monkeypatch)
    yield made
    made.close()


def test_another_requesters_calls_go_on_beside_a_worker_that_answers_at_random(stage, caplog):
    caplog.set_level(logging.INFO, "fedq.device")
    stage.run(0)
    alone, stage.latencies = stage.latencies[1:], []
    peer = next(p for p in stage._served.peers.values() if p.name.startswith("bob"))
    workers, before = [lane.worker.pid for lane in peer.lanes], descriptors()
    height = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    stage.run(ANSWERS)
    ends = [r.getMessage() for r in caplog.records if ", on call" in r.getMessage()]
    print(f"{ANSWERS} answers in {time.monotonic() - start:.0f} s; ends of workers: {len(ends)}")
    for text, ms in (("alone", [1e3 * t for t in alone]), ("beside", [1e3 * t for t in stage.latencies])):
        print(f"{text}: {len(ms)} calls, median {statistics.median(ms):.1f} ms, most {max(ms):.0f} ms")
    assert [lane.worker.pid for lane in peer.lanes] == workers, "a worker of the other requester ended"
    assert peer.ends == {} and not any(
        " of bob" in r.getMessage() for r in caplog.records if "on call" in r.getMessage()
    )
    assert descriptors() < before + 10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - height) << 10 < MOST_MEMORY
    assert all(c.isprintable() for r in caplog.records for c in r.getMessage())
    assert not any(r.levelno >= logging.ERROR for r in caplog.records), "a step of the gate failed"
    for reply in (stage.rig.device.pair.carrier.path("out")).iterdir():
        for value in decode_reply(decode(reply.read_bytes())).values.values():
            assert "4711" not in str(value) and "\x1b" not in str(value)
