"""Questions: what a requester asks of values that are not open, and what is computed for it.

A *private* call has an argument that comes from a value that is not open. It sleeps until the owner
says a word to a question that needs it; until then nothing about it depends on the owner's bytes. A
question is one ``get`` of which some value is private; its closure is every private call that its
values are computed from. Everything here happens inside a transaction of the journal, as in `peer`.

What ends a question is its owner's word, the end of its time, a cancel, or that an owner's value it
reads was replaced or removed. A call is done when its questions ended, never when it ran: so no drop
that waits for it tells whether it did.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedq import ids
from fedq.device import batch as batches
from fedq.device import fold as folds
from fedq.device.calls import Call
from fedq.device.journal import KEEPING, OWNER, REMOVED, QuestionRow, Value, Wanted
from fedq.errors import BadFile, SpecMismatch
from fedq.plan import fold, spec
from fedq.plan.graph import Type, canonical
from fedq.queue.message import Failure, Inline, OwnerRef, Ref, RunArg
from fedq.trust import policy

if TYPE_CHECKING:
    from fedq.device.peer import Peer, Want

log = logging.getLogger("fedq.device")

MOST = 1000
"""Questions of one requester that may wait for the owner."""
MOST_CALLS = 100_000
"""Calls that they may need, those that several need counted for each: what looking them through costs the device."""
MOST_TEXT = 200
"""Characters of what is told of one call's arguments."""
UNDECIDED = ("", policy.LOOK)
"""Words that leave a question open: time ends it."""
CANCELLED = Failure("cancelled", "cancelled by its sender")
TOO_MANY = Failure("not_allowed", f"your questions would need more than {MOST_CALLS} calls")
UNKNOWN = "?"
"""The type of what declared types do not tell."""


@dataclass(slots=True)
class Question:
    """A ``get`` that needs its owner's word.

    Attributes:
        until: when it ends without one, seconds since 1970.
        calls: its closure, each after those whose results it reads.
        misses: ids that its calls read and that are not there yet: it cannot be approved before they are.
    """

    want: Want
    until: float
    calls: list[Call] = field(default_factory=list)
    misses: set[str] = field(default_factory=set)
    bound: str = ""


class Questions:
    """The private calls and the questions of one requester."""

    def __init__(self, peer: Peer) -> None:
        self._peer, self._journal = peer, peer.journal
        self.asleep: dict[str, Call] = {}
        """Result -> the private call that gives it, until its questions ended."""
        self.open: dict[str, Question] = {}
        self.queue: deque[Call] = deque()
        """Calls that may be given to a worker."""
        self.before: set[str] = set()
        """After a restart: replies of open questions, until they are taken up."""
        self.kept: set[tuple[str, int]] = set()
        """After a restart: calls of open questions; those that ran are taken up, too."""
        self._ran: set[tuple[str, int]] = set()
        self._asked: dict[tuple[str, int], set[str]] = {}
        self._readers: dict[str, list[Call]] = {}
        self._unasked: list[tuple[float, int, Call]] = []
        self._due: list[tuple[float, int, str]] = []
        self._count = itertools.count()
        self._needed = 0
        """Calls of open questions."""

    # -- private calls

    def add(self, call: Call, *, ran: bool = False) -> None:
        """A private call came, and sleeps."""
        self.asleep.update(dict.fromkeys(call.results, call))
        for ref in call.refs:
            self._readers.setdefault(ref, []).append(call)
        self._peer.drops.opened((*call.refs, *call.results))
        self._watch(call)
        if ran:
            self._ran.add(call.key)

    def _watch(self, call: Call) -> None:
        """It ends with its message if nobody asks for it then."""
        heapq.heappush(self._unasked, (call.expires, next(self._count), call))

    def calls(self) -> Iterable[Call]:
        """All that are not done, each once."""
        return {call.key: call for call in self.asleep.values()}.values()

    def stopped(self) -> list[Call]:
        """Those that are held because the gate ended too often while they ran: nobody but their owner is told."""
        return [call for call in self.calls() if call.held] if self._peer.ends else []

    def undone(self) -> Iterable[Call]:
        """Those that did not run."""
        return (call for call in self.calls() if call.key not in self._ran)

    @property
    def messages(self) -> set[str]:
        """Messages that only wait for the owner: each private call of theirs is one that a question needs."""
        return {message for message, _ in self._asked} - {c.message for c in self.calls() if c.key not in self._asked}

    def refusal(self, call: Call) -> Failure | None:
        """Why a private call is answered at once: from public facts, its plan and declared types. Infers its types."""
        plan = self._peer.plan(call.plan)
        if (failure := batches.refusal(call, plan)) is not None or not isinstance(plan, tuple):
            return failure
        given = [self._type(arg, call.message) for arg in call.args]
        call.types = (None,) * len(call.results)
        if None in given:
            return None
        types = [t for t in given if t is not None]
        try:
            if call.loop is None:
                spec.match(plan[0].graph, types, about=plan[0].about)
                call.types = spec.output_types(plan[0].graph, types)
            else:
                call.types = fold.fit(plan[0].graph, call.loop, types, about=plan[0].about).outputs
        except SpecMismatch as error:
            facts = {"hint": error.hint} if error.hint else {}
            return Failure("spec_mismatch", f"plan {plan[0].about.name or 'plan'!r}: {error}", facts)
        return None

    def _type(self, arg: RunArg, message: str = "") -> Type | None:
        """The declared type of an argument of a call of this message; None if nobody declared it."""
        match arg:
            case OwnerRef(id_):
                owners = self._journal.kept(id_)
                return owners.type if owners is not None else None
            case Ref(id_) if id_ in self.asleep:
                maker = self.asleep[id_]
                return maker.types[maker.results.index(id_)] if maker.types else None
            case Ref(id_):
                value = self._journal.value(self._peer.name, id_)
                return value.type if value and not value.failure and self._journal.are_open(value.sources) else None
            case Inline(name):
                raw = self._peer.file(message).tensors[name]
                return Type(raw.dtype, raw.shape)
            case bool() | int() | float():
                return Type(type(arg).__name__, None, arg)
        return None

    def ran(self, call: Call, values: Sequence[Value], now: float) -> None:
        """A private call has results. It is done when its questions are."""
        self._ran.add(call.key)
        told = {"plan": call.plan, "results": list(call.results), "refs": list(call.refs), "own": self._own([call])}
        texts = {r: made[2]["text"] for r in call.refs if (made := self._journal.made(self._peer.name, r))}
        self._journal.set_made(self._peer.name, *call.key, told | {"text": self._call_text(call, texts)})
        self._peer.add(values, call.message, now)
        self._touch(call)

    def failed(self, id_: str) -> list[Call]:
        """Private calls, also those that ran, that read this value, which failed for all to see."""
        return list(self._readers.get(id_, ()))

    def gone(self) -> list[tuple[Call, Failure]]:
        """Calls that no question needs and whose owner's value is gone; the others end with their questions."""
        unasked = [call for call in self.calls() if call.key not in self._asked]
        gone = ((call, id_) for call in unasked for id_ in call.owners if self._journal.value(OWNER, id_) is None)
        return [(call, self._peer.owners_failure(id_)) for call, id_ in gone]

    def leave(self, call: Call) -> bool:
        """A private call is done: nothing needs it any more. Whether it was one."""
        if not call.results or self.asleep.get(call.results[0]) is not call:
            return False
        for result in call.results:
            self.asleep.pop(result, None)
        for ref in call.refs:
            if readers := [c for c in self._readers.pop(ref, ()) if c is not call]:
                self._readers[ref] = readers
        if call in self.queue:
            self.queue.remove(call)
        self._peer.drops.closed((*call.refs, *call.results))
        self._ran.discard(call.key)
        self._touch(call)
        self._asked.pop(call.key, None)
        return True

    def _touch(self, call: Call) -> None:
        self._peer.touched |= self._asked.get(call.key, set())

    # -- questions

    def concern(self, want: Want) -> bool:
        """Whether a get needs its owner's word: it was a question before, or one of its values is private."""
        if want.wanted.id in self.open:
            return True
        unsure: list[str] = []
        owners, coming, name = want.wanted.owners, self._peer.coming, self._peer.name
        for id_ in want.unsure:
            value = None if id_ in owners else self._journal.value(name, id_)
            if id_ in coming and id_ not in owners:
                unsure.append(id_)  # what is coming comes from open values; what stands stays as it is
            elif value is not None and id_ not in self.asleep and self._journal.are_open(value.sources):
                continue
            elif self._is_private(want, id_):
                return True
            else:
                unsure.append(id_)
        want.unsure = unsure
        return False

    def take_up(self, now: float) -> None:
        """After a restart: know what open questions need, before the first of them ends."""
        for reply in sorted(self.before):
            want = self._peer.wants.get(reply)
            if want is None:
                self._journal.set_state(self._peer.name, reply, "ended")
            elif (question := self._begin(want, now)) is not None:
                self._look_through(question)
        self.before.clear()

    def keeps(self, reply: str) -> bool:
        """After a restart: whether a question was decided, so that it keeps the versions of all that it reads."""
        row = self._journal.question(self._peer.name, reply) if reply in self.before else None
        return row is not None and row.word in KEEPING

    def _is_private(self, want: Want, id_: str) -> bool:
        if id_ in want.given_up:
            return False
        if id_ in want.wanted.owners:
            return not self._is_open([id_])
        return self._comes_from_private(id_)

    def _comes_from_private(self, id_: str) -> bool:
        """Whether this value of the requester's, standing or promised, comes from one that is not open."""
        seen, stack = {id_}, [id_]
        while stack:
            id_ = stack.pop()
            value = self._journal.value(self._peer.name, id_)
            if id_ in self.asleep or (value is not None and not self._journal.are_open(value.sources)):
                return True
            if (maker := self._peer.waiting.maker(id_)) is not None:
                if not self._is_open(maker.owners):
                    return True
                stack += [ref for ref in maker.refs if ref not in seen]
                seen.update(maker.refs)
        return False

    def _is_open(self, sources: Iterable[str]) -> bool:
        return policy.is_open(self._journal.rules(sources))

    def settle(self, want: Want, now: float) -> bool:
        """Go on with a question; whether it ended, so that its reply can be made."""
        question = self.open.get(want.wanted.id) or self._begin(want, now)
        if question is None:
            return True
        if not any(self._is_private(want, id_) for id_ in want.wanted.ids):
            self._end(question, None)
            return True
        if self._journal.cancelled(self._peer.name, want.wanted.message):
            self._say_over(question, "cancelled")
            self._answer(question, CANCELLED)
            return True
        if not self._look_through(question):
            self._say_over(question, "too many")
            self._answer(question, TOO_MANY)
            return True
        row = self._journal.question(self._peer.name, want.wanted.id)
        if row is not None and not row.word and not question.misses:
            row = self._said_before(row, now)
        word = row.word if row is not None else ""
        if row is not None and word in _ANSWERS:
            self._answer(question, _ANSWERS[word](row))
            return True
        if word not in (policy.LOOK, policy.APPROVE) or row is None:
            return False
        if row.bound != question.bound or question.misses:
            log.warning("%s: the word for %s is void: it is about something else now", self._peer.home.name, row.reply)
            self._journal.say(row, "")
            return False
        return self._go_on(question, word)

    def _said_before(self, row: QuestionRow, now: float) -> QuestionRow:
        """The question, with the word that its owner said for the next one on the same, if they did."""
        if (said := self._journal.take_again(row)) is None:
            return row
        word, why, by = said
        self._journal.say(row, word, why, now=now)
        self._journal.record(word, row.sender, row.reply, why, now=now, by=by)
        return self._journal.question(row.sender, row.reply) or row

    def _begin(self, want: Want, now: float) -> Question | None:
        """A new question, or one that is open since before a restart; None if there are too many."""
        row = self._journal.question(self._peer.name, want.wanted.id)
        if row is not None and row.state == "ended":
            if row.word in _ANSWERS:  # before a restart; something open is still to come
                self._give_up(want, _ANSWERS[row.word](row))
                return None
            self._journal.forget_question(row)  # of a reply that was forgotten: its word was for another content
            row = None
        if row is None and len(self.open) >= MOST:
            text = f"{MOST} questions of yours wait for the owner already"
            want.given_up.update(dict.fromkeys(want.wanted.ids, Failure("not_allowed", text)))
            return None
        until = min(row.until if row is not None else math.inf, max(want.received, now) + self._peer.home.keep_s)
        question = self.open[want.wanted.id] = Question(want, until)
        heapq.heappush(self._due, (until, next(self._count), want.wanted.id))
        return question

    def set_back(self, now: float) -> None:
        """A clock that was set back: no question lives longer than from now on."""
        latest = now + self._peer.home.keep_s
        for question in self.open.values():
            if question.until > latest:
                question.until, question.bound = latest, ""
                heapq.heappush(self._due, (latest, next(self._count), question.want.wanted.id))
                self._peer.touched.add(question.want.wanted.id)

    def _look_through(self, question: Question) -> bool:
        """Find the closure, and record what changed of it; whether it needs no more calls than there is room for."""
        want = question.want
        own = [i for i in want.wanted.ids if i not in want.wanted.owners and i not in want.given_up]
        calls, misses = self.closure(own)
        if self._needed + len(calls) - len(question.calls) > MOST_CALLS:
            return False
        self._needed += len(calls) - len(question.calls)
        for call in calls:
            self._asked.setdefault(call.key, set()).add(question.want.wanted.id)
            self._journal.uses_plan(self._peer.name, call.plan, question.until)
        question.calls, question.misses = calls, misses
        bound = self._bound(question)
        if bound != question.bound:
            question.bound = bound
            before = self._journal.question(self._peer.name, want.wanted.id)
            head = self._peer.name, want.wanted.id, want.received, question.until, before.state if before else "waits"
            self._journal.set_question(QuestionRow(*head, self._about(question), bound))
        return True

    def _bound(self, question: Question) -> str:
        """A digest of all that a word is for: who asks, which values, computed how, from what."""
        want, made = question.want.wanted, {r for call in question.calls for r in call.results}
        calls = [
            [c.message, c.action, c.plan, [repr(a) for a in c.args], repr(c.loop), c.seed, list(c.results)]
            for c in question.calls
        ]
        messages = {c.message: self._journal.seen(self._peer.name, c.message) for c in question.calls}
        own = {ref: self._content(ref) for c in question.calls for ref in c.refs if ref not in made}
        told = [want.sender, want.id, list(want.ids), sorted(want.owners), calls, sorted(question.misses)]
        return ids.digest(canonical([*told, messages, own]))

    def _content(self, id_: str) -> str:
        """Which content a value of the requester's has."""
        value = self._journal.value(self._peer.name, id_)
        if value is None or value.failure is not None:
            return "" if value is None or value.failure is None else value.failure.code
        try:
            return self._peer.store.digest(value)
        except BadFile:
            return "lost"

    def closure(self, values: Iterable[str]) -> tuple[list[Call], set[str]]:
        """The private calls that these values of the requester's are computed from, in order, and what they miss."""
        found: dict[tuple[str, int], Call] = {}
        misses: set[str] = set()
        seen: set[str] = set()
        stack = [(id_, False) for id_ in values]
        while stack:
            id_, back = stack.pop()
            call = self.asleep.get(id_) or self._peer.waiting.maker(id_)
            if back and call is not None:
                if id_ in self.asleep:
                    found[call.key] = call
                continue
            if id_ in seen:
                continue
            seen.add(id_)
            if call is not None:
                stack.append((id_, True))
                stack += [(ref, False) for ref in call.refs]
                if id_ not in self.asleep and ids.is_plan_id(call.plan) and call.plan in call.missing:
                    misses.add(call.plan)
            elif self._journal.value(self._peer.name, id_) is None:
                misses.add(id_)
        return list(found.values()), misses

    def _go_on(self, question: Question, word: str) -> bool:
        """Have the closure computed; whether all is there and may leave."""
        waiting = [call for call in question.calls if call.key not in self._ran]
        for call in waiting:
            if not call.word and not call.held:
                call.word = word
                self.queue.append(call)
                self._peer.coming.update(dict.fromkeys(call.results, call))
        if waiting or question.want.missing - question.want.given_up.keys():
            return False
        if word == policy.APPROVE:
            question.want.word = word
            self._end(question, None)
            return True
        self._journal.set_state(self._peer.name, question.want.wanted.id, "looked")
        return False

    def _answer(self, question: Question, failure: Failure) -> None:
        """End a question with a failure that tells nothing of private bytes."""
        self._give_up(question.want, failure)
        self._end(question, failure)

    def _give_up(self, want: Want, failure: Failure) -> None:
        private = [id_ for id_ in want.wanted.ids if self._is_private(want, id_)]
        want.given_up.update(dict.fromkeys(private, failure))

    def _end(self, question: Question, failure: Failure | None) -> None:
        """A question is over: so are the calls that no other needs. Without a result they have this failure."""
        reply = question.want.wanted.id
        self._needed -= len(question.calls) if self.open.pop(reply, None) is not None else 0
        self._journal.set_state(self._peer.name, reply, "ended")
        for call in question.calls:
            others = self._asked.get(call.key, set())
            others.discard(reply)
            if not others:
                self._asked.pop(call.key, None)
            if not others and (failure is not None or call.key in self._ran):
                self._peer.over(call, failure)
                continue
            if not others:
                self._watch(call)
            if call.word and not self._decided(others):
                self._peer.call_back(call)
        self._peer.versions_due = True

    def _decided(self, replies: Iterable[str]) -> bool:
        rows = (self._journal.question(self._peer.name, reply) for reply in replies)
        return any(row is not None and row.word in (policy.LOOK, policy.APPROVE) for row in rows)

    def withdraw(self, question: Question, failure: Failure) -> None:
        """Its requester does not want the answer to a question that is open: nobody need be asked."""
        self._say_over(question, "cancelled")
        self._answer(question, failure)

    def cancel(self, messages: Iterable[str], failure: Failure) -> None:
        """The gets of these messages are not to be answered otherwise."""
        gone = set(messages)
        for question in [q for q in self.open.values() if q.want.wanted.message in gone]:
            self.withdraw(question, failure)
            self._peer.touched.add(question.want.wanted.id)

    def _say_over(self, question: Question, word: str) -> None:
        row = self._journal.question(self._peer.name, question.want.wanted.id)
        if row is not None:
            self._journal.say(row, word, now=self._peer.now)

    # -- time

    def late(self, now: float) -> bool:
        """Whether something ended by time."""
        return any(heap and heap[0][0] < now for heap in (self._due, self._unasked))

    def give_up(self, now: float) -> None:
        """End questions to which nobody said a word, and calls that nobody asked for."""
        while self._due and self._due[0][0] < now:
            reply = heapq.heappop(self._due)[2]
            row = self._journal.question(self._peer.name, reply)
            if reply not in self.open or row is None:
                continue
            if row.word in UNDECIDED:
                self._journal.say(row, "expired", now=now)
            self._peer.touched.add(reply)
        late = Failure("expired", "the message expired, and nobody had asked for what its call gives")
        while self._unasked and self._unasked[0][0] < now:
            call = heapq.heappop(self._unasked)[2]
            if self.asleep.get(call.results[0] if call.results else "") is call and call.key not in self._asked:
                self._peer.over(call, late)

    # -- for people

    def _about(self, question: Question) -> dict[str, Any]:
        """What an owner is told: no claim of the sender's but names, which are shown as such."""
        want, calls = question.want.wanted, question.calls
        told: dict[str, str] = {}
        before = self._made_before(want, calls)
        for _, _, made in before:
            told.update(dict.fromkeys(made["results"], made["text"]))
        for call in calls:
            text = self._call_text(call, told)
            told.update(dict.fromkeys(call.results, text))
        reads = dict.fromkeys(i for call in calls for i in call.sources)
        reads.update(dict.fromkeys(i for i in want.ids if i in want.owners))
        reads.update(dict.fromkeys(i for id_ in want.ids if id_ not in want.owners for i in self._sources(id_)))
        return {
            "values": list(want.ids), "owners": sorted(want.owners),
            "types": [self._told_type(want, i) for i in want.ids],
            "chain": [self._told(want, i, told) for i in want.ids], "reads": list(reads),
            "own": [*(own for *_, made in before for own in made["own"]), *self._own(calls)],
            "plans": list(dict.fromkeys([*(made["plan"] for *_, made in before), *(c.plan for c in calls)])),
            "calls": [[c.message, c.action, c.plan, list(c.results)] for c in calls],
            "before": [[message, action, made["plan"], made["results"]] for message, action, made in before],
            "graphs": self._graphs([*(made["plan"] for *_, made in before), *(c.plan for c in calls)]),
            "tags": {i: v.tag for i in reads if (v := self._owners(i)) and v.tag},
            "misses": sorted(question.misses), "same": self._same(question),
        }  # fmt: skip

    def _owners(self, id_: str) -> Value | None:
        return self._journal.value(OWNER, id_)

    def _made_before(self, want: Wanted, calls: Sequence[Call]) -> list[tuple[str, int, dict[str, Any]]]:
        """The calls that ran for questions that are over and gave what this one reads or asks for, in order."""
        found: dict[tuple[str, int], tuple[str, int, dict[str, Any]]] = {}
        wanted = [i for i in want.ids if i not in want.owners]
        stack = [(i, False) for i in (*wanted, *(r for call in calls for r in call.refs))]
        seen = set(self.asleep)
        while stack:
            id_, back = stack.pop()
            made = self._journal.made(self._peer.name, id_) if back or id_ not in seen else None
            if made is None:
                continue
            if back:
                found[made[:2]] = made
            else:
                seen.add(id_)
                stack += [(id_, True), *((ref, False) for ref in made[2]["refs"])]
        return list(found.values())

    def _graphs(self, ids_: Sequence[str]) -> dict[str, list[str]]:
        """Of each plan the name that its sender gave it, and the graph's id."""
        plans = ((id_, self._peer.plan(id_)) for id_ in dict.fromkeys(ids_))
        return {id_: [p[0].about.name or "plan", p[0].graph.id] for id_, p in plans if isinstance(p, tuple)}

    def _sources(self, id_: str) -> frozenset[str]:
        value = self._journal.value(self._peer.name, id_)
        return value.sources if value is not None else frozenset()

    def _told(self, want: Wanted, id_: str, told: Mapping[str, str]) -> str:
        """What a value is computed from: an owner's by its tag, though a result may be spelt alike."""
        if id_ in want.owners:
            return self._name(id_)
        return told.get(id_) or id_[:12]

    def _told_type(self, want: Wanted, id_: str) -> str:
        type_ = self._type(OwnerRef(id_) if id_ in want.owners else Ref(id_))
        return UNKNOWN if type_ is None else str(type_)

    def _own(self, calls: Sequence[Call]) -> list[list[str]]:
        """The requester's own tensors that the calls read: values by id, inline ones by message and name."""
        made = {r for call in calls for r in call.results}
        refs = [["v", a.id] for c in calls for a in c.args if isinstance(a, Ref) and a.id not in made]
        return refs + [["t", c.message, a.name] for c in calls for a in c.args if isinstance(a, Inline)]

    def _call_text(self, call: Call, told: dict[str, str]) -> str:
        plan = self._peer.plan(call.plan)
        name = plan[0].about.name or "plan" if isinstance(plan, tuple) else "plan"
        args = ", ".join(self._arg_text(arg, told) for arg in call.args)
        args = args if len(args) <= MOST_TEXT else f"{args[:MOST_TEXT]}..."
        return f"{'fold of ' if call.loop else ''}{name}({args})"

    def _arg_text(self, arg: RunArg, told: dict[str, str]) -> str:
        match arg:
            case OwnerRef(id_):
                return self._name(id_)
            case Ref(id_):
                return told.get(id_) or "own"
            case Inline():
                return "own"
        return repr(arg)

    def _name(self, id_: str) -> str:
        value = self._journal.value(OWNER, id_)
        return f"#{value.tag}" if value is not None and value.tag else id_[:12]

    def _same(self, question: Question) -> str:
        """The same for the same plans on the same contents, whenever it is asked and whatever its ids are."""
        made: dict[str, Any] = {}
        for call in question.calls:
            args = [self._told_arg(call, arg, made) for arg in call.args]
            text = ids.digest(canonical([call.plan, args, folds.to_json(call.loop)]))
            made.update({r: f"{text}/{n}" for n, r in enumerate(call.results)})
        want = question.want.wanted
        asked = [{"o": i} if i in want.owners else made.get(i) or self._standing(i) for i in want.ids]
        return ids.digest(canonical(asked))[:32]

    def _told_arg(self, call: Call, arg: RunArg, made: Mapping[str, Any]) -> Any:
        match arg:
            case OwnerRef(id_):
                return {"o": id_}
            case Ref(id_):
                return made.get(id_) or self._standing(id_)
            case Inline(name):
                raw = self._peer.file(call.message).tensors[name]
                return {"t": ids.digest(f"{raw.dtype}{list(raw.shape)}".encode(), bytes(raw.data))}
        return repr(arg)

    def _standing(self, id_: str) -> Any:
        """Of a value of the requester's that stands: its content; what is private is told by when it was made."""
        value = self._journal.value(self._peer.name, id_)
        if value is not None and not self._journal.are_open(value.sources):
            return {"p": id_, "made": self._journal.created(self._peer.name, id_)}
        return {"t": self._content(id_)} if value is not None else {"v": id_}


def _denied(row: QuestionRow) -> Failure:
    return Failure("denied", f"the owner declined{f': {row.why}' if row.why else ' to release it'}")


def _replaced(row: QuestionRow) -> Failure:
    return Failure("replaced", "its owner put another value in the place of one that it reads", {"id": row.why})


_ANSWERS: dict[str, Callable[[QuestionRow], Failure]] = {
    "deny": _denied,
    "replaced": _replaced,
    "removed": lambda row: REMOVED,
    "cancelled": lambda row: CANCELLED,
    "too many": lambda row: TOO_MANY,
    "expired": lambda row: Failure("expired", "its owner said nothing"),
}
"""What a question is answered with that has such a word."""
