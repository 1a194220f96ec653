"""Whose a file is, and who else may read or write it: what is private, what a group shares."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fedq.errors import FedqError, FileMissing, Unreachable, UsageError
from fedq.fs.reading import names
from fedq.fs.steps import AnyPath, step, told

_ANY = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def owner(path: AnyPath) -> str:
    """Who has a file or folder, if that is neither this user nor root; a link and what it leads to count. "" else."""
    return _others(path)[0]


def _others(path: AnyPath) -> tuple[str, int]:
    """Who else has it, and its rights. What went meanwhile, as a journal's log does, is nobody's."""
    try:
        found = link = step("owners.link", os.lstat, path)
    except FileNotFoundError:
        return "", 0
    except OSError as error:
        raise told(error, path) from error
    try:
        if stat.S_ISLNK(link.st_mode):
            found = step("owners.stat", os.stat, path)
    except OSError as error:
        raise told(error, path) from error
    strangers = [uid for uid in (link.st_uid, found.st_uid) if uid not in (os.geteuid(), 0)]
    return _user(strangers[0]) if strangers else "", found.st_mode & 0o777


def _user(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def not_own(path: AnyPath) -> str:
    """Why others may have made a file or folder what it is; "" if only this user and root can."""
    other, mode = _others(path)
    if other:
        return f"{path} belongs to {other}"
    return f"{path} can be written by others (mode {mode:03o})" if mode & 0o022 else ""


def check_private(path: AnyPath) -> None:
    """Unreachable unless a private file is this user's and closed to all others, and its folder to their writing."""
    path = Path(path).absolute()
    for each, forbidden, right in ((path, 0o077, "600"), (path.parent, 0o022, "700")):
        _check(each, forbidden, f"chmod {right}")


def check_folder(path: AnyPath) -> None:
    """Unreachable unless a folder, if it is there, is this user's and nobody else may write in it."""
    if os.path.lexists(path):
        _check(Path(path).absolute(), 0o022, "chmod go-w")


def check_home(path: Path, *, private: Sequence[str] = (), own: Sequence[str] = ()) -> None:
    """Unreachable unless a private folder, as far as it is there, is this user's and nobody else's.

    Args:
        private: what in it nobody else may even read. own: what in it nobody else may write.
    """
    check_folder(path)
    for some, forbidden, right in ((private, 0o077, "chmod go-rwx"), (own, 0o022, "chmod go-w")):
        for name in some:
            if os.path.lexists(path / name):
                _check((path / name).absolute(), forbidden, right)


def _check(path: Path, forbidden: int, right: str) -> None:
    other, mode = _others(path)
    if other:
        mine = _user(os.geteuid())
        raise Unreachable(
            f"{path} belongs to {other}, not to {mine}",
            hint=f"if it shall be yours: sudo chown -R {mine} {path}; else use another folder",
        )
    if mode & forbidden:
        raise Unreachable(f"{path} is open to others (mode {mode:03o})", hint=f"{right} {path}")


def check_free(path: AnyPath) -> Path:
    """The absolute path of a file to be written: a regular file there is replaced, whole; nothing else is touched.

    Raises:
        FileMissing: there is no such folder. UsageError: a folder, link or device stands there.
    """
    path = Path(path).absolute()
    if not path.parent.is_dir():
        raise FileMissing(f"no folder {path.parent}", hint=f"mkdir -p {path.parent}, or write elsewhere")
    if path.is_symlink():
        raise UsageError(f"{path} is a link to {path.readlink()}", hint="name the file that you mean, or another")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint=f"name a file in it, or another than {path.name}")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file", hint="write elsewhere")
    return path


# -- groups ------------------------------------------------------------------------------------


def group(name: str) -> int:
    """The number of a group that this user can give files to.

    Raises:
        UsageError: there is no such group, or this user is not in it.
    """
    import grp

    try:
        number = grp.getgrnam(name).gr_gid
    except KeyError:
        raise UsageError(f"no group {name!r} on this machine", hint="'id -Gn' lists yours") from None
    if os.geteuid() and number not in (os.getegid(), *os.getgroups()):
        hint = f"sudo usermod -aG {name} {_user(os.geteuid())}, then log in again; 'id -Gn' lists yours"
        raise UsageError(f"you are not in the group {name!r}", hint=hint)
    return number


def share(path: AnyPath, number: int, *, mode: int, follow: bool = False) -> bool:
    """Give a file or folder of this user's to a group, with exactly these rights; False if it is another's.

    Args:
        follow: whether it may be a link. Where others can write, none is followed: it could lead anywhere.
    """
    try:
        file = step("share.open", os.open, path, _ANY | (0 if follow else os.O_NOFOLLOW))
        try:
            found = os.fstat(file)
            if found.st_uid != os.geteuid() or (not stat.S_ISDIR(found.st_mode) and found.st_nlink > 1):
                return False
            step("share.group", os.fchown, file, -1, number)
            step("share.rights", os.fchmod, file, mode)
        finally:
            os.close(file)
    except OSError as error:
        raise told(error, path) from error
    return True


def share_all(path: AnyPath, number: int, *, mode: int) -> None:
    """The same for the files of this user's in a folder; what is another's, or goes meanwhile, stays as it is."""
    for name in names(path, follow=False):
        with suppress(FedqError):
            if stat.S_ISREG(os.lstat(os.path.join(path, name)).st_mode):
                share(os.path.join(path, name), number, mode=mode)


def closed_to(path: Path, number: int) -> list[Path]:
    """The folders on the way to a path, itself too, that a group cannot enter by its own rights."""
    return [folder for folder in (*reversed(path.absolute().parents), path.absolute()) if not _lets_in(folder, number)]


def _lets_in(folder: Path, number: int) -> bool:
    try:
        found = os.stat(folder)
    except OSError:  # who may not look cannot tell
        return True
    return bool(found.st_mode & 0o001) or (found.st_gid == number and bool(found.st_mode & 0o010))
