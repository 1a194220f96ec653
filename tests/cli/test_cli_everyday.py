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


def test_what_was_sent_is_listed_counted_and_collected(village):
    assert village("ls").stderr == "you sent nothing that is not done with\n"
    assert status(village) == {"state": "never started", "waiting": 0, "running": 0, "failed": 0}
    first, second = run(village), run(village, "broken")
    assert states(village) == {first: "in the queue", second: "in the queue"}
    newest, oldest = village.out("ls").split("\n")
    assert re.fullmatch(rf"{second}  in the queue  \d+ s  device_1 was never started", newest)
    assert oldest.startswith(first)
    assert village.out("ls", "-n", "1").startswith(second)
    assert status(village) == {"state": "never started", "waiting": 2, "running": 0, "failed": 0}
    village("device", "step", "device_1")
    assert status(village) == {"state": "down", "waiting": 0, "running": 0, "failed": 0}
    assert set(states(village).values()) == {"answered"}
    assert village.out("gc") == "0 messages forgotten"
    assert village.out("get", first) == DOUBLED
    village("get", second, code=8)
    assert states(village) == {first: "fetched", second: "failed"}
    assert "run it again" in village("retry", first, code=2).stderr
    assert village.json("gc") == {"messages": 0}
    assert village.out("get", first) == DOUBLED


def test_what_is_cancelled_is_not_done_and_can_be_sent_again(village):
    wanted, unwanted = run(village), run(village)
    *_, name = village.out("run", "double_abs.safetensors", "input_data", "--on", "device_1").split()
    for cancelled in (unwanted, name):
        device, _, message = village.out("cancel", cancelled).split()
        assert (device, len(message)) == ("device_1", 32)
    village("device", "step", "device_1")
    assert village.out("get", wanted) == DOUBLED
    assert "cancelled" in village("get", unwanted, code=4).stderr
    village("get", name, code=4)
    again = village.out("retry", unwanted), village.out("retry", name)
    assert unwanted not in again
    village("device", "step", "device_1")
    assert [village.out("get", ref) for ref in again] == [DOUBLED] * 2
    assert states(village)[unwanted] == "failed"


def test_what_was_never_sent_is_refused_by_its_name(village):
    for command in ("cancel", "retry"):
        assert "no run 'nonsense' was sent by you" in village(command, "nonsense", code=3).stderr
        assert "no value 'ffffffffffff'" in village(command, "device_1:ffffffffffff", code=3).stderr
        assert "missing argument 'REF'" in village(command, code=2).stderr
    assert "no device 'nope'" in village("device", "status", "nope", code=3).stderr


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
