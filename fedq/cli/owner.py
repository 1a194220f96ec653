"""What an owner is shown of questions, as text and as JSON. Names of a sender's are spelled by `fedq.spelling`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fedq import spelling
from fedq.cli import show
from fedq.cli.inspect import size
from fedq.device.evidence import Evidence, Leaving, Own, Read, Reader, Step
from fedq.device.journal import QuestionRow, Value
from fedq.device.record import Entry
from fedq.plan import typed
from fedq.plan.codec import RawTensor
from fedq.plan.graph import show as printed

if TYPE_CHECKING:
    import numpy as np

CHAIN = 100
"""Characters of a chain in a line of the list."""
FIRST = 8
"""Values of a requester's tensor that are shown."""
MOST_OWN = 50
"""Tensors of a requester's that are listed one by one, if nothing about them is striking."""
WORDS = {
    "look": "looked at", "approve": "approved", "deny": "denied", "replaced": "replaced", "removed": "removed",
    "expired": "expired",
}  # fmt: skip


def chain(text: str) -> str:
    """``step(double_abs(#readings))``; what is no name in it is escaped."""
    return spelling.name(text, also="()#, :{}'[]=+", most=CHAIN)


# -- the list ----------------------------------------------------------------------------------


def line(device: str, found: Evidence, now: float) -> tuple[str, ...]:
    """A question in a line: reference, age, who, plans, what it reads, what would leave, how it is made, notes."""
    row = found.row
    return (
        f"{device}:{row.reply}", show.ago(now - row.received), spelling.name(row.sender),
        ", ".join(f"{spelling.name(n)} {p[:8]}" for p, (n, _, _) in found.graphs.items()) or "no plan",
        f"reads {', '.join(map(read, found.reads))}",
        f"leaves {', '.join(leaving(v) for v in found.leaves)}",
        "; ".join(map(chain, row.about["chain"])),
        ", ".join(notes(found, now)),
    )  # fmt: skip


def read(value: Read) -> str:
    return f"#{spelling.name(value.tag)} {value.type}" if value.tag else f"{value.id[:12]} {value.type}"


def leaving(value: Leaving) -> str:
    count = typed.size_bytes(value.type)
    return f"{value.type} {'? B' if count is None else size(count)}"


def notes(found: Evidence, now: float) -> Iterator[str]:
    """What else an owner should know: the same before, looked at, incomplete."""
    if found.row.state == "ended":
        yield f"{WORDS.get(found.row.word, 'answered')}{day(found.row.decided, now)}"
    elif found.row.word == "approve":
        yield "approved, under way"
    elif found.row.state == "looked":
        yield "looked at"
    elif found.row.word == "look":
        yield "look, under way"
    if found.before:
        yield same_before(found.before, now)
    if found.row.about["misses"]:
        yield f"incomplete, misses {', '.join(found.row.about['misses'])}"


def same_before(before: Sequence[QuestionRow], now: float) -> str:
    """``4th time, denied Tuesday``."""
    said = [r for r in before if r.word in WORDS and r.word != "look"]
    last = max(said, key=lambda r: r.decided or r.received, default=None)
    verdict = f", {WORDS[last.word]}{day(last.decided, now)}" if last is not None else ""
    return f"{ordinal(len(before) + 1)} time{verdict}"


def ordinal(n: int) -> str:
    end = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{end}"


def day(time: float | None, now: float) -> str:
    """`` today``, `` Tuesday``, `` 2026-11-03``."""
    if time is None:
        return ""
    then, today = datetime.fromtimestamp(time, UTC), datetime.fromtimestamp(now, UTC)
    days = (today.date() - then.date()).days
    return " today" if days == 0 else f" {then:%A}" if 0 < days < 7 else f" {then:%Y-%m-%d}"


def unasked(device: str, counts: Mapping[str, int]) -> Iterator[str]:
    """Calls on private values that nobody asked for."""
    for sender, count in counts.items():
        text = f"{show.plural(count, 'private call')} of {spelling.name(sender)} that nobody asked for"
        yield f"{device}  {text}: {'it does' if count == 1 else 'they do'} not run"


# -- one question ------------------------------------------------------------------------------


def page(device: str, found: Evidence, now: float) -> str:
    """All that is known of a question."""
    row = found.row
    tags = {r.id: read(r).partition(" ")[0] for r in found.reads}
    head = [
        ("question", f"{device}:{row.reply}"),
        ("from", spelling.name(row.sender)),
        ("asked", f"{show.when(row.received)}, {show.ago(now - row.received)} ago; waits until {show.when(row.until)}"),
        *((("state", ", ".join(notes(found, now))),) if any(notes(found, now)) else ()),
        *(("reads", f"{read(r)}  {r.id}") for r in found.reads),
        *(("leaves", leaves_in_full(v, tags)) for v in found.leaves),
        *(("chain", chain(c)) for c in row.about["chain"]),
    ]
    parts = [show.table(head), *(step_text(s, found) for s in _once(found.steps))]
    if found.own:
        parts.append("\n".join(["the requester's own tensors:", own_table(found.own)]))
    return "\n\n".join(parts)


def leaves_in_full(value: Leaving, tags: Mapping[str, str]) -> str:
    """``f32[] 4 B  0197…  made from #readings``; what flows in, and what it only depends on."""
    flows = ", ".join(sorted(tags.get(s, s[:12]) for s in value.sources)) or "nothing private"
    others = ", ".join(sorted(tags.get(s, s[:12]) for s in value.private - value.sources))
    also = f"; {others} does not flow in, but decides whether it comes to be" if others else ""
    return f"{leaving(value)}  {value.id}  made from {flows}{also}"


def _once(steps: Sequence[Step]) -> list[Step]:
    """Each plan with types of its own once, however many calls replay it so."""
    return list({(s.plan_id, tuple(map(str, s.types)), s.graph and s.graph.inputs): s for s in steps}.values())


def step_text(step: Step, found: Evidence) -> str:
    name, graph, known = found.graphs.get(step.plan_id, ("plan", "", False))
    news = f"its graph {graph[:12]} {'was seen before' if known else 'is new to this device'}"
    count = sum(s.plan_id == step.plan_id for s in found.steps)
    head = f"plan {spelling.name(name)} {step.plan_id}, {news}{f', {count} calls' if count > 1 else ''}"
    if step.loop is not None:
        b = step.loop.batches
        head += f", a fold over batches of {b.size}, {show.plural(b.epochs, 'epoch')}, metrics: {step.loop.metrics}"
    if step.plan is None:
        return f"{head}\n  {step.refused or 'it is not kept any more'}"
    if step.graph is None:
        why = spelling.text(step.refused or "its message is not kept any more")
        said = "types below are the sender's claims, and may be false"
        return f"{head}\n  no types were found: {why}; {said}\n{printed(step.plan.graph, step.plan.about, claims=True)}"
    return f"{head}\n{printed(step.graph, step.plan.about, claims=True)}"


def own_table(own: Sequence[Own]) -> str:
    """A line per tensor: those that could pick out rows first; of many others, how many there are."""
    rows = sorted(((o, looks(o.raw)) for o in own), key=lambda pair: not pair[1]["flag"])
    shown = [(o, seen) for n, (o, seen) in enumerate(rows) if seen["flag"] or n < MOST_OWN]
    lines = [
        (
            f"  {spelling.name(o.name, also='/')}", seen["type"],
            f"least {seen['least']}", f"largest {seen['largest']}",
            f"{seen['nonzeros']} of {seen['count']} not 0", " ".join(map(str, seen["first"])), seen["flag"],
        )
        for o, seen in shown
    ]  # fmt: skip
    rest = len(rows) - len(shown)
    return show.table(lines) + (f"\n  and {rest} more" if rest else "")


def looks(raw: RawTensor) -> dict[str, Any]:
    """What a tensor looks like: type, least, largest, count of nonzeros, first values, and what is striking."""
    from fedq.plan.arrays import to_numpy, type_of

    array = to_numpy(raw)
    flat = array.reshape(-1)
    plain = array.dtype.kind != "c" and array.size
    return {
        "type": str(type_of(raw)),
        "least": _number(flat.min()) if plain else None,
        "largest": _number(flat.max()) if plain else None,
        "nonzeros": int((flat != 0).sum()),
        "count": int(array.size),
        "first": [_number(v) for v in flat[:FIRST]],
        "flag": _flag(array),
    }


def _number(value: Any) -> Any:
    """A value short enough for a line; what JSON has no word for as text."""
    plain = value.item()
    if isinstance(plain, float):
        short = float(f"{plain:.6g}")
        return short if short - short == 0 else str(short)
    return str(plain) if isinstance(plain, complex) else plain


def _flag(array: np.ndarray[Any, Any]) -> str:
    """``one-hot``, ``0/1 mask``, ``one value that is not 0``: what picks out rows."""
    if array.size < 2 or array.dtype.kind == "c":
        return ""
    nonzero = array != 0
    if bool(((array == 0) | (array == 1)).all()):
        if array.ndim and array.shape[-1] > 1 and bool((nonzero.sum(-1) == 1).all()):
            return "one-hot"
        if array.ndim > 1 and array.shape[0] > 1 and bool((nonzero.sum(0) == 1).all()):
            return "one-hot"
        return "one value that is not 0" if int(nonzero.sum()) == 1 else "0/1 mask"
    return "one value that is not 0" if int(nonzero.sum()) == 1 else ""


def outcome(device: str, reader: Reader, row: QuestionRow) -> str:
    """The values, or why there are none, in full; for the owner alone."""
    found = reader.outcome(row)
    why = reader.why(row) if any(value is not None and value.failure for _, value, _ in found) else []
    lines = [f"  | {_indented(line)}" for text in why for line in text.splitlines()]
    return "\n".join([values(device, found), *lines])


def _indented(line: str) -> str:
    """A line of a failure's text, which others may have written: its spaces as they are."""
    words = line.split(" ")
    return " ".join(spelling.text(word, most=1000) if word else "" for word in words)


def values(device: str, found: Sequence[tuple[str, Value | None, RawTensor | None]]) -> str:
    lines = []
    for id_, value, raw in found:
        lines.append(f"{device}:{id_}")
        if raw is not None:
            lines.append(show.tensor(raw))
        elif value is None:
            lines.append("it is not there")
        elif value.failure is not None:
            lines.append(f"failed, {value.failure.code}: {spelling.text(value.failure.text)}")
        else:
            lines.append(str(value.type.value))
    return "\n".join(lines)


def record(entries: Sequence[Entry]) -> str:
    """A line for each thing that happened: when, whose, what, which, and more; further lines of it below."""
    rows, more = [], []
    for e in entries:
        first, *rest = e.text.split("\n")
        about = ", ".join(f"#{spelling.name(t)}" for t in e.tags)
        shown = chain(first) if e.what == "asked" else spelling.text(first)
        who = f"by {e.by}" if e.by else ""
        rows.append(
            (show.when(e.time), spelling.name(e.requester), e.what, e.ref, about, " ".join(filter(None, (shown, who))))
        )
        more.append("".join(f"\n  | {spelling.text(line, most=1000)}" for line in rest))
    return "\n".join(map("".join, zip(show.table(rows).splitlines(), more, strict=True)))


def as_json(device: str, found: Evidence) -> dict[str, Any]:
    """A question for programs; what a sender claims stands under ``claims``."""
    row, about = found.row, found.row.about
    return {
        "device": device, "reply": row.reply, "requester": row.sender, "received": row.received, "until": row.until,
        "state": row.state, "word": row.word, "why": row.why, "decided": row.decided,
        "plans": [{"id": p, "claims": {"name": n}, "graph": g, "seen_before": seen}
                  for p, (n, g, seen) in found.graphs.items()],
        "reads": [{"id": r.id, "tag": r.tag, "type": str(r.type), "release": r.release} for r in found.reads],
        "leaves": [{"id": v.id, "type": str(v.type), "bytes": typed.size_bytes(v.type), "from": sorted(v.sources),
                    "depends_on": sorted(v.private)} for v in found.leaves],
        "claims": {"chain": about["chain"]},
        "misses": about["misses"],
        "before": [{"reply": r.reply, "requester": r.sender, "word": r.word, "decided": r.decided}
                   for r in found.before],
    }  # fmt: skip


def page_json(device: str, found: Evidence) -> dict[str, Any]:
    """The same with printed plans and the requester's tensors."""
    own = [{"name": o.name, **looks(o.raw)} for o in found.own]
    return {**as_json(device, found), "steps": [step_text(s, found) for s in _once(found.steps)], "own": own}
