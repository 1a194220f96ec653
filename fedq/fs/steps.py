"""Steps and failpoints, the clock, and the open directory that all else goes through.

What the disk says comes out as `Unreachable` or `DiskFull` with the absolute path.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from fedq.errors import DiskFull, FedqError, Unreachable

Buffer = bytes | bytearray | memoryview
AnyPath = str | os.PathLike[str]
P = ParamSpec("P")
T = TypeVar("T")

FAILPOINTS: dict[str, Callable[..., Any]] = {}
"""Step name, or ``*`` -> what is called instead, as ``f(name, call, *args, **kwargs)``. For tests only:
raise, delay, kill, write less than asked, or write down what was called."""

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
KEPT = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
LACKS = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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


def disk_clock() -> float:
    """The same for what the disk of this machine says of its files; no test puts another in its place."""
    return time.time()


class Folder:
    """The open directory of a path. What goes wrong in it is told, except what the caller decides about."""

    __slots__ = ("_at", "_flags", "_passes", "_path")

    def __init__(self, path: AnyPath, passes: type[OSError] | None, follow: bool = True) -> None:
        self._path, self._passes = path, passes
        self._flags = FOLDER if follow else FOLDER | os.O_NOFOLLOW

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


def sync(file: int) -> None:
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in LACKS:  # some network file systems can not fsync a directory
            raise


def write_all(name: str, file: int, chunk: Buffer) -> None:
    rest = memoryview(chunk).cast("B")
    while rest:
        written = step(name, os.write, file, rest)
        if not written:
            raise OSError(errno.EIO, "a write wrote nothing")
        rest = rest[written:]
