"""Private copies of files that others may change, names, and what tells that a file changed."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

from fedq.errors import BadFile
from fedq.fs.steps import KEPT, OLD, AnyPath, Buffer, Folder, step, told, write_all

IN_MEMORY_BYTES = 8 << 20
"""Files up to this size are read into memory; larger ones into a private file."""


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
    with Folder(path, FileNotFoundError, follow) as (at, name):
        try:
            file = step("read.open", os.open, name, OLD, dir_fd=at)
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
            write_all("read.write", copy.fileno(), data)
            left -= len(data)
        return memoryview(mmap.mmap(copy.fileno(), size - left, access=mmap.ACCESS_READ) if left < size else b"")


def names(path: AnyPath, *, follow: bool = True) -> list[str]:
    """What a directory holds, by name, in no order; empty if it is not there."""
    try:
        with Folder(f"{os.fspath(path)}/", FileNotFoundError, follow) as (at, _):
            return step("names.list", os.listdir, at)
    except FileNotFoundError:
        return []


def is_folder(path: AnyPath) -> bool:
    """Whether a folder stands there."""
    return os.path.isdir(path)


def fingerprint(path: AnyPath) -> tuple[int, int, int, int] | None:
    """Changes when the file does: device, inode, size, time of change (ns). None if it is not there."""
    try:
        found = step("fingerprint.stat", os.lstat, path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise told(error, path) from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def tail(path: AnyPath, lines: int, *, most_bytes: int = 1 << 16) -> str:
    """The last lines of a log; empty if there is none."""
    try:
        file, size = _open_regular(path, 1 << 62, follow=True)
    except FileNotFoundError:
        return ""
    with os.fdopen(file, "rb") as log:
        log.seek(max(0, size - most_bytes))
        return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])


def append(path: AnyPath) -> BinaryIO:
    """A private log file, open for appending; not fsynced."""
    with Folder(path, None) as (at, name):
        file = step("append.open", os.open, name, KEPT | os.O_APPEND, 0o600, dir_fd=at)
    return os.fdopen(file, "ab", buffering=0)
