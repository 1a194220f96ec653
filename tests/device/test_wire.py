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
    reader = wire.Reader(sock)
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
        reader, heads = wire.Reader(right), []
        while len(heads) < 2:
            reader.receive()
            while frame := reader.frame():
                heads.append(frame[0])
        sender.join()
    assert heads == [1, 2]


def test_a_frame_whose_tensor_is_short_is_refused():
    left, right = socket.socketpair()
    with left, right:
        text = b'[[],[["u8",[9],null]]]'
        left.sendall(wire._FRAME.pack(len(text), 0, 3) + text + b"abc")
        with pytest.raises(BadFile):
            receive(right)


def test_the_end_of_the_other_side_is_told():
    left, right = socket.socketpair()
    left.close()
    with right:
        assert not wire.Reader(right).receive()
