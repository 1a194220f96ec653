"""Keys: who signed these bytes.

A file is signed over its kind and the SHA-256 of every byte before the signature, so a plan
can not be replayed as a reply. Key files are 32-byte seeds, readable by their owner only.
Source: Ed25519, RFC 8032; pre-authentication encoding after DSSE (secure-systems-lab).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from nacl import bindings
from nacl.exceptions import BadSignatureError

from fedq import fs
from fedq.errors import BadFile, BadSignature, Unreachable
from fedq.queue.message import Address
from fedq.queue.pair import Sealed, open_json

SIGNATURE_BYTES = 96
"""Public key (32) and signature (64), at the end of every file."""


def _message(kind: str, sha256: bytes) -> bytes:
    """PAE: every part with its length, so parts can not flow into each other."""
    name = f"fedq/v1/{kind}".encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(sha256), sha256)


@dataclass(frozen=True)
class Key:
    """A signing key. ``public`` is 32 bytes."""

    public: bytes
    _secret: bytes

    @classmethod
    def from_seed(cls, seed: bytes) -> Key:
        """The key of a 32-byte seed: the same seed gives the same key."""
        public, secret = bindings.crypto_sign_seed_keypair(seed)
        return cls(public, secret)

    @property
    def fingerprint(self) -> str:
        """The first 8 hex digits of the public key, as in a requester's directory name."""
        return self.public.hex()[:8]

    def sign(self, kind: str, sha256: bytes) -> bytes:
        """64 bytes over kind and digest."""
        return bindings.crypto_sign(_message(kind, sha256), self._secret)[:64]

    def secret_seed(self, *parts: str | int) -> int:
        """63 bits that follow from these parts, and that nobody without the key can tell."""
        told = hashlib.sha256(repr(parts).encode()).digest()
        return int.from_bytes(hashlib.sha256(self.sign("seed", told)).digest()[:8], "big") >> 1

    def __repr__(self) -> str:
        return f"Key({self.fingerprint})"


def load_or_create(path: Path) -> Key:
    """The key in this file; a fresh one is made if there is none.

    Raises:
        Unreachable: others may read the file or write its directory, or it holds no key.
    """
    try:
        text = bytes(fs.read(path, limit_bytes=1000))
    except FileNotFoundError:
        fs.check_folder(path.parent)
        fs.make_dir(path.parent)
        try:
            fs.put(path, [os.urandom(32).hex().encode() + b"\n"])
        except FileExistsError:  # another process was first
            pass
        text = bytes(fs.read(path, limit_bytes=1000))
    fs.check_private(path)
    try:
        return Key.from_seed(bytes.fromhex(text.decode("ascii")))
    except ValueError:
        raise Unreachable(
            f"{path.absolute()} holds no key: not 64 hex digits", hint="restore it from a backup"
        ) from None


def verify(kind: str, sha256: bytes, signature: bytes) -> bytes:
    """The public key that signed this digest as this kind; BadSignature if none did.

    Args:
        signature: 96 bytes, public key and signature. That a key signed says nothing of whether it is trusted.
    """
    public = signature[:32]
    try:
        bindings.crypto_sign_open(signature[32:] + _message(kind, sha256), public)
    except (BadSignatureError, ValueError):
        raise BadSignature(f"not a signed fedq {kind}: unsigned, truncated, or changed after signing") from None
    return public


def signer_of(kind: str, raw: fs.Buffer, signed: bytes = b"") -> bytes:
    """The public key that signed this file as this kind; checked before anything is parsed.

    Args:
        signed: SHA-256 of all but the last 64 bytes, where it is known already: they are not hashed again.
    """
    view = memoryview(raw)
    if len(view) < SIGNATURE_BYTES:
        raise BadSignature(f"{len(view)} bytes are too few for a signed file: truncated")
    return verify(kind, signed or hashlib.sha256(view[:-64]).digest(), bytes(view[-96:]))


def unseal(what: type[Sealed], raw: fs.Buffer, key: bytes, device: str, to: Address) -> Sealed:
    """The card, catalog or heartbeat of a device with this public key, for this requester in this queue root.

    Raises:
        BadSignature: another key signed it. BadFile: it is another device's, or for somebody else.
    """
    body, public = open_json(what.KIND, raw, verify)
    if public != key:
        raise BadSignature(f"a {what.KIND} signed by another key ({public.hex()[:8]}, not {key.hex()[:8]})")
    found = what.from_json(body)
    if (found.device, found.to) != (device, to):
        raise BadFile(f"a {what.KIND} of {found.device} for {told(found.to, to)}, not of {device} for {to.name}")
    return found


def told(found: Address, meant: Address) -> str:
    """An address that is not the one that was meant, for people: what is another in it."""
    if found.root != meant.root:
        return f"{found.name} in another queue root"
    return found.name if found.name != meant.name else f"{found.name} with another key"
