"""What others write reaches a terminal through one door: nothing acts on it, hides in it, or begins another's line."""

from __future__ import annotations

import ast
import dataclasses
import logging
import os
import unicodedata
from pathlib import Path

import pytest
import torch

from fedq import ids, spelling
from fedq.cli.app import app
from fedq.cli.call import guarded
from fedq.client import fetch
from fedq.device import review
from fedq.errors import FedqError, from_code
from fedq.plan.codec import RawTensor
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Action, Graph, Type, Var
from fedq.queue.message import Failure
from fedq.queue.pair import Entry
from tests.rig import Rig

CLI = Path(__file__).parents[2] / "fedq" / "cli"
EVIL = (  # no space: one word of a command
    "\x1b]0;owned\x07\x1b[2J\x9b31m\rdata\u202e\u2066\u200b\u200d\u2060\ufeff\u00ad\u2800\u3164\u115f\ufe0f\U000e0041"
    "\U000e0100\u2028\u0085\x7f\nFORGED:line"
)


ACTS = EVIL.partition("\n")[0]
HIDDEN = frozenset(map(chr, [0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0]))
HIDDEN |= frozenset(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0000, 0xE0200)]))
ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def is_odd(c: str) -> bool:
    return c != "\n" and (unicodedata.category(c) in ACTING or c in HIDDEN)


def seems(text: str) -> bool:
    """Whether a text is what it seems: independent of `fedq.spelling`."""
    return not any(map(is_odd, text)) and not any(line.startswith("FORGED") for line in text.splitlines())


def test_the_evil_text_is_evil():
    assert not seems(EVIL)
    assert seems(spelling.line(EVIL)) and seems(spelling.text(EVIL)) and seems(spelling.name(EVIL))


def test_every_character_is_shown_or_escaped_at_the_door():
    odd = [c for c in map(chr, range(0x110000)) if is_odd(c)]
    for c in odd:
        assert spelling.visible(c) == spelling.escaped(c)
    plain = "a device\n  of 3 × ü, 平均, среднее, हिन्दी and e\u0301: f32[n,m] \\u"
    assert spelling.visible(plain) == plain


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """A device whose catalog and heartbeat are hostile, and signed."""
    with Rig(tmp_path_factory.mktemp("terminal"), data={"x": torch.ones(3)}) as rig:
        rig.step()
        home, who = rig.home(), rig.client.name
        pair, seen = home.pair(who), rig.device.catalog()
        more = (Entry(ids.new_id(), EVIL, Type("f32", (3,)), "open", f"{EVIL} #{EVIL}"),)
        catalog = dataclasses.replace(seen, values=(*seen.values, *more), plans=(("a" * 64, EVIL), ("b" * 64, EVIL)))
        pair.write(catalog, home.key)
        ptr = rig.device.send(torch.ones(2))
        rig.device.ask([ptr])
        sent = [name.partition(".")[0] for name in pair.carrier.list("in")]
        refused = tuple((message, EVIL) for message in sent)
        beat = dataclasses.replace(rig.heartbeat(), state="up", time=1e300, refused=refused)
        pair.write(beat, home.key)
        home.close()
        rig.sent = ptr.id
        yield rig


@pytest.fixture
def type_in(rig, monkeypatch, capsys, caplog):
    """Type a command as the requester, in this process; its exit code and all that it said."""
    said = {"QUEUE": rig.config.queue, "DEVICES": rig.root / "elsewhere", "HOME": rig.config.home, "USER": "alice"}
    for key, value in said.items():
        monkeypatch.setenv(f"FEDQ_{key}", str(value))
    monkeypatch.chdir(rig.root)

    def typed(*words: str) -> tuple[int, str]:
        try:
            code = guarded(app, words)
        except SystemExit as done:
            code = int(done.code or 0)
        told = capsys.readouterr()
        return code, told.out + told.err + caplog.text

    return typed


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("search device_1", 0),
        ("search device_1 --json", 0),
        ("get device_1:nosuch", 3),
        ("run nosuch device_1:x", 3),
        ("show device_1:nosuch", 3),
        (f"pull device_1:{EVIL}", 3),
        ("pull device_1:nosuch", 3),
        ("ls", 0),
        ("device ls", 0),
        ("device status", 0),
        ("get device_1:SENT --timeout 10ms", None),
        (f"get device_1:{EVIL} --timeout 10ms", None),
        (f"{EVIL}", 2),
        (f"search device_1 {EVIL}", 0),
    ],
)
def test_no_command_lets_a_devices_text_act_on_the_terminal(type_in, rig, words, code):
    found, said = type_in(*words.replace("SENT", rig.sent).split(" "))
    assert seems(said), said
    assert "unexpected" not in said
    assert code in (None, found)


def test_what_python_prints_of_a_hostile_catalog_is_what_it_seems(rig):
    device = rig.device
    (found,) = [p for p in device.search("data") if p.tag != "x"]
    assert seems(repr(found)) and seems(f"{found}") and seems(found.tag)
    for look in (device.find, device.plan):
        for ref in ("nosuch", f"no{EVIL}"):
            with pytest.raises(FedqError) as error:
                look(ref)
            assert seems(str(error.value))


def test_every_error_and_its_hint_is_made_visible_when_it_is_made():
    error = FedqError(f"no {ACTS}", hint=ACTS)
    assert seems(str(error)) and seems(error.hint or "")
    assert seems(str(from_code("failed", ACTS)))


def test_a_failure_that_a_device_tells_is_one_line_in_text_hint_and_facts():
    error = fetch.as_error(Failure("failed", EVIL, {"hint": EVIL, "op": EVIL, "line": EVIL, "n": 3}), "device_1")
    assert seems(str(error)) and "\n" not in str(error)
    assert seems(error.hint or "") and all(seems(str(fact)) for fact in error.fields.values())
    assert error.fields["n"] == 3


@pytest.mark.parametrize("name", spelling.LOGGERS)
def test_a_line_of_a_log_is_one_line(name, caplog):
    with caplog.at_level(logging.INFO):
        logging.getLogger(name).info("%s of %d: %s", "file", 3, EVIL)
    (record,) = caplog.records
    assert seems(record.getMessage()) and "\n" not in record.getMessage()
    assert record.getMessage().startswith("file of 3: ")


def test_an_owner_sees_what_a_requester_wrote_as_it_is(rig, type_in, monkeypatch):
    monkeypatch.setenv("FEDQ_DEVICES", str(rig.config.devices))
    home = rig.home()
    home.tell()
    secret = home.add(RawTensor("f32", (1,), b"\0\0\0\0"), tag="secret")
    home.close()
    rows = Type("f32", (1,))
    name = "".join(c for c in EVIL if ids.is_text(c))
    plan = PlanFile(Graph((rows,), (Action("aten.abs", (Var(0),), {}, (rows,)),), Var(1)), {}, About(name, (name,)))
    device = rig.client.device(rig.name)
    result = device.send_plan(plan)(device.find(secret))
    device.ask([result])
    rig.step()
    home = rig.home()
    (question,) = review.questions(home)
    home.close()
    ref = f"device_1:{question.reply}"
    log = "device log device_1"
    for words in (
        f"review {ref}",
        f"deny {ref} --why no",
        log,
        f"{log} --process",
        "device log --failed",
        "data ls device_1",
    ):
        code, said = type_in(*words.split())
        assert (code, seems(said)) == (0, True), said


# -- the rules, read off the source ---------------------------------------------------------------


def printing(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("print", "typer.echo", "typer.secho", "click.echo") or called.endswith(
                (".print_exc", "stdout.write", "stderr.write", "stdout.buffer.write")
            ):
                yield node.lineno, called


def test_one_function_of_the_command_line_prints():
    found = {(f.name, fn.name) for f in CLI.glob("*.py") for fn in ast.walk(ast.parse(f.read_text()))
             if isinstance(fn, ast.FunctionDef) and any(printing(fn))}  # fmt: skip
    assert found == {("call.py", "_print")}


def test_every_logger_of_ours_makes_its_lines_visible():
    for file in CLI.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger" and node.args:
                name = ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Constant) else "fedq"
                assert not name.startswith("fedq") or name in spelling.LOGGERS, f"{file}: {name}"


# -- where files are written ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "fifo", "nowhere"])
def test_what_is_written_goes_where_it_was_told_and_nowhere_else(rig, type_in, tmp_path, kind):
    place, victim = tmp_path / "out.npy", tmp_path / "victim"
    victim.write_text("mine")
    if kind == "link":
        place.symlink_to(victim)
    elif kind == "dangling":
        place.symlink_to(tmp_path / "planted")
    elif kind == "folder":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place = tmp_path / "no" / "out.npy"
    before = sorted(os.listdir(tmp_path))
    code, said = type_in("get", "device_1:x", "-o", str(place), "--timeout", "5s")
    assert code in (2, 3), said
    assert str(place.parent) in said
    assert (sorted(os.listdir(tmp_path)), victim.read_text()) == (before, "mine")


def test_a_file_that_is_there_is_replaced_whole_and_only_that_name(rig, type_in, tmp_path):
    place, other = tmp_path / "out.npy", tmp_path / "other"
    other.write_text("mine")
    os.link(other, place)
    rig.home().tell()
    asked = rig.client.device(rig.name).find("x")
    rig.client.device(rig.name).ask([asked])
    rig.step()
    code, said = type_in("get", "device_1:x", "-o", str(place), "--timeout", "10s")
    assert code == 0, said
    assert other.read_text() == "mine" and place.read_bytes()[:6] == b"\x93NUMPY"


def test_a_plans_name_that_a_device_tells_replaces_no_file_here(tmp_path, monkeypatch):
    from fedq.cli import load, words
    from fedq.errors import Conflict
    from fedq.trust.keys import Key

    monkeypatch.chdir(tmp_path)
    assert words.file_name("../../.bashrc") == "bashrc"
    assert "/" not in words.file_name(EVIL)
    (tmp_path / "carry.safetensors").write_text("mine")
    plan = PlanFile(Graph((Type("f32", ()),), (), Var(0)), {}, About("carry"))
    with pytest.raises(Conflict, match="there already"):
        load.save("carry.safetensors", plan, Key.from_seed(b"k" * 32), new=True)
    assert (tmp_path / "carry.safetensors").read_text() == "mine"
