"""Users' tensor files are read exactly or refused, naming file, line and column."""

import io
import pickle
import struct

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given

from fedq.errors import BadFile, FileMissing, SpecMismatch, UsageError
from fedq.plan import arrays
from fedq.plan.codec import RawTensor
from fedq.plan.tensors import DTYPES, from_raw, to_raw

SUFFIXES = (".safetensors", ".npy", ".npz", ".csv")


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_any_safetensors_file_is_read_bit_by_bit(dtype, folder):
    tensor = torch.tensor([[0.0, 1.0, 1.5]]).to(dtype)
    safetensors.torch.save_file({"a": tensor, "b": tensor[:, :0]}, folder / "t.safetensors", metadata={"by": "torch"})
    read = arrays.read(folder / "t.safetensors")
    assert bytes(read["a"].data) == bytes(to_raw(tensor).data)
    assert from_raw(read["a"]).dtype == dtype
    assert read["b"].shape == (1, 0)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_what_is_written_opens_with_the_safetensors_library(dtype, folder):
    tensor = torch.tensor([[0.0, 1.0, 1.5]]).to(dtype)
    arrays.write(folder / "t.safetensors", {"x": to_raw(tensor)})
    read = safetensors.torch.load_file(folder / "t.safetensors")["x"]
    assert read.dtype == dtype
    assert read.tolist() == tensor.tolist()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8", "|b1", "<f2", ">i2", "<c8"])
def test_npy_of_any_layout_is_read_row_by_row(order, dtype, folder):
    array = np.asarray(np.arange(6).reshape(2, 3).astype(dtype), order=order)
    np.save(folder / "a.npy", array)
    assert np.array_equal(arrays.to_numpy(arrays.read_one(folder / "a.npy")), array)


@given(hnp.arrays(hnp.floating_dtypes(sizes=(32, 64)) | hnp.integer_dtypes(), hnp.array_shapes(min_dims=0, min_side=0)))
def test_npy_goes_out_and_comes_back(array):
    raw = arrays.from_numpy(array)
    written = b"".join(arrays.encode(".npy", {"": raw}))
    assert np.array_equal(np.load(io.BytesIO(written), allow_pickle=False), array, equal_nan=True)
    back = arrays._npy(written)
    assert (back.dtype, back.shape, bytes(back.data)) == (raw.dtype, raw.shape, bytes(raw.data))


def test_npz_holds_several_by_name(folder):
    np.savez(folder / "two.npz", x=np.eye(2), y=np.arange(3))
    read = arrays.read(folder / "two.npz")
    assert list(read) == ["x", "y"]
    assert arrays.read_one(folder / "two.npz", "y").shape == (3,)
    arrays.write(folder / "back.npz", read)
    assert np.array_equal(np.load(folder / "back.npz")["x"], np.eye(2))
    with pytest.raises(UsageError, match="2 tensors, one is needed") as caught:
        arrays.read_one(folder / "two.npz")
    assert "x, y" in caught.value.hint


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_widened_values_are_those_of_torch(dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    tensor = codes.view(DTYPES[dtype]) if DTYPES[dtype].itemsize == 1 and dtype != "bool" else codes.to(DTYPES[dtype])
    ours = torch.from_numpy(arrays.to_numpy(to_raw(tensor)).copy())
    assert torch.equal(ours.nan_to_num(), tensor.to(ours.dtype).nan_to_num())


CSV = {
    "whole numbers": ("1,2\n3,4\n", "i64", [[1, 2], [3, 4]]),
    "fractions": ("1,2.5\n3,4\n", "f32", [[1, 2.5], [3, 4]]),
    "named columns": ("age, bmi\n1,2.5\n", "f32", [[1, 2.5]]),
    "quoted, with a mark and windows lines": ('\ufeff"a","b"\r\n"1","2"\r\n', "i64", [[1, 2]]),
    "blank lines": ("\n1\n\n2\n\n", "i64", [[1], [2]]),
    "large integers": ("9007199254740993\n", "i64", [[9007199254740993]]),
}


@pytest.mark.parametrize(("text", "dtype", "rows"), CSV.values(), ids=CSV.keys())
def test_a_csv_is_a_table_of_one_dtype(text, dtype, rows, folder):
    (folder / "t.csv").write_bytes(text.encode())
    read = arrays.read_one(folder / "t.csv")
    assert read.dtype == dtype
    assert arrays.to_numpy(read).tolist() == rows


def test_nan_and_inf_are_numbers(folder):
    (folder / "t.csv").write_text("a\nnan\n-inf\n1\n")
    assert np.array_equal(
        arrays.to_numpy(arrays.read_one(folder / "t.csv")), [[np.nan], [-np.inf], [1]], equal_nan=True
    )


def npy(head, data=b""):
    head = head.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


BAD = {
    "a word in a column": ("t.csv", b"age,bmi\n1,2\n3,x\n", "line 3, column 'bmi': 'x' is not a number"),
    "an empty cell": ("t.csv", b"1,2\n3,\n", "line 2, column 2: '' is not a number"),
    "a short line": ("t.csv", b"1,2\n3\n", "line 2: 1 cells, 2 expected"),
    "only names": ("t.csv", b"a,b\n", "no rows"),
    "nothing": ("t.csv", b"", "no rows"),
    "not text": ("t.csv", b"\xff\xfe\x00", "not a table of text"),
    "a whole number f32 would round": ("t.csv", b"t,x\n16777217,0.5\n", "column 't': 16777217 is not exact in f32"),
    "a time among fractions": ("t.csv", b"0.5\n1795300001\n", "line 2, column 1: 1795300001 is not exact"),
    "pickled values": (
        "t.npy",
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", b"x" * 8),
        "never loaded",
    ),
    "text values": ("t.npy", npy("{'descr': '<U1', 'fortran_order': False, 'shape': (1,)}\n", b"a\0\0\0"), "dtype <U1"),
    "a truncated array": (
        "t.npy",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9,)}\n", b"x"),
        "truncated: 1 of 36",
    ),
    "a huge shape": ("t.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1<<40, 1<<40)}\n"), "t.npy"),
    "a negative shape": ("t.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n", b"x" * 8), "t.npy"),
    "a pickle": ("t.npy", pickle.dumps([1]), "t.npy"),
    "no archive": ("t.npz", b"nothing", "t.npz"),
    "no safetensors": ("t.safetensors", b"nothing at all", "does not fit"),
    "too short": ("t.safetensors", b"abc", "too short"),
}


@pytest.mark.parametrize(("name", "raw", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_refused_by_name(name, raw, said, folder):
    (folder / name).write_bytes(raw)
    with pytest.raises(BadFile, match=r"t\.\w+: ") as caught:
        arrays.read(folder / name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_says_where_it_was_looked_for(suffix, folder):
    with pytest.raises(FileMissing) as caught:
        arrays.read(folder / f"none{suffix}")
    assert str(folder) in caught.value.hint


def test_other_suffixes_are_refused_with_those_that_do(folder):
    with pytest.raises(UsageError) as caught:
        arrays.read(folder / "model.pt")
    assert ".safetensors" in caught.value.hint


def test_csv_goes_out_as_rows_and_one_value_per_line(folder):
    arrays.write(folder / "t.csv", {"": arrays.from_numpy(np.array([[1, 2.5], [0.1, 4]], "f4"))})
    assert (folder / "t.csv").read_text() == "1.0,2.5\n0.1,4.0\n"
    arrays.write(folder / "t.csv", {"": arrays.from_numpy(np.array([True, False]))})
    assert (folder / "t.csv").read_text() == "1\n0\n"
    with pytest.raises(SpecMismatch, match="no table"):
        arrays.write(folder / "t.csv", {"": RawTensor("f32", (1, 1, 1), b"1234")})


def test_several_tensors_do_not_fit_one_array_file(folder):
    with pytest.raises(UsageError, match="2 tensors do not fit"):
        arrays.write(folder / "t.npy", {"a": RawTensor("u8", (0,), b""), "b": RawTensor("u8", (0,), b"")})
    assert not list(folder.iterdir())
