"""Locks on a private, local disk: one process at a time, however the last one ended."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fedq.errors import AlreadyRunning
from fedq.fs.steps import KEPT, AnyPath, Folder, step


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
    with Folder(path, None) as (at, name):
        file = step("lock.open", os.open, name, KEPT, 0o600, dir_fd=at)
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
    with Folder(path, None) as (at, name):
        file = step("lock.open", os.open, name, KEPT, 0o600, dir_fd=at)
        try:
            step("lock.flock", fcntl.flock, file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.pread(file, 20, 0).decode("ascii", "replace").strip()
        finally:
            os.close(file)
    return None
