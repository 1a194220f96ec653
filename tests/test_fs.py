"""fs: whole or absent, whatever fails and wherever it is killed."""

import errno
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedq import fs
from fedq.errors import AlreadyRunning, BadFile, DiskFull, FedqError, Unreachable
from tests.namespaces import in_namespace

CHUNKS = [b"head ", memoryview(b"middle "), bytearray(b"end")]
WHOLE = b"head middle end"


def failing(code, name="*"):
    def fail(step, call, *args, **kwargs):
        raise OSError(code, os.strerror(code))

    return {name: fail}


WAYS = {
    "unnamed": {},
    "link": failing(errno.EOPNOTSUPP, "put.unnamed"),
    "proc is missing": failing(errno.ENOENT, "put.name"),
    "renameat2": failing(errno.EOPNOTSUPP, "put.unnamed") | failing(errno.EPERM, "put.link"),
    "rename": failing(errno.EISDIR, "put.unnamed")
    | failing(errno.EPERM, "put.link")
    | failing(errno.EINVAL, "put.rename_new"),
}
"""What file systems lack: hard links (FAT, SMB, rclone), files without a name, renameat2."""


@pytest.fixture(autouse=True)
def clean():
    yield
    fs.FAILPOINTS.clear()


@pytest.fixture(params=WAYS)
def way(request):
    fs.FAILPOINTS.update(WAYS[request.param])


def trace(call, *args, **kwargs):
    """The names of the steps it takes."""
    seen = []

    def note(name, step, *a, **k):
        seen.append(name)
        return step(*a, **k)

    fs.FAILPOINTS["*"] = note
    try:
        call(*args, **kwargs)
    finally:
        del fs.FAILPOINTS["*"]
    return seen


def in_child(call):
    """Its exit status: negative signal or code."""
    pid = os.fork()
    if not pid:
        try:
            call()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- put


def test_a_put_file_is_whole_has_its_rights_and_leaves_nothing_else(tmp_path, way):
    fs.put(tmp_path / "a", CHUNKS, mode=0o666)
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a").read_bytes() == WHOLE
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask
    assert os.listdir(tmp_path) == ["a"]
    fs.put(tmp_path / "private", CHUNKS)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


TAKEN = {
    "a file": lambda path: path.write_bytes(b"first"),
    "an empty file": lambda path: path.touch(),
    "a directory": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to a file": lambda path: path.symlink_to("b"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_a_taken_name_is_never_overwritten(tmp_path, way, kind):
    (tmp_path / "b").write_bytes(b"b")
    TAKEN[kind](tmp_path / "a")
    before = os.lstat(tmp_path / "a")
    with pytest.raises(FileExistsError):
        fs.put(tmp_path / "a", CHUNKS)
    after = os.lstat(tmp_path / "a")
    assert (before.st_ino, before.st_mode, before.st_size) == (after.st_ino, after.st_mode, after.st_size)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (tmp_path / "b").read_bytes() == b"b"


def test_put_says_done_only_after_file_then_name_then_directory_are_safe(tmp_path):
    steps = ["folder.open", "put.unnamed", "put.write", "put.sync", "put.name", "put.sync_folder"]
    assert trace(fs.put, tmp_path / "a", CHUNKS) == steps
    fs.FAILPOINTS.update(WAYS["link"])
    assert trace(fs.put, tmp_path / "b", CHUNKS)[1:] == [
        "put.create", "put.write", "put.sync", "put.link", "put.unlink", "put.sync_folder",
    ]  # fmt: skip
    assert trace(fs.replace, tmp_path / "b", CHUNKS)[1:] == [
        "replace.create", "replace.write", "replace.sync", "replace.rename", "replace.sync_folder",
    ]  # fmt: skip


def test_a_link_that_was_made_but_answered_twice_as_NFS_does_is_done(tmp_path):
    def twice(name, call, *args, **kwargs):
        call(*args, **kwargs)
        call(*args, **kwargs)

    fs.FAILPOINTS.update(WAYS["link"] | {"put.link": twice})
    fs.put(tmp_path / "a", CHUNKS)
    assert (tmp_path / "a").read_bytes() == WHOLE and os.listdir(tmp_path) == ["a"]


def test_without_durability_exactly_the_fsyncs_are_left_out(tmp_path):
    for call, name in ((fs.put, "a"), (fs.replace, "a")):
        full = trace(call, tmp_path / name, CHUNKS)
        (tmp_path / name).unlink()
        assert trace(call, tmp_path / name, CHUNKS, durable=False) == [s for s in full if "sync" not in s]


@given(st.lists(st.binary(max_size=40), max_size=5), st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_however_little_each_write_takes_the_file_is_whole(tmp_path_factory, chunks, sizes):
    folder, turn = tmp_path_factory.mktemp("short"), iter(sizes * 1000)
    fs.FAILPOINTS["put.write"] = lambda name, call, file, data: call(file, data[: next(turn)])
    fs.put(folder / "a", chunks, durable=False)
    assert (folder / "a").read_bytes() == b"".join(chunks)


def test_chunks_too_large_to_join_are_written_one_by_one(tmp_path):
    fs.FAILPOINTS["put.write"] = lambda name, call, file, data: call(file, data[:300_000])
    chunks = [os.urandom(900_000), b"", memoryview(os.urandom(800_000)).cast("d"), b"end"]
    fs.put(tmp_path / "a", chunks)
    assert (tmp_path / "a").read_bytes() == b"".join(chunks)


def test_a_write_that_writes_nothing_is_an_error_not_a_loop(tmp_path):
    fs.FAILPOINTS["put.write"] = lambda *_: 0
    with pytest.raises(Unreachable, match="wrote nothing"):
        fs.put(tmp_path / "a", CHUNKS)


ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.EACCES, errno.EROFS, errno.ESTALE]


@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
def test_every_step_of_put_may_fail_and_the_name_is_absent_or_whole(tmp_path, way, code):
    count = len(trace(fs.put, tmp_path / "first", CHUNKS))
    if fs.FAILPOINTS:
        count += 6  # steps that the way itself replaces are not traced
    for n in range(count):
        left, path = iter(range(n)), tmp_path / f"a{n}"

        def fail(name, call, *args, left=left, **kwargs):
            if next(left, None) is None:
                raise OSError(code, os.strerror(code))
            return call(*args, **kwargs)

        fs.FAILPOINTS["*"] = fail
        try:
            fs.put(path, CHUNKS)
        except FedqError as error:
            assert type(error) is (DiskFull if code in (errno.ENOSPC, errno.EDQUOT) else Unreachable)
            assert str(path) in str(error)
        del fs.FAILPOINTS["*"]
        assert not path.exists() or path.read_bytes() == WHOLE
        try:
            fs.put(path, CHUNKS)
        except FileExistsError:
            fs.flush(path)
        assert path.read_bytes() == WHOLE


POINTS = {
    fs.put: "folder.open put.unnamed put.create put.rights put.write put.sync put.name put.link put.rename_new "
    "put.exists put.rename put.unlink put.sync_folder",
    fs.replace: "folder.open replace.create replace.rights replace.write replace.sync replace.rename "
    "replace.sync_folder",
}


@pytest.mark.parametrize("call", POINTS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_step_the_name_is_as_before_or_whole(tmp_path, way, call, when):
    for point in POINTS[call].split():
        path = tmp_path / point
        if call is fs.replace:
            path.write_bytes(b"old")
        assert in_child(lambda path=path, point=point: _killed(call, path, point, when)) in (0, -signal.SIGKILL)
        if call is fs.replace or path.exists():
            assert path.read_bytes() in (WHOLE, b"old" if call is fs.replace else WHOLE)
        orphans = [n for n in os.listdir(tmp_path) if n.startswith(fs.TEMP)]
        assert len(orphans) <= 1
        for name in orphans:
            (tmp_path / name).unlink()
        try:
            call(path, CHUNKS, exact=True)
        except FileExistsError:
            pass
        assert path.read_bytes() == WHOLE


def _killed(call, path, point, when):
    """Put or replace until this step, if this way takes it."""
    instead = fs.FAILPOINTS.get(point)

    def kill(name, step, *args, **kwargs):
        if when == "after":
            instead(name, step, *args, **kwargs) if instead else step(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    fs.FAILPOINTS[point] = kill
    call(path, CHUNKS, exact=True)


def test_every_step_has_a_kill_test(tmp_path):
    source = "".join(p.read_text() for p in Path(fs.__file__).parent.glob("*.py"))
    named = re.findall(r'(?<=step\()f?"([^"]+)"', source)
    assert {n for n in named if n.startswith(("put.", "replace."))} <= set(" ".join(POINTS.values()).split())


def test_a_file_size_limit_is_a_full_disk_and_leaves_nothing(tmp_path):
    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        for call in (fs.put, fs.replace):
            with pytest.raises(DiskFull, match=str(tmp_path)):
                call(tmp_path / "a", [bytes(2000)])
        assert os.listdir(tmp_path) == []
        fs.put(tmp_path / "a", [bytes(1000)])

    assert in_child(limited) == 0
    assert (tmp_path / "a").read_bytes() == bytes(1000)


def test_a_full_disk_is_said_and_what_stands_on_it_is_whole(tmp_path):
    script = """if True:
        import os, sys
        from pathlib import Path
        from fedq import fs
        from fedq.errors import DiskFull
        folder, n = Path(sys.argv[1]), 0
        try:
            while True:
                fs.put(folder / str(n), [bytes([n]) * 10_000])
                n += 1
        except DiskFull as error:
            print(error)
        assert 10 < n < 30 and sorted(map(int, os.listdir(folder))) == list(range(n))
        assert all((folder / str(i)).read_bytes() == bytes([i]) * 10_000 for i in range(n))
        try:
            fs.replace(folder / "0", [bytes(20_000)])
        except DiskFull:
            assert (folder / "0").read_bytes() == bytes(10_000)
        fs.delete(folder / "1")
        fs.put(folder / "again", [b"goes on"])
        """
    out = in_namespace('mount -t tmpfs -o size=256k none "$2"', script, tmp_path)
    assert out.startswith(f"{tmp_path}/") and "No space left" in out


def test_a_read_only_mount_is_unreachable_by_its_absolute_path(tmp_path):
    script = """if True:
        import os, sys
        from fedq import fs
        from fedq.errors import Unreachable
        os.chdir(sys.argv[1])
        for call in (lambda: fs.put("a", [b"x"]), lambda: fs.replace("a", [b"x"]), lambda: fs.delete("there"),
                     lambda: fs.make_dir("a"), lambda: fs.lock("a"), lambda: fs.append("a"), lambda: fs.database("a")):
            try:
                call()
            except Unreachable as error:
                assert str(error).startswith(sys.argv[1]) and "Read-only" in str(error), error
            else:
                raise SystemExit("it was possible")
        assert fs.read("there", limit_bytes=9) == b"there"
        """
    setup = 'mount -t tmpfs none "$2"; printf there > "$2/there"; mount -o remount,ro "$2"'
    in_namespace(setup, script, tmp_path)


def test_a_directory_that_vanished_is_unreachable_and_never_made(tmp_path):
    for call in (fs.put, fs.replace):
        with pytest.raises(Unreachable, match=f"{tmp_path}/gone/a: No such file"):
            call(tmp_path / "gone" / "a", CHUNKS)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_became_a_link_is_not_followed_when_told_so(tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "x").write_bytes(b"x")
    (tmp_path / "in").symlink_to("private")
    for call in (
        lambda: fs.put(tmp_path / "in" / "a", CHUNKS, follow=False),
        lambda: fs.read(tmp_path / "in" / "x", limit_bytes=9, follow=False),
        lambda: fs.delete(tmp_path / "in" / "x", follow=False),
        lambda: fs.names(tmp_path / "in", follow=False),
    ):
        with pytest.raises(Unreachable):
            call()
    assert os.listdir(tmp_path / "private") == ["x"]
    assert fs.names(tmp_path / "in") == ["x"]


# -- replace, delete, make_dir


def test_replace_leaves_the_new_content_and_no_temporary_file(tmp_path):
    for chunks in ([b"old"], CHUNKS):
        fs.replace(tmp_path / "a", chunks)
    assert (tmp_path / "a").read_bytes() == WHOLE and os.listdir(tmp_path) == ["a"]
    for code in ERRORS:
        fs.FAILPOINTS.update(failing(code, "replace.rename"))
        with pytest.raises(Unreachable):
            fs.replace(tmp_path / "a", [b"newer"])
    assert (tmp_path / "a").read_bytes() == WHOLE and os.listdir(tmp_path) == ["a"]


def test_delete_says_whether_it_was_there(tmp_path):
    (tmp_path / "a").touch()
    assert fs.delete(tmp_path / "a") is True
    assert fs.delete(tmp_path / "a") is False
    assert fs.delete(tmp_path / "gone" / "a") is False
    with pytest.raises(Unreachable):
        fs.delete(tmp_path)


def test_make_dir_makes_parents_with_their_rights_and_may_be_repeated(tmp_path):
    steps = trace(fs.make_dir, tmp_path / "a" / "b")
    assert steps == ["folder.open", "make_dir.mkdir", "make_dir.sync_folder"] * 2
    assert [stat.S_IMODE((tmp_path / p).stat().st_mode) for p in ("a", "a/b")] == [0o700, 0o700]
    fs.make_dir(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(Unreachable, match="File exists"):
        fs.make_dir(tmp_path / "file")
    with pytest.raises(Unreachable):
        fs.make_dir(tmp_path / "file" / "below")


# -- read


@pytest.mark.parametrize("size", [0, 1, 1000, fs.IN_MEMORY_BYTES, fs.IN_MEMORY_BYTES + 1, 20_000_001])
def test_read_gives_the_bytes(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    assert fs.read(tmp_path / "a", limit_bytes=size) == data
    assert fs.map_private(tmp_path / "a") == data
    if size:
        with pytest.raises(BadFile, match=f"{size} bytes"):
            fs.read(tmp_path / "a", limit_bytes=size - 1)


def test_a_large_file_cut_short_after_reading_changes_nothing_in_the_copy(tmp_path):
    data = os.urandom(20_000_000)
    (tmp_path / "a").write_bytes(data)
    copy = fs.read(tmp_path / "a", limit_bytes=1 << 30)
    os.truncate(tmp_path / "a", 0)
    assert copy == data


@pytest.mark.parametrize("size", [1000, 20_000_000])
def test_a_file_cut_short_while_reading_gives_what_was_there(tmp_path, size):
    (tmp_path / "a").write_bytes(bytes(size))

    def cut(name, call, file, count):
        data = call(file, min(count, 100))
        os.truncate(tmp_path / "a", 0)
        return data

    fs.FAILPOINTS["read.read"] = cut
    assert fs.read(tmp_path / "a", limit_bytes=1 << 30) == bytes(100)


@pytest.mark.parametrize("size", [1000, 9_000_000])
def test_however_little_each_read_gives_all_is_read(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    fs.FAILPOINTS["read.read"] = lambda name, call, file, count: call(file, min(count, size // 7))
    assert fs.read(tmp_path / "a", limit_bytes=size) == data


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))
        for name in ("link", "directory", "fifo", "socket"):
            with pytest.raises(BadFile, match="not a regular file"):
                fs.read(tmp_path / name, limit_bytes=9)
    with pytest.raises(BadFile):
        fs.read("/dev/zero", limit_bytes=9)
    for missing in ("missing", "gone/missing"):
        with pytest.raises(FileNotFoundError):
            fs.read(tmp_path / missing, limit_bytes=9)
    with pytest.raises(Unreachable):
        fs.read(tmp_path / "file" / "below", limit_bytes=9)


def test_every_failing_step_of_reading_is_told_and_leaks_no_descriptor(tmp_path):
    (tmp_path / "a").write_bytes(bytes(9_000_000))
    before = len(os.listdir("/proc/self/fd"))
    for name in ("folder.open", "read.open", "read.read", "read.write", "names.list", "fingerprint.stat"):
        fs.FAILPOINTS.update(failing(errno.EIO, name))
        with pytest.raises(Unreachable, match="Input/output error"):
            fs.read(tmp_path / "a", limit_bytes=1 << 30)
            fs.names(tmp_path)
            fs.fingerprint(tmp_path / "a")
        fs.FAILPOINTS.clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_names_of_a_missing_directory_are_none(tmp_path):
    (tmp_path / "a").touch()
    assert fs.names(tmp_path) == ["a"]
    assert fs.names(tmp_path / "gone") == []
    with pytest.raises(Unreachable, match="Not a directory"):
        fs.names(tmp_path / "a")


def test_a_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "a"
    assert fs.fingerprint(path) is None
    fs.put(path, [b"x"])
    first = fs.fingerprint(path)
    assert first == fs.fingerprint(path)
    fs.replace(path, [b"y"])
    assert first != fs.fingerprint(path)


def test_a_log_is_appended_to_and_its_last_lines_are_read(tmp_path):
    assert fs.tail(tmp_path / "log", 2) == ""
    for line in (b"one\n", b"two\n", b"three\n"):
        with fs.append(tmp_path / "log") as log:
            log.write(line)
    assert fs.tail(tmp_path / "log", 2) == "two\nthree"
    assert fs.tail(tmp_path / "log", 9, most_bytes=8) == "o\nthree"


# -- privacy, locks, records


@pytest.mark.parametrize(("file", "folder", "at_fault"), [(0o640, 0o700, "f"), (0o604, 0o700, "f"), (0o600, 0o720, "")])
def test_a_private_file_open_to_others_is_refused_with_the_cure(tmp_path, file, folder, at_fault):
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / "f"
    path.touch()
    path.chmod(file)
    path.parent.chmod(folder)
    with pytest.raises(Unreachable, match="open to others") as caught:
        fs.check_private(path)
    assert caught.value.hint.startswith("chmod ") and caught.value.hint.endswith(str(path.parent / at_fault))
    path.chmod(0o600)
    path.parent.chmod(0o700)
    fs.check_private(path)


def test_a_second_lock_says_who_holds_the_first_which_ends_with_its_process(tmp_path):
    hold = "import sys; from fedq import fs; l = fs.lock(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, tmp_path / "lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunning, match=f"process {holder.pid} already serves {tmp_path}") as caught:
            fs.lock(tmp_path / "lock")
        assert caught.value.fields["pid"] == str(holder.pid)
        holder.kill()
    with fs.lock(tmp_path / "lock"), pytest.raises(AlreadyRunning):
        fs.lock(tmp_path / "lock")
    fs.lock(tmp_path / "lock").release()


def test_a_database_is_private_survives_kill_and_names_its_steps(tmp_path):
    path = tmp_path / "journal.sqlite"

    def write():
        db = fs.database(path)
        db.execute("CREATE TABLE t(x)")
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO t VALUES(?)", [(1,), (2,)])
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES(3)")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(write) == -signal.SIGKILL
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}
    db = fs.database(path)
    assert db.execute("SELECT x FROM t").fetchall() == [(1,), (2,)]
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert trace(lambda: [db.execute("BEGIN IMMEDIATE"), db.execute("COMMIT")]) == ["journal.begin", "journal.commit"]
    db.close()
    path.write_bytes(b"no database" * 100)
    with pytest.raises(Unreachable, match=str(path)):
        fs.database(path)


def test_the_clock_and_bare_failpoints_are_steps_too():
    assert trace(fs.clock) == ["clock"]
    assert trace(fs.failpoint, "gate.taken") == ["gate.taken"]
    fs.FAILPOINTS["clock"] = lambda name, call: 12.5
    assert fs.clock() == 12.5
