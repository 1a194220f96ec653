"""TorchHook: PySyft's words on torch.Tensor, from when it is asked for until it is given back.

``x.tag("input_data").describe("...").send(device_1)``. Without a hook torch.Tensor is as torch made it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from fedq import ids
from fedq.errors import Conflict, UsageError

if TYPE_CHECKING:
    from fedq.client.device import Device
    from fedq.client.pointers import PointerTensor

_AT = "_fedq_words"


@dataclass(slots=True)
class Words:
    """What was said of a tensor: its tags, in order, a description, and who alone may know of it."""

    tags: tuple[str, ...] = ()
    description: str = ""
    allowed: tuple[str, ...] | None = None

    @property
    def note(self) -> str:
        """All but the first tag, as a catalog's note."""
        return " ".join([*(f"#{t}" for t in self.tags[1:]), *([self.description] if self.description else [])])


def words_of(tensor: torch.Tensor) -> Words:
    """What was said of this very tensor; results of operations are other tensors."""
    found = tensor.__dict__.get(_AT)
    return found if isinstance(found, Words) else Words()


def _said(tensor: torch.Tensor) -> Words:
    words = tensor.__dict__.setdefault(_AT, Words())
    assert isinstance(words, Words)
    return words


def tag(self: torch.Tensor, *tags: str) -> torch.Tensor:
    """Give it tags, with or without ``#``; the first is what it is called on a device."""
    for text in tags:
        plain = text.removeprefix("#") if isinstance(text, str) else ""
        if not ids.is_text(plain) or any(c.isspace() for c in plain):
            raise UsageError(f"{text!r} can not be a tag", hint='a tag is one word: x.tag("input_data", "#digits")')
        words = _said(self)
        words.tags = tuple(dict.fromkeys((*words.tags, plain)))
    return self


def describe(self: torch.Tensor, description: str) -> torch.Tensor:
    """Say in a line what it is; `search` looks in it."""
    text = " ".join(str(description).split())
    if text and not ids.is_text(text, most=800):
        raise UsageError("a description is a line of at most 800 characters")
    _said(self).description = text
    return self


def private_tensor(self: torch.Tensor, allowed_users: Iterable[str]) -> torch.Tensor:
    """Let only these requesters know of it, by name and key (``alice-3f9a1c2e``), once its owner adds it."""
    if isinstance(allowed_users, str):
        raise UsageError(f"allowed_users={allowed_users!r} is one text", hint=f"allowed_users=[{allowed_users!r}]")
    _said(self).allowed = tuple(allowed_users)
    return self


def send(self: torch.Tensor, *devices: Device) -> Any:
    """Store it on a device, or on several; a pointer, or a list of them that can be passed to plans."""
    from fedq.client.pointers import PointerTensors

    if not devices or not all(hasattr(d, "send_plan") for d in devices):
        raise UsageError("x.send(...) takes devices", hint='x.send(fq.Device("device_1"))')
    pointers = PointerTensors(_send(self, device) for device in devices)
    return pointers[0] if len(pointers) == 1 else pointers


def _send(tensor: torch.Tensor, device: Device) -> PointerTensor:
    words = words_of(tensor)
    others = [name for name in words.allowed or () if name != device.client.name]
    if others:
        raise UsageError(
            f"what you send to {device.name} is yours alone; it can not be shown to {', '.join(others)}",
            hint=f"its owner can: fedq data add {device.name} FILE --tag TAG --allow {others[0]}",
        )
    return device.send(tensor, words.tags[0] if words.tags else None, note=words.note)


def _tags(self: torch.Tensor) -> tuple[str, ...]:
    return words_of(self).tags


def _description(self: torch.Tensor) -> str:
    return words_of(self).description


WORDS: dict[str, Any] = {
    "tag": tag,
    "describe": describe,
    "private_tensor": private_tensor,
    "send": send,
    "tags": property(_tags),
    "description": property(_description),
}
"""What torch.Tensor gets."""


@dataclass
class LocalWorker:
    """Stands for this process, as in PySyft; nothing is stored here, so there is nothing to switch off."""

    id: str = "me"
    is_client_worker: bool = True


class TorchHook:
    """``hook = fq.TorchHook(torch)``; ``hook.restore()``, or the end of a ``with`` block, gives torch.Tensor back.

    Calling it again is a no-op; one ``restore`` gives back all.

    Raises:
        Conflict: another library has put its own word there.
    """

    def __init__(self, torch: ModuleType) -> None:
        self.torch, self.local_worker = torch, LocalWorker()
        tensor = torch.Tensor
        for name, word in WORDS.items():
            if hasattr(tensor, name) and tensor.__dict__.get(name) is not word:
                raise Conflict(f"torch.Tensor.{name} is another library's already", hint="undo its hook first")
        for name, word in WORDS.items():
            setattr(tensor, name, word)

    def restore(self) -> None:
        """Take the words off torch.Tensor, so that it is as torch made it."""
        tensor = self.torch.Tensor
        for name, word in WORDS.items():
            if tensor.__dict__.get(name) is word:
                delattr(tensor, name)

    unhook = restore

    def __enter__(self) -> TorchHook:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()
