"""A requester and a hand-driven device: real folders, real keys, real bytes; no gate."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedq.client.session import Client, trust_device
from fedq.config import Config
from fedq.plan.codec import RawTensor, decode
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Action, Graph, Type, Var
from fedq.queue import pair as pairs
from fedq.queue.message import Address, Failure, Message, Number, Reply, decode_message, encode_reply
from fedq.queue.pair import Card, Catalog, Entry, Heartbeat, Pair
from fedq.trust.keys import Key, signer_of

ROOT = "0" * 31 + "7"
ALICE = Key.from_seed(b"a" * 32)
NAME = f"alice-{ALICE.fingerprint}"
TO = Address(NAME, ALICE.public.hex(), ROOT)


def f32(*values: float) -> RawTensor:
    return RawTensor("f32", (len(values),), struct.pack(f"<{len(values)}f", *values))


def floats(raw: RawTensor) -> list[float]:
    return list(struct.unpack(f"<{len(raw.data) // 4}f", bytes(raw.data)))


def double_abs() -> PlanFile:
    """``x -> (x + x).abs()`` for any f32 vector."""
    free = Type("f32", ("n",))
    add = Action("aten.add.Tensor", (Var(0), Var(0)), {}, (free,))
    graph = Graph((free,), (add, Action("aten.abs", (Var(1),), {}, (free,))), Var(2), sizes={"n": 0})
    return PlanFile(graph, {}, About("double_abs", ("tour.py:9", "tour.py:10"), ("x",)))


@dataclass
class Side:
    """The device's side of a pair, moved by hand."""

    name: str
    key: Key
    pair: Pair
    written: int = 0

    def count(self) -> tuple[int, int]:
        self.written += 1
        return 1, self.written

    @property
    def address(self) -> Address:
        return Address(self.name, self.key.public.hex(), ROOT)

    def catalog(self, *entries: Entry, plans: Sequence[tuple[str, str]] = ()) -> None:
        self.pair.write(Catalog(self.name, TO, self.count(), entries, tuple(plans)), self.key)

    def beat(self, time: float, state: str = "up", **what: tuple) -> None:
        self.pair.write(Heartbeat(self.name, TO, self.count(), "0" * 16, time, state, **what), self.key)

    def messages(self) -> dict[str, tuple[Message, dict[str, RawTensor]]]:
        """What lies in ``in/``, checked as a gate would."""
        found = {}
        for name in self.pair.carrier.list("in"):
            raw = self.pair.carrier.get(f"in/{name}")
            assert signer_of("message", raw) == ALICE.public
            file = decode(raw)
            message = decode_message(file)
            assert (name, message.sender, message.to) == (f"{message.id}.safetensors", NAME, self.address)
            found[message.id] = message, dict(file.tensors)
        return found

    def take(self) -> list[tuple[Message, dict[str, RawTensor]]]:
        """The same, taken away; by their time."""
        found = self.messages()
        for id_ in found:
            self.pair.carrier.delete(f"in/{id_}.safetensors")
        return sorted(found.values(), key=lambda pair: pair[0].created)

    def only(self) -> Message:
        (found,) = self.take()
        return found[0]

    def reply(
        self,
        id_: str,
        values: dict[str, RawTensor | Number | Failure],
        *,
        key: Key | None = None,
        to: Address = TO,
    ) -> None:
        tensors = {f"t{n}": v for n, v in enumerate(values.values()) if isinstance(v, RawTensor)}
        named = {i: f"t{n}" if isinstance(v, RawTensor) else v for n, (i, v) in enumerate(values.items())}
        reply = Reply(id_, self.name, to, "0" * 32, named)
        self.pair.carrier.put(f"out/{id_}.safetensors", encode_reply(reply, tensors, key or self.key))


class World:
    """A queue root with devices, and clients of one requester; time goes a millisecond a reading."""

    def __init__(self, path: Path) -> None:
        self.config = Config(path / "queue", path / "devices", path / "home", "alice", "none")
        self.now = 1_795_300_000.0
        self.clients: list[Client] = []
        pairs.create_root(self.config.queue, id=ROOT)
        if not self.config.home.exists():  # else this is another process of the same requester
            self.config.home.mkdir(mode=0o700)
            (self.config.home / "key").write_text(b"a".hex() * 32 + "\n")
            (self.config.home / "key").chmod(0o600)

    def clock(self) -> float:
        self.now += 0.001
        return self.now

    def device(self, name: str) -> Side:
        key = Key.from_seed(name.encode().ljust(32, b"."))
        pair = pairs.create_pair(self.config.queue, name, NAME)
        pair.write(Card(name, TO, (1, 0), key.public.hex(), "0", (1,)), key)
        trust_device(self.config, name, key.public.hex())
        side = Side(name, key, pair)
        side.catalog()
        return side

    def client(self, **how) -> Client:
        client = Client(self.config, now=self.clock, **how)
        self.clients.append(client)
        return client

    def trust_file(self, name: str) -> dict:
        return json.loads((self.config.home / "trust" / ROOT / f"{name}.json").read_text())
