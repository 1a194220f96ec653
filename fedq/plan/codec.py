"""Bytes of a fedq file: a safetensors file with one JSON body, tensors, and a signature last.

Our own writer and reader: the library's puts no fixed order on names, cannot place a signature
last, and accepts duplicate keys. Works on buffers of raw bytes, knows no torch and no keys.
Format: docs/format.md, section 1. Source of the container: the safetensors README.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fedq import ids
from fedq.errors import BadFile, BadVersion
from fedq.plan.graphjson import canonical, need
from fedq.plan.types import ITEMSIZE, MAX_SIZE

VERSION = 1
SIGNATURE = "~fedq.sig"
SIGNATURE_BYTES = 96
MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 4096
MAX_DEPTH = 32
MAX_JSON_ITEMS = 200_000

_TO_FILE = {
    "f64": "F64", "f32": "F32", "f16": "F16", "bf16": "BF16", "f8_e4m3": "F8_E4M3",
    "f8_e5m2": "F8_E5M2", "c64": "C64", "i64": "I64", "i32": "I32", "i16": "I16", "i8": "I8",
    "u64": "U64", "u32": "U32", "u16": "U16", "u8": "U8", "bool": "BOOL",
}  # fmt: skip
_NO_NAME = re.compile(r"[/\\]|^~|^__.*__$")
_FROM_FILE = {theirs: ours for ours, theirs in _TO_FILE.items()}

Buffer = bytes | bytearray | memoryview


class Signer(Protocol):
    """What signs a file: a key, seen from here."""

    @property
    def public(self) -> bytes: ...

    def sign(self, kind: str, sha256: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor without torch: little-endian, row-major bytes.

    Attributes:
        dtype: our name, ``f32``.
        shape: sizes.
        data: as many bytes as they ask for; not copied.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Buffer

    @property
    def size_bytes(self) -> int:
        return ITEMSIZE[self.dtype] * math.prod(self.shape)


def encode(kind: str, body: Mapping[str, Any], tensors: Mapping[str, RawTensor], signer: Signer) -> list[Buffer]:
    """A signed file as chunks, to be written one after the other; tensor data is not copied.

    Tensors are laid out by falling element size, so that each starts aligned; their order in
    the file means nothing, the body names them.
    """
    for name in tensors:
        if not is_tensor_name(name):
            raise BadFile(f"malformed file: a tensor can not be called {name!r}")
    entries, data, end = _lay_out(tensors)
    entries[SIGNATURE] = _signature_entry(end)
    text = canonical(body).decode()
    _check_depth(body, text)
    head = _head({"__metadata__": {"fedq": text}, **entries})
    chunks: list[Buffer] = [head, *data, signer.public]
    return [*chunks, signer.sign(kind, sha256(chunks))]


def unsigned(tensors: Mapping[str, RawTensor]) -> list[Buffer]:
    """A plain safetensors file, in chunks: for users' own tensors, not for what travels."""
    entries, data, _ = _lay_out(tensors)
    return [_head(entries), *data]


def _lay_out(tensors: Mapping[str, RawTensor]) -> tuple[dict[str, Any], list[Buffer], int]:
    """Header entries, data and its length."""
    if len(tensors) > MAX_TENSORS:
        raise BadFile(f"too large for one file: {len(tensors)} tensors of {MAX_TENSORS}")
    order = sorted(tensors, key=lambda name: -ITEMSIZE[tensors[name].dtype])
    entries: dict[str, Any] = {}
    start = 0
    for name in order:
        tensor = tensors[name]
        end = start + tensor.size_bytes
        if memoryview(tensor.data).nbytes != end - start:
            raise BadFile(f"malformed file: tensor {name!r} has not the bytes of its shape")
        entries[name] = {"dtype": _TO_FILE[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
        start = end
    return entries, [tensors[name].data for name in order if tensors[name].size_bytes], start


def _head(header: Mapping[str, Any]) -> bytes:
    """A header with its length, padded so that the data starts aligned."""
    head = canonical(header)
    head += b" " * (-len(head) % 8)
    if len(head) > MAX_HEADER_BYTES:
        raise BadFile(f"too large for one file: header {len(head)} bytes of {MAX_HEADER_BYTES}")
    need(_items(head.decode()) <= MAX_JSON_ITEMS, f"more than {MAX_JSON_ITEMS} items")
    return struct.pack("<Q", len(head)) + head


def sha256(chunks: Iterable[Buffer]) -> bytes:
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
    return sha.digest()


@dataclass(frozen=True, slots=True)
class File:
    """A file that was read: its body, and its tensors by name, as views into the buffer."""

    body: dict[str, Any]
    tensors: Mapping[str, RawTensor]


def decode(raw: Buffer) -> File:
    """Read a file whose signature was checked; strict: BadFile for any other layout.

    Args:
        raw: the whole file, private to the caller; tensors are views into it.
    """
    header, data = layout(raw)
    meta, end = header.pop("__metadata__", None), len(data) - SIGNATURE_BYTES
    need(isinstance(meta, dict) and meta.keys() == {"fedq"} and isinstance(meta["fedq"], str), "no fedq metadata")
    need(_is_signature(header.pop(SIGNATURE, None), end), "the signature is not last")
    need(len(header) <= MAX_TENSORS, f"more than {MAX_TENSORS} tensors")
    need(all(map(is_tensor_name, header)), "a tensor's name")
    tensors = tensors_of(header, data[:end])
    body = parse_json(meta["fedq"])
    need(isinstance(body, dict), "the body is not an object")
    return File(body, tensors)


def _signature_entry(start: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [SIGNATURE_BYTES], "data_offsets": [start, start + SIGNATURE_BYTES]}


def _is_signature(entry: Any, start: int) -> bool:
    same = bool(entry == _signature_entry(start))
    return same and are_sizes(entry["shape"]) and _offsets(entry["data_offsets"])


def is_tensor_name(name: object) -> bool:
    """Whether a tensor that travels can be called so: printable, no ``/`` or ``\\``, and neither
    ``~...`` nor ``__...__``, which belong to the format."""
    return ids.is_text(name) and not _NO_NAME.search(str(name))


def check_version(body: Mapping[str, Any]) -> None:
    """BadVersion if the body is of a version this code can not read."""
    version = body.get("v")
    if type(version) is not int or version != VERSION:
        raise BadVersion(f"format version {ascii(version)[:20]} is not {VERSION}")


def layout(raw: Buffer) -> tuple[dict[str, Any], memoryview]:
    """Header and tensor bytes of any safetensors file."""
    view = memoryview(raw)
    if len(view) < 8:
        raise BadFile(f"{len(view)} bytes are no safetensors file: too short")
    (size,) = struct.unpack_from("<Q", view)
    if size > min(MAX_HEADER_BYTES, len(view) - 8):
        raise BadFile(f"a header of {size} bytes does not fit: truncated, or no safetensors file")
    header = parse_json(bytes(view[8 : 8 + size]))
    need(isinstance(header, dict) and view[8] == ord("{"), "the header is not an object")
    return header, view[8 + size :]


def tensors_of(header: Mapping[str, Any], data: memoryview) -> dict[str, RawTensor]:
    """The tensors a header describes, as views; every byte belongs to exactly one."""
    tensors, spans = {}, []
    for name, entry in header.items():
        tensors[name] = _tensor(name, entry, data)
        spans.append(entry["data_offsets"])
    edges = [0, *(edge for span in sorted(spans) for edge in span), len(data)]
    need(edges[::2] == edges[1::2], "tensors overlap or leave holes")
    return tensors


def _tensor(name: str, entry: Any, data: memoryview) -> RawTensor:
    """One entry of a header, as a view. There may be thousands: nothing is put together that is not needed."""
    try:
        theirs, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        dtype = _FROM_FILE[theirs]
    except (TypeError, KeyError):
        raise BadFile(f"malformed file: tensor {name[:40]!r}") from None
    if len(entry) != 3 or not (are_sizes(shape) and _offsets(offsets)):
        raise BadFile(f"malformed file: layout of tensor {name[:40]!r}")
    start, end = offsets
    if not start <= end <= len(data) or end - start != ITEMSIZE[dtype] * math.prod(shape):
        raise BadFile(f"malformed file: size of tensor {name[:40]!r}, or it ends outside the file")
    return RawTensor(dtype, tuple(shape), data[start:end])


def are_sizes(value: Any) -> bool:
    """Whether these are sizes, of which even those beside a 0 can be multiplied in 64 bits."""
    if type(value) is not list or len(value) > 64:
        return False
    product = 1
    for size in value:
        if type(size) is not int or size < 0:
            return False
        product *= size or 1
    return product < MAX_SIZE


def _offsets(value: Any) -> bool:
    if type(value) is not list or len(value) != 2:
        return False
    start, end = value
    return type(start) is int and type(end) is int and 0 <= start < MAX_SIZE and 0 <= end < MAX_SIZE


def parse_json(text: bytes | str, *, max_items: int = MAX_JSON_ITEMS) -> Any:
    """Any JSON within bounds: BadFile for duplicate keys, NaN, numbers that overflow, text that is
    not Unicode, more commas and brackets than ``max_items``, nesting beyond 32."""
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        need(_items(text) <= max_items, f"more than {max_items} items")
        value = _JSON.decode(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # ValueError at half of a surrogate pair
    except (ValueError, RecursionError) as error:
        raise BadFile(f"malformed JSON: {type(error).__name__}") from None
    if isinstance(value, (list, dict)):
        _check_depth(value, text)
    return value


def _items(text: str) -> int:
    """Commas and brackets, also those in texts: more than there are values."""
    return sum(map(text.count, ",[{"))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise BadFile("malformed file: a key stands twice")
    return result


def _refuse(text: str) -> None:
    raise BadFile(f"malformed JSON: {text}")


def _finite(text: str) -> float:
    value = float(text)
    need(math.isfinite(value), "a number is too large")
    return value


_JSON = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_refuse, parse_float=_finite)


def _check_depth(value: Any, text: str) -> None:
    """BadFile if lists and dicts are nested too deep; a ``text`` with few brackets needs no look."""
    left = text.count("[") + text.count("{") - 1  # lists and dicts below the level, and what stands in texts
    level: list[Any] = [value]
    for depth in range(MAX_DEPTH):
        if left <= MAX_DEPTH - 1 - depth:
            return
        level = [
            child
            for v in level
            for child in (v.values() if isinstance(v, dict) else v)
            if isinstance(child, (list, dict))
        ]
        if not level:
            return
        left -= len(level)
    raise BadFile(f"malformed file: nested deeper than {MAX_DEPTH}")
