"""Private copies of files that others may change, names, and what tells that a file changed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import BinaryIO

from fedq.errors import BadFile, BadSignature
from fedq.fs.steps import KEPT, OLD, AnyPath, Buffer, Folder, disk_clock, step, told, write_all

IN_MEMORY_BYTES = 8 << 20
"""Files up to this size are read into memory; larger ones into a private file."""


TAIL_BYTES = 64
"""What `read_hashed` leaves out of the first of its two digests: where a signature would stand."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A private copy of a file, with digests that were taken while it was made.

    Attributes:
        signed: SHA-256 of all bytes but the last 64.
        digest: SHA-256 of all, hex.
    """

    data: Buffer
    signed: bytes
    digest: str


def read(path: AnyPath, *, limit_bytes: int, follow: bool = True) -> Buffer:
    """A private copy of a regular file: what another may change is never mapped, nor read twice.

    Up to 8 MiB as bytes; above, a view of an unlinked file of our own in the temporary directory.

    Raises:
        FileNotFoundError: it is not there (yet).
        BadFile: a symbolic link, FIFO, directory or device; or larger than ``limit_bytes``.
    """
    return _copy(path, limit_bytes, follow, None, b"")


def read_hashed(path: AnyPath, *, limit_bytes: int, follow: bool = True, key: bytes = b"") -> Copy:
    """The same, hashed on the way, so that a signature over it costs no second reading.

    Args:
        key: 32 bytes that must stand where a signed file names its signer, looked at before anything is copied.

    Raises:
        BadSignature: something else stands there.
    """
    sha = _Sha()
    data = _copy(path, limit_bytes, follow, sha, key)
    return Copy(data, *sha.digests(data))


def _copy(path: AnyPath, limit_bytes: int, follow: bool, sha: _Sha | None, key: bytes) -> Buffer:
    file, size = _open_regular(path, limit_bytes, follow)
    try:
        if key and os.pread(file, len(key), max(0, size - TAIL_BYTES - len(key))) != key:
            raise BadSignature(f"{path} is not signed by {key.hex()[:8]}: by another key, unsigned, or truncated")
        if size > IN_MEMORY_BYTES:
            return _read_large(file, size, sha)
        data = _read_small(file, size)
    except OSError as error:
        raise told(error, path) from error
    finally:
        os.close(file)
    if sha is not None:
        sha.add(data, size)
    return data


class _Sha:
    """SHA-256 of a file that is read in parts: of all of it, and of what stands before its last 64 bytes."""

    __slots__ = ("_at", "_before", "_size", "_whole")

    def __init__(self) -> None:
        self._whole, self._before = hashlib.sha256(), hashlib.sha256()
        self._at = self._size = 0

    def add(self, part: Buffer, size: int) -> None:
        """The next part of a file that is to have this size."""
        cut = size - TAIL_BYTES - self._at
        view = memoryview(part)
        if 0 <= cut <= len(view):
            self._whole.update(view[:cut])
            self._before = self._whole.copy()
            self._whole.update(view[cut:])
        else:
            self._whole.update(view)
        self._at += len(view)
        self._size = size

    def digests(self, data: Buffer) -> tuple[bytes, str]:
        if self._at != self._size or self._at < TAIL_BYTES:  # it was cut off while it was read
            return hashlib.sha256(memoryview(data)[:-TAIL_BYTES]).digest(), hashlib.sha256(data).hexdigest()
        return self._before.digest(), self._whole.hexdigest()


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
    raise BadFile(f"{path} has {found.st_size} bytes, at most {limit_bytes} are read", size_bytes=found.st_size)


def _read_small(file: int, size: int) -> bytes:
    data = step("read.read", os.read, file, size)
    while len(data) < size and (more := step("read.read", os.read, file, size - len(data))):
        data += more
    return data


def _read_large(file: int, size: int, sha: _Sha | None) -> memoryview:
    import mmap
    import tempfile

    with tempfile.TemporaryFile(buffering=0) as copy:
        left = size
        while left and (data := step("read.read", os.read, file, min(left, 1 << 20))):
            write_all("read.write", copy.fileno(), data)
            if sha is not None:
                sha.add(data, size)
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


STILL_S = 0.1
"""What changed so long ago changed in no tick of a disk's clock that may still go on."""


def still(path: AnyPath) -> tuple[int, int, int] | None:
    """A folder's mark, the same as long as nothing comes or goes in it; None if something did a moment ago.

    Compared with the time of this machine: where a share's clock is behind, a change may hide for a while.
    """
    try:
        found = step("still.stat", os.stat, path)
    except OSError:
        return None
    if not 0 < found.st_mtime_ns < (disk_clock() - STILL_S) * 1e9:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


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
