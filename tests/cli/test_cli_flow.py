"""A user's day at the terminal: real commands, real devices."""

import numpy as np
import pytest
import safetensors.numpy

DOUBLED = "tensor([[2., 5.],\n        [6., 8.]])"


def test_a_result_is_named_at_once_and_fetched_from_another_process(town):
    ref = town.out("run", "double_abs.safetensors", "device_1:input_data")
    device, _, id_ = ref.partition(":")
    assert (device, len(id_)) == ("device_1", 32)
    assert town.out("get", ref) == DOUBLED
    assert town.out("get", ref) == DOUBLED


def test_a_prefix_of_six_digits_is_enough(town):
    ref = town.out("run", "double_abs.safetensors", "device_1:#input_data")
    assert town.out("get", ref[: len("device_1:") + 24]) == DOUBLED


def test_a_plan_that_is_there_is_run_by_name_or_id(town):
    device, _, id_ = town.out("send", "double_abs.safetensors", "device_1").partition(":")
    assert device == "device_1"
    assert town.out("get", town.out("run", "double_abs", "device_1:input_data")) == DOUBLED
    assert town.out("get", town.out("run", id_, "device_1:input_data")) == DOUBLED
    assert town.out("get", town.out("run", id_[:12], "device_1:input_data")) == DOUBLED
    assert town.out("show", "device_1:double_abs") == town.out("show", "double_abs.safetensors")


def test_a_result_is_an_argument_and_an_argument_can_come_along(town):
    first = town.out("run", "double_abs.safetensors", "device_1:input_data", "--keep")
    second = town.out("run", "double_abs.safetensors", first)
    assert town.out("get", second) == "tensor([[ 4., 10.],\n        [12., 16.]])"
    np.save(town.root / "mine.npy", np.array([[-1.0]], "f4"))
    assert (
        town.out("get", town.out("run", "double_abs.safetensors", "mine.npy", "--on", "device_2").split()[0])
        == "tensor([[2.]])"
    )


def test_a_run_on_many_devices_prints_a_line_each_and_a_run_id(town):
    one, two, run = town.out("run", "double_abs.safetensors", "input_data", "--on", "device_1,device_2").split("\n")
    assert (one[:9], two[:9], len(run)) == ("device_1:", "device_2:", 32)
    assert town.out("get", run) == f"{one}\n{DOUBLED}\n{two}\n{DOUBLED.replace('2., 5.', '4., 5.')}"
    town("get", run, "-o", "both.safetensors")
    assert safetensors.numpy.load_file(town.root / "both.safetensors")[two].tolist() == [[4, 5], [6, 8]]


def test_several_outputs_are_several_references(town):
    product, total = town.out("run", "scaled.safetensors", "device_1:input_data").split()
    assert town.out("get", total) == "tensor(-9.)"
    town("get", product, total, "-o", "two.npz")
    assert np.load(town.root / "two.npz")[product].tolist() == [[1, -5], [3, -8]]


@pytest.mark.parametrize("suffix", ["npy", "csv", "safetensors", "npz"])
def test_a_value_is_written_as_the_suffix_says(suffix, town):
    ref = town.out("run", "double_abs.safetensors", "device_1:input_data")
    assert town.out("get", ref, "-o", f"out.{suffix}") == f"out.{suffix}"
    assert (town.root / f"out.{suffix}").stat().st_size > 0
    if suffix == "csv":
        assert (town.root / "out.csv").read_text() == "2.0,5.0\n6.0,8.0\n"


def test_waiting_in_the_same_call_is_for_cron_and_a_token_makes_it_the_same_request(town):
    words = (
        "run",
        "double_abs.safetensors",
        "device_1:input_data",
        "--wait",
        "--timeout",
        "1min",
        "--token",
        "nightly",
    )
    assert town.out(*words) == DOUBLED
    first, second = (town(*words, "-o", "n.npy").stderr for _ in range(2))
    assert first == second
    assert np.load(town.root / "n.npy").tolist() == [[2, 5], [6, 8]]
    other = town("run", "scaled.safetensors", "device_1:input_data", "--token", "nightly", code=2)
    assert "nightly" in other.stderr


def test_a_reviewed_result_waits_for_the_owner_and_then_comes(town):
    ref = town.out("run", "double_abs.safetensors", "device_1:private")
    held = town("get", ref, "--timeout", "3s", code=6)
    assert held.stdout == ""
    assert f"fedq review {ref}" in held.stderr
    assert town.json("device", "ls")[0]["held"] == 1
    assert town.out("approve", ref).startswith(f"{ref}  approved for ann-")
    assert town.out("get", ref, "--timeout", "30s") == DOUBLED


def test_what_the_owner_denies_does_not_come(town):
    ref = town.out("run", "double_abs.safetensors", "device_1:private")
    town("get", ref, "--timeout", "2s", code=6)
    town("deny", ref)
    assert "declined" in town("get", ref, "--timeout", "30s", code=5).stderr


def test_a_run_that_failed_there_says_where_and_others_go_on(town):
    bad = town.out("run", "broken.safetensors", "device_1:input_data")
    good = town.out("run", "double_abs.safetensors", "device_1:input_data")
    both = town("get", bad, good, code=8)
    assert both.stdout.strip() == f"{good}\n{DOUBLED}"
    assert "tour.py:14" in both.stderr
    assert "2.5" not in both.stderr


def test_json_says_the_same_as_text(town):
    made = town.json("run", "double_abs.safetensors", "input_data", "--on", "device_1")
    (result,) = made["results"]
    ref = f"{result['device']}:{result['id']}"
    (got,) = town.json("get", ref)
    assert (got["device"], got["type"], got["value"]) == ("device_1", "f32[2,2]", [[2.0, 5.0], [6.0, 8.0]])
    assert town.json("get", made["run"]) == [got]
    assert [d["state"] for d in town.json("device", "ls")] == ["up", "up"]
    assert {v["tag"]: v["release"] for v in town.json("data", "ls", "device_1")} == {
        "input_data": "open",
        "private": "review",
    }


def test_up_again_is_a_no_op(town):
    first, second = (town.json("device", "up")["pid"] for _ in range(2))
    assert first == second


def test_data_is_replaced_and_removed(town):
    rows = town.file("more.csv", "1\n")
    town("data", "add", "device_2", rows, "--tag", "more", "--release", "open")
    assert "--replace" in town("data", "add", "device_2", rows, "--tag", "more", code=2).stderr
    town("data", "add", "device_2", rows, "--tag", "more", "--replace")
    assert town.out("search", "device_2", "more").count("\n") == 0
    town("data", "rm", "device_2", "more")
    assert town.out("search", "device_2", "more") == ""


def test_values_are_found_and_asked_for_before_the_device_was_ever_started(shell, plans):
    shell("device", "init", "ward")
    shell("data", "add", "ward", shell.file("t.csv", "1\n-2\n"), "--tag", "t", "--release", "open")
    assert shell.out("search", "ward").split()[1:] == ["t", "i64[2,1]"]
    shell.plan("double_abs.safetensors", plans["double_abs"])
    np.save(shell.root / "x.npy", np.array([[1.0]], "f4"))
    ref = shell.out("run", "double_abs.safetensors", "x.npy", "--on", "ward").split()[0]
    waited = shell("get", ref, "--timeout", "1500ms", code=7)
    assert "never started" in waited.stderr
    shell("device", "step", "ward")
    assert shell.out("get", ref) == "tensor([[2.]])"


def test_get_says_for_whom_it_waits_and_prints_the_value_when_it_comes(shell, plans):
    shell("device", "init", "ward")
    shell.plan("double_abs.safetensors", plans["double_abs"])
    np.save(shell.root / "x.npy", np.array([[1.0]], "f4"))
    ref = shell.out("run", "double_abs.safetensors", "x.npy", "--on", "ward").split()[0]
    waiting = shell.start("get", ref)
    assert waiting.stderr.readline() == "waiting for ward: ward was never started\n"
    shell("device", "up")
    try:
        assert waiting.communicate(timeout=60)[0] == "tensor([[2.]])\n"
    finally:
        shell("device", "down")
    again = shell.out("run", "double_abs.safetensors", "x.npy", "--on", "ward").split()[0]
    assert "ward is not running, last seen 20" in shell("get", again, "--timeout", "1s", code=7).stderr


def test_foreground_serves_until_interrupted(shell):
    shell("device", "init", "ward")
    process = shell.start("device", "up", "--foreground")
    assert "served" in process.stderr.readline()
    process.send_signal(2)
    process.communicate(timeout=60)
    assert shell.json("device", "ls")[0]["state"] == "down"


def test_devices_on_other_machines_are_listed_as_their_heartbeats_say(town):
    elsewhere = town.root / "elsewhere"
    rows = town.json("device", "ls", "--devices", str(elsewhere))
    assert [(r["device"], r["state"]) for r in rows] == [("device_1", "up"), ("device_2", "up")]
