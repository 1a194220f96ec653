"""What a block under a token asks for, as text: to know it again, and to say in what another differs.

Of it is all that the user wrote: calls, tensors, questions, operations on pointers. Not of it is how
it travels: whether a plan rides along, how operations become plans (that depends on which pointers
are still in use), the names of tensors in the file. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from fedq import ids
from fedq.client.pending import Step
from fedq.plan.codec import RawTensor, sha256
from fedq.plan.graph import About, canonical, graph_to_json
from fedq.plan.spec import argument
from fedq.queue.message import (
    Address,
    Fold,
    Get,
    Inline,
    Message,
    OwnerRef,
    Put,
    Ref,
    Run,
    RunArg,
    SendPlan,
    Verb,
    message_to_json,
)

if TYPE_CHECKING:
    from fedq.client.pointers import PointerTensor

MOST_STEPS, MOST_FACTS = 300, 40
"""Only so much is remembered one by one; whether all of it is the same is always known."""
_KINDS = {"put": "a tensor sent", "run": "a call", "fold": "a fold", "get": "a question", "op": "an operation"}


@dataclass(frozen=True, slots=True)
class Content:
    """A request, as far as it must be the same to be the same request.

    Attributes:
        digest: of all of it.
        steps: of each thing that was asked for, in words without blanks: its kind, then its facts.
    """

    digest: str
    steps: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        return "\n".join([self.digest, *map(" ".join, self.steps)])

    @staticmethod
    def parse(text: str) -> Content:
        digest, *steps = text.split("\n")
        return Content(digest, tuple(tuple(step.split(" ")) for step in steps))


_NOBODY = Address("", "", "")


def content(verbs: Iterable[Verb], tensors: Mapping[str, RawTensor], operations: Sequence[Step]) -> Content:
    """What these actions and operations ask for; ``tensors``: those that the actions name."""
    asked = [_by_content(verb, tensors) for verb in verbs if not isinstance(verb, SendPlan)]
    rows = message_to_json(Message("", "", _NOBODY, 0.0, 0.0, 0, tuple(asked)))["actions"]
    made = [_operation(step) for step in operations]
    digest = ids.digest(b"content", canonical(rows), *(part for parts in made for part in parts))
    told = [_told(verb, row) for verb, row in zip(asked[:MOST_STEPS], rows, strict=False)]
    told += [
        ("op", _short(graph), *map(_argument, map(_given, s.given)))
        for s, (graph, *_) in zip(operations, made, strict=True)
    ]
    return Content(digest, tuple(step[:MOST_FACTS] for step in told[:MOST_STEPS]))


def _by_content(verb: Verb, tensors: Mapping[str, RawTensor]) -> Verb:
    """The action with its tensors named by what they hold."""

    def named(args: tuple[RunArg, ...]) -> tuple[RunArg, ...]:
        return tuple(Inline(_digest(tensors[a.name])) if isinstance(a, Inline) else a for a in args)

    match verb:
        case Put():
            return replace(verb, tensor=_digest(tensors[verb.tensor]))
        case Run():
            return replace(verb, args=named(verb.args))
        case Fold():
            return replace(verb, carry=named(verb.carry), data=named(verb.data), args=named(verb.args))
    return verb


def _digest(raw: RawTensor) -> str:
    return ids.digest(f"{raw.dtype}{list(raw.shape)}".encode(), sha256([raw.data]))


def _operation(step: Step) -> tuple[bytes, ...]:
    """An operation: what it computes, its arguments, the ids of its results."""
    given = canonical([repr(_given(g)) for g in step.given])
    return canonical(graph_to_json(step.graph)), given, canonical(list(step.results))


def _given(given: PointerTensor | RawTensor | str) -> Ref | OwnerRef | Inline:
    if isinstance(given, RawTensor):
        return Inline(_digest(given))
    return Ref(given) if isinstance(given, str) else given.reference


def _told(verb: Verb, row: list[object]) -> tuple[str, ...]:
    match verb:
        case Put():
            return "put", f"t{_short(verb.tensor)}", _short(canonical([verb.tag, verb.note]))
        case Run():
            return "run", verb.plan, *map(_argument, verb.args)
        case Fold():
            options = _short(canonical([len(verb.carry), len(verb.data), row[4]]))
            return "fold", verb.plan, *map(_argument, verb.given), f"options-{options}"
        case Get():
            return "get", *map(_short, verb.values)
    return str(row[0]), _short(canonical(row))


def _argument(arg: RunArg) -> str:
    """A letter for what it is, then what tells it from others."""
    match arg:
        case Ref() | OwnerRef():
            return f"v{_short(arg.id)}"
        case Inline():
            return f"t{_short(arg.name)}"
    return f"n{_short(repr(arg))}"


def _short(fact: str | bytes) -> str:
    return ids.digest(fact if isinstance(fact, bytes) else fact.encode())[:8]


# -- in what two differ ----------------------------------------------------------------------


def difference(before: Content, now: Content, called: Mapping[str, About]) -> tuple[str, str]:
    """Where the two part: a sentence, and what may have changed there.

    Args:
        called: of plans, by their ids, where known: their names, and their arguments' paths.
    """
    for n, (old, new) in enumerate(zip_longest(before.steps, now.steps), 1):
        if old != new:
            return _parts_at(n, old, new, called)
    long = next((n for n, step in enumerate(now.steps, 1) if len(step) == MOST_FACTS), None)
    beyond = "" if long is None else f"in an argument of its step {long} beyond the first {MOST_FACTS - 2}, or "
    return f"it differs {beyond}after the first {len(now.steps)} steps, or in the ids of its results", ""


def plans(*contents: Content) -> set[str]:
    """The ids of plans that these call."""
    return {step[1] for c in contents for step in c.steps if step[0] in ("run", "fold") and len(step) > 1}


def _parts_at(
    n: int, old: Sequence[str] | None, new: Sequence[str] | None, called: Mapping[str, About]
) -> tuple[str, str]:
    if old is None or new is None:
        more, kind = ("now", new) if old is None else ("before", old)
        return f"its step {n}, {_kind(kind)}, was asked for only {more}", ""
    if old[0] != new[0]:
        return f"its step {n} was {_kind(old)}, and is {_kind(new)} now", ""
    if old[0] in ("run", "fold") and old[1] != new[1]:
        then, there = (f"{_name(s[1], called)} {s[1][:12]}" for s in (old, new))
        why = (
            ""
            if _name(old[1], called) != _name(new[1], called)
            else "a plan whose parameters or code changed is another one"
        )
        return f"its step {n} called {then}, and calls {there} now", why
    at = next(at for at, (a, b) in enumerate(zip_longest(old[1:], new[1:])) if a != b)
    step, fact = f"its step {n}, {_kind(old)}{_of(new, called)}", (*new, *[""] * len(old))[at + 1]
    return f"{step}, has {_facts(old, at, fact, called)} than before", _WHY.get(fact[:1], "")


def _kind(step: Sequence[str] | None) -> str:
    return _KINDS.get(step[0], step[0]) if step else ""


def _of(step: Sequence[str], called: Mapping[str, About]) -> str:
    return f" of {_name(step[1], called)} {step[1][:12]}" if step[0] in ("run", "fold") else ""


def _name(plan: str, called: Mapping[str, About]) -> str:
    return (called[plan].name if plan in called else "") or "plan"


def _path(plan: str, at: int, called: Mapping[str, About]) -> str:
    """What an argument of a call is called; its number, of a plan that is not known here."""
    path = argument(called.get(plan, About()), at)
    return path or str(at)


_WHY = {
    "v": "a tag may name another value now, and what is sent outside the block is another value each time",
    "t": "a tensor that is drawn or read anew is another one",
}


def _facts(step: Sequence[str], at: int, fact: str, called: Mapping[str, About]) -> str:
    """What the fact at this place is, as in "has another value as argument batch[0]"."""
    what = {"v": "value", "t": "tensor", "n": "number"}.get(fact[:1], "value")
    match step[0], at:
        case ("put", 0):
            return "another tensor"
        case ("put", _):
            return "another tag or note"
        case ("fold", _) if not fact.startswith(("v", "t", "n")):
            return "other options"
        case ("run" | "fold", _):
            return f"another {what} as argument {_path(step[1], at - 1, called)}"
        case ("op", 0):
            return "another operator, or other shapes, dtypes or numbers,"
        case ("op", _):
            return f"another {what} as argument {at - 1}"
    return "another value asked for"
