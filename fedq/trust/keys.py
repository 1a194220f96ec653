"""Keys: who signed these bytes.

A file is signed over its kind and the SHA-256 of every byte before the signature, so a plan
can not be replayed as a reply. Key files are 32-byte seeds, readable by their owner only.
Source: Ed25519, RFC 8032; pre-authentication encoding after DSSE (secure-systems-lab).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from nacl import bindings
from nacl.exceptions import BadSignatureError

from fedq.errors import BadSignature

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

    def __repr__(self) -> str:
        return f"Key({self.fingerprint})"


def signer_of(kind: str, raw: bytes | memoryview) -> bytes:
    """The public key that signed these bytes as this kind; BadSignature if none did.

    Checked before anything is parsed. That a key signed says nothing of whether it is trusted.
    """
    view = memoryview(raw)
    if len(view) < SIGNATURE_BYTES:
        raise BadSignature(f"{len(view)} bytes are too few for a signed file: truncated")
    public, signature = bytes(view[-96:-64]), bytes(view[-64:])
    digest = hashlib.sha256(view[:-64]).digest()
    try:
        bindings.crypto_sign_open(signature + _message(kind, digest), public)
    except (BadSignatureError, ValueError):
        raise BadSignature(f"not a signed fedq {kind}: unsigned, truncated, or changed after signing") from None
    return public
