"""Power cuts, by the model of `states`: the protocol is recorded, every state it can leave is recovered from."""

from __future__ import annotations

import argparse
import contextlib
import copy
import logging
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedq import fs
from fedq.client import fetch
from fedq.client.device import Device
from fedq.client.pointers import PointerTensor
from fedq.client.session import Client
from fedq.config import Config
from fedq.device import review
from fedq.device.gate import Gate
from fedq.device.home import Home
from fedq.errors import FedqError
from fedq.local import introduce
from fedq.plan.codec import decode
from fedq.queue.message import Drop, Failure, Get, OwnerRef, Put, Ref, Run, SendPlan, decode_message, decode_reply
from fedq.queue.pair import Card, Catalog, Heartbeat
from fedq.trust.keys import signer_of, unseal
from tests.crash.lane import START, check_promised, config_of, small_limits
from tests.crash.model import Violation, digest
from tests.crash.roles import GOOD, NAME, Dice, content
from tests.crash.states import Recorder, State, fs_off, states


@dataclass
class Facts:
    """What was promised until the cut."""

    returned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Message whose send returned -> its replies."""
    given: dict[str, str] = field(default_factory=dict)
    """Value -> digest of what the requester has of it."""
    content: dict[str, str] = field(default_factory=dict)
    """Value that is put -> its digest."""
    fetched: set[str] = field(default_factory=set)
    dropped: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    """Values that only an owner's word releases; the reply of each has its id."""
    meant: dict[str, str] = field(default_factory=dict)
    """Reply -> the word that its owner is about to say, or said."""
    said: dict[str, str] = field(default_factory=dict)
    """Reply -> the word whose command returned."""

    def copy(self) -> Facts:
        return copy.deepcopy(self)


OWN = "b" * 31 + "9"
"""What gives the owner's value its content."""


class Steady(Dice):
    """A worker as the dice, that never dies or fails."""

    def start(self, head: Any, tensors: Any) -> None:
        super().start(head, tensors)
        while not hasattr(self._answer, "rows") or any(row[0] != "ok" for row in self._answer.rows):  # type: ignore[union-attr]
            super().start(head, tensors)


class Day:
    """A requester's and a gate's day, in one process: each step of it may be the last."""

    def __init__(self, root: Path, *, seed: int = 1) -> None:
        self.root, self.facts, self.now = root, Facts(), START
        self.rng = random.Random(seed)
        self.config = config_of(root)
        introduce(self.config, NAME)
        Client(self.config, now=self.clock).close()
        self.owners = self.own()

    def own(self) -> str:
        """An owner's value that is not open, in the place of the last one."""
        with contextlib.closing(Home(self.config.devices / NAME, self.config)) as home:
            return home.add(content(OWN, 40), tag="p", release="review", replace=True, id=self.new_id())

    def ask(self, device: Device) -> str:
        """A call on the owner's value, and a question for what it gives."""
        id_ = self.new_id()
        self.facts.private.add(id_)
        plan = SendPlan(GOOD.id, GOOD.graph, (), GOOD.about)
        self.send(device, [plan, Run(GOOD.id, (OwnerRef(self.owners),), {}, (id_,)), Get(id_, (id_,))], {})
        return id_

    def say(self, reply: str, word: str) -> None:
        self.facts.meant[reply] = word
        with contextlib.closing(Home(self.config.devices / NAME, self.config)) as home:
            review.decide(home, [review.find(home, reply)], word)
        self.facts.said[reply] = word

    def clock(self) -> float:
        self.now += 0.01
        return self.now

    def new_id(self) -> str:
        return f"{self.rng.getrandbits(128):032x}"

    def live(self) -> None:
        client = Client(self.config, now=self.clock, new_id=self.new_id)
        device = client.device(NAME)
        small, large = self.put(device, 2), self.put(device, 60_000)
        gate = Gate(self.config, [NAME], worker=Steady, now=self.now)
        self.serve(gate)
        self.fetch(device, small, take=True)
        result, kept, denied = self.run(device, large), self.ask(device), self.ask(device)
        self.serve(gate)
        self.say(kept, "look")
        self.serve(gate)
        self.owners = self.own()  # what was looked at keeps the version that it read
        self.say(kept, "approve")
        self.serve(gate)
        self.fetch(device, kept, take=True)
        with contextlib.suppress(FedqError):  # the value that it reads was replaced
            self.say(denied, "deny")
        self.fetch(device, result, take=False)
        self.fetch(device, large, take=True)
        client.outbox.settle()  # as whoever waits does; else all of this would be put again, and fsynced with it
        self.put_interrupted(device, 30_000)
        gate.close()
        client = Client(self.config, now=self.clock, new_id=self.new_id)
        device = client.device(NAME)
        middle = self.put(device, 30_000, token="nightly")
        client.outbox.settle()  # as whoever waits does: with the next commit it lasts that it was put
        self.send(device, [Drop((result,))], {})
        gate = Gate(self.config, [NAME], worker=Steady, now=self.now)
        self.serve(gate)
        self.fetch(device, middle, take=False)
        gate.close()
        client.close()

    def serve(self, gate: Gate) -> None:
        for _ in range(12):
            self.now += 1.1
            if not gate.step(self.now) and gate.idle:
                break

    def put(self, device: Device, size: int, token: str | None = None) -> str:
        id_ = "a" * 31 + "7" if token else self.new_id()
        raw = content(id_, size)
        self.facts.content[id_] = digest(raw)
        self.send(device, [Put(id_, "t0"), Get(id_, (id_,))], {"t0": raw}, token)
        return id_

    def put_interrupted(self, device: Device, size: int) -> None:
        """The name is there, then the process ends: who finds it there can not know that it is durable."""

        def end(name: str, call: Any, *args: Any, **kwargs: Any) -> Any:
            if name == "put.sync_folder":
                raise KeyboardInterrupt
            return recorder(name, call, *args, **kwargs)

        recorder, fs.FAILPOINTS["*"] = fs.FAILPOINTS["*"], end
        with contextlib.suppress(KeyboardInterrupt):
            self.put(device, size, token="nightly")
        fs.FAILPOINTS["*"] = recorder

    def run(self, device: Device, arg: str) -> str:
        id_ = self.new_id()
        plan = SendPlan(GOOD.id, GOOD.graph, (), GOOD.about)
        self.send(device, [plan, Run(GOOD.id, (Ref(arg),), {}, (id_,)), Get(id_, (id_,))], {})
        return id_

    def send(self, device: Device, actions: list[Any], tensors: dict[str, Any], token: str | None = None) -> None:
        self.facts.dropped |= {v for a in actions if isinstance(a, Drop) for v in a.values}
        message = device.submit(actions, tensors, token=token)
        self.facts.returned[message.id] = tuple(a.reply for a in actions if isinstance(a, Get))

    def fetch(self, device: Device, value: str, *, take: bool) -> None:
        if take:
            self.facts.dropped.add(value)
        (came,) = fetch.outcomes([PointerTensor(device, value, None)], 0, take=take, on_wait=lambda _: None)
        if isinstance(came, FedqError):
            raise Violation(f"{value} did not come: {came}")
        self.facts.given[value] = digest(came)
        self.facts.fetched.add(value)


# -- recovery --------------------------------------------------------------------------------


def check(state: State, facts: Facts, root: Path) -> None:
    """After a cut: nothing visible is torn; recovery brings all that was promised, and nothing else than before."""
    state.write(root)
    config = config_of(root, "none")
    _look(root, facts, torn=True)
    with complaints() as said:
        for later in (10.0, 4000.0, 8000.0):
            client = Client(config, now=lambda later=later: START + 100 + later)  # type: ignore[misc]
            gate = Gate(config, [NAME], worker=Steady, now=START + 100 + later)
            for n in range(12):
                gate.step(START + 100 + later + 1.1 * n)
            gate.close()
            _decide_rest(config, facts)
            client.close()
    if said:
        raise Violation(f"recovery complained: {said[0]}")
    check_promised(config)
    answered = _look(root, facts)
    lost = [m for m, replies in facts.returned.items() if not answered.issuperset(set(replies) - facts.fetched)]
    lost += [m for m, reply in _promised(config) if reply not in answered | facts.fetched]
    if lost:
        raise Violation(f"LOST: {lost}")


def _decide_rest(config: Config, facts: Facts) -> None:
    """What waits for its owner is denied; nothing waits that had a releasing word already."""
    with contextlib.closing(Home(config.devices / NAME, config)) as home:
        rows = review.questions(home)
        if lost := [row.reply for row in rows if facts.said.get(row.reply) in ("approve", "deny")]:
            raise Violation(f"LOST a word: {lost}")
        review.decide(home, rows, "deny")


def _promised(config: Config) -> list[tuple[str, str]]:
    """Message and reply of all that the outbox promises still."""
    with contextlib.closing(sqlite3.connect(config.home / "outbox.sqlite")) as db:
        return list(db.execute("SELECT message, reply FROM replies"))


def _look(root: Path, facts: Facts, *, torn: bool = False) -> set[str]:
    home = Home(root / "devices" / NAME, config_of(root, "none"))
    who = home.trusted()[0]
    pair = home.pair(who.name)
    home.close()
    replies = set()
    for what in (Card, Catalog, Heartbeat):
        try:
            unseal(what, pair.read_bytes(what.KIND), home.key.public, NAME, home.to(who))
        except FileNotFoundError:
            pass
        except FedqError as error:
            raise Violation(f"TORN: {what.KIND}.json: {error}") from error
    for folder, kind in (("in", "message"), ("out", "reply")):
        for name in pair.carrier.list(folder):
            try:
                raw = bytes(pair.carrier.get(f"{folder}/{name}"))
                signer_of(kind, raw)
                file = decode(raw)
                found: Any = decode_message(file) if kind == "message" else decode_reply(file)
            except FedqError as error:
                raise Violation(f"TORN: {folder}/{name}: {error}") from error
            if kind == "reply":
                replies.add(found.id)
                for value, what in found.values.items():
                    if value in facts.private and not isinstance(what, Failure) and facts.meant.get(value) != "approve":
                        raise Violation(f"LEFT without a word: {value}")
                    if value in facts.private and value not in facts.given and isinstance(what, Failure):
                        continue
                    _compare(value, digest(file.tensors[what] if isinstance(what, str) else what), facts)
    return replies


def _compare(value: str, came: str, facts: Facts) -> None:
    if came == "!missing_value" and value in facts.dropped:
        return
    if came != facts.content.get(value, came):
        raise Violation(f"value {value}: {came} came, {facts.content[value]} was put")
    if came != facts.given.get(value, came):
        raise Violation(f"CHANGED: value {value} was {facts.given[value]}, now {came}")


@contextlib.contextmanager
def complaints() -> Iterator[list[str]]:
    """What was logged as an error meanwhile."""
    said: list[str] = []
    log = logging.getLogger("fedq")

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(self.format(record))

    listen = Listen(logging.ERROR)
    log.addHandler(listen)
    try:
        yield said
    finally:
        log.removeHandler(listen)


def run(where: Path, *, most: int = 64, limit: int | None = None, seed: int = 1) -> tuple[int, int, Counter[str]]:
    """Record a day, recover from its states.

    Args:
        most: combinations looked at per cut. limit: states recovered from, at random; None: all.

    Returns:
        cuts, states, and how many states after each step.
    """
    small_limits()
    logging.getLogger("fedq").setLevel(logging.ERROR)
    rng = random.Random(seed)
    root, copies = where / "recorded", where / "copies"
    copies.mkdir(parents=True)
    root.mkdir()
    found: dict[tuple[str, str], tuple[State, Facts, str]] = {}
    day = Day(root, seed=seed)

    def cut(disk: Any, name: str) -> None:
        with fs_off():
            facts = day.facts.copy()
            for state in states(disk, most=most, rng=rng):
                found.setdefault((state.key, repr(facts)), (state, facts, name))

    recorder = Recorder(root, copies, cut)
    fs.FAILPOINTS["*"] = recorder
    try:
        day.live()
    finally:
        fs.FAILPOINTS.pop("*", None)
    chosen = list(found.values())
    if limit is not None and limit < len(chosen):
        chosen = rng.sample(chosen, limit)
    after: Counter[str] = Counter()
    for n, (state, facts, name) in enumerate(chosen):
        target = where / f"state{n}"
        target.mkdir()
        try:
            check(state, facts, target)
        except Violation as error:
            raise Violation(f"cut after {name}, state {n} in {target}, seed {seed}: {error}") from error
        after[name] += 1
        shutil.rmtree(target)
    return len(recorder.trace), len(chosen), after


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.powerloss", description=__doc__)
    parser.add_argument("--most", type=int, default=64)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--where", type=Path, default=Path("/dev/shm") if Path("/dev/shm").is_dir() else None)
    args = parser.parse_args()
    base = args.where
    where = Path(tempfile.mkdtemp(prefix="fedq-states-", dir=base))
    began = time.monotonic()
    try:
        cuts, count, after = run(where, most=args.most, limit=args.limit, seed=args.seed)
    except Violation as error:
        print(f"VIOLATION: {error}")
        return 1
    shutil.rmtree(where)
    print("  ".join(f"{name} {n}" for name, n in sorted(after.items())))
    print(f"model: {cuts} cuts, {count} different states recovered from in {time.monotonic() - began:.0f} s; "
          "lost 0, torn 0, changed 0")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
