"""Batches: calls that are ready become one frame for a worker, and its rows become values.

A batch names values and plans by keys of the worker's; what the worker does not hold yet is
given along. The release rule of a result is settled here, from what flows into it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedq import ids
from fedq.device import fold as folds
from fedq.device.calls import Call
from fedq.device.journal import VALUE_BYTES, Value, failed
from fedq.device.kinds import HINTS, KINDS, checked
from fedq.device.room import size
from fedq.device.wire import Sendable
from fedq.errors import BadFile, FedqError, MissingValue
from fedq.plan.bodies import nested
from fedq.plan.codec import RawTensor
from fedq.plan.file import PlanFile
from fedq.plan.fold import output_names
from fedq.plan.graph import Graph, Type, graph_to_json
from fedq.plan.verify import Verified
from fedq.queue.message import Failure, Inline, OwnerRef, Ref, RunArg
from fedq.trust import policy

if TYPE_CHECKING:
    from fedq.device.lanes import Lane
    from fedq.device.peer import Peer
    from fedq.device.pool import Answer, Held

ATTEMPTS = 3
"""A call is given up when its worker ended so often while it ran."""
CODES = ("failed", "missing_value", "spec_mismatch", "not_allowed", "not_finite", "cannot_record", "bad_file", "usage")
"""What a worker may answer."""
MAX_COUNT = 1 << 40
MAX_INT = 1 << 63
MAX_CALLS = 1000
MAX_HELD_BYTES = 1 << 30
"""What a worker may keep of values it was given or made, before the oldest are forgotten."""


@dataclass
class Batch:
    """Calls with the frame that asks for them."""

    calls: list[Call] = field(default_factory=list)
    plans: list[Any] = field(default_factory=list)
    give: list[Any] = field(default_factory=list)
    forget: list[str] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    tensors: list[Sendable] = field(default_factory=list)

    @property
    def head(self) -> dict[str, Any]:
        return {"plans": self.plans, "give": self.give, "forget": self.forget, "calls": self.rows}


def make(
    peer: Peer, lane: Lane, queue: deque[Call], now: float, most: int = MAX_CALLS, *, suspects: bool = True
) -> Batch:
    """Take calls from the queue into a batch; those that cannot run get their failure.

    A call in whose time something ended before goes alone, so that if it happens again, it is known
    which one did it; so does a fold, for whose end nobody else should wait. A call whose argument is
    being made by another worker stays in the queue; so does one that may end the gate, unless ``suspects``,
    and one of other private values than the lane's.
    """
    batch, inside, later, held = Batch(), set[str](), list[Call](), lane.worker.held
    while queue and len(batch.calls) < min(most, MAX_CALLS) and len(later) < MAX_CALLS:
        call = queue[0]
        alone = call.ends.workers or call.ends.gates or call.loop
        if alone and batch.calls:
            break
        queue.popleft()
        coming = call.refs and any(r in peer.coming and r not in inside for r in call.refs)
        if (call.suspect and not suspects) or coming or peer.private_sources(call) != lane.sources:
            later.append(call)
            continue
        failure = _add(peer, held, batch, call)
        if failure is not None and failure.code == "worker_died":
            peer.give_up_on(call, failure, now)
        elif failure is not None:
            peer.answered(call, failures(peer, call, failure), now)
        elif alone:
            break
        else:
            inside.update(call.results)
    queue.extendleft(reversed(later))
    _forget_oldest(peer, lane, batch)
    return batch


def _add(peer: Peer, held: Held, batch: Batch, call: Call) -> Failure | None:
    if call.ends.workers >= ATTEMPTS:
        return _worn_out(call)
    plan = peer.plan(call.plan)
    if (refused := refusal(call, plan)) is not None or not isinstance(plan, tuple):
        return refused
    if not call.word and (lacks := peer.quota.lacks(1)) is not None:
        return lacks
    if call.refs:
        call.sources = peer.sources_of(call)
    journal = peer.journal
    if not journal.are_open(call.sources) and not policy.may_be_given(journal.rules(call.sources), call.word):
        return Failure("denied", "its owner has not said a word for it")
    args = []
    data = folds.data(call.loop)
    for n, arg in enumerate(call.args):
        found = _argument(peer, held, batch, call, arg, whole=n not in data)
        if isinstance(found, Failure):
            return found
        args.append(found)
    _load(held, batch, call.plan, plan[0])
    seed = _seed(peer, call) if plan[1].random or call.loop else 0
    batch.calls.append(call)
    batch.rows.append([call.plan, args, [key_of(peer.name, r) for r in call.results], seed, folds.to_json(call.loop)])
    return None


def _seed(peer: Peer, call: Call) -> int:
    """Of open calls, from the message; of private ones, from the device's secret: who knows it could take off noise."""
    result = call.results[0] if call.results else ""
    if call.word:
        return peer.home.key.secret_seed(peer.name, call.seed, result)
    return ids.derive_seed(call.seed, result)


def refusal(call: Call, plan: tuple[PlanFile, Verified] | Failure | None) -> Failure | None:
    """Why a call cannot run, from its message and its plan alone."""
    if plan is None or isinstance(plan, Failure):
        return plan or Failure("unknown_plan", f"plan {call.plan[:12]} is not on the device", {"id": call.plan})
    if call.words:
        return Failure("spec_mismatch", f"a run takes its inputs in order, not by name: {call.words[0]!r}")
    if len(call.results) != len(plan[0].graph.output_vars):
        count = len(plan[0].graph.output_vars)
        return Failure("spec_mismatch", f"the plan gives {count} values, {len(call.results)} ids were named")
    return None


def _worn_out(call: Call) -> Failure:
    """A call that ended its worker too often: what ended it last, and what to do."""
    ends = call.ends
    kind, _, by = ends.kind.partition(" ")
    text = f"the device's worker ended {ends.workers} times while it did this"
    said = f"{KINDS.get(kind, '')}{f' by {by}' if by else ''}"
    if call.word:
        return Failure(
            "worker_died", "the device's worker ended each time while it did this", {"kind": kind or "other"}
        )
    facts = {"attempts": ends.workers, "kind": kind or "other"} | ({"signal": by} if by else {})
    return Failure("worker_died", f"{text}: {said}" if said else text, _hinted(facts))


def _hinted(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts with the hint of their kind, unless they have one."""
    hint = HINTS.get(facts.get("kind", ""))
    return {"hint": hint, **facts} if hint else facts


def key_of(scope: str, id_: str) -> str:
    return f"{id_}/{scope}"


def _argument(peer: Peer, held: Held, batch: Batch, call: Call, arg: RunArg, *, whole: bool = True) -> Any:
    """What the worker is told of an argument; not ``whole``: it is read by slices, and not kept."""
    match arg:
        case Inline() if not whole:
            return _slices(batch, peer.file(call.message).tensors[arg.name])
        case Inline():
            key = f"{arg.name}/{call.message}/inline"
            _give(held, batch, key, peer.file(call.message).tensors[arg.name])
            return key
        case Ref():
            if arg.id in peer.coming:
                return key_of(peer.name, arg.id)
            value = peer.journal.value(peer.name, arg.id)
            if value is None:
                return Failure("missing_value", f"{peer.told(call, arg.id)} was dropped", {"id": arg.id})
            return (value.failure and inherited(peer, call, value.failure, arg.id)) or _given(
                peer, held, batch, call, value, whole
            )
        case OwnerRef():
            value = peer.owners_version(arg.id) if call.word else peer.owners_value(arg.id)
            if value is None:
                return peer.owners_failure(arg.id)
            return _given(peer, held, batch, call, value, whole)
    return {"n": arg}


def inherited(peer: Peer, call: Call, failure: Failure, id_: str) -> Failure:
    """The failure of a call whose argument failed: the first cause, and which argument."""
    text = failure.text if "argument" in failure.fields else f"{peer.told(call, id_, digits=12)}: {failure.text}"
    return Failure(failure.code, text, {**failure.fields, "argument": id_})


def _slices(batch: Batch, raw: Sendable) -> Any:
    batch.tensors.append(raw)
    return {"m": len(batch.tensors) - 1}


def _given(peer: Peer, held: Held, batch: Batch, call: Call, value: Value, whole: bool) -> Any:
    if not value.type.is_tensor:
        return {"n": value.type.value}
    key = key_of(value.scope, value.id)
    if key not in held:
        try:
            raw = peer.store.stored(value)
            if not whole:
                return _slices(batch, raw)
            _give(held, batch, key, raw)
        except BadFile:
            return Failure("failed", f"the device lost {peer.told(call, value.id)}", {"id": value.id})
    return key


def _give(held: Held, batch: Batch, key: str, raw: Sendable) -> None:
    if key not in held:
        batch.give.append([key, len(batch.tensors)])
        batch.tensors.append(raw)
        held.add(key, raw.size_bytes)


def _load(held: Held, batch: Batch, id_: str, plan: Any) -> None:
    if id_ not in held:
        held.add(id_, sum(t.size_bytes for t in plan.state.values()))
        start = len(batch.tensors)
        batch.tensors += plan.state.values()
        state = list(range(start, len(batch.tensors)))
        batch.plans.append([id_, graph_to_json(plan.graph), state, list(plan.about.params), list(plan.about.refused)])


def _forget_oldest(peer: Peer, lane: Lane, batch: Batch) -> None:
    """Let the worker forget what was dropped, and what it got longest ago, beyond its share of memory."""
    held = lane.worker.held
    dropped, lane.dropped = [key_of(peer.name, d) for d in lane.dropped], []
    batch.forget = [key for key in dropped if held.forget(key)]
    if held.total_bytes <= MAX_HELD_BYTES:
        return
    used = {a for row in batch.rows for a in row[1] if isinstance(a, str)} | {row[0] for row in batch.rows}
    for key in held:
        if held.total_bytes <= MAX_HELD_BYTES:
            break
        if key not in used and held.forget(key):
            batch.forget.append(key)


def values(peer: Peer, call: Call, row: Any, tensors: Sequence[RawTensor], held: Held | None = None) -> list[Value]:
    """The contents of a call's results, from the row a worker sent; ``held``: what that worker holds."""
    if row[0] != "ok":
        return failures(peer, call, _explain(peer, call, row[1], row[3]))
    made: list[Value] = []
    before = 0
    for id_, one in zip(call.results, row[1], strict=True):
        made.append(_value(peer, call, id_, one, tensors, held, before))
        before += size(made[-1])
    return made


def failures(peer: Peer, call: Call, failure: Failure) -> list[Value]:
    """A failure in the place of all results; it comes from what they would have come from."""
    return [failed(peer.name, r, failure, _kept(call)) for r in call.results]


def _kept(call: Call) -> frozenset[str]:
    """What a result's sources are: of one that failed on open data alone there is nothing to keep."""
    return call.sources if call.word else frozenset()


def _value(
    peer: Peer, call: Call, id_: str, made: Any, tensors: Sequence[RawTensor], held: Held | None, before: int
) -> Value:
    """The content of a result; ``before``: bytes of the others that the same call gave."""
    if isinstance(made, dict) and "e" in made:
        code, _, fields = made["e"]
        return failed(peer.name, id_, _explain(peer, call, code, fields), _kept(call))
    if isinstance(made, dict):
        number = made["n"]
        type_ = Type(type(number).__name__, None, number)
        return Value(peer.name, id_, None, type_, sources=call.sources)
    raw = tensors[made]
    if held is not None:
        held.add(key_of(peer.name, id_), raw.size_bytes)
    lacks = None if call.word else peer.quota.lacks(before + VALUE_BYTES + raw.size_bytes)
    if lacks is not None:
        return failed(peer.name, id_, lacks, _kept(call))
    return peer.store.keep(peer.name, id_, raw, sources=call.sources)


def malformed(said: Answer, calls: Sequence[Call]) -> tuple[int, str] | None:
    """The first call whose row is none, and why; None if a worker may answer these calls so.

    What a tensor may be was checked as it was read; each is the content of one result at most.
    """
    if not isinstance(said.rows, list) or len(said.rows) != len(calls):
        return 0, "the worker sent too few rows, or too many"
    used: set[int] = set()
    count = len(said.tensors)
    for n, (call, row) in enumerate(zip(calls, said.rows, strict=True)):
        if not well_formed(row, count):
            return n, "the worker sent a malformed row"
        if row[0] != "ok":
            continue
        if len(row[1]) != len(call.results):
            return n, "the worker sent results that nobody asked for"
        for made in row[1]:
            if type(made) is int:
                if made in used:
                    return n, "the worker sent one tensor twice"
                used.add(made)
    return None


def well_formed(row: Any, tensors: int) -> bool:
    """Whether this is a row as a worker sends it: results that are there, or a failure in words."""
    if type(row) is not list or not row:
        return False
    if row[0] == "ok":
        if len(row) != 2 or type(row[1]) is not list:
            return False
        return all(0 <= made < tensors if type(made) is int else _is_made(made) for made in row[1])
    match row:
        case ["e", str(), str(), dict(), str()] | ["e", str(), str(), dict()]:
            return True
    return False


def _is_made(made: Any) -> bool:
    """Whether this is a failure in words, or a number."""
    match made:
        case {"e": [str(), str(), dict()]} | {"n": _}:
            return len(made) == 1 and ("e" in made or _is_number(made["n"]))
    return False


def _is_number(number: Any) -> bool:
    return type(number) in (bool, float) or (type(number) is int and -MAX_INT <= number < MAX_INT)


def _facts(fields: dict[str, Any]) -> dict[str, Any]:
    """Those facts of a worker that may travel: counts, and a kind of the list. No text of its own does."""
    facts: dict[str, Any] = {}
    for key in ("action", "input", "step", "steps"):
        if type(n := fields.get(key)) is int and -1 <= n <= MAX_COUNT:
            facts[key] = n
    if "kind" in fields:
        facts["kind"] = checked(fields["kind"])
    return facts


def _op(graph: Graph, action: int) -> str:
    """The op of an action, counted through bodies and variants as a worker does; "" where none is."""
    for part in (graph, *graph.variants):
        if 0 <= action < len(part.actions):
            return part.actions[action].op
        action -= len(part.actions) + sum(len(body.actions) for _, body in nested(part))
    return ""


def _explain(peer: Peer, call: Call, code: str, said: dict[str, Any]) -> Failure:
    """A failure a person can act on: which plan, which action, which line; or which argument failed first.

    What a worker says is not believed: its code is one of those that a replay has, its facts are
    of known kinds, and the words are the gate's own.
    """
    code, fields = code if code in CODES else "failed", _facts(said)
    if code == "not_finite":
        fields["kind"] = code
    for ref in call.refs:
        if (value := peer.journal.value(peer.name, ref)) and value.failure:
            return inherited(peer, call, value.failure, ref)
    plan = peer.plan(call.plan)
    text = WORDS.get(code, "it failed")
    if call.word:
        text, fields = _PRIVATE.get(code, "it failed"), {k: v for k, v in fields.items() if k in ("action", "kind")}
    elif isinstance(plan, tuple) and (why := _why(peer, call, plan[0], code, fields, said)) is not None:
        more = {"names": why.fields["names"]} if "names" in why.fields else {}
        text, fields = str(why), {**fields, **more, **({"hint": why.hint} if why.hint else {})}
    if isinstance(plan, tuple):
        text = f"plan {plan[0].about.name or 'plan'!r}: {_words(plan[0], code, text, fields)}"
    return Failure(code, text, fields if call.word else _hinted(fields))


WORDS = {
    "missing_value": "an argument has no value",
    "spec_mismatch": "a value is not of the type that the plan says",
    "not_allowed": "the device does not allow it",
    "not_finite": "a result is not finite",
    "cannot_record": "a result is one that no file can hold: more than 64 dimensions, 2**60 elements or more, a number "
    "beyond 64 bits, or a kind that is no dense tensor and no number",
    "bad_file": "an argument's bytes are not of its type",
    "usage": "it cannot be done like this",
}
"""What is told of a failure, if the gate cannot find out more: a worker's own words are for the device's owner."""


def _why(
    peer: Peer, call: Call, plan: PlanFile, code: str, fields: dict[str, Any], said: dict[str, Any]
) -> FedqError | None:
    """What a worker found, found once more by the gate, from types; of a fold that stopped, in the gate's words."""
    try:
        if code == "spec_mismatch":
            folds.check(plan.graph, call.loop, *_known(peer, call), about=plan.about)
        if code == "not_finite" and call.loop and {"step", "steps"} <= fields.keys():
            names = output_names(plan.graph, plan.about, call.loop.carry)
            odd = [i for i in range(len(names)) if i in _whole(said.get("outputs"))]
            return folds.not_finite(odd, names, fields["step"], fields["steps"], call.loop)
    except FedqError as error:
        return error
    return None


def _whole(numbers: Any) -> set[int]:
    return {n for n in numbers if type(n) is int} if isinstance(numbers, list) else set()


def _known(peer: Peer, call: Call) -> tuple[list[Type], list[Any]]:
    """Types of a call's arguments, and the values of those that are numbers; None of those that are not known here."""
    types = [_type_of(peer, call, arg) for arg in call.args]
    return types, [t.value if not t.is_tensor else None for t in types]


def _type_of(peer: Peer, call: Call, arg: RunArg) -> Type:
    match arg:
        case Inline():
            raw_ = peer.file(call.message).tensors[arg.name]
            return Type(raw_.dtype, raw_.shape)
        case Ref() | OwnerRef():
            value = peer.journal.value(peer.name, arg.id) if isinstance(arg, Ref) else peer.owners_value(arg.id)
            if value is None:
                raise MissingValue("an argument has no value")
            return value.type
    return Type(type(arg).__name__, None, arg)


_PRIVATE = {
    "missing_value": "an argument is missing",
    "spec_mismatch": "an argument's type is not one that the plan takes",
    "not_allowed": "the device does not allow it",
    "not_finite": "a result is not finite",
}
"""What is told of a failure on private values instead of a worker's words: no number, no size, no text of theirs."""


def _words(plan: PlanFile, code: str, text: str, fields: dict[str, Any]) -> str:
    """What failed, where and why; adds op and line to the facts."""
    step = f"in step {fields['step']} of {fields['steps']}" if {"step", "steps"} <= fields.keys() else ""
    why = f": {KINDS[fields['kind']]}" if fields.get("kind", "other") != "other" else ""
    action = fields.get("action", -1)
    if action < 0:
        fields.pop("action", None)
        return " ".join(filter(None, (f"it failed{why}" if code == "failed" else text, step)))
    found = {"op": _op(plan.graph, action), "line": plan.about.line(action)}
    fields |= {k: v for k, v in found.items() if v}
    where = ", ".join(filter(None, (found["line"], step)))
    return f"action {action} {found['op']} failed{why}" + (f"   {where}" if where else "")
