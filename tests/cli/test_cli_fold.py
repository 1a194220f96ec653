"""`fedq fold` at the terminal: real commands, a real device."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import fedq as fq


def totals():
    def totals(c, x, rate):
        return c + x.sum(0) * rate, x.sum()

    return fq.func2plan()(totals).build(torch.zeros(2), torch.ones(2, 2), torch.tensor(1.0))


def test_a_fold_is_sent_and_fetched_as_a_run_is(town):
    town.plan("totals.safetensors", totals().file())
    np.save(town.root / "zero.npy", np.zeros(2, "f4"))
    np.save(town.root / "rows.npy", np.arange(10, dtype="f4").reshape(5, 2))
    np.save(town.root / "rate.npy", np.array(2.0, "f4"))
    words = ("fold", "totals.safetensors", "--carry", "zero.npy", "--data", "rows.npy", "--arg", "rate=rate.npy",
             "--on", "device_1", "--batch-size", "2", "--epochs", "2")  # fmt: skip
    refs = town.out(*words, "--drop-last").splitlines()[0].split()
    assert [r[:9] for r in refs] == ["device_1:"] * 2
    assert town.out("get", refs[0]) == "tensor([48., 64.])"
    assert town.out("get", refs[1]) == "tensor([ 6., 22.,  6., 22.])"
    again = town.json(*words, "--shuffle", "--drop-last", "--token", "mine")["results"]
    assert again == town.json(*words, "--shuffle", "--drop-last", "--token", "mine")["results"]
    assert [r["type"] for r in again] == ["f32[2]", "f32[4]"]
    refs = town.out(*words, "--metrics", "mean").splitlines()[0].split()
    assert town.out("get", refs[1]) == "tensor(14.6000)"  # of 6, 22 and 17, by their rows
    assert town.json(*words, "--metrics", "average", code=2)["error_code"] == "usage"


def test_words_that_can_not_be_are_refused_before_anything_is_sent(town):
    town.plan("totals.safetensors", totals().file())
    np.save(town.root / "zero.npy", np.zeros(2, "f4"))
    np.save(town.root / "rows.npy", np.ones((5, 2), "f4"))
    np.save(town.root / "rate.npy", np.array(2.0, "f4"))
    words = ("fold", "totals.safetensors", "--carry", "zero.npy", "--data", "rows.npy", "--arg", "rate=rate.npy",
             "--on", "device_1", "--batch-size", "2")  # fmt: skip
    before = [row["id"] for row in town.json("ls")]
    for more, code, said in (
        (("--wait", "--timeout", "soon"), 2, "'soon' is not a duration"),
        (("--wait", "-o", "out.xyz"), 2, "can not write .xyz"),
        (("--wait", "-o", "nowhere/out.npz"), 3, "no folder"),
        (("--arg", "rate=rate.npy"), 2, "'rate' is given twice"),
        (("--data", "rows.npy"), 4, "'rate' is given twice"),
    ):
        assert said in town.json(*words, *more, code=code)["message"]
    assert [row["id"] for row in town.json("ls")] == before


def test_a_fold_that_stops_says_at_which_step(town):
    town.plan("totals.safetensors", totals().file())
    np.save(town.root / "zero.npy", np.zeros(2, "f4"))
    np.save(town.root / "rows.npy", np.array([[1, 2], [3, 4], [5, np.nan]], "f4"))
    np.save(town.root / "rate.npy", np.array(2.0, "f4"))
    words = ("fold", "totals.safetensors", "--carry", "zero.npy", "--data", "rows.npy", "--arg", "rate=rate.npy",
             "--on", "device_1", "--batch-size", "1")  # fmt: skip
    refs = town.out(*words).splitlines()[0].split()
    assert town.out("get", refs[0]) == "tensor([ 8., 12.])"
    said = town.json("get", refs[1], code=8)
    assert said["error_code"] == "not_finite" and "in step 3 of 3" in said["message"]
    refs = town.out(*words, "--nonfinite", "keep").splitlines()[0].split()
    assert town.out("get", refs[0]) == "tensor([18., nan])"


def test_a_fold_that_does_not_fit_is_refused_at_once(town):
    town.plan("totals.safetensors", totals().file())
    np.save(town.root / "zero.npy", np.zeros(3, "f4"))
    words = ("fold", "totals.safetensors", "--carry", "zero.npy", "--data", "input_data", "--arg", "rate=zero.npy",
             "--on", "device_1", "--batch-size")  # fmt: skip
    assert town.json(*words, "2", code=4)["error_code"] == "spec_mismatch"
    assert town.json(*words, "0", code=2)["error_code"] == "usage"


def training(given=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    return fq.training_plan(model, F.cross_entropy, optimizer, torch.randn(6, 3), torch.arange(6) % 4, given=given)


DATA = ("--data", "tx.npy,ty.npy", "--on", "device_1", "--batch-size", "4")


def data(town):
    np.save(town.root / "tx.npy", np.random.default_rng(0).normal(size=(12, 3)).astype("f4"))
    np.save(town.root / "ty.npy", np.arange(12) % 4)


def test_a_training_plan_without_its_carry_is_told_how_to_make_one_and_that_can_be_pasted(town):
    plan = training()
    town.plan("train.safetensors", plan.file())
    data(town)
    for words in (
        ("fold", "train.safetensors", *DATA),
        ("run", "train.safetensors", "tx.npy", "ty.npy", "--on", "device_1"),
    ):
        said = town.json(*words, code=4)
        assert "carry['params']['1.weight']" in said["message"]
        assert "plan.save_carry('carry.safetensors')" in said["hint"] and "--carry carry.safetensors" in said["hint"]
    plan.save_carry(town.root / "carry.safetensors")
    words = ("fold", "train.safetensors", "--carry", "carry.safetensors", *DATA, "--wait", "-o", "out.npz")
    town(*words)
    carry = plan.carry()
    x, y = (torch.from_numpy(np.load(town.root / name)) for name in ("tx.npy", "ty.npy"))
    for at in range(0, 12, 4):
        carry, _ = plan(carry, x[at : at + 4], y[at : at + 4])
    with np.load(town.root / "out.npz") as came:
        found = [torch.from_numpy(came[name]) for name in came.files]
    wanted = [*carry["params"].values(), *carry["buffers"].values()]
    assert all(any(torch.equal(t, w) for t in found) for w in wanted)


def test_what_a_carry_file_lacks_or_has_too_much_is_named(town):
    plan = training()
    town.plan("train.safetensors", plan.file())
    data(town)
    other = training(given={"lr": None})
    town.plan("given.safetensors", other.file())
    plan.save_carry(town.root / "carry.safetensors")
    said = town.json("fold", "given.safetensors", "--carry", "carry.safetensors", *DATA, code=4)
    assert said["hint"] == "what the plan is given comes with each fold: --arg given.lr=0.1"
    town.json("fold", "given.safetensors", "--carry", "carry.safetensors", *DATA, "--arg", "given.lr=0.1", "--keep")
    model = nn.Sequential(nn.Linear(3, 4))
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    smaller = fq.training_plan(model, F.cross_entropy, sgd, torch.randn(6, 3), torch.arange(6) % 4)
    smaller.save_carry(town.root / "smaller.safetensors")
    said = town.json("fold", "train.safetensors", "--carry", "smaller.safetensors", *DATA, code=2)
    assert said["message"] == "smaller.safetensors lacks 'params.1.weight'"
    town.plan("smaller_plan.safetensors", smaller.file())
    said = town.json("fold", "smaller_plan.safetensors", "--carry", "carry.safetensors", *DATA, code=2)
    assert "has a tensor that the plan's carry has not: '" in said["message"]
    np.savez(town.root / "two.npz", a=np.zeros(2, "f4"), b=np.zeros(2, "f4"))
    town.plan("totals.safetensors", totals().file())
    said = town.json("fold", "totals.safetensors", "--carry", "two.npz", *DATA, code=2)
    assert said["message"] == "two.npz: 2 tensors, one is needed"
