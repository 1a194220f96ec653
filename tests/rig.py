"""A root of its own with one device and its daemon, for tests: real processes, real folders."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fedq import config as configs
from fedq.client.device import Device
from fedq.client.session import Client
from fedq.config import Config
from fedq.device import daemon, gate
from fedq.device.home import Home
from fedq.local import introduce
from fedq.plan.tensors import to_raw
from fedq.queue.pair import Heartbeat


def config_of(root: Path | str) -> Config:
    root = Path(root)
    found = configs.find(cwd=root, environ={"FEDQ_USER": "alice", "HOME": str(root)})
    return dataclasses.replace(found, home=root / "home")


def client_of(root: Path | str) -> Client:
    return Client(config_of(root))


def wait_until(true: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """What it gives once that is true; a test that waits in vain fails."""
    end = time.monotonic() + timeout_s
    while not (found := true()):
        assert time.monotonic() < end, "did not come to be"
        time.sleep(0.005)
    return found


class Rig:
    """``queue/``, ``devices/`` and a requester's ``home/`` below one folder; ends what it started."""

    def __init__(
        self,
        root: Path,
        *,
        data: Mapping[str, torch.Tensor] | None = None,
        release: str = "open",
        name: str = "device_1",
    ) -> None:
        self.root, self.name, self.config = root, name, config_of(root)
        introduce(self.config, name)
        for tag, tensor in (data or {}).items():
            self.add(tag, tensor, release=release)
        self.client = Client(self.config)
        self.device: Device = self.client.device(name)

    def add(self, tag: str, tensor: torch.Tensor, *, release: str = "open", replace: bool = False) -> str:
        home = self.home()
        try:
            return home.add(to_raw(tensor), tag=tag, release=release, replace=replace)
        finally:
            home.close()

    def home(self) -> Home:
        return Home(self.config.devices / self.name, self.config)

    def start(self) -> int:
        gate.mark(self.config, self.name, up=True)
        return daemon.start(self.config)

    def stop(self) -> None:
        daemon.stop(self.config)

    def step(self) -> None:
        """Serve what waits, in this process, with real workers."""
        gate.serve_waiting(self.config, [self.name])

    def heartbeat(self) -> Heartbeat:
        try:
            return self.device.sealed(Heartbeat)
        except FileNotFoundError:
            return Heartbeat(self.name, self.client.address, (0, 0), "0" * 16, 0.0, "down")

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.client.close()
