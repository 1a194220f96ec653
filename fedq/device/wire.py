"""Frames between gate and worker: one JSON head, tensors beside it, over a Unix socket.

Small frames go through the socket; the body of a larger one in an anonymous memory file, so that
a gate never waits for a worker that does not read. Large tensors go as descriptors of their own:
of the stored file where there is one, else of a memory file. The head names tensors by number.
What a worker sends is untrusted: every count and size is checked.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedq.errors import BadFile
from fedq.plan.codec import Buffer, RawTensor
from fedq.plan.graph import ITEMSIZE

INLINE_BYTES = 1 << 20
BODY_BYTES = 64 << 10
"""Bodies up to this size go through the socket: less than its buffer holds."""
RECEIVE_BYTES = 64 << 10
"""Taken from the socket at a time: memory for more is asked of the system at each call, 20 µs."""
MAX_FDS = 200
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
    fd = os.memfd_create("fedq") if hasattr(os, "memfd_create") else _unlinked_file()
    try:
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            while view:
                view = view[os.write(fd, view) :]
    except OSError:
        os.close(fd)
        raise
    return fd


def _unlinked_file() -> int:
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Reader:
    """Puts frames together from what arrives; never blocks by itself."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._fds: list[int] = []

    def receive(self) -> bool:
        """Take in what is there (or wait, if the socket blocks); False when the other side ended."""
        space = socket.CMSG_LEN(MAX_FDS * array.array("i").itemsize)
        data, ancillary, _, _ = self._sock.recvmsg(RECEIVE_BYTES, space, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._fds += array.array("i", raw[: len(raw) - len(raw) % 4])
        self._buffer += data
        return bool(data)

    def frame(self) -> tuple[Any, list[RawTensor]] | None:
        """The next whole frame: its head and its tensors."""
        if len(self._buffer) < _FRAME.size:
            return None
        text, count, blob, apart = _FRAME.unpack_from(self._buffer)
        end = _FRAME.size + (0 if apart else text + blob)
        if len(self._buffer) < end:
            return None
        view = memoryview(bytes(self._buffer[_FRAME.size : end]))
        del self._buffer[:end]
        fds, self._fds = self._fds[:count], self._fds[count:]
        try:
            if apart:
                view = _mapped(fds[-1], text + blob)
            head, rows = json.loads(bytes(view[:text]))
            return head, _tensors(rows, view[text:], fds)
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def _mapped(fd: int, size: int) -> memoryview:
    """A file's first bytes, read-only: it may be larger than memory; one that is shorter is refused, not met later."""
    if os.fstat(fd).st_size < size:
        raise BadFile("a frame's file is short")
    return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ))


def _tensors(rows: Any, blob: memoryview, fds: list[int]) -> list[RawTensor]:
    tensors = []
    at = 0
    for dtype, shape, number, offset in rows:
        if dtype not in ITEMSIZE or not all(type(n) is int and n >= 0 for n in shape):
            raise BadFile("a frame's tensor is malformed")
        size = RawTensor(dtype, tuple(shape), b"").size_bytes
        if number is None:
            data = blob[at : at + size]
            at += size
        else:
            data = _mapped(fds[number], offset + size)[offset:]
        if len(data) != size:
            raise BadFile("a frame's tensor is short")
        tensors.append(RawTensor(dtype, tuple(shape), data))
    return tensors
