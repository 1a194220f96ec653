"""A town whose enemy writes single messages, by hand, and whose workers tell what they were given."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedq import ids
from fedq.device.pool import Answer, Died, InlineWorker
from fedq.plan.codec import RawTensor, decode
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Action, Graph, Type, Var
from fedq.queue.message import Failure, Get, Number, OwnerRef, Ref, Run, RunArg, SendPlan, Verb, decode_reply
from tests.attacks.enemy import NAME, SECRETS, Town, plans

DAY_S = 86_400.0
DOUBLE, PICK, WHERE, COUNTS, STEP = plans()
ROWS, ONE = Type("f32", ("n",)), Type("f32", ())


def plan(name: str, inputs: tuple[Type, ...], *actions: Action, outputs: Any = None) -> PlanFile:
    last = Var(len(inputs) + len(actions) - 1)
    return PlanFile(Graph(inputs, actions, outputs or last, sizes={"n": 0}), {}, About(name))


IDENT = plan("ident", (ROWS,), Action("aten.clone", (Var(0),), {}, (ROWS,)))
TWICE = plan("twice", (ROWS,), *[Action("aten.clone", (Var(0),), {}, (ROWS,))] * 2, outputs=[Var(1), Var(2)])
MEAN = plan("mean", (ROWS,), Action("aten.mean", (Var(0),), {}, (ONE,)))
ITEM = plan("item", (ONE,), Action("aten._local_scalar_dense", (Var(0),), {}, (Type("float"),)))
PLANS = [DOUBLE, PICK, WHERE, COUNTS, STEP, IDENT, TWICE, MEAN, ITEM]


def id_(name: str) -> str:
    """The id that is called so in a play."""
    return ids.derive("play", name)


def run(plan: PlanFile, *args: RunArg | str, to: str | tuple[str, ...]) -> Run:
    """A call; a name among the arguments is a value of the enemy's own."""
    names = (to,) if isinstance(to, str) else to
    given = tuple(Ref(id_(a)) if isinstance(a, str) else a for a in args)
    return Run(plan.id, given, {}, tuple(map(id_, names)))


def get(reply: str, *values: str | OwnerRef) -> Get:
    """A question; of the enemy's own values by name, of the owner's by `OwnerRef`."""
    all_ = tuple(v.id if isinstance(v, OwnerRef) else id_(v) for v in values)
    return Get(id_(reply), all_, frozenset(v.id for v in values if isinstance(v, OwnerRef)))


class Watched(InlineWorker):
    """Does its work, and writes down what it was given: keys of values, and results by call."""

    def __init__(self, log: list[Watched]) -> None:
        super().__init__()
        self.given: list[str] = []
        self.ran: list[str] = []
        log.append(self)

    def start(self, head: Any, tensors: Any) -> None:
        self.given += [key.partition("/")[0] for key, _ in head["give"]]
        self.ran += [key.partition("/")[0] for call in head["calls"] for key in call[2]]
        super().start(head, tensors)


class Deadly(Watched):
    """Ends in the middle of every batch in which something stands that it was told to die of."""

    dies_of: frozenset[str] = frozenset()
    silent = False

    def poll(self) -> Answer | Died | None:
        if self._answer is not None and self.dies_of.intersection(self.ran):
            self._answer = None
            return None if self.silent else Died(0, "worker 7 was killed by SIGSEGV", "killed", "SIGSEGV")
        return super().poll()


class Stage(Town):
    """A device with an owner, an honest requester and an enemy; each message is served at once."""

    def __init__(self, root: Path, secrets: dict[str, RawTensor] = SECRETS[0], **more: Any) -> None:
        self.workers: list[Watched] = []
        self.dies_of: frozenset[str] = frozenset()
        self.silent = False
        super().__init__(root, secrets, worker=self._worker, **more)
        self.sent = 0
        self.p, self.q, self.n, self.open = (OwnerRef(self.mine[tag]) for tag in ("p", "q", "n", "open"))

    def _worker(self) -> Watched:
        made = Deadly(self.workers)
        made.dies_of, made.silent = self.dies_of, self.silent
        return made

    @property
    def ran(self) -> set[str]:
        """Results of all calls that a worker was given."""
        return {result for worker in self.workers for result in worker.ran}

    def slip(
        self, *actions: Verb, who: str = "enemy", expires_s: float = 14 * DAY_S, message: str = "", **tensors: RawTensor
    ) -> str:
        """A message, put and not served; its id."""
        self.sent += 1
        message = message or id_(f"message {self.sent}")
        plans = {p.id: p for p in PLANS}
        needed = dict.fromkeys(a.plan for a in actions if hasattr(a, "plan") and a.plan in plans)
        sends = [SendPlan(i, plans[i].graph, (), plans[i].about) for i in needed]
        self.write(message, [*sends, *actions], tensors, expires_s, who)
        return message

    def send(self, *actions: Verb, **how: Any) -> str:
        message = self.slip(*actions, **how)
        self.go()
        return message

    def go(self, seconds: float = 2.0) -> None:
        self.now += seconds
        self.serve()

    def wait(self, seconds: float) -> None:
        """So much time, in steps that a device believes."""
        while seconds > 0:
            self.go(min(seconds, 0.9 * DAY_S))
            seconds -= 0.9 * DAY_S

    def fall(self) -> None:
        """The daemon is killed, and another one starts: nothing is told to the journal."""
        if self._gate is not None:
            for served in self._gate.served.values():
                served.journal.close()
        self._gate = None
        self.go()

    def came(self, reply: str, *, who: str = "enemy") -> dict[str, Any] | None:
        """What a reply says, by the name of its values: lists, numbers, codes of failures; None if there is none."""
        path = self.config.queue / NAME / self.names[who] / "out" / f"{id_(reply)}.safetensors"
        if not path.exists():
            return None
        file = decode(path.read_bytes())
        values = decode_reply(file).values
        return {i: _plain(file.tensors[v] if isinstance(v, str) else v) for i, v in values.items()}

    def only(self, reply: str, *, who: str = "enemy") -> Any:
        """The one value of a reply; None if there is no reply."""
        came = self.came(reply, who=who)
        return came and next(iter(came.values()))

    def failure(self, reply: str) -> Failure:
        path = self.config.queue / NAME / self.names["enemy"] / "out" / f"{id_(reply)}.safetensors"
        (found,) = decode_reply(decode(path.read_bytes())).values.values()
        assert isinstance(found, Failure)
        return found

    def heard(self, who: str = "enemy") -> dict[str, Any]:
        """The heartbeat as a requester reads it."""
        raw = (self.config.queue / NAME / self.names[who] / "heartbeat.json").read_bytes()
        return json.loads(raw.split(b"\n")[0])

    def card(self, reply: str) -> Any:
        """A question as its owner sees it; None if it does not wait."""
        return next((row for row in self.questions() if row.reply == id_(reply)), None)

    def word(self, reply: str, word: str) -> str:
        """The owner says it to the question as it is now; "" or the code of what the command ends with."""
        card = self.card(reply)
        assert card is not None, f"{reply} does not wait for the owner"
        said = self.say(card, word)
        self.go()
        return said

    def ask(self, reply: str, of: OwnerRef | str, *, plan: PlanFile = DOUBLE, **how: Any) -> str:
        """A call on this, its result asked for under the same name."""
        return self.send(run(plan, of, to=reply), get(reply, reply), **how)

    def close(self) -> None:
        self.restart()


def _plain(value: Any) -> Any:
    match value:
        case RawTensor():
            kind = {"f32": "f", "i64": "q"}[value.dtype]
            size = value.size_bytes // struct.calcsize(kind)
            return list(struct.unpack(f"<{size}{kind}", bytes(value.data)))
        case Number():
            return value.value
    return value.code


def twin(root: Path, play: Callable[[Stage], None], **more: Any) -> Stage:
    """Play it in two towns with other private bytes, in one of which the owner looks at all; nothing may differ."""
    towns = [Stage(root / "one", SECRETS[0], **more), Stage(root / "other", SECRETS[1], **more)]
    towns[1].looks, towns[0].looks = True, False
    try:
        for town in towns:
            play(town)
        one, other = (town.share() for town in towns)
        odd = {path: (one.get(path), other.get(path)) for path in sorted(one.keys() | other.keys())}
        odd = {path: pair for path, pair in odd.items() if pair[0] != pair[1]}
        assert not odd, odd
    finally:
        for town in towns:
            town.close()
    return towns[1]


def look(town: Stage, *replies: str) -> None:
    """In the one town the owner looks, in the other they do not; the clocks go alike."""
    for reply in replies:
        if town.looks and town.card(reply) is not None:
            assert town.word(reply, "look") == ""
        else:
            town.go()
