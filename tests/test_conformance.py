"""One suite, two devices: a VirtualWorker in this process and a daemon with its worker process.

Both are driven through the same calls, with the same keys, ids and clock; what they leave in the
pair must be the same bytes. The daemon's gate must have no libtorch mapped.
"""

from __future__ import annotations

import itertools
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import fedq as fq
from fedq import fs, ids
from fedq.client.pointer_plans import PointerPlan
from fedq.client.session import Client
from fedq.device import daemon, gate, review
from fedq.device.home import Home
from fedq.errors import Failed, NotAllowed, SpecMismatch, TimedOut, WaitingForApproval
from fedq.local import VirtualWorker, introduce
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Action, Graph, Type, Var
from fedq.plan.tensors import to_raw
from fedq.queue.message import Ref, Run, SendPlan
from tests.rig import config_of, wait_until

NOW = float(int(time.time()))
DATA = {"input_data": torch.tensor([-1.0, 2.0]), "counts": torch.tensor([[1, 2], [3, 4]])}
VECTOR = Type("f32", ("n",))


def counter(start: int):
    count = itertools.count(start)
    return lambda: ids.derive("test", next(count))


class Subject:
    """A device under test: what a requester needs of it, and a way to let it work."""

    def __init__(self, kind: str, root: Path, *, release: str = "open", clock=lambda: NOW) -> None:
        self.kind, self.root, self.clock = kind, root, clock
        for name, seed in (("home", "aa"), ("devices/device_1", "bb")):
            fs.make_dir(root / name)
            fs.put(root / name / "key", [seed.encode() * 32 + b"\n"])
        self.config = config_of(root)
        if kind == "virtual":
            self.device = VirtualWorker("device_1", DATA, release=release, root=root, clock=clock, new_id=counter(0))
        else:
            self._start_daemon(release)

    def _start_daemon(self, release: str) -> None:
        new_id = counter(0)
        introduce(self.config, "device_1", new_id=new_id)
        client = Client(self.config, now=self.clock, new_id=new_id)
        home = Home(self.config.devices / "device_1", self.config)
        for tag, tensor in DATA.items():
            home.add(to_raw(tensor), tag=tag, release=release, id=new_id())
        home.close()
        self.device = client.device("device_1")

    def serve(self) -> None:
        if self.kind == "daemon":
            gate.mark(self.config, "device_1", up=True)
            daemon.start(self.config)

    def approve(self, id_: str) -> None:
        if self.kind == "virtual":
            return self.device.approve(id_)
        home = Home(self.config.devices / "device_1", self.config)
        review.decide(home, [review.find(home, id_)], "approve")
        return home.close()

    def files(self, folder: str) -> dict[str, bytes]:
        at = self.device.pair.carrier.path(folder)
        return {name: (at / name).read_bytes() for name in self.device.pair.carrier.list(folder)}

    def close(self) -> None:
        if self.kind == "daemon":
            daemon.stop(self.config)
        self.device.client.close()


@pytest.fixture(autouse=True)
def alice(monkeypatch):
    monkeypatch.setenv("FEDQ_USER", "alice")


@pytest.fixture(params=["virtual", "daemon"])
def subject(request, tmp_path):
    made = Subject(request.param, tmp_path)
    yield made
    made.close()


def double_abs() -> fq.Plan:
    plan = fq.func2plan()(_double_abs)
    plan.build(torch.tensor([1.0, -2.0]))
    return plan


def _double_abs(x):
    x = x + x
    return torch.abs(x)


def failing() -> PlanFile:
    """index_select out of range: passes every check, fails where it runs."""
    pick = Action("aten.index_select", (Var(0), 0, Var(1)), {}, (VECTOR,))
    graph = Graph((VECTOR, Type("i64", ("m",))), (pick,), Var(2), sizes={"m": 1, "n": 1})
    return PlanFile(graph, {}, About("pick", ("pick.py:7",)))


def test_a_result_is_fetched_by_the_id_chosen_before_sending(subject):
    out = double_abs().send(subject.device)(subject.device.find("input_data"))
    assert ids.is_id(out.id)
    subject.serve()
    assert torch.equal(out.get(timeout_s=60), torch.tensor([2.0, 4.0]))


def test_a_result_may_be_used_before_it_exists(subject):
    plan = double_abs().send(subject.device)
    again = plan(plan(subject.device.find("input_data")))
    subject.serve()
    assert torch.equal(again.get(timeout_s=60), torch.tensor([4.0, 8.0]))


def test_a_tensor_of_ones_own_comes_back_as_it_was(subject):
    pointer = subject.device.send(torch.arange(6).reshape(2, 3), tag="mine")
    subject.serve()
    assert torch.equal(pointer.copy(timeout_s=60), torch.arange(6).reshape(2, 3))
    assert subject.device.find("mine").id == pointer.id


def test_a_batch_is_one_message(subject):
    device = subject.device
    with device.batch():
        plan = double_abs().send(device)
        outs = [plan(device.find("input_data")) for _ in range(20)]
    assert len(subject.files("in")) == 1
    subject.serve()
    for got in fq.gather(outs, timeout_s=60):
        assert torch.equal(got, torch.tensor([2.0, 4.0]))


def test_a_failed_call_names_action_and_line_and_harms_no_other(subject):
    device = subject.device
    wrong = device.send_plan(failing())(torch.ones(2), torch.tensor([9]))
    fine = double_abs().send(device)(device.find("input_data"))
    subject.serve()
    with pytest.raises(Failed, match=r"'pick'.*action 0 aten.index_select.*pick.py:7") as caught:
        wrong.get(timeout_s=60)
    assert "9" not in str(caught.value)
    assert torch.equal(fine.get(timeout_s=60), torch.tensor([2.0, 4.0]))


def test_what_depends_on_a_failed_call_tells_the_first_cause(subject):
    device = subject.device
    wrong = device.send_plan(failing())(torch.ones(2), torch.tensor([9]))
    after = double_abs().send(device)(wrong)
    subject.serve()
    with pytest.raises(Failed, match=r"pick.py:7"):
        after.get(timeout_s=60)


def test_an_op_that_is_not_allowed_is_refused_when_sent_and_by_the_device_with_its_line(subject):
    read = Action("aten.from_file", ("/etc/passwd",), {}, (VECTOR,))
    plan = PlanFile(Graph((VECTOR,), (read,), Var(1), sizes={"n": 2}), {}, About("mean", ("mean.py:7",)))
    x = subject.device.find("input_data")
    with pytest.raises(NotAllowed, match=r"aten.from_file"):
        subject.device.send_plan(plan)
    subject.device.submit([SendPlan(plan.id, plan.graph, (), plan.about)])
    out = PointerPlan(subject.device, plan.id, plan.graph, plan.about)(x)
    subject.serve()
    with pytest.raises(NotAllowed, match=r"aten.from_file.*mean.py:7"):
        out.get(timeout_s=60)


def test_arguments_that_do_not_fit_are_refused_before_they_are_sent(subject):
    plan = double_abs().send(subject.device)
    before = subject.files("in")
    with pytest.raises(SpecMismatch, match="input 0"):
        plan(subject.device.find("counts"))
    with pytest.raises(SpecMismatch, match="requires 1 argument, received 2"):
        plan(1, 2)
    assert subject.files("in") == before


def test_a_run_takes_its_inputs_in_order_and_not_by_name(subject):
    plan, x, id_ = double_abs().send(subject.device), subject.device.find("input_data"), "ab" * 16
    subject.device.submit([Run(plan.id, (), {"x": Ref(x.id)}, (id_,))], types={id_: None})
    subject.serve()
    with pytest.raises(SpecMismatch, match="in order, not by name: 'x'"):
        subject.device.find(id_).get(timeout_s=60)


def is_held(out):
    try:
        return out.copy(timeout_s=0.2)
    except WaitingForApproval as error:
        return bool(error.hint)
    except TimedOut:
        return False


def test_a_reviewed_result_waits_for_its_owner(tmp_path):
    for kind in ("virtual", "daemon"):
        subject = Subject(kind, tmp_path / kind, release="review", clock=fs.clock)
        try:
            out = double_abs().send(subject.device)(subject.device.find("input_data"))
            subject.serve()
            wait_until(partial(is_held, out))
            subject.approve(next(iter(subject.device.ask([out]).values())))
            assert torch.equal(out.copy(timeout_s=60), torch.tensor([2.0, 4.0]))
        finally:
            subject.close()


def scenario(subject: Subject) -> list[fq.PointerTensor]:
    """Everything a requester does in one day, sent before the device is first served."""
    device = subject.device
    plan = double_abs().send(device)
    x = device.find("input_data")
    out = plan(x)
    mine = device.send(torch.tensor([[1.5, -2.5]]), tag="mine")
    with device.batch(token="nightly"):
        chained = plan(out)
        wrong = device.send_plan(failing())(torch.ones(2), torch.tensor([9]))
    device.ask([out, chained, wrong, mine])
    device.flush()
    return [chained, wrong]


def test_both_leave_the_same_bytes(tmp_path):
    left = {}
    for kind in ("virtual", "daemon"):
        subject = Subject(kind, tmp_path / kind)
        try:
            chained, wrong = scenario(subject)
            messages = subject.files("in")
            subject.serve()
            assert torch.equal(chained.copy(timeout_s=60), torch.tensor([4.0, 8.0]))
            with pytest.raises(Failed):
                wrong.copy(timeout_s=60)
            left[kind] = (messages, subject.files("out"))
        finally:
            subject.close()
    assert left["virtual"][0] == left["daemon"][0]
    assert left["virtual"][1] == left["daemon"][1]
    assert len(left["virtual"][1]) >= 1


def test_random_numbers_are_the_same_at_both_and_anew_for_each_call(tmp_path):
    drawn = {}
    for kind in ("virtual", "daemon"):
        subject = Subject(kind, tmp_path / kind)
        try:
            noisy = fq.func2plan()(_noisy).build(torch.ones(4)).send(subject.device)
            outs = [noisy(torch.ones(4)) for _ in range(2)]
            subject.serve()
            drawn[kind] = torch.stack([out.get(timeout_s=60) for out in outs])
        finally:
            subject.close()
    assert torch.equal(drawn["virtual"], drawn["daemon"])
    assert not torch.equal(drawn["daemon"][0], drawn["daemon"][1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_gate_that_has_replayed_has_no_torch_mapped(tmp_path):
    subject = Subject("daemon", tmp_path)
    try:
        subject.serve()
        out = double_abs().send(subject.device)(subject.device.find("input_data"))
        assert torch.equal(out.get(timeout_s=60), torch.tensor([2.0, 4.0]))
        maps = Path(f"/proc/{daemon.pid(subject.config)}/maps").read_text()
        assert "python" in maps
        assert "libtorch_" not in maps
    finally:
        subject.close()


def test_a_virtual_worker_leaves_torchs_flags_seeds_and_modes_alone(tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()
    threads = torch.get_num_threads()
    worker = VirtualWorker("device_1", DATA, root=tmp_path)
    plan = fq.func2plan()(_noisy)
    plan.build(torch.ones(4))
    plan.send(worker)(torch.ones(4)).get(timeout_s=60)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()) == before[1:]
    assert torch.get_num_threads() == threads
    worker.client.close()


def _noisy(x):
    return x + torch.rand_like(x)
