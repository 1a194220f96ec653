"""Put and take messages in a directory, without locks.

A name visible in ``in/`` is a whole file: it was written and fsynced under another name first.
Each folder has one writer. Names of any other form than ours are not seen: what sync tools,
editors and strangers leave in a share is theirs. Knows nothing of plans, tensors or keys: it
moves bytes. Format: docs/format.md, section 2. Source: D. J. Bernstein, "Using maildir format".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedq import fs
from fedq.errors import BadFile, Conflict, DiskFull, Unreachable
from fedq.fs import Buffer
from fedq.plan.codec import sha256
from fedq.queue.watch import InotifyWatch, ObserverWatch, Watch

__all__ = ["Directory", "InotifyWatch", "ObserverWatch", "Watch"]

Names = list[str]

MOST_BYTES = 1 << 30
"""What is read of a file if nobody says otherwise: a larger one is refused before a byte is copied."""

_FILE = r"[0-9a-f]{32}\.safetensors"
_FORMS = {
    "": re.compile(r"card\.json|catalog\.json|heartbeat\.json"),
    "in": re.compile(_FILE),
    "out": re.compile(_FILE),
    "blobs": re.compile(r"[0-9a-f]{64}"),
}
"""Per folder of a pair: the names in it that are ours."""


class Directory:
    """A carrier whose files are those of one directory: ``queue/device_1/alice-3f9a1c2e``.

    It must exist, with its folders: nothing is created here, so an unmounted share stays empty.

    Args:
        durable: fsync before saying that something was put.
    """

    __slots__ = ("_durable", "_root", "_shared")

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        self._root = str(root)
        self._durable = durable
        self._shared: bool | None = None

    @property
    def _rights(self) -> dict[str, Any]:
        """A pair whose folder belongs to a group is for that group; else for this user alone, whatever the umask."""
        if self._shared is None:
            self._shared = fs.is_shared(self._root)
        return {"mode": 0o660, "exact": True} if self._shared else {"mode": 0o600, "exact": True}

    def path(self, name: str) -> Path:
        """Where a folder or file lies, for those who watch it or name it to a user."""
        return Path(self._root, name)

    def put(self, name: str, chunks: Sequence[Buffer]) -> None:
        """Add a file, whole; doing it again with the same bytes changes nothing.

        Raises:
            Conflict: something else stands under this name.
            DiskFull, Unreachable: not done; try again.
        """
        path = self._path(name)
        try:
            fs.put(path, chunks, durable=self._durable, follow=False, **self._rights)
        except FileExistsError:
            self._check_same(path, chunks)
            if self._durable:
                fs.flush(path)  # whoever put it may have died before its fsync

    def _check_same(self, path: str, chunks: Sequence[Buffer]) -> None:
        try:
            there = fs.read(path, limit_bytes=fs.size_bytes(chunks), follow=False)
        except BadFile:
            there = None
        except FileNotFoundError:  # taken away between: it was there, so it was delivered
            return
        if there is None or sha256([there]) != sha256(chunks):
            raise Conflict(f"{path} already holds something else", hint="an id has one content: use a new id")

    def replace(self, name: str, chunks: Sequence[Buffer]) -> None:
        """Write one of the device's own three files over its last version; a folder that stands there is cleared."""
        path = self._path(name)
        try:
            fs.replace(path, chunks, durable=self._durable, **self._rights)
        except DiskFull:
            raise
        except Unreachable:
            if not fs.is_folder(path) or not fs.aside(path):
                raise
            fs.replace(path, chunks, durable=self._durable, **self._rights)

    def list(self, folder: str) -> Names:
        """The names in a folder that have our form, in no order; empty if it is not there."""
        return [name for name in self._names(folder) if _FORMS[folder].fullmatch(name)]

    def strays(self, folder: str) -> Names:
        """The other names in it: temporary, foreign, conflict copies of sync tools."""
        own = ("in", "out", "blobs") if not folder else ()
        return [n for n in self._names(folder) if n not in own and not _FORMS[folder].fullmatch(n)]

    def _names(self, folder: str) -> Names:
        return fs.names(f"{self._root}/{folder}", follow=not folder)

    def get(self, name: str, limit_bytes: int = MOST_BYTES) -> Buffer:
        """A private copy of a file.

        Raises:
            FileNotFoundError: it is not there (yet).
            BadFile: no regular file, or too large.
        """
        return fs.read(self._path(name), limit_bytes=limit_bytes, follow="/" not in name)

    def get_hashed(self, name: str, limit_bytes: int = MOST_BYTES, *, key: bytes = b"") -> fs.Copy:
        """The same with its digests; nothing is copied if it does not name this key as its signer's."""
        return fs.read_hashed(self._path(name), limit_bytes=limit_bytes, follow="/" not in name, key=key)

    def mark(self, name: str) -> tuple[int, ...] | None:
        """Changes when what stands under a name does; None if nothing does. Unreachable where we may not look."""
        return fs.fingerprint(self._path(name))

    def clear(self, name: str) -> bool:
        """Have nothing stand under a name, whatever did; False if nothing did, Unreachable where we may not."""
        return fs.aside(self._path(name), follow="/" not in name)

    @staticmethod
    def is_own(folder: str, name: str) -> bool:
        """Whether a name in a folder has our form."""
        return _FORMS[folder].fullmatch(name) is not None

    def delete(self, name: str) -> bool:
        """Take a file away; False if it was not there, Unreachable where we may not."""
        return fs.delete(self._path(name), follow="/" not in name)

    def _path(self, name: str) -> str:
        """The pair's owner may link the pair elsewhere, but what stands in it is under others'
        control: names have exactly our form, and ``in``, ``out``, ``blobs`` are no links."""
        folder, _, last = name.rpartition("/")
        if folder not in _FORMS or not _FORMS[folder].fullmatch(last):
            raise ValueError(f"{name!r} is no name in a pair")
        return f"{self._root}/{name}"
