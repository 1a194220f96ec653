"""VirtualWorker: a whole device inside this process, for notebooks and tests.

The same files, the same gate, the same checks as a daemon's; only, the gate steps in the calling
thread while someone waits, and plans are replayed in this process, which keeps its own torch
flags, seeds and modes.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedq import config as configs
from fedq import fs, ids
from fedq.client.device import Device
from fedq.client.pointers import PointerTensor
from fedq.client.session import Client, trust_device
from fedq.config import Config
from fedq.device import review
from fedq.device.gate import Gate
from fedq.device.home import Home, Requester, init
from fedq.device.journal import QuestionRow
from fedq.device.pool import InlineWorker
from fedq.errors import UsageError
from fedq.trust import keys, policy

if TYPE_CHECKING:
    import torch


def introduce(config: Config, name: str, *, new_id: ids.NewId = ids.new_id) -> None:
    """Make a device and let it and this requester know each other's keys: no ceremony on one machine."""
    key = keys.load_or_create(config.home / "key")
    requester = Requester(f"{config.user}-{key.fingerprint}", key.public.hex())
    home = init(config, name, requester=requester, new_id=new_id)
    trust_device(config, name, home.key.public.hex())
    home.close()


class VirtualWorker(Device):
    """A device with data, embedded: ``fq.VirtualWorker(id="device_1", data={"input_data": x})``.

    PySyft's ``VirtualWorker(hook, id="device_1", data=(x1, x2))`` reads the tags that the tensors
    were given with ``x.tag(...)``.

    Args:
        given: ``hook, id, data``, in this order, as far as they are not given by name; the hook may be left out.
        id: its name.
        data: tag -> tensor, or tensors with tags, released as ``release`` says.
        release: ``open`` or ``review``; reviewed results wait for `approve`.
        root: where its files lie; by default a temporary folder that ends with it.
    """

    def __init__(
        self,
        *given: Any,
        id: str = "device_1",
        data: Mapping[str, torch.Tensor] | Sequence[torch.Tensor] | None = None,
        release: str = "open",
        root: Path | None = None,
        clock: Callable[[], float] = fs.clock,
        new_id: ids.NewId = ids.new_id,
    ) -> None:
        id, data = _in_order(given, id, data)
        self.root = root or Path(tempfile.mkdtemp(prefix="fedq-"))
        if root is None:
            weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)
        self._clock = clock
        config = dataclasses.replace(
            configs.find(),
            queue=self.root / "queue",
            devices=self.root / "devices",
            home=self.root / "home",
            durability="none",
        )
        introduce(config, id, new_id=new_id)
        client = Client(config, now=clock, new_id=new_id, pump=self.step)
        self.gate = Gate(config, [id], worker=InlineWorker, now=clock())
        self.home: Home = self.gate.served[id].home
        super().__init__(id, client)
        if isinstance(data, Mapping):
            for tag, tensor in data.items():
                self.add(tensor, tag=tag, release=release)
        else:
            self.load_data(data or (), release=release)

    def add(
        self,
        tensor: torch.Tensor,
        *,
        tag: str,
        release: str = "open",
        replace: bool = False,
        note: str = "",
        allow: Sequence[str] | None = None,
    ) -> str:
        """Store a tensor as its owner would, with ``fedq data add``; returns its id."""
        from fedq.plan.tensors import to_raw

        how = {"release": release, "replace": replace, "note": note, "allow": allow}
        return self.home.add(to_raw(tensor), tag=tag, id=self.client.new_id(), **how)  # type: ignore[arg-type]

    def load_data(self, tensors: Sequence[torch.Tensor], *, release: str = "open") -> None:
        """Store tensors as their owner would, each under the tags that ``x.tag(...)`` gave it."""
        from fedq.client.hook import words_of

        for n, tensor in enumerate(tensors):
            words = words_of(tensor)
            if not words.tags:
                raise UsageError(
                    f"data[{n}] has no tag: nobody could find it",
                    hint='TorchHook(torch), then x.tag("input_data"); or data={"input_data": x}',
                )
            self.add(tensor, tag=words.tags[0], note=words.note, allow=words.allowed, release=release)

    def step(self) -> None:
        """Do all that waits; called whenever someone waits for this device."""
        while self.gate.step(self._clock()):
            pass

    def is_asked(self, reply: str) -> bool:
        return reply in self.gate.served[self.name].peers[self.client.name].questions.open

    def review(self) -> list[QuestionRow]:
        """What waits for its owner, the oldest first."""
        self.step()
        return review.questions(self.home)

    def approve(self, what: PointerTensor | str, *, look: bool = False) -> None:
        """Say the owner's word for a pointer's value, or for a question by its reply's id: run it, and release it.

        Args:
            look: run it and hold the outcome for a second word.

        A value that nobody asked for is asked for first.
        """
        self._decide(what, policy.LOOK if look else policy.APPROVE)

    def deny(self, what: PointerTensor | str, *, why: str = "") -> None:
        """Decline it, as its owner; the requester is told, and why."""
        self._decide(what, review.DENY, why)

    def _decide(self, what: PointerTensor | str, word: str, why: str = "") -> None:
        reply = what if isinstance(what, str) else self._reply(what)
        self.step()
        review.decide(self.home, [review.find(self.home, reply)], word, why=why)
        self.step()

    def _reply(self, pointer: PointerTensor) -> str:
        """Under which reply a value is asked for."""
        self.check_known([pointer])
        replies = self.ask([pointer])
        self.flush()
        return self.asked_last(replies, {pointer.address: pointer})[pointer.address]

    def __repr__(self) -> str:
        return f"VirtualWorker({self.name!r})"


def _in_order(given: tuple[Any, ...], id: str, data: Any) -> tuple[str, Any]:
    """The name and the data of a VirtualWorker: what was given by position comes first, after a hook."""
    rest = given if not given or isinstance(given[0], str) else given[1:]
    if len(rest) > 2 or not isinstance((*rest, id)[0], str):
        raise UsageError(
            "VirtualWorker takes a hook, an id and data", hint='VirtualWorker(hook, id="device_1", data=(x,))'
        )
    return (*rest, *(id, data)[len(rest) :])
