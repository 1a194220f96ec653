"""A device from a backup, and a key that is not the known one: what its owner and a requester type and read."""

import shutil

from tests.cli.test_review import DOUBLED, befriend, ward
from tests.marks import more

__all__ = ["ward"]


def test_a_restored_backup_is_told_everywhere_and_goes_on_by_a_word(ward):
    ward("device", "step", "ward")
    shutil.copytree(ward.root / "devices", ward.root / "backup")
    ward("device", "step", "ward")
    shutil.rmtree(ward.root / "devices" / "ward")
    shutil.copytree(ward.root / "backup" / "ward", ward.root / "devices" / "ward")
    for words in (("device", "step", "ward"), ("device", "up", "ward"), ("data", "rm", "ward", "readings")):
        said = ward(*words, code=4).stderr
        assert "ward was seen elsewhere, or later" in said
        assert "fedq device resume ward --after-restore" in said
    assert "old_copy" in ward.out("device", "status")
    assert "whole device" in ward("device", "resume", "ward", "abcdef", "--after-restore", code=2).stderr
    assert "goes on from this home" in ward.out("device", "resume", "ward", "--after-restore")
    ref = ward.out("run", "double_abs.safetensors", "ward:readings")
    ward("device", "step", "ward")
    ward("approve", ref)
    ward("device", "step", "ward")
    assert ward.out("get", ref, "--timeout", "10s") == DOUBLED
    assert "old_copy" not in ward.out("device", "status") and "restored" in ward.out("device", "log", "ward")


@more
def test_a_key_that_contradicts_what_is_known_needs_to_be_meant(ward):
    bob = befriend(ward, "bob")
    said = bob("device", "trust", "ward", "0" * 64, code=2).stderr
    assert "was trusted with another key" in said and f"fedq device trust ward {'0' * 64} --replace" in said
    bob("device", "trust", "ward", "0" * 64, "--replace")
    key = ward.json("device", "init", "ward")["key"]
    assert f"not {key}" in bob("device", "trust", "ward", key, code=2).stderr
    bob("device", "trust", "ward", key, "--replace")
    assert "readings" in bob.out("data", "ls", "ward")
