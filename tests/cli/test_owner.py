"""What an owner looks up and takes away: the record of a device, its requesters, the device itself; real commands."""

from __future__ import annotations

import os
import pwd

import numpy as np

from fedq.device import daemon
from tests.cli.test_review import DOUBLED, ask, at_terminal, befriend, ward
from tests.rig import config_of, wait_until
from tests.test_kill import begun, children, slow_plan

__all__ = ["ward"]


def whats(shell, *words):
    return [e["what"] for e in shell.json("device", "log", "ward", *words)]


def test_the_record_says_who_asked_what_was_decided_by_whom_and_what_left(ward):
    who = ward.out("whoami").split()[0]
    ref = ask(ward)
    ward("approve", ref, "--look", "--wait")
    ward("approve", ref, "--wait")
    denied = ask(ward, "scaled").split()[0]
    ward("deny", denied, "--why", "a sum of two")
    free = ward.out("run", "double_abs.safetensors", "ward:free")
    ward("device", "step", "ward")
    entries = ward.json("device", "log", "ward")
    mine = [e for e in entries if e["ref"] == ref.partition(":")[2]]
    assert [e["what"] for e in mine] == ["asked", "look", "approve", "left"]
    assert {(e["requester"], tuple(e["tags"])) for e in mine} == {(who, ("readings",))}
    assert {e["by"] for e in mine[1:3]} == {pwd.getpwuid(os.getuid()).pw_name}
    assert mine[0]["text"] == "double_abs(#readings)"
    facts = mine[3]["facts"]
    assert (facts["id"], facts["type"], facts["bytes"]) == (ref.partition(":")[2], "f32[2,2]", 16)
    (no,) = [e for e in entries if e["what"] == "deny"]
    assert (no["ref"], no["text"]) == (denied.partition(":")[2], "a sum of two")
    (open_,) = [e for e in ward.json("device", "log", "ward", "--tag", "free") if e["what"] == "left"]
    assert (open_["what"], open_["facts"]["id"]) == ("left", free.partition(":")[2])
    assert "free" not in ward.out("device", "log", "ward", "--tag", "#readings")
    assert whats(ward, "--requester", "bob") == []
    assert whats(ward, "--since", "0s") == []
    asked = [e["what"] for e in entries if not e["what"].startswith("data ")]
    assert whats(ward, "--since", "7d", "--requester", "ann") == asked
    line = next(row for row in ward.out("device", "log", "ward").splitlines() if "  approve" in row)
    assert f"{who}  approve" in line
    assert "#readings" in line
    assert f"the newest 2 of {len(entries)}" in ward("device", "log", "ward", "-n", "2").stderr


def test_the_record_has_the_full_text_of_a_failure_which_no_requester_sees(ward):
    ref = ask(ward, "broken")
    ward("approve", ref, "--wait")
    out, _ = ward.start("device", "log", "ward", "--tag", "readings").communicate(timeout=60)
    assert "  | RuntimeError: shape '[7, 11]' is invalid for input of size 4" in out
    assert "  failed  " in out
    assert "size 4" not in ward("get", ref, "--timeout", "10s", code=8).stderr


def test_what_was_replaced_and_removed_is_in_the_record(ward):
    ask(ward)
    ward("data", "add", "ward", "rows.csv", "--tag", "readings", "--replace")
    ask(ward)
    ward("data", "rm", "ward", "readings")
    assert {"replaced", "removed"} <= set(whats(ward))


def test_the_log_of_the_process_is_there_as_before(ward):
    ward("device", "step", "ward")
    assert "ward: served" in ward.out("device", "log", "ward", "--process")
    assert "ward: served" in ward.out("device", "log")
    for words in (("log", "--since", "1d"), ("log", "ward", "--process", "--tag", "x")):
        assert "go with NAME alone" in ward("device", *words, code=2).stderr
    assert "not a duration" in ward("device", "log", "ward", "--since", "Tuesday", code=2).stderr
    assert "no device 'nowhere'" in ward("device", "log", "nowhere", code=3).stderr


def test_requesters_are_listed_with_what_waits_of_them(ward):
    befriend(ward, "bob")
    ask(ward)
    ann, bob = ward.json("device", "requesters", "ward")
    assert (ann["requester"][:4], ann["questions"], bob["requester"][:4], bob["questions"]) == ("ann-", 1, "bob-", 0)
    assert ann["last_heard"] and bob["last_heard"] is None
    assert len(ann["key"]) == 64


def test_who_is_not_trusted_any_more_has_no_worker_no_answer_and_no_question_at_once(ward):
    bob = befriend(ward, "bob")
    np.save(ward.root / "x.npy", np.eye(600, dtype="f4"))
    ward("data", "add", "ward", "x.npy", "--tag", "x")
    ward.plan("slow.safetensors", slow_plan(4000))
    ward("device", "up")
    try:
        slow = bob.out("run", "slow.safetensors", "ward:x")
        waits = bob.out("run", "double_abs.safetensors", "ward:readings")
        wait_until(lambda: len(ward.json("review")) == 2)
        ward("approve", slow)
        pid = daemon.pid(config_of(ward.root))
        wait_until(lambda: any(map(begun, children(pid))))
        ward("device", "untrust", "ward", "bob")
        wait_until(lambda: not any(map(begun, children(pid))))
        assert ward.json("review") == []
        for ref in (waits, slow):
            assert "not trusted any more" in bob("get", ref, "--timeout", "30s", code=5).stderr
        late = bob.out("run", "double_abs.safetensors", "ward:readings")
        ask(ward)
        wait_until(lambda: ward.json("review"))
        assert {r["requester"][:3] for r in ward.json("review")} == {"ann"}
        bob("get", late, "--timeout", "1s", code=7)
        assert len(ward.json("device", "requesters", "ward")) == 1
        assert "trusts no 'bob'" in ward("device", "untrust", "ward", "bob", code=3).stderr
        assert "untrusted" in whats(ward, "--requester", "bob")
    finally:
        ward("device", "down")


def test_where_nothing_is_up_untrusting_denies_too_and_trusting_again_says_so(ward):
    bob = befriend(ward, "bob")
    ref = bob.out("run", "double_abs.safetensors", "ward:readings")
    ward("device", "step", "ward")
    ward("device", "untrust", "ward", "bob")
    assert ward.json("review") == []
    assert "was denied" in ward("approve", ref, code=2).stderr
    befriend(ward, "bob")
    ward("device", "step", "ward")
    assert "not trusted any more" in bob("get", ref, "--timeout", "10s", code=5).stderr


def test_a_device_is_removed_after_asking_and_never_while_it_is_served(ward):
    assert "nobody to ask" in ward("device", "rm", "ward", code=2).stderr
    _, text = at_terminal(ward, "device", "rm", "ward", answers=["no"])
    assert "nothing was deleted" in text
    ward("device", "up")
    try:
        assert "fedq device down ward" in ward("device", "rm", "ward", "--yes", code=9).stderr
    finally:
        ward("device", "down")
    removed = ward("device", "rm", "ward", "--yes")
    assert "2 values" in removed.stderr
    assert not (ward.root / "devices" / "ward").exists()
    assert not (ward.root / "queue" / "ward").exists()
    assert "no device 'ward'" in ward("device", "rm", "ward", "--yes", code=3).stderr
    ward("device", "init", "ward")
    ward("data", "add", "ward", "rows.csv", "--tag", "readings", "--release", "open")
    ref = ward.out("run", "double_abs.safetensors", "ward:readings")
    ward("device", "step", "ward")
    assert ward.out("get", ref, "--timeout", "10s") == DOUBLED
