"""Every state a power cut may leave, by a model of a file system that promises no more than POSIX.

A run of the protocol is recorded step by step through ``FAILPOINTS["*"]``. At every step the cut
may come; then the bytes of a file are those of its last fsync, or any part of what came after; a
name is there if its directory was fsynced since, or by luck; each of these in any combination.
SQLite's promise is taken at its word: a commit with ``synchronous=FULL`` that returned is there,
one without it perhaps, in order.
Each state is written into a directory, real recovery runs on it, and the promises are checked.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedq import fs

Names = dict[str, int]
"""Path below the root -> inode; `FOLDER` for a directory."""
FOLDER = 0


@dataclass
class Inode:
    """A file: its bytes, and those that are sure to be on the disk."""

    data: bytes = b""
    durable: bytes = b""


@dataclass(frozen=True)
class NameOp:
    """A change of one directory that is not fsynced: names removed and added at once."""

    folder: str
    remove: tuple[str, ...]
    add: tuple[tuple[str, int], ...]


@dataclass
class Disk:
    """What is on the disk for sure, and what only perhaps."""

    root: Path
    inodes: dict[int, Inode] = field(default_factory=dict)
    durable: Names = field(default_factory=dict)
    pending: list[NameOp] = field(default_factory=list)
    databases: dict[str, list[Path]] = field(default_factory=dict)
    """Database -> copies of it that may be found after a cut, the oldest first."""

    def current(self) -> Names:
        names = dict(self.durable)
        for op in self.pending:
            _apply(names, op)
        return names


def _apply(names: Names, op: NameOp) -> None:
    for name in op.remove:
        names.pop(name, None)
    names.update(op.add)


class Recorder:
    """Does what `fedq.fs` does, and keeps a `Disk` beside it; calls ``cut`` after every step."""

    def __init__(self, root: Path, copies: Path, cut: Callable[[Disk, str], None]) -> None:
        self.disk, self._cut, self._copies = Disk(root), cut, copies
        self._fds: dict[int, int] = {}
        self._count = itertools.count(1)
        self._full: dict[str, bool] = {}
        self.trace: list[str] = []
        for path in root.rglob("*"):
            self._found(path)

    def _found(self, path: Path) -> None:
        name = str(path.relative_to(self.disk.root))
        if path.is_dir():
            self.disk.durable[name] = FOLDER
        elif path.suffix == ".sqlite":
            self._snapshot(path, sure=True)
        elif "sqlite-" not in path.name:
            inode = next(self._count)
            data = path.read_bytes()
            self.disk.inodes[inode] = Inode(data, data)
            self.disk.durable[name] = inode

    # -- steps

    def __call__(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        done = call(*args, **kwargs)
        what = getattr(self, "_on_" + name.replace(".", "_"), None)
        if what is not None:
            what(done, *args, **kwargs)
        elif name.partition(".")[0] in ("outbox", "journal"):
            self._on_sql(name, call.__self__, *args)  # type: ignore[attr-defined]
        else:
            return done
        self.trace.append(name)
        self._cut(self.disk, name)
        return done

    def _at(self, dir_fd: int, name: str = "") -> str:
        where = Path(os.readlink(f"/proc/self/fd/{dir_fd}")).relative_to(self.disk.root)
        return str(where / name) if name else str(where)

    def _inode(self, fd: int) -> Inode:
        return self.disk.inodes[self._fds[fd]]

    def _change(self, folder: str, remove: tuple[str, ...], *add: tuple[str, int]) -> None:
        self.disk.pending.append(NameOp(folder, remove, add))

    def _on_put_unnamed(self, fd: int, *_: Any, **__: Any) -> None:
        self._fds[fd] = next(self._count)
        self.disk.inodes[self._fds[fd]] = Inode()

    def _on_put_create(self, fd: int, temp: str, *_: Any, dir_fd: int) -> None:
        self._on_put_unnamed(fd)
        self._change(self._at(dir_fd), (), (self._at(dir_fd, temp), self._fds[fd]))

    _on_replace_create = _on_put_create

    def _on_put_write(self, written: int, fd: int, data: Any) -> None:
        self._inode(fd).data += bytes(data[:written])

    _on_replace_write = _on_put_write

    def _on_put_sync(self, _: Any, fd: int) -> None:
        self._inode(fd).durable = self._inode(fd).data

    _on_replace_sync = _on_flush_sync = _on_put_sync

    def _on_flush_open(self, fd: int, name: str, *_: Any, dir_fd: int) -> None:
        self._fds[fd] = self.disk.current()[self._at(dir_fd, name)]

    def _on_put_name(self, _: Any, source: str, name: str, *, dst_dir_fd: int) -> None:
        self._change(self._at(dst_dir_fd), (), (self._at(dst_dir_fd, name), self._fds[int(source.rpartition("/")[2])]))

    def _on_put_link(self, _: Any, temp: str, name: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        inode = self.disk.current()[self._at(src_dir_fd, temp)]
        self._change(self._at(dst_dir_fd), (), (self._at(dst_dir_fd, name), inode))

    def _on_replace_rename(self, _: Any, temp: str, name: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        old = self._at(src_dir_fd, temp)
        self._change(self._at(dst_dir_fd), (old,), (self._at(dst_dir_fd, name), self.disk.current()[old]))

    _on_put_rename = _on_replace_rename

    def _on_put_rename_new(self, _: Any, at: int, temp: str, name: str) -> None:
        self._on_replace_rename(_, temp, name, src_dir_fd=at, dst_dir_fd=at)

    def _on_delete_unlink(self, _: Any, name: str, *, dir_fd: int) -> None:
        self._change(self._at(dir_fd), (self._at(dir_fd, name),))

    _on_put_unlink = _on_delete_unlink

    def _on_make_dir_mkdir(self, _: Any, name: str, *__: Any, dir_fd: int) -> None:
        self._change(self._at(dir_fd), (), (self._at(dir_fd, name), FOLDER))

    _on_new_dir_mkdir, _on_new_dir_name = _on_make_dir_mkdir, _on_put_rename_new

    def _on_put_sync_folder(self, _: Any, dir_fd: int) -> None:
        folder = self._at(dir_fd)
        for op in [op for op in self.disk.pending if op.folder == folder]:
            _apply(self.disk.durable, op)
        self.disk.pending = [op for op in self.disk.pending if op.folder != folder]

    _on_replace_sync_folder = _on_make_dir_sync_folder = _on_flush_sync_folder = _on_new_dir_sync_folder = (
        _on_put_sync_folder
    )

    # -- databases

    def _on_sql(self, name: str, db: sqlite3.Connection, sql: str = "", *_: Any) -> None:
        path: Path = db.path  # type: ignore[attr-defined]
        if "synchronous=" in sql:
            self._full[str(path)] = "FULL" in sql
        if name.endswith((".commit", ".script")):
            self._snapshot(path, sure=self._full.get(str(path), True))

    def _snapshot(self, path: Path, *, sure: bool) -> None:
        """A copy as a reader would see it now; what is sure makes all that is older impossible."""
        name = str(path.relative_to(self.disk.root))
        copy = self._copies / f"{next(self._count)}.sqlite"
        source, target = sqlite3.connect(path), sqlite3.connect(copy)
        source.backup(target)
        source.close()
        target.close()
        known = self.disk.databases.setdefault(name, [])
        if sure:
            known.clear()
        known.append(copy)


class fs_off:
    """No recording inside."""

    def __enter__(self) -> None:
        self._kept = dict(fs.FAILPOINTS)
        fs.FAILPOINTS.clear()

    def __exit__(self, *_: object) -> None:
        fs.FAILPOINTS.update(self._kept)


# -- states ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What a cut may leave: files with their bytes, folders, and a copy of each database."""

    files: tuple[tuple[str, bytes], ...]
    folders: tuple[str, ...]
    databases: tuple[tuple[str, Path], ...]

    @property
    def key(self) -> str:
        sha = hashlib.sha256(repr((self.folders, self.databases)).encode())
        for name, data in self.files:
            sha.update(f"{name} {len(data)} ".encode() + data)
        return sha.hexdigest()

    def write(self, root: Path) -> None:
        for folder in sorted(self.folders):
            (root / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, data in self.files:
            (root / name).write_bytes(data)
            (root / name).chmod(0o600)
            (root / name).chmod(0o600)
        for name, copy in self.databases:
            shutil.copy(copy, root / name)
            (root / name).chmod(0o600)


def states(disk: Disk, *, most: int, rng: random.Random) -> Iterator[State]:
    """What a cut now may leave; a sample of ``most`` where there are more."""
    count = len(disk.pending)
    if 2**count <= most:
        subsets = [[op for bit, op in enumerate(disk.pending) if n >> bit & 1] for n in range(2**count)]
    else:  # none, all, each alone, all but each, and some at random
        subsets = [[], list(disk.pending)]
        subsets += [[op] for op in disk.pending] + [[o for o in disk.pending if o is not op] for op in disk.pending]
        subsets += [[op for op in disk.pending if rng.random() < 0.5] for _ in range(most)]
    made = 0
    for subset in subsets:
        names = dict(disk.durable)
        for op in subset:
            _apply(names, op)
        names = {name: inode for name, inode in names.items() if _reachable(name, names)}
        files = {name: inode for name, inode in names.items() if inode != FOLDER}
        folders = tuple(sorted(name for name, inode in names.items() if inode == FOLDER))
        torn = [i for i in dict.fromkeys(files.values()) if disk.inodes[i].durable != disk.inodes[i].data]
        variants = itertools.product(*(_contents(disk.inodes[i]) for i in torn))
        databases = itertools.product(*([(name, copy) for copy in known] for name, known in disk.databases.items()))
        for contents, copies in itertools.islice(itertools.product(variants, databases), most):
            data = dict(zip(torn, contents, strict=True))
            found = ((name, data.get(inode, disk.inodes[inode].data)) for name, inode in files.items())
            yield State(tuple(sorted(found)), folders, copies)
            made += 1
            if made >= most * 4:
                return


def _reachable(name: str, names: Names) -> bool:
    """Whether all directories above it are there."""
    return all(str(p) in names for p in Path(name).parents if str(p) != ".")


def _contents(inode: Inode) -> list[bytes]:
    """The bytes of a file that was not fsynced: as they were, half of the new ones, zeros, or all."""
    new = len(inode.data) - len(inode.durable)
    half = inode.data[: len(inode.durable) + new // 2]
    return list(dict.fromkeys([inode.durable, half, inode.durable + bytes(new), inode.data]))


__all__ = ["Disk", "Recorder", "State", "errno", "fs_off", "states"]
