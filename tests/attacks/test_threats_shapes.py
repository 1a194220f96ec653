"""Shapes that others choose: a trillion empty rows are a few hundred bytes of a file, and no more where they show."""

from __future__ import annotations

import contextlib
import json

import pytest

from fedq.cli import show
from fedq.errors import FedqError, SpecMismatch
from fedq.plan import arrays
from fedq.plan.codec import RawTensor
from fedq.plan.tensors import from_raw

EMPTY = [(1 << 40, 0), (1 << 30, 1 << 29, 0), (0, (1 << 60) - 1), (1 << 59, 0, 1), (0,) * 64]
WAYS = {
    "a terminal": show.tensor,
    "JSON": lambda raw: json.dumps(show.outcome_json("device_1:x", raw)),
    "a tensor": lambda raw: repr(from_raw(raw)),
    ".npy": lambda raw: arrays.encode(".npy", {"": raw}),
    ".npz": lambda raw: arrays.encode(".npz", {"": raw}),
    ".csv": lambda raw: arrays.encode(".csv", {"": raw}),
    ".safetensors": lambda raw: arrays.encode(".safetensors", {"": raw}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["f64", "bf16", "bool"])
def test_a_tensor_without_elements_takes_no_room_wherever_it_is_shown(way, dtype):
    for shape in EMPTY:
        raw = RawTensor(dtype, shape, b"")
        with contextlib.suppress(FedqError):
            made = WAYS[way](raw)
            assert sum(map(len, made)) < 10_000, (shape, way)


def test_a_table_without_columns_is_no_table_and_one_without_rows_is_empty():
    with pytest.raises(SpecMismatch, match="is no table"):
        arrays.encode(".csv", {"": RawTensor("f32", (3, 0), b"")})
    assert arrays.encode(".csv", {"": RawTensor("f32", (0, 3), b"")}) == [b""]
    assert show.outcome_json("d:x", RawTensor("f32", (2, 0), b"")) == {
        "device": "d", "id": "x", "type": "f32[2,0]", "value": []
    }  # fmt: skip
