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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedq import config as configs
from fedq import fs, ids
from fedq.client.device import Device
from fedq.client.session import Client, trust_device
from fedq.config import Config
from fedq.device.gate import Gate
from fedq.device.home import Home, Requester, init
from fedq.device.pool import InlineWorker
from fedq.trust import keys

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

    Args:
        id: its name.
        data: tag -> tensor, released as ``release`` says.
        release: ``open`` or ``review``; reviewed results wait for `approve`.
        root: where its files lie; by default a temporary folder that ends with it.
    """

    def __init__(
        self,
        id: str = "device_1",
        data: Mapping[str, torch.Tensor] | None = None,
        *,
        release: str = "open",
        root: Path | None = None,
        clock: Callable[[], float] = fs.clock,
        new_id: ids.NewId = ids.new_id,
    ) -> None:
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
        for tag, tensor in (data or {}).items():
            self.add(tensor, tag=tag, release=release)

    def add(self, tensor: torch.Tensor, *, tag: str, release: str = "open", replace: bool = False) -> str:
        """Store a tensor as its owner would, with ``fedq data add``; returns its id."""
        from fedq.plan.tensors import to_raw

        return self.home.add(to_raw(tensor), tag=tag, release=release, replace=replace, id=self.client.new_id())

    def step(self) -> None:
        """Do all that waits; called whenever someone waits for this device."""
        while self.gate.step(self._clock()):
            pass

    def approve(self, id: str) -> None:
        """Release a result held for review, as its owner would."""
        self._judge(id, "approved")

    def deny(self, id: str) -> None:
        """Decline to release a result."""
        self._judge(id, "denied")

    def _judge(self, id: str, verdict: str) -> None:
        self.home.judge(id, verdict)
        self.gate.served[self.name].refresh()

    def __repr__(self) -> str:
        return f"VirtualWorker({self.name!r})"
