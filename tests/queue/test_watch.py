"""Watch: whatever puts a file wakes it; what it can not see only makes it time out."""

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedq import fs
from fedq.queue.carrier import Directory
from fedq.queue.watch import InotifyWatch, ObserverWatch, Watch
from tests.namespaces import in_namespace

FAR_S = 30.0
"""Longer than anything here takes: a wait that ends with it has missed something."""


@pytest.fixture(params=[InotifyWatch, ObserverWatch])
def watch(request):
    watch = request.param()
    yield watch
    watch.close()


def settle(watch):
    """Take what is still on its way from earlier."""
    while watch.wait(0.05):
        pass


def test_linux_has_the_fast_one():
    assert Watch is (InotifyWatch if sys.platform == "linux" else ObserverWatch)


def test_a_put_or_replaced_file_wakes_and_silence_times_out(tmp_path, watch):
    (tmp_path / "in").mkdir()
    watch.add(tmp_path)
    watch.add(tmp_path / "in")
    settle(watch)
    assert not watch.wait(0.01)
    carrier = Directory(tmp_path)
    for put in (
        lambda: carrier.put(f"in/{1:032x}.safetensors", [b"x"]),
        lambda: carrier.replace("card.json", [b"x"]),
        lambda: carrier.replace("card.json", [b"y"]),
    ):
        put()
        assert watch.wait(FAR_S)
        settle(watch)


def test_a_file_put_by_another_process_wakes_one_that_waits(tmp_path, watch):
    watch.add(tmp_path)
    put = "import sys; from fedq import fs; sys.stdin.read(1); fs.put(sys.argv[1], [b'x'])"
    with subprocess.Popen([sys.executable, "-c", put, tmp_path / "a"], stdin=subprocess.PIPE) as other:
        settle(watch)
        other.stdin.write(b"!")
        other.stdin.close()
        assert watch.wait(FAR_S)
        assert (tmp_path / "a").exists()


def test_it_waits_beside_other_descriptors(tmp_path, watch):
    watch.add(tmp_path)
    settle(watch)
    read, write = os.pipe()
    os.write(write, b"x")
    assert select.select([read, watch], [], [], FAR_S)[0] == [read]
    os.read(read, 1)
    fs.put(tmp_path / "a", [b"x"])
    assert select.select([read, watch], [], [], FAR_S)[0] == [watch]
    assert watch.drain()
    settle(watch)
    assert not watch.drain()
    os.close(read)
    os.close(write)


def test_a_directory_may_come_later_go_and_come_back(tmp_path, watch):
    late = tmp_path / "late"
    watch.add(late)
    assert not watch.wait(0)
    for turn in range(3):
        late.mkdir()
        assert watch.wait(0), f"made, turn {turn}"
        settle(watch)
        fs.put(late / "a", [b"x"])
        assert watch.wait(FAR_S), f"put, turn {turn}"
        settle(watch)
        shutil.rmtree(late)
        assert watch.wait(FAR_S), f"deleted, turn {turn}"
        settle(watch)


def test_a_directory_that_was_renamed_is_not_mistaken_for_the_one_in_its_place(tmp_path, watch):
    path = tmp_path / "in"
    path.mkdir()
    watch.add(path)
    path.rename(tmp_path / "old")
    path.mkdir()
    assert watch.wait(0)
    settle(watch)
    fs.put(path / "a", [b"x"])
    assert watch.wait(FAR_S)


def test_a_removed_directory_wakes_no_more_and_others_do(tmp_path, watch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        watch.add(tmp_path / name)
        watch.add(tmp_path / name)
    watch.remove(tmp_path / "a")
    watch.remove(tmp_path / "never")
    settle(watch)
    fs.put(tmp_path / "a" / "x", [b"x"])
    assert not watch.wait(0.05)
    fs.put(tmp_path / "b" / "x", [b"x"])
    assert watch.wait(FAR_S)


def test_temporary_names_wake_nobody(tmp_path, watch):
    watch.add(tmp_path)
    settle(watch)
    (tmp_path / ".tmp-0011223344556677").touch()
    assert not watch.wait(0.05)


def test_a_flood_that_overflows_counts_as_changed_and_ends(tmp_path):
    watch = InotifyWatch()
    watch.add(tmp_path)
    (tmp_path / "a").touch()
    for _ in range(int(Path("/proc/sys/fs/inotify/max_queued_events").read_text()) // 2 + 100):
        os.rename(tmp_path / "a", tmp_path / "b")  # two names in turn: equal events in a row are one
        os.rename(tmp_path / "b", tmp_path / "a")
    shutil.rmtree(tmp_path)  # which is not reported any more
    tmp_path.mkdir()
    assert watch.drain()
    assert not watch.wait(0)
    fs.put(tmp_path / "after", [b"x"])
    assert watch.wait(FAR_S)
    watch.close()


SCRIPT = """if True:
    import sys
    from pathlib import Path
    from fedq import fs
    from fedq.queue.watch import Watch
    watch, path = Watch(), Path(sys.argv[1])
    watch.add(path)
    """


@pytest.mark.parametrize("limit", ["max_inotify_instances", "max_inotify_watches"])
def test_at_the_systems_limits_it_only_times_out(tmp_path, limit):
    script = SCRIPT + "fs.put(path / 'a', [b'x']); print(watch.wait(0.01), watch.drain(), watch.fileno() > 0)"
    out = in_namespace(f"echo 0 > /proc/sys/user/{limit}", script, tmp_path)
    assert out == "False False True\n"


def test_a_mount_that_comes_and_goes_is_followed(tmp_path):
    script = (
        SCRIPT
        + """
    import subprocess
    def said(*command):
        subprocess.run(command, check=True)
        return watch.wait(0)
    print(said("mount", "-t", "tmpfs", "none", path), watch.wait(0))
    fs.put(path / "a", [b"x"])
    print(watch.wait(30))
    print(said("umount", path))
    fs.put(path / "b", [b"x"])
    print(watch.wait(30))
    """
    )
    assert in_namespace("true", script, tmp_path) == "True False\nTrue\nTrue\nTrue\n"
