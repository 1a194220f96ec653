"""Read hostile files by the code of both sides: whatever they hold, they are refused or read, at once and in bounds.

    python -m tests.fuzz_files --files 1000000 --processes 2
    python -m tests.fuzz_files --seed 7 --at 4711        # one file, with its traceback

A device reads messages, and what is in them: plans are checked, shown, fitted to what is given. A requester reads
replies, plans, cards, catalogs and heartbeats. An error that is no refusal (no `FedqError`), a file that takes more
than a second of a processor, a process that stands still or takes more than a gigabyte: each ends the run with exit
code 1 and is printed with the number that repeats it. What is refused and what is taken is counted: both must be many.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import inspect
import json
import logging
import multiprocessing
import resource
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedq import fs
from fedq.cli import background
from fedq.cli import show as tables
from fedq.client import fetch, look, pull
from fedq.client.device import Device
from fedq.client.session import Client
from fedq.device import batch, intake
from fedq.device.calls import Call
from fedq.errors import FedqError
from fedq.local import introduce
from fedq.plan import spec
from fedq.plan.codec import File, decode
from fedq.plan.file import PlanFile, checked, decode_plan
from fedq.plan.fold import fit
from fedq.plan.graph import Graph, Type, show
from fedq.plan.tensors import from_raw
from fedq.plan.verify import verify
from fedq.queue.message import Fold, Inline, Message, Run, SendPlan
from fedq.queue.pair import Card
from tests.golden.contents import ALICE, DEVICE, ROOT, TO_DEVICE
from tests.hostile_files import Hostile, golden, hostile, said
from tests.rig import config_of

SLOW_S = 1.0
"""Of a processor, for one file of at most a few megabytes."""
STILL_S = 60.0
"""A process that is at one file for so long stands still."""
MORE_BYTES = 1 << 30
MOST_ELEMENTS = 1 << 20


@dataclass
class Found:
    """What came of some files: how many were taken and refused, by kind; what is wrong, the first number of each."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: dict[str, tuple[int, int]] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, -1)
    memory_bytes: int = 0

    def add(self, other: Found) -> None:
        self.counts += other.counts
        self.slowest = max(self.slowest, other.slowest)
        self.memory_bytes = max(self.memory_bytes, other.memory_bytes)
        for what, (count, first) in other.wrong.items():
            self.note(what, first, count)

    def note(self, what: str, number: int, count: int = 1) -> None:
        before, first = self.wrong.get(what, (0, number))
        self.wrong[what] = before + count, min(first, number)


class Readers:
    """The code of both sides that reads files, with a requester's real device below a folder."""

    def __init__(self, root: Path) -> None:
        config = config_of(root)
        fs.make_dir(config.home)
        fs.put(config.home / "key", [bytes(range(32)).hex().encode()], mode=0o600)
        introduce(config, "device_1", new_id=lambda: ROOT)
        self.device = Device("device_1", Client(config))
        self.device.key = DEVICE.public
        self.plans = [decode_plan(decode(_whole(good.body, good.header, good.data))) for good in golden()["plan"]]
        self.read: dict[str, Callable[[Hostile], object]] = {
            "message": self.message, "reply": self.reply, "plan": self.plan, "card": self.card,
            "catalog": self.catalog, "heartbeat": self.heartbeat,
        }  # fmt: skip

    # -- a device reads

    def message(self, file_: Hostile) -> object:
        message, file = check(file_)
        for verb in message.actions:
            if isinstance(verb, SendPlan):
                self.each(lambda verb=verb: checked(verb.id, verb.graph, list(verb.tensors), verb.about, file.tensors))
                self.each(lambda verb=verb: self.look(PlanFile(verb.graph, {}, verb.about)))
            if isinstance(verb, Run | Fold):
                self.each(lambda verb=verb: self.call(message, file, verb))
        for tensor in file.tensors.values():
            self.each(lambda tensor=tensor: from_raw(tensor))
        return message

    def call(self, message: Message, file: File, verb: Run | Fold) -> None:
        """As far as a gate looks at a call before it is handed to a worker; of each plan that is known."""
        args, words = (verb.given, ()) if isinstance(verb, Fold) else (verb.args, tuple(verb.kwargs))
        call = Call(
            "a",
            message.id,
            0,
            verb.plan,
            args,
            verb.results,
            message.seed,
            message.created,
            message.expires,
            words=words,
        )
        call.loop = verb.loop if isinstance(verb, Fold) else None
        sent = [PlanFile(v.graph, {}, v.about) for v in message.actions if isinstance(v, SendPlan)]
        for plan in (*sent[:3], self.plans[message.seed % len(self.plans)]):
            self.each(lambda plan=plan: self.call_of(call, plan, file))

    def call_of(self, call: Call, plan: PlanFile, file: File) -> None:
        verified = verify(plan.graph)
        types = [self.type(file, arg, i, plan.graph) for i, arg in enumerate(call.args)]
        batch.refusal(call, (plan, verified))
        call.argument("0" * 32, plan.about, digits=12)
        self.each(lambda: spec.output_types(plan.graph, types))
        if call.loop is not None:
            fit(plan.graph, call.loop, types, about=plan.about)

    def type(self, file: File, arg: object, i: int, graph: Graph) -> Type:
        if isinstance(arg, Inline):
            return Type(file.tensors[arg.name].dtype, file.tensors[arg.name].shape)
        if isinstance(arg, bool | int | float | str):
            return Type(type(arg).__name__, None, arg)
        return _sized(graph.inputs[i], 3) if i < len(graph.inputs) else Type("f32", (3,))

    def look(self, plan: PlanFile) -> None:
        """What people have of a plan: its ids, its printed form, whether it may run, what it gives."""
        _ = plan.graph.id
        verified = None
        with contextlib.suppress(FedqError):
            verified = verify(plan.graph)
        text = show(plan.graph, plan.about, claims=True)
        assert not any(c in text for c in "\x1b\u202e\x00"), "a printed plan holds what a terminal obeys"
        if verified is not None:
            for size in (0, 1, 2, 7):
                given = [_sized(t, size) for t in plan.graph.inputs]
                self.each(lambda given=given: spec.output_types(plan.graph, given))
            for i, _ in enumerate(plan.graph.inputs):
                spec.place(plan.about, i)

    # -- a requester reads

    def reply(self, file: Hostile) -> object:
        came = fetch._checked(self.device, file.id, file.value, file.raw)
        for name in came.reply.values:
            found = came.outcome("device_1", name)
            if isinstance(found, FedqError):
                str(found), found.hint, json.dumps(dict(found.fields))
        for tensor in came.tensors.values():
            self.each(lambda tensor=tensor: from_raw(tensor))
        return came

    def plan(self, file: Hostile) -> object:
        if not pull._is_signed("plan", memoryview(file.raw), DEVICE.public):
            raise FedqError("not the device's")
        plan = decode_plan(decode(file.raw))
        self.look(plan)
        return plan

    def catalog(self, file: Hostile) -> object:
        self.stands(file)
        catalog = self.device.catalog()
        for entry in catalog.values:
            self.each(lambda entry=entry: look.value(self.device, entry.id))
            for tag in look.tags(entry):
                self.each(lambda tag=tag: look.value(self.device, tag))
        self.each(lambda: look.plan(self.device, "abc"))
        self.each(lambda: look.search(self.device, ["x"]))
        return catalog

    def card(self, file: Hostile) -> object:
        self.stands(file)
        card = self.device.sealed(Card)
        tables.when(self.device.client.now() - 86_400.0 * self.device._keep_days())
        return card

    def heartbeat(self, file: Hostile) -> object:
        self.stands(file)
        beat = self.device.sealed(fetch.Heartbeat)
        fetch.reason(self.device, "0" * 32, "1" * 32)
        self.each(lambda: tables.devices([background._elsewhere(self.device)]))
        self.each(lambda: tables.status([background._elsewhere(self.device)]))
        return beat

    def stands(self, file: Hostile) -> None:
        """A sealed file lies in the pair, and none was read before: else most would be older than another."""
        self.device.pair.carrier.path(f"{file.kind}.json").write_bytes(file.raw)
        self.device.client.outbox._db.execute("DELETE FROM latest")

    def each(self, do: Callable[[], object]) -> None:
        """What may be refused by itself, the rest being read all the same."""
        with contextlib.suppress(FedqError):
            do()


def check(file: Hostile) -> tuple[Message, File]:
    """A device's own check, with what it would know of this file's place and sender."""
    known: dict[str, Any] = {
        "name": f"{file.id}.safetensors", "requester": said("message")["from"], "key": ALICE.public.hex(),
        "to": TO_DEVICE,
    }  # fmt: skip
    wanted = [p for p in inspect.signature(intake.check).parameters if p not in ("raw", "signed")]
    return intake.check(file.raw, **{name: known[name] for name in wanted})


def _whole(body: str, header: str, data: bytes) -> bytes:
    entries = json.loads(header)
    entries["~fedq.sig"] = {"dtype": "U8", "shape": [96], "data_offsets": [len(data), len(data) + 96]}
    head = json.dumps({"__metadata__": {"fedq": body}, **entries}).encode()
    return struct.pack("<Q", len(head)) + head + data + bytes(96)


def _sized(type_: Type, size: int) -> Type:
    """An input's type with every letter the same size."""
    return (
        type_
        if type_.shape is None
        else Type(type_.dtype, tuple(size if isinstance(d, str) else d for d in type_.shape))
    )


# -- running -----------------------------------------------------------------------------------


def read(readers: Readers, files: Iterable[tuple[int, Hostile]], found: Found) -> None:
    """Read files, and note what is wrong."""
    for number, file in files:
        start = time.thread_time()
        try:
            readers.read[file.kind](file)
            outcome = "taken"
        except FedqError as error:
            outcome = error.code
        except Exception as error:
            outcome = "WRONG"
            found.note(f"{file.kind}: {_where(error)}", number)
        took_s = time.thread_time() - start
        found.counts[f"{file.kind} {outcome}"] += 1
        found.slowest = max(found.slowest, (took_s, number))
        if took_s > SLOW_S:
            found.note(f"{file.kind}: it took more than {SLOW_S:g} s", number)


def _where(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"


def fuzz(seed: int, numbers: range, at: Any = None) -> Found:
    """Files of these numbers, in this process; ``at``: where it notes which it is at."""
    logging.disable(logging.CRITICAL)
    found, before = Found(), _peak_bytes()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as root:
        readers = Readers(Path(root))
        for number in numbers:
            if at is not None:
                at.value = number
            read(readers, [(number, hostile(seed, number))], found)
        readers.device.client.close()
    found.memory_bytes = _peak_bytes() - before
    logging.disable(logging.NOTSET)
    return found


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _part(seed: int, numbers: range, at: Any, said: Any) -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MORE_BYTES, taken + MORE_BYTES))
    said.send(fuzz(seed, numbers, at))


def run(files: int, processes: int, seed: int) -> Found:
    """So many files, each process its share; one that stands still or dies is told with the file it was at."""
    context, parts, found = multiprocessing.get_context("spawn"), [], Found()
    for n in range(processes):
        at, (ours, theirs) = context.Value("q", -1, lock=False), context.Pipe(duplex=False)
        process = context.Process(target=_part, args=(seed, range(n, files, processes), at, theirs))
        process.start()
        theirs.close()
        parts.append((process, at, ours))
    for process, at, ours in parts:
        was, since = at.value, time.monotonic()
        while not ours.poll(1):
            if at.value != was:
                was, since = at.value, time.monotonic()
            elif time.monotonic() - since > STILL_S:
                process.kill()
        try:
            found.add(ours.recv())
        except EOFError:
            process.join()
            found.note(f"the process ended with {process.exitcode}, or stood still", at.value)
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Read hostile files by the code of both sides.")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at", type=int, help="only the file of this number")
    given = parser.parse_args()
    if given.at is not None:
        file = hostile(given.seed, given.at)
        print(file.kind, len(file.raw), file.raw[:2000])
        with tempfile.TemporaryDirectory() as root:
            print(Readers(Path(root)).read[file.kind](file))
        return
    start = time.monotonic()
    found = run(given.files, given.processes, given.seed)
    took_s, count = time.monotonic() - start, sum(found.counts.values())
    taken = sum(n for what, n in found.counts.items() if what.endswith(" taken"))
    print(f"{count} files in {took_s:.0f} s, {count / took_s:.0f} a second; {taken} taken, {count - taken} refused")
    print(", ".join(f"{what} {n}" for what, n in sorted(found.counts.items())))
    print(f"slowest {found.slowest[0]:.3f} s (file {found.slowest[1]}), {found.memory_bytes >> 20} MiB more memory")
    for what, (times, first) in found.wrong.items():
        print(f"{times} times {what}; first by --seed {given.seed} --at {first}")
    print(f"{len(found.wrong)} kinds of errors that are no refusal, or of files that take too long")
    sys.exit(bool(found.wrong or count < given.files))


if __name__ == "__main__":
    main()
