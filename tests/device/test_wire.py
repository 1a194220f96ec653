"""Frames between gate and worker: what is sent arrives, however the socket cuts it."""

from __future__ import annotations

import os
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedq.device import wire
from fedq.errors import BadFile
from fedq.plan.codec import RawTensor

tensors = st.lists(st.integers(0, 40), max_size=4).map(
    lambda sizes: [RawTensor("u8", (n,), os.urandom(n)) for n in sizes]
)


def receive(sock):
    reader = wire.Reader(sock, trusted=True)
    while (frame := reader.frame()) is None:
        assert reader.receive()
    return frame


@given(st.lists(st.integers(), max_size=5), tensors)
@settings(max_examples=30, deadline=None)
def test_a_frame_arrives_as_it_was_sent(head, sent):
    left, right = socket.socketpair()
    with left, right:
        wire.send(left, head, sent)
        got, arrived = receive(right)
    assert got == head
    assert [(t.dtype, t.shape, bytes(t.data)) for t in arrived] == [(t.dtype, t.shape, bytes(t.data)) for t in sent]


def test_a_large_tensor_travels_as_a_descriptor_and_leaves_none_open():
    before = len(os.listdir("/proc/self/fd"))
    data = os.urandom(3 << 20)
    left, right = socket.socketpair()
    with left, right:
        wire.send(left, [], [RawTensor("u8", (len(data),), data), RawTensor("u8", (2,), b"ab")])
        _, (large, small) = receive(right)
        assert bytes(large.data) == data
        assert bytes(small.data) == b"ab"
    del large, small
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_frames_sent_together_are_two_frames():
    left, right = socket.socketpair()
    with left, right:
        sender = threading.Thread(
            target=lambda: [wire.send(left, n, [RawTensor("u8", (n,), bytes(n))]) for n in (1, 2)]
        )
        sender.start()
        reader, heads = wire.Reader(right, trusted=True), []
        while len(heads) < 2:
            reader.receive()
            while frame := reader.frame():
                heads.append(frame[0])
        sender.join()
    assert heads == [1, 2]


def test_a_frame_whose_tensor_is_short_is_refused():
    left, right = socket.socketpair()
    with left, right:
        text = b'[[],[["u8",[9],null,0]]]'
        left.sendall(wire._FRAME.pack(len(text), 0, 3, False) + text + b"abc")
        with pytest.raises(BadFile):
            receive(right)


def test_the_end_of_the_other_side_is_told():
    left, right = socket.socketpair()
    left.close()
    with right:
        assert not wire.Reader(right).receive()


def test_a_large_frame_is_sent_though_nobody_reads():
    """A worker that is stopped, or still starting, must not hold up the gate."""
    left, right = socket.socketpair()
    left.settimeout(5)
    with left, right:
        head, small = ["x" * (4 << 20)], [RawTensor("u8", (9000,), bytes(9000))] * 100
        wire.send(left, head, small)
        got, arrived = receive(right)
    assert got == head
    assert [bytes(t.data) for t in arrived] == [bytes(9000)] * 100


def test_a_stored_tensor_travels_as_a_descriptor_of_its_file(tmp_path):
    path, data = tmp_path / "value", os.urandom(2 << 20)
    path.write_bytes(b"head of 17 bytes." + data)
    left, right = socket.socketpair()
    with left, right:
        tensor = RawTensor("u8", (len(data),), data)
        wire.send(left, [], [wire.Stored(tensor, lambda: os.open(path, os.O_RDONLY), 17)])
        _, (arrived,) = receive(right)
    assert bytes(arrived.data) == data


def test_a_file_that_is_shorter_than_its_tensor_is_refused_before_it_is_read():
    left, right = socket.socketpair()
    file = os.memfd_create("short")
    with left, right:
        text = b'[[],[["u8",[9000],null,0]]]'
        socket.send_fds(left, [wire._FRAME.pack(len(text), 1, 9000, True)], [file])
        with pytest.raises(BadFile, match="short"):
            receive(right)
    os.close(file)
