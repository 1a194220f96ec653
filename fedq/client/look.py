"""What a device offers this requester: values and plans by tag, name, id, or the first digits of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fedq import ids, spelling
from fedq.client.pointer_plans import PointerPlan
from fedq.client.pointers import PointerTensor
from fedq.errors import Ambiguous, UnknownPlan, UnknownValue
from fedq.plan.codec import parse_json
from fedq.plan.graph import Type, about_from_json, graph_from_json
from fedq.queue.pair import Entry

if TYPE_CHECKING:
    from fedq.client.device import Device

MOST_TOLD = 20
"""Names that a message lists at most."""


def value(device: Device, ref: str) -> PointerTensor:
    """The one value with this tag or id; UnknownValue, Ambiguous."""
    entries = device.catalog().values
    fits = [e for e in entries if ref.removeprefix("#") in tags(e)]
    found = {e.id: _pointer(device, e) for e in fits}
    if not found and len(ref) >= 6 and all(c in "0123456789abcdef" for c in ref):
        found = by_id(device, ref)
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise Ambiguous(f"{ref!r} fits {len(found)} values on {device.name}: {some(found)}", hint="use the id")
    there = some(t for e in entries for t in tags(e))
    never = "; this id was never promised to you" if ids.is_id(ref) else ""
    raise UnknownValue(f"no value {ref!r} on {device.name}{never} (tags there: {there})")


def by_id(device: Device, prefix: str) -> dict[str, PointerTensor]:
    """Values whose id begins so: of the catalog, and those the device was asked to make."""
    found = {e.id: _pointer(device, e) for e in device.catalog().values if e.id.startswith(prefix)}
    for p in device.client.outbox.promised(device.number, prefix):
        if p.state and p.id == prefix:
            raise UnknownValue(f"{p.id} on {device.name} was taken away by .get()", hint=".copy() leaves it there")
        if not p.state:
            found[p.id] = PointerTensor(device, p.id, Type.parse(p.type) if p.type else None, private=p.private)
    return found


def search(device: Device, texts: Sequence[str]) -> list[PointerTensor]:
    """Values whose tags or note contain each of the texts."""
    words = [t.removeprefix("#").lower() for t in texts]
    fits = (e for e in device.catalog().values if all(w in f"{e.tag or ''}\n{e.note}".lower() for w in words))
    return [_pointer(device, e) for e in fits]


def plan(device: Device, ref: str) -> PointerPlan:
    """The one plan with this name or id that was sent there; UnknownPlan, Ambiguous."""
    rows = device.client.history.plans(device.number, ref)
    if len(rows) > 1:
        raise Ambiguous(
            f"{ref!r} fits {len(rows)} plans on {device.name}: {some(r.id[:12] for r in rows)}",
            hint="name it by 6 or more digits of its id, or send the plan: what is there is not sent again",
        )
    for row in rows:
        graph, about = graph_from_json(parse_json(row.graph)), about_from_json(parse_json(row.about))
        return PointerPlan(device, row.id, graph, about)
    names = some(name for _, name in device.catalog().plans)
    raise UnknownPlan(f"no plan {ref!r} was sent to {device.name} (plans there: {names})", hint="send its file")


def some(names: Iterable[str]) -> str:
    """Names that a device gave, as a message tells them: spelled, sorted, the first of many."""
    told = sorted(map(spelling.text, set(names)))
    more = f" and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    return ", ".join(told[:MOST_TOLD]) + more or "none"


def tags(entry: Entry) -> list[str]:
    """The tag of a value, and the words with ``#`` in its note."""
    more = [word.removeprefix("#") for word in entry.note.split() if word.startswith("#")]
    return [entry.tag, *more] if entry.tag else more


def _pointer(device: Device, entry: Entry) -> PointerTensor:
    tag = entry.tag and spelling.line(entry.tag)
    return PointerTensor(device, entry.id, entry.type, tag, owners=entry.owners, private=entry.private)
