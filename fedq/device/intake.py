"""Is this file a message for us? Every check between the bytes and the journal, in order.

Signature first, before anything is parsed; then format, then that name, sender and receiver
are what the file's place says. Nothing here believes a file it has not checked.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedq.errors import BadFile, BadSignature
from fedq.plan.codec import Buffer, File, decode
from fedq.queue.message import Address, Message, decode_message
from fedq.trust.keys import signer_of, told

SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A checked message with its tensors and its bytes; ``again``: it came before."""

    message: Message
    file: File
    raw: Buffer
    digest: str
    again: bool


def check(
    raw: Buffer, *, name: str, requester: str, key: str, to: Address, signed: bytes = b""
) -> tuple[Message, File]:
    """The message in these bytes, if it is one from this requester to this device.

    Args:
        name: the file's name, ``<id>.safetensors``.
        key: the requester's public key, hex, from this device's trust.
        to: this device.
        signed: SHA-256 of all but the last 64 bytes, if it was taken while they were read.

    Raises:
        BadSignature, BadVersion, BadFile: it is not.
    """
    signer = signer_of("message", memoryview(raw), signed).hex()
    if signer != key:
        raise BadSignature(f"signed by {signer[:8]}, which is not {requester}")
    file = decode(raw)
    message = decode_message(file)
    if f"{message.id}{SUFFIX}" != name:
        raise BadFile(f"holds message {message.id}, which is not its name")
    if (message.sender, message.to) != (requester, to):
        raise BadFile(f"is from {message.sender} to {told(message.to, to)}, not from {requester} to {to.name}")
    return message, file
