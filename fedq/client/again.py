"""Take back what was sent, or send it anew under new ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fedq.client import fetch, sending, standing
from fedq.client.draft import Draft
from fedq.client.pointers import PointerTensor
from fedq.errors import UnknownValue, UsageError
from fedq.plan.codec import decode
from fedq.plan.graph import Type
from fedq.queue.message import (
    Cancel,
    Failure,
    Fold,
    Get,
    OwnerRef,
    Put,
    Ref,
    Run,
    RunArg,
    SendPlan,
    Verb,
    decode_message,
)

if TYPE_CHECKING:
    from fedq.client.device import Device

DONE = ("taken", "dropped", "fetched", "failed", "answered", "expired", "refused")


def cancel(pointers: Sequence[PointerTensor]) -> dict[str, list[str]]:
    """Ask the devices not to do the messages that make these; what is running ends, what is done stays done.

    Returns:
        device -> messages.

    Raises:
        UnknownValue: a value is not the result of a message of this requester.
    """
    found: dict[str, list[str]] = {}
    for p in pointers:
        message = _maker(p)
        if message not in found.setdefault(p.device.name, []):
            found[p.device.name].append(message)
    devices = {p.device.name: p.device for p in pointers}
    for name, messages in found.items():
        devices[name].submit([Cancel(tuple(messages))])
    return found


def _maker(p: PointerTensor) -> str:
    made = p.device.client.history.of(p.device.number, p.address)
    if made is None:
        raise UnknownValue(f"{p.device.name}:{p.address} was not made by a message of yours")
    return made.message


def retry(pointer: PointerTensor) -> list[PointerTensor]:
    """Send the message that makes a value again, as another: its results get new ids.

    Returns:
        the new results, in the order of the old; the one that was named is among them.

    Raises:
        UsageError: it may still come, or the message is not kept any more.
    """
    return [new for _, new in pairs(pointer)]


def pairs(pointer: PointerTensor) -> list[tuple[str, PointerTensor]]:
    """The same, each beside the id of the old result. A replaced value of the owner's is read as it is now."""
    device, message = pointer.device, _maker(pointer)
    (stands,) = standing.of(device, [pointer.address])
    if stands.state not in DONE:
        raise UsageError(
            f"{device.name}:{pointer.address} may still come: {stands.why or stands.state}",
            hint=f"fedq cancel {device.name}:{pointer.address}",
        )
    raw = device.client.history.file(device.number, message)
    if raw is None:
        raise UsageError(
            f"message {message} is not kept any more (its results came, or it is large)", hint="run it again"
        )
    file, there = decode(raw), {e.id for e in device.catalog().values if e.owners}
    instead = _instead(device, pointer.address)

    def moved(id_: str) -> str:
        return id_ if id_ in there else instead or id_

    draft = device._new_draft()
    new = {id_: draft.new_id() for verb in decode_message(file).actions for id_ in _makes(verb)}
    draft.actions = [
        _renamed(v, new, draft, moved)
        for v in decode_message(file).actions
        if isinstance(v, Put | SendPlan | Run | Fold | Get)
    ]
    draft.tensors = dict(file.tensors)
    draft.types = {new_id: _type(device, old) for old, new_id in new.items()}
    outbox = device.client.outbox
    draft.private = {
        i: frozenset(map(moved, p.private)) for old, i in new.items() for p in outbox.promised(device.number, old)
    }
    sending.send(device, draft)
    private = draft.private
    return [
        (old, PointerTensor(device, i, draft.types[i], private=private.get(i, frozenset()))) for old, i in new.items()
    ]


def _type(device: Device, value: str) -> Type | None:
    made = device.client.history.of(device.number, value)
    return Type.parse(made.type) if made and made.type else None


def _makes(verb: Verb) -> tuple[str, ...]:
    return (verb.id,) if isinstance(verb, Put) else verb.results if isinstance(verb, Run | Fold) else ()


def _instead(device: Device, value: str) -> str:
    """The owner's value that took the place of one that a message reads, if that was why it failed."""
    reply = device.client.outbox.replies(device.number, [value], device.client.now()).get(value, "")
    came = fetch.kept(device, reply, value) if reply else None
    failure = came.reply.values[value] if came else None
    return str(failure.fields.get("id", "")) if isinstance(failure, Failure) and failure.code == "replaced" else ""


def _renamed(verb: Verb, new: Mapping[str, str], draft: Draft, moved: Callable[[str], str]) -> Verb:
    """The same action on the new ids."""

    def args(given: tuple[RunArg, ...]) -> tuple[RunArg, ...]:
        return tuple(_arg(a) for a in given)

    def _arg(arg: RunArg) -> RunArg:
        if isinstance(arg, OwnerRef):
            return OwnerRef(moved(arg.id))
        return Ref(new.get(arg.id, arg.id)) if isinstance(arg, Ref) else arg

    def ids(old: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(new.get(id_, id_) for id_ in old)

    match verb:
        case Put():
            return replace(verb, id=new[verb.id])
        case Run():
            named = dict(zip(verb.kwargs, args(tuple(verb.kwargs.values())), strict=True))
            return replace(verb, args=args(verb.args), kwargs=named, results=ids(verb.results))
        case Fold():
            carry, data, rest = args(verb.carry), args(verb.data), args(verb.args)
            return replace(verb, carry=carry, data=data, args=rest, results=ids(verb.results))
        case Get():
            values = tuple(moved(i) if i in verb.owners else new.get(i, i) for i in verb.values)
            owners = frozenset(map(moved, verb.owners))
            return replace(verb, reply=new.get(verb.reply) or draft.new_id(), values=values, owners=owners)
    return verb
