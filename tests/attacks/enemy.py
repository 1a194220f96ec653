"""A trusted requester who writes what they like, and two towns that differ in nothing but private bytes.

What is played in both must look the same from the share until an owner's word releases something.
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import fedq as fq
from fedq import fs, ids
from fedq.config import Config
from fedq.device import home, review
from fedq.device.gate import Gate
from fedq.device.home import Home
from fedq.device.pool import InlineWorker
from fedq.errors import FedqError
from fedq.plan.codec import RawTensor
from fedq.plan.file import PlanFile
from fedq.plan.fold import Batches
from fedq.plan.graph import About, Action, Graph, Type, Var
from fedq.queue.message import (
    Ack,
    Address,
    Cancel,
    Drop,
    Fold,
    Get,
    Inline,
    Message,
    OwnerRef,
    Put,
    Ref,
    Run,
    SendPlan,
    Verb,
    encode_message,
)  # fmt: skip
from fedq.trust.keys import Key

NAME, START = "ward", 1_795_300_000.0
ROWS = Type("f32", ("n",))
WHOLE = Type("i64", ("n",))
ENEMY, OTHER = Key.from_seed(b"e" * 32), Key.from_seed(b"o" * 32)


def _counts(n: torch.Tensor) -> torch.Tensor:
    from torch._higher_order_ops import while_loop

    (last,) = while_loop(lambda k: k < n, lambda k: (k + 1,), (torch.zeros((), dtype=torch.int64),))
    return last


def _plan(name: str, inputs: tuple[Type, ...], *actions: Action) -> PlanFile:
    return PlanFile(Graph(inputs, actions, Var(len(inputs) + len(actions) - 1), sizes={"n": 0}), {}, About(name))


def plans() -> list[PlanFile]:
    """Right ones; and ones whose failure, loops, sizes or finiteness depend on values."""
    step = Type("f32", ())
    return [
        _plan("double", (ROWS,), Action("aten.add.Tensor", (Var(0), Var(0)), {}, (ROWS,))),
        _plan("pick", (ROWS, WHOLE), Action("aten.index_select", (Var(0), 0, Var(1)), {}, (ROWS,))),
        _plan("where", (ROWS,), Action("aten.nonzero", (Var(0),), {}, (Type("i64", ("n", 1)),))),
        fq.func2plan()(_counts).build(torch.tensor(3)).file(),
        PlanFile(
            Graph(
                (step, ROWS),
                (Action("aten.sum", (Var(1),), {}, (step,)), Action("aten.div.Tensor", (Var(0), Var(2)), {}, (step,))),
                (Var(3), Var(2)), sizes={"n": 1},
            ), {}, About("step")),
    ]  # fmt: skip


def f32(*values: float) -> RawTensor:
    return RawTensor("f32", (len(values),), struct.pack(f"<{len(values)}f", *values))


def i64(*values: int) -> RawTensor:
    return RawTensor("i64", (len(values),), struct.pack(f"<{len(values)}q", *values))


SECRETS: tuple[dict[str, RawTensor], ...] = (
    {"p": f32(1, 2, 3), "q": i64(0, 1, 2), "again": f32(4, 0, 6), "n": RawTensor("i64", (), struct.pack("<q", 2))},
    {"p": f32(0, float("nan"), -7), "q": i64(0, 1, 99), "again": f32(float("inf"), 1, 1),
     "n": RawTensor("i64", (), struct.pack("<q", 40))},
)  # fmt: skip
"""What is private in the one town and in the other: of the same types."""


class Town:
    """A device with an honest requester and an enemy, driven by hand; ids, keys and times are given."""

    def __init__(self, root: Path, secrets: dict[str, RawTensor], **worker: Any) -> None:
        self.root, self.secrets, self.now, self._worker = root, secrets, START, worker or {"worker": InlineWorker}
        fs.make_dir(root / "devices" / NAME)
        fs.put(root / "devices" / NAME / "key", [b"ab" * 32 + b"\n"])
        self.config = Config(root / "queue", root / "devices", root / "me", "me", "none")
        self.names = {}
        for name, key in (("enemy", ENEMY), ("other", OTHER)):
            self.names[name] = f"{name}-{key.fingerprint}"
            who = home.Requester(self.names[name], key.public.hex())
            home.init(self.config, NAME, requester=who, new_id=lambda: ids.derive("root", 0)).close()
        self.to = Address(NAME, Key.from_seed(b"\xab" * 32).public.hex(), ids.derive("root", 0))
        self.looks = True
        """Whether its owner looks before they decide."""
        self._count, self._gate = 0, None
        self.mine = {tag: self.add(tag, secrets[tag]) for tag in ("p", "q", "n")}
        self.mine["open"] = self.add("open", f32(1, 2, 3), "open")

    @property
    def gate(self) -> Gate:
        if self._gate is None:
            self._gate = Gate(self.config, [NAME], now=self.now, **self._worker)
        return self._gate

    def at_home(self) -> Home:
        return Home(self.config.devices / NAME, self.config)

    def add(self, tag: str, raw: RawTensor, release: str = "review") -> str:
        self._count += 1
        owner = self.at_home()
        try:
            return owner.add(raw, tag=tag, release=release, replace=True, id=ids.derive("owner", tag, self._count))
        finally:
            owner.close()

    def remove(self, tag: str) -> None:
        owner = self.at_home()
        try:
            owner.remove(tag)
        except FedqError:
            pass
        finally:
            owner.close()

    def write(
        self, id_: str, actions: Sequence[Verb], tensors: dict[str, RawTensor], expires_s: float, who="enemy"
    ) -> None:
        """A message, put where this requester may put files."""
        key = ENEMY if who == "enemy" else OTHER
        made = Message(id_, self.names[who], self.to, self.now, self.now + expires_s, 7, tuple(actions))
        folder = self.config.queue / NAME / self.names[who] / "in"
        (folder / f"{id_}.safetensors").write_bytes(b"".join(encode_message(made, tensors, key)))

    def serve(self, most: int = 200) -> None:
        for _ in range(most):
            if not self.gate.step(self.now) and self.gate.idle:
                return
        raise AssertionError("the device does not come to rest")

    def restart(self) -> None:
        if self._gate is not None:
            self._gate.close()
        self._gate = None

    def questions(self) -> list[Any]:
        owner = self.at_home()
        try:
            return sorted(review.questions(owner), key=lambda row: (row.sender, row.reply))
        finally:
            owner.close()

    def say(self, row: Any, word: str) -> str:
        """The exit of the owner's command: "" or the code of an error."""
        owner = self.at_home()
        try:
            review.decide(owner, [row], word)
        except FedqError as error:
            return error.code
        finally:
            owner.close()
        return ""

    def share(self) -> dict[str, bytes]:
        """All that lies in the queue root; of heartbeats not which start of the device it was, which is drawn."""
        files = {p: p.read_bytes() for p in sorted(self.config.queue.rglob("*")) if p.is_file()}
        return {
            str(p.relative_to(self.root)): re.sub(rb'"run":"\w+",|"sig":"\w+"', b"", raw)
            if "heartbeat" in p.name
            else raw
            for p, raw in files.items()
        }


class Enemy:
    """Draws what is done, the same for every town: messages, words, and what time and owners do."""

    def __init__(self, seed: int, tags: Mapping[str, str]) -> None:
        self.rng = random.Random(seed)
        self.tags = dict(tags)
        self.owners = list(tags.values())
        self.pool = [ids.derive("enemy", n) for n in range(8)] + self.owners
        self.sent: list[str] = []
        self.recent: list[str] = []
        self.plans = plans()
        self._fresh = 0

    def fresh(self) -> str:
        self._fresh += 1
        return ids.derive("fresh", self._fresh)

    def some(self, most: int) -> list[str]:
        return self.rng.sample(self.pool, self.rng.randint(1, most))

    def message(self) -> tuple[str, list[Verb], dict[str, RawTensor], float]:
        rng = self.rng
        id_ = rng.choice(self.sent) if self.sent and rng.random() < 0.05 else self.fresh()
        self.sent.append(id_)
        tensors: dict[str, RawTensor] = {}
        actions: list[Verb] = [
            SendPlan(p.id, p.graph, (), p.about)
            for p in rng.sample(self.plans, rng.randint(0, 2) if self.sent[1:] else 5)
        ]
        drawn = self._story(tensors) if rng.random() < 0.6 else [self._verb(tensors) for _ in range(rng.randint(1, 5))]
        promised: set[str] = set()
        for verb in drawn:
            made = {*getattr(verb, "results", ()), *([verb.id] if isinstance(verb, Put) else [])}
            if isinstance(verb, Get):
                made = {f"r{verb.reply}"}
            if not promised & made:
                promised |= made
                actions.append(verb)
        named = {a.name for v in actions if isinstance(v, Run | Fold) for a in v.given if isinstance(a, Inline)}
        named |= {v.tensor for v in actions if isinstance(v, Put)}
        tensors = {k: v for k, v in tensors.items() if k in named}
        return id_, actions, tensors, rng.choice([600.0, 86_400.0, 14 * 86_400.0])

    def _new(self) -> str:
        """An id that is remembered, to be misused later."""
        self.pool.append(self.fresh())
        return self.pool[-1]

    def _story(self, tensors: dict[str, RawTensor]) -> list[Verb]:
        """What an honest requester might send: a call that fits, perhaps one on its result, and a get."""
        rng = self.rng
        double, pick, where, counts, step = self.plans
        p, q, n, public = (OwnerRef(self.tags[tag]) for tag in ("p", "q", "n", "open"))
        made, other = self._new(), self._new()
        tensors["zero"], tensors["rows"] = RawTensor("f32", (), bytes(4)), f32(1, 2, 3)
        fold = rng.choice(["stop", "error", "keep"])
        first = rng.choice([
            Run(double.id, (p,), {}, (made,)), Run(pick.id, (public, q), {}, (made,)), Run(where.id, (p,), {}, (made,)),
            Run(pick.id, (p, q), {}, (made,)), Run(counts.id, (n,), {}, (made,)),
            Run(double.id, (public,), {}, (made,)),
            Fold(step.id, (Inline("zero"),), (p,), Batches(1, 1, False), (made, other), (), "steps", fold),
        ])  # fmt: skip
        verbs: list[Verb] = [first]
        asked = made
        if rng.random() < 0.4 and isinstance(first, Run):
            asked = other
            verbs.append(Run(double.id, (Ref(made),), {}, (other,)))
        if rng.random() < 0.85:
            verbs.append(Get(self._new(), (asked,)))
        if self.recent and rng.random() < 0.4:
            verbs.append(Get(self._new(), (rng.choice(self.recent),)))
        self.recent = [*self.recent, made, asked][-8:]
        if rng.random() < 0.2:
            verbs.append(Drop((made,), ()))
        if rng.random() < 0.1:
            verbs.append(Get(self._new(), (p.id,), frozenset([p.id])))
        return verbs

    def _verb(self, tensors: dict[str, RawTensor]) -> Verb:
        rng = self.rng
        match rng.randint(0, 11):
            case 0:
                tensors[name := f"t{len(tensors)}"] = f32(1, 0, rng.randint(0, 1))
                return Put(rng.choice(self.pool), name, rng.choice([None, "mine"]))
            case 1:
                return Drop(tuple(self.some(3)), tuple(rng.sample(self.sent, min(1, len(self.sent)))))
            case 2:
                return Cancel(tuple(rng.sample(self.sent, 1)))
            case 3:
                return Ack(tuple(self.some(2)))
            case 4 | 5 | 6 | 7:
                return self._get()
        return self._call(tensors)

    def _get(self) -> Get:
        values = self.some(2)
        owners = frozenset(v for v in values if v in self.owners and self.rng.random() < 0.6)
        return Get(self.rng.choice(self.pool), tuple(values), owners)

    def _call(self, tensors: dict[str, RawTensor]) -> Verb:
        rng, plan = self.rng, self.rng.choice(self.plans)
        args = [self._arg(tensors) for _ in plan.graph.inputs]
        if rng.random() < 0.1:
            args = args[1:]
        count = len(plan.graph.output_vars)
        results = tuple(rng.sample(self.pool, count if rng.random() < 0.95 else count + 1))
        if plan.about.name == "step" and rng.random() < 0.8 and len(args) == 2:
            how = rng.choice(["stop", "error", "keep"])
            return Fold(plan.id, (args[0],), (args[1],), Batches(1, 1, False), results, (), "steps", how)
        return Run(plan.id, tuple(args), {}, results)

    def _arg(self, tensors: dict[str, RawTensor]) -> Any:
        rng = self.rng
        kind = rng.random()
        if kind < 0.4:
            return OwnerRef(rng.choice(self.owners))
        if kind < 0.85:
            return Ref(rng.choice(self.pool))
        if kind < 0.95:
            tensors[name := f"t{len(tensors)}"] = rng.choice([f32(1, 2, 3), i64(0, 1, 2)])
            return Inline(name)
        return 1.5
