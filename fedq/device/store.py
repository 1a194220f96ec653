"""A device's values: small ones in the journal, large ones and the owner's as safetensors files.

A file is ``values/<id>.safetensors``, one tensor named ``value``, signed by the device, so any
safetensors tool opens it. It is written before the journal names it, and never changed.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from fedq import fs
from fedq.device.journal import OWNER, Journal, Value
from fedq.device.wire import Sendable, Stored
from fedq.errors import BadFile
from fedq.plan.codec import Buffer, RawTensor, decode, encode
from fedq.plan.graph import Type
from fedq.trust.keys import SIGNATURE_BYTES, Key, signer_of

INLINE_BYTES = 64 << 10
"""Values up to this size live in the journal: one commit instead of two fsyncs more."""
MOST_DIGESTS = 20_000


class Store:
    """Bytes of values, by (scope, id)."""

    def __init__(self, home: Path, journal: Journal, key: Key, *, durable: bool = True) -> None:
        self.folder = home / "values"
        self._journal, self._key, self._durable = journal, key, durable
        self._digests: dict[tuple[str, str], tuple[Value, str]] = {}
        """Of values that may leave and did not yet."""

    def path(self, scope: str, id_: str) -> Path:
        """The owner's values lie in ``values/``, a requester's in ``values/<requester>/``."""
        return self.folder / scope / f"{id_}.safetensors" if scope else self.folder / f"{id_}.safetensors"

    def keep(
        self,
        scope: str,
        id_: str,
        raw: RawTensor,
        *,
        release: str = "",
        tag: str | None = None,
        sources: frozenset[str] = frozenset(),
    ) -> Value:
        """The row for this tensor; its file is written now if it has one, the row is the caller's to add."""
        type_ = Type(raw.dtype, raw.shape)
        if scope != OWNER and raw.size_bytes <= INLINE_BYTES:
            return Value(scope, id_, tag, type_, release, bytes(raw.data), None, sources)
        path = self.path(scope, id_)
        fs.make_dir(path.parent)
        body = {"v": 1, "kind": "value", "id": id_, "tag": tag}
        try:
            fs.put(path, encode("value", body, {"value": raw}, self._key), durable=self._durable)
        except FileExistsError:  # written before a crash, and the journal does not know: the same id, done again
            fs.replace(path, encode("value", body, {"value": raw}, self._key), durable=self._durable)
        return Value(scope, id_, tag, type_, release, None, None, sources)

    def digest(self, value: Value) -> str:
        """What tells a value's content from any other's: of a file, its signature."""
        if value.in_file:
            return bytes(self._read(value)[-SIGNATURE_BYTES:]).hex()
        head = f"{value.type.dtype} {value.type.shape} {value.type.value!r}".encode()
        made = hashlib.sha256(b"%d %b%b" % (len(head), head, value.data or b"")).hexdigest()
        if len(self._digests) >= MOST_DIGESTS:
            self._digests.clear()
        self._digests[value.scope, value.id] = value, made
        return made

    def allowed(self, value: Value, digest: str) -> RawTensor | None:
        """The tensor of a row whose release was decided for this very content; None for a number.

        Raises:
            BadFile: the content is another, or is not there.
        """
        if value.in_file:
            signer_of("value", memoryview(self._read(value)))
        known, made = self._digests.pop((value.scope, value.id), (None, ""))
        if (made if known is value else self.digest(value)) != digest:
            raise BadFile(f"value {value.id} is not the one that may leave")
        return self.bytes(value) if value.type.is_tensor else None

    def bytes(self, value: Value) -> RawTensor:
        """The tensor of a row."""
        if value.data is not None:
            return RawTensor(value.type.dtype, value.type.shape or (), value.data)  # type: ignore[arg-type]
        return decode(self._read(value)).tensors["value"]

    def stored(self, value: Value) -> Sendable:
        """The same, for a worker: of a value that has a file, the file."""
        raw = self.bytes(value)
        if value.data is not None:
            return raw
        path = self.path(value.scope, value.id)
        found = fs.fingerprint(path)
        size = found[2] if found else 0
        return Stored(raw, partial(fs.descriptor, path), size - SIGNATURE_BYTES - raw.size_bytes)

    def _read(self, value: Value) -> Buffer:
        path = self.path(value.scope, value.id)
        try:
            raw = fs.map_private(path)
        except FileNotFoundError:
            raise BadFile(f"value {value.id} lost its file", path=str(path)) from None
        if len(raw) < 96 or raw[-96:-64] != self._key.public:
            signer_of("value", raw)
            raise BadFile(f"value {value.id} has a file that is not this device's")
        return raw

    def forget(self, scope: str, ids: tuple[str, ...]) -> None:
        """Delete the files of dropped values; after the journal forgot them."""
        for id_ in ids:
            fs.delete(self.path(scope, id_))
