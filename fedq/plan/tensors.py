"""torch tensors to raw bytes and back. The only place that maps dtype names to torch's."""

from __future__ import annotations

import torch

from fedq.errors import BadFile, CannotRecord
from fedq.plan.codec import RawTensor, are_sizes
from fedq.plan.graph import Type

DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "f8_e4m3": torch.float8_e4m3fn, "f8_e5m2": torch.float8_e5m2, "c64": torch.complex64,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8,
    "u64": torch.uint64, "u32": torch.uint32, "u16": torch.uint16, "u8": torch.uint8, "bool": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def to_raw(tensor: torch.Tensor) -> RawTensor:
    """The tensor's bytes, row-major; copied only if it is not contiguous or not on the CPU.

    Raises:
        CannotRecord: no file can hold it: its dtype or its shape, or it has no bytes of its own.
    """
    name = NAMES.get(tensor.dtype)
    if name is None:
        raise CannotRecord(f"{tensor.dtype} can not be written to a file", hint=f"use one of {', '.join(DTYPES)}")
    if not are_sizes(list(tensor.shape)):
        what = f"a tensor of {tensor.dim()} dimensions, or of 2**60 elements, cannot be written to a file"
        raise CannotRecord(what, hint="a file holds tensors of at most 64 dimensions and of fewer elements")
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise CannotRecord(f"a tensor of {tensor.layout} on {tensor.device} cannot be written to a file",
                           hint="make it dense, with .to_dense() for one")  # fmt: skip
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.stride() != (1,):  # one element of a strided tensor counts as contiguous
        flat = flat.clone(memory_format=torch.contiguous_format)
    data = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    return RawTensor(name, tuple(tensor.shape), data)


def from_raw(raw: RawTensor) -> torch.Tensor:
    """A tensor of its own memory; BadFile for a bool that is neither 0 nor 1."""
    if raw.size_bytes == 0:
        return torch.zeros(raw.shape, dtype=DTYPES[raw.dtype])
    if raw.dtype == "bool" and bytes(raw.data).translate(None, b"\0\1"):
        raise BadFile("malformed file: a bool is neither 0 nor 1")
    return torch.frombuffer(bytearray(raw.data), dtype=DTYPES[raw.dtype]).reshape(raw.shape)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are one value: NaN is itself, 0.0 and -0.0 are two."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bytes(to_raw(a).data) == bytes(to_raw(b).data)


def type_of(value: torch.Tensor | bool | int | float | str) -> Type:
    """``f32[2,3]`` of a tensor, ``int=3`` of a number."""
    if isinstance(value, torch.Tensor):
        return Type(NAMES.get(value.dtype, str(value.dtype)), tuple(value.shape))
    return Type(type(value).__name__, None, value)
