"""Every dtype and layout: recorded, written, sent, replayed, fetched; what a file cannot hold is refused."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

import fedq as fq
from fedq.errors import CannotRecord, FedqError
from fedq.plan.plan import Plan, func2plan
from fedq.plan.tensors import DTYPES, to_raw
from tests.plan.test_params import again

LARGE = 1 << 30


@pytest.fixture(scope="module")
def device():
    return fq.VirtualWorker("device_1", {})


def values(dtype, shape):
    count = torch.Size(shape).numel()
    if dtype == torch.bool:
        return (torch.arange(count) % 2 == 0).reshape(shape)
    made = torch.arange(count).reshape(shape)
    return torch.complex(made.float(), -made.float()) if dtype == torch.complex64 else made.to(dtype)


def same(a, b):
    """Whether dtype, shape and every byte are the same."""
    return a.dtype == b.dtype and a.shape == b.shape and to_raw(a).data == to_raw(b).data


def moved(x):
    return x.reshape(-1), x.clone()


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_a_plan_takes_holds_and_gives_every_dtype(device, name, shape):
    x = values(DTYPES[name], shape)
    plan = func2plan(state=(x,))(lambda x, state: (*moved(x), state.read()[0])).build(x)
    assert plan.graph.inputs[0].dtype == name
    there = plan.send(device)
    out = fq.gather(there(x))
    assert all(map(same, out, (*moved(x), x)))
    assert all(map(same, again(plan)(x), (*moved(x), x)))


@pytest.mark.parametrize("name", DTYPES)
def test_casts_to_every_dtype_replay_as_eager(name):
    plan = again(Plan(lambda x: x.to(DTYPES[name])).build(torch.ones(3)))
    x = torch.tensor([0.0, 1.5, 7.0])
    assert same(plan(x), x.to(DTYPES[name]))


ARITHMETIC = [n for n in DTYPES if not n.startswith("f8") and n not in ("bool", "u16", "u32", "u64")]


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_of_every_dtype_that_has_it_replays_as_eager(name):
    x = values(DTYPES[name], (4,))
    plan = again(Plan(lambda x: (x + x, x * 2, x.sum(), x == x)).build(x))
    assert all(map(same, plan(x), (x + x, x * 2, x.sum(), x == x)))


def test_tensors_that_are_not_contiguous_travel_and_replay(device):
    plan = Plan(lambda x: (x.view(-1) if x.is_contiguous() else x.reshape(-1), x.t() * 2)).build(torch.ones(2, 3))
    there = plan.send(device)
    base = torch.arange(24.0)
    for x in (base.reshape(4, 6).t(), base.reshape(4, 6)[::2, ::3], base[:1].expand(3, 2), base.reshape(6, 4)[:, 1:3]):
        flat, turned = fq.gather(there(x))
        assert torch.equal(flat, x.reshape(-1)) and torch.equal(turned, x.t() * 2)
        sent = device.send(x).get()
        assert torch.equal(sent, x) and sent.is_contiguous()


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex32])
def test_a_dtype_that_files_can_not_hold_is_refused_at_build_with_its_line(dtype):
    def widened(x):
        return torch.real(x.to(dtype))  # here

    line = widened.__code__.co_firstlineno + 1
    with pytest.raises(CannotRecord, match=rf"test_dtypes\.py:{line}") as caught:
        Plan(widened).build(torch.ones(3))
    assert "c64" in caught.value.hint


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex32])
def test_such_a_tensor_is_refused_as_argument_state_and_value(device, dtype):
    x = torch.zeros(3, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    for use in (
        lambda: Plan(lambda x: x * 1).build(x),
        lambda: func2plan([(3,)], state=(x,))(lambda y, state: y),
        lambda: device.send(x),
    ):
        with pytest.raises(FedqError, match=name) as caught:
            use()
        assert "c64" in caught.value.hint


def _room():
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free > 8 << 30 and shutil.disk_usage("/tmp").free > 16 << 30


@pytest.mark.skipif(not os.environ.get("FEDQ_LARGE"), reason="FEDQ_LARGE=1 asks for it: 1 GB through a device")
@pytest.mark.skipif(not _room(), reason="less than 8 GB of memory or 16 GB of disk are free")
def test_a_gigabyte_is_computed_with_and_comes_back(tmp_path):
    device = fq.VirtualWorker("device_1", {"large": torch.ones(LARGE // 4)}, root=tmp_path)
    there = Plan(lambda x: (x + 1, x.sum(dtype=torch.float64))).build(torch.ones(3)).send(device)
    more, total = fq.gather(there(device.find("large")))
    assert total == LARGE // 4 and more.numel() == LARGE // 4 and bool((more == 2).all())
