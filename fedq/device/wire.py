"""Frames between gate and worker: one JSON head, tensors beside it, over a Unix socket.

Small tensors ride inside the frame; large ones as file descriptors (a stored file going in, an
anonymous memory file coming out), so neither side copies them through the socket. The head
names tensors by number. What a worker sends is untrusted: every count and size is checked.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

from fedq.errors import BadFile
from fedq.plan.codec import RawTensor
from fedq.plan.graph import ITEMSIZE

INLINE_BYTES = 1 << 20
MAX_FDS = 200
_FRAME = struct.Struct("<IIQ")  # bytes of JSON, number of descriptors, bytes of tensors


def send(sock: socket.socket, head: Any, tensors: Sequence[RawTensor]) -> None:
    """Send one frame; blocks until it is sent."""
    rows: list[Any] = []
    blobs: list[Any] = []
    fds: list[int] = []
    for tensor in tensors:
        if tensor.size_bytes <= INLINE_BYTES or len(fds) >= MAX_FDS:
            rows.append([tensor.dtype, tensor.shape, None])
            blobs.append(tensor.data)
        else:
            rows.append([tensor.dtype, tensor.shape, len(fds)])
            fds.append(_memory_file(tensor))
    text = json.dumps([head, rows], separators=(",", ":")).encode()
    start = _FRAME.pack(len(text), len(fds), sum(len(b) for b in blobs)) + text
    try:
        sent = socket.send_fds(sock, [start], fds)
        sock.sendall(start[sent:])
        if blobs:
            sock.sendall(b"".join(blobs) if len(blobs) > 1 else blobs[0])
    finally:
        for fd in fds:
            os.close(fd)


def _memory_file(tensor: RawTensor) -> int:
    fd = os.memfd_create("fedq") if hasattr(os, "memfd_create") else _unlinked_file()
    view = memoryview(tensor.data).cast("B")
    while view:
        view = view[os.write(fd, view) :]
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
        data, ancillary, _, _ = self._sock.recvmsg(1 << 20, space, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._fds += array.array("i", raw[: len(raw) - len(raw) % 4])
        self._buffer += data
        return bool(data)

    def frame(self) -> tuple[Any, list[RawTensor]] | None:
        """The next whole frame: its head and its tensors."""
        if len(self._buffer) < _FRAME.size:
            return None
        text, count, blob = _FRAME.unpack_from(self._buffer)
        end = _FRAME.size + text + blob
        if len(self._buffer) < end:
            return None
        view = memoryview(bytes(self._buffer[_FRAME.size : end]))
        del self._buffer[:end]
        fds, self._fds = self._fds[:count], self._fds[count:]
        try:
            head, rows = json.loads(bytes(view[:text]))
            return head, _tensors(rows, view[text:], fds)
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def _tensors(rows: Any, blob: memoryview, fds: list[int]) -> list[RawTensor]:
    tensors = []
    at = 0
    for dtype, shape, number in rows:
        if dtype not in ITEMSIZE or not all(type(n) is int and n >= 0 for n in shape):
            raise BadFile("a frame's tensor is malformed")
        raw = RawTensor(dtype, tuple(shape), b"")
        if number is None:
            data: Any = blob[at : at + raw.size_bytes]
            at += raw.size_bytes
        else:
            data = memoryview(mmap.mmap(fds[number], raw.size_bytes, access=mmap.ACCESS_COPY))
        if len(data) != raw.size_bytes:
            raise BadFile("a frame's tensor is short")
        tensors.append(RawTensor(dtype, tuple(shape), data))
    return tensors
