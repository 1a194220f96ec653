"""Each promise of docs/reliability.md by itself: one guard, one test, no chance involved."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sqlite3
import time

import pytest

from fedq import fs, ids
from fedq.client import sending
from fedq.client.draft import Draft, Envelope, seal
from fedq.client.session import Client
from fedq.device import gate as gates
from fedq.device import serve as serving
from fedq.device.gate import Gate, serve_waiting
from fedq.device.home import Home, Requester
from fedq.device.pool import Answer, Died, Held
from fedq.errors import FedqError, Unreachable, WorkerDied
from fedq.local import introduce
from fedq.plan.codec import RawTensor
from fedq.queue.message import Drop, Get, Number, Put, Ref, Run, SendPlan
from fedq.queue.pair import Heartbeat
from fedq.trust import keys
from tests.crash.lane import START, config_of
from tests.crash.model import outcome
from tests.crash.roles import GOOD, NAME, content

PLAN = SendPlan(GOOD.id, GOOD.graph, (), GOOD.about)
X, Y, Z = ("1" * 32, "2" * 32, "3" * 32)


class Counting:
    """A worker that answers a number, another one each time, and remembers what it was asked."""

    pid, busy, spoke, idle_s = 0, False, False, 0.0

    def __init__(self, asked: list[str]) -> None:
        self.held = Held()
        self.asked, self._answer = asked, None

    def fileno(self) -> int:
        return -1

    def start(self, head, tensors) -> None:
        keys_ = [k.partition("/")[0] for call in head["calls"] for k in call[2]]
        self.asked += keys_
        self._answer = Answer([["ok", [{"n": len(self.asked)} for _ in c[2]]] for c in head["calls"]], [])

    def poll(self):
        answer, self._answer = self._answer, None
        return answer

    def close(self) -> None:
        self._answer = None


class World:
    """A requester and a gate in this process; time goes as `wait` says."""

    def __init__(self, root) -> None:
        self.now, self.asked = START, []
        self.config = config_of(root, "none")
        introduce(self.config, NAME)
        self.client = Client(self.config, now=lambda: self.now)
        self.device = self.client.device(NAME)
        self.pair = self.device.pair
        self.open()

    def open(self) -> None:
        self.gate = Gate(self.config, [NAME], worker=lambda *_, **__: Counting(self.asked), now=self.now)

    def restart(self) -> None:
        self.gate.close()
        self.open()

    def wait(self, seconds: float = 2.0) -> None:
        self.now += seconds
        for _ in range(20):
            if not self.gate.step(self.now) and self.gate.idle:
                break
            self.now += 0.01

    def send(self, *actions, tensors=None):
        return self.device.submit(list(actions), tensors or {})

    def slip(self, *actions, message_id: str = "", tensors=None) -> str:
        """A message of another program with the same key, that asks no outbox."""
        draft = self.device._new_draft()
        draft.id, draft.actions, draft.tensors = message_id or draft.id, list(actions), tensors or {}
        envelope = Envelope(self.client.name, self.device.address, self.now, self.now + 9e5, self.client.key)
        ((message, sent),) = seal(draft, envelope)
        self.pair.carrier.put(self.pair.message_name(message.id), sent.chunks)
        return message.id

    def put(self, id_: str, size: int = 2):
        return self.send(Put(id_, "t0"), Get(id_, (id_,)), tensors={"t0": content(id_, size)})

    def raw_of(self, message) -> tuple[str, bytes]:
        """The bytes of a message that was sent and not taken yet."""
        name = self.pair.message_name(message.id)
        return name, bytes(self.pair.carrier.get(name))

    def out(self, id_: str) -> bytes | None:
        try:
            return bytes(self.pair.carrier.get(self.pair.reply_name(id_)))
        except FileNotFoundError:
            return None

    def came(self, value: str, reply: str | None = None):
        return outcome(self.pair, reply or value, value)

    def heartbeat(self) -> Heartbeat:
        return self.device.sealed(Heartbeat)

    def close(self) -> None:
        fs.FAILPOINTS.clear()
        self.gate.close()
        self.client.close()


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.close()


def only(name: str, where: str, error: BaseException, times: int = 1):
    """A failpoint: these steps fail when one of their arguments contains a text."""
    left = [times]

    def step(_, call, *args, **kwargs):
        fd = kwargs.get("dir_fd", kwargs.get("dst_dir_fd"))
        place = os.readlink(f"/proc/self/fd/{fd}") if fd is not None else ""
        if left[0] and where in f"{place}/{args}":
            left[0] -= 1
            raise error
        return call(*args, **kwargs)

    fs.FAILPOINTS[name] = step


# -- send


def test_a_send_that_raised_is_not_done(world):
    """The name was given, but may not last: it is taken back."""
    full = Client(config_of(world.config.home.parent, "full"), now=lambda: world.now)
    only("put.sync_folder", "", OSError(errno.EIO, "input/output error"))
    with pytest.raises(Unreachable):
        full.device(NAME).submit([Put(X, "t0"), Get(X, (X,))], {"t0": content(X, 2)})
    fs.FAILPOINTS.clear()
    full.close()
    assert world.pair.carrier.list("in") == []
    world.restart()
    Client(world.config, now=lambda: world.now).close()
    world.wait()
    assert world.came(X) is None


def test_a_send_that_raised_and_cannot_be_taken_back_says_so_and_goes_out_later(world):
    client = Client(world.config, now=lambda: world.now)
    failing = OSError(errno.EIO, "input/output error")

    def fails(*_, **__):
        fs.FAILPOINTS["outbox.begin"] = lambda *_, **__: (_ for _ in ()).throw(
            sqlite3.OperationalError("disk I/O error")
        )
        raise failing

    fs.FAILPOINTS["put.unnamed"] = fails
    with pytest.raises(Unreachable) as caught:
        client.device(NAME).submit([Put(X, "t0"), Get(X, (X,))], {"t0": content(X, 2)})
    fs.FAILPOINTS.clear()
    assert sending.LEFT in caught.value.hint and "input/output error" in str(caught.value)
    client.close()
    Client(world.config, now=lambda: world.now).close()
    world.wait()
    assert isinstance(world.came(X), RawTensor)


def test_a_name_that_a_stranger_took_holds_up_no_other_message(world):
    """Two sends are cut off before they put anything; junk is planted under the first one's name."""
    for id_ in (X, Y):
        pid = os.fork()
        if not pid:
            client = Client(world.config, now=lambda: world.now)
            fs.FAILPOINTS["put.unnamed"] = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
            client.device(NAME).submit([Put(id_, "t0"), Get(id_, (id_,))], {"t0": content(id_, 2)})
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        with contextlib.closing(sqlite3.connect(world.config.home / "outbox.sqlite")) as db:
            first = db.execute("SELECT message FROM vals WHERE id=?", (X,)).fetchone()[0]
        (world.pair.carrier.path("in") / f"{first}.safetensors").write_bytes(b"junk")
    Client(world.config, now=lambda: world.now).close()
    world.wait()
    assert isinstance(world.came(Y), RawTensor)


# -- take


def test_other_bytes_under_an_id_that_was_taken_are_refused(world):
    message = world.put(X)
    world.wait()
    before = world.out(X)
    world.slip(Put(X, "t0"), Get(X, (X,)), message_id=message.id, tensors={"t0": content(Y, 2)})
    world.wait()
    assert world.heartbeat().refused == ((message.id, "conflict"),)
    assert world.out(X) == before


def test_a_message_that_comes_again_after_its_reply_vanished_is_answered_with_the_same_bytes(world):
    name, raw = world.raw_of(world.put(X))
    world.wait()
    before = world.out(X)
    world.pair.carrier.delete(world.pair.reply_name(X))
    world.pair.carrier.put(name, [raw])
    world.wait()
    assert world.out(X) == before


def test_a_reply_is_never_published_with_another_content(world):
    """Its value was dropped since; who resends the message gets nothing rather than something else."""
    name, raw = world.raw_of(world.put(X))
    world.wait()
    before = world.out(X)
    world.send(Drop((X,)))
    world.wait()
    world.pair.carrier.delete(world.pair.reply_name(X))
    world.pair.carrier.put(name, [raw])
    world.wait()
    assert world.out(X) in (before, None)


def test_a_file_that_can_not_be_read_now_is_taken_later(world):
    world.put(X)
    only("read.open", "/in", OSError(errno.EIO, "input/output error"), times=2)
    world.wait()
    assert world.came(X) is None
    world.wait()
    world.wait()
    assert isinstance(world.came(X), RawTensor)


def test_a_share_that_is_read_only_for_in_is_served_and_nothing_is_done_twice(world):
    world.send(PLAN, Run(GOOD.id, (3,), {}, (X,)), Get(X, (X,)))
    only("delete.unlink", "/in", OSError(errno.EROFS, "read-only file system"), times=1 << 30)
    world.wait()
    assert isinstance(world.came(X), Number)
    world.restart()
    world.wait()
    world.wait()
    assert world.asked == [X]
    assert len(world.pair.carrier.list("in")) == 1


# -- do


def a_gate_that_dies_of_its_call(world, how=lambda _: os.kill(os.getpid(), signal.SIGKILL)) -> int:
    """A gate in a process of its own that does this when it hands a batch over; how it ended."""
    pid = os.fork()
    if not pid:
        Counting.start = lambda worker, *_: how(worker)
        gate = Gate(world.config, [NAME], worker=lambda *_, **__: Counting([]), now=world.now)
        for _ in range(5):
            gate.step(world.now)
        gate.close()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def ends(world) -> list[tuple[int, int]]:
    """How often workers and gates ended in the middle of calls that are not done."""
    home = Home(world.config.devices / NAME, world.config)
    try:
        return [(e.workers, e.gates) for e in home.journal.ends().values()]
    finally:
        home.close()


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_a_gate_that_ends_less_than_five_times_costs_the_call_it_interrupted_nothing(world, times):
    world.send(PLAN, Run(GOOD.id, (3,), {}, (X,)), Get(X, (X,)))
    for _ in range(times):
        assert a_gate_that_dies_of_its_call(world) == signal.SIGKILL
    world.open()
    assert ends(world) == [(0, times)]
    world.wait()
    assert isinstance(world.came(X), Number)
    assert ends(world) == []


@pytest.mark.parametrize("times", [5, 6])
def test_a_call_in_whose_time_the_gate_ended_five_times_is_held_until_its_owner_says_so(world, times):
    world.send(PLAN, Run(GOOD.id, (3,), {}, (X,)), Get(X, (X,)))
    for n in range(times):
        assert a_gate_that_dies_of_its_call(world) == (signal.SIGKILL if n < 5 else 0)
    world.open()
    world.send(Run(GOOD.id, (4,), {}, (Y,)), Run(GOOD.id, (Ref(X),), {}, (Z,)), Get(Y, (Y,)), Get(Z, (Z,)))
    world.wait(4000)
    assert (world.asked, world.came(X), world.came(Z)) == ([Y], None, None)
    assert isinstance(world.came(Y), Number)
    assert world.heartbeat().held == ((X, "stopped"),)
    home = Home(world.config.devices / NAME, world.config)
    assert len(home.resume()) == 1
    home.close()
    world.wait()
    assert isinstance(world.came(X), Number)
    assert isinstance(world.came(Z), Number)
    assert world.asked == [Y, X, Z]
    assert ends(world) == []


def test_what_ran_beside_a_call_that_ends_the_gate_is_not_held_with_it(world):
    """Both were running when it ended; from the third time on they take turns."""

    def deadly(worker, head, tensors, start=Counting.start) -> None:
        start(worker, head, tensors)
        if X in [k.partition("/")[0] for call in head["calls"] for k in call[2]]:
            os.kill(os.getpid(), signal.SIGKILL)

    name, key, pair = another(world)
    draft = Draft(ids.new_id(), ids.new_id, actions=[PLAN, Run(GOOD.id, (3,), {}, (Y,)), Get(Y, (Y,))])
    ((message, sent),) = seal(draft, Envelope(name, world.device.address, world.now, world.now + 9e5, key))
    pair.carrier.put(pair.message_name(message.id), sent.chunks)
    world.send(PLAN, Run(GOOD.id, (3,), {}, (X,)), Get(X, (X,)))
    deaths = 0
    while a_gate_that_steps(world, deadly) == signal.SIGKILL:
        deaths += 1
    world.open()
    world.wait()
    assert deaths == 5
    assert world.came(X) is None
    assert pair.carrier.list("out") == [f"{Y}.safetensors"]
    assert ends(world) == [(0, 5)]


def a_gate_that_steps(world, start) -> int:
    pid = os.fork()
    if not pid:
        Counting.start = start
        gate = Gate(world.config, [NAME], worker=lambda *_, **__: Counting([]), now=world.now)
        while gate.step(world.now):
            pass
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def test_what_is_held_expires_with_its_message(world):
    world.device.submit([PLAN, Run(GOOD.id, (3,), {}, (X,)), Get(X, (X,))], expires_s=7200)
    for _ in range(5):
        a_gate_that_dies_of_its_call(world)
    world.open()
    world.wait(7300)
    assert world.came(X).code == "expired"
    assert ends(world) == []


def test_an_end_of_the_gate_is_charged_once_however_often_the_next_one_restarts(world):
    world.send(PLAN, Run(GOOD.id, (3,), {}, (X,)), Get(X, (X,)))
    a_gate_that_dies_of_its_call(world)
    for _ in range(6):
        assert os.WIFEXITED(a_gate_that_is_stopped_at_once(world))
    assert ends(world) == [(0, 1)]


def a_gate_that_is_stopped_at_once(world) -> int:
    pid = os.fork()
    if not pid:
        Gate(world.config, [NAME], worker=lambda *_, **__: Counting([]), now=world.now)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def test_an_orderly_stop_in_mid_call_is_charged_to_nobody(world):
    world.send(PLAN, Run(GOOD.id, (3,), {}, (X,)), Get(X, (X,)))
    for _ in range(6):
        assert os.WIFEXITED(a_gate_that_dies_of_its_call(world, how=lambda _: None))
    assert ends(world) == []
    world.open()
    world.wait()
    assert isinstance(world.came(X), Number)


def a_gate_that_ends_after_its_worker(world) -> None:
    pid = os.fork()
    if not pid:
        Counting.start = lambda worker, *_: setattr(worker, "_answer", Died(0, "it burst", "killed", "SIGSEGV"))
        gate = Gate(world.config, [NAME], worker=lambda *_, **__: Counting([]), now=world.now)
        for _ in range(2):  # hands it over, buries the worker
            gate.step(world.now)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_workers_ends_are_counted_over_restarts_of_the_gate(world):
    world.send(PLAN, Run(GOOD.id, (3,), {}, (X,)), Get(X, (X,)))
    a_gate_that_dies_of_its_call(world)
    for n in range(3):
        a_gate_that_ends_after_its_worker(world)
        assert ends(world) == ([(n + 1, n + 1)] if n < 2 else [])
    world.open()
    world.wait()
    came = world.came(X)
    assert isinstance(came, WorkerDied)
    assert "3 times while it did this: its process was killed by SIGSEGV" in str(came)
    assert ends(world) == []


def test_a_call_that_has_its_result_is_not_done_again_after_a_restart(world):
    """Its message is still open: another call of it waits."""
    world.send(PLAN, Run(GOOD.id, (3,), {}, (X,)), Run(GOOD.id, (Ref(Z),), {}, (Y,)), Get(X, (X,)))
    world.wait()
    world.restart()
    world.wait()
    assert world.asked == [X]


def test_an_id_that_has_a_content_keeps_it(world):
    world.put(X)
    world.wait()
    world.slip(PLAN, Run(GOOD.id, (3,), {}, (X, Y)), Get(Z, (X, Y)))  # one result too many: both would fail
    world.wait()
    assert isinstance(world.came(X, Z), RawTensor)
    assert isinstance(world.came(Y, Z), FedqError)


def test_a_commit_that_fails_leaves_nothing_behind_in_memory(world):
    world.send(PLAN, Put(X, "t0"), Run(GOOD.id, (3,), {}, (Y,)), Get(Z, (X, Y)), tensors={"t0": content(X, 2)})
    only("journal.commit", "COMMIT", sqlite3.OperationalError("database or disk is full"))
    world.wait()
    assert isinstance(world.came(X, Z), RawTensor)
    assert isinstance(world.came(Y, Z), Number)


def test_a_message_the_gate_stumbles_over_is_put_aside_and_blocks_nobody(world, caplog):
    caplog.set_level(logging.CRITICAL, "fedq")
    bad = world.put(X)
    only("journal.insert", bad.id, ValueError("unforeseen"), times=1 << 30)
    world.put(Y)
    world.wait()
    world.wait()
    assert isinstance(world.came(Y), RawTensor)
    assert bad.id in dict(world.heartbeat().refused)


# -- publish


def test_nothing_is_published_before_it_is_committed(world):
    world.send(PLAN, Run(GOOD.id, (3,), {}, (X,)), Get(X, (X,)))
    while not world.asked:
        world.now += 1
        world.gate.step(world.now)
    only("journal.commit", "COMMIT", sqlite3.OperationalError("disk I/O error"))
    world.gate.step(world.now)
    assert world.out(X) is None
    world.wait()
    world.wait()
    assert isinstance(world.came(X), Number)


def test_a_file_planted_at_a_replys_name_is_replaced(world):
    (world.pair.carrier.path("out") / f"{X}.safetensors").write_bytes(b"not a reply")
    world.put(X)
    world.wait()
    assert isinstance(world.came(X), RawTensor)


def another(world):
    """Another requester of the device, whom it serves first: its name, key and pair."""
    home = Home(world.config.devices / NAME, world.config)
    key = keys.Key.from_seed(b"b" * 32)
    name = f"aaa-{key.fingerprint}"
    home.trust(Requester(name, key.public.hex()))
    pair = home.pair(name)
    home.close()
    world.restart()
    return name, key, pair


def test_a_reply_that_can_not_be_written_holds_up_no_other_requester(world):
    name, key, pair = another(world)
    draft = Draft(ids.new_id(), ids.new_id, actions=[Put(Y, "t0"), Get(Y, (Y,))], tensors={"t0": content(Y, 2)})
    ((message, sent),) = seal(draft, Envelope(name, world.device.address, world.now, world.now + 9e5, key))
    pair.carrier.put(pair.message_name(message.id), sent.chunks)
    pair.carrier.path("out").rmdir()
    pair.carrier.path("out").write_text("no folder")
    world.put(X)
    world.wait()
    assert isinstance(world.came(X), RawTensor)


def test_one_requesters_broken_folder_holds_up_no_other(world):
    theirs = another(world)[2].carrier.path("")
    world.put(X)
    (theirs / "in").rmdir()
    (theirs / "in").write_text("no folder")
    (theirs / "catalog.json").unlink()
    (theirs / "catalog.json").mkdir()
    world.wait()
    assert isinstance(world.came(X), RawTensor)


# -- collect


def test_a_value_is_dropped_only_after_the_replies_that_need_it_are_out(world):
    world.put(X)
    world.send(Drop((X,)))
    world.wait()
    assert isinstance(world.came(X), RawTensor)


def test_a_value_outlives_the_time_in_which_its_reply_can_not_be_written(world):
    def full(name, call, *args, **how):
        raise OSError(errno.ENOSPC, "full")

    world.put(X)
    world.send(Drop((X,)))
    fs.FAILPOINTS["put.unnamed"] = full
    world.wait()
    fs.FAILPOINTS.clear()
    assert world.came(X) is None
    world.wait()
    assert isinstance(world.came(X), RawTensor)


def test_the_file_of_a_value_that_is_no_more_goes_also_when_the_gate_ended_just_then(world):
    def ends(name, call, path, *args, **how):
        if path.startswith(X):
            raise KeyboardInterrupt
        return call(path, *args, **how)

    world.put(X, size=100_000)
    world.wait()
    kept = world.gate.served[NAME].home.store.path(world.client.name, X)
    assert kept.exists()
    world.send(Drop((X,)))
    fs.FAILPOINTS["delete.unlink"] = ends
    with pytest.raises(KeyboardInterrupt):
        world.wait()
    fs.FAILPOINTS.clear()
    assert kept.exists()
    world.open()
    assert not kept.exists()


def test_a_get_of_what_was_dropped_is_answered_at_once(world):
    world.put(X)
    world.wait()
    world.send(Drop((X,)))
    world.wait()
    world.wait()
    world.send(Get(Y, (X,)))
    world.wait()
    came = world.came(X, Y)
    assert isinstance(came, FedqError)
    assert came.code == "missing_value"


def test_temporary_files_are_swept_a_day_after_they_were_written(world):
    old = [world.pair.carrier.path(f) / f"{fs.TEMP}old" for f in ("", "in", "out")]
    old += [world.config.devices / NAME / f"{fs.TEMP}old", world.config.home / f"{fs.TEMP}old"]
    young = world.pair.carrier.path("in") / f"{fs.TEMP}young"
    for path in (*old, young):
        path.write_bytes(b"half")
    for path in old:
        os.utime(path, (world.now - 90_000, world.now - 90_000))
    os.utime(young, (world.now, world.now))
    world.wait(4000)
    Client(world.config, now=lambda: world.now).close()
    assert [p for p in (*old, young) if p.exists()] == [young]


# -- time and disks


def test_a_clock_set_back_by_years_makes_nobody_wait_for_years(world):
    years = 2 * 365 * 86400.0
    world.now += years
    world.restart()
    world.send(Get(X, (Y,)))
    world.wait()
    world.now -= years
    for _ in range(60):
        world.wait(600)
    assert isinstance(world.came(Y, X), FedqError)


def test_serving_what_waits_ends_with_an_error_when_the_disk_is_full(world):
    world.gate.close()
    world.put(X)
    only("journal.commit", "COMMIT", sqlite3.OperationalError("database or disk is full"), times=1 << 30)
    with pytest.raises(Unreachable, match="full"):
        serve_waiting(world.config, [NAME])
    fs.FAILPOINTS.clear()
    serve_waiting(world.config, [NAME])
    world.open()
    assert isinstance(world.came(X), RawTensor)


def test_a_full_disk_is_said_once_and_the_gate_goes_on_when_there_is_room(world, caplog):
    caplog.set_level(logging.ERROR, "fedq")
    world.put(X)
    only("put.write", "", OSError(errno.ENOSPC, "no space left on device"), times=1 << 30)
    fs.FAILPOINTS["put.unnamed"] = lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space left"))
    for _ in range(5):
        world.wait()
    assert [r.message for r in caplog.records if "no space" in r.message] != []
    assert len([r for r in caplog.records if "no space" in r.message]) == 1
    fs.FAILPOINTS.clear()
    world.wait()
    assert isinstance(world.came(X), RawTensor)


def test_the_clock_is_close_to_the_one_these_tests_go_by():
    """Ages of files are real, all other times are not; the sweep's test needs them within a decade."""
    assert abs(time.time() - START) < 10 * 365 * 86400


@pytest.mark.parametrize("code", ["EIO", "EMFILE", "EACCES", "ENOSPC"])
def test_the_daemons_loop_outlives_a_disk_of_which_everything_fails(world, monkeypatch, caplog, code):
    caplog.set_level(logging.ERROR, "fedq")
    for name in ("LOOK_S", "SOON_S"):
        monkeypatch.setattr(serving, name, 0.01)
    monkeypatch.setattr(gates, "SCAN_S", 0.01)
    gates.mark(world.config, NAME, up=True)
    fs.make_dir(gates.gate_dir(world.config))
    world.gate.close()
    world.gate = Gate(world.config, None, worker=lambda *_, **__: Counting(world.asked))
    world.put(X)
    loops = iter(range(30))

    def failing(name, call, *args, **kwargs):
        if name == "clock":
            return call(*args, **kwargs)
        if name.startswith(("journal.", "outbox.")):
            raise sqlite3.OperationalError("disk I/O error")
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    def stop():
        n = next(loops, None)
        if n == 0:
            fs.FAILPOINTS["*"] = failing
        if n == 15:
            fs.FAILPOINTS.clear()
        return n is None

    world.gate.serve(stop)
    assert isinstance(world.came(X), RawTensor)
    assert len(caplog.records) < 12
