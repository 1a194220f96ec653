"""Take back what was sent, or send it anew under new ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fedq.client import sending, standing
from fedq.client.draft import Draft
from fedq.client.pointers import PointerTensor
from fedq.errors import UnknownValue, UsageError
from fedq.plan.codec import decode
from fedq.plan.graph import Type
from fedq.queue.message import Cancel, Fold, Get, Put, Ref, Run, RunArg, SendPlan, Verb, decode_message

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
    file = decode(raw)
    draft = device._new_draft()
    new = {id_: draft.new_id() for verb in decode_message(file).actions for id_ in _makes(verb)}
    draft.actions = [
        _renamed(v, new, draft)
        for v in decode_message(file).actions
        if isinstance(v, Put | SendPlan | Run | Fold | Get)
    ]
    draft.tensors = dict(file.tensors)
    draft.types = {new_id: _type(device, old) for old, new_id in new.items()}
    outbox = device.client.outbox
    draft.private = {i: p.private for old, i in new.items() for p in outbox.promised(device.number, old) if p.private}
    sending.send(device, draft)
    private = draft.private
    return [PointerTensor(device, i, draft.types[i], private=private.get(i, frozenset())) for i in new.values()]


def _type(device: Device, value: str) -> Type | None:
    made = device.client.history.of(device.number, value)
    return Type.parse(made.type) if made and made.type else None


def _makes(verb: Verb) -> tuple[str, ...]:
    return (verb.id,) if isinstance(verb, Put) else verb.results if isinstance(verb, Run | Fold) else ()


def _renamed(verb: Verb, new: Mapping[str, str], draft: Draft) -> Verb:
    """The same action on the new ids."""

    def args(given: tuple[RunArg, ...]) -> tuple[RunArg, ...]:
        return tuple(Ref(new.get(a.id, a.id)) if isinstance(a, Ref) else a for a in given)

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
            return replace(
                verb, reply=new.get(verb.reply) or draft.new_id(), values=ids(verb.values), owners=verb.owners
            )
    return verb
