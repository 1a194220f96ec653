"""Real workers: stopped, hungry for memory, several at once; a flood beside another's latency; many roots."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
import torch

from fedq.cli import background
from fedq.client import fetch
from fedq.client.pointers import PointerTensor
from fedq.client.session import Client, trust_device
from fedq.device import daemon, gate, home
from fedq.errors import FedqError, WorkerDied
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Action, Graph, Type, Var
from fedq.queue.message import Get, Put, Ref, Run, SendPlan
from fedq.trust import keys
from tests.device.world import DOUBLE, f32
from tests.marks import more
from tests.rig import Rig, wait_until
from tests.test_kill import begun, children, slow_plan


@pytest.fixture
def rig(tmp_path):
    with Rig(tmp_path, data={"x": torch.eye(600)}) as made:
        yield made


def deadline(rig, seconds: float) -> None:
    who = rig.home().trusted()[0]
    home.init(rig.config, rig.name, requester=who, deadline_s=seconds).close()


def test_a_worker_that_is_stopped_passes_its_deadline_and_after_three_the_message_is_kept_apart(rig):
    deadline(rig, 3)
    rig.start()
    out = rig.device.send_plan(slow_plan(4000))(rig.device.find("x"))
    stopped = set()
    while len(stopped) < 3:
        (worker,) = wait_until(lambda: set(children(daemon.pid(rig.config))) - stopped)
        wait_until(lambda w=worker: begun(w))  # before that, time is not the call's
        os.kill(worker, signal.SIGSTOP)
        stopped.add(worker)
    with pytest.raises(WorkerDied, match="3 times"):
        out.get(timeout_s=60)
    fine = rig.device.send_plan(slow_plan(1))(rig.device.find("x"))
    assert torch.equal(fine.get(timeout_s=60), torch.eye(600))
    (row,) = background.failed(rig.config, [rig.name])
    assert "took more than 3 s" in row["reason"]
    assert os.path.getsize(row["file"]) > 500
    assert background.state(rig.config, rig.name)["failed"] == 1


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no prlimit")
def test_a_worker_that_wants_too_much_memory_answers_with_an_error_and_others_go_on(rig):
    rig.start()
    warm = rig.device.send_plan(slow_plan(1))(rig.device.find("x"))
    warm.get(timeout_s=60)
    (worker,) = children(daemon.pid(rig.config))
    limit = 2 << 30
    used = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(worker, resource.RLIMIT_AS, (used + limit, used + limit))
    whole = Type("f32", (600, 600))
    greedy = Action("aten.repeat", (Var(0), [100, 100]), {}, (Type("f32", (60000, 60000)),))
    total = Action("aten.sum", (Var(1),), {}, (Type("f32", ()),))  # what is asked for is small: no quota says no
    plan = PlanFile(Graph((whole,), (greedy, total), Var(2)), {}, About("greedy", ("greedy.py:1", "greedy.py:2")))
    out = rig.device.send_plan(plan)(rig.device.find("x"))
    with pytest.raises(FedqError) as caught:
        out.get(timeout_s=120)
    assert caught.value.fields["kind"] == "out_of_memory"
    again = rig.device.send_plan(slow_plan(2))(rig.device.find("x"))
    assert torch.equal(again.get(timeout_s=60), torch.eye(600))


def test_independent_calls_of_one_requester_run_beside_each_other_and_chains_are_right(rig):
    gate.set_workers(rig.config, 3)
    rig.start()
    plan, x = rig.device.send_plan(slow_plan(150)), rig.device.find("x")
    with rig.device.batch():
        outs = [plan(x) for _ in range(6)]
        last = plan(plan(outs[0]))
    wait_until(lambda: len(children(daemon.pid(rig.config))) == 3)
    for out in [*outs, last]:
        assert torch.equal(out.copy(timeout_s=120), torch.eye(600))


def other(rig, name: str) -> Client:
    """Another requester at the same device."""
    config = dataclasses.replace(rig.config, home=rig.root / name, user=name)
    key = keys.load_or_create(config.home / "key")
    made = home.init(config, rig.name, requester=home.Requester(f"{name}-{key.fingerprint}", key.public.hex()))
    trust_device(config, rig.name, made.key.public.hex())
    made.poke()
    made.close()
    return Client(config)


@more
def test_five_thousand_messages_of_one_hardly_delay_another(tmp_path):
    (tmp_path / "fedq.toml").write_text('durability = "none"\n')
    with Rig(tmp_path) as rig:
        flood(rig)


def flood(rig) -> None:
    bob = other(rig, "bob")
    device = bob.device(rig.name)
    pid = rig.start()

    def latency() -> float:
        id_ = bob.new_id()
        start = time.monotonic()
        plan = SendPlan(DOUBLE.id, DOUBLE.graph, (), DOUBLE.about)
        value = bob.new_id()
        run = [Put(value, "t0"), plan, Run(DOUBLE.id, (Ref(value),), {}, (id_,)), Get(id_, (id_,))]
        device.submit(run, {"t0": f32(1)})
        fetch.outcomes([PointerTensor(device, id_, None)], 60)
        return time.monotonic() - start

    latency()
    alone = statistics.median(latency() for _ in range(20))
    plan, x = rig.device.send_plan(DOUBLE), rig.device.send(torch.ones(3))
    os.kill(pid, signal.SIGSTOP)  # else it has done the first before the last is sent
    ids = [plan.run([x], release=True)[0] for _ in range(5000)]
    os.kill(pid, signal.SIGCONT)
    beside = []
    while not rig.device.pair.carrier.path(f"out/{ids[-1].id}.safetensors").exists() and len(beside) < 200:
        beside.append(latency())
    if beside:
        print(f"latency alone {alone * 1e3:.1f} ms, beside 5,000 messages {statistics.median(beside) * 1e3:.1f} ms")
    assert len(beside) >= 5, "the flood was done before the other requester had its turns"
    assert torch.equal(ids[-1].copy(timeout_s=120), torch.full((3,), 2.0))
    bob.close()


@more
def test_thirty_roots_on_one_machine_at_once(tmp_path):
    rigs = [Rig(tmp_path / str(n)) for n in range(30)]
    try:
        for rig in rigs:
            gate.mark(rig.config, rig.name, up=True)
            rig.pid = daemon.start(rig.config)
        assert len({rig.pid for rig in rigs}) == 30
        values = [rig.device.send(torch.full((2,), float(n))) for n, rig in enumerate(rigs)]
        for n, value in enumerate(values):
            assert value.copy(timeout_s=60).tolist() == [n, n]
    finally:
        for rig in rigs:
            rig.__exit__()


# -- two users of one machine ----------------------------------------------------------------

BEGIN = "-- as another user --"
DEVICE_UID, REQUESTER_UID, GROUP = 65501, 65502, "games"


@pytest.fixture
def shared():
    """A folder that every user of this machine reaches; pytest's own are closed."""
    folder = Path(tempfile.mkdtemp(prefix="fedq-shared-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


BECOME = """
import grp, importlib, os, pkgutil, sys
import numpy, sqlite3, tempfile, typer, uuid, zoneinfo, fedq
WITHOUT_TORCH = ("cli", "device", "client.session", "client.standing", "client.again", "plan.arrays", "plan.file")
for name in [f"fedq.{m}" for m in WITHOUT_TORCH]:
    found = importlib.import_module(name)
    for more in pkgutil.iter_modules(getattr(found, "__path__", ())):
        if more.name not in ("worker", "folding"):
            importlib.import_module(f"{name}.{more.name}")
typer.main.get_command(sys.modules["fedq.cli.app"].app).main(["whoami", "--help"], standalone_mode=False)
os.setgroups([grp.getgrnam("games").gr_gid])
os.setuid(int(sys.argv.pop(1)))
os.umask(0o077)
print("-- as another user --", flush=True)
"""
"""Python itself may lie where only root can read, so all is imported before."""


def as_user(uid: int, root, program: str, *words: str) -> str:
    """Run Python as another user in the group, with a umask that gives others nothing."""
    own = {"FEDQ_HOME": str(root / f"home{uid}"), "FEDQ_USER": f"u{uid}", "HOME": str(root / f"home{uid}")}
    done = subprocess.run(
        [sys.executable, "-c", BECOME + textwrap.dedent(program), str(uid), *words],
        env={**os.environ, **own, "FEDQ_DURABILITY": "none"}, cwd=root, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.partition(BEGIN)[2].strip()


CLI = "from fedq.cli import main; main()"


@more
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be two other users")
def test_two_users_of_one_machine_share_a_queue_by_their_group(shared):
    for name, uid in (("queue", DEVICE_UID), ("devices", DEVICE_UID)):
        (shared / name).mkdir()
        os.chown(shared / name, uid, -1)
    for uid in (DEVICE_UID, REQUESTER_UID):
        (shared / f"home{uid}").mkdir()
        os.chown(shared / f"home{uid}", uid, -1)
        (shared / f"home{uid}").chmod(0o700)
    who, key = as_user(REQUESTER_UID, shared, CLI, "whoami").split()
    words = ("device", "init", "device_1", "--requester", who, "--key", key, "--group", GROUP, "--json")
    import json

    made = json.loads(as_user(DEVICE_UID, shared, CLI, *words))["data"]
    pair = shared / "queue" / "device_1" / who
    assert [oct((pair / f).stat().st_mode)[-4:] for f in ("", "in", "out")] == ["2770"] * 3
    as_user(REQUESTER_UID, shared, CLI, "device", "trust", "device_1", made["key"])
    send = """
        import struct
        from fedq.client.session import here
        from fedq.plan.codec import RawTensor
        d = here().device("device_1")
        p = d.send(RawTensor("f32", (2,), struct.pack("<2f", 1, 2)))
        d.ask([p])
        print(p.id)
    """
    id_ = as_user(REQUESTER_UID, shared, send)
    (message, *_) = (pair / "in").iterdir()
    assert (oct(message.stat().st_mode)[-3:], message.stat().st_uid) == ("660", REQUESTER_UID)
    as_user(DEVICE_UID, shared, CLI, "device", "step", "device_1")
    assert list((pair / "in").iterdir()) == []
    assert "[1., 2.]" in as_user(REQUESTER_UID, shared, CLI, "get", f"device_1:{id_}", "--timeout", "10s")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
def test_a_device_that_may_not_delete_what_was_sent_works_all_the_same(shared):
    with Rig(shared / "r") as rig:
        value = rig.device.send(torch.ones(2))
        rig.device.ask([value])
        for path, _, files in os.walk(rig.root):
            for name in ("", *files):
                os.chown(os.path.join(path, name), DEVICE_UID, -1)
        folder = rig.device.pair.carrier.path("in")
        os.chown(folder, 0, 0)
        folder.chmod(0o755)
        for name in os.listdir(folder):
            os.chown(folder / name, 0, 0)
            (folder / name).chmod(0o644)
        serve = """
            import sys
            import dataclasses
            from pathlib import Path
            from fedq import config as configs
            from fedq.device import gate
            config = configs.find(cwd=Path(sys.argv[1]), environ={})
            for _ in range(2):
                gate.serve_waiting(config, ["device_1"])
        """
        as_user(DEVICE_UID, rig.root, serve, str(rig.root))
        assert len(os.listdir(folder)) == 2
        assert len(os.listdir(rig.device.pair.carrier.path("out"))) == 1
        os.chown(rig.config.devices / ".gate", 0, 0)  # else the rig may not look whether a process serves here
