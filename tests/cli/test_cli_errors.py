"""How commands fail: one line, a hint, an exit code, an envelope; never a traceback."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from fedq import errors
from fedq.cli import call

DOCS = Path(__file__).resolve().parents[2] / "docs" / "errors.md"

COMMANDS = [
    *(["device", verb] for verb in ("init", "up", "step", "down", "ls", "log")),
    *(["data", verb] for verb in ("add", "ls", "rm")),
    *([verb] for verb in ("build", "show", "send", "search", "run", "get", "review", "approve", "deny", "ops")),
]


def test_the_table_of_exit_codes_is_that_of_the_code():
    rows = re.findall(r"\| (\d+) \| `(\w+)` \| `(\w+)` \|", DOCS.read_text())
    assert rows == [(str(c.exit_code), c.code, c.__name__) for c in errors.tree()]
    assert all(c.exit_code < 126 for c in errors.tree())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_ends_in_examples_and_every_command_has_the_shared_options(words, shell):
    help = shell.out(*words, "--help")
    assert help.splitlines()[-1].startswith("    $ ")
    assert f"$ fedq {' '.join(words)}" in help.split("Examples:")[1]
    for option in ("--json", "--queue", "--devices"):
        assert option in help


USAGE = {
    "no such command": (["fly"], "no such command 'fly'"),
    "no such option": (["get", "a:b", "--timout", "3s"], "no such option: --timout"),
    "no such option of run": (["run", "p.safetensors", "device_1:input_data", "--kep"], "no such option: --kep"),
    "a missing argument": (["run"], "missing argument 'PLAN'"),
    "a missing option": (["data", "add", "device_1", "device_1.csv"], "missing option '--tag'"),
    "no reference": (["approve", "device_1"], "'device_1' is not a reference"),
    "no duration": (["get", "device_1:input_data", "--timeout", "soon"], "'soon' is not a duration"),
    "no shape": (["build", "x.py:f", "-o", "x.safetensors", "--args-shape", "(x)"], "'(x)' is not a shape"),
    "no device named": (["run", "double_abs.safetensors", "mine"], "no device is named"),
    "two devices": (["run", "double_abs.safetensors", "device_1:a", "device_2:b"], "a run is on one device"),
    "a device that is not asked": (
        ["run", "double_abs.safetensors", "device_2:input_data", "--on", "device_1"],
        "does not lie on device_1",
    ),
    "another file": (["get", "device_1:input_data", "-o", "x.pt"], "x.pt: can not write .pt"),
    "an output without waiting": (["run", "p", "device_1:a", "-o", "x.npy"], "go with --wait"),
    "a rule that is none": (
        ["data", "add", "device_1", "device_1.csv", "--tag", "t", "--release", "maybe"],
        "maybe",
    ),
    "a name that is none": (["device", "init", "../up"], "../up"),
}
NOT_FOUND = {
    "a device of nobody": (["search", "ward_9"], "no device 'ward_9' in /"),
    "a device at home nowhere": (["data", "ls", "ward_9"], "no device 'ward_9' in /"),
    "a tag": (["get", "device_1:nothing"], "no value 'nothing' on device_1 (tags there: input_data, private)"),
    "an id never promised": (["get", f"device_1:{'ab' * 16}"], "never promised to you"),
    "a run": (["get", "abcdef12"], "no run 'abcdef12'"),
    "a plan": (["run", "nothing", "device_1:input_data"], "no plan 'nothing' was sent to device_1"),
    "a plan file": (["show", "nothing.safetensors"], "no file nothing.safetensors"),
    "a data file": (["data", "add", "device_1", "nothing.npy", "--tag", "t"], "no file nothing.npy"),
    "a Python file": (["build", "nothing.py:f", "-o", "f.safetensors"], "no file nothing.py"),
    "a value to remove": (["data", "rm", "device_1", "nothing"], "device_1 has no value 'nothing'"),
    "a result to approve": (["approve", "device_1:abcdef12"], "was not asked 'abcdef12'"),
}
REFUSED = {
    "data that is none": (["data", "add", "device_1", "words.csv", "--tag", "t"], "words.csv: line 2, column 'a'"),
    "a file that is no plan": (["show", "words.safetensors"], "words.safetensors: "),
    "another shape": (["run", "scaled.safetensors", "three.npy", "--on", "device_1"], "input 0: f32[n,2] expected"),
    "too many arguments": (["run", "scaled.safetensors", "device_1:input_data", "3"], "requires 1 argument"),
}


@pytest.fixture(scope="module")
def broken_files(town):
    import numpy as np

    town.file("words.csv", "a\nword\n")
    town.file("words.safetensors", "words " * 30)
    np.save(town.root / "three.npy", np.zeros((4, 3), "f4"))
    return town


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [(code, *row) for code, table in ((2, USAGE), (3, NOT_FOUND), (4, REFUSED)) for row in table.values()],
    ids=[*USAGE, *NOT_FOUND, *REFUSED],
)
def test_a_mistake_is_one_line_and_an_exit_code_and_the_same_as_json(code, words, said, broken_files):
    plain = broken_files(*words, code=code)
    assert plain.stdout == ""
    assert plain.stderr.startswith("error: ")
    assert said in plain.stderr
    envelope = broken_files.json(*words, code=code)
    assert said in envelope["message"]
    assert {"error_code", "hint"} <= envelope.keys()
    if envelope["hint"]:
        assert plain.stderr.endswith(f"\n\nhint: {envelope['hint']}\n")


def test_nothing_is_written_where_no_queue_is_mounted(shell):
    shell("device", "init", "ward")
    (shell.root / "queue" / ".fedq").unlink()
    before = sorted((shell.root / "queue").rglob("*"))
    refused = shell("search", "ward", code=9)
    assert f"no queue root in {shell.root / 'queue'}" in refused.stderr
    assert "mounted?" in refused.stderr
    assert sorted((shell.root / "queue").rglob("*")) == before
    assert "no queue root" in shell("device", "up", code=9).stderr
    assert shell("device", "down").stderr == "nothing was up\n"


def test_roots_are_given_before_or_after_the_command_or_by_the_environment(shell, tmp_path):
    roots = ("--queue", str(tmp_path / "q"), "--devices", str(tmp_path / "d"))
    shell("device", "init", "ward", *roots)
    for words in ((*roots, "search", "ward"), ("search", "ward", *roots), (*roots, "device", "ls")):
        shell(*words)
    shell("search", "ward", environ={"FEDQ_QUEUE": str(tmp_path / "q"), "FEDQ_DEVICES": str(tmp_path / "d")})
    assert "no queue root" in shell("search", "ward", code=9).stderr


def test_what_nobody_foresaw_is_one_line_that_names_the_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEDQ_HOME", str(tmp_path / "me"))
    app = typer.Typer()
    app.callback()(lambda: None)

    @call.command(app, examples=[])
    def fall(call):
        raise RuntimeError("three\nlines\nof it")

    assert call.guarded(app, ["fall"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0]) == ("", "error: unexpected RuntimeError: three")
    assert str(tmp_path / "me" / "error.log") in err
    assert "of it" in (tmp_path / "me" / "error.log").read_text()
    monkeypatch.setenv("FEDQ_DEBUG", "1")
    assert call.guarded(app, ["fall"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_ends_a_wait_without_a_word(shell, plans):
    import numpy as np

    shell("device", "init", "ward")
    shell.plan("double_abs.safetensors", plans["double_abs"])
    np.save(shell.root / "x.npy", np.ones((1, 1), "f4"))
    ref = shell.out("run", "double_abs.safetensors", "x.npy", "--on", "ward").split()[0]
    waiting = shell.start("get", ref)
    assert waiting.stderr.readline().startswith("waiting for ward")
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out, err.strip()) == (130, "", "")


def test_a_reader_that_goes_away_is_no_error(shell):
    read, write = os.pipe()
    os.close(read)
    ops = shell.start("ops", stdout=write)
    os.close(write)
    _, err = ops.communicate(timeout=20)
    assert (ops.returncode, err) == (0, "")


@pytest.mark.parametrize(("no_colour", "starts"), [("", "\x1b[1;31merror:\x1b[0m "), ("1", "error: ")])
def test_colour_is_for_terminals_and_no_color_is_obeyed(no_colour, starts, shell):
    mine, theirs = pty.openpty()
    failed = shell.start("search", "ward", stderr=theirs, environ={"NO_COLOR": no_colour, "TERM": "xterm"})
    failed.communicate(timeout=20)
    os.close(theirs)
    assert os.read(mine, 1000).decode().startswith(starts)
    os.close(mine)


WATCHED = """
import sys
from fedq.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""


def test_no_command_but_build_imports_torch(shell, plans):
    import numpy as np

    def do(*words, code=0):
        process = shell.start(*words, program=(sys.executable, "-c", WATCHED))
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, f"{words}\n{out}\n{err}"
        return out.strip()

    shell.plan("double_abs.safetensors", plans["double_abs"])
    np.save(shell.root / "x.npy", np.ones((2, 2), "f4"))
    do("device", "init", "ward")
    do("data", "add", "ward", "x.npy", "--tag", "x")
    do("data", "ls", "ward")
    do("search", "ward")
    do("ops", "relu")
    do("show", "double_abs.safetensors")
    do("send", "double_abs.safetensors", "ward")
    ref = do("run", "double_abs", "ward:x", "--on", "ward").split()[0]
    do("device", "step", "ward")
    do("get", ref, "--timeout", "100ms", code=6)
    do("review")
    do("review", ref)
    do("approve", ref)
    do("device", "up")
    try:
        assert do("get", ref, "--timeout", "30s").startswith("tensor(")
        do("get", ref, "-o", "out.csv")
        do("device", "ls")
        do("device", "log")
    finally:
        do("device", "down")
    do("data", "rm", "ward", "x")
    subprocess.run([sys.executable, "-c", "import fedq"], check=True)
