"""`fedq fold` at the terminal: real commands, a real device."""

import numpy as np
import torch

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
