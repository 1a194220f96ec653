"""One of each kind over a real daemon and real workers: what they were given is read off their memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fedq import fs
from fedq.device import daemon, review
from fedq.plan.codec import RawTensor, decode
from fedq.plan.file import PlanFile
from fedq.plan.graph import Action, Type, Var
from fedq.queue.message import (
    Drop,
    Get,
    Message,
    OwnerRef,
    Put,
    Ref,
    Run,
    SendPlan,
    Verb,
    decode_reply,
    encode_message,
)  # fmt: skip
from tests.attacks.stage import COUNTS, IDENT, MEAN, PICK, TWICE, id_, plan
from tests.rig import Rig, wait_until
from tests.test_kill import begun, children, slow_plan

SIZE = 2048
SLOW, SHORT = slow_plan(3000), slow_plan(300)
HALF = plan("half", (Type("f32", ("n",)),), Action("aten.mul.Tensor", (Var(0), 0.5), {}, (Type("f32", ("n",)),)))


def pattern(n: int) -> torch.Tensor:
    """Bytes that stand nowhere by chance."""
    return torch.rand(SIZE, generator=torch.Generator().manual_seed(n))


class Real:
    """A device whose owner has ``p``, ``q`` and ``open``, its daemon, and an enemy with a client's key."""

    def __init__(self, root: Path) -> None:
        self.rig = Rig(root)
        self.mine = {
            "p": self.rig.add("p", pattern(1), release="review"),
            "q": self.rig.add("q", pattern(2), release="review"),
            "open": self.rig.add("open", pattern(3)),
            "short": self.rig.add("short", torch.ones(3)),
            "index": self.rig.add("index", torch.tensor([0, 1, 99_991]), release="review"),
            "count": self.rig.add("count", torch.tensor(40), release="review"),
            "square": self.rig.add("square", torch.eye(600), release="review"),
        }
        self.rig.start()

    def owners(self, tag: str) -> OwnerRef:
        return OwnerRef(self.mine[tag])

    def send(self, *calls: tuple[PlanFile, tuple[Any, ...], tuple[str, ...]], gets: dict[str, list[Any]], **more: Any):
        """Calls, and gets by the name of their reply; a name among values and arguments is the enemy's own."""
        plans = {p.id: SendPlan(p.id, p.graph, (), p.about) for p, _, _ in calls}
        runs = [Run(p.id, tuple(_own(a) for a in args), {}, tuple(map(id_, to))) for p, args, to in calls]
        asked = [
            Get(id_(r), tuple(v.id if isinstance(v, OwnerRef) else id_(v) for v in values),
                frozenset(v.id for v in values if isinstance(v, OwnerRef)))
            for r, values in gets.items()
        ]  # fmt: skip
        return self.rig.device.submit([*plans.values(), *more.pop("first", ()), *runs, *asked], more)

    def slip(self, *actions: Verb, **tensors: RawTensor) -> None:
        """A message of another program with the same key, that asks no outbox."""
        now, client = fs.clock(), self.rig.client
        message = Message(client.new_id(), client.name, self.rig.device.address, now, now + 1000, 1, actions)
        chunks = encode_message(message, tensors, client.key)
        self.rig.device.pair.carrier.put(f"in/{message.id}.safetensors", chunks)

    def came(self, reply: str) -> Any:
        """The first value of a reply: a tensor's bytes, or a Failure; None while there is none."""
        try:
            file = decode(self.rig.device.pair.carrier.get(f"out/{id_(reply)}.safetensors"))
        except FileNotFoundError:
            return None
        (value, *_) = decode_reply(file).values.values()
        return bytes(file.tensors[value].data) if isinstance(value, str) else value

    def waits(self, reply: str) -> Any:
        home = self.rig.home()
        try:
            return wait_until(lambda: next((r for r in review.questions(home) if r.reply == id_(reply)), None))
        finally:
            home.close()

    def say(self, reply: str, word: str) -> None:
        self.waits(reply)
        home = self.rig.home()
        review.decide(home, [review.find(home, id_(reply))], word)
        home.close()

    def state(self, reply: str) -> str:
        home = self.rig.home()
        try:
            row = home.journal.question(self.rig.client.name, id_(reply))
            return row.state if row else ""
        finally:
            home.close()

    def look(self, reply: str) -> None:
        self.say(reply, "look")
        wait_until(lambda: self.state(reply) == "looked")

    def workers(self) -> list[int]:
        return children(daemon.pid(self.rig.config))

    def holding(self, tag: str) -> list[int]:
        """Workers in whose memory a value of the owner's stands."""
        seed = {"p": 1, "q": 2, "open": 3}[tag]
        needle = pattern(seed).numpy().tobytes()[512:1536]
        return [pid for pid in self.workers() if holds(pid, needle)]

    def __enter__(self) -> Real:
        return self

    def __exit__(self, *_: object) -> None:
        self.rig.__exit__()


def _own(arg: Any) -> Any:
    return Ref(id_(arg)) if isinstance(arg, str) else arg


def holds(pid: int, needle: bytes) -> bool:
    """Whether these bytes stand in what a process may write to, or in a file that it maps."""
    try:
        maps = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
        with open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for span, rights, *_, path in (m if len(m) > 5 else [*m, ""] for m in maps):
                library = path.endswith((".so", ".pyc")) or ".so." in path
                if "r" not in rights or "x" in rights or library or path in ("[vvar]", "[vvar_vclock]"):
                    continue
                start, end = (int(n, 16) for n in span.split("-"))
                if _stands(memory, start, end, needle):
                    return True
    except (FileNotFoundError, ProcessLookupError):
        pass
    return False


def _stands(memory: Any, start: int, end: int, needle: bytes) -> bool:
    step = 16 << 20
    for at in range(start, end, step):
        try:
            memory.seek(at)
            if needle in memory.read(min(step + len(needle), end - at)):
                return True
        except (OSError, ValueError):
            return False
    return False


@pytest.fixture
def real(tmp_path):
    with Real(tmp_path) as made:
        yield made


def test_a_worker_that_saw_private_values_serves_no_others_and_no_open_call(real):
    real.send((HALF, (real.owners("open"),), ("o",)), (MEAN, (real.owners("p"),), ("r",)),
              (MEAN, (real.owners("q"),), ("s",)), gets={"o": ["o"], "r": ["r"], "s": ["s"]})  # fmt: skip
    wait_until(lambda: real.came("o"))
    (public,) = real.holding("open")
    assert real.holding("p") == real.holding("q") == []
    real.look("r")
    (first,) = real.holding("p")
    assert first != public and real.holding("q") == []
    real.look("s")
    (second,) = real.holding("q")
    assert second not in (first, public)
    assert real.holding("p") == [], "the worker that saw p must have ended when the set changed"
    assert first not in real.workers()
    real.send((HALF, (real.owners("open"),), ("o2",)), gets={"o2": ["o2"]})
    wait_until(lambda: real.came("o2"))
    assert public in real.workers() and second not in real.holding("open")
    assert real.came("r") is None and real.came("s") is None


def test_a_call_on_two_private_values_runs_where_neither_was_alone(real):
    real.send((MEAN, (real.owners("p"),), ("r",)), gets={"r": ["r"]})
    real.look("r")
    (alone,) = real.holding("p")
    rows = Type("f32", ("n",))
    both = plan("both", (rows, rows), Action("aten.add.Tensor", (Var(0), Var(1)), {}, (rows,)))
    real.send((both, (real.owners("p"), real.owners("q")), ("s",)), gets={"s": ["s"]})
    real.look("s")
    assert real.holding("p") == real.holding("q") != [alone]
    assert len(real.holding("p")) == 1


def test_nothing_of_a_look_reaches_a_requester(real):
    """A failure, a loop, sizes: the pair is the same before and after, but for the heartbeat's time."""
    real.send((PICK, (real.owners("short"), real.owners("index")), ("r",)), (COUNTS, (real.owners("count"),), ("s",)),
              gets={"r": ["r"], "s": ["s"]})  # fmt: skip
    real.waits("r"), real.waits("s")
    before = wait_until(lambda: settled(real))
    for reply in "rs":
        real.look(reply)
    after = wait_until(lambda: settled(real))
    assert after == before
    for reply in "rs":
        real.say(reply, "approve")
    failure = wait_until(lambda: real.came("r"))
    assert failure.code == "failed" and "99991" not in failure.text
    assert set(failure.fields) <= {"action", "op", "line", "kind"}
    assert wait_until(lambda: real.came("s")) is not None


def settled(real: Real) -> Any:
    """All that lies in the pair, the heartbeat by what it says; one that is being written is none yet."""
    beat = real.rig.heartbeat()
    if beat.waiting or beat.running or len(beat.held) < 2 or real.rig.device.pair.carrier.list("in"):
        return None
    root = real.rig.device.pair.carrier.path("")
    files = {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.name != "heartbeat.json" and not p.name.startswith(".tmp-") and p.is_file()
    }
    return files, beat.state, beat.held, beat.refused, beat.progress, beat.trouble


def test_ids_that_are_spelt_alike_stay_apart_while_a_real_worker_is_at_it(real):
    alike = real.mine["square"]
    real.send((SLOW, (real.owners("square"),), ("r",)), gets={"r": ["r"]})
    real.say("r", "look")
    worker = wait_until(lambda: next((pid for pid in real.workers() if begun(pid)), None))
    zeros = RawTensor("f32", (2,), bytes(8))
    real.slip(Put(alike, "t0"), Put(id_("r"), "t1"), Drop((id_("r"),)), t0=zeros, t1=zeros)
    real.send((IDENT, (Ref(alike),), ("own",)), gets={"own": ["own"]})
    assert wait_until(lambda: real.came("own")) == bytes(8)
    assert worker in real.workers() and real.came("r") is None


def test_a_removal_ends_the_worker_that_is_at_it(real):
    real.send((SLOW, (real.owners("square"),), ("r",)), gets={"r": ["r"]})
    real.say("r", "approve")
    worker = wait_until(lambda: next((pid for pid in real.workers() if begun(pid)), None))
    home = real.rig.home()
    home.remove("square")
    home.close()
    assert wait_until(lambda: real.came("r")).code == "removed"
    wait_until(lambda: worker not in real.workers())


def test_a_replacement_while_an_approved_run_is_under_way_changes_nothing_of_it(real):
    real.send((SHORT, (real.owners("square"),), ("r",)), gets={"r": ["r"]})
    real.say("r", "approve")
    wait_until(lambda: next((pid for pid in real.workers() if begun(pid)), None))
    real.rig.add("square", torch.zeros(600, 600), release="review", replace=True)
    assert wait_until(lambda: real.came("r")) == torch.eye(600).numpy().tobytes()


@pytest.mark.parametrize("word", ["look", "approve"])
def test_a_worker_that_is_killed_three_times_shows_only_after_an_approve(word, real):
    real.send((SLOW, (real.owners("square"),), ("r",)), (HALF, (real.owners("open"),), ("o",)),
              gets={"r": ["r"], "o": ["o"]})  # fmt: skip
    wait_until(lambda: real.came("o"))
    idle = set(real.workers())
    real.say("r", word)
    killed: set[int] = set()
    while len(killed) < 3:
        new = wait_until(lambda: next((p for p in set(real.workers()) - killed - idle if begun(p)), None))
        os.kill(new, signal.SIGKILL)
        killed.add(new)
    if word == "look":
        wait_until(lambda: real.state("r") == "looked")
        assert real.came("r") is None and real.rig.heartbeat().running == ()
        real.say("r", "approve")
    failure = wait_until(lambda: real.came("r"))
    assert failure.code == "worker_died" and set(failure.fields) <= {"kind", "hint"}
    assert idle <= set(real.workers())


def test_another_result_and_a_derived_one_stay_after_a_release_and_a_kill_of_the_daemon(real):
    real.send((TWICE, (real.owners("p"),), ("a", "b")), gets={"a": ["a"]})
    real.say("a", "approve")
    assert wait_until(lambda: real.came("a")) == pattern(1).numpy().tobytes()
    os.kill(daemon.pid(real.rig.config), signal.SIGKILL)
    wait_until(lambda: daemon.pid(real.rig.config) is None)
    real.rig.start()
    real.send((IDENT, ("b",), ("c",)), (HALF, ("a",), ("d",)), gets={"b": ["b"], "c": ["c"], "d": ["d"]})
    for reply in "bcd":
        real.waits(reply)
    assert [real.came(reply) for reply in "bcd"] == [None] * 3
