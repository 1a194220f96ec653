"""What an owner is shown before they say a word: read from the journal, believed of nobody.

Names and source lines are the sender's claims. Types are found by a worker that is given no data
(`device.typist`); what flows where is what `plan.verify` follows. Only reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from fedq import fs
from fedq.device.foreseen import Typist
from fedq.device.home import Home
from fedq.device.journal import OWNER, QuestionRow, Value
from fedq.errors import FedqError, SpecMismatch
from fedq.plan import fold, typed
from fedq.plan.codec import File, RawTensor, decode
from fedq.plan.file import PlanFile, decode_plan
from fedq.plan.fold import Loop
from fedq.plan.graph import Graph, Type
from fedq.plan.verify import verify
from fedq.queue.message import Fold, Inline, Message, OwnerRef, Ref, Run, RunArg, message_from_json
from fedq.trust import policy


@dataclass(frozen=True, slots=True)
class Read:
    """An owner's value that is read."""

    id: str
    tag: str
    type: Type
    release: str


@dataclass(frozen=True, slots=True)
class Own:
    """A tensor of the requester's own that takes part: an argument, or the state of a plan."""

    name: str
    raw: RawTensor


@dataclass(frozen=True, slots=True)
class Leaving:
    """A value that would leave.

    Attributes:
        sources: owner's values that are not open and that flow into it.
        private: all that it comes from: that it exists tells of them, too.
    """

    id: str
    type: Type
    sources: frozenset[str] = frozenset()
    private: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Step:
    """A call of the closure.

    Attributes:
        plan: None where it is not there (yet).
        graph: the plan's, or the variant that is chosen, with the types found; None if they were not.
        refused: why it would not run, or why types were not found.
        types, sources: of its results.
    """

    message: str
    action: int
    plan_id: str
    plan: PlanFile | None
    args: tuple[RunArg, ...]
    results: tuple[str, ...]
    loop: Loop | None
    graph: Graph | None = None
    refused: str = ""
    types: tuple[Type, ...] = ()
    sources: tuple[frozenset[str], ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of a question."""

    row: QuestionRow
    reads: tuple[Read, ...]
    leaves: tuple[Leaving, ...]
    steps: tuple[Step, ...]
    own: tuple[Own, ...]
    before: tuple[QuestionRow, ...]
    graphs: Mapping[str, tuple[str, str, bool]] = field(default_factory=dict)
    """Plan id -> its name (a claim), its graph's id, and whether an earlier question had that graph."""


NOT_KEPT = "its message is not kept any more, so what it was given is not known: deny it, or be asked for it again"


class Reader:
    """Reads the evidence of the questions of one device.

    Args:
        typist: finds types; None: they are not looked for.
    """

    def __init__(self, home: Home, typist: Typist | None) -> None:
        self._home, self._journal, self._typist = home, home.journal, typist
        self._messages: dict[tuple[str, str], tuple[Message, File] | None] = {}
        self._plans: dict[tuple[str, str], PlanFile | None] = {}

    @cached_property
    def _rows(self) -> list[QuestionRow]:
        return self._journal.questions(ended=True)

    def of(self, row: QuestionRow) -> Evidence:
        about = row.about
        steps = self._steps(row)
        types = {r: t for s in steps for r, t in zip(s.results, s.types, strict=False)}
        flows = {r: f for s in steps for r, f in zip(s.results, s.sources, strict=False)}
        leaves = tuple(self._leaving(row, id_, types, flows, n) for n, id_ in enumerate(about["values"]))
        reads = tuple(read for id_ in about["reads"] if (read := self._read(id_)) is not None)
        before = tuple(r for r in self._rows if r.about["same"] == about["same"] and _is_before(r, row))
        return Evidence(row, reads, leaves, steps, self._own(row, steps), before, self._graphs(row))

    def _graphs(self, row: QuestionRow) -> dict[str, tuple[str, str, bool]]:
        known = {graph for r in self._rows if _is_before(r, row) for _, graph in r.about.get("graphs", {}).values()}
        return {plan: (name, graph, graph in known) for plan, (name, graph) in row.about.get("graphs", {}).items()}

    def _read(self, id_: str) -> Read | None:
        value = self._journal.once(OWNER, id_)
        return Read(id_, value.tag or "", value.type, value.release) if value is not None else None

    def _leaving(
        self, row: QuestionRow, id_: str, types: Mapping[str, Type], flows: Mapping[str, frozenset[str]], n: int
    ) -> Leaving:
        """What is known of a value: it stands, its type was found, or the sender claims one, which is not told."""
        owners = id_ in row.about["owners"]
        value = self._journal.once(OWNER, id_) if owners else self._journal.value(row.sender, id_)
        if owners:
            return Leaving(id_, value.type if value else typed.UNKNOWN, self._private([id_]), self._private([id_]))
        if value is not None and value.failure is None:
            flow = flows.get(id_, value.sources)
            return Leaving(id_, _plain(value.type), self._private(flow), self._private(value.sources))
        private = self._private(row.about["reads"])
        return Leaving(id_, types.get(id_, typed.UNKNOWN), self._private(flows.get(id_, private)), private)

    def _private(self, sources: Iterable[str]) -> frozenset[str]:
        """Those that are not open."""
        sources = list(sources)
        rules = self._journal.rules(sources)
        return frozenset(id_ for id_, rule in zip(sources, rules, strict=True) if not policy.is_open([rule]))

    # -- calls

    def _steps(self, row: QuestionRow) -> tuple[Step, ...]:
        steps: list[Step] = []
        made: dict[str, tuple[Type, frozenset[str]]] = {}
        for message, action, plan, results in (*row.about.get("before", ()), *row.about["calls"]):
            found = self.message(row.sender, message)
            verb = found[0].actions[action] if found and action < len(found[0].actions) else None
            args = _args(verb) if isinstance(verb, (Run, Fold)) else ()
            loop = verb.loop if isinstance(verb, Fold) else None
            step = Step(message, action, plan, self.plan(row.sender, plan), tuple(args), tuple(results), loop)
            step = self._typed(row, step, made) if verb is not None else replace(step, refused=NOT_KEPT)
            made.update({r: (t, s) for r, t, s in zip(results, step.types, step.sources, strict=False)})
            steps.append(step)
        return tuple(steps)

    def _typed(self, row: QuestionRow, step: Step, made: Mapping[str, tuple[Type, frozenset[str]]]) -> Step:
        """The step with the types and the sources of its results."""
        if step.plan is None:
            return replace(step, refused="its plan is not there")
        given = [self._given(row, step, arg, made) for arg in step.args]
        sources = self._flows(step, [s for _, s in given])
        try:
            graph, types = self._foreseen(step, [t for t, _ in given], row.sender)
        except FedqError as error:
            unknown = (typed.UNKNOWN,) * len(step.results)
            return replace(step, refused=str(error), types=unknown, sources=sources)
        return replace(step, graph=graph, types=types, sources=sources)

    def _given(
        self, row: QuestionRow, step: Step, arg: RunArg, made: Mapping[str, tuple[Type, frozenset[str]]]
    ) -> tuple[Type, frozenset[str]]:
        """Type and sources of an argument."""
        match arg:
            case OwnerRef(id_):
                value = self._journal.once(OWNER, id_)
                return (value.type if value else typed.UNKNOWN), frozenset([id_])
            case Ref(id_) if id_ in made:
                return made[id_]
            case Ref(id_):
                found = self._journal.value(row.sender, id_)
                known = found is not None and found.failure is None
                return (
                    _plain(found.type) if known and found else typed.UNKNOWN
                ), found.sources if found else frozenset()
            case Inline(name):
                message = self.message(row.sender, step.message)
                raw = message[1].tensors.get(name) if message else None
                return (Type(raw.dtype, raw.shape) if raw else typed.UNKNOWN), frozenset()
        return Type(type(arg).__name__, None, arg), frozenset()

    def _flows(self, step: Step, sources: Sequence[frozenset[str]]) -> tuple[frozenset[str], ...]:
        assert step.plan is not None
        reaches = verify(step.plan.graph).reaches
        if step.loop is not None:
            reaches = fold.reaches(reaches, step.loop)
        return tuple(frozenset().union(*(sources[n] for n in reach if n < len(sources))) for reach in reaches)

    def _foreseen(self, step: Step, given: Sequence[Type], whose: str) -> tuple[Graph, tuple[Type, ...]]:
        assert step.plan is not None
        if self._typist is None or any(typed.ANY in str(t) for t in given):
            raise SpecMismatch("the types of its arguments are not known")
        if step.loop is None:
            graph = self._typist.types(step.plan.graph, given, whose)
            return graph, tuple(graph.types[v.number] for v in graph.output_vars)
        k, end, loop = step.loop.carry, step.loop.carry + step.loop.data, step.loop
        rows = int((given[k].shape or (0,))[0]) if end > k else 0
        size = min(loop.batches.size, rows)
        graph = self._typist.types(
            step.plan.graph, (*given[:k], *(fold.cut(t, size) for t in given[k:end]), *given[end:]), whose
        )
        once = [graph.types[v.number] for v in graph.output_vars]
        carry = (a if a == b else typed.UNKNOWN for a, b in zip(given[:k], once, strict=False))
        metrics = (t if typed.ANY in str(t) else fold.kept("", t, loop, rows) for t in once[k:])
        return graph, (*carry, *metrics)

    # -- what the requester brought

    def _own(self, row: QuestionRow, steps: Sequence[Step]) -> tuple[Own, ...]:
        own = [o for kind, *rest in row.about["own"] if (o := self._own_tensor(row, kind, rest)) is not None]
        states = {s.plan_id: s.plan for s in steps if s.plan is not None}
        for id_, plan in states.items():
            own += [Own(f"{id_[:8]}.{name}", raw) for name, raw in plan.state.items()]
        return tuple(own)

    def _own_tensor(self, row: QuestionRow, kind: str, rest: Sequence[str]) -> Own | None:
        if kind == "t":
            message = self.message(row.sender, rest[0])
            raw = message[1].tensors.get(rest[1]) if message else None
            return Own(f"{rest[0][:8]}/{rest[1]}", raw) if raw is not None else None
        value = self._journal.value(row.sender, rest[0])
        if value is None or value.failure is not None or not value.type.is_tensor or value.sources:
            return None
        return Own(value.tag or value.id, self._home.store.bytes(value))

    # -- of a requester's

    def message(self, sender: str, id_: str) -> tuple[Message, File] | None:
        """A message that is not done, or made private values, and its tensors."""
        if (sender, id_) not in self._messages:
            self._messages[sender, id_] = self._message(sender, id_)
        return self._messages[sender, id_]

    def _message(self, sender: str, id_: str) -> tuple[Message, File] | None:
        taken = self._journal.message(sender, id_)
        if taken is None or (taken.state == "done" and taken.file is None):
            return None
        file = decode(taken.file or fs.map_private(self._home.spool(sender) / id_))
        return message_from_json(file.body), file

    def plan(self, sender: str, id_: str) -> PlanFile | None:
        if (sender, id_) not in self._plans:
            found = self._journal.plan(sender, id_)
            self._plans[sender, id_] = decode_plan(decode(found[0])) if found and found[0] is not None else None
        return self._plans[sender, id_]

    def outcome(self, row: QuestionRow) -> list[tuple[str, Value | None, RawTensor | None]]:
        """The values that a question asks for, as they stand; only for the owner."""
        found = []
        for id_ in row.about["values"]:
            owners = id_ in row.about["owners"]
            value = self._journal.kept(id_) if owners else self._journal.value(row.sender, id_)
            whole = value is not None and value.failure is None and value.type.is_tensor
            found.append((id_, value, self._home.store.bytes(value) if whole and value else None))
        return found

    def why(self, row: QuestionRow) -> list[str]:
        """The full text of what failed, or ended its worker, when it ran; for the owner alone."""
        calls = {f"{message}:{action}" for message, action, *_ in row.about["calls"]}
        kinds = ("failed", "worker ended")
        return [e.text for e in self._journal.events() if e.sender == row.sender and e.ref in calls and e.kind in kinds]

    def unasked(self) -> dict[str, int]:
        """Private calls that nobody asked for, by requester."""
        counts: dict[str, int] = {}
        calls = list(self._undone())
        needed = self._needed({(sender, r): (key, verb) for sender, key, verb in calls for r in verb.results})
        for sender, key, verb in calls:
            if key not in needed:
                counts[sender] = counts.get(sender, 0) + self._is_asleep(sender, verb)
        return {sender: count for sender, count in counts.items() if count}

    def _undone(self) -> Iterator[tuple[str, tuple[str, int], Run | Fold]]:
        """Calls of messages that are not done, each with its sender and its key."""
        for taken in self._journal.open_messages():
            message = self.message(taken.sender, taken.id)
            for n, verb in enumerate(message[0].actions if message else ()):
                if isinstance(verb, (Run, Fold)):
                    yield taken.sender, (taken.id, n), verb

    def _needed(self, makers: Mapping[tuple[str, str], tuple[tuple[str, int], Run | Fold]]) -> set[tuple[str, int]]:
        """The calls that open questions need, directly or through others."""
        stack = [(r.sender, id_) for r in self._rows if r.state != "ended" for id_ in r.about["values"]]
        needed: set[tuple[str, int]] = set()
        while stack:
            sender, id_ = stack.pop()
            key, verb = makers.get((sender, id_), (None, None))
            if key is not None and verb is not None and key not in needed:
                needed.add(key)
                stack += [(sender, a.id) for a in _args(verb) if isinstance(a, Ref)]
        return needed

    def _is_asleep(self, sender: str, verb: Run | Fold) -> bool:
        """Whether a call that did not run reads what is not open."""
        if verb.results and self._journal.exists(sender, verb.results[0]):
            return False
        args = _args(verb)
        private = bool(self._private(a.id for a in args if isinstance(a, OwnerRef)))
        values = (self._journal.value(sender, a.id) for a in args if isinstance(a, Ref))
        # a result that is not there comes from a call that did not run: open ones do, at once
        return private or any(v is None or self._private(v.sources) for v in values)


def _args(verb: Run | Fold) -> tuple[RunArg, ...]:
    return verb.given if isinstance(verb, Fold) else verb.args


def _plain(type_: Type) -> Type:
    """A number's type without the number: that is told by the value, if it is looked at."""
    return type_ if type_.is_tensor else Type(type_.dtype)


def _is_before(one: QuestionRow, other: QuestionRow) -> bool:
    return (one.received, one.reply) < (other.received, other.reply) and one is not other
