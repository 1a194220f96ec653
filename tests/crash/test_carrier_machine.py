"""The carrier as adversary: what a sync tool, a stranger or a wrong clock may do to a pair, in any order.

The pair between requester and gate is two folders, as with Syncthing: files written on one side
arrive on the other late, in parts, twice, out of order or under a conflict's name, vanish, are put
back, and strangers plant theirs. In the end, when all files have arrived, every send was answered,
once and with one content.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedq import fs
from fedq.client.session import Client
from fedq.device.gate import Gate
from fedq.local import introduce
from fedq.queue.message import Drop, Get, Put, Ref, Run, SendPlan
from tests.crash.lane import START, config_of
from tests.crash.model import digest, outcome
from tests.crash.powerloss import Steady, complaints
from tests.crash.roles import GOOD, NAME, content

PLAN = SendPlan(GOOD.id, GOOD.graph, (), GOOD.about)
CONFLICTS = ["{}.sync-conflict-20261122-101010-ABCDEFG.safetensors", "{} (1).safetensors", "{}.part"]
YEARS = 3 * 365 * 86400.0
pick = st.integers(0, 1 << 30)


class Carrier(RuleBasedStateMachine):
    """``held``: files of ``in/`` that the requester wrote and the device's side does not have yet."""

    @initialize()
    def begin(self) -> None:
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.root = Path(tempfile.mkdtemp(prefix="fedq-carrier-", dir=memory))
        self.now, self.serial = START, 0
        self.config = config_of(self.root, "none")
        introduce(self.config, NAME)
        self.client = Client(self.config, now=lambda: self.now, new_id=self.new_id)
        self.device = self.client.device(NAME)
        self.inside, self.outside = (self.device.pair.carrier.path(f) for f in ("in", "out"))
        self.gate = self.open()
        self.content: dict[str, str] = {}
        self.given: dict[str, str] = {}
        self.seen: dict[str, bytes] = {}
        self.asked: dict[str, tuple[str, ...]] = {}
        self.sent: dict[str, bytes] = {}
        self.held: dict[str, bytes] = {}
        self.dropped: set[str] = set()
        self.leapt = False
        self.said = complaints()
        self.errors = self.said.__enter__()

    def open(self) -> Gate:
        return Gate(self.config, [NAME], worker=Steady, now=self.now)

    def new_id(self) -> str:
        self.serial += 1
        return f"{self.serial:032x}"

    # -- the requester

    def send(self, actions, tensors) -> None:
        message = self.device.submit(actions, tensors)
        name = f"{message.id}.safetensors"
        self.sent[name] = self.held[name] = (self.inside / name).read_bytes()
        (self.inside / name).unlink()
        self.asked.update({a.reply: a.values for a in actions if isinstance(a, Get)})

    @rule()
    def put(self) -> None:
        id_ = self.new_id()
        raw = content(id_, 3)
        self.content[id_] = digest(raw)
        self.send([Put(id_, "t0"), Get(id_, (id_,))], {"t0": raw})

    @rule(n=pick)
    def run(self, n) -> None:
        id_ = self.new_id()
        known = list(self.content)
        arg = Ref(known[n % len(known)]) if known else 3
        self.send([PLAN, Run(GOOD.id, (arg,), {}, (id_,)), Get(id_, (id_,))], {})

    @precondition(lambda self: self.content)
    @rule(n=pick)
    def copy(self, n) -> None:
        value = list(self.content)[n % len(self.content)]
        self.send([Get(self.new_id(), (value,))], {})

    @precondition(lambda self: self.content)
    @rule(n=pick)
    def drop(self, n) -> None:
        value = list(self.content)[n % len(self.content)]
        if value not in self.dropped:
            self.dropped.add(value)
            self.send([Drop((value,))], {})

    # -- the carrier

    @precondition(lambda self: self.held)
    @rule(n=pick)
    def arrive(self, n) -> None:
        """Any of them, in any order."""
        name = list(self.held)[n % len(self.held)]
        self.write(name, self.held.pop(name))

    @precondition(lambda self: self.held)
    @rule(n=pick, part=st.floats(0, 1))
    def arrive_in_part(self, n, part) -> None:
        """Under its own name, as rclone and scp do; the rest comes later."""
        name = list(self.held)[n % len(self.held)]
        self.write(name, self.held[name][: int(part * len(self.held[name]))])

    @precondition(lambda self: self.sent)
    @rule(n=pick)
    def arrive_again(self, n) -> None:
        name = list(self.sent)[n % len(self.sent)]
        if name not in self.held:
            self.write(name, self.sent[name])

    @precondition(lambda self: self.sent)
    @rule(n=pick, form=st.sampled_from(CONFLICTS))
    def conflict_copy(self, n, form) -> None:
        name = list(self.sent)[n % len(self.sent)]
        self.write(form.format(name.partition(".")[0]), self.sent[name])

    @precondition(lambda self: self.sent)
    @rule(n=pick, other=pick)
    def under_anothers_name(self, n, other) -> None:
        names = list(self.sent)
        name = names[other % len(names)]
        self.write(name, self.sent[names[n % len(names)]])
        self.held[name] = self.sent[name]  # what was overwritten is brought again

    @rule(junk=st.binary(max_size=200))
    def plant(self, junk) -> None:
        self.write(f"{self.new_id()}.safetensors", junk)

    @rule(kind=st.sampled_from(["folder", "link", "fifo"]))
    def plant_what_is_no_file(self, kind) -> None:
        path = self.inside / f"{self.new_id()}.safetensors"
        if kind == "folder":
            path.mkdir()
        elif kind == "link":
            path.symlink_to("/etc/passwd")
        else:
            os.mkfifo(path)

    @precondition(lambda self: self.asked)
    @rule(n=pick, junk=st.binary(max_size=100))
    def plant_a_reply(self, n, junk) -> None:
        """Before the device writes it: it is replaced. After, it is as if the reply had vanished."""
        reply = list(self.asked)[n % len(self.asked)]
        path = self.outside / f"{reply}.safetensors"
        if not path.exists():
            path.write_bytes(junk)

    @precondition(lambda self: self.seen)
    @rule(n=pick)
    def reply_vanishes(self, n) -> None:
        (self.outside / list(self.seen)[n % len(self.seen)]).unlink(missing_ok=True)

    @precondition(lambda self: self.seen)
    @rule(n=pick)
    def reply_comes_back(self, n) -> None:
        name = list(self.seen)[n % len(self.seen)]
        (self.outside / name).write_bytes(self.seen[name])

    def write(self, name: str, data: bytes) -> None:
        path = self.inside / name
        if not path.is_dir():
            path.unlink(missing_ok=True)
            path.write_bytes(data)

    # -- the device, and time

    @rule(steps=st.integers(1, 4))
    def serve(self, steps) -> None:
        for _ in range(steps):
            self.now += 1.1
            self.gate.step(self.now)
            self.no_reply_ever_changes()

    @rule()
    def restart(self) -> None:
        self.gate.close()
        self.gate = self.open()

    @rule(leap=st.sampled_from([4000.0, -4000.0, YEARS, -YEARS]))
    def clock_leaps(self, leap) -> None:
        self.now += leap
        self.leapt |= abs(leap) > 86400 or leap < 0

    # -- what must hold

    @invariant()
    def no_reply_ever_changes(self) -> None:
        if not hasattr(self, "outside"):
            return
        for path in self.outside.iterdir():
            reply = path.name.partition(".")[0]
            if reply not in self.asked:
                continue
            for value in self.asked[reply]:
                found = outcome(self.device.pair, reply, value)
                if found is None:
                    continue
                data, came = path.read_bytes(), digest(found)
                if self.leapt and came == "!expired":
                    self.seen.setdefault(path.name, data)
                    continue  # years later what was collected is not known any more: never done, but so answered
                assert self.seen.setdefault(path.name, data) == data, f"{path} changed"
                self.saw(value, came)

    def saw(self, value: str, came: str) -> None:
        if came.startswith("!"):
            assert came == "!missing_value" or (came == "!expired" and self.leapt), came
            return
        assert came == self.content.get(value, came)
        assert came == self.given.setdefault(value, came), f"{value} changed"

    @invariant()
    def nothing_unforeseen_is_logged(self) -> None:
        assert not [e for e in getattr(self, "errors", ()) if "a step failed" in e or "Traceback" in e], self.errors

    def teardown(self) -> None:
        if not hasattr(self, "root"):
            return
        try:
            for name, data in self.held.items():
                self.write(name, data)
            for _ in range(4):
                self.serve(6)
                self.now += 90_000
                self.serve(6)
                self.now += 4000
            self.no_reply_ever_changes()
            missing = [r for r in self.asked if f"{r}.safetensors" not in self.seen]
            assert not missing, f"never answered: {missing}"
        finally:
            self.said.__exit__(None, None, None)
            self.gate.close()
            self.client.close()
            fs.FAILPOINTS.clear()
            shutil.rmtree(self.root)


Carrier.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
TestCarrier = Carrier.TestCase

__all__ = ["TestCarrier"]
