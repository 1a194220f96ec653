"""Ask for values and wait for the replies: read, check the signature, say why nothing comes.

Events are hints: a reply is looked for at least every second. A file that the device did not
sign, or that is another reply, is not there for us: the wait goes on.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fedq import errors
from fedq.client.rest import collector_rests
from fedq.errors import BadFile, BadSignature, FedqError, TimedOut, UnknownPlan, WaitingForApproval
from fedq.plan.codec import Buffer, RawTensor, decode
from fedq.queue import pair as pairs
from fedq.queue.message import Failure, Number, Reply, decode_reply
from fedq.queue.pair import Heartbeat
from fedq.queue.watch import spin
from fedq.trust import keys

if TYPE_CHECKING:
    from fedq.client.device import Device
    from fedq.client.pointers import PointerTensor

log = logging.getLogger("fedq.client")

SCAN_S = 1.0
STEPS_S = 5.0
"""How often who waits is told how far a fold is."""
SILENT_S = 30.0
"""A device that was not heard of for so long is not running, whatever it said last."""
ASKED = "it waits for its owner"
HELD = "held: the device's daemon ended five times while it ran; it goes on when its owner says so"
ASK_AGAIN = ("missing_value",)
"""Failures that may be over when the value is asked for again."""

Outcome = RawTensor | Number | FedqError
OnWait = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Arrived:
    """A reply that was checked, with its tensors."""

    reply: Reply
    tensors: dict[str, RawTensor]

    def outcome(self, device: str, id_: str) -> Outcome:
        value = self.reply.values[id_]
        if isinstance(value, Failure):
            return as_error(value, device)
        return value if isinstance(value, Number) else self.tensors[value]


def as_error(failure: Failure, device: str) -> FedqError:
    """What a device says went wrong, as the exception it names."""
    error = errors.from_code(failure.code, f"{failure.text} (on {device})", **failure.fields)
    if isinstance(hint := failure.fields.get("hint"), str):
        error.hint = hint
    return error


def outcomes(
    pointers: Sequence[PointerTensor],
    timeout_s: float | None = None,
    *,
    take: bool = False,
    on_wait: OnWait | None = None,
    each: Callable[[RawTensor | Number], Any] | None = None,
) -> list[Any]:
    """What came of each value, in order, an `Outcome`; all are asked for before any is waited for.

    Args:
        timeout_s: for all together; what did not come by then is a TimedOut or WaitingForApproval.
        take: if all came, take them away: this requester's own values are dropped with a later message.
        on_wait: told why nothing comes, when a second has passed, and when the reason changes.
        each: makes of a tensor or number what is given back, while others are still on their way.

    Raises:
        UnknownValue: a value was never promised; nothing was asked for.
        Unreachable: the queue can not be used.
    """
    until = None if timeout_s is None else time.monotonic() + timeout_s
    wanted: dict[Device, list[PointerTensor]] = {}
    with collector_rests():
        for p in pointers:
            wanted.setdefault(p.device, []).append(p)
        for device, some in wanted.items():
            device.check_known(some)
        asked = {device: device.ask(some) for device, some in wanted.items()}
        for device in wanted:
            device.flush()
        asked = {
            device: device.asked_last(replies, {p.address: p for p in wanted[device]})
            for device, replies in asked.items()
        }
    found: list[Any] = [None] * len(pointers)
    for (device, reply), places in _by_reply(pointers, asked).items():
        keep = not take or _stays(device, reply, [pointers[n].address for n in places])
        came = _wait(device, reply, pointers[places[0]].address, until, on_wait or log.warning, keep)
        _read_out(pointers, places, came, each, found)
    _forget(pointers, found, asked, take=take)
    return found


def _stays(device: Device, reply: str, values: Sequence[str]) -> bool:
    """Whether the reply must be there when a block is done again."""
    return device.lasting or any(device.client.outbox.lasting(device.number, values, [reply]))


@collector_rests()
def _by_reply(
    pointers: Sequence[PointerTensor], asked: dict[Device, dict[str, str]]
) -> dict[tuple[Device, str], list[int]]:
    """Which replies are to be waited for, and which of the pointers' values come in each."""
    places: dict[tuple[Device, str], list[int]] = {}
    for n, p in enumerate(pointers):
        places.setdefault((p.device, asked[p.device][p.address]), []).append(n)
    return places


@collector_rests()
def _read_out(
    pointers: Sequence[PointerTensor],
    places: Sequence[int],
    came: Arrived | FedqError,
    each: Callable[[RawTensor | Number], Any] | None,
    found: list[Any],
) -> None:
    """What came in one reply, to the places of its values."""
    for n in places:
        p = pointers[n]
        outcome = came if isinstance(came, FedqError) else came.outcome(p.device.name, p.address)
        found[n] = outcome if each is None or isinstance(outcome, FedqError) else each(outcome)


@collector_rests()
def _forget(
    pointers: Sequence[PointerTensor], found: list[Any], asked: dict[Device, dict[str, str]], *, take: bool
) -> None:
    """Take away what came, if all did; let go of replies that may be different next time."""
    for device, replies in asked.items():
        mine = [(p, o) for p, o in zip(pointers, found, strict=True) if p.device == device]
        for p, o in mine:
            p.told = p.told or isinstance(o, FedqError)  # errors name the id: it may be asked for elsewhere
        again = [p.address for p, o in mine if isinstance(o, FedqError) and o.code in ASK_AGAIN]
        if again:
            for reply in {replies[a] for a in again}:
                device.client.outbox.acknowledge(device.number, reply)
            device.client.outbox.ask_again(device.number, again)
        for o in (o for _, o in mine if isinstance(o, UnknownPlan)):
            device.forget_plan(str(o.fields.get("id", "")))
        if take and not device.lasting and not any(isinstance(o, FedqError) for o in found):
            device.take([p for p, _ in mine], set(replies.values()))


def _wait(
    device: Device, reply: str, value: str, until: float | None, on_wait: OnWait, keep: bool
) -> Arrived | FedqError:
    """One reply of one device, or why it did not come."""
    client, told, said = device.client, "", 0.0
    client.watch.add(device.pair.carrier.path(pairs.OUT))
    while True:
        if client.pump:
            client.pump()
        if (came := _read(device, reply, value, keep=keep) or kept(device, reply, value)) is not None:
            return came
        if device.is_asked(reply):
            return _waits_for_owner(device, reply, value)
        client.outbox.settle()
        left_s = SCAN_S if until is None else min(SCAN_S, until - time.monotonic())
        if left_s <= 0:
            return _late(device, reply, value)
        spin(lambda: select.select([client.watch], [], [], 0)[0])
        if client.watch.wait(left_s):
            continue
        why, now = reason(device, reply, value)[0], time.monotonic()
        if why != told and (why.partition(": step ")[0] != told.partition(": step ")[0] or now >= said + STEPS_S):
            told, said = why, now
            on_wait(f"waiting for {device.name}: {why}")


def _read(device: Device, reply: str, value: str, *, keep: bool) -> Arrived | None:
    """The reply, if it is there and is what it says it is; ``keep`` a copy, so that it can be read again."""
    name = device.pair.reply_name(reply)
    try:
        raw = device.pair.carrier.get(name)
    except FileNotFoundError:
        return None
    except BadFile as error:
        log.warning("%s is not taken for a reply: %s", device.pair.carrier.path(name), error)
        return None
    found = _checked(device, reply, value, raw, where=str(device.pair.carrier.path(name)))
    if keep and found is not None and not any(_may_change(v) for v in found.reply.values.values()):
        durable = device.client.config.durability == "full"
        codes = [v.code for v in found.reply.values.values() if isinstance(v, Failure)]
        device.client.history.keep(device.number, reply, raw, code=codes[0] if codes else None, durable=durable)
    return found


def _may_change(value: str | Number | Failure) -> bool:
    return isinstance(value, Failure) and value.code in ASK_AGAIN


def kept(device: Device, reply: str, value: str) -> Arrived | None:
    """The reply as it was kept, if it came before."""
    raw = device.client.history.kept(device.number, reply)
    return None if raw is None else _checked(device, reply, value, raw, where=f"the copy of {reply}")


@collector_rests()
def _checked(device: Device, reply: str, value: str, data: Buffer, *, where: str) -> Arrived | None:
    """The reply in these bytes, if they are the device's and it is the one that was asked for."""
    raw = memoryview(data)
    try:
        if keys.signer_of("reply", raw) != device.key:
            raise BadSignature("signed by a key that is not the device's")
        file = decode(raw)
        found = decode_reply(file)
    except BadFile as error:
        log.warning("%s is not taken for a reply: %s", where, error)
        return None
    if (found.id, found.device, found.to) != (reply, device.name, device.client.address) or value not in found.values:
        log.warning("%s is not taken for a reply: it is another one", where)
        return None
    return Arrived(found, dict(file.tensors))


# -- why nothing comes -----------------------------------------------------------------------


def _late(device: Device, reply: str, value: str) -> FedqError:
    """What it is that nothing came, now that time is up."""
    why, code, id_ = reason(device, reply, value)
    error = errors.from_code(code, f"{id_} did not come from {device.name}: {why}", device=device.name, id=id_)
    if isinstance(error, WaitingForApproval):
        stopped = f"fedq cancel {device.name}:{id_}, or its owner says: fedq device resume {device.name}"
        error.hint = stopped if why == HELD else f"its owner says: fedq review {device.name}:{reply}"
    return error


def _waits_for_owner(device: Device, reply: str, value: str) -> FedqError:
    return WaitingForApproval(
        f"{value} did not come from {device.name}: {ASKED}",
        hint="worker.approve(pointer) releases it, worker.review() shows what waits",
        device=device.name, id=value,
    )  # fmt: skip


def reason(device: Device, reply: str, value: str) -> tuple[str, str, str]:
    """Why a reply is not there, from the device's heartbeat.

    Returns:
        the reason; the code of the error that it is when time is up; the value it is about.
    """
    beat, late = heartbeat(device), TimedOut.code
    if beat is None:
        return f"{device.name} was never started", late, value
    outbox, number = device.client.outbox, device.number
    makers, coming = outbox.messages_of(number, value, reply), {value} | outbox.asked_in(number, reply)
    for message, code in beat.refused:
        if message in makers:
            return f"{device.name} does not take the message ({code})", code, value
    for id_, what in beat.held:
        if id_ in coming and what == pairs.STOPPED:
            return HELD, WaitingForApproval.code, id_
        if id_ == reply and what == pairs.ASKED:
            return ASKED, WaitingForApproval.code, value
    if beat.trouble and beat.state == "up":
        why = {"disk_full": "its disk is full", "unreachable": "it can not use its queue or disk"}
        return f"{device.name} holds: {why.get(beat.trouble, beat.trouble)}; it goes on by itself", late, value
    seen = f"last seen {datetime.fromtimestamp(beat.time, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if beat.state == "down" or device.client.now() - beat.time > SILENT_S:
        return f"{device.name} is not running, {seen}", late, value
    if makers & set(beat.running):
        steps = next((f": step {at} of {steps}" for id_, at, steps in beat.progress if id_ in makers), "")
        return f"it is running{steps}", late, value
    if makers & set(beat.waiting):
        return "it waits for its turn or its arguments", late, value
    return f"{device.name} runs and has not answered", late, value


def heartbeat(device: Device) -> Heartbeat | None:
    """The device's own word on what it was doing, if there is one."""
    try:
        return device.sealed(Heartbeat)
    except FileNotFoundError:
        return None
    except BadFile as error:
        log.warning("%s is not believed: %s", device.pair.carrier.path("heartbeat.json"), error)
        return None
