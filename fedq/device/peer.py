"""One requester as a device sees it: its messages, calls, gets and drops, and where each stands.

Everything here happens inside a transaction of the journal and changes no file of the share:
what is to follow the commit is left in ``start``, ``publish``, ``inbox.taken``, ``delete``, ``forget``,
``unspool``.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedq import fs, ids
from fedq.device.calls import PATIENCE_S, Call, Ends, Waiting
from fedq.device.drops import DropRow, Drops
from fedq.device.home import Home
from fedq.device.inbox import Inbox
from fedq.device.journal import NOTHING, OWNER, Taken, Value, Wanted
from fedq.device.lanes import Lane
from fedq.device.pool import Died
from fedq.errors import FedqError
from fedq.plan.codec import File, decode
from fedq.plan.file import PlanFile, checked, decode_plan, encode_plan
from fedq.plan.graph import About
from fedq.plan.verify import Verified, verify
from fedq.queue.message import Ack, Cancel, Drop, Failure, Fold, Get, Message, Put, Run, SendPlan

MAX_PLANS = 200
"""Verified plans kept in memory, per requester."""
MAX_FILES = 1000
"""Messages whose tensors are kept in memory, per requester; of the others they are read again."""
STOPPED = "held: the device's daemon ended five times while it ran"
CANCELLED = Failure("cancelled", "cancelled by its sender")


@dataclass(slots=True)
class Want:
    """A ``get`` to be answered: ``missing`` are the values without content, ``given_up`` those given up.

    ``fresh``: it was never answered before.
    """

    wanted: Wanted
    fresh: bool
    missing: set[str]
    received: float
    expires: float
    given_up: dict[str, Failure] = field(default_factory=dict)


class Peer:
    """The state of one requester at one device; rebuilt from the journal at every start."""

    def __init__(self, home: Home, name: str, key: str, poison: set[str]) -> None:
        self.home, self.journal, self.store = home, home.journal, home.store
        self.name, self.key, self.pair = name, key, home.pair(name)
        self.inbox = Inbox(self, home.name, poison)
        self.queue: deque[Call] = deque()
        self.waiting = Waiting()
        self.coming: dict[str, Call] = {}
        self.lanes: list[Lane] = []
        self.stalled = False
        """Whether all calls in the queue need what other workers are making."""
        self.wants: dict[str, Want] = {}
        self._wants_of: dict[str, set[str]] = {}
        self.touched: set[str] = set()
        self.held: dict[str, list[tuple[str, str]]] = {}
        self.drops = Drops(self._undone)
        self._files: dict[str, File] = {}
        self.spooled: set[str] = set()
        self.calls_left: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        self.ends: dict[tuple[str, int], Ends] = {}
        """(message, action) -> what ended while it ran."""
        self.cut: list[Lane] = []
        """Lanes whose workers are to be ended: they do what was cancelled."""
        self.catalog_due = True
        self._plans: dict[str, tuple[PlanFile, Verified]] = {}
        self._due: list[tuple[float, int, Want]] = []
        self._count = itertools.count()
        self._time = 0.0
        self.publish: deque[Want] = deque()
        self.delete: list[str] = []
        self.forget: list[str] = []
        self.unspool: list[str] = []

    # -- a message

    def enter(self, message: Message, file: File, taken: Taken, now: float) -> None:
        """Do a message's immediate actions and queue its calls; again, after a restart, changes nothing."""
        calls: list[Call] = []
        if now > message.expires or message.expires <= self.journal.forgotten(self.name):
            self._enter_expired(message, taken, now)
            return
        for number, verb in enumerate(message.actions):
            match verb:
                case Put():
                    self._put(verb, message, file, now)
                case SendPlan():
                    self._enter_plan(verb, file)
                    self.journal.uses_plan(self.name, verb.id, message.expires)
                case Run() | Fold():
                    calls.append(_call(message, number, verb, taken, self.ends.get((message.id, number))))
                case Get():
                    self.want(Wanted(self.name, verb.reply, message.id, verb.values, "wanted"), taken)
                case Drop():
                    after = [message.id, *verb.after]
                    row_number = self.journal.add_drop(self.name, message.id, verb.values, after)
                    self.drops.add(DropRow(row_number, list(verb.values), after, message.expires))
                case Cancel():
                    self._cancel(verb, message.expires, now)
                case Ack():
                    self._acknowledged(verb)
        self._enter_calls(message, file, calls, now)
        self.drops.passed(message.id)

    def _enter_expired(self, message: Message, taken: Taken, now: float) -> None:
        """It comes too late, or perhaps a second time after it was forgotten: nothing is done but to say so."""
        late = Failure("expired", "the message expired before it could be done")
        for verb in message.actions:
            made = (verb.id,) if isinstance(verb, Put) else verb.results if isinstance(verb, (Run, Fold)) else ()
            self.add([Value(self.name, id_, None, NOTHING, "open", None, late) for id_ in made], message.id, now)
            if isinstance(verb, Get):
                self.want(Wanted(self.name, verb.reply, message.id, verb.values, "wanted"), taken)
        self._finished(message.id)

    @property
    def running(self) -> list[Call]:
        """Calls that workers do now."""
        return [call for lane in self.lanes for call in lane.calls]

    @property
    def room(self) -> int:
        """How many more messages may wait here; further files stay where they are for now."""
        return max(0, self.home.most_waiting - max(len(self.calls_left), len(self.wants)))

    @property
    def untidy(self) -> bool:
        """Whether there is something to drop or to delete."""
        return bool(self.drops.due or self.inbox.taken or self.delete or self.forget or self.unspool)

    def _put(self, verb: Put, message: Message, file: File, now: float) -> None:
        if not self.journal.exists(self.name, verb.id):
            row = self.store.keep(self.name, verb.id, file.tensors[verb.tensor], release="open", tag=verb.tag)
            self.add([row], message.id, now)
            if verb.note:
                self.journal.annotate(self.name, verb.id, verb.note)
            self.catalog_due |= verb.tag is not None

    def _acknowledged(self, verb: Ack) -> None:
        self.journal.set_reply([(self.name, r) for r in verb.replies], "acked")
        self.delete += verb.replies
        for want in [self.wants.pop(r) for r in verb.replies if r in self.wants]:
            self.drops.closed(want.wanted.ids)

    def _enter_calls(self, message: Message, file: File, calls: list[Call], now: float) -> None:
        made = self.journal.standing(self.name, [r for c in calls for r in c.results])
        calls = [c for c in calls if not made.issuperset(c.results)]
        if not calls:
            self._finished(message.id)
            return
        if file.tensors and len(self._files) < MAX_FILES:
            self._files[message.id] = file
        self.calls_left[message.id] = len(calls)
        for plan in {c.plan for c in calls}:
            self.journal.uses_plan(self.name, plan, message.expires)
        cancelled = self.journal.cancelled(self.name, message.id)
        there = self._there({r for call in calls for r in call.refs})
        for call in calls:
            if cancelled:
                self.fail(call, CANCELLED, now)
            else:
                self._enter_call(call, there, now)

    def _there(self, refs: set[str]) -> set[str]:
        """Those of the ids that stand, this requester's or the owner's."""
        owners = self.journal.standing(OWNER, refs)
        return self.journal.standing(self.name, refs) | {i for i in owners if self.journal.may_see(self.name, i)}

    def file(self, message: str) -> File:
        """The file of a message that is not done: its tensors."""
        found = self._files.get(message)
        if found is None:
            taken = self.journal.message(self.name, message)
            raw = taken.file if taken else None
            found = decode(raw or fs.map_private(self.home.spool(self.name) / message))
            self._files[message] = found
        return found

    def _enter_plan(self, verb: SendPlan, file: File) -> None:
        if self.journal.plan(self.name, verb.id) is not None:
            return
        name = verb.about.name or "plan"
        try:
            plan = checked(verb.id, verb.graph, list(verb.tensors), verb.about, file.tensors)
            self._plans[verb.id] = (plan, verify(plan.graph))
            self.journal.add_plan(self.name, verb.id, name, b"".join(encode_plan(plan, self.home.key)), None)
            self.catalog_due = True
        except FedqError as error:
            self.journal.add_plan(self.name, verb.id, name, None, _refusal(error, verb))
        self._told(verb.id)
        self._arrived(verb.id)

    def plan(self, id_: str) -> tuple[PlanFile, Verified] | Failure | None:
        """A plan, ready to run; a Failure if it was refused; None if it never came."""
        if id_ not in self._plans:
            found = self.journal.plan(self.name, id_)
            if found is None or found[0] is None:
                return found and found[1]
            plan = decode_plan(decode(found[0]))
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[id_] = (plan, verify(plan.graph))
        return self._plans[id_]

    def told(self, call: Call, id_: str, *, digits: int = 32) -> str:
        """What a call's argument is called, for people."""
        plan = self.plan(call.plan)
        return call.argument(id_, plan[0].about if isinstance(plan, tuple) else About(), digits=digits)

    def _cancel(self, verb: Cancel, expires: float, now: float) -> None:
        """Calls of these messages that are not done are not done any more; the lanes that are at one are to be cut.

        A carrier may deliver a message after its cancellation: that is kept till it expires.
        """
        unseen = [m for m in verb.messages if self.journal.seen(self.name, m) is None]
        self.journal.cancel(self.name, unseen, expires)
        messages = self.calls_left.keys() & verb.messages
        if not messages:
            return
        calls = self.waiting.take_out(lambda c: c.message in messages)
        calls += [c for c in self.queue if c.message in messages]
        self.queue = deque(c for c in self.queue if c.message not in messages)
        for lane in self.lanes:
            running = [c for c in lane.calls if c.message in messages]
            if running:
                self.cut.append(lane)
                calls += running
                lane.calls = [c for c in lane.calls if c.message not in messages]
        for call in calls:
            self.fail(call, CANCELLED, now)

    # -- calls

    def _enter_call(self, call: Call, there: set[str], now: float) -> None:
        """Put a call in the queue, or let it wait for what it misses; ``there``: what stood before its message."""
        if now > call.expires:
            self.fail(call, Failure("expired", "the message expired before it could be done"), now)
            return
        call.missing = {r for r in call.refs if r not in there and not self._will_be(r)}
        if call.plan not in self._plans and self.journal.plan(self.name, call.plan) is None:
            call.missing.add(call.plan)
        if call.held:
            call.missing.add(call.word)
        if not call.missing:
            self._enqueue(call)
        elif not self.waiting.add(call):
            missing = min(call.missing - {call.word})
            text = f"{self.told(call, missing)} is the result of the call itself, directly or around"
            self.fail(call, Failure("missing_value", text, {"id": missing}), now)

    def _enqueue(self, call: Call) -> None:
        """Queue a call, and those that only waited for its results, and for theirs."""
        ready, self.stalled = [call], False
        for call in ready:  # grows
            self.queue.append(call)
            for result in call.results:
                self.coming[result] = call
                ready += self.waiting.arrived(result)

    def _arrived(self, id_: str) -> None:
        """Calls that waited for this may be queued now."""
        for call in self.waiting.arrived(id_):
            self._enqueue(call)

    def _will_be(self, id_: str) -> bool:
        """Whether it has a content, will have one, or had one: what was dropped is not waited for."""
        return id_ in self.coming or self._stood(id_)

    def _stood(self, id_: str) -> bool:
        if ids.is_plan_id(id_):
            return self.journal.plan(self.name, id_) is not None
        seen = self.journal.may_see(self.name, id_)
        return self.journal.exists(self.name, id_) or (seen and self.journal.exists(OWNER, id_))

    def value(self, id_: str) -> Value | None:
        """What the requester means by an id: its own value, else the owner's, if it may know of it."""
        own = self.journal.value(self.name, id_)
        return own or (self.journal.value(OWNER, id_) if self.journal.may_see(self.name, id_) else None)

    def add(self, values: Sequence[Value], message: str, now: float) -> None:
        """Record contents, and tell those who wait for them."""
        self.journal.add(values, message=message, now=now)
        self.stalled = False
        for value in values:
            self.coming.pop(value.id, None)
            self._told(value.id)
            self._arrived(value.id)

    def _told(self, id_: str) -> None:
        """Gets that waited for this may be answered."""
        for reply in self._wants_of.pop(id_, ()):
            if reply in self.wants:
                self.wants[reply].missing.discard(id_)
                self.touched.add(reply)

    def done(self, call: Call, values: Sequence[Value], now: float) -> None:
        """Give a call's results their contents."""
        self.add(values, call.message, now)
        if self.ends.pop((call.message, call.action), None) is not None:
            self.journal.forget_ends(self.name, call.message, call.action)
        left = self.calls_left[call.message] = self.calls_left.get(call.message, 1) - 1
        if left <= 0:
            self._finished(call.message)

    def _finished(self, message: str) -> None:
        self.calls_left.pop(message, None)
        self._files.pop(message, None)
        self.drops.passed(message)
        self.journal.done([(self.name, message)])
        for key in [key for key in self.ends if key[0] == message] if self.ends else ():
            self.journal.forget_ends(self.name, *key)
            del self.ends[key]
        if message in self.spooled:
            self.spooled.discard(message)
            self.unspool.append(message)

    def fail(self, call: Call, failure: Failure, now: float) -> None:
        """Give a call's results this failure as their content."""
        self.done(call, [Value(self.name, r, None, NOTHING, "open", None, failure) for r in call.results], now)

    # -- gets

    def want(self, wanted: Wanted, taken: Taken) -> None:
        """Enter a get, or enter it again to have its reply published again."""
        fresh = self.journal.want(wanted)
        others = [i for i in wanted.ids if i not in self.coming]
        self.journal.look_up(self.name, others)
        self.journal.look_up(OWNER, others)
        missing = {i for i in wanted.ids if i in self.coming or not self._stood(i)}
        if wanted.id not in self.wants:
            self.drops.opened(wanted.ids)
        want = self.wants[wanted.id] = Want(wanted, fresh, missing, taken.received, taken.expires)
        if missing:
            self._look_at(want, min(want.expires, want.received + PATIENCE_S))
        for id_ in missing:
            self._wants_of.setdefault(id_, set()).add(wanted.id)
        self.touched.add(wanted.id)

    def settle(self) -> None:
        """Answer or hold the gets whose values are all there."""
        touched, self.touched = self.touched, set()
        for reply in touched:
            want = self.wants.get(reply)
            if want is None or want.missing - want.given_up.keys():
                continue
            ids_ = [i for i in want.wanted.ids if i not in want.given_up]
            held = [(i, v.release) for i in ids_ if (v := self.value(i)) and self._holds(v)]
            if not held:
                self.held.pop(reply, None)
                self.publish.append(self.wants.pop(reply))
            elif self.held.get(reply) != held:
                self.held[reply] = held
                self._look_at(want, want.expires)
                self.journal.set_reply([(self.name, reply)], "held")

    def _holds(self, value: Value) -> bool:
        """Whether the owner must still say a word before this value leaves."""
        return value.failure is None and value.release != "open" and not self.journal.verdict(self.name, value.id)

    def out(self, want: Want) -> None:
        """A reply was published."""
        self.drops.closed(want.wanted.ids)

    def give_up(self, now: float) -> None:
        """Answer what waited too long, naming what never came."""
        self._keep_time(now)
        for call in self.waiting.take_late(now):
            self.fail(call, self._never(call), now)
        while self._due and self._due[0][0] < now:
            want = heapq.heappop(self._due)[2]
            if self.wants.get(want.wanted.id) is want and (want.missing or want.wanted.id in self.held):
                self._give_up(want, now)

    def _never(self, call: Call) -> Failure:
        """What a call that waited too long waited for."""
        if call.held:
            return Failure("expired", f"{STOPPED}, and its owner said nothing before the message expired")
        missing = min(call.missing)
        if not ids.is_id(missing):
            return Failure("unknown_plan", f"plan {missing[:32]} never came", {"id": missing})
        return Failure("missing_value", f"{self.told(call, missing)} never came", {"id": missing})

    def _give_up(self, want: Want, now: float) -> None:
        if (
            want.missing
            and now <= want.expires
            and all(self._will_be(i) or self.waiting.makes(i) for i in want.missing)
        ):
            self._look_at(want, want.expires)
            return
        if want.missing:
            want.given_up = {i: Failure("missing_value", f"{i} never came", {"id": i}) for i in want.missing}
        else:
            late = Failure("expired", "its owner said nothing before the request expired")
            want.given_up = {i: late for i, _ in self.held[want.wanted.id]}
        self.touched.add(want.wanted.id)

    def _look_at(self, want: Want, time: float) -> None:
        heapq.heappush(self._due, (time, next(self._count), want))

    def _keep_time(self, now: float) -> None:
        """A clock that was set back starts the waiting anew: it would last for years."""
        if now < self._time:
            self.waiting.set_back(now)
            for want in self.wants.values():
                want.received = min(want.received, now)
                self._look_at(want, min(want.expires, want.received + PATIENCE_S))
        self._time = now

    def late(self, now: float) -> bool:
        """Whether there is something to give up, or a drop to be done."""
        self._keep_time(now)
        return self.waiting.late(now) or bool(self._due and self._due[0][0] < now) or self.drops.ready(now)

    # -- drops

    def _undone(self, message: str, patient: bool) -> bool:
        return message in self.calls_left or (patient and self.journal.seen(self.name, message) is None)

    def drop(self, now: float) -> None:
        """Do the drops whose turn has come."""
        for drop in self.drops.take_ready(now):
            self.journal.look_up(self.name, drop.values)
            there = [value for id_ in drop.values if (value := self.journal.value(self.name, id_))]
            self.journal.drop(self.name, drop.values)
            self.journal.dropped(drop.row)
            self.let_go(drop.values, files=[value.id for value in there if value.in_file])

    def let_go(self, values: Sequence[str], *, files: Sequence[str]) -> None:
        """The contents of these are not needed any more; some have files."""
        self.forget += files
        for lane in self.lanes:
            lane.dropped += values

    def was_dropped(self, values: Iterable[str]) -> bool:
        return any(ids.is_id(i) and self._stood(i) and self.value(i) is None for i in values)

    def calls(self) -> Iterator[Call]:
        """Calls that are not done."""
        return itertools.chain(self.queue, self.running, self.waiting.calls())

    def needed(self) -> Iterator[str]:
        """Values that are still to be read."""
        yield from (ref for call in self.calls() for ref in call.refs)
        yield from (id_ for want in (*self.wants.values(), *self.publish) for id_ in want.wanted.ids)

    # -- what ends its workers

    def blame(self, call: Call, died: Died, now: float) -> None:
        """A worker ended in the middle of it."""
        ends = call.ends
        ends.workers, ends.time, ends.why = ends.workers + 1, now, died.why
        ends.kind = f"{died.kind} {died.signal}".strip()
        self.ends[call.message, call.action] = ends
        self.journal.set_ends(self.name, call.message, call.action, ends)

    def stopped(self) -> list[Call]:
        """Calls that are held because the gate ended too often while they ran."""
        return [c for c in self.waiting.calls() if c.held] if self.ends else []

    def resume(self) -> None:
        """Take up those of them that the owner lets go on."""
        held = {key[1:] for key in self.journal.stopped() if key[0] == self.name} if self.stopped() else set()
        for call in self.stopped():
            if (call.message, call.action) not in held:
                call.ends.gates = 0
                self._arrived(call.word)

    def give_up_on(self, call: Call, failure: Failure, now: float) -> None:
        """Answer a call that was started too often, and keep its message for the owner to look at."""
        taken = self.journal.message(self.name, call.message)
        if taken is not None:
            raw = taken.file or fs.map_private(self.home.spool(self.name) / call.message)
            folder = self.home.failed(self.name)
            fs.make_dir(folder)
            fs.replace(folder / f"{call.message}.safetensors", [raw], durable=self.home.durable)
            self.journal.add_failed(self.name, call.message, now, f"action {call.action}: {call.ends.why}")
        self.fail(call, failure, now)


def _call(message: Message, number: int, verb: Run | Fold, taken: Taken, ends: Ends | None) -> Call:
    args, loop = (verb.given, verb.loop) if isinstance(verb, Fold) else (verb.args, None)
    head = (message.sender, message.id, number, verb.plan, args, verb.results, message.seed)
    words = tuple(verb.kwargs) if isinstance(verb, Run) else ()
    return Call(*head, taken.received, message.expires, ends or Ends(), loop=loop, words=words)


def _refusal(error: FedqError, verb: SendPlan) -> Failure:
    """What a refused plan's runs answer: the check that said no, the action and its line."""
    action, facts = error.fields.get("action"), _facts(error.fields)
    line = verb.about.line(action) if isinstance(action, int) else ""
    if line:
        facts["line"] = line
    if error.hint:
        facts["hint"] = error.hint
    return Failure(error.code, f"plan {verb.about.name or 'plan'!r}: {error}{f' ({line})' if line else ''}", facts)


def _facts(fields: Any) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if k in ("action", "op", "input") and type(v) in (int, str)}


def running(calls: Iterable[Call], most: int) -> tuple[str, ...]:
    """The messages of these calls, each once; at most so many."""
    return tuple(dict.fromkeys(c.message for c in itertools.islice(calls, 2 * most)))[:most]
