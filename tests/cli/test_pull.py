"""``fedq pull`` brings plans back; ``fedq data add`` says who may know of a value."""

from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Graph, Type, Var
from fedq.trust.keys import Key


def test_a_plan_comes_back_as_a_file_of_ones_own(town):
    sent = town.out("send", "scaled.safetensors", "device_1")
    for n, ref in enumerate((sent, sent[:16], "device_1:scaled")):
        assert town.out("pull", ref, "-o", f"back{n}.safetensors", "--timeout", "30s").startswith(
            f"back{n}.safetensors"
        )
        assert town.json("show", f"back{n}.safetensors") == town.json("show", "scaled.safetensors")
    assert "there already" in town("pull", "device_1:scaled", code=2).stderr
    town.root.joinpath("scaled.safetensors").unlink()
    assert town.json("pull", "device_1:scaled")["file"] == "scaled.safetensors"
    assert (town.root / "scaled.safetensors").read_bytes() == (town.root / "back0.safetensors").read_bytes()


def test_a_plan_that_is_not_there_is_told_with_those_that_are(town):
    town("send", "double_abs.safetensors", "device_2")
    said = town.json("pull", "device_2:nothing", code=3)
    assert said["error_code"] == "unknown_plan" and "no plan 'nothing' was sent to device_2" in said["message"]
    assert town.json("pull", "device_2", code=2)["error_code"] == "usage"
    assert "ends in .safetensors" in town.json("pull", "device_2:double_abs", "-o", "x.csv", code=2)["message"]


def test_a_plans_name_is_no_path(shell):
    shell("device", "init", "device_1")
    kind = Type("f32", ("n",))
    plan = PlanFile(Graph((kind,), (), Var(0), sizes={"n": 0}), {}, About("../../.ssh/keys"))
    ref = shell.out("send", shell.plan("odd.safetensors", plan), "device_1")
    shell("device", "up")
    try:
        assert shell.out("pull", ref).split()[0] == "ssh_keys.safetensors"
    finally:
        shell("device", "down")
    assert (shell.root / "ssh_keys.safetensors").exists()


def test_a_value_is_shown_to_those_who_are_allowed(shell):
    shell("device", "init", "device_1")
    (me,) = (path.name for path in (shell.root / "queue" / "device_1").iterdir())
    rows = shell.file("rows.csv", "1.5\n2\n")
    bob = f"bob-{Key.from_seed(b'b' * 32).fingerprint}"
    shell("data", "add", "device_1", rows, "--tag", "hers", "--release", "open", "--allow", me, "--note", "#north rows")
    shell("data", "add", "device_1", rows, "--tag", "his", "--release", "open", "--allow", bob)
    assert [row["tag"] for row in shell.json("search", "device_1")] == ["hers"]
    assert [row["tag"] for row in shell.json("search", "device_1", "north")] == ["hers"]
    said = shell.json("data", "add", "device_1", rows, "--tag", "x", "--allow", "ann", code=2)
    assert "'ann' can not be allowed" in said["message"] and me in said["hint"]
