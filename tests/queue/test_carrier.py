"""Directory: a name that is visible is a whole file, and it is the same for ever."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedq import fs
from fedq.errors import BadFile, Conflict, Unreachable
from fedq.queue.carrier import Directory
from tests.namespaces import in_namespace

ID = "0197a1b2c3d4e5f60718293a4b5c6d7e"
NAME = f"in/{ID}.safetensors"


@pytest.fixture
def root(tmp_path):
    for folder in ("in", "out", "blobs"):
        (tmp_path / folder).mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def clean():
    yield
    fs.FAILPOINTS.clear()


@given(st.lists(st.binary(max_size=300), max_size=6), st.booleans())
def test_what_was_put_is_got_in_the_same_bytes(tmp_path_factory, chunks, durable):
    root = tmp_path_factory.mktemp("pair")
    (root / "in").mkdir()
    carrier = Directory(root, durable=durable)
    carrier.put(NAME, chunks)
    carrier.put(NAME, [b"".join(chunks)])
    assert carrier.get(NAME) == b"".join(chunks)
    assert carrier.list("in") == [f"{ID}.safetensors"]
    assert carrier.delete(NAME) and not carrier.delete(NAME)
    assert carrier.list("in") == []


OTHER = {"shorter": b"so", "longer": b"some more", "same length": b"none", "empty": b""}


@pytest.mark.parametrize("reason", OTHER)
def test_other_bytes_under_a_name_are_a_conflict_and_change_nothing(root, reason):
    carrier = Directory(root)
    carrier.put(NAME, [b"so", b"me"])
    with pytest.raises(Conflict, match=ID):
        carrier.put(NAME, [OTHER[reason]])
    assert carrier.get(NAME) == b"some"


@pytest.mark.parametrize(
    "plant", [os.mkfifo, os.mkdir, lambda p: os.symlink("nowhere", p), lambda p: open(p, "x").close()]
)
def test_whatever_else_was_planted_under_a_name_is_a_conflict(root, plant):
    plant(root / NAME)
    with pytest.raises(Conflict):
        Directory(root).put(NAME, [b"some"])


def test_large_files_are_compared_too(root):
    carrier, data = Directory(root), os.urandom(9_000_000)
    carrier.put(NAME, [data])
    carrier.put(NAME, [data[:5], memoryview(data)[5:]])
    with pytest.raises(Conflict):
        carrier.put(NAME, [data[:-1], b"!"])


def test_putting_again_fsyncs_what_a_dead_process_may_not_have(root):
    seen = []
    Directory(root).put(NAME, [b"some"])
    fs.FAILPOINTS["*"] = lambda name, call, *a, **k: [seen.append(name), call(*a, **k)][1]
    Directory(root).put(NAME, [b"some"])
    assert seen[-2:] == ["flush.sync", "flush.sync_folder"]
    seen.clear()
    Directory(root, durable=False).put(NAME, [b"some"])
    assert not [name for name in seen if "sync" in name]


STRAYS = [
    ".tmp-0011223344556677", f"{ID}.sync-conflict-20260101-000000-ABCDEFG.safetensors", f"{ID} (1).safetensors",
    f"{ID.upper()}.safetensors", f"{ID}.safetensors.part", f"{ID}.safetensors\n", f"{ID}", f"{ID[1:]}.safetensors",
    f".syncthing.{ID}.safetensors.tmp", ".DS_Store", "desktop.ini", "é.safetensors",
]  # fmt: skip


def test_names_of_another_form_are_not_listed_but_can_be_counted(root):
    carrier = Directory(root)
    carrier.put(NAME, [b""])
    for stray in STRAYS:
        (root / "in" / stray).touch()
    assert carrier.list("in") == [f"{ID}.safetensors"]
    assert sorted(carrier.strays("in")) == sorted(STRAYS)
    assert carrier.list("out") == carrier.strays("out") == []
    carrier.replace("card.json", [b"{}"])
    (root / "notes.txt").touch()
    assert carrier.list("") == ["card.json"] and carrier.strays("") == ["notes.txt"]


@pytest.mark.parametrize("name", [
    "in/x", f"in/../{NAME}", f"/{NAME}", f"../{NAME}", f"other/{ID}.safetensors", f"{ID}.safetensors", "in/", "", "..",
    f"in/{ID}.safetensors\n", f"in/{ID}.safetensors\0", f"in//{ID}.safetensors", "card.json/", "in/card.json",
])  # fmt: skip
def test_no_other_name_reaches_the_disk(root, name):
    carrier = Directory(root)
    for call in (carrier.get, carrier.delete, lambda n: carrier.put(n, [b""]), lambda n: carrier.replace(n, [b""])):
        with pytest.raises(ValueError, match="no name in a pair"):
            call(name)


def test_a_folder_swapped_for_a_link_leads_nowhere(root, tmp_path_factory):
    private = tmp_path_factory.mktemp("private")
    (private / f"{ID}.safetensors").write_bytes(b"secret")
    (root / "in").rmdir()
    (root / "in").symlink_to(private)
    carrier = Directory(root)
    for call in (carrier.get, carrier.delete, lambda n: carrier.put(n, [b"secret"]), lambda n: carrier.list("in")):
        with pytest.raises(Unreachable):
            call(NAME)
    assert (private / f"{ID}.safetensors").read_bytes() == b"secret"


def test_a_pair_may_be_a_link_to_where_it_is_shared(root, tmp_path_factory):
    link = tmp_path_factory.mktemp("queue") / "alice-01234567"
    link.symlink_to(root)
    carrier = Directory(link)
    carrier.put(NAME, [b"some"])
    carrier.replace("card.json", [b"{}"])
    assert carrier.get(NAME) == b"some" and carrier.list("") == ["card.json"]


def test_a_pair_that_vanished_is_said_and_nothing_is_made(root):
    carrier = Directory(root / "gone")
    with pytest.raises(Unreachable, match=f"{root}/gone"):
        carrier.put(NAME, [b"some"])
    with pytest.raises(FileNotFoundError):
        carrier.get(NAME)
    assert carrier.list("in") == [] and not carrier.delete(NAME) and not (root / "gone").exists()


def test_a_pair_without_rights_is_unreachable(root):
    script = """if True:
        import os, sys
        from pathlib import Path
        from fedq.errors import Unreachable
        from fedq.queue.carrier import Directory
        carrier, name = Directory(Path(sys.argv[1])), "in/" + "a" * 32 + ".safetensors"
        assert carrier.get(name) == b"some"
        for call in (carrier.delete, lambda n: carrier.put(n.replace("a" * 32, "b" * 32), [b"x"])):
            try:
                call(name)
            except Unreachable as error:
                print(error)
        """
    setup = 'printf some > "$2/in/' + "a" * 32 + '.safetensors"; mount --bind "$2" "$2"; mount -o remount,bind,ro "$2"'
    assert in_namespace(setup, script, root).count("Read-only") == 2


def test_readers_see_whole_files_only_while_another_process_writes(root):
    writer = """if True:
        import sys
        from pathlib import Path
        from fedq.queue.carrier import Directory
        carrier = Directory(Path(sys.argv[1]))
        for n in range(200):
            carrier.put(f"in/{n:032x}.safetensors", [bytes([n]) * 50_000] * 2)
            carrier.replace("card.json", [bytes([n]) * 5_000])
        """
    carrier, seen = Directory(root), set()
    with subprocess.Popen([sys.executable, "-c", writer, root]) as process:
        while len(seen) < 200:
            assert process.poll() in (None, 0)
            for name in set(carrier.list("in")) - seen:
                assert carrier.get(f"in/{name}") == bytes([int(name[:32], 16)]) * 100_000
                seen.add(name)
            if "card.json" in carrier.list(""):
                card = carrier.get("card.json")
                assert len(card) == 5_000 and len(set(card)) == 1


def test_a_file_above_the_limit_is_refused(root):
    Directory(root).put(NAME, [bytes(100)])
    with pytest.raises(BadFile, match="100 bytes"):
        Directory(root).get(NAME, 99)
