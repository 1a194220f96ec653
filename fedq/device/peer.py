"""One requester as a device sees it: its messages, calls, gets and drops, and where each stands.

Everything here happens inside a transaction of the journal and changes no file of the share:
what is to follow the commit is left in ``start``, ``publish``, ``inbox.taken``, ``delete``, ``forget``,
``unspool``.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedq import fs, ids
from fedq.device import batch as batches
from fedq.device.calls import PATIENCE_S, Call, Ends, Waiting
from fedq.device.drops import DropRow, Drops
from fedq.device.expected import Expected
from fedq.device.home import Home, Requester
from fedq.device.inbox import Inbox
from fedq.device.journal import OWNER, VALUE_BYTES, Taken, Value, Wanted, failed
from fedq.device.lanes import Lane
from fedq.device.pool import Died
from fedq.device.questions import CANCELLED, Questions
from fedq.device.room import Room, content_bytes, size
from fedq.errors import BadFile, FedqError, Quota
from fedq.plan.codec import File, decode
from fedq.plan.file import PlanFile, checked, decode_plan, encode_plan
from fedq.plan.graph import About
from fedq.plan.verify import Verified, verify
from fedq.queue.message import Ack, Cancel, Drop, Failure, Fold, Get, Message, Put, Run, SendPlan
from fedq.trust import policy

log = logging.getLogger("fedq.device")

MAX_PLANS = 200
"""Verified plans kept in memory, per requester."""
MAX_FILES = 1000
"""Messages whose tensors are kept in memory, per requester; of the others they are read again."""
LATE = Failure("expired", "the message expired before it could be done")
FENCED = Failure(
    "expired", "it was sent before this device was restored from a backup, and may have been done: send it anew"
)
_NONE = Failure("", "")
NO_SOURCES = frozenset[str]()
STOPPED = "held: the device's daemon ended five times while it ran"


@dataclass(slots=True)
class Want:
    """A ``get`` to be answered: ``missing`` are the values without content, ``given_up`` those given up.

    ``fresh``: it was never answered before; ``word``: what the owner said, if it was asked; ``told``: whether it
    was said that its place in ``out/`` cannot be had; ``sizes``: bytes of what leaves, once that is decided;
    ``unsure``: values that may come to be private.
    """

    wanted: Wanted
    fresh: bool
    missing: set[str]
    received: float
    expires: float
    given_up: dict[str, Failure] = field(default_factory=dict)
    word: str = ""
    told: bool = False
    sizes: dict[str, int | None] | None = None
    unsure: Sequence[str] = ()


class Peer:
    """The state of one requester at one device; rebuilt from the journal at every start."""

    def __init__(self, home: Home, name: str, key: str, poison: set[str]) -> None:
        self.home, self.journal, self.store = home, home.journal, home.store
        self.name, self.key, self.pair, self.address = name, key, home.pair(name), home.to(Requester(name, key))
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
        self.drops = Drops(self._undone)
        self._files: dict[str, File] = {}
        self.sizes: dict[str, int] = {}
        """Bytes of messages that are being entered."""
        self.spooled: set[str] = set()
        self.calls_left: dict[str, int] = {}
        self.quota = Room(home, name)
        self.expects = Expected(self)
        self.trouble = self.trouble_told = ""
        self.full = False
        """Whether messages stay in ``in/`` because as many wait as there may."""
        """What is wrong with its folder: the code of an error."""
        self.rests_until = 0.0
        """Till when nothing is tried there; 0: nothing is wrong."""
        self.ends: dict[tuple[str, int], Ends] = {}
        """(message, action) -> what ended while it ran."""
        self.cut: list[Lane] = []
        """Lanes whose workers are to be ended: they do what was cancelled."""
        self.catalog_due = True
        self.leaving = False
        """Whether it is not trusted any more: what was decided is told, nothing else is done."""
        self.unseen = False
        """Whether the owner may have said or changed something since the last look."""
        self._plans: dict[str, tuple[PlanFile, Verified]] = {}
        self._due: list[tuple[float, int, Want]] = []
        self._count = itertools.count()
        self._time = 0.0
        self.publish: deque[Want] = deque()
        self.marks: dict[str, tuple[int, ...] | None] = {}
        """Replies that this process put or looked at, as their files were then."""
        self.roomless: dict[str, Want] = {}
        """Replies that are decided and wait for room."""
        self.blocked: dict[str, Want] = {}
        """Replies that are decided and whose place in ``out/`` cannot be had for now."""
        self._unreserved: list[Want] = []
        """Gets that have no room reserved yet: what they ask for may be promised later in their message."""
        self.shares_due: set[str] = set()
        """Replies whose room is to be recorded."""
        self.delete: list[str] = []
        self.forget: list[str] = []
        self.unspool: list[str] = []
        self.versions_due = True
        """Whether a question ended that may have kept a value that was replaced."""
        self.forget_versions: list[str] = []
        """Owner's values whose bytes nothing needs any more."""
        self.questions = Questions(self)

    # -- a message

    def enter(self, message: Message, file: File, taken: Taken, now: float, *, again: bool = False) -> None:
        """Do a message's immediate actions and queue its calls; again, after a restart, changes nothing."""
        calls: list[Call] = []
        self._keep_time(now)
        if taken.received > message.expires or not (again or message.expires > self.journal.forgotten(self.name)):
            self.refuse(message, taken, LATE, now)
            return
        if not again and self.journal.fenced(self.name, message.id, message.created):
            self.refuse(message, taken, FENCED, now)
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
                    if not (again and self._is_answered(verb.reply)):
                        self.want(_wanted(message, verb), taken)
                case Drop() | Cancel() | Ack():
                    self._let_go_of(verb, message, now)
        self._enter_calls(message, file, calls, now)
        self.drops.passed(message.id)

    def _let_go_of(self, verb: Drop | Cancel | Ack, message: Message, now: float) -> None:
        match verb:
            case Drop():
                after = [message.id, *verb.after]
                row_number = self.journal.add_drop(self.name, message.id, verb.values, after)
                self.drops.add(DropRow(row_number, list(verb.values), after, message.expires))
            case Cancel():
                self._cancel(verb, message.expires, now)
            case Ack():
                self._acknowledged(verb)

    def refuse(self, message: Message, taken: Taken, why: Failure, now: float) -> None:
        """Nothing of it is done but to say so: it comes too late, perhaps a second time after it was forgotten, or
        there is no room for it. What it lets go of is let go of, but of one that came too late."""
        for verb in message.actions:
            made = (verb.id,) if isinstance(verb, Put) else verb.results if isinstance(verb, (Run, Fold)) else ()
            self.add([failed(self.name, id_, why) for id_ in made if not self._is_promised(id_)], message.id, now)
            if isinstance(verb, Get):
                self.want(_wanted(message, verb), taken)
            if isinstance(verb, Drop | Cancel | Ack) and why not in (LATE, FENCED):
                self._let_go_of(verb, message, now)
            if isinstance(verb, SendPlan) and why not in (LATE, FENCED):
                self._refuse_plan(verb, why)
        self._finished(message.id)

    @property
    def running(self) -> list[Call]:
        """Calls that workers do now; not those that an owner said a word for."""
        return [call for lane in self.lanes if not lane.sources for call in lane.calls]

    @property
    def room(self) -> int:
        """How many more messages may wait here; further files stay where they are for now."""
        messages = len(self.calls_left) - len(self.questions.messages)
        return max(0, self.home.limits.messages - max(messages, len(self.wants) - len(self.questions.open)))

    @property
    def untidy(self) -> bool:
        """Whether there is something to drop or to delete."""
        files = self.inbox.taken or self.delete or self.forget or self.unspool or self.forget_versions
        return bool(self.drops.due or files or self.versions_due)

    def _is_answered(self, reply: str) -> bool:
        """Whether a reply is out, or its requester has it: a restart does not make it again."""
        known = self.journal.reply(self.name, reply)
        return known is not None and known.state in ("published", "acked")

    def _put(self, verb: Put, message: Message, file: File, now: float) -> None:
        if not self.journal.exists(self.name, verb.id) and not self._is_promised(verb.id):
            raw = file.tensors[verb.tensor]
            if (lacks := self.quota.lacks(VALUE_BYTES + raw.size_bytes)) is not None:
                self.add([failed(self.name, verb.id, lacks)], message.id, now)
                return
            row = self.store.keep(self.name, verb.id, raw, tag=verb.tag)
            self.add([row], message.id, now)
            if verb.note:
                self.journal.annotate(self.name, verb.id, verb.note)
            self.catalog_due |= verb.tag is not None

    def _acknowledged(self, verb: Ack) -> None:
        for question in [self.questions.open[r] for r in verb.replies if r in self.questions.open]:
            self.questions.withdraw(question, CANCELLED)
        self.journal.set_reply([(self.name, r) for r in verb.replies], "acked")
        self.delete += verb.replies
        for waiting in (self.wants, self.roomless, self.blocked):
            for want in [waiting.pop(r) for r in verb.replies if r in waiting]:
                self.drops.closed(want.wanted.ids)
        self.free(verb.replies)

    def free(self, replies: Iterable[str]) -> None:
        """These replies take no room any more: others may have it."""
        for reply in replies:
            self.quota.free(reply)
            self.marks.pop(reply, None)
        self.journal.free_shares([(self.name, reply) for reply in replies])
        self.try_again()

    def try_again(self) -> None:
        """There may be room now for what waits for it, and a place for what has none."""
        self.publish.extend(self.blocked.values())
        self.blocked.clear()
        self.publish.extend(self.roomless.values())
        self.roomless.clear()

    def _enter_calls(self, message: Message, file: File, calls: list[Call], now: float) -> None:
        made = self.journal.standing(self.name, [r for c in calls for r in c.results])
        ran = [c for c in calls if made.issuperset(c.results) and c.key in self.questions.kept]
        calls = [c for c in calls if not made.issuperset(c.results)]
        if not calls and not ran:
            self._finished(message.id)
            return
        if file.tensors and len(self._files) < MAX_FILES:
            self._files[message.id] = file
        self.calls_left[message.id] = len(calls) + len(ran)
        self.quota.holds(message.id, self.sizes.pop(message.id, 0))
        for call in ran:
            call.sources = self.sources_of(call)
            self.questions.refusal(call)  # finds the types it declares, as before it ran
            self.questions.add(call, ran=True)
        for plan in {c.plan for c in calls}:
            self.journal.uses_plan(self.name, plan, message.expires)
        cancelled = self.journal.cancelled(self.name, message.id)
        there = self._there({i for call in calls for i in (*call.refs, *call.results)})
        known: set[str] = set()
        for call in calls:
            self._enter_call(call, there, now, cancelled=cancelled, known=known)

    def _there(self, refs: set[str]) -> set[str]:
        """Those of the ids that stand, of this requester's own."""
        return self.journal.standing(self.name, refs)

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
        if not self._is_new(verb.id):
            return
        try:
            plan = checked(verb.id, verb.graph, list(verb.tensors), verb.about, file.tensors)
            verified, raw = verify(plan.graph), b"".join(encode_plan(plan, self.home.key))
            if (lacks := self.quota.lacks_plan(len(raw))) is None:
                self._plans[verb.id] = (plan, verified)
                self.journal.add_plan(self.name, verb.id, verb.about.name or "plan", raw, None)
                self.quota.keeps_plan(len(raw))
                self.catalog_due = True
        except FedqError as error:
            lacks = self.quota.lacks_plan(0) or _refusal(error, verb)
        if lacks is not None:
            self._refuse_plan(verb, lacks)
        self._told(verb.id)
        self._arrived(verb.id)

    def _is_new(self, plan: str) -> bool:
        """Whether a plan never came, or came when there was no room for it."""
        known = self.journal.plan(self.name, plan)
        if known is not None and known[1] is not None and known[1].code == Quota.code:
            self.journal.forget_plan(self.name, plan)
            self.quota.stale = True
            return True
        return known is None

    def _refuse_plan(self, verb: SendPlan, why: Failure) -> None:
        """Record why a plan is none; not of one that came before."""
        if self.journal.plan(self.name, verb.id) is None:
            if why.code == Quota.code:
                why = replace(why, fields={**why.fields, "plan": verb.id})
            self.journal.add_plan(self.name, verb.id, verb.about.name or "plan", None, why)
            self.quota.keeps_plan(0)

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
        self.questions.cancel(verb.messages, CANCELLED)
        messages = self.calls_left.keys() & verb.messages
        if not messages:
            return
        calls = self.waiting.take_out(lambda c: c.message in messages)
        calls += [c for c in self.queue if c.message in messages]
        self.queue = deque(c for c in self.queue if c.message not in messages)
        calls += [call for lane in self.lanes for call in self._take_back(lane, lambda c: c.message in messages)]
        private = [c for c in self.questions.calls() if c.message in messages]
        for call in calls:
            if call.key not in {c.key for c in private}:
                self.fail(call, CANCELLED, now)
        for call in private:
            self.over(call, CANCELLED)

    def _take_back(self, lane: Lane, wanted: Callable[[Call], bool]) -> list[Call]:
        """The calls that a lane is at and for which this holds: it is cut."""
        taken = [c for c in lane.calls if wanted(c)]
        if taken:
            self.cut.append(lane)
            lane.calls = [c for c in lane.calls if not wanted(c)]
        return taken

    @property
    def now(self) -> float:
        """The time of the step that is under way."""
        return self._time

    def put_back(self, lane: Lane, calls: Sequence[Call]) -> None:
        """A lane ended with these: they are to be done by another, in their order."""
        (self.questions.queue if lane.sources else self.queue).extendleft(reversed(calls))

    def call_back(self, call: Call) -> None:
        """A private call is not to be done any more, for now."""
        call.word = ""
        for result in call.results:
            self.coming.pop(result, None)
        if call in self.questions.queue:
            self.questions.queue.remove(call)
        for lane in self.lanes:
            self._take_back(lane, lambda c: c is call)

    def over(self, call: Call, failure: Failure | None) -> None:
        """A private call is done; if its outcome is not to be had, its results have a failure instead."""
        if not self.questions.leave(call):
            return
        self.call_back(call)
        stand = self.journal.standing(self.name, call.results)
        if failure is not None and stand and not self._leave(call.results):
            files = [v.id for r in call.results if (v := self.journal.value(self.name, r)) and v.in_file]
            self.journal.spoil([(self.name, r) for r in call.results], failure)
            self.let_go(call.results, files=files)
            for result in call.results:
                self._fail_readers(result, failure)
        elif failure is not None and not stand:
            self.add([failed(self.name, r, failure) for r in call.results], call.message, self._time)
        self._left(call)

    def _leave(self, values: Iterable[str]) -> bool:
        """Whether one of these may leave in a reply that is not out yet."""
        decided = self.publish, self.roomless.values(), self.blocked.values()
        allowed = itertools.chain(*decided, (w for w in self.wants.values() if w.wanted.allowed is not None))
        leaving = {id_ for want in allowed for id_ in want.wanted.ids}
        return not leaving.isdisjoint(values)

    # -- calls

    def _enter_call(self, call: Call, there: set[str], now: float, *, known: set[str], cancelled: bool = False) -> None:
        """Put a call in the queue, or let it wait for what it misses.

        Args:
            there: what stood before its message. known: owner's values that were found to be there; grows.
        """
        taken = {r for r in call.results if r in there or self._is_promised(r)}
        if taken:
            text = f"result {min(taken)} was promised before: an id has one meaning"
            free = [r for r in call.results if r not in taken]
            self.done(call, [failed(self.name, r, Failure("conflict", text)) for r in free], now)
            return
        if cancelled:
            self.fail(call, CANCELLED, now)
            return
        if now > call.expires and call.key not in self.questions.kept:
            self.fail(call, Failure("expired", "the message expired before it could be done"), now)
            return
        for id_ in [id_ for id_ in call.owners if id_ not in known]:
            if not (failure := self.owners_failure(id_)).code:
                known.add(id_)
            elif not self._is_kept_for(call, id_):
                self.fail(call, failure, now)
                return
        call.missing = {r for r in call.refs if r not in there and not self._will_be(r)}
        if call.plan not in self._plans and self.journal.plan(self.name, call.plan) is None:
            call.missing.add(call.plan)
        if call.held and self.journal.are_open(self.sources_of(call)):
            call.missing.add(call.hold)
        if not call.missing:
            self._enqueue(call)
        elif not self.waiting.add(call):
            missing = min(call.missing - {call.hold})
            text = f"{self.told(call, missing)} is the result of the call itself, directly or around"
            self.fail(call, Failure("missing_value", text, {"id": missing}), now)

    def _is_kept_for(self, call: Call, id_: str) -> bool:
        """Whether an owner's value that was replaced stays for a question that needs this call; it may have none."""
        return call.key in self.questions.kept and self.owners_version(id_) is not None

    def _enqueue(self, call: Call) -> None:
        """Queue a call, and those that only waited for its results, and for theirs."""
        ready, self.stalled = [call], False
        for call in ready:  # grows
            call.sources = self.sources_of(call) if call.refs else frozenset(call.owners)
            if not self.journal.are_open(call.sources):
                self._sleep(call)
            else:
                self.queue.append(call)
                self.coming.update(dict.fromkeys(call.results, call))
            for result in call.results:
                ready += self.waiting.arrived(result)
                self.touched |= self._wants_of.get(result, set())

    def _sleep(self, call: Call) -> None:
        """A call on values that are not open waits for its owner's word, unless public facts refuse it."""
        failure = self.questions.refusal(call) or self._failed_argument(call)
        if failure is not None:
            self.fail(call, failure, self._time)
        else:
            self.questions.add(call)

    def _failed_argument(self, call: Call) -> Failure | None:
        values = ((ref, self.journal.value(self.name, ref)) for ref in call.refs)
        found = ((ref, v.failure) for ref, v in values if v is not None and v.failure and not v.sources)
        return next((batches.inherited(self, call, failure, ref) for ref, failure in found), None)

    def private_sources(self, call: Call) -> frozenset[str]:
        """The owner's values that are not open among what a call's arguments come from: its worker sees no others."""
        if self.journal.are_open(call.sources):
            return NO_SOURCES
        rules = self.journal.rules(call.sources)
        return frozenset(id_ for id_, rule in zip(call.sources, rules, strict=True) if not policy.is_open([rule]))

    def sources_of(self, call: Call) -> frozenset[str]:
        """The owner's values that a call's arguments come from."""
        sources = set(call.owners)
        for ref in call.refs:
            maker = self.coming.get(ref) or self.questions.asleep.get(ref)
            value = self.journal.value(self.name, ref)
            sources |= value.sources if value else maker.sources if maker else set()
        return frozenset(sources)

    def _arrived(self, id_: str) -> None:
        """Calls that waited for this may be queued now."""
        for call in self.waiting.arrived(id_):
            self._enqueue(call)

    def _will_be(self, id_: str) -> bool:
        """Whether it has a content, will have one, or had one: what was dropped is not waited for."""
        return id_ in self.coming or id_ in self.questions.asleep or self._stood(id_)

    def _is_promised(self, id_: str) -> bool:
        """Whether a call that is not done gives this."""
        return id_ in self.coming or id_ in self.questions.asleep or self.waiting.makes(id_)

    def _stood(self, id_: str) -> bool:
        if ids.is_plan_id(id_):
            return self.journal.plan(self.name, id_) is not None
        return self.journal.exists(self.name, id_)

    def owners_value(self, id_: str) -> Value | None:
        """An owner's value, if this requester may know of it and it is not gone."""
        return self.journal.value(OWNER, id_) if self.journal.may_see(self.name, id_) else None

    def owners_failure(self, id_: str) -> Failure:
        """Why there is no such value of the owner's, that this requester may know of; without a code if there is."""
        if self.owners_value(id_) is not None:
            return _NONE
        gone = self.journal.gone(id_) if self.journal.may_see(self.name, id_) else ""
        if gone == "removed":
            return Failure("removed", f"argument {id_[:12]}: its owner removed it", {"id": id_})
        if gone:
            text = f"argument {id_[:12]}: its owner put another value in its place"
            return Failure("replaced", text, {"id": gone})
        return Failure("unknown_value", f"argument {id_[:12]}: the owner has no such value", {"id": id_})

    def add(self, values: Sequence[Value], message: str, now: float) -> None:
        """Record contents, and tell those who wait for them."""
        fresh = self.journal.add(values, message=message, now=now)
        self.quota.stores(sum([size(v) for v in fresh if self._is_open(v)]))
        self.stalled = False
        for value in values:
            self.coming.pop(value.id, None)
            self._told(value.id)
            self._arrived(value.id)
            if value.failure is not None and not value.sources:
                self._fail_readers(value.id, value.failure)

    def _is_open(self, value: Value) -> bool:
        return not value.sources or self.journal.are_open(value.sources)

    def _fail_readers(self, id_: str, failure: Failure) -> None:
        """Private calls that read what failed for all to see fail with it."""
        for call in self.questions.failed(id_):
            self.over(call, batches.inherited(self, call, failure, id_))

    def _told(self, id_: str) -> None:
        """Gets that waited for this may be answered."""
        for reply in self._wants_of.pop(id_, ()):
            if reply in self.wants:
                self.wants[reply].missing.discard(id_)
                self.touched.add(reply)

    def done(self, call: Call, values: Sequence[Value], now: float) -> None:
        """Give a call's results their contents."""
        self.add(values, call.message, now)
        self._left(call)

    def _left(self, call: Call) -> None:
        """One call less of its message is to be done."""
        if self.ends.pop((call.message, call.action), None) is not None:
            self.journal.forget_ends(self.name, call.message, call.action)
        left = self.calls_left[call.message] = self.calls_left.get(call.message, 1) - 1
        if left <= 0:
            self._finished(call.message)

    def _finished(self, message: str) -> None:
        self.calls_left.pop(message, None)
        self._files.pop(message, None)
        self.quota.lets_go(message)
        self.drops.passed(message)
        self.journal.done([(self.name, message)])
        for key in [key for key in self.ends if key[0] == message] if self.ends else ():
            self.journal.forget_ends(self.name, *key)
            del self.ends[key]
        if message in self.spooled:
            self.spooled.discard(message)
            self.unspool.append(message)

    def fail(self, call: Call, failure: Failure, now: float) -> None:
        """Give a call's results this failure, which public facts tell of, as their content."""
        self.done(call, [failed(self.name, r, failure) for r in call.results], now)

    def answered(self, call: Call, values: Sequence[Value], now: float) -> None:
        """A worker gave these, or ended too often for it."""
        if call.word:
            self.questions.ran(call, values, now)
        else:
            self.done(call, values, now)

    # -- gets

    def want(self, wanted: Wanted, taken: Taken) -> None:
        """Enter a get, or enter it again to have its reply published again."""
        fresh = self.journal.want(wanted)
        first = wanted if fresh else self.journal.reply(self.name, wanted.id) or wanted
        if (first.ids, first.owners, first.message) != (wanted.ids, wanted.owners, wanted.message):
            return  # an id of a reply has one meaning: what it stood for first
        wanted = first
        own = [i for i in wanted.ids if i not in wanted.owners]
        self.journal.look_up(self.name, [i for i in own if i not in self.coming])
        missing = {i for i in own if i in self.coming or i in self.questions.asleep or not self._stood(i)}
        missing -= {i for i in own if self.journal.value(self.name, i) is not None}
        if wanted.id not in self.wants:
            self.drops.opened(wanted.ids)
        want = self.wants[wanted.id] = Want(wanted, fresh, missing, taken.received, taken.expires, unsure=wanted.ids)
        if not self.questions.keeps(wanted.id):
            want.given_up = {i: f for i in wanted.owners if (f := self.owners_failure(i)).code}
        self._unreserved.append(want)
        if wanted.allowed is not None:
            missing.clear()
        if missing:
            self._look_at(want, min(want.expires, want.received + PATIENCE_S))
        for id_ in missing:
            self._wants_of.setdefault(id_, set()).add(wanted.id)
        self.touched.add(wanted.id)

    def _reserve(self, want: Want) -> None:
        """Keep room for a reply that is new, as far as declared types tell how large it will be; or refuse it."""
        wanted = want.wanted
        if self.quota.has(wanted.id) or wanted.allowed is not None:
            return
        sizes = self.expects.sizes(wanted)
        lacks = self.quota.lacks_reply(wanted.id, sizes) if want.fresh else None
        if lacks is not None:
            want.given_up, sizes = dict.fromkeys(wanted.ids, lacks), {}
        self.quota.reserve(wanted.id, sizes)
        self.journal.set_shares([(self.name, wanted.id, *self.quota.share(wanted.id))])

    def has_room(self, want: Want) -> bool:
        """Whether a reply that is decided may go out; if so it has its room."""
        sizes = self.expects.decided(want.wanted) if want.sizes is None else want.sizes
        before = self.quota.share(want.wanted.id)
        if not self.quota.admits(want.wanted.id, sizes):
            return False
        if before != self.quota.share(want.wanted.id):
            self.shares_due.add(want.wanted.id)
        return True

    def record_shares(self) -> None:
        """What replies take, since it was reserved."""
        rows = [(self.name, reply, *self.quota.share(reply)) for reply in self.shares_due if self.quota.has(reply)]
        self.journal.set_shares(rows)
        self.shares_due.clear()

    def settle(self, now: float) -> None:
        """Answer the gets whose values are all there, or ask the owner; what may leave is recorded here."""
        unreserved, self._unreserved = self._unreserved, []
        for new in unreserved:
            self._reserve(new)
        while self.touched:
            touched, self.touched = self.touched, set()
            # in an order that nothing private tells; what is new comes first: it may need what a word ends
            for reply in sorted(touched, key=lambda reply: (reply in self.questions.open, reply)):
                want = self.wants.get(reply)
                if want is None:
                    continue
                if want.wanted.allowed is None:
                    if self.questions.concern(want) and not self.questions.settle(want, now):
                        continue
                    if want.missing - want.given_up.keys():
                        continue
                    self._allow(want)
                self.publish.append(self.wants.pop(reply))

    def _allow(self, want: Want) -> None:
        """Decide of each value whether it leaves, and record it: of what is not recorded no byte is sent."""
        if ids.is_plan_id(want.wanted.ids[0]):
            return
        allowed: dict[str, str | Failure] = {}
        want.sizes = dict.fromkeys(want.wanted.ids, 0)
        for id_ in want.wanted.ids:
            owners = id_ in want.wanted.owners
            value = self.owners_version(id_) if owners else self.journal.value(self.name, id_)
            if id_ in want.given_up:
                allowed[id_] = want.given_up[id_]
            elif value is None:
                allowed[id_] = self.owners_failure(id_) if owners else _was_dropped(id_)
            elif not self._may_leave(frozenset([id_]) if owners else value.sources, want.word):
                allowed[id_] = Failure("denied", "its owner has not released it", {"id": id_})
            else:
                allowed[id_] = value.failure or self._digest(value)
                want.sizes[id_] = 0 if value.failure is not None else content_bytes(value)
        want.wanted = replace(want.wanted, allowed=allowed)
        if (lacks := self.quota.fits_at_all(want.sizes)) is not None:
            allowed = {id_: said if isinstance(said, Failure) else lacks for id_, said in allowed.items()}
            want.wanted, want.sizes = replace(want.wanted, allowed=allowed), None
        self.journal.allow(self.name, want.wanted.id, allowed)
        if want.word:
            self._record_left(want)

    def _may_leave(self, sources: frozenset[str], word: str) -> bool:
        return self.journal.are_open(sources) or policy.may_leave(self.journal.rules(sources), word)

    def _record_left(self, want: Want) -> None:
        """Write down what leaves by its owner's word: it is remembered longer than the reply."""
        for id_, allowed in (want.wanted.allowed or {}).items():
            value = self.journal.once(OWNER if id_ in want.wanted.owners else self.name, id_)
            told = allowed.code if isinstance(allowed, Failure) else str(value.type).partition("=")[0] if value else "?"
            self.journal.record("left", self.name, want.wanted.id, f"{id_} {told}", now=self._time)

    def _digest(self, value: Value) -> str | Failure:
        try:
            return self.store.digest(value)
        except BadFile as error:
            log.error("%s: %s", self.home.name, error)
            return Failure("failed", "the device lost this value", {"id": value.id})

    def owners_version(self, id_: str) -> Value | None:
        """An owner's value, also one that was replaced since and is kept for a decided question."""
        return self.journal.kept(id_) if self.journal.may_see(self.name, id_) else None

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
            if self.wants.get(want.wanted.id) is want and want.missing:
                self._give_up(want, now)
        self.questions.give_up(now)

    def _never(self, call: Call) -> Failure:
        """What a call that waited too long waited for."""
        if call.held:
            return Failure("expired", f"{STOPPED}, and its owner said nothing before the message expired")
        missing = min(call.missing)
        if not ids.is_id(missing):
            return Failure("unknown_plan", f"plan {missing[:32]} never came", {"id": missing})
        return Failure("missing_value", f"{self.told(call, missing)} never came", {"id": missing})

    def _give_up(self, want: Want, now: float) -> None:
        missing = want.missing - self.questions.asleep.keys()
        if now <= want.expires and all(self._will_be(i) or self.waiting.makes(i) for i in missing):
            self._look_at(want, want.expires)
            return
        want.given_up |= {i: Failure("missing_value", f"{i} never came", {"id": i}) for i in missing}
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
            self.questions.set_back(now)
        self._time = now

    def late(self, now: float) -> bool:
        """Whether there is something to give up, or a drop to be done."""
        self._keep_time(now)
        due = bool(self._due and self._due[0][0] < now)
        return self.waiting.late(now) or due or self.drops.ready(now) or self.questions.late(now)

    # -- drops

    def _undone(self, message: str, patient: bool) -> bool:
        return message in self.calls_left or (patient and self.journal.seen(self.name, message) is None)

    def drop(self, now: float) -> None:
        """Do the drops whose turn has come."""
        for drop in self.drops.take_ready(now):
            self.journal.look_up(self.name, drop.values)
            there = [value for id_ in drop.values if (value := self.journal.value(self.name, id_))]
            self.catalog_due |= any(value.tag for value in there)
            self.quota.stores(-sum(size(value) for value in there if self._is_open(value)))
            self.journal.drop(self.name, drop.values)
            self.journal.dropped(drop.row)
            self.let_go(drop.values, files=[value.id for value in there if value.in_file])

    def let_versions_go(self) -> None:
        """Owner's values that were replaced, and that no question keeps any more, go."""
        if self.versions_due and not self.publish:
            self.versions_due = False
            self.forget_versions += self.journal.let_versions_go()

    def let_go(self, values: Sequence[str], *, files: Sequence[str]) -> None:
        """The contents of these are not needed any more; some have files."""
        self.forget += files
        for lane in self.lanes:
            lane.dropped += values

    def was_dropped(self, values: Iterable[str]) -> bool:
        return any(ids.is_id(i) and self._stood(i) and self.journal.value(self.name, i) is None for i in values)

    def calls(self) -> Iterator[Call]:
        """Calls that are not done."""
        return itertools.chain(self.queue, self.running, self.waiting.calls(), self.questions.calls())

    def needed(self) -> Iterator[str]:
        """Values that are still to be read."""
        yield from (ref for call in self.calls() for ref in call.refs)
        decided = *self.publish, *self.roomless.values(), *self.blocked.values()
        yield from (id_ for want in (*self.wants.values(), *decided) for id_ in want.wanted.ids)

    # -- what ends its workers

    def blame(self, call: Call, died: Died, now: float) -> None:
        """A worker ended in the middle of it."""
        ends = call.ends
        ends.workers, ends.time, ends.why = ends.workers + 1, now, died.why
        ends.kind = f"{died.kind} {died.signal}".strip()
        self.ends[call.message, call.action] = ends
        self.journal.set_ends(self.name, call.message, call.action, ends)

    def stopped(self) -> list[Call]:
        """Open calls that are held because the gate ended too often while they ran."""
        return [c for c in self.waiting.calls() if c.held] if self.ends else []

    def look_again(self) -> None:
        """The owner may have said something, or taken values away."""
        self.unseen, self.quota.stale = False, True
        self.try_again()
        self.touched |= self.questions.open.keys()
        for call, failure in self.questions.gone():
            self.over(call, failure)
        for lane in self.lanes:
            for call in self._take_back(lane, self._is_pointless):
                self.fail(call, self.owners_failure(self._lost(call)), self._time)

    def _is_pointless(self, call: Call) -> bool:
        """Whether a call reads a value that its owner removed."""
        return not call.word and bool(self._lost(call))

    def _lost(self, call: Call) -> str:
        return next((id_ for id_ in sorted(call.sources) if self.journal.gone(id_) == "removed"), "")

    def resume(self) -> None:
        """Take up those of them that the owner lets go on."""
        private = self.questions.stopped()
        held = (
            {key[1:] for key in self.journal.stopped() if key[0] == self.name} if self.stopped() or private else set()
        )
        for call in [call for call in (*self.stopped(), *private) if call.key not in held]:
            call.ends.gates = 0
            self._arrived(call.hold)

    def give_up_on(self, call: Call, failure: Failure, now: float) -> None:
        """Answer a call that was started too often, and keep its message for the owner to look at."""
        taken = self.journal.message(self.name, call.message)
        if taken is not None:
            raw = taken.file or fs.map_private(self.home.spool(self.name) / call.message)
            folder = self.home.failed(self.name)
            fs.make_dir(folder)
            fs.replace(folder / f"{call.message}.safetensors", [raw], durable=self.home.durable)
            self.journal.add_failed(self.name, call.message, now, f"action {call.action}: {call.ends.why}")
        self.answered(call, batches.failures(self, call, failure), now)


def _call(message: Message, number: int, verb: Run | Fold, taken: Taken, ends: Ends | None) -> Call:
    args, loop = (verb.given, verb.loop) if isinstance(verb, Fold) else (verb.args, None)
    head = (message.sender, message.id, number, verb.plan, args, verb.results, message.seed)
    words = tuple(verb.kwargs) if isinstance(verb, Run) else ()
    return Call(*head, taken.received, message.expires, ends or Ends(), loop=loop, words=words)


def _wanted(message: Message, verb: Get) -> Wanted:
    return Wanted(message.sender, verb.reply, message.id, verb.values, "wanted", verb.owners)


def _was_dropped(id_: str) -> Failure:
    return Failure("missing_value", f"{id_} was dropped", {"id": id_})


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
