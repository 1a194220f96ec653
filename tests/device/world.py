"""A device driven by hand: real folders, the real gate, its steps and its clock in the test's hands."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

from fedq.client.device import Device
from fedq.client.pointers import PointerTensor
from fedq.client.session import Client, trust_device
from fedq.config import Config
from fedq.device import home
from fedq.device.gate import Gate
from fedq.device.pool import InlineWorker
from fedq.plan.codec import RawTensor
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Action, Graph, Type, Var
from fedq.queue.message import Get, OwnerRef, Put, Ref, Run, SendPlan
from fedq.trust import keys

NAME = "device_1"
DAY_S = 86_400.0
START = 1_795_300_000.0
_FREE = Type("f32", ("n",))
DOUBLE = PlanFile(
    Graph((_FREE,), (Action("aten.add.Tensor", (Var(0), Var(0)), {}, (_FREE,)),), Var(1), sizes={"n": 0}),
    {},
    About("double", ("tour.py:9",)),
)


def f32(*values: float) -> RawTensor:
    return RawTensor("f32", (len(values),), struct.pack(f"<{len(values)}f", *values))


def floats(raw: RawTensor) -> list[float]:
    return list(struct.unpack(f"<{raw.shape[0]}f", bytes(raw.data)))


class World:
    """One device, any number of requesters, one clock."""

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, START
        self.config = Config(root / "queue", root / "devices", root / "alice", "alice", "none")
        self._clients: list[Client] = []
        self.alice = self.requester("alice")
        self._gate: Gate | None = None

    def clock(self) -> float:
        return self.now

    def requester(self, name: str) -> Device:
        """A requester's handle on the device; its home is its own."""
        config = dataclasses.replace(self.config, home=self.root / name, user=name)
        key = keys.load_or_create(config.home / "key")
        who = home.Requester(f"{name}-{key.fingerprint}", key.public.hex())
        made = home.init(config, NAME, requester=who)
        trust_device(config, NAME, made.key.public.hex())
        made.close()
        return self.again(name)

    def again(self, name: str) -> Device:
        """The same requester in another process, as it were."""
        config = dataclasses.replace(self.config, home=self.root / name, user=name)
        client = Client(config, now=self.clock)
        self._clients.append(client)
        return client.device(NAME)

    @property
    def gate(self) -> Gate:
        if self._gate is None:
            self._gate = Gate(self.config, [NAME], worker=InlineWorker, now=self.now)
        return self._gate

    def step(self, most: int = 300) -> int:
        """Let the device work until it has nothing to do; how many steps that took."""
        for n in range(most):
            self.now += 0.001
            if not self.gate.step(self.now) and self.gate.idle:
                return n
        raise AssertionError("the device does not come to rest")

    def restart(self) -> None:
        if self._gate is not None:
            self._gate.close()
            self._gate = None

    def close(self) -> None:
        self.restart()
        for client in self._clients:
            client.close()

    # -- what a requester does

    def put(self, device: Device, *values: float, **how: float) -> str:
        """A tensor there, its release asked for; its id."""
        id_ = device.client.new_id()
        device.submit([Put(id_, "t0"), Get(id_, (id_,))], {"t0": f32(*values)}, **how)
        return id_

    def double(self, device: Device, of: str, *, owners: bool = False, **how: float) -> str:
        """Twice a value that may not be there yet; the result's id."""
        id_ = device.client.new_id()
        plan = SendPlan(DOUBLE.id, DOUBLE.graph, (), DOUBLE.about)
        device.submit(
            [plan, Run(DOUBLE.id, (OwnerRef(of) if owners else Ref(of),), {}, (id_,)), Get(id_, (id_,))], **how
        )
        return id_

    def got(self, device: Device, id_: str) -> object:
        """What came of a value: floats, or the code of an error."""
        from fedq.client import fetch

        (came,) = fetch.outcomes([PointerTensor(device, id_, None)], 0, on_wait=lambda _: None)
        return floats(came) if isinstance(came, RawTensor) else came.code

    def files(self, device: Device, folder: str) -> set[str]:
        return set(device.pair.carrier.list(folder))

    def rows(self, table: str) -> int:
        import contextlib
        import sqlite3

        with contextlib.closing(sqlite3.connect(self.root / "devices" / NAME / "journal.sqlite")) as db:
            return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
