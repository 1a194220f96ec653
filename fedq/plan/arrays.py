"""Tensor files of users' own: .safetensors, .npy, .npz and .csv, to raw tensors and back.

Reads strictly and runs nothing from a file: no pickled arrays. Knows numpy, not torch; dtypes
numpy lacks (bf16, f8) travel as bytes. Little-endian machines only, as the format is.
"""

from __future__ import annotations

import csv
import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedq import fs
from fedq.errors import BadFile, FileMissing, SpecMismatch, UsageError
from fedq.plan.codec import SIGNATURE, Buffer, RawTensor, layout, tensors_of, unsigned
from fedq.plan.graph import Type

MAX_BYTES = 1 << 40
_NUMPY = {
    "f64": "<f8", "f32": "<f4", "f16": "<f2", "c64": "<c8", "i64": "<i8", "i32": "<i4", "i16": "<i2",
    "i8": "|i1", "u64": "<u8", "u32": "<u4", "u16": "<u2", "u8": "|u1", "bool": "|b1",
}  # fmt: skip
_OURS = {np.dtype(theirs): ours for ours, theirs in _NUMPY.items()}


def type_of(raw: RawTensor) -> Type:
    return Type(raw.dtype, raw.shape)


def from_numpy(array: np.ndarray[Any, Any]) -> RawTensor:
    """The array's bytes, row-major and little-endian; SpecMismatch for dtypes fedq does not have."""
    native = array.dtype.newbyteorder("<")
    if native not in _OURS:
        raise SpecMismatch(f"dtype {array.dtype} can not be sent", hint=f"use one of {', '.join(_NUMPY)}")
    flat = np.ascontiguousarray(array, native).reshape(-1)
    return RawTensor(_OURS[native], array.shape, flat.view(np.uint8).data if flat.size else b"")


def to_numpy(raw: RawTensor) -> np.ndarray[Any, Any]:
    """The values, not copied; bf16 and f8 widened to f32."""
    if raw.dtype in _NUMPY:
        return np.frombuffer(raw.data, _NUMPY[raw.dtype]).reshape(raw.shape)
    if raw.dtype == "bf16":
        wide = np.frombuffer(raw.data, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(raw.shape)
    table: np.ndarray[Any, Any] = np.array(
        [_f8(code, mantissa=3 if raw.dtype == "f8_e4m3" else 2) for code in range(256)], "<f4"
    )
    return np.asarray(table[np.frombuffer(raw.data, "|u1")].reshape(raw.shape))


def _f8(code: int, *, mantissa: int) -> float:
    """One 8-bit float: sign, exponent, mantissa. E4M3 has no infinity, E5M2 has."""
    bias = {3: 7, 2: 15}[mantissa]
    exponent, fraction = (code & 0x7F) >> mantissa, code & (1 << mantissa) - 1
    sign = -1.0 if code & 0x80 else 1.0
    if mantissa == 2 and exponent == 31:
        return float("nan") if fraction else sign * float("inf")
    if mantissa == 3 and code & 0x7F == 0x7F:
        return float("nan")
    whole, power = (1, exponent) if exponent else (0, 1)
    return float(sign * (whole + fraction / (1 << mantissa)) * 2.0 ** (power - bias))


# -- read ------------------------------------------------------------------------------------


def read(path: str | Path) -> dict[str, RawTensor]:
    """The tensors of a file, by name; ``""`` is the name where the format gives none (.npy, .csv).

    Raises:
        FileMissing, BadFile: names the file and what is wrong in it; UsageError: another suffix.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: not a tensor file", hint=f"use {', '.join(_READERS)}")
    try:
        return reader(fs.read(path.resolve(), limit_bytes=MAX_BYTES))
    except FileNotFoundError:
        raise FileMissing(f"no file {path}", hint=f"looked for {path.absolute()}") from None
    except (BadFile, SpecMismatch, ValueError, zipfile.BadZipFile, EOFError) as error:
        hint = getattr(error, "hint", None)
        raise BadFile(f"{path}: {str(error).splitlines()[0]}", hint=hint) from None


def read_one(path: str | Path, name: str | None = None) -> RawTensor:
    """The one tensor of a file, or the one called ``name``; UsageError lists them otherwise."""
    tensors = read(path)
    if name is None and len(tensors) == 1:
        return next(iter(tensors.values()))
    if name is not None and name in tensors:
        return tensors[name]
    more = f" and {len(tensors) - 8} more" if len(tensors) > 8 else ""
    shown = (", ".join(list(tensors)[:8]) or "none") + more
    wanted = f"no tensor {name!r}" if name is not None else f"{len(tensors)} tensors, one is needed"
    raise UsageError(f"{path}: {wanted}", hint=f"write {path}:NAME; it holds: {shown}")


def _read_safetensors(raw: Buffer) -> dict[str, RawTensor]:
    header, data = layout(raw)
    header.pop("__metadata__", None)
    tensors = tensors_of(header, data)
    tensors.pop(SIGNATURE, None)
    return tensors


def _read_npy(raw: Buffer) -> dict[str, RawTensor]:
    return {"": _npy(raw)}


def _npy(raw: Buffer) -> RawTensor:
    view = memoryview(raw)
    head = io.BytesIO(view[: 1 << 16])
    version = np.lib.format.read_magic(head)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(head)
    if dtype.hasobject:
        raise BadFile("holds pickled Python values, which are never loaded", hint="save numbers: array.astype(float)")
    data = view[head.tell() :]
    count = math.prod(shape)
    if min(shape, default=0) < 0:
        raise BadFile("a negative size")
    if len(data) < count * dtype.itemsize:
        raise BadFile(f"truncated: {len(data)} of {count * dtype.itemsize} bytes")
    array = np.frombuffer(data, dtype, count).reshape(shape, order="F" if fortran else "C")
    return from_numpy(array)


def _read_npz(raw: Buffer) -> dict[str, RawTensor]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        names = [n for n in archive.namelist() if n.endswith(".npy")]
        return {name.removesuffix(".npy"): _npy(archive.read(name)) for name in names}


def _read_csv(raw: Buffer) -> dict[str, RawTensor]:
    """One tensor, rows by columns: i64 if all are whole numbers, else f32. A first line that is
    not of numbers names the columns. ``nan`` and ``inf`` are numbers."""
    try:
        rows = list(csv.reader(io.StringIO(bytes(raw).decode("utf-8-sig")), skipinitialspace=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"not a table of text: {error}") from None
    numbered = [(line, row) for line, row in enumerate(rows, 1) if row]
    names = [f"{i + 1}" for i in range(len(numbered[0][1]))] if numbered else []
    if numbered and not any(_is_number(cell) for cell in numbered[0][1]):
        names = [f"{name!r}" for name in numbered.pop(0)[1]]
    if not numbered:
        raise BadFile("no rows of numbers")
    for line, row in numbered:
        if len(row) != len(names):
            raise BadFile(f"line {line}: {len(row)} cells, {len(names)} expected")
    lines = [line for line, _ in numbered]
    columns = [_column([row[i] for _, row in numbered], name, lines) for i, name in enumerate(names)]
    dtype = "i64" if all(c.dtype.kind == "i" for c in columns) else "f32"
    for name, column in zip(names, columns, strict=True):
        _check_exact(column, dtype, name, lines)
    return {"": from_numpy(np.stack(columns, 1).astype(_NUMPY[dtype]))}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _column(cells: Sequence[str], name: str, lines: Sequence[int]) -> np.ndarray[Any, Any]:
    for kind in (np.int64, np.float64):
        try:
            return np.array(cells).astype(kind)
        except (ValueError, OverflowError):
            continue
    line, cell = next((n, c) for n, c in zip(lines, cells, strict=True) if not _is_number(c))
    raise BadFile(f"line {line}, column {name}: {cell!r} is not a number", hint="write nan where a value is missing")


def _check_exact(column: np.ndarray[Any, Any], dtype: str, name: str, lines: Sequence[int]) -> None:
    """A whole number that f32 would round, such as an id or a time, is refused rather than changed."""
    if dtype == "f32":
        whole = (column == np.floor(column)) & (np.abs(column) < 1 << 53)
        wrong = np.flatnonzero(whole & (column.astype(np.float32).astype(np.float64) != column))
        if len(wrong):
            line, value = lines[wrong[0]], int(column[wrong[0]])
            raise BadFile(
                f"line {line}, column {name}: {value} is not exact in f32",
                hint="save the table as .npy or .safetensors in f64",
            )


_READERS: dict[str, Callable[[Buffer], dict[str, RawTensor]]] = {
    ".safetensors": _read_safetensors, ".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv,
}  # fmt: skip


# -- write -----------------------------------------------------------------------------------


def write(path: str | Path, tensors: Mapping[str, RawTensor]) -> None:
    """Write tensors as the suffix says, whole or not at all; .npy and .csv hold exactly one."""
    suffix = check_suffix(path, len(tensors))
    fs.replace(fs.check_free(path), encode(suffix, tensors), durable=False)


def check_suffix(path: str | Path, count: int) -> str:
    """The suffix, if so many tensors can be written to such a file."""
    suffix = Path(path).suffix.lower()
    if suffix not in _READERS:
        raise UsageError(f"{path}: can not write {suffix or 'without a suffix'}", hint=f"use {', '.join(_READERS)}")
    if suffix in (".npy", ".csv") and count != 1:
        raise UsageError(f"{path}: {count} tensors do not fit one {suffix}", hint="use .safetensors or .npz")
    return suffix


def check_place(path: str | Path, count: int = 1) -> None:
    """UsageError, FileMissing if nothing can be written there, whatever it is."""
    check_suffix(path, count)
    fs.check_free(path)


def encode(suffix: str, tensors: Mapping[str, RawTensor]) -> Sequence[Buffer]:
    """The bytes of such a file, in chunks."""
    if suffix == ".safetensors":
        return unsigned({name or "data": raw for name, raw in tensors.items()})
    if suffix == ".npz":
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, raw in tensors.items():
                archive.writestr(f"{name or 'data'}.npy", b"".join(_write_npy(raw)))
        return [out.getbuffer()]
    (raw,) = tensors.values()
    return _write_npy(raw) if suffix == ".npy" else _write_csv(raw)


def _write_npy(raw: RawTensor) -> list[Buffer]:
    """bf16 and f8, which numpy has no dtype for, are written as f32."""
    raw = raw if raw.dtype in _NUMPY else from_numpy(to_numpy(raw))
    head = f"{{'descr': {_NUMPY[raw.dtype]!r}, 'fortran_order': False, 'shape': {raw.shape!r}, }}"
    head += " " * (-(len(head) + 11) % 64) + "\n"
    return [b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode("latin1"), raw.data]


def _write_csv(raw: RawTensor) -> list[Buffer]:
    array = to_numpy(raw)
    if array.ndim > 2 or array.shape[1:] == (0,):
        raise SpecMismatch(f"{type_of(raw)} is no table", hint="use .npy, .npz or .safetensors")
    rows = array.reshape(-1, 1) if array.ndim < 2 else array
    number = int if array.dtype.kind == "b" else str
    lines = (",".join(str(number(cell)) for cell in row) for row in rows)
    return ["".join(f"{line}\n" for line in lines).encode()]
