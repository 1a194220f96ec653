"""Where things are: ``fedq.toml`` and the environment become one frozen Config.

Roots are found upward from the working directory: the nearest ``fedq.toml`` says where queue
and devices lie (relative to itself); without one they are ``./queue`` and ``./devices``.
A file that others may have written says where the queue lies, which is theirs as well, and nothing else.
"""

from __future__ import annotations

import functools
import getpass
import logging
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedq import fs
from fedq.errors import FedqError, UsageError

log = logging.getLogger("fedq.config")

FILE = "fedq.toml"
KEYS = ("queue", "devices", "home", "user", "durability", "reply_bytes")
OTHERS = ("queue",)
"""What a file may say that others can write: nothing that picks keys, names or private folders."""
REPLY_BYTES = 1 << 30
MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Config:
    """Absolute roots and who asks.

    Attributes:
        queue: root of the pairs; holds ``.fedq`` when it is there.
        devices: root of the private homes of devices on this machine.
        home: the requester's private folder: key, trust, outbox.
        user: the requester's name, before its key.
        durability: ``full`` (fsync before "sent") or ``none``.
        reply_bytes: what is read of a reply at most; a larger file at its name is not copied.
    """

    queue: Path
    devices: Path
    home: Path
    user: str
    durability: str = "full"
    reply_bytes: int = REPLY_BYTES


def find(
    *,
    queue: str | os.PathLike[str] | None = None,
    devices: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    cwd: Path | None = None,
) -> Config:
    """The Config for this call: arguments, then FEDQ_* variables, then fedq.toml, then defaults."""
    cwd = (cwd or Path.cwd()).absolute()
    file = next((d / FILE for d in (cwd, *cwd.parents) if (d / FILE).is_file()), None)
    written, believed = _written(file) if file else ({}, False)

    def pick(key: str, given: str | os.PathLike[str] | None, default: str) -> str:
        if given is not None:
            return str(cwd / given)
        if environ.get(f"FEDQ_{key.upper()}"):
            return str(cwd / environ[f"FEDQ_{key.upper()}"])
        base = file.parent if file and (believed or key in OTHERS) else cwd
        return str(base / Path(written.get(key, default)).expanduser())

    home = pick("home", None, str(Path(environ.get("HOME", "~")).expanduser() / ".fedq"))
    durability = environ.get("FEDQ_DURABILITY") or written.get("durability", "full")
    if durability not in ("full", "none"):
        raise UsageError(f"durability is 'full' or 'none', not {durability!r}")
    return Config(
        queue=Path(os.path.normpath(pick("queue", queue, "queue"))),
        devices=Path(os.path.normpath(pick("devices", devices, "devices"))),
        home=Path(os.path.normpath(home)),
        user=user_name(environ.get("FEDQ_USER") or written.get("user") or _login()),
        durability=durability,
        reply_bytes=_bytes(environ.get("FEDQ_REPLY_BYTES") or written.get("reply_bytes", str(REPLY_BYTES))),
    )


def _bytes(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise UsageError(f"reply_bytes is a whole number of bytes, 1 or more, not {text[:40]!r}")
    return int(text)


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "user"


def user_name(text: str) -> str:
    """A name fit for a directory: letters, digits, ``_``, at most 40 of them."""
    return re.sub(r"[^A-Za-z0-9_]", "_", text)[:40] or "user"


def _written(file: Path) -> tuple[dict[str, str], bool]:
    """What the file says, as far as it is to be believed; and whether all of it is."""
    if not (why := fs.not_own(file)):
        return _read(file), True
    try:
        written = _read(file)
    except FedqError:  # no stranger's file stops anybody
        written = {"it": ""}
    if ignored := [key for key in written if key not in OTHERS]:
        _tell(why, ", ".join(ignored), file)
    return {key: written[key] for key in OTHERS if key in written}, False


@functools.cache
def _tell(why: str, ignored: str, file: Path) -> None:
    """Say it once in a process."""
    cure = f"chmod go-w {file}" if not fs.owner(file) else f"write a {FILE} of your own, or set FEDQ_HOME"
    log.warning("%s, so it sets no home, and is not believed (%s); %s", why, ignored, cure)


def _read(file: Path) -> dict[str, str]:
    try:
        written = tomllib.loads(bytes(fs.read(file.resolve(), limit_bytes=MOST_BYTES)).decode("utf-8"))
    except (FedqError, OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: {error}") from None
    unknown = sorted(written.keys() - set(KEYS))
    if unknown:
        raise UsageError(f"{file}: unknown key {unknown[0]!r}", hint=f"known keys: {', '.join(KEYS)}")
    if not all(isinstance(v, str) for v in written.values()):
        raise UsageError(f"{file}: every value is text")
    return written
