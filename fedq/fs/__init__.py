"""Every durable file operation, the clock and the lock; each step is a named failpoint.

The only room that touches the disk. Whatever the disk says comes out as `Unreachable` or `DiskFull`
with the absolute path, except FileExistsError of `put` and FileNotFoundError of `read`, which
callers decide about.
"""

from fedq.fs.database import database
from fedq.fs.locks import Lock, holder, lock
from fedq.fs.reading import (
    IN_MEMORY_BYTES,
    Copy,
    append,
    check_private,
    descriptor,
    fingerprint,
    is_folder,
    map_private,
    names,
    read,
    read_hashed,
    still,
    tail,
)
from fedq.fs.steps import FAILPOINTS, AnyPath, Buffer, clock, failpoint, step, told
from fedq.fs.writing import (
    TEMP,
    aside,
    delete,
    flush,
    is_shared,
    make_dir,
    put,
    remove,
    replace,
    share,
    size_bytes,
    sweep,
)

__all__ = [
    "FAILPOINTS", "IN_MEMORY_BYTES", "TEMP", "AnyPath", "Buffer", "Copy", "Lock", "append", "aside",
    "check_private", "clock", "database", "delete", "descriptor", "failpoint", "fingerprint", "flush", "holder",
    "is_folder", "is_shared", "lock", "make_dir", "map_private", "names", "put", "read", "read_hashed",
    "remove", "replace", "share", "size_bytes", "step", "still", "sweep", "tail", "told",
]  # fmt: skip
