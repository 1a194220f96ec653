"""Every n-th call of `fedq.fs` fails, once or until further notice, with each error a disk can give.

A requester and a gate go through a day; meanwhile one of their steps fails. The gate neither dies
nor lies: it holds, says so once, and goes on when the fault is over. A send either returned and is
answered, or raised an error of fedq's. When the fault is over, all that returned is answered.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fedq import fs
from fedq.client import fetch
from fedq.client.pointers import PointerTensor
from fedq.client.session import Client
from fedq.device import review
from fedq.device.gate import Gate
from fedq.device.home import Home
from fedq.errors import FedqError
from fedq.local import introduce
from fedq.queue.message import Drop, Get, OwnerRef, Put, Ref, Run, SendPlan
from tests.crash.lane import START, check_promised, config_of, small_limits
from tests.crash.model import Violation, digest, outcome
from tests.crash.powerloss import Steady, complaints
from tests.crash.roles import GOOD, NAME, content

ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EMFILE", "EROFS", "EACCES")
SQLITE = {
    "ENOSPC": "database or disk is full", "EDQUOT": "database or disk is full", "EIO": "disk I/O error",
    "EMFILE": "unable to open database file", "EROFS": "attempt to write a readonly database",
    "EACCES": "unable to open database file",
}  # fmt: skip
EVER = 25
"""Steps of a gate that "for ever" lasts: then somebody has made room."""
UNTOUCHED = ("clock", "journal.rollback", "outbox.rollback")
"""A rollback needs no disk."""


class Fault:
    """Fails the n-th step, and with ``ever`` all later ones of those whose fault it could be."""

    def __init__(self, n: int, code: str, *, ever: bool) -> None:
        self.n, self.code, self.ever = n, code, ever
        self.count, self.hit, self.on = 0, "", True

    def __call__(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.on or name in UNTOUCHED:
            return call(*args, **kwargs)
        self.count += 1
        if self.count == self.n or (self.ever and self.hit and _same_kind(name, self.code)):
            self.hit = self.hit or name
            if name.partition(".")[0] in ("journal", "outbox"):
                raise sqlite3.OperationalError(SQLITE[self.code])
            raise OSError(getattr(errno, self.code), os.strerror(getattr(errno, self.code)))
        return call(*args, **kwargs)


def _same_kind(name: str, code: str) -> bool:
    """What such a fault hits as well: a full disk takes no bytes, but can be read."""
    writes = name.endswith(
        (".write", ".sync", ".create", ".unnamed", ".mkdir", ".commit", ".insert", ".rename", ".name")
    )
    opens = name.endswith((".open", ".create", ".unnamed", ".list"))
    return {"ENOSPC": writes, "EDQUOT": writes, "EIO": True, "EMFILE": opens, "EROFS": writes or "unlink" in name,
            "EACCES": opens or "unlink" in name}[code]  # fmt: skip


class Day:
    """A requester's and a gate's day, in which a step may fail."""

    def __init__(self, root: Path) -> None:
        self.config, self.now = config_of(root, "full"), START
        introduce(self.config, NAME)
        Client(self.config, now=self.clock).close()
        with contextlib.closing(Home(self.config.devices / NAME, self.config)) as home:
            self.owners = home.add(content("b" * 31 + "9", 40), tag="p", release="review")
        self.private: set[str] = set()
        self.said: dict[str, str] = {}
        self.meant: set[str] = set()
        self.returned: dict[str, tuple[str, ...]] = {}
        self.content: dict[str, str] = {}
        self.given: dict[str, str] = {}
        self.refused = 0
        self._ids = random.Random(5)
        self.client: Client | None = None
        self.gate: Gate | None = None

    def clock(self) -> float:
        self.now += 0.01
        return self.now

    def new_id(self) -> str:
        return f"{self._ids.getrandbits(128):032x}"

    def live(self) -> None:
        """All of it; what raises an error of ours is the user's to try again, anything else is a bug."""
        small, large, middle, result = (self.new_id() for _ in range(4))
        self.put(small, 2)
        self.put(large, 60_000)
        self.serve()
        self.fetch(small, take=True)
        self.put(middle, 30_000)
        plan = SendPlan(GOOD.id, GOOD.graph, (), GOOD.about)
        self.send([plan, Run(GOOD.id, (Ref(middle),), {}, (result,)), Get(result, (result,))], {})
        self.serve()
        self.restart()
        self.serve()
        self.fetch(result, take=False)
        kept, denied = self.ask(), self.ask()
        self.serve()
        self.say(kept, "look")
        self.serve()
        self.say(kept, "approve")
        self.say(denied, "deny")
        self.serve()
        self.fetch(kept, take=False)
        self.fetch(large, take=True)
        self.send([Drop((middle,))], {})
        self.serve()

    def try_(self, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except FedqError:
            self.refused += 1
            return None

    def open_client(self) -> Client | None:
        if self.client is None:
            self.client = self.try_(lambda: Client(self.config, now=self.clock, new_id=self.new_id))
        return self.client

    def put(self, id_: str, size: int) -> None:
        raw = content(id_, size)
        self.content[id_] = digest(raw)
        self.send([Put(id_, "t0"), Get(id_, (id_,))], {"t0": raw})

    def send(self, actions: list[Any], tensors: dict[str, Any]) -> None:
        client = self.open_client()
        if client is None:
            return
        message = self.try_(lambda: client.device(NAME).submit(actions, tensors))
        if message is not None:
            self.returned[message.id] = tuple(a.reply for a in actions if isinstance(a, Get))

    def ask(self) -> str:
        """A call on the owner's value, and a question for what it gives."""
        id_ = self.new_id()
        self.private.add(id_)
        plan = SendPlan(GOOD.id, GOOD.graph, (), GOOD.about)
        self.send([plan, Run(GOOD.id, (OwnerRef(self.owners),), {}, (id_,)), Get(id_, (id_,))], {})
        return id_

    def say(self, reply: str, word: str) -> None:
        self.meant |= {reply} if word == "approve" else set()
        if self.try_(lambda: self._decide(reply, word)):
            self.said[reply] = word

    def _decide(self, reply: str, word: str) -> bool:
        with contextlib.closing(Home(self.config.devices / NAME, self.config)) as home:
            review.decide(home, [review.find(home, reply)], word)
        return True

    def fetch(self, value: str, *, take: bool) -> None:
        client = self.open_client()
        if client is None:
            return

        def outcomes() -> Any:
            return fetch.outcomes(
                [PointerTensor(client.device(NAME), value, None)], 0, take=take, on_wait=lambda _: None
            )

        came = self.try_(outcomes)
        if came is not None and not isinstance(came[0], FedqError):
            self.saw(value, digest(came[0]))

    def saw(self, value: str, came: str) -> None:
        if came != self.content.get(value, came) or came != self.given.setdefault(value, came):
            raise Violation(f"value {value} is {came}")

    def serve(self, steps: int = EVER) -> None:
        for _ in range(steps):
            self.now += 1.1
            if self.gate is None:
                self.gate = self.try_(lambda: Gate(self.config, None, worker=Steady, now=self.now))
            if self.gate is not None:
                self.gate._try("the gate", lambda: self.gate.refresh(self.now))  # type: ignore[union-attr]
                self.gate.step(self.now)

    def restart(self) -> None:
        if self.gate is not None:
            self.gate.close()
        self.gate = None

    def close_client(self) -> None:
        if self.client is not None:
            self.client.close()
        self.client = None

    def decide_rest(self) -> None:
        """What waits for its owner is denied; nothing waits that had a releasing word already."""
        with contextlib.closing(Home(self.config.devices / NAME, self.config)) as home:
            rows = review.questions(home)
            if lost := [row.reply for row in rows if self.said.get(row.reply) in ("approve", "deny")]:
                raise Violation(f"LOST a word: {lost}")
            review.decide(home, rows, "deny")

    def close(self) -> None:
        self.close_client()
        self.restart()


def one(root: Path, n: int, code: str, *, ever: bool) -> str:
    """A day with this fault; the step that failed, empty if there were not so many."""
    day, fault = Day(root), Fault(n, code, ever=ever)
    fs.replace(day.config.devices / NAME / "up", [b""])
    with complaints() as said:
        fs.FAILPOINTS["*"] = fault
        try:
            day.live()
            fault.on = False
            for _ in range(3):
                day.close_client()
                day.open_client()
                day.serve(6)
                day.decide_rest()
                day.now += 4000
        finally:
            fs.FAILPOINTS.pop("*", None)
        day.close()
    if unforeseen := [s for s in said if "a step failed" in s]:
        raise Violation(f"unforeseen: {unforeseen[0][-900:]}")
    if fault.hit and len(said) > 8:
        raise Violation(f"said too often: {len(said)} times, {said[:3]}")
    _check(day)
    return fault.hit


def _check(day: Day) -> None:
    check_promised(day.config)
    client = Client(day.config, now=day.clock)
    device = client.device(NAME)
    for message, replies in day.returned.items():
        for reply in replies:
            found = outcome(device.pair, reply, reply)
            if found is None and reply not in day.given:
                raise Violation(f"LOST: message {message} returned and was never answered")
            if found is not None:
                came = digest(found)
                if reply in day.private and came == "!denied" and day.said.get(reply) == "approve":
                    raise Violation(f"LOST an approval: {reply}")
                if reply in day.private and came != "!denied" and reply not in day.meant:
                    raise Violation(f"LEFT without a word: {reply}")
                if came == "!missing_value" and reply not in day.content:
                    continue  # a call whose argument was never sent
                day.saw(reply, came)
    client.close()


def days(where: Path, ns: Iterable[int], codes: Iterable[str], *, tell: bool = False) -> Counter[str]:
    """All these faults, each in a day of its own; how often each step was the one that failed."""
    hit: Counter[str] = Counter()
    small_limits()
    for code in codes:
        for n in ns:
            for ever in (False, True):
                root = where / f"{code}-{n}-{ever}"
                root.mkdir(parents=True)
                try:
                    name = one(root, n, code, ever=ever)
                except Violation as error:
                    raise Violation(f"step {n}, {code}, {'for ever' if ever else 'once'}, {root}: {error}") from error
                except Exception as error:
                    text = traceback.format_exc()[-1500:]
                    raise Violation(f"step {n}, {code}, {'for ever' if ever else 'once'}, {root}: {text}") from error
                shutil.rmtree(root)
                hit[name] += 1
                if tell and not name:
                    break
    return hit


def length(where: Path) -> int:
    """How many steps a day has."""
    small_limits()
    where.mkdir(parents=True)
    day, fault = Day(where), Fault(0, "EIO", ever=False)
    fs.replace(day.config.devices / NAME / "up", [b""])
    fs.FAILPOINTS["*"] = fault
    with contextlib.suppress(BaseException):
        day.live()
    fs.FAILPOINTS.pop("*")
    day.close()
    shutil.rmtree(where)
    return fault.count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.faults", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only each n-th step")
    parser.add_argument("--codes", default=",".join(ERRORS))
    parser.add_argument("--where", type=Path, default=Path("/dev/shm") if Path("/dev/shm").is_dir() else None)
    args = parser.parse_args()
    where = Path(tempfile.mkdtemp(prefix="fedq-faults-", dir=args.where))
    began, steps = time.monotonic(), length(where / "length")
    hit: Counter[str] = Counter()
    bad = 0
    for code in args.codes.split(","):
        for n in range(1, steps + 1, args.every):
            try:
                hit += days(where, [n], [code])
            except Violation as error:
                bad += 1
                print(f"VIOLATION: {error}", flush=True)
                if bad >= 20:
                    return bad
    print("  ".join(f"{name} {n}" for name, n in sorted(hit.items())))
    print(f"{sum(hit.values())} days, each of {steps} steps failing once and for ever with {args.codes}, "
          f"in {time.monotonic() - began:.0f} s; died, lied, lost: {bad}")  # fmt: skip
    if not bad:
        shutil.rmtree(where)
    return bad


if __name__ == "__main__":
    sys.exit(main())
