"""One lane: a root, roles that are killed one after the other or two at once, and the checks between."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import random
import shutil
import signal
import sqlite3
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedq import config as configs
from fedq import fs
from fedq.client.session import Client
from fedq.config import Config
from fedq.device import gate as gates
from fedq.device.home import Home
from fedq.errors import FedqError
from fedq.local import introduce
from tests.crash import kill, roles
from tests.crash.model import Expected, Model, Violation
from tests.crash.roles import NAME

PAIRS = (("requester", "gate"), ("requester", "gate"), ("owner", "gate"), ("requester", "owner", "gate"))
"""Who lives at the same time."""
PER_ROOT = 120
"""Kills before everything must come to rest and be checked to the last."""
FORTNIGHT = 16
"""Days after which the last message expired."""
START = 1_795_300_000.0


def config_of(root: Path, durability: str = "full") -> Config:
    found = configs.find(cwd=root, environ={"FEDQ_USER": "alice", "HOME": str(root)})
    return dataclasses.replace(found, home=root / "home", durability=durability)


def small_limits() -> None:
    """Let small tensors take the ways that large ones take: spools, files, private copies."""
    from fedq.client import outbox
    from fedq.device import serve, store
    from fedq.fs import reading

    reading.IN_MEMORY_BYTES = 200_000
    outbox.SPOOL_ABOVE_BYTES = 100_000
    serve.SPOOL_BYTES = 150_000
    store.INLINE_BYTES = 3000


@dataclass
class Child:
    """A role in a process of its own."""

    role: str
    pid: int
    pipe: int
    began: float = field(default_factory=time.monotonic)


def check_promised(config: Config) -> None:
    """What a device took stands in the outbox of who sent it: it was promised before it was put."""
    with contextlib.closing(sqlite3.connect(config.home / "outbox.sqlite")) as db:
        promised = {r[0] for r in db.execute("SELECT id FROM messages")}
    with contextlib.closing(sqlite3.connect(config.devices / NAME / "journal.sqlite")) as db:
        taken = {r[0] for r in db.execute("SELECT id FROM messages")}
    if taken - promised:
        raise Violation(f"taken, and not in the outbox: {sorted(taken - promised)[:3]}")


class Lane:
    """Runs roles, kills them, and checks; deterministic but for the system's timing, by its seed."""

    def __init__(self, where: Path, seed: int, *, durability: str = "full", worker: Any = None) -> None:
        self.where, self.seed, self.durability, self.worker = where, seed, durability, worker
        self.rng = random.Random(seed)
        self.aims = kill.Aims(self.rng)
        self.hits: Counter[tuple[str, str, str]] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.kills = self.lives = self.roots = self.messages = 0

    def run(self, kills: int, *, until: Callable[[], bool] = lambda: False) -> None:
        """Until that many kills were made; Violation tells the seed and leaves the root where it is."""
        small_limits()
        self._warm_up()
        gc.collect()
        gc.freeze()
        while self.kills < kills and not until():
            self.root = self.where / f"lane{self.seed}-{self.roots}"
            try:
                self._one_root(min(PER_ROOT, kills - self.kills))
            except Violation as error:
                raise Violation(f"seed {self.seed}, root {self.root}, life {self.lives}: {error}") from error
            shutil.rmtree(self.root)
            self.roots += 1

    def _warm_up(self) -> None:
        """One undisturbed life in this process, so that no child has to import anything."""
        config = config_of(self.where / f"warm{self.seed}", "none")
        config.queue.parent.mkdir(parents=True)
        introduce(config, NAME)
        requester = roles.Requester(config, random.Random(1), START, lambda _: None, Model())
        client = Client(config, now=lambda: START, new_id=requester.new_id)
        for kind in ("put", "run", "token", "bad"):
            requester.send(client.device(NAME), *getattr(requester, kind)())
        roles.serve(config, START, close=True)
        values = client.outbox.promised(1, "")
        requester.model.values = {v.id: Expected("", set()) for v in values}
        for _ in range(3):
            requester.fetch(client.device(NAME))
        client.close()
        client.watch.close()
        shutil.rmtree(config.queue.parent)

    def _one_root(self, kills: int) -> None:
        self.root.mkdir(parents=True)
        self.config = config_of(self.root, self.durability)
        introduce(self.config, NAME)
        self.model, self.now, self._last = Model(), START, ""
        owner = roles.Owner(self.config, self.rng, self.model.told)
        with contextlib.closing(Home(self.config.devices / NAME, self.config)) as home:
            for tag in roles.TAGS:
                id_ = f"{self.rng.getrandbits(128):032x}"
                home.add(roles.content(id_, 40), tag=tag, id=id_, release="review")
            owner._tell_of(home)
        home = Home(self.config.devices / NAME, self.config)
        self.device_key, self.pair = home.key.public, home.pair(home.trusted()[0].name)
        self.requester_key = bytes.fromhex(home.trusted()[0].key)
        home.close()
        end = self.kills + kills
        while self.kills < end:
            self._pass_time()
            both = self.rng.random() < 0.25
            roles_ = self.rng.choice(PAIRS) if both else (self._turn(),)
            children = [self._start(role) for role in roles_]
            for child in children:
                self._end(child)
            self.model.look(self.pair, self.requester_key, self.device_key)
        self.converge()

    def _turn(self) -> str:
        if self.rng.random() < 0.3:
            return "owner"
        self._last = "gate" if self._last == "requester" and self.rng.random() < 0.8 else "requester"
        return self._last

    def _pass_time(self) -> None:
        chance = self.rng.random()
        if chance < 0.01:
            self.now += 4000.0
        elif chance < 0.012:
            self.now += 86400 * 365 * 3
            self.model.jumped = True
        elif chance < 0.014:
            self.now -= 86400 * 365 * 2
            self.model.jumped = True
        else:
            self.now += self.rng.uniform(0.1, 5)

    # -- children

    def _start(self, role: str, aim: kill.Aim | None = None) -> Child:
        aim = self.aims.next(role) if aim is None else aim
        seed = self.rng.getrandbits(64)
        read, write = os.pipe()
        self.lives += 1
        pid = os.fork()
        if pid:
            os.close(write)
            return Child(role, pid, read)
        os.close(read)
        tell = lambda line: os.write(write, line.encode() + b"\n")  # noqa: E731
        try:
            gc.disable()
            rng = random.Random(seed)
            roles.complain(tell)
            passed = kill.arm(aim, tell, rng)
            if role == "requester":
                roles.Requester(self.config, rng, self.now, tell, self.model).live()
            elif role == "owner":
                roles.Owner(self.config, rng, tell).live()
            else:
                how = {"worker": self.worker} if self.worker else {}
                roles.Dice.tell = staticmethod(tell)
                roles.serve(self.config, self.now, close=rng.random() < 0.2, **how)
            signal.setitimer(signal.ITIMER_REAL, 0)
            tell("P " + " ".join(f"{n}:{c}" for n, c in passed.items()))
        except BaseException:
            tell("X " + traceback.format_exc()[-1500:].replace("\n", " | "))
        os._exit(0)

    def _end(self, child: Child) -> None:
        with os.fdopen(child.pipe) as pipe:
            lines = pipe.read().splitlines()
        _, status = os.waitpid(child.pid, 0)
        for line in lines:
            what, _, rest = line.partition(" ")
            if what == "K":
                phase, name = rest.split()
                self.hits[child.role, phase, name] += 1
                self.aims.hit[child.role, name] += 1
            elif what == "P":
                passed = Counter({n: int(c) for n, c in (p.rsplit(":", 1) for p in rest.split())})
                self.aims.learn(child.role, passed, time.monotonic() - child.began)
            else:
                self.model.told(line)
        if os.WIFSIGNALED(status):
            self.kills += 1
            if os.WTERMSIG(status) == signal.SIGALRM:
                self.hits[child.role, "any", "any microsecond"] += 1

    # -- the end

    def converge(self) -> None:
        """No more kills: all that was promised comes, and nothing is left lying about."""
        for n in range(10):
            self._owners_word(deny=n > 2)
            for role in ("requester", "gate"):
                self._end(self._start(role, kill.Aim()) if role == "gate" else self._finish())
            self.model.look(self.pair, self.requester_key, self.device_key)
            self.now += 4000.0
        committed = self._committed()
        if lost := self.model.lost(committed):
            raise Violation(f"LOST: {sorted(lost)[:5]} and {len(lost)} in all, never answered")
        if not self.model.jumped:  # what expired years ago is forgotten
            check_promised(self.config)
        self.messages += len(committed)
        self.outcomes += self.model.outcomes
        for _ in range(FORTNIGHT):  # private calls that nobody asked for end with their messages
            self.now += 0.99 * 86400
            self._end(self._start("gate", kill.Aim()))
            self.model.look(self.pair, self.requester_key, self.device_key)
        self._clean()

    def _owners_word(self, *, deny: bool) -> None:
        """What the gate's ends held goes on, and every question gets a word."""
        home = Home(self.config.devices / NAME, self.config)
        owner = roles.Owner(self.config, self.rng, self.model.told, ("deny" if deny else "approve",))
        with contextlib.suppress(FedqError):  # what is incomplete cannot be approved
            owner.word(home, most=1 << 30)
        if held := home.stopped():
            self.outcomes["held"] += len(held)
            home.resume()
        home.close()

    def _finish(self) -> Child:
        """A requester that only starts: it finishes what was cut off."""
        read, write = os.pipe()
        pid = os.fork()
        if pid:
            os.close(write)
            return Child("requester", pid, read)
        try:
            roles.complain(lambda line: os.write(write, line.encode() + b"\n"))
            Client(self.config, now=lambda: self.now).close()
        except BaseException:
            os.write(write, b"X " + traceback.format_exc()[-1500:].replace("\n", " | ").encode() + b"\n")
        os._exit(0)

    def _committed(self) -> set[str]:
        with contextlib.closing(sqlite3.connect(self.config.home / "outbox.sqlite")) as db:
            if db.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
                raise Violation("the outbox is not whole")
            if left := db.execute("SELECT id FROM messages WHERE NOT put AND expires>?", (self.now,)).fetchall():
                raise Violation(f"in the outbox, never put: {left[:3]}")
            return {r[0] for r in db.execute("SELECT id FROM messages WHERE put")}  # others expired before they were

    def _clean(self) -> None:
        """Nothing is left in the way of the next year."""
        self._sweep()
        if (left := self.pair.carrier.list("in")) and not self.model.jumped:  # a token used again years later
            raise Violation(f"left in in/: {left[:3]}")
        with contextlib.closing(sqlite3.connect(self.config.devices / NAME / "journal.sqlite")) as db:
            if db.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
                raise Violation("the journal is not whole")
            if rows := db.execute("SELECT id, received FROM messages WHERE state != 'done'").fetchall():
                raise Violation(f"open for ever: {rows[:3]}")
            for table in ("started", "ends"):
                if rows := db.execute(f"SELECT * FROM {table}").fetchall():
                    raise Violation(f"left in {table}: {rows[:3]}")
            if rows := db.execute("SELECT id, state FROM replies WHERE state NOT IN ('published', 'acked')").fetchall():
                raise Violation(f"never answered: {rows[:3]}")
            acked = {r[0] for r in db.execute("SELECT id FROM replies WHERE state='acked'")}
            if rows := db.execute("SELECT reply, word FROM questions WHERE state != 'ended'").fetchall():
                raise Violation(f"questions that never ended: {rows[:3]}")
            whole = "failure IS NULL AND data IS NULL"
            kept = {r[0] for r in db.execute(f"SELECT id FROM vals WHERE NOT dropped AND scope!='' AND {whole}")}
            owners = {r[0] for r in db.execute("SELECT id FROM vals WHERE NOT dropped AND scope=''")}
        out = {n.partition(".")[0] for n in self.pair.carrier.list("out")}
        if out & acked:
            raise Violation(f"acknowledged and still there: {sorted(out & acked)[:3]}")
        values = {n.partition(".")[0] for n in fs.names(self.config.devices / NAME / "values" / self.pair.requester)}
        if values - kept:
            raise Violation(f"files of values that are no more: {sorted(values - kept)[:3]}")
        values = {n.partition(".")[0] for n in fs.names(self.config.devices / NAME / "values") if "." in n}
        if values - owners:
            raise Violation(f"files of an owner's values that are no more: {sorted(values - owners)[:3]}")
        for folder in (self.config.devices / NAME / "spool" / self.pair.requester, self.config.home / "spool"):
            if names := fs.names(folder):
                raise Violation(f"left in {folder}: {names[:3]}")

    def _sweep(self) -> None:
        """A day later, what kill -9 left is gone, too."""
        before = time.time() + 2
        home, client = Home(self.config.devices / NAME, self.config), Client(self.config, now=lambda: self.now)
        home.sweep(before=before)
        client.outbox.sweep(before=before)
        home.close()
        client.close()
        if left := [p for p in self.root.rglob("*") if p.name.startswith(fs.TEMP)]:
            raise Violation(f"temporary files for ever: {left[:3]}")


__all__ = ["PER_ROOT", "Lane", "config_of", "gates"]
