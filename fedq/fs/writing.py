"""New files, replaced files, directories; and taking them away.

A file is written under no name (or a temporary one), fsynced, given its name, and the directory
is fsynced: only then does `put` return. A name is never overwritten and never shows a torn file.
Sources: D. J. Bernstein, "Using maildir format"; Linux open(2), "O_TMPFILE"; renameat2(2).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from fedq.errors import FedqError
from fedq.fs.reading import fingerprint, names
from fedq.fs.steps import FOLDER, LACKS, OLD, AnyPath, Buffer, Folder, step, sync, told, write_all

TEMP = ".tmp-"
"""How temporary names begin; what kill -9 leaves of them is swept by age."""
MOST_DEEP = 100
"""Folders in each other that are removed: others made them."""

_JOIN_BYTES = 1 << 20
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNNAMED = getattr(os, "O_TMPFILE", 0)
_LACKS_LINKS = LACKS | {errno.EPERM, errno.EMLINK, errno.EXDEV}
_LACKS_UNNAMED = _LACKS_LINKS | {errno.EISDIR, errno.ENOENT}


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
    with Folder(path, FileExistsError, follow) as (at, name):
        if not (_UNNAMED and _put_unnamed(at, name, chunks, durable, mode, exact)):
            _put_named(at, name, chunks, durable, mode, exact)
        if durable:
            try:
                step("put.sync_folder", sync, at)
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
        if error.errno not in LACKS:
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
    with Folder(path, None) as (at, name):
        temp = _write_temp("replace", at, chunks, durable, mode, exact)
        try:
            step("replace.rename", os.replace, temp, name, src_dir_fd=at, dst_dir_fd=at)
        except OSError:
            with suppress(OSError):
                os.unlink(temp, dir_fd=at)
            raise
        if durable:
            step("replace.sync_folder", sync, at)


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
        write_all(f"{what}.write", file, chunk)
    if durable:
        step(f"{what}.sync", os.fsync, file)


def size_bytes(chunks: Sequence[Buffer]) -> int:
    return sum(memoryview(chunk).nbytes for chunk in chunks)


def delete(path: AnyPath, *, follow: bool = True) -> bool:
    """Remove a name; False if it was not there. Not fsynced: after a power cut it may be back."""
    try:
        with Folder(path, FileNotFoundError, follow) as (at, name):
            step("delete.unlink", os.unlink, name, dir_fd=at)
    except FileNotFoundError:
        return False
    return True


def aside(path: AnyPath, *, follow: bool = True) -> bool:
    """Clear a name of whatever stands there: a file or link is deleted, a folder with something in it is renamed to
    ``<name>.aside-<hex>`` beside it. False if nothing stood there.

    Raises:
        Unreachable: this user may not.
    """
    try:
        with Folder(path, FileNotFoundError, follow) as (at, name):
            if not stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                step("aside.unlink", os.unlink, name, dir_fd=at)
                return True
            try:
                step("aside.rmdir", os.rmdir, name, dir_fd=at)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                other = f"{name}.aside-{os.urandom(4).hex()}"
                step("aside.rename", os.rename, name, other, src_dir_fd=at, dst_dir_fd=at)
    except FileNotFoundError:
        return False
    return True


def remove(path: AnyPath) -> bool:
    """Delete a file, or a directory with all that is in it; a link, not what it leads to. False if it was not there.

    Not at once: who is ended in the middle leaves a part, and does it again. Others may swap a folder for a link
    meanwhile: each is opened once, and what is in it is named from there.

    Raises:
        Unreachable: this user may not; or folders are in each other more than 100 deep.
    """
    try:
        with Folder(path, FileNotFoundError) as (at, name):
            _remove(at, name, os.fspath(path), MOST_DEEP)
    except FileNotFoundError:
        return False
    return True


def _remove(at: int, name: str, path: str, deep: int) -> None:
    try:
        folder = _folder_in(at, name)
        if folder is None:
            step("remove.unlink", os.unlink, name, dir_fd=at)
            return
        try:
            _empty(folder, path, deep)
        finally:
            os.close(folder)
        step("remove.rmdir", os.rmdir, name, dir_fd=at)
    except (FileNotFoundError, FedqError):
        raise
    except OSError as error:
        raise told(error, path) from error


def _folder_in(at: int, name: str) -> int | None:
    """A descriptor of a folder, None of anything else."""
    try:
        return step("remove.open", os.open, name, FOLDER | os.O_NOFOLLOW, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _empty(folder: int, path: str, deep: int) -> None:
    if not deep:
        raise OSError(errno.ENAMETOOLONG, f"folders in each other more than {MOST_DEEP} deep")
    for name in step("remove.list", os.listdir, folder):
        with suppress(FileNotFoundError):
            _remove(folder, name, os.path.join(path, name), deep - 1)


def make_dir(path: AnyPath, *, mode: int = 0o700) -> None:
    """A directory that is there, and survives a power cut; missing parents are made too.

    Args:
        mode: rights of those that are made, less the umask.
    """
    path = Path(path).absolute()
    if not path.parent.is_dir():
        make_dir(path.parent, mode=mode)
    with Folder(path, None) as (at, name):
        try:
            step("make_dir.mkdir", os.mkdir, name, mode, dir_fd=at)
        except FileExistsError:
            if not path.is_dir():
                raise
        step("make_dir.sync_folder", sync, at)  # also if it is there: who made it may have died before this


def new_dir(path: AnyPath, *, mode: int, group: int | None = None) -> bool:
    """A new directory with exactly these rights, whatever the umask, or none.

    Args:
        group: whose it is, if not this process's.

    Returns:
        False if one stands there, which stays as it is.
    """
    with Folder(path, None) as (at, name):
        made = not os.path.isdir(path) and _new_dir(at, name, mode, group)
        step("new_dir.sync_folder", sync, at)
    return made


def _new_dir(at: int, name: str, mode: int, group: int | None) -> bool:
    for left in (n for n in os.listdir(at) if n.startswith(TEMP)):  # by one that was killed here
        with suppress(OSError):
            os.rmdir(left, dir_fd=at)
    temp = TEMP + os.urandom(8).hex()
    step("new_dir.mkdir", os.mkdir, temp, 0o700, dir_fd=at)
    try:
        if group is not None:
            step("new_dir.group", os.chown, temp, -1, group, dir_fd=at, follow_symlinks=False)
        step("new_dir.rights", os.chmod, temp, mode, dir_fd=at)
        step("new_dir.name", _name_dir, at, temp, name)
    except OSError as error:
        with suppress(OSError):
            os.rmdir(temp, dir_fd=at)
        if not isinstance(error, FileExistsError):
            raise
        return False  # another process was first, or a file stands there: who uses it will say so
    return True


def _name_dir(at: int, temp: str, name: str) -> None:
    try:
        _rename_new(at, temp, name)
    except OSError as error:
        if error.errno not in LACKS:
            raise
        if _exists(at, name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from None
        os.rename(temp, name, src_dir_fd=at, dst_dir_fd=at)


def is_shared(path: AnyPath) -> bool:
    """Whether what is made in this directory belongs to its group."""
    try:
        mode = step("share.stat", os.stat, path).st_mode
    except OSError:
        return False
    return mode & (stat.S_ISGID | 0o020) == stat.S_ISGID | 0o020


def flush(path: AnyPath) -> None:
    """Fsync a file and its directory, for one who finds it there and can not know what was fsynced."""
    with Folder(path, None) as (at, name):
        file = step("flush.open", os.open, name, OLD, dir_fd=at)
        try:
            step("flush.sync", sync, file)
        finally:
            os.close(file)
        step("flush.sync_folder", sync, at)


def sweep(path: AnyPath, *, before: float, also: Callable[[str], bool] | None = None, follow: bool = True) -> int:
    """Delete what kill -9 left in a directory: temporary files last written before a time; how many.

    Args:
        before: seconds since 1970. Who writes one for longer than that finds it gone, and is told.
        also: other names that nobody wants any more.
        follow: whether the directory may be a link; one that others can swap may lead anywhere.
    """
    swept = 0
    for name in names(path, follow=follow):
        if name.startswith(TEMP) or (also is not None and also(name)):
            with suppress(FedqError):
                mark = fingerprint(os.path.join(path, name))
                if mark is not None and mark[3] < before * 1e9:
                    swept += _sweep(os.path.join(path, name), follow)
    return swept


def _sweep(path: str, follow: bool) -> bool:
    """Of folders only empty ones: nothing that somebody put there goes."""
    if not os.path.isdir(path) or os.path.islink(path):
        return delete(path, follow=follow)
    with suppress(OSError), Folder(path, OSError, follow) as (at, name):
        os.rmdir(name, dir_fd=at)
        return True
    return False
