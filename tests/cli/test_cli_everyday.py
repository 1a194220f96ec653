"""What was sent and what becomes of it: ls, cancel, retry, gc, device status and step, with no daemon up."""

import re
import signal

import pytest

from tests.rig import wait_until

DOUBLED = "tensor([[2., 5.],\n        [6., 8.]])"


@pytest.fixture
def village(shell, plans):
    """One device that was never started."""
    for name, plan in plans.items():
        shell.plan(f"{name}.safetensors", plan)
    shell("device", "init", "device_1")
    shell("data", "add", "device_1", shell.file("d.csv", "1,-2.5\n3,-4\n"), "--tag", "input_data", "--release", "open")
    return shell


def run(shell, plan="double_abs"):
    return shell.out("run", f"{plan}.safetensors", "device_1:input_data")


def states(shell, *words):
    return {f"{row['device']}:{row['id']}": row["state"] for row in shell.json("ls", *words)}


def status(shell):
    (row,) = shell.json("device", "status", "device_1")
    return {name: row[name] for name in ("state", "waiting", "running", "failed")}


def test_what_was_sent_is_listed_with_its_state_and_why_it_waits(village):
    assert village("ls").stderr == "you sent nothing that is not done with\n"
    first, second = run(village), run(village, "broken")
    assert states(village) == {first: "in the queue", second: "in the queue"}
    newest, oldest = village.out("ls").split("\n")
    assert re.fullmatch(rf"{second}  in the queue  \d+ s  device_1 was never started", newest)
    assert oldest.startswith(first)
    assert village.out("ls", "-n", "1").startswith(second)
    village("device", "step", "device_1")
    assert set(states(village).values()) == {"answered"}
    village("get", first)
    village("get", second, code=8)
    assert states(village) == {first: "fetched", second: "failed"}


def test_a_status_counts_what_waits_before_the_first_start(village):
    assert status(village) == {"state": "never started", "waiting": 0, "running": 0, "failed": 0}
    run(village), run(village)
    assert status(village) == {"state": "never started", "waiting": 2, "running": 0, "failed": 0}
    village("device", "step", "device_1")
    assert status(village) == {"state": "down", "waiting": 0, "running": 0, "failed": 0}
    assert "no device 'nope'" in village("device", "status", "nope", code=3).stderr


def test_what_is_cancelled_is_not_done_and_can_be_sent_again(village):
    wanted, unwanted = run(village), run(village)
    device, _, message = village.out("cancel", unwanted).split()
    assert (device, len(message)) == ("device_1", 32)
    village("device", "step", "device_1")
    assert village.out("get", wanted) == DOUBLED
    assert "cancelled" in village("get", unwanted, code=4).stderr
    again = village.out("retry", unwanted)
    assert again != unwanted
    village("device", "step", "device_1")
    assert village.out("get", again) == DOUBLED
    assert states(village)[unwanted] == "failed"


def test_a_run_id_names_all_its_results(village):
    *_, name = village.out("run", "double_abs.safetensors", "input_data", "--on", "device_1").split()
    assert village.out("cancel", name).startswith("device_1  message ")
    village("device", "step", "device_1")
    village("get", name, code=4)
    again = village.out("retry", name)
    village("device", "step", "device_1")
    assert village.out("get", again) == DOUBLED


@pytest.mark.parametrize("command", ["cancel", "retry"])
def test_what_was_never_sent_is_refused_by_its_name(command, village):
    assert "no run 'nonsense' was sent by you" in village(command, "nonsense", code=3).stderr
    assert "no value 'ffffffffffff'" in village(command, "device_1:ffffffffffff", code=3).stderr
    assert "missing argument 'REF'" in village(command, code=2).stderr


def test_what_came_is_not_sent_again(village):
    ref = run(village)
    village("device", "step", "device_1")
    village("get", ref)
    assert "run it again" in village("retry", ref, code=2).stderr


def test_collecting_forgets_nothing_that_is_young(village):
    ref = run(village)
    assert village.out("gc") == "0 messages forgotten"
    village("device", "step", "device_1")
    assert village.out("get", ref) == DOUBLED
    assert village.json("gc") == {"messages": 0}


def test_under_cron_a_step_serves_for_a_while_what_comes_meanwhile_too(village):
    step = village.start("device", "step", "device_1", "--for", "1h")
    try:
        wait_until(lambda: status(village)["state"] == "up")
        assert (
            village.out("run", "double_abs.safetensors", "device_1:input_data", "--wait", "--timeout", "60s") == DOUBLED
        )
        other = village("device", "step", "device_1", "--for", "1s")  # beside it: nothing to do, and no error
        assert "already" in other.stderr or other.stderr == ""
    finally:
        step.send_signal(signal.SIGINT)
        out, err = step.communicate(timeout=60)
    assert "Traceback" not in out + err
    assert status(village)["state"] == "down"


def test_a_step_ends_by_itself_when_its_time_is_over(village):
    ref = run(village)
    village("device", "step", "device_1", "--for", "1s")
    assert village.out("get", ref) == DOUBLED
    assert "not a duration" in village("device", "step", "device_1", "--for", "soon", code=2).stderr
