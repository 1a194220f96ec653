"""Frames between gate and worker: one JSON head, tensors beside it, over a Unix socket.

Small frames go through the socket; the body of a larger one in an anonymous memory file, so that
a gate never waits for a worker that does not read. Large tensors go as descriptors of their own:
of the stored file where there is one, else of a memory file. The head names tensors by number.

What a worker sends is untrusted: a gate takes what it asked for (`Limits`) and no more, and maps only
memory that is *sealed*: that its sender can no longer shrink, or write to, while the gate reads.
"""

from __future__ import annotations

import array
import fcntl
import json
import mmap
import os
import re
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedq.errors import BadFile
from fedq.plan.codec import Buffer, RawTensor, are_sizes
from fedq.plan.types import ITEMSIZE, MAX_SIZE

INLINE_BYTES = 1 << 20
BODY_BYTES = 64 << 10
"""Bodies up to this size go through the socket: less than its buffer holds."""
RECEIVE_BYTES = 64 << 10
"""Taken from the socket at a time: memory for more is asked of the system at each call, 20 µs."""
MAX_FDS = 200
SEALS = ("SHRINK", "GROW", "WRITE", "SEAL")
"""What may no longer be done to memory that is handed over."""
PAGE_SEALS = ("SHRINK", "GROW", "SEAL")
_TEXTS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_FRAME = struct.Struct("<IIQ?")  # bytes of JSON, number of descriptors, bytes of tensors, body in the last descriptor


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that lies in a private file.

    Attributes:
        tensor: the same, mapped.
        open: gives a descriptor of the file, to be closed by who called.
        offset: where its data begins there.
    """

    tensor: RawTensor
    open: Callable[[], int]
    offset: int

    @property
    def size_bytes(self) -> int:
        return self.tensor.size_bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """What a frame may hold at most, as follows from what was asked.

    Attributes:
        text_bytes: of its JSON.
        items: commas and brackets of its JSON, outside of texts.
        tensors: how many.
        size_bytes: of all tensors.
    """

    text_bytes: int
    items: int
    tensors: int
    size_bytes: int


Sendable = RawTensor | Stored


def raw(tensor: Sendable) -> RawTensor:
    """The tensor itself, for a worker in this process."""
    return tensor.tensor if isinstance(tensor, Stored) else tensor


def send(sock: socket.socket, head: Any, tensors: Sequence[Sendable]) -> None:
    """Send one frame; a large one waits for nobody to read it."""
    rows: list[Any] = []
    blobs: list[Buffer] = []
    fds: list[int] = []
    try:
        for tensor in tensors:
            row = [raw(tensor).dtype, raw(tensor).shape, None, 0]
            if tensor.size_bytes <= INLINE_BYTES or len(fds) >= MAX_FDS:
                blobs.append(raw(tensor).data)
            elif isinstance(tensor, Stored):
                row[2:] = len(fds), tensor.offset
                fds.append(tensor.open())
            else:
                row[2:] = len(fds), 0
                fds.append(_memory_file([tensor.data]))
            rows.append(row)
        text = json.dumps([head, rows], separators=(",", ":")).encode()
        size = sum(len(b) for b in blobs)
        apart = len(text) + size > BODY_BYTES
        if apart:
            fds.append(_memory_file([text, *blobs]))
        start = _FRAME.pack(len(text), len(fds), size, apart) + (b"" if apart else b"".join([text, *blobs]))
        sent = socket.send_fds(sock, [start], fds)
        sock.sendall(start[sent:])
    finally:
        for fd in fds:
            os.close(fd)


def _memory_file(chunks: Sequence[Buffer]) -> int:
    """Anonymous memory that holds these bytes for good."""
    fd = _memory()
    try:
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            while view:
                view = view[os.write(fd, view) :]
        _seal(fd, SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def page(size_bytes: int) -> int:
    """Anonymous memory of zeros that two processes write to, and that neither can make shorter."""
    fd = _memory()
    os.ftruncate(fd, size_bytes)
    _seal(fd, PAGE_SEALS)
    return fd


def _memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fedq", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _seals(names: Sequence[str]) -> int:
    return sum(getattr(fcntl, f"F_SEAL_{name}") for name in names)


def _seal(fd: int, names: Sequence[str]) -> None:
    if hasattr(os, "memfd_create"):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _seals(names))


class Reader:
    """Puts frames together from what arrives; never blocks by itself.

    Args:
        trusted: whether the other side is the gate, whose frames have no limits. Else nothing
            may come before `expect` says what was asked.
    """

    def __init__(self, sock: socket.socket, *, trusted: bool = False) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._fds: list[int] = []
        self._limits = None if trusted else Limits(0, 0, 0, 0)

    def expect(self, limits: Limits) -> None:
        """One frame may come, within these limits."""
        self._limits = limits

    @property
    def left(self) -> bool:
        """Whether more came than the frames that were taken."""
        return bool(self._buffer or self._fds)

    def receive(self) -> bool:
        """Take in what is there (or wait, if the socket blocks), 64 KiB at most; False when the other side ended.

        Raises:
            BadFile: more descriptors than a frame may have.
        """
        space = socket.CMSG_LEN(MAX_FDS * array.array("i").itemsize)
        cloexec = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        data, ancillary, flags, _ = self._sock.recvmsg(RECEIVE_BYTES, space, cloexec)
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._fds += array.array("i", raw[: len(raw) - len(raw) % 4])
        if flags & socket.MSG_CTRUNC or (self._limits and len(self._fds) > self._limits.tensors + 1):
            raise BadFile("a frame has too many descriptors")
        self._buffer += data
        return bool(data)

    def frame(self) -> tuple[Any, list[RawTensor]] | None:
        """The next whole frame: its head and its tensors.

        Raises:
            BadFile: it is malformed, or more than was asked for.
        """
        if len(self._buffer) < _FRAME.size:
            return None
        text, count, blob, apart = _FRAME.unpack_from(self._buffer)
        self._check(text, count, blob, apart=apart)
        end = _FRAME.size + (0 if apart else text + blob)
        if len(self._buffer) < end:
            return None
        view = memoryview(bytes(self._buffer[_FRAME.size : end]))
        del self._buffer[:end]
        fds, self._fds = self._fds[:count], self._fds[count:]
        try:
            if len(fds) < count or (apart and not fds):
                raise BadFile("a frame lacks descriptors")
            if apart:
                view = self._private(fds[-1], text + blob)
            head, rows = self._parsed(bytes(view[:text]))
            return head, self._tensors(rows, view[text:], fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _check(self, text: int, count: int, blob: int, *, apart: bool) -> None:
        """Before anything more is taken in: what a frame announces is not more than was asked for."""
        most = self._limits
        if most is None:
            return
        if text > most.text_bytes or count > most.tensors + 1 or blob > most.size_bytes:
            raise BadFile("a frame is larger than what was asked for")
        if not apart and text + blob > BODY_BYTES:
            raise BadFile("a large frame did not come in memory of its own")

    def _parsed(self, text: bytes) -> tuple[Any, list[Any]]:
        most = self._limits
        if most is not None and _items(text) > most.items and _items(_TEXTS.sub(b"", text)) > most.items:
            raise BadFile("a frame has more items than were asked for")
        match json.loads(text):
            case [head, list(rows)] if most is None or len(rows) <= most.tensors:
                return head, rows
        raise BadFile("a frame is malformed")

    def _tensors(self, rows: list[Any], blob: memoryview, fds: Sequence[int]) -> list[RawTensor]:
        tensors = []
        at = total = 0
        for row in rows:
            dtype, shape, number, offset = _layout(row, len(fds))
            size = RawTensor(dtype, shape, b"").size_bytes
            total += size
            if self._limits is not None and total > self._limits.size_bytes:
                raise BadFile("a frame's tensors are larger than what was asked for")
            if number is None:
                data = blob[at : at + size]
                at += size
            else:
                data = self._private(fds[number], offset + size)[offset:]
            if len(data) != size:
                raise BadFile("a frame's tensor is short")
            tensors.append(RawTensor(dtype, shape, data))
        return tensors

    def _private(self, fd: int, size: int) -> memoryview:
        """A file's first bytes, which nobody changes any more; of the gate's own, which changes none."""
        if self._limits is None:
            return _mapped(fd, size)
        if not hasattr(os, "memfd_create"):
            return memoryview(_copied(fd, size))
        _check_sealed(fd, size)
        return _mapped(fd, size)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def _items(text: bytes) -> int:
    return sum(map(text.count, (b",", b"[", b"{")))


def _check_sealed(fd: int, size: int) -> None:
    """BadFile unless this is memory that stays as it is; what was announced and never filled in is not taken either."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        raise BadFile("a frame's descriptor is not of memory") from None
    if seals & (needed := _seals(SEALS)) != needed:
        raise BadFile("a frame's memory can still be changed")
    found = os.fstat(fd)
    if found.st_size >= size > found.st_blocks * 512:
        raise BadFile("a frame's memory has holes")


def _mapped(fd: int, size: int) -> memoryview:
    """A file's first bytes, read-only: it may be larger than memory; one that is shorter is refused, not met later."""
    if os.fstat(fd).st_size < size:
        raise BadFile("a frame's file is short")
    return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ) if size else b"")


def _copied(fd: int, size: int) -> bytes:
    """The same where memory cannot be sealed: read once, never mapped."""
    data = bytearray()
    while len(data) < size and (part := os.pread(fd, min(size - len(data), 1 << 20), len(data))):
        data += part
    if len(data) < size:
        raise BadFile("a frame's file is short")
    return bytes(data)


def _layout(row: Any, descriptors: int) -> tuple[str, tuple[int, ...], int | None, int]:
    """Dtype, shape, number of the descriptor (None: beside the head) and offset there, of one tensor."""
    if type(row) is list and len(row) == 4:
        dtype, shape, number, offset = row
        typed = type(dtype) is str and dtype in ITEMSIZE and are_sizes(shape)
        known = number is None or (type(number) is int and 0 <= number < descriptors)
        if typed and known and type(offset) is int and 0 <= offset < MAX_SIZE:
            return dtype, tuple(shape), number, offset
    raise BadFile("a frame's tensor is malformed")
