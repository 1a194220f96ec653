"""What requester and gate do in a child process, by chance, until they end or are killed."""

from __future__ import annotations

import contextlib
import logging
import random
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedq import ids
from fedq.client import fetch
from fedq.client.device import Device
from fedq.client.pointers import PointerTensor
from fedq.client.session import Client
from fedq.config import Config
from fedq.device import review
from fedq.device.gate import Gate
from fedq.device.home import Home
from fedq.device.pool import Answer, Died, Held, Worker
from fedq.errors import FedqError
from fedq.plan.codec import RawTensor
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Action, Graph, Type, Var
from fedq.queue.message import Cancel, Drop, Get, Inline, OwnerRef, Put, Ref, Run, RunArg, SendPlan, Verb
from tests.crash.model import DICE, Model, digest

NAME = "device_1"
VECTOR = Type("f32", ("n",))
GOOD = PlanFile(
    Graph(
        (VECTOR,),
        (Action("aten.add.Tensor", (Var(0), Var(0)), {}, (VECTOR,)), Action("aten.abs", (Var(1),), {}, (VECTOR,))),
        Var(2),
        sizes={"n": 0},
    ),
    {},
    About("double_abs"),
)
BAD = PlanFile(
    Graph((VECTOR,), (Action("aten.from_file", ("/etc/passwd",), {}, (VECTOR,)),), Var(1), sizes={"n": 2}),
    {},
    About("mean"),
)
RUNS = {"failed", "worker_died", "missing_value", "spec_mismatch"}
"""What may come of a call whose worker may be killed, and whose argument may be dropped."""

Tell = Callable[[str], None]


def content(id_: str, size: int) -> RawTensor:
    """The tensor that is put under this id, always."""
    data = (bytes.fromhex(id_) * (4 * size // 16 + 1))[: 4 * size]
    return RawTensor("f32", (size,), data)


class Complain(logging.Handler):
    """A step that raised is a violation, however well the gate lived through it."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(logging.ERROR)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell("X " + self.format(record)[-1500:].replace("\n", " | "))


def complain(tell: Tell) -> None:
    log = logging.getLogger("fedq")
    log.handlers[:] = [Complain(tell)]
    log.setLevel(logging.ERROR)
    log.propagate = False


# -- the requester ---------------------------------------------------------------------------


@dataclass
class Requester:
    """One process of a requester: starts, does a few things, ends."""

    config: Config
    rng: random.Random
    now: float
    tell: Tell
    model: Model
    sizes: Sequence[int] = (2, 2, 2, 2, 40, 1000, 30_000, 60_000)

    def live(self) -> None:
        with contextlib.suppress(FedqError):
            client = Client(self.config, now=self.tick, new_id=self.new_id)
            device = client.device(NAME)
            for _ in range(self.rng.randint(1, 4)):
                self.one(device)
            if self.rng.random() < 0.3:
                client.close()

    def tick(self) -> float:
        self.now += 0.001
        return self.now

    def new_id(self) -> str:
        return f"{self.rng.getrandbits(128):032x}"

    def one(self, device: Device) -> None:
        kind, self._why = self.rng.choice(KINDS), ""
        if kind == "fetch":
            self.fetch(device)
        else:
            self.send(device, *getattr(self, kind)())

    def send(
        self, device: Device, actions: list[Verb], tensors: dict[str, RawTensor], token: str | None = None,
        expires_s: float = 14 * 86400.0,
    ) -> None:  # fmt: skip
        draft = device._new_draft(token)
        draft.actions, draft.tensors = actions, tensors
        gets = [f"{a.reply}={','.join(a.values)}" for a in actions if isinstance(a, Get)]
        self.tell(" ".join(["I", draft.id, *gets]))
        for verb in actions:
            match verb:
                case Put():
                    self.tell(f"V {verb.id} {draft.id} {digest(tensors[verb.tensor])}  ")
                case Run():
                    failures = {"unknown_plan": "unknown_plan", "bad": "not_allowed"}.get(self._why, "")
                    allowed = {failures} if failures else RUNS | {"unknown_plan"} if self._why == "missing" else RUNS
                    if expires_s < 0:
                        allowed = allowed | {"expired", "unknown_plan"}
                    refs = ",".join(a.id for a in verb.args if isinstance(a, Ref))
                    mark = " private" if any(isinstance(a, OwnerRef) for a in verb.args) else ""
                    for result in verb.results:
                        self.tell(f"V {result} {draft.id} {DICE} {','.join(allowed)} {refs}{mark}")
                case Get() if verb.owners:
                    for value in verb.owners:
                        self.tell(
                            f"V {value} {draft.id} {digest(content(value, 40))} missing_value  private"
                        )  # or spelt so
                case Drop():
                    for value in verb.values:
                        self.tell(f"D {value}")
                case Cancel():
                    for message in verb.messages:
                        self.tell(f"C {message}")
        from fedq.client import sending

        sending.send(device, draft, expires_s)
        self.tell(f"S {draft.id}")

    _why = ""

    # -- kinds of messages

    def _put(self, id_: str, size: int, number: int = 0) -> tuple[Verb, dict[str, RawTensor]]:
        tag = f"tag{self.rng.randrange(5)}" if self.rng.random() < 0.1 else None
        return Put(id_, f"t{number}", tag), {f"t{number}": content(id_, size)}

    def put(self) -> Any:
        id_ = self.new_id()
        verb, tensors = self._put(id_, self.rng.choice(self.sizes))
        return [verb, Get(id_, (id_,))], tensors

    def several(self) -> Any:
        values = [self.new_id() for _ in range(3)]
        made = [self._put(v, 2, n) for n, v in enumerate(values)]
        tensors = {k: t for _, some in made for k, t in some.items()}
        return [*(v for v, _ in made), Get(self.new_id(), tuple(values))], tensors

    def token(self) -> Any:
        """The same again, perhaps in another process: one of few tokens, each with one content."""
        token = f"token{self.rng.randrange(8)}"
        id_ = ids.derive("crash", token)
        return [Put(id_, "t0"), Get(id_, (id_,))], {"t0": content(id_, 2)}, token

    def _arg(self) -> RunArg:
        known = [v for v, e in self.model.values.items() if e.content != DICE or self.rng.random() < 0.3]
        return Ref(self.rng.choice(known)) if known and self.rng.random() < 0.8 else 3

    def run(self) -> Any:
        first, second = self.new_id(), self.new_id()
        plan = SendPlan(GOOD.id, GOOD.graph, (), GOOD.about)
        calls = [Run(GOOD.id, (self._arg(),), {}, (first,)), Run(GOOD.id, (Ref(first),), {}, (second,))]
        return [plan, *calls, Get(first, (first,)), Get(second, (second,))], {}

    def copy(self) -> Any:
        known = list(self.model.values)
        if not known:
            return self.put()
        return [Get(self.new_id(), (self.rng.choice(known),))], {}

    def ask(self) -> Any:
        """A call on an owner's value, one on its result, and a question for one of them or both."""
        owners = sorted(self.model.owners.values())
        if not owners:
            return self.put()
        first, second, third = self.new_id(), self.new_id(), self.new_id()
        plan = SendPlan(GOOD.id, GOOD.graph, (), GOOD.about)
        of = OwnerRef(self.rng.choice(owners))
        calls = [Run(GOOD.id, (of,), {}, (first,)), Run(GOOD.id, (Ref(first),), {}, (second,))]
        asked = self.rng.choice([(first,), (second,), (first, second), ()])
        return [plan, *calls, *([Get(third, asked)] if asked else [])], {}

    def raw(self) -> Any:
        """A question for an owner's value itself."""
        owners = sorted(self.model.owners.values())
        if not owners:
            return self.put()
        value = self.rng.choice(owners)
        return [Get(self.new_id(), (value,), frozenset([value]))], {}

    def derived(self) -> Any:
        """A call on what a private one gives, and a question for it."""
        known = [value for value in self.model.values if self.model.is_private(value)]
        known = [value for value in known if value not in self.model.owners.values()]
        if not known:
            return self.ask()
        plan, made = SendPlan(GOOD.id, GOOD.graph, (), GOOD.about), self.new_id()
        of = self.rng.choice(known)
        return [plan, Run(GOOD.id, (Ref(of),), {}, (made,)), Get(self.new_id(), (made, of))], {}

    def inline(self) -> Any:
        """A call with a tensor beside it, which may be large."""
        result, size = self.new_id(), self.rng.choice(self.sizes[4:])
        plan = SendPlan(GOOD.id, GOOD.graph, (), GOOD.about)
        call = Run(GOOD.id, (Inline("t0"),), {}, (result,))
        return [plan, call, Get(result, (result,))], {"t0": content(result, size)}

    def unknown_plan(self) -> Any:
        self._why, result = "unknown_plan", self.new_id()
        return [Run(self.new_id() * 2, (3,), {}, (result,)), Get(result, (result,))], {}

    def bad(self) -> Any:
        self._why, result = "bad", self.new_id()
        plan = SendPlan(BAD.id, BAD.graph, (), BAD.about)
        return [plan, Run(BAD.id, (3,), {}, (result,)), Get(result, (result,))], {}

    def missing(self) -> Any:
        self._why, result = "missing", self.new_id()
        return [Run(GOOD.id, (Ref(self.new_id()),), {}, (result,)), Get(result, (result,))], {}

    def expired(self) -> Any:
        result = self.new_id()
        return [Run(GOOD.id, (3,), {}, (result,)), Get(result, (result,))], {}, None, -5.0

    def drop(self) -> Any:
        known = [v for v in self.model.values if v not in self.model.maybe_dropped]
        return ([Drop(tuple(self.rng.sample(known, min(2, len(known)))))], {}) if known else self.put()

    def cancel(self) -> Any:
        known = sorted(self.model.intended)
        return [Cancel(tuple(self.rng.sample(known, min(2, len(known)))))], {}

    # -- fetching

    def fetch(self, device: Device) -> None:
        """What came of some values; taken away in half of the cases."""
        there = device.client.outbox.replies(device.number, list(self.model.values), self.now)
        some = self.rng.sample(sorted(there), min(3, len(there)))
        take = self.rng.random() < 0.6
        for value in some:
            if take:
                self.tell(f"D {value}")
            try:
                (came,) = fetch.outcomes([PointerTensor(device, value, None)], 0, take=take, on_wait=lambda _: None)
            except FedqError:
                continue
            if isinstance(came, FedqError) and came.code == "conflict":
                self.tell(f"G {there[value]}")
            elif not (isinstance(came, FedqError) and came.code in ("timed_out", "waiting_for_approval")):
                self.tell(f"F {there[value]} {value} {digest(came)}")


KINDS = (
    *["fetch"] * 6, *["put"] * 5, "several", "token", *["run"] * 3, "inline", "inline", "copy", "unknown_plan",
    "bad", "missing", "expired", "drop", "cancel", *["ask"] * 6,
    "raw", "raw", "derived", "derived",
)  # fmt: skip


# -- the owner -----------------------------------------------------------------------------------


TAGS = ("p", "q")


@dataclass
class Owner:
    """One command of an owner's, or a few: says words, replaces and removes values."""

    config: Config
    rng: random.Random
    tell: Tell
    words: Sequence[str] = ("look", "look", "approve", "approve", "deny")

    def live(self) -> None:
        with contextlib.closing(Home(self.config.devices / NAME, self.config)) as home:
            self._tell_of(home)
            for _ in range(self.rng.randint(1, 3)):
                chance = self.rng.random()
                with contextlib.suppress(FedqError):
                    self._values(home) if chance < 0.12 else self.word(home)
            self._tell_of(home)

    def _tell_of(self, home: Home) -> None:
        there = {value.tag: value.id for value in home.values()}
        for tag in TAGS:
            self.tell(f"O {tag} {there[tag]}" if tag in there else f"- {tag}")

    def _values(self, home: Home) -> None:
        tag = self.rng.choice(TAGS)
        if self.rng.random() < 0.3:
            self.tell(f"- {tag}")
            home.remove(tag)
        else:
            id_ = f"{self.rng.getrandbits(128):032x}"
            home.add(content(id_, 40), tag=tag, id=id_, release="review", replace=True)

    def word(self, home: Home, most: int = 3) -> None:
        """A word to some of what waits, all at once."""
        rows = review.questions(home)
        some = self.rng.sample(rows, min(len(rows), self.rng.randint(1, 3) if most == 3 else most))
        word = self.rng.choice(self.words)
        some = [row for row in some if row.word != word]
        for row in some:
            self.tell(f"W {row.reply} {word}")
        review.decide(home, some, word)
        for row in some:
            self.tell(f"w {row.reply} {word}")


# -- the gate --------------------------------------------------------------------------------


class Dice:
    """A worker that gives something else each time it is asked, and sometimes dies or answers nonsense.

    Untrusted, as any worker is: what the gate made of its first answer must stand for ever.
    """

    pid, busy, spoke, idle_s = 0, False, False, 0.0

    tell: Tell | None = None
    """Hears which results are asked for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.held = Held()
        self._answer: Answer | Died | None = None
        self._rng = random.SystemRandom()

    def fileno(self) -> int:
        return -1

    def start(self, head: Any, tensors: Sequence[RawTensor]) -> None:
        calls, r = head["calls"], self._rng
        if self.tell is not None:
            self.tell(" ".join(["B", *(key.partition("/")[0] for call in calls for key in call[2])]))
        if r.random() < 0.05:
            self._answer = Died(r.randrange(len(calls)), "killed by the dice")
            return
        out: list[RawTensor] = []
        rows: list[Any] = []
        for _, _, keys, *_ in calls:
            if r.random() < 0.05:
                rows.append(["e", "failed", "aten.abs failed", {}])
                continue
            made: list[Any] = []
            for _ in keys:
                if r.random() < 0.3:
                    made.append({"n": r.random()})
                else:
                    size = r.choice((1, 1, 1, 2000))
                    out.append(RawTensor("f32", (size,), struct.pack("<f", r.random()) * size))
                    made.append(len(out) - 1)
            rows.append(["ok", made])
        self._answer = Answer(rows, out)

    def poll(self) -> Answer | Died | None:
        answer, self._answer = self._answer, None
        return answer

    def close(self) -> None:
        self._answer = None


def serve(
    config: Config, now: float, *, worker: Callable[..., Worker] = Dice, most: int = 60, close: bool = False
) -> None:
    """One life of a gate: recover, work until nothing waits, end."""
    gate = Gate(config, [NAME], worker=worker, now=now)
    until = time.monotonic() + 20
    for _ in range(most if worker is Dice else 1 << 30):
        now += 0.3 if worker is Dice else 0.001
        if not gate.step(now):
            if gate.idle or time.monotonic() > until:
                break
            if worker is not Dice:
                time.sleep(0.001)
    if close:
        gate.close()
