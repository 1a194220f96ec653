"""Wake up when something may have changed in a directory. An event is a hint; a scan is the truth.

Directories that are missing, deleted, renamed or mounted over are looked for again whenever
nothing else happens. No event comes for changes made on other machines (NFS, SMB, FUSE), and
none when the system's limits are reached: then `wait` just times out, so scan every second.
Source: Linux inotify(7).
"""

from __future__ import annotations

import logging
import os
import select
import struct
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fedq.fs import TEMP

T = TypeVar("T")

log = logging.getLogger("fedq.queue")

SPIN_S = 0.001
_let_others: Callable[[], object] = getattr(os, "sched_yield", bool)  # where there is none: nothing
RECHECK_S = 1.0
"""How long a lost directory may stay unwatched after it is back."""

_CREATE, _MOVED_TO, _DELETE_SELF, _MOVE_SELF = 0x100, 0x80, 0x400, 0x800
_ONLYDIR = 0x01000000
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_LOST = _DELETE_SELF | _MOVE_SELF | _IGNORED | _OVERFLOW
"""Events after which a path may lead elsewhere."""
_EVENT = struct.Struct("iIII")
MOST_HEARD = 10_000
"""Names that are remembered between two looks; after more, all may have changed."""
Heard = Mapping[str, set[str]] | None
"""By watched path, the names that something was heard of; None: anything may have changed."""
_READ_BYTES = 1 << 16


class InotifyWatch:
    """Directories watched by the kernel: 50 µs from a file's name to `wait` returning.

    Lists well with other descriptors: when `fileno` is readable call `drain`, and `wait(0)` now
    and then, which looks for lost directories.
    """

    def __init__(self) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        self._add_watch, self._remove_watch, self._errno = (
            libc.inotify_add_watch,
            libc.inotify_rm_watch,
            ctypes.get_errno,
        )
        self._watches: dict[str, int] = {}
        """Path -> watch number, -1 while it can not be watched."""
        self._heard = _Names()
        self._fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            log.warning("no inotify (%s): scanning only", os.strerror(self._errno()))
            self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._fd)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def add(self, path: Path) -> None:
        """Watch a directory, which may be missing still; again is a no-op."""
        self._watches.setdefault(str(path), -1)
        self._look(str(path))

    def remove(self, path: Path) -> None:
        """Watch it no more."""
        number = self._watches.pop(str(path), -1)
        if number >= 0 and number not in self._watches.values():
            self._remove_watch(self._fd, number)

    def fileno(self) -> int:
        """Readable when something may have changed."""
        return self._fd

    def wait(self, timeout_s: float | None) -> bool:
        """True as soon as something may have changed, False after the time given."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = RECHECK_S if end is None else min(RECHECK_S, max(0.0, end - time.monotonic()))
            if self._poll.poll(left_s * 1000):
                if self.drain():
                    return True
            elif self._recheck():
                return True
            if end is not None and time.monotonic() >= end:
                return False

    def drain(self) -> bool:
        """Take what has been reported; whether any of it matters. Never waits."""
        seen = 0
        with suppress(BlockingIOError):
            while True:
                events = os.read(self._fd, _READ_BYTES)
                seen |= self._take_in(events)
                if len(events) < _READ_BYTES // 2:
                    break
        changed = bool(seen & ~_IGNORED)
        if seen & _LOST:
            self._heard.anything()
            return self._recheck() or changed
        return changed

    def heard(self) -> Heard:
        """What `drain` and `wait` took in since the last call, by path: a hint where to look first."""
        return self._heard.take()

    def _take_in(self, events: bytes) -> int:
        """The masks of these events, or-ed; without those of temporary names."""
        seen, paths = 0, dict[int, list[str]]()
        for path, number in self._watches.items():
            paths.setdefault(number, []).append(path)
        for number, mask, name in _events(events):
            if not name.startswith(TEMP):
                seen |= mask
                for path in paths.get(number, ()):
                    self._heard.add(path, name)
        return seen

    def _recheck(self) -> bool:
        """Whether a path leads to another directory than before, or to none."""
        return sum([self._look(path) for path in self._watches]) > 0

    def _look(self, path: str) -> bool:
        mask = _CREATE | _MOVED_TO | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
        before = self._watches[path]
        now = self._add_watch(self._fd, os.fsencode(path), mask)
        if now == before:
            return False
        self._watches[path] = now
        self._heard.anything()
        if before >= 0 and before not in self._watches.values():
            self._remove_watch(self._fd, before)
        if now < 0:
            log.info("not watching %s: %s", path, os.strerror(self._errno()))
        return True

    def close(self) -> None:
        """Let go of it; also done when nobody holds this any more: a user has 128 at most."""
        self._close()


def _events(events: bytes) -> Iterator[tuple[int, int, str]]:
    """Watch, mask and name of each."""
    at = 0
    while at < len(events):
        number, mask, _, length = _EVENT.unpack_from(events, at)
        at += _EVENT.size
        yield number, mask, os.fsdecode(events[at : at + length].rstrip(b"\0"))
        at += length


class _Names:
    """Names by path; so many at most."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] | None = {}
        self._left = MOST_HEARD

    def add(self, path: str, name: str) -> None:
        self._left -= 1
        if self._left < 0:
            self.anything()
        elif self._names is not None:
            self._names.setdefault(path, set()).add(name)

    def anything(self) -> None:
        self._names = None

    def take(self) -> Heard:
        found, self._names, self._left = self._names, {}, MOST_HEARD
        return found


class ObserverWatch:
    """The same by watchdog's Observer, where there is no inotify: slower by a millisecond or two."""

    def __init__(self) -> None:
        from watchdog.observers import Observer

        self._observer: Any = Observer()
        self._observer.start()
        self._watches: dict[str, tuple[tuple[int, int], Any] | None] = {}
        self._heard = _Names()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def dispatch(self, event: Any) -> None:
        """What the observer's thread calls, for every event."""
        if event.event_type in ("created", "moved", "deleted") and not _is_temp(event):
            self._heard.add(*os.path.split(os.fsdecode(event.dest_path or event.src_path)))
            with suppress(OSError):  # full: it will wake up anyway
                os.write(self._write, b".")

    def add(self, path: Path) -> None:
        self._watches.setdefault(str(path), None)
        self._look(str(path))

    def remove(self, path: Path) -> None:
        watched = self._watches.pop(str(path), None)
        if watched:
            self._forget(watched[1])

    def fileno(self) -> int:
        return self._read

    def wait(self, timeout_s: float | None) -> bool:
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = RECHECK_S if end is None else min(RECHECK_S, max(0.0, end - time.monotonic()))
            if select.select([self._read], [], [], left_s)[0]:
                return self.drain()
            if sum([self._look(path) for path in self._watches]) > 0:
                return True
            if end is not None and time.monotonic() >= end:
                return False

    def drain(self) -> bool:
        with suppress(BlockingIOError):
            return bool(os.read(self._read, _READ_BYTES))
        return False

    def heard(self) -> Heard:
        return self._heard.take()

    def _look(self, path: str) -> bool:
        watched, now = self._watches[path], _identity(path)
        if now == (watched and watched[0]):
            return False
        if watched:
            self._forget(watched[1])
        self._watches[path] = None
        self._heard.anything()
        if now:
            with suppress(OSError):
                self._watches[path] = (now, self._observer.schedule(self, path))
        return True

    def _forget(self, watch: Any) -> None:
        with suppress(KeyError, OSError):
            self._observer.unschedule(watch)

    def close(self) -> None:
        self._observer.stop()
        self._observer.join()
        os.close(self._read)
        os.close(self._write)


def _is_temp(event: Any) -> bool:
    return Path(os.fsdecode(event.dest_path or event.src_path)).name.startswith(TEMP)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def spin(ask: Callable[[], T]) -> T:
    """Ask at once and for a moment more: who is called within it need not be woken, 0.1 ms each time."""
    end = time.perf_counter() + SPIN_S
    while not (found := ask()) and time.perf_counter() < end:
        _let_others()
    return found


if sys.platform == "linux":
    Watch = InotifyWatch
else:
    Watch = ObserverWatch
