"""Every durable file operation, the clock and the lock; each step is a named failpoint.

A file is written under no name (or a temporary one), fsynced, given its name, and the directory
is fsynced: only then does `put` return. A name is never overwritten and never shows a torn file.
Whatever the disk says comes out as `Unreachable` or `DiskFull` with the absolute path, except
FileExistsError of `put` and FileNotFoundError of `read`, which callers decide about.
Sources: D. J. Bernstein, "Using maildir format"; Linux open(2), "O_TMPFILE"; renameat2(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

from fedq.errors import AlreadyRunning, BadFile, DiskFull, FedqError, Unreachable, UsageError

Buffer = bytes | bytearray | memoryview
AnyPath = str | os.PathLike[str]
P = ParamSpec("P")
T = TypeVar("T")

TEMP = ".tmp-"
"""How temporary names begin; what kill -9 leaves of them is swept by age."""
IN_MEMORY_BYTES = 8 << 20
"""Files up to this size are read into memory; larger ones into a private file."""

FAILPOINTS: dict[str, Callable[..., Any]] = {}
"""Step name, or ``*`` -> what is called instead, as ``f(name, call, *args, **kwargs)``. For tests only:
raise, delay, kill, write less than asked, or write down what was called."""

_JOIN_BYTES = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNNAMED = getattr(os, "O_TMPFILE", 0)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LACKS = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_LACKS_LINKS = _LACKS | {errno.EPERM, errno.EMLINK, errno.EXDEV}
_LACKS_UNNAMED = _LACKS_LINKS | {errno.EISDIR, errno.ENOENT}


def step(name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it, unless a test put something in its place; 0.05-0.1 µs when none did."""
    if not FAILPOINTS:
        return call(*args, **kwargs)
    instead = FAILPOINTS.get(name) or FAILPOINTS.get("*")
    return instead(name, call, *args, **kwargs) if instead else call(*args, **kwargs)


def failpoint(name: str) -> None:
    """A point between steps where a test may crash, delay or fail what runs."""
    if FAILPOINTS:
        step(name, bool)


def clock() -> float:
    """Seconds since 1970: the only reading of the time of day."""
    return step("clock", time.time)


# -- writing ---------------------------------------------------------------------------------


def put(
    path: AnyPath,
    chunks: Sequence[Buffer],
    *,
    durable: bool = True,
    mode: int = 0o600,
    follow: bool = True,
    exact: bool = False,
) -> None:
    """Write a new file: whole under its name, or not there.

    Args:
        path: its directory must exist; it is never created here.
        chunks: written one after the other.
        durable: fsync file and directory before returning.
        mode: its rights, less the umask.
        follow: whether the directory itself may be a symbolic link.
        exact: the rights are these, whatever the umask.

    Raises:
        FileExistsError: the name is taken, by whatever; nothing was changed.
        DiskFull, Unreachable: not done, and the name does not stand (unless the disk takes no change at all).
    """
    with _Folder(path, FileExistsError, follow) as (at, name):
        if not (_UNNAMED and _put_unnamed(at, name, chunks, durable, mode, exact)):
            _put_named(at, name, chunks, durable, mode, exact)
        if durable:
            try:
                step("put.sync_folder", _sync, at)
            except OSError:
                if _take_back(at, name):
                    raise


def _take_back(at: int, name: str) -> bool:
    """Remove a name that was given and may not last; False if a reader took it away: then it arrived."""
    try:
        step("put.unlink", os.unlink, name, dir_fd=at)
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True


def _put_unnamed(at: int, name: str, chunks: Sequence[Buffer], durable: bool, mode: int, exact: bool) -> bool:
    """Through a file without a name: no orphans, one event to watchers. False if that can not be had here."""
    try:
        file = step("put.unnamed", os.open, ".", _UNNAMED | os.O_WRONLY | os.O_CLOEXEC, mode, dir_fd=at)
        try:
            if exact:
                step("put.rights", os.fchmod, file, mode)
            _fill("put", file, chunks, durable)
            step("put.name", os.link, f"/proc/self/fd/{file}", name, dst_dir_fd=at)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno not in _LACKS_UNNAMED:
            raise
        return False
    return True


def _put_named(at: int, name: str, chunks: Sequence[Buffer], durable: bool, mode: int, exact: bool) -> None:
    temp = _write_temp("put", at, chunks, durable, mode, exact)
    try:
        _name(at, temp, name)
    finally:
        with suppress(OSError):  # after a rename it is gone
            step("put.unlink", os.unlink, temp, dir_fd=at)


def _name(at: int, temp: str, name: str) -> None:
    """Give the file its name, never over another: by link, else renameat2, else rename.

    The last is no race among strangers: each directory has one writer, and one id one content.
    """
    try:
        return step("put.link", os.link, temp, name, src_dir_fd=at, dst_dir_fd=at)
    except FileExistsError:
        if os.stat(temp, dir_fd=at).st_nlink == 2:  # NFS: done, but the answer was lost and asked for again
            return None
        raise
    except OSError as error:
        if error.errno not in _LACKS_LINKS:
            raise
    try:
        return step("put.rename_new", _rename_new, at, temp, name)
    except OSError as error:
        if error.errno not in _LACKS:
            raise
    if step("put.exists", _exists, at, name):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    return step("put.rename", os.rename, temp, name, src_dir_fd=at, dst_dir_fd=at)


def _rename_new(at: int, temp: str, name: str) -> None:
    """renameat2 with RENAME_NOREPLACE (1): FAT, SMB and FUSE often have it where they lack links."""
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(at, os.fsencode(temp), at, os.fsencode(name), ctypes.c_uint(1)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)


def _exists(at: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def replace(
    path: AnyPath, chunks: Sequence[Buffer], *, durable: bool = True, mode: int = 0o600, exact: bool = False
) -> None:
    """Write a file over what may stand there: readers see the old or the new one, whole."""
    with _Folder(path, None) as (at, name):
        temp = _write_temp("replace", at, chunks, durable, mode, exact)
        try:
            step("replace.rename", os.replace, temp, name, src_dir_fd=at, dst_dir_fd=at)
        except OSError:
            with suppress(OSError):
                os.unlink(temp, dir_fd=at)
            raise
        if durable:
            step("replace.sync_folder", _sync, at)


def _write_temp(what: str, at: int, chunks: Sequence[Buffer], durable: bool, mode: int, exact: bool) -> str:
    temp = TEMP + os.urandom(8).hex()
    file = step(f"{what}.create", os.open, temp, _NEW, mode, dir_fd=at)
    try:
        try:
            if exact:
                step(f"{what}.rights", os.fchmod, file, mode)
            _fill(what, file, chunks, durable)
        finally:
            os.close(file)
    except OSError:
        with suppress(OSError):
            os.unlink(temp, dir_fd=at)
        raise
    return temp


def _fill(what: str, file: int, chunks: Sequence[Buffer], durable: bool) -> None:
    """Write all, however little each write takes, and fsync; a failed fsync is never tried again."""
    if size_bytes(chunks) <= _JOIN_BYTES:
        chunks = (b"".join(chunks),)
    for chunk in chunks:
        _write_all(f"{what}.write", file, chunk)
    if durable:
        step(f"{what}.sync", os.fsync, file)


def _write_all(name: str, file: int, chunk: Buffer) -> None:
    rest = memoryview(chunk).cast("B")
    while rest:
        written = step(name, os.write, file, rest)
        if not written:
            raise OSError(errno.EIO, "a write wrote nothing")
        rest = rest[written:]


def size_bytes(chunks: Sequence[Buffer]) -> int:
    return sum(memoryview(chunk).nbytes for chunk in chunks)


def delete(path: AnyPath, *, follow: bool = True) -> bool:
    """Remove a name; False if it was not there. Not fsynced: after a power cut it may be back."""
    try:
        with _Folder(path, FileNotFoundError, follow) as (at, name):
            step("delete.unlink", os.unlink, name, dir_fd=at)
    except FileNotFoundError:
        return False
    return True


def sweep(path: AnyPath, *, before: float, also: Callable[[str], bool] | None = None) -> int:
    """Delete what kill -9 left in a directory: temporary files last written before a time; how many.

    Args:
        before: seconds since 1970. Who writes one for longer than that finds it gone, and is told.
        also: other names that nobody wants any more.
    """
    swept = 0
    for name in names(path):
        if name.startswith(TEMP) or (also is not None and also(name)):
            with suppress(FedqError):
                mark = fingerprint(os.path.join(path, name))
                if mark is not None and mark[3] < before * 1e9:
                    swept += delete(os.path.join(path, name))
    return swept


def make_dir(path: AnyPath, *, mode: int = 0o700) -> None:
    """A directory that is there, and survives a power cut; missing parents are made too.

    Args:
        mode: rights of those that are made, less the umask.
    """
    path = Path(path).absolute()
    if not path.parent.is_dir():
        make_dir(path.parent, mode=mode)
    with _Folder(path, None) as (at, name):
        try:
            step("make_dir.mkdir", os.mkdir, name, mode, dir_fd=at)
        except FileExistsError:
            if not path.is_dir():
                raise
        step("make_dir.sync_folder", _sync, at)  # also if it is there: who made it may have died before this


def share(path: AnyPath, group: str, *, mode: int) -> None:
    """Give a file or directory to a group, with exactly these rights.

    Raises:
        UsageError: there is no such group. Unreachable: this user is not in it.
    """
    import grp

    try:
        number = grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"no group {group!r} on this machine", hint="'id -Gn' lists yours") from None
    try:
        step("share.group", os.chown, path, -1, number)
        step("share.rights", os.chmod, path, mode)
    except OSError as error:
        raise told(error, path) from error


def is_shared(path: AnyPath) -> bool:
    """Whether what is made in this directory belongs to its group."""
    try:
        mode = step("share.stat", os.stat, path).st_mode
    except OSError:
        return False
    return mode & (stat.S_ISGID | 0o020) == stat.S_ISGID | 0o020


def flush(path: AnyPath) -> None:
    """Fsync a file and its directory, for one who finds it there and can not know what was fsynced."""
    with _Folder(path, None) as (at, name):
        file = step("flush.open", os.open, name, _OLD, dir_fd=at)
        try:
            step("flush.sync", _sync, file)
        finally:
            os.close(file)
        step("flush.sync_folder", _sync, at)


def _sync(file: int) -> None:
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _LACKS:  # some network file systems can not fsync a directory
            raise


# -- reading ---------------------------------------------------------------------------------


def read(path: AnyPath, *, limit_bytes: int, follow: bool = True) -> Buffer:
    """A private copy of a regular file: what another may change is never mapped, nor read twice.

    Up to 8 MiB as bytes; above, a view of an unlinked file of our own in the temporary directory.

    Raises:
        FileNotFoundError: it is not there (yet).
        BadFile: a symbolic link, FIFO, directory or device; or larger than ``limit_bytes``.
    """
    file, size = _open_regular(path, limit_bytes, follow)
    try:
        return _read_small(file, size) if size <= IN_MEMORY_BYTES else _read_large(file, size)
    except OSError as error:
        raise told(error, path) from error
    finally:
        os.close(file)


def map_private(path: AnyPath) -> memoryview:
    """A file mapped, not copied: only for files that nobody but this user can change. Raises as `read`."""
    import mmap

    file, size = _open_regular(path, 1 << 62, follow=True)
    try:
        return memoryview(mmap.mmap(file, size, access=mmap.ACCESS_READ) if size else b"")
    except OSError as error:
        raise told(error, path) from error
    finally:
        os.close(file)


def descriptor(path: AnyPath) -> int:
    """A private file, open for reading, to be handed to another process. Raises as `read`."""
    return _open_regular(path, 1 << 62, follow=True)[0]


def _open_regular(path: AnyPath, limit_bytes: int, follow: bool) -> tuple[int, int]:
    """Descriptor and size."""
    with _Folder(path, FileNotFoundError, follow) as (at, name):
        try:
            file = step("read.open", os.open, name, _OLD, dir_fd=at)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket
                raise
            raise BadFile(f"{path} is not a regular file") from None
        found = os.fstat(file)
        if stat.S_ISREG(found.st_mode) and found.st_size <= limit_bytes:
            return file, found.st_size
        os.close(file)
    if not stat.S_ISREG(found.st_mode):
        raise BadFile(f"{path} is not a regular file")
    raise BadFile(f"{path} has {found.st_size} bytes, at most {limit_bytes} are read")


def _read_small(file: int, size: int) -> bytes:
    data = step("read.read", os.read, file, size)
    while len(data) < size and (more := step("read.read", os.read, file, size - len(data))):
        data += more
    return data


def _read_large(file: int, size: int) -> memoryview:
    import mmap
    import tempfile

    with tempfile.TemporaryFile(buffering=0) as copy:
        left = size
        while left and (data := step("read.read", os.read, file, min(left, 1 << 20))):
            _write_all("read.write", copy.fileno(), data)
            left -= len(data)
        return memoryview(mmap.mmap(copy.fileno(), size - left, access=mmap.ACCESS_READ) if left < size else b"")


def names(path: AnyPath, *, follow: bool = True) -> list[str]:
    """What a directory holds, by name, in no order; empty if it is not there."""
    try:
        with _Folder(f"{os.fspath(path)}/", FileNotFoundError, follow) as (at, _):
            return step("names.list", os.listdir, at)
    except FileNotFoundError:
        return []


def fingerprint(path: AnyPath) -> tuple[int, int, int, int] | None:
    """Changes when the file does: device, inode, size, time of change (ns). None if it is not there."""
    try:
        found = step("fingerprint.stat", os.lstat, path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise told(error, path) from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def append(path: AnyPath) -> BinaryIO:
    """A private log file, open for appending; not fsynced."""
    with _Folder(path, None) as (at, name):
        file = step("append.open", os.open, name, _LOCK | os.O_APPEND, 0o600, dir_fd=at)
    return os.fdopen(file, "ab", buffering=0)


def tail(path: AnyPath, lines: int, *, most_bytes: int = 1 << 16) -> str:
    """The last lines of a log; empty if there is none."""
    try:
        file, size = _open_regular(path, 1 << 62, follow=True)
    except FileNotFoundError:
        return ""
    with os.fdopen(file, "rb") as log:
        log.seek(max(0, size - most_bytes))
        return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])


def check_private(path: AnyPath) -> None:
    """Unreachable unless a private file is closed to all others, and its directory to their writing."""
    path = Path(path).absolute()
    for each, forbidden, right in ((path, 0o077, "600"), (path.parent, 0o022, "700")):
        try:
            mode = step("private.stat", os.stat, each).st_mode & 0o777
        except OSError as error:
            raise told(error, each) from error
        if mode & forbidden:
            raise Unreachable(f"{each} is open to others (mode {mode:03o})", hint=f"chmod {right} {each}")


class _Folder:
    """The open directory of a path. What goes wrong in it is told, except what the caller decides about."""

    __slots__ = ("_at", "_flags", "_passes", "_path")

    def __init__(self, path: AnyPath, passes: type[OSError] | None, follow: bool = True) -> None:
        self._path, self._passes = path, passes
        self._flags = _FOLDER if follow else _FOLDER | os.O_NOFOLLOW

    def __enter__(self) -> tuple[int, str]:
        folder, name = os.path.split(self._path)
        try:
            self._at = step("folder.open", os.open, folder or ".", self._flags)
        except OSError as error:
            self._tell(error)
            raise
        return self._at, name

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        os.close(self._at)
        if error is not None:
            self._tell(error)

    def _tell(self, error: BaseException) -> None:
        decided = isinstance(error, self._passes) if self._passes else False
        if isinstance(error, OSError) and not isinstance(error, FedqError) and not decided:
            raise told(error, self._path) from error


def told(error: OSError, path: AnyPath) -> FedqError:
    """What the system said, for a user: the absolute path and the reason."""
    where, reason = Path(path).absolute(), error.strerror or str(error)
    if error.errno in _FULL:
        return DiskFull(f"{where}: {reason}", hint="free some space there, then try again", errno=error.errno)
    return Unreachable(f"{where}: {reason}", errno=error.errno)


# -- locks and records -----------------------------------------------------------------------


class Lock:
    """A held lock: until `release`, the end of a ``with``, or of this process, however it ends."""

    __slots__ = ("_file",)

    def __init__(self, file: int) -> None:
        self._file: int | None = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock(path: AnyPath) -> Lock:
    """Take the lock on a file, which is made if missing, never removed, and says who holds it.

    On a local disk only: a share's locks can not be relied on.

    Raises:
        AlreadyRunning: another process holds it; ``fields["pid"]`` is its id if it says.
    """
    with _Folder(path, None) as (at, name):
        file = step("lock.open", os.open, name, _LOCK, 0o600, dir_fd=at)
        try:
            step("lock.flock", fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
            os.pwrite(file, b"%d\n" % os.getpid(), 0)
        except BlockingIOError:
            pid = os.pread(file, 20, 0).decode("ascii", "replace").strip()
            os.close(file)
            where = Path(path).absolute().parent
            raise AlreadyRunning(f"process {pid or '?'} already serves {where}", pid=pid) from None
        except OSError:
            os.close(file)
            raise
    return Lock(file)


def holder(path: AnyPath) -> str | None:
    """Who holds the lock on a file: what it says of its process, "" if nothing; None if nobody does.

    Takes the lock for a moment and writes nothing: whoever wants it just then should try again.
    """
    with _Folder(path, None) as (at, name):
        file = step("lock.open", os.open, name, _LOCK, 0o600, dir_fd=at)
        try:
            step("lock.flock", fcntl.flock, file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.pread(file, 20, 0).decode("ascii", "replace").strip()
        finally:
            os.close(file)
    return None


def database(path: AnyPath, *, durable: bool = True) -> sqlite3.Connection:
    """Open or make a private SQLite file, WAL; a commit that returned is on the disk, if durable.

    Transactions are the caller's own BEGIN and COMMIT; statements are steps named after the
    file: ``journal.begin``, ``journal.insert``, ``journal.commit``.
    """
    with _Folder(path, None) as (at, name):
        os.close(step("database.open", os.open, name, _LOCK, 0o600, dir_fd=at))
        step("database.sync_folder", _sync, at)
    try:
        db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False, factory=_Database)
    except sqlite3.Error as error:
        raise Unreachable(f"{Path(path).absolute()}: {error}") from error
    db.path = Path(path).absolute()
    _write_ahead(db)
    db.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
    return db


def _write_ahead(db: sqlite3.Connection) -> None:
    """Two processes that open a new file at the same time: SQLite does not wait here by itself."""
    for wait_s in (0.01,) * 500:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except Unreachable as error:
            if "locked" not in str(error):
                raise
        time.sleep(wait_s)
    db.execute("PRAGMA journal_mode=WAL")


class _Database(sqlite3.Connection):
    path = Path()

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        try:
            return step(self._step(sql), super().execute, sql, *args) if FAILPOINTS else super().execute(sql, *args)
        except sqlite3.DatabaseError as error:
            raise self._told(error) from error

    def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
        many = super().executemany
        try:
            return step(self._step(sql), many, sql, *args) if FAILPOINTS else many(sql, *args)
        except sqlite3.DatabaseError as error:
            raise self._told(error) from error

    def executescript(self, sql: str) -> sqlite3.Cursor:
        try:
            return step(f"{self.path.stem}.script", super().executescript, sql)
        except sqlite3.DatabaseError as error:
            raise self._told(error) from error

    def _step(self, sql: str) -> str:
        return f"{self.path.stem}.{sql.split(maxsplit=1)[0].lower()}"

    def _told(self, error: sqlite3.DatabaseError) -> Exception:
        """What the disk did, as of any other file; what the caller did wrong stays as it is."""
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            return error
        if "full" in str(error):
            return DiskFull(f"{self.path}: {error}", hint="free some space there, then try again")
        return Unreachable(f"{self.path}: {error}")
