"""One requester as a device sees it: its messages, calls, gets and drops, and where each stands.

Everything here happens inside a transaction of the journal and changes no file of the share:
what is to follow the commit is left in ``start``, ``publish``, ``delete_in``, ``delete``, ``forget``,
``unspool``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedq import ids
from fedq.device.batch import Batch
from fedq.device.calls import PATIENCE_S, Call, Waiting
from fedq.device.home import Home
from fedq.device.journal import NOTHING, OWNER, Taken, Value, Wanted
from fedq.device.pool import Worker
from fedq.errors import FedqError
from fedq.plan.codec import File, decode
from fedq.plan.file import PlanFile, checked, decode_plan, encode_plan
from fedq.plan.verify import Verified, verify
from fedq.queue.message import Ack, Cancel, Drop, Failure, Get, Message, Put, Ref, Run, SendPlan

MAX_PLANS = 200
"""Verified plans kept in memory, per requester."""


@dataclass(slots=True)
class Want:
    """A ``get`` to be answered: ``missing`` are the values without content, ``given_up`` those given up."""

    wanted: Wanted
    missing: set[str]
    received: float
    expires: float
    given_up: dict[str, Failure] = field(default_factory=dict)


@dataclass(slots=True)
class DropRow:
    """Values to forget, once these messages are done and their replies are out."""

    row: int
    values: list[str]
    after: list[str]


class Peer:
    """The state of one requester at one device; rebuilt from the journal at every start."""

    def __init__(self, home: Home, name: str, key: str) -> None:
        self.home, self.journal, self.store = home, home.journal, home.store
        self.name, self.key, self.pair = name, key, home.pair(name)
        self.queue: deque[Call] = deque()
        self.waiting = Waiting()
        self.coming: dict[str, Call] = {}
        self.batch: list[Call] = []
        self.worker: Worker | None = None
        self.wants: dict[str, Want] = {}
        self._wants_of: dict[str, set[str]] = {}
        self.touched: set[str] = set()
        self.held: dict[str, list[tuple[str, str]]] = {}
        self.drops: list[DropRow] = []
        self.dropped: list[str] = []
        self.files: dict[str, File] = {}
        self.spooled: set[str] = set()
        self.calls_left: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        self.catalog_due = True
        self._plans: dict[str, tuple[PlanFile, Verified]] = {}
        self.start: Batch | None = None
        self.publish: list[Want] = []
        self.delete_in: list[str] = []
        self.delete: list[str] = []
        self.forget: list[str] = []
        self.unspool: list[str] = []

    # -- a message

    def enter(self, message: Message, file: File, taken: Taken, now: float) -> None:
        """Do a message's immediate actions and queue its calls; again, after a restart, changes nothing."""
        calls: list[Call] = []
        self._look_up(message)
        for number, verb in enumerate(message.actions):
            match verb:
                case Put():
                    self._put(verb, message, file, now)
                case SendPlan():
                    self._enter_plan(verb, file)
                case Run():
                    calls.append(_call(message, number, verb, taken))
                case Get():
                    self.want(Wanted(self.name, verb.reply, message.id, verb.values, "wanted"), taken)
                case Drop():
                    after = [message.id, *verb.after]
                    row_number = self.journal.add_drop(self.name, message.id, verb.values, after)
                    self.drops.append(DropRow(row_number, list(verb.values), after))
                case Cancel():
                    self._cancel(set(verb.messages), now)
                case Ack():
                    self.journal.set_reply([(self.name, r) for r in verb.replies], "acked")
                    self.delete += verb.replies
        self._enter_calls(message, file, calls, now)

    def _put(self, verb: Put, message: Message, file: File, now: float) -> None:
        if not self.journal.exists(self.name, verb.id):
            row = self.store.keep(self.name, verb.id, file.tensors[verb.tensor], release="open", tag=verb.tag)
            self.add([row], message.id, now)
            self.catalog_due |= verb.tag is not None

    def _look_up(self, message: Message) -> None:
        """Learn at once of all ids that a message names."""
        runs = [verb for verb in message.actions if isinstance(verb, Run)]
        refs = [a.id for verb in runs for a in verb.args if isinstance(a, Ref)]
        self.journal.look_up(self.name, dict.fromkeys([*refs, *(r for verb in runs for r in verb.results)]))
        self.journal.look_up(OWNER, dict.fromkeys(refs))

    def _enter_calls(self, message: Message, file: File, calls: list[Call], now: float) -> None:
        calls = [c for c in calls if not all(self.journal.exists(self.name, r) for r in c.results)]
        if not calls:
            self._finished(message.id)
            return
        self.files[message.id] = file
        self.calls_left[message.id] = len(calls)
        for call in calls:
            self._enter_call(call, now)

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

    def _cancel(self, messages: set[str], now: float) -> None:
        """Calls of these messages that have not been handed to a worker are not done."""
        calls = self.waiting.take_out(lambda c: c.message in messages)
        calls += [c for c in self.queue if c.message in messages]
        self.queue = deque(c for c in self.queue if c.message not in messages)
        for call in calls:
            self.fail(call, Failure("cancelled", "cancelled by its sender"), now)

    # -- calls

    def _enter_call(self, call: Call, now: float) -> None:
        """Put a call in the queue, or let it wait for what it misses."""
        if now > call.expires:
            self.fail(call, Failure("expired", "the message expired before it could be done"), now)
            return
        call.missing = {r for r in call.refs if not self._will_be(r)}
        if call.plan not in self._plans and self.journal.plan(self.name, call.plan) is None:
            call.missing.add(call.plan)
        if not call.missing:
            self._enqueue(call)
        elif not self.waiting.add(call):
            text = "an argument is the result of the call itself, directly or around"
            self.fail(call, Failure("missing_value", text, {"id": min(call.missing)}), now)

    def _enqueue(self, call: Call) -> None:
        self.queue.append(call)
        self.coming.update(dict.fromkeys(call.results, call))
        for result in call.results:
            self._arrived(result)

    def _arrived(self, id_: str) -> None:
        """Calls that waited for this may be queued now."""
        for call in self.waiting.arrived(id_):
            self._enqueue(call)

    def _will_be(self, id_: str) -> bool:
        """Whether it has a content, will have one, or had one: what was dropped is not waited for."""
        return id_ in self.coming or self._stood(id_)

    def _stood(self, id_: str) -> bool:
        return self.journal.exists(self.name, id_) or self.journal.exists(OWNER, id_)

    def value(self, id_: str) -> Value | None:
        """What the requester means by an id: its own value, else the owner's."""
        return self.journal.value(self.name, id_) or self.journal.value(OWNER, id_)

    def add(self, values: Sequence[Value], message: str, now: float) -> None:
        """Record contents, and tell those who wait for them."""
        self.journal.add(values, message=message, now=now)
        for value in values:
            self.coming.pop(value.id, None)
            for reply in self._wants_of.pop(value.id, ()):
                if reply in self.wants:
                    self.wants[reply].missing.discard(value.id)
                    self.touched.add(reply)
            self._arrived(value.id)

    def done(self, call: Call, values: Sequence[Value], now: float) -> None:
        """Give a call's results their contents."""
        self.add(values, call.message, now)
        left = self.calls_left[call.message] = self.calls_left.get(call.message, 1) - 1
        if left <= 0:
            self._finished(call.message)

    def _finished(self, message: str) -> None:
        self.calls_left.pop(message, None)
        self.files.pop(message, None)
        self.journal.done([(self.name, message)])
        if message in self.spooled:
            self.spooled.discard(message)
            self.unspool.append(message)

    def fail(self, call: Call, failure: Failure, now: float) -> None:
        """Give a call's results this failure as their content."""
        self.done(call, [Value(self.name, r, None, NOTHING, "open", None, failure) for r in call.results], now)

    # -- gets

    def want(self, wanted: Wanted, taken: Taken) -> None:
        """Enter a get, or enter it again to have its reply published again."""
        self.journal.want(wanted)
        missing = {i for i in wanted.ids if not self._stood(i)}
        self.wants[wanted.id] = Want(wanted, missing, taken.received, taken.expires)
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
            held = [(i, v.release) for i in want.wanted.ids if (v := self.value(i)) and self._holds(v)]
            if not held:
                self.held.pop(reply, None)
                self.publish.append(self.wants.pop(reply))
            elif self.held.get(reply) != held:
                self.held[reply] = held
                self.journal.set_reply([(self.name, reply)], "held")

    def _holds(self, value: Value) -> bool:
        """Whether the owner must still say a word before this value leaves."""
        return value.failure is None and value.release != "open" and not self.journal.verdict(self.name, value.id)

    def give_up(self, now: float) -> None:
        """Answer what waited too long, naming what never came."""
        self._set_back(now)
        for call in self.waiting.take_out(lambda c: self.waiting.hopeless(c, now)):
            missing = min(call.missing)
            code, what = ("missing_value", "argument") if ids.is_id(missing) else ("unknown_plan", "plan")
            self.fail(call, Failure(code, f"{what} {missing[:32]} never came", {"id": missing}), now)
        for want in self.wants.values():
            if self._hopeless(want, now):
                want.given_up = {i: Failure("missing_value", f"{i} never came", {"id": i}) for i in want.missing}
                self.touched.add(want.wanted.id)

    def _set_back(self, now: float) -> None:
        """A clock that was set back starts the waiting anew: it would last for years."""
        for call in self.waiting.calls():
            call.received = min(call.received, now)
        for want in self.wants.values():
            want.received = min(want.received, now)

    def _hopeless(self, want: Want, now: float) -> bool:
        if not want.missing or now <= min(want.expires, want.received + PATIENCE_S):
            return False
        missing = want.missing - want.given_up.keys()
        promised = all(self._will_be(i) or self.waiting.makes(i) for i in missing)
        return bool(missing) and (now > want.expires or not promised)

    def late(self, now: float) -> bool:
        """Whether there is something to give up."""
        self._set_back(now)
        waiting = any(self.waiting.hopeless(c, now) for c in self.waiting.calls())
        return waiting or any(self._hopeless(w, now) for w in self.wants.values())

    # -- drops

    def drop(self) -> None:
        """Do the drops whose turn has come."""
        for drop in [d for d in self.drops if self._droppable(d)]:
            self.drops.remove(drop)
            self.journal.drop(self.name, drop.values)
            self.journal.dropped(drop.row)
            self.forget += drop.values
            self.dropped += drop.values

    def _droppable(self, drop: DropRow) -> bool:
        if any(m in self.calls_left for m in drop.after):
            return False
        open_wants = [w.wanted for w in (*self.wants.values(), *self.publish)]
        return not any(w.message in drop.after or not set(w.ids).isdisjoint(drop.values) for w in open_wants)


def _call(message: Message, number: int, verb: Run, taken: Taken) -> Call:
    head = (message.sender, message.id, number, verb.plan, verb.args, verb.results, message.seed)
    return Call(*head, taken.received, message.expires, taken.attempts)


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


def running(calls: Iterable[Call]) -> tuple[str, ...]:
    """The messages of these calls, each once."""
    return tuple(dict.fromkeys(c.message for c in calls))
